//! A process: its roots, its areas, its kernel stack.

use std::collections::{BTreeMap, BTreeSet};

use memvirt_addr::{Gfn, GuestPhys, Gva, PageSize};
use memvirt_ops::process::ProcessId;
use memvirt_pagetable::map::TableAttrs;
use memvirt_pagetable::{Attrs, FrameAllocator, Guest4, Mapper, TableMem};

use super::area::Areas;
use super::frames::Frames;
use super::memory::{Hands, KernelMem};
use super::{Guest, Halted};

/// What entries that point to user tables carry (Linux: `_PAGE_TABLE`).
pub(crate) const USER_TABLES: TableAttrs = TableAttrs::USER.with(Attrs::ACCESSED);

/// The first address that is not the user's.
pub(crate) const USER_END: Gva = Gva::new_truncate(1 << 47);

/// The root tables of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Roots {
    /// The root that the kernel runs on.
    pub(crate) root: Gfn,
    /// Under kernel-page-table isolation: the root that the process runs on.
    pub(crate) user_root: Option<Gfn>,
}

/// One process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) roots: Roots,
    pub(crate) areas: Areas,
    /// Pages that are in memory but mapped nowhere while their area permits nothing, by page number.
    pub(crate) hidden: BTreeMap<u64, (Gfn, PageSize)>,
    /// The stack of its first thread.
    pub(crate) kernel_stack: Gfn,
    /// Those of further threads, by the CPU that they run on.
    pub(crate) thread_stacks: BTreeMap<usize, Gfn>,
    /// The number of the address space (`ctx_id`): never used again.
    pub(crate) space: u64,
    /// How often it has been flushed (`tlb_gen`).
    pub(crate) generation: u64,
    /// CPUs that have loaded it since the last flush that freed tables (`mm_cpumask`, cleared lazily).
    pub(crate) ran_on: BTreeSet<usize>,
    /// The heap's first page and the address that it ends at, once it has been asked for.
    pub(crate) heap: Option<(u64, Gva)>,
    /// The page from which reclaim goes on, and the one from which the collapse of pages does.
    pub(crate) aged_to: u64,
    pub(crate) collapsed_to: u64,
}

impl Process {
    /// Whether a flush has to ask CPUs other than `cpu`.
    pub(crate) fn ran_beside(&self, cpu: usize) -> bool {
        self.ran_on.iter().any(|other| *other != cpu)
    }

    /// The kernel stack of the thread that runs on a CPU.
    pub(crate) fn kernel_stack_on(&self, cpu: usize) -> Gfn {
        self.thread_stacks.get(&cpu).copied().unwrap_or(self.kernel_stack)
    }
}

impl Guest {
    /// A process with an empty user half.
    pub(crate) fn new_process(&mut self, hands: &mut Hands<'_>) -> Result<Process, Halted> {
        let root = self.new_root(hands, false)?;
        let user_root = if self.config.kpti { Some(self.new_root(hands, true)?) } else { None };
        let kernel_stack = self.data_page(hands)?;
        let roots = Roots { root, user_root };
        self.next_space += 1;
        Ok(Process {
            roots,
            areas: Areas::default(),
            hidden: BTreeMap::new(),
            kernel_stack,
            thread_stacks: BTreeMap::new(),
            space: self.next_space,
            generation: 0,
            ran_on: BTreeSet::new(),
            heap: None,
            aged_to: 0,
            collapsed_to: 0,
        })
    }

    /// A root table whose upper half shows the kernel, or under isolation its entry area only.
    fn new_root(&mut self, hands: &mut Hands<'_>, entry_area_only: bool) -> Result<Gfn, Halted> {
        let root = FrameAllocator::<GuestPhys>::allocate(&mut self.frames, PageSize::Size4K)
            .ok_or(Halted::GuestOutOfMemory)?;
        let kernel_root = self.kernel_root;
        let mut mem = KernelMem::new(hands, None);
        mem.clear(root);
        for index in 256..512 {
            let entry = mem.read_entry(kernel_root.entry(index));
            if entry != 0 && (!entry_area_only || index == super::boot::ENTRY_SLOT) {
                mem.write_entry(root.entry(index), entry);
            }
        }
        mem.finish()?;
        Ok(root)
    }

    /// A process that runs on another CPU too gets a thread of its own here, with its own kernel stack.
    pub(crate) fn prepare_stack(&mut self, hands: &mut Hands<'_>, id: ProcessId) -> Result<(), Halted> {
        let here = self.on;
        let elsewhere = (0..).zip(&self.cpus).any(|(i, cpu)| i != here && cpu.current == Some(id));
        let has_one = self.processes.get(&id).is_none_or(|process| process.thread_stacks.contains_key(&here));
        if !elsewhere || has_one {
            return Ok(());
        }
        let stack = self.data_page(hands)?;
        if let Some(process) = self.processes.get_mut(&id) {
            process.thread_stacks.insert(here, stack);
        }
        Ok(())
    }

    /// Frees the roots of ended processes that no CPU has loaded any more.
    pub(crate) fn free_unloaded_roots(&mut self) {
        let doomed = std::mem::take(&mut self.doomed);
        let (loaded, gone) =
            doomed.into_iter().partition(|dead: &Process| self.cpus.iter().any(|cpu| cpu.loaded == dead.roots.root));
        self.doomed = loaded;
        for dead in gone {
            self.free_roots(&dead);
        }
    }

    /// Frees the roots and the kernel stacks of a process whose user half is empty and which no CPU runs on.
    pub(crate) fn free_roots(&mut self, process: &Process) {
        for root in [Some(process.roots.root), process.roots.user_root].into_iter().flatten() {
            self.frames.free(root, PageSize::Size4K);
        }
        for stack in std::iter::once(process.kernel_stack).chain(process.thread_stacks.values().copied()) {
            self.frames.release(stack);
        }
    }

    /// Runs table code on the tables under the roots of a process.
    pub(crate) fn with_tables<T>(
        &mut self,
        hands: &mut Hands<'_>,
        roots: Roots,
        act: impl FnOnce(&mut Mapper<'_, Guest4, KernelMem<'_, '_>>, &mut Frames) -> Result<T, Halted>,
    ) -> Result<T, Halted> {
        let mut mem = KernelMem::new(hands, roots.user_root.map(|user_root| (roots.root, user_root)));
        let result = act(&mut Mapper::new(&mut mem, roots.root, USER_TABLES), &mut self.frames);
        mem.finish()?;
        result
    }
}
