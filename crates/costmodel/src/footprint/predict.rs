//! What so many processes take under native, nested and shadow paging: guest tables, nested tables, shadow pages and KVM's records.
//!
//! The parameters are those of the processes and of the machine; nothing that a run counts goes in. Use of all pages gives exact
//! numbers, random use expectations. The guest hands out its frames one after the other from [`Machine::first_free`] on: its kernel's
//! tables, then for each process a root and a stack, then tables and pages as they are touched.
//!
//! Source: the structure of x86-64 paging; Linux 6.1 `arch/x86/kvm/mmu` with the sizes of specification A17.

mod limit;
mod splinters;

use super::{ENTRIES, dense, pages_of_table, sparse};

/// Which pages of its area a process uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touched {
    /// All.
    All,
    /// So many distinct ones, drawn at random.
    Random(u64),
}

/// Processes that each use an area of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// How many.
    pub processes: u64,
    /// The first 4 KiB page of the area, the same in each.
    pub first_page: u64,
    /// 4 KiB pages of the area.
    pub pages: u64,
    /// Those in use.
    pub touched: Touched,
    /// Whether processes come round to their pages again.
    pub again: bool,
}

/// The machine and its guest's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// 4 KiB frames of the guest's memory.
    pub memory: u64,
    /// The first frame that the guest's allocator hands out.
    pub first_free: u64,
    /// The level that maps the kernel's direct map of all memory: 1 for 4 KiB, 2 for 2 MiB, 3 for 1 GiB.
    pub direct_map_leaf: u32,
    /// The level that maps the processes' pages.
    pub guest_leaf: u32,
    /// The level that maps the host's pages.
    pub host_leaf: u32,
    /// Whether each process has a second root, without the kernel.
    pub isolated: bool,
}

/// Bytes by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Prediction {
    /// The guest's tables.
    pub guest: f64,
    /// Shadow tables.
    pub shadow: f64,
    /// Nested tables.
    pub nested: f64,
    /// The reverse map and its descriptors.
    pub reverse_map: f64,
    /// Headers, translations and the memory slot's other records.
    pub records: f64,
}

/// KVM's limit on shadow pages.
#[derive(Clone, Copy, Debug)]
pub struct KvmLimit;

impl KvmLimit {
    /// The least that may be set.
    pub const LEAST: u64 = 64;

    /// What KVM sets for a machine of `frames` frames: a fiftieth of them.
    #[must_use]
    pub const fn default_for(frames: u64) -> u64 {
        if frames / 50 > Self::LEAST { frames / 50 } else { Self::LEAST }
    }
}

const TABLE: f64 = 4096.0;
const HEADER: f64 = 184.0;
const DESCRIPTOR: f64 = 128.0;
const HASH: f64 = 32_768.0;
/// Entries of one descriptor of the reverse map.
const RUN: u64 = 14;
/// Free pages below which KVM makes room under its limit, and after it has.
const SPARE: f64 = 5.0;
const REFILL: f64 = 25.0;
/// Levels of the tables.
const DEPTH: u32 = 4;

impl Machine {
    /// Tables of the guest's kernel: its root; the direct map; the text, a table of level 3 and one of level 2; the entry area, one of
    /// each level.
    #[must_use]
    pub fn kernel_tables(&self) -> u64 {
        let direct = (self.direct_map_leaf..DEPTH).map(|level| self.memory.div_ceil(pages_of_table(level)));
        1 + direct.sum::<u64>() + 2 + 3
    }

    /// The level that maps the pages of this area: large pages are used where a whole one fits. `None` for an area of both kinds.
    fn leaf(&self, program: &Program) -> Option<u32> {
        let Program { first_page, pages, .. } = *program;
        let aligned = first_page.next_multiple_of(ENTRIES);
        if self.guest_leaf == 1 || aligned + ENTRIES > first_page + pages {
            return Some(1);
        }
        (first_page.is_multiple_of(ENTRIES) && pages.is_multiple_of(ENTRIES)).then_some(self.guest_leaf)
    }

    /// Counts the tables of a program.
    fn tables(&self, program: &Program) -> Option<Tables> {
        let leaf = self.leaf(program)?;
        let at = |level| program.expected(level);
        let each = (leaf..DEPTH).map(at).sum::<f64>() + if self.isolated { 2.0 } else { 1.0 };
        let (pages, processes) = (at(leaf - 1), float(program.processes));
        // A root, a stack, tables and pages; pages of their own size lie in blocks apart, which small frames fill up one by one.
        let small = float(self.kernel_tables()) + processes * (each + 1.0);
        let data = processes * pages * float(pages_of_table(leaf - 1));
        Some(Tables { leaf, each, pages, end: float(self.first_free) + small + data })
    }

    /// Frames of memory that the guest's kernel and the processes take; `None` where large and small pages mix.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "frames, below 2^53")]
    pub fn frames_used(&self, program: &Program) -> Option<u64> {
        Some(self.tables(program)?.end.ceil() as u64)
    }

    /// The guest's tables, in bytes.
    fn guest(&self, program: &Program, tables: &Tables) -> f64 {
        TABLE * (float(self.kernel_tables()) + float(program.processes) * tables.each)
    }

    /// Without virtualization; `None` where large and small pages mix.
    #[must_use]
    pub fn native(&self, program: &Program) -> Option<Prediction> {
        let tables = self.tables(program)?;
        Some(Prediction { guest: self.guest(program, &tables), ..Prediction::default() })
    }

    /// Records of a memory slot that every machine has: large-page counts, and the hash.
    fn slot(&self) -> f64 {
        4.0 * float(self.large()) + HASH
    }

    /// Large pages of either size in memory.
    const fn large(&self) -> u64 {
        self.memory / ENTRIES + self.memory / (ENTRIES * ENTRIES)
    }

    /// Tables of `level` over the frames that the allocator has handed out: they lie together.
    fn over_used(&self, tables: &Tables, level: u32) -> f64 {
        let span = float(pages_of_table(level));
        (tables.end / span).ceil() - (float(self.first_free) / span).floor()
    }

    /// Nested paging: one tree for all that is touched, whoever does. `None` where large and small pages mix.
    #[must_use]
    pub fn nested(&self, program: &Program) -> Option<Prediction> {
        let tables = self.tables(program)?;
        // The kernel's code lies below the frames in use, under a table of its own where tables are that small.
        let code = |level| if pages_of_table(level) < self.first_free { 1.0 } else { 0.0 };
        let count =
            1.0 + (self.host_leaf..DEPTH).map(|level| self.over_used(&tables, level) + code(level)).sum::<f64>();
        let guest = self.guest(program, &tables);
        let records = count * HEADER + self.slot();
        Some(Prediction { guest, nested: count * TABLE, records, ..Prediction::default() })
    }

    /// Shadow paging as KVM does it, with so many shadow pages at most. `None` where large and small pages mix, where the kernel is
    /// hidden from processes (its shadow pages then depend on what each access of the kernel goes through), and where its direct map
    /// is not of 2 MiB.
    ///
    /// Shadowed are each process' tables and those of the kernel's that it uses. A guest page larger than the host's is a *direct* page
    /// of smaller ones; so is one of the kernel's direct map that covers a shadowed table, whatever the host's pages are. A frame that
    /// a process and the direct map both map in pieces of one size costs a descriptor.
    #[must_use]
    pub fn shadow(&self, program: &Program, limit: u64) -> Option<Prediction> {
        let tables = self.tables(program)?;
        if self.isolated || self.direct_map_leaf != 2 {
            return None;
        }
        let processes = float(program.processes);
        let of_kernel = 3.0 + (2..DEPTH).map(|level| (tables.end / float(pages_of_table(level))).ceil()).sum::<f64>();
        let indirect = processes * tables.each + of_kernel;
        let Direct { pages: direct, described } = self.direct(program, &tables);
        let wanted = indirect + direct;
        // Parents of the two tables of level 3 that all roots share; the kernel's own root has used the direct map.
        let shared = [program.processes + 1, program.processes].map(|n| if n > 1 { n.div_ceil(RUN) } else { 0 });
        let (pages, indirect, described) = if wanted + SPARE <= float(limit) {
            (wanted, indirect, described)
        } else {
            // The oldest pages go, down to a reserve that is used up and filled again.
            let pages = float(limit) - f64::midpoint(SPARE, REFILL);
            let kept = pages / wanted;
            match limit::after_one_round(self, program, &tables, limit) {
                Some(kept) => (kept.pages, kept.indirect, kept.described),
                // What only the first touch needed, the pieces of the direct map, is older than all that came after.
                None if program.again => (pages, pages, 0.0),
                None => (pages, kept * indirect, kept * described),
            }
        };
        let descriptors = described + float(shared.iter().sum());
        Some(Prediction {
            guest: self.guest(program, &tables),
            shadow: TABLE * pages,
            nested: 0.0,
            reverse_map: 8.0 * float(self.memory + self.large()) + DESCRIPTOR * descriptors,
            records: pages * HEADER + indirect * TABLE + self.slot() + 2.0 * float(self.memory),
        })
    }

    /// Direct shadow pages, and frames mapped twice.
    fn direct(&self, program: &Program, tables: &Tables) -> Direct {
        let processes = float(program.processes);
        let regions = self.over_used(tables, 1);
        match (tables.leaf, self.host_leaf) {
            // Small host pages: each region that the kernel reaches, one for its code, and each large page of a process.
            (1, 1) => Direct { pages: regions + 1.0, described: processes * tables.pages },
            (_, 1) => {
                let described = match program.touched {
                    Touched::All => float(program.pages),
                    // A fault brings its aligned eight entries.
                    Touched::Random(touched) => 8.0 * groups(program.pages, touched),
                };
                Direct { pages: regions + 1.0 + processes * tables.pages, described: processes * described }
            }
            // Large host pages: the direct map is in pieces where tables are, and those lie apart from large pages.
            (1, _) => match program.touched {
                Touched::All => splinters::of_dense(self, program),
                Touched::Random(touched) => splinters::of_random(self, program, touched, tables),
            },
            _ => {
                let small = tables.end - float(self.first_free) - processes * tables.pages * 512.0;
                Direct { pages: (small / 512.0).ceil(), described: processes * tables.pages }
            }
        }
    }
}

/// What follows from a program on a machine.
#[derive(Clone, Copy, Debug)]
struct Tables {
    /// The level that maps the processes' pages.
    leaf: u32,
    /// Tables of one process, its roots included.
    each: f64,
    /// Pages of one process, of the size of that level.
    pages: f64,
    /// The first frame after those that the guest has handed out.
    end: f64,
}

/// Direct shadow pages, and frames that several entries of one size map.
#[derive(Clone, Copy, Debug)]
struct Direct {
    pages: f64,
    described: f64,
}

impl Program {
    /// Tables of `level` of one process, or its pages for level 0.
    fn expected(&self, level: u32) -> f64 {
        match self.touched {
            Touched::All => float(dense(&[(self.first_page, self.pages)], level)),
            Touched::Random(touched) => sparse(self.first_page, self.pages, touched, level),
        }
    }
}

/// The expected number of aligned groups of eight among `pages` that hold one of `touched` drawn.
fn groups(pages: u64, touched: u64) -> f64 {
    let missed = super::none_drawn(pages, touched, 8.min(pages));
    float(pages) / 8.0 * (1.0 - missed)
}

#[expect(clippy::cast_precision_loss, reason = "pages, frames and bytes below 2^53")]
fn float(n: u64) -> f64 {
    n as f64
}
