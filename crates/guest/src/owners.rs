//! Which page tables belong to which process: what the tables themselves say, read and not counted.
//!
//! A process owns its roots and every table below their user half; the kernel's half is everybody's.

use memvirt_addr::{Gfn, Level};
use memvirt_ops::process::ProcessId;
use memvirt_pagetable::{Entry, Format, Guest4};
use memvirt_platform::Platform;

use super::Guest;

/// The page tables of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessTables {
    /// The process.
    pub process: ProcessId,
    /// The root that its kernel runs on.
    pub root: Gfn,
    /// Under kernel-page-table isolation: the root that the process itself runs on.
    pub user_root: Option<Gfn>,
    /// Its tables, the roots included.
    pub tables: u64,
}

impl Guest {
    /// The page tables of every process, by its number. A child of vfork stands for the parent whose address space it runs in.
    #[must_use]
    pub fn tables_by_process(&self, platform: &dyn Platform) -> Vec<ProcessTables> {
        let tables = self.processes.iter().map(|(id, process)| {
            let roots = process.roots;
            let below = self.tables_below(platform, roots.root, Guest4::ROOT, 0..256);
            let tables = 1 + u64::from(roots.user_root.is_some()) + below;
            ProcessTables { process: *id, root: roots.root, user_root: roots.user_root, tables }
        });
        tables.collect()
    }

    /// Tables below these entries of a table.
    fn tables_below(&self, platform: &dyn Platform, table: Gfn, level: Level, entries: std::ops::Range<usize>) -> u64 {
        let Some(below) = level.below() else { return 0 };
        let mut tables = 0;
        for index in entries {
            if let Entry::Table { next, .. } = Guest4::decode(platform.peek(self.vm, table.entry(index)), level) {
                tables += 1 + self.tables_below(platform, next, below, 0..512);
            }
        }
        tables
    }
}
