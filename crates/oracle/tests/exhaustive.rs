//! The search over histories against a machine that caches everything it may, at every instant.
//!
//! The reference keeps explicit sets: every paging-structure-cache entry and every TLB entry that hardware may hold. After
//! each event it adds all that a walk could add, and a flush removes what the manual says it removes. The oracle must find
//! the same translations, no more and no fewer.

#![expect(clippy::unwrap_used, reason = "test helpers")]

mod support;

use std::collections::BTreeSet;

use memvirt_addr::{Acc, AccessKind, Gfn, Gva, Level, PageSize};
use memvirt_ops::arch::{Control, CrWrite, Invpcid, Pcid};
use memvirt_oracle::{State, Translation, Verdict};
use memvirt_pagetable::{Attrs, Entry, Format, Guest4};
use proptest::prelude::*;
use support::{HOST, V0, World};

/// The pages looked at: two pages each of two 2 MiB regions.
const PAGES: [u64; 4] = [0x0, 0x1000, 0x20_0000, 0x20_1000];
/// Frames that may be tables.
const TABLES: u64 = 7;

type Upper = (Pcid, Level, u64, Gfn, u32);
/// A translation, cached for one 4 KiB page: a large one may be cached in pieces.
type Cached = (Pcid, PageSize, u64, Gfn, u32, bool);

#[derive(Default)]
struct Reference {
    state: State,
    upper: BTreeSet<Upper>,
    tlb: BTreeSet<Cached>,
}

impl Reference {
    fn fill(&mut self, world: &World) {
        for page in PAGES {
            let gva = Gva::new(page);
            for level in Level::ALL[..4].iter().rev() {
                self.fill_level(world, gva, *level);
            }
        }
    }

    /// Every table of `level` that a walk for `gva` may go through now, read once.
    fn fill_level(&mut self, world: &World, gva: Gva, level: Level) {
        let pcid = self.state.pcid();
        let tables: Vec<(Gfn, u32)> = if level == Level::L4 {
            vec![(self.state.cr3.root.frame(), Attrs::PERMISSIONS.bits())]
        } else {
            let above = level.above().unwrap();
            let of = |entry: &&Upper| (entry.0, entry.1, entry.2) == (pcid, above, gva.as_u64() >> above.entry_shift());
            self.upper.iter().filter(of).map(|entry| (entry.3, entry.4)).collect()
        };
        for (table, perms) in tables {
            let raw = world.mem.get(&table.entry(Guest4::index(gva, level)).as_u64()).copied().unwrap_or(0);
            match Guest4::decode(raw, level) {
                Entry::Table { next, attrs } => {
                    self.upper.insert((pcid, level, gva.as_u64() >> level.entry_shift(), next, perms & attrs.bits()));
                }
                Entry::Leaf { frame, size, attrs } => {
                    let global = attrs.contains(Attrs::GLOBAL);
                    self.tlb.insert((pcid, size, gva.as_u64(), frame, perms & attrs.bits(), global));
                }
                Entry::Absent | Entry::Reserved => {}
            }
        }
    }

    fn flush_pcid(&mut self, pcid: Pcid) {
        self.upper.retain(|entry| entry.0 != pcid);
        self.tlb.retain(|entry| entry.0 != pcid || entry.5);
    }

    /// The piece that holds `gva`, and all pieces where the tables map it by a page of the same size now.
    fn flush_page(&mut self, pcid: Pcid, gva: Gva, globals: bool, mapped: Option<PageSize>) {
        self.tlb.retain(|&(of, size, page, _, _, global)| {
            let same = |size: PageSize| gva.as_u64() >> size.shift() == page >> size.shift();
            let hit = same(PageSize::Size4K) || mapped == Some(size) && same(size);
            !(hit && if global { globals } else { of == pcid })
        });
    }

    fn flush_prefixes(&mut self, pcid: Pcid, gva: Gva) {
        self.upper.retain(|entry| entry.0 != pcid || entry.2 != gva.as_u64() >> entry.1.entry_shift());
    }

    fn control(&mut self, world: &World, control: &Control) {
        let pcid = self.state.pcid();
        match *control {
            Control::Invlpg(gva) => {
                self.flush_page(pcid, gva, true, self.mapped(world, gva));
                self.upper.retain(|entry| entry.0 != pcid);
            }
            Control::Cr3(cr3) => {
                self.state.cr3 = cr3;
                if !(cr3.keep && self.state.pcid_enable) {
                    self.flush_pcid(self.state.pcid());
                }
            }
            Control::Cr(CrWrite::PcidEnable(on)) => {
                let was = std::mem::replace(&mut self.state.pcid_enable, on);
                if was && !on {
                    (self.upper, self.tlb) = Default::default();
                }
            }
            Control::Cr(CrWrite::TogglePge) | Control::Invpcid(Invpcid::AllGlobal) => {
                (self.upper, self.tlb) = Default::default();
            }
            Control::Invpcid(Invpcid::All) => {
                self.upper.clear();
                self.tlb.retain(|entry| entry.5);
            }
            Control::Invpcid(Invpcid::Single(pcid)) => self.flush_pcid(pcid),
            Control::Invpcid(Invpcid::Address(of, gva)) => {
                let mapped = self.mapped(world, gva).filter(|_| of == pcid);
                let pcid = of;
                self.flush_page(pcid, gva, false, mapped);
                self.flush_prefixes(pcid, gva);
            }
            _ => {}
        }
    }

    fn mapped(&self, world: &World, gva: Gva) -> Option<PageSize> {
        let mut table = self.state.cr3.root.frame();
        for level in Level::ALL[..4].iter().rev() {
            let at = table.entry(Guest4::index(gva, *level)).as_u64();
            match Guest4::decode(world.mem.get(&at).copied().unwrap_or(0), *level) {
                Entry::Table { next, .. } => table = next,
                Entry::Leaf { size, .. } => return Some(size),
                _ => return None,
            }
        }
        None
    }

    fn fault(&mut self, world: &World, gva: Gva) {
        let pcid = self.state.pcid();
        self.flush_page(pcid, gva, true, self.mapped(world, gva));
        self.flush_prefixes(pcid, gva);
    }

    fn possible(&self, gva: Gva) -> BTreeSet<(Gfn, PageSize, u32, bool)> {
        let pcid = self.state.pcid();
        let hit = |entry: &&Cached| (entry.0 == pcid || entry.5) && gva.as_u64() == entry.2;
        (self.tlb.iter().filter(hit))
            .map(|entry| {
                (entry.3.offset(gva.page_offset(entry.1) >> 12), entry.1, entry.4 & Attrs::PERMISSIONS.bits(), entry.5)
            })
            .collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Store { table: u64, index: usize, value: u64 },
    Control(Control),
    Fault(u64),
    Prune,
}

fn entry() -> impl Strategy<Value = u64> {
    let flags = prop_oneof![4 => Just(0x3u64), 2 => Just(0x1), 1 => Just(0x103), 1 => Just(0x83), 1 => Just(0x183), 2 => Just(0)];
    (1..=TABLES + 2, flags).prop_map(|(frame, flags)| {
        let large = flags & 0x80 != 0;
        if flags == 0 { 0 } else { if large { frame << 21 | flags } else { frame << 12 | flags } }
    })
}

fn control() -> impl Strategy<Value = Control> {
    let page = || (0..4usize).prop_map(|i| Gva::new(PAGES[i]));
    let pcid = || (0u16..2).prop_map(|number| Pcid::try_new(number).unwrap());
    let cr3 = (1u64..3, pcid(), any::<bool>()).prop_map(|(root, pcid, keep)| {
        Control::Cr3(memvirt_ops::arch::Cr3 { root: Gfn::new(root).base(), pcid, keep })
    });
    prop_oneof![
        4 => page().prop_map(Control::Invlpg),
        4 => cr3,
        1 => Just(Control::Cr(CrWrite::TogglePge)),
        1 => any::<bool>().prop_map(|on| Control::Cr(CrWrite::PcidEnable(on))),
        1 => (pcid(), page()).prop_map(|(pcid, gva)| Control::Invpcid(Invpcid::Address(pcid, gva))),
        1 => pcid().prop_map(|pcid| Control::Invpcid(Invpcid::Single(pcid))),
        1 => Just(Control::Invpcid(Invpcid::All)),
        1 => Just(Control::Invpcid(Invpcid::AllGlobal)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (1..=TABLES, 0usize..2, entry()).prop_map(|(table, index, value)| Step::Store { table, index, value }),
        6 => control().prop_map(Step::Control),
        2 => (0..4usize).prop_map(|i| Step::Fault(PAGES[i])),
        1 => Just(Step::Prune),
    ]
}

fn shape(found: Vec<Translation>) -> BTreeSet<(Gfn, PageSize, u32, bool)> {
    found.into_iter().map(|t| (t.frame, t.size, t.perms.bits(), t.global)).collect()
}

/// Root 1 over tables 3, 4, 5; root 2 over the same.
fn start() -> (World, Reference) {
    let (mut world, mut reference) = (World::new(1), Reference::default());
    for (table, next) in [(1, 3), (2, 3), (3, 4), (4, 5), (5, 8)] {
        world.set(table, 0, next << 12 | 3);
    }
    let load = Control::Cr3(memvirt_ops::arch::Cr3::flushing(Gfn::new(1).base()));
    world.control(V0, load);
    reference.control(&world, &load);
    reference.fill(&world);
    (world, reference)
}

proptest! {
    #![proptest_config(memvirt_properties::cases(2000))]

    #[test]
    fn the_oracle_finds_exactly_what_hardware_may_hold(steps in prop::collection::vec(step(), 1..60)) {
        let (mut world, mut reference) = start();
        for step in steps {
            match &step {
                Step::Store { table, index, value } => world.set(*table, *index, *value),
                Step::Control(control) => {
                    world.control(V0, *control);
                    reference.control(&world, control);
                }
                Step::Fault(page) => {
                    world.fault(V0, *page, 0);
                    reference.fault(&world, Gva::new(*page));
                }
                Step::Prune => world.oracle.prune(),
            }
            reference.fill(&world);
            for page in PAGES {
                let gva = Gva::new(page);
                prop_assert_eq!(shape(world.possible(V0, gva)), reference.possible(gva), "page {:#x} after {:?}", page, &step);
            }
        }
    }

    #[test]
    fn a_flush_of_everything_leaves_the_current_translation_alone(steps in prop::collection::vec(step(), 1..40)) {
        let (mut world, _) = start();
        for step in steps {
            match step {
                Step::Store { table, index, value } => world.set(table, index, value),
                Step::Control(control) => world.control(V0, control),
                Step::Fault(page) => world.fault(V0, page, 0),
                Step::Prune => world.oracle.prune(),
            }
        }
        for page in PAGES {
            let acc = Acc::supervisor(Gva::new(page), AccessKind::Read);
            // Whatever the history, what the tables give now is fresh.
            let current = world.ask(|oracle, view| oracle.current(V0, acc, view.peek));
            if let Ok(now) = current {
                prop_assert_eq!(world.judge(V0, acc, now.frame.number()), Verdict::Fresh);
            }
            world.control(V0, Control::Cr(CrWrite::TogglePge));
            let left: Vec<u64> = world.possible(V0, Gva::new(page)).iter().map(|t| t.frame.number()).collect();
            prop_assert_eq!(&left, &current.iter().map(|now| now.frame.number()).collect::<Vec<_>>());
            let other = (1..=TABLES + 2).find(|frame| !left.contains(frame)).unwrap_or(TABLES);
            prop_assert_eq!(world.judge(V0, acc, other), Verdict::Broken, "host frame {}", other + HOST);
        }
    }
}
