//! What KVM keeps of its shadow pages where they are too many, after processes have used their memory once.
//!
//! The oldest go first, by when they were made. A process that has stored to its pages and not come round again has leaf tables that are
//! out of sync, and KVM zaps those together with the first page above them that goes: at one stroke goes the whole process. How many
//! pages are left then depends on where in this the run ends. So the list of pages is gone through as KVM keeps it: one entry for each
//! page that the parameters say there will be, in the order in which they say it is made. Where processes come round again their
//! tables are in sync and pages go one by one; of that the caller knows the mean.
//!
//! Source: Linux 6.1 `make_mmu_pages_available`, `kvm_mmu_zap_oldest_mmu_pages`, `mmu_zap_unsync_children`; a vCPU holds four roots.

use std::collections::{BTreeMap, VecDeque};

use super::{ENTRIES, Machine, Program, REFILL, SPARE, Tables, Touched, float};

/// Steps beyond which the mean has to do.
const STEPS: u64 = 1 << 20;
/// Roots that a vCPU holds beside the current one.
const HELD: u64 = 3;

/// What is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    /// Shadow pages.
    pub(super) pages: f64,
    /// Those that stand for guest tables.
    pub(super) indirect: f64,
    /// Frames that a process and the direct map both mapped, and one of them still does.
    pub(super) described: f64,
}

/// A shadow page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Page {
    /// A direct page: of the kernel's code.
    Code,
    /// A direct page: of 512 frames of the direct map.
    Region(u64),
    /// A table of the kernel: of its text, by level.
    Text(u8),
    /// Of its direct map, by level and number.
    Direct(u8, u64),
    /// A process' root.
    Root(u64),
    /// Its tables between root and leaf tables, by level.
    Way(u64, u8),
    /// Its leaf tables.
    Leaf(u64, u64),
}

impl Page {
    /// Whose leaf tables go with it.
    const fn above_leaves(self) -> Option<u64> {
        match self {
            Self::Root(process) | Self::Way(process, _) => Some(process),
            _ => None,
        }
    }
}

/// After one round over small pages and small host pages, each process within 1 GiB; `None` where that is not so, or there is too
/// much of it.
pub(super) fn after_one_round(machine: &Machine, program: &Program, tables: &Tables, limit: u64) -> Option<Kept> {
    let touches = match program.touched {
        Touched::All => program.expected(1) * 3.0,
        Touched::Random(touched) => float(touched),
    };
    let one_way = program.expected(2) <= 1.0 && program.expected(3) <= 1.0;
    let small = tables.leaf == 1 && machine.host_leaf == 1;
    if program.again || !one_way || !small || touches * float(program.processes) > float(STEPS) {
        return None;
    }
    let first = machine.first_free + machine.kernel_tables();
    let mut list = List { limit, first, frame: first + 2 * program.processes, ..List::default() };
    // The root that the kernel booted with.
    list.need(Page::Text(4));
    for process in 0..program.processes {
        list.process = process;
        list.code();
        list.need(Page::Root(process));
        match program.touched {
            Touched::All => list.dense(program),
            Touched::Random(touched) => list.random(program, touched, tables),
        }
    }
    Some(list.kept())
}

/// Frames that a leaf table and a region of the direct map mapped at the same time, each page with its serial number.
#[derive(Clone, Copy, Debug)]
struct Twice {
    frames: u64,
    by: [(Page, u64); 2],
}

/// KVM's list of pages by age, and the guest's frames as they are handed out.
#[derive(Debug, Default)]
struct List {
    limit: u64,
    /// Where roots and stacks lie, and the next frame.
    first: u64,
    frame: u64,
    process: u64,
    /// Pages that there are, with their serial numbers; others in the order are gone.
    pages: BTreeMap<Page, u64>,
    order: VecDeque<(Page, u64)>,
    made: u64,
    out_of_sync: BTreeMap<u64, Vec<Page>>,
    twice: Vec<Twice>,
}

impl List {
    /// Makes a page where it is not there.
    fn need(&mut self, page: Page) {
        if !self.pages.contains_key(&page) {
            self.make_room();
            self.made += 1;
            self.pages.insert(page, self.made);
            self.order.push_back((page, self.made));
        }
    }

    /// As each fault does before anything else.
    fn make_room(&mut self) {
        let free = float(self.limit) - float(self.pages.len() as u64);
        if free >= SPARE {
            return;
        }
        let (mut gone, mut passed) = (0.0, Vec::new());
        while gone < REFILL - free
            && let Some((page, serial)) = self.order.pop_front()
        {
            let held = matches!(page, Page::Root(root) if root + HELD >= self.process);
            if self.pages.get(&page) != Some(&serial) {
                continue;
            }
            if held {
                passed.push((page, serial));
                continue;
            }
            self.pages.remove(&page);
            gone += 1.0;
            let leaves = page.above_leaves().and_then(|process| self.out_of_sync.remove(&process)).unwrap_or_default();
            gone += leaves.into_iter().filter(|leaf| self.pages.remove(leaf).is_some()).map(|_| 1.0).sum::<f64>();
        }
        for entry in passed.into_iter().rev() {
            self.order.push_front(entry);
        }
    }

    /// The kernel runs.
    fn code(&mut self) {
        self.need(Page::Text(3));
        self.need(Page::Text(2));
        self.need(Page::Code);
        self.reach(self.first + 2 * self.process + 1);
    }

    /// The kernel reaches a frame through its direct map.
    fn reach(&mut self, frame: u64) {
        let region = frame / ENTRIES;
        self.need(Page::Direct(3, region / ENTRIES / ENTRIES));
        self.need(Page::Direct(2, region / ENTRIES));
        self.need(Page::Region(region));
    }

    /// So many of the next frames become pages below leaf table `leaf`, all in one region.
    fn touch(&mut self, leaf: u64, frames: u64) {
        self.code();
        self.reach(self.frame);
        let leaf = Page::Leaf(self.process, leaf);
        // The kernel stores to the table that was shadowed for an earlier page.
        if self.pages.contains_key(&leaf) {
            self.drift(leaf);
        }
        self.make_room();
        self.walk(leaf);
        if frames > 1 {
            self.drift(leaf);
            self.make_room();
            self.walk(leaf);
            self.code();
        }
        let region = Page::Region(self.frame / ENTRIES);
        let serial = |page: Page| Some((page, *self.pages.get(&page)?));
        if let (Some(one), Some(other)) = (serial(leaf), serial(region)) {
            self.twice.push(Twice { frames, by: [one, other] });
        }
        self.frame += frames;
    }

    fn walk(&mut self, leaf: Page) {
        let process = self.process;
        for page in [Page::Root(process), Page::Way(process, 3), Page::Way(process, 2), leaf] {
            self.need(page);
        }
    }

    /// The table is stored to: from now on it is out of sync.
    fn drift(&mut self, leaf: Page) {
        let drifted = self.out_of_sync.entry(self.process).or_default();
        if !drifted.contains(&leaf) {
            drifted.push(leaf);
        }
    }

    /// All pages in ascending order.
    fn dense(&mut self, program: &Program) {
        let (mut page, end) = (program.first_page, program.first_page + program.pages);
        while page < end {
            let leaf = page / ENTRIES;
            let next = ((leaf + 1) * ENTRIES).min(end);
            self.touch(leaf, 1);
            self.frame += if page == program.first_page { 3 } else { 1 };
            page += 1;
            while page < next {
                let frames = (next - page).min(ENTRIES - self.frame % ENTRIES);
                self.touch(leaf, frames);
                page += frames;
            }
        }
    }

    /// Pages at random: a new leaf table where one is expected, those that there are in turn otherwise.
    fn random(&mut self, program: &Program, touched: u64, tables: &Tables) {
        let (pages, blocks) = (float(program.pages), tables.each - 3.0);
        let until = |drawn: u64| {
            let all = (pages / float(ENTRIES)).max(1.0);
            let expected = all * (1.0 - libm::pow(1.0 - float(drawn) / pages, float(ENTRIES).min(pages)));
            libm::round(expected).clamp(1.0, libm::round(blocks).max(1.0))
        };
        let mut leaves = 0;
        for drawn in 0..touched {
            if float(leaves) < until(drawn + 1) {
                self.touch(leaves, 1);
                self.frame += if leaves == 0 { 3 } else { 1 };
                leaves += 1;
            } else {
                self.touch(drawn % leaves, 1);
            }
        }
    }

    fn kept(&self) -> Kept {
        let direct = self.pages.keys().filter(|page| matches!(page, Page::Code | Page::Region(_))).count() as u64;
        let pages = self.pages.len() as u64;
        let there = |(page, serial): &(Page, u64)| self.pages.get(page) == Some(serial);
        let described = self.twice.iter().filter(|twice| twice.by.iter().any(there)).map(|twice| twice.frames);
        Kept { pages: float(pages), indirect: float(pages - direct), described: float(described.sum()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counted by `memvirt footprint --footprint 64MiB --rounds 1 --regimes shadow:kvm --shadow-page-limit N`.
    #[test]
    fn counted_runs_are_met_to_two_pages() {
        let machine = |memory| Machine {
            memory,
            first_free: 8192,
            direct_map_leaf: 2,
            guest_leaf: 1,
            host_leaf: 1,
            isolated: false,
        };
        let program = |processes, touched| Program {
            processes,
            first_page: 0x10_0000_0000 >> 12,
            pages: 1 << 14,
            touched,
            again: false,
        };
        let sparse = [
            (64, 48, 43, 652),
            (120, 81, 77, 652),
            (150, 116, 111, 1118),
            (200, 187, 181, 1638),
            (500, 473, 461, 4364),
        ];
        let dense = [(80, 47, 12, 16278), (120, 109, 43, 32628), (200, 175, 77, 48978), (300, 287, 144, 71971)];
        let rows = sparse.map(|row| (machine(1 << 18), program(16, Touched::Random(328)), row)).into_iter();
        for (machine, program, counted) in
            rows.chain(dense.map(|row| (machine(1 << 19), program(12, Touched::All), row)))
        {
            let (limit, pages, indirect, described) = counted;
            let tables = machine.tables(&program).unwrap();
            let kept = after_one_round(&machine, &program, &tables, limit).unwrap();
            let near = |said: f64, counted: f64, by: f64| (said - counted).abs() <= by;
            assert!(
                near(kept.pages, pages.into(), 2.0) && near(kept.indirect, indirect.into(), 2.0),
                "{counted:?} {kept:?}"
            );
            assert!(near(kept.described, described.into(), f64::from(described) * 0.02), "{counted:?} {kept:?}");
        }
    }
}
