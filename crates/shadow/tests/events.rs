//! Which guest events exit, and how often: each event on each policy, against the counts of the specification's table C (its
//! row numbers are in the names). Where this guest's circumstances choose among the table's values the comment says how.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod lab;

use lab::*;
use memvirt_addr::{Gfn, PageSize};
use memvirt_ops::arch::{Control, Cr3, CrWrite, GfnRange, HostEvent, Invpcid, Pcid, StoreOp, VcpuSet};
use memvirt_ops::{VcpuId, VmId};
use memvirt_platform::{MemoryMap, Vendor};
use memvirt_shadow::*;

const USER: u64 = 0x80_0000_0000;
const LEAF: u64 = P | W | U | A | D;
const UPPER: u64 = P | W | U | A | D;
/// Pages of user memory; their frames start here.
const PAGES: u64 = 64;
const DATA: u64 = 64;

/// A process with [`PAGES`] pages and its own tables, a second root, the direct map, all tables' aliases and the first page
/// touched.
struct Guest<R> {
    lab: Lab<R>,
    pt: u64,
    pd: u64,
    pdpt: u64,
}

fn page(number: u64) -> u64 {
    USER + (number << 12)
}

impl<R: Audited> Guest<R> {
    fn new(regime: impl FnOnce(&MemoryMap) -> R) -> Self {
        let mut lab = Lab::new(SMALL, 1, regime);
        lab.boot_direct_map(1);
        let direct = lab.peek(1, index_of(DIRECT_MAP, 4));
        lab.boot(2, index_of(DIRECT_MAP, 4), direct);
        for number in 0..PAGES {
            lab.boot_map(1, page(number), PageSize::Size4K, (DATA + number) << 12 | LEAF, UPPER);
        }
        let [pt, pd, pdpt] = [1, 2, 3].map(|level| lab.table(1, USER, level));
        lab.cr3(1);
        lab.read(USER).unwrap();
        // The kernel's aliases of the tables and of the data are in use.
        for table in [pt, pd, pdpt, 1, 2] {
            lab.load(DIRECT_MAP + (table << 12)).unwrap();
        }
        Self { lab, pt, pd, pdpt }
    }

    /// A page that nothing has touched, not even by prefetch, with entry `raw`.
    fn fresh(&mut self, number: u64, flags: u64) -> u64 {
        let gva = USER + (1 << 21) * number;
        let mut frames = self.lab.peek(self.pd, index_of(gva, 2));
        if frames & P == 0 {
            frames = self.lab.frame() << 12 | UPPER;
            self.lab.boot(self.pd, index_of(gva, 2), frames);
        }
        self.lab.boot((frames & PHYS) >> 12, 0, (DATA + number) << 12 | flags);
        gva
    }
}

/// One event: its name, and the exits it causes in a guest of its own.
macro_rules! events {
    ($($name:literal = |$g:ident| $body:expr;)*) => {
        fn measure<R: Audited>(regime: &dyn Fn(&MemoryMap) -> R) -> Vec<(&'static str, u64)> {
            vec![$(($name, {
                let mut guest = Guest::new(regime);
                let $g = &mut guest;
                let exits = $body;
                guest.lab.audit();
                exits
            }),)*]
        }
    };
}

events! {
    "1 access, mapping cached" = |g| g.lab.exits(|lab| lab.read(USER).unwrap());
    "2 first access, A and D set" = |g| { let at = g.fresh(1, LEAF); g.lab.exits(|lab| lab.write(at).unwrap()) };
    "3 first access, A clear" = |g| { let at = g.fresh(1, LEAF & !A & !D); g.lab.exits(|lab| lab.read(at).unwrap()) };
    "4 first write after read, D clear" = |g| {
        let at = g.fresh(1, LEAF & !D);
        g.lab.read(at).unwrap();
        g.lab.exits(|lab| lab.write(at).unwrap())
    };
    "5 guest page fault" = |g| g.lab.exits(|lab| _ = lab.read(page(100)).unwrap_err());
    "6 leaf entry, absent to present" = |g| { let pt = g.pt; g.lab.exits(|lab| lab.set(pt, 100, 100 << 12 | LEAF)) };
    "6b and the access" = |g| {
        g.lab.load(DIRECT_MAP + (100 << 12)).unwrap();
        g.lab.set(g.pt, 100, 100 << 12 | LEAF);
        g.lab.exits(|lab| lab.read(page(100)).unwrap())
    };
    "7 leaf entry, present to other" = |g| { let pt = g.pt; g.lab.exits(|lab| lab.set(pt, 0, 100 << 12 | LEAF)) };
    "8 INVLPG" = |g| g.lab.exits(|lab| lab.invlpg(USER));
    "8b store, INVLPG, and the access" = |g| {
        g.lab.load(DIRECT_MAP + (100 << 12)).unwrap();
        g.lab.set(g.pt, 0, 100 << 12 | LEAF);
        g.lab.invlpg(USER);
        g.lab.exits(|lab| lab.read(USER).unwrap())
    };
    "9 PDE, PDPTE and PML4E store" = |g| {
        let tables = [g.pd, g.pdpt, 1];
        g.lab.exits(|lab| tables.into_iter().for_each(|table| lab.set(table, 7, 0xabc << 12)))
    };
    "12 MOV to CR3" = |g| g.lab.exits(|lab| lab.cr3(1));
    "12 and 4 pages touched again" = |g| {
        (0..4).for_each(|number| g.lab.read(page(number)).unwrap());
        g.lab.cr3(1);
        g.lab.exits(|lab| (0..4).for_each(|number| lab.read(page(number)).unwrap()))
    };
    "13 MOV to CR3, kept PCID" = |g| {
        let pcid = Pcid::try_new(1).unwrap();
        g.lab.control(Control::Cr(CrWrite::PcidEnable(true)));
        let cr3 = Control::Cr3(Cr3 { root: Gfn::new(1).base(), pcid, keep: true });
        g.lab.exits(|lab| lab.control(cr3))
    };
    "15 CR4.PGE toggle" = |g| g.lab.exits(|lab| lab.control(Control::Cr(CrWrite::TogglePge)));
    "16 INVPCID" = |g| g.lab.exits(|lab| lab.control(Control::Invpcid(Invpcid::All)));
    "17 CR0.WP write" = |g| g.lab.exits(|lab| lab.control(Control::Cr(CrWrite::WriteProtect(false))));
    "18 A and D cleared, INVLPG, store" = |g| {
        let (pt, entry) = (g.pt, DATA << 12 | LEAF & !A & !D);
        let exits = g.lab.exits(|lab| {
            lab.set(pt, 0, entry);
            lab.invlpg(USER);
            lab.write(USER).unwrap();
        });
        assert_eq!(g.lab.peek(pt, 0) & (A | D), A | D, "set again");
        exits
    };
    "19 demand-zero page" = |g| {
        g.lab.load(DIRECT_MAP + (100 << 12)).unwrap();
        let pt = g.pt;
        g.lab.exits(|lab| {
            lab.write(page(100)).unwrap_err();
            lab.set(pt, 100, 100 << 12 | LEAF);
            lab.write(page(100)).unwrap();
        })
    };
    "20 fork: 16 stores, CR3" = |g| {
        let pt = g.pt;
        g.lab.exits(|lab| {
            (0..16).for_each(|i| _ = lab.store(DIRECT_MAP + (pt << 12) + 8 * i, (DATA + i) << 12 | LEAF & !W));
            lab.cr3(1);
        })
    };
    "21 munmap: 8 stores, 8 INVLPGs" = |g| {
        let pt = g.pt;
        g.lab.exits(|lab| {
            (0..8).for_each(|i| lab.set(pt, i, 0));
            (0..8).for_each(|i| lab.invlpg(page(i)));
        })
    };
    "22 exit: PDE, PDPTE, PML4E cleared" = |g| {
        let tables = [(g.pd, 2), (g.pdpt, 3), (1, 4)];
        g.lab.exits(|lab| tables.into_iter().for_each(|(table, level)| lab.set(table, index_of(USER, level), 0)))
    };
    "24 MMIO access, twice" = |g| {
        let device = g.fresh(1, LEAF) + 0x1000;
        let table = g.lab.table(1, device, 1);
        g.lab.boot(table, 1, 5000 << 12 | LEAF);
        g.lab.exits(|lab| (0..2).for_each(|_| lab.read(device).unwrap()))
    };
    "25 host took 4 frames, each touched" = |g| {
        (0..4).for_each(|number| g.lab.read(page(number)).unwrap());
        g.lab.host(HostEvent::Unmap(VmId::FIRST, GfnRange { start: Gfn::new(DATA), frames: 4 }));
        g.lab.exits(|lab| (0..4).for_each(|number| lab.read(page(number)).unwrap()))
    };
    "26 dirty logging: 4 pages stored to, each twice" = |g| {
        (0..4).for_each(|number| g.lab.write(page(number)).unwrap());
        g.lab.host(HostEvent::DirtyLog(VmId::FIRST, true));
        g.lab.exits(|lab| (0..8).for_each(|number| lab.write(page(number % 4)).unwrap()))
    };
    "26 and again in the next round" = |g| {
        g.lab.host(HostEvent::DirtyLog(VmId::FIRST, true));
        (0..4).for_each(|number| g.lab.write(page(number)).unwrap());
        g.lab.host(HostEvent::DirtyRound(VmId::FIRST));
        g.lab.exits(|lab| (0..8).for_each(|number| lab.write(page(number % 4)).unwrap()))
    };
}

fn compare<R: Audited>(regime: &dyn Fn(&MemoryMap) -> R, expected: &[(&str, u64)]) {
    let measured = measure(regime);
    let list = |rows: &[(&str, u64)]| rows.iter().map(|(name, exits)| format!("{exits:3}  {name}")).collect::<Vec<_>>();
    assert_eq!(list(&measured), list(expected));
}

const ZAP: &[(&str, u64)] = &[
    ("1 access, mapping cached", 0),
    ("2 first access, A and D set", 1),
    ("3 first access, A clear", 1),
    ("4 first write after read, D clear", 1),
    ("5 guest page fault", 1),
    ("6 leaf entry, absent to present", 1),
    ("6b and the access", 1),
    ("7 leaf entry, present to other", 1),
    ("8 INVLPG", 1),
    // The store removed the entry.
    ("8b store, INVLPG, and the access", 1),
    ("9 PDE, PDPTE and PML4E store", 3),
    ("12 MOV to CR3", 1),
    ("12 and 4 pages touched again", 0),
    ("13 MOV to CR3, kept PCID", 1),
    ("15 CR4.PGE toggle", 2),
    ("16 INVPCID", 1),
    ("17 CR0.WP write", 1),
    // 1 store + flush + 1.
    ("18 A and D cleared, INVLPG, store", 3),
    ("19 demand-zero page", 3),
    ("20 fork: 16 stores, CR3", 17),
    ("21 munmap: 8 stores, 8 INVLPGs", 16),
    ("22 exit: PDE, PDPTE, PML4E cleared", 3),
    ("24 MMIO access, twice", 2),
    ("25 host took 4 frames, each touched", 4),
    ("26 dirty logging: 4 pages stored to, each twice", 4),
    ("26 and again in the next round", 4),
];

/// `base` with other counts for some rows.
fn except(base: &[(&'static str, u64)], changes: &[(&'static str, u64)]) -> Vec<(&'static str, u64)> {
    assert!(changes.iter().all(|(name, _)| base.iter().any(|(known, _)| known == name)), "a row of that name");
    let exits = |name, exits| changes.iter().find(|(changed, _)| *changed == name).map_or(exits, |(_, exits)| *exits);
    base.iter().map(|(name, old)| (*name, exits(*name, *old))).collect()
}

#[test]
fn write_protect_that_zaps() {
    compare(&|map| WriteProtect::new(map, OnStore::Zap, Vendor::Vmx), ZAP);
}

#[test]
fn write_protect_that_propagates() {
    let eager = [("6b and the access", 0), ("8b store, INVLPG, and the access", 0), ("19 demand-zero page", 2)];
    compare(&|map| WriteProtect::new(map, OnStore::Propagate, Vendor::Vmx), &except(ZAP, &eager));
}

/// Stores to tables do not exit where nothing is write-protected.
const UNPROTECTED: &[(&str, u64)] = &[
    ("6 leaf entry, absent to present", 0),
    ("7 leaf entry, present to other", 0),
    ("9 PDE, PDPTE and PML4E store", 0),
    ("18 A and D cleared, INVLPG, store", 2),
    ("19 demand-zero page", 2),
    // The CR3 load.
    ("20 fork: 16 stores, CR3", 1),
    // The INVLPGs.
    ("21 munmap: 8 stores, 8 INVLPGs", 8),
    ("22 exit: PDE, PDPTE, PML4E cleared", 0),
];

#[test]
fn the_naive_policy() {
    compare(&|map| InvlpgOnly::new(map, Vendor::Vmx), &except(ZAP, UNPROTECTED));
}

#[test]
fn lazy_fill() {
    compare(&|map| LazyFill::new(map, Vendor::Vmx), &except(ZAP, UNPROTECTED));
}

#[test]
fn vtlb() {
    // The second visit to an address space refills.
    let refill = [("12 and 4 pages touched again", 4)];
    compare(&|map| Vtlb::new(map, Vendor::Vmx), &except(&except(ZAP, UNPROTECTED), &refill));
}

#[test]
fn on_svm_the_toggle_of_cr4_pge_is_three_exits() {
    fn toggle<R: Audited>(regime: impl Fn(&MemoryMap) -> R) -> u64 {
        let mut guest = Guest::new(&regime);
        guest.lab.exits(|lab| lab.control(Control::Cr(CrWrite::TogglePge)))
    }
    assert_eq!(toggle(|map| WriteProtect::new(map, OnStore::Zap, Vendor::Svm)), 3);
    assert_eq!(toggle(|map| Vtlb::new(map, Vendor::Svm)), 3);
    assert_eq!(toggle(|map| Xen::new(map, 1, Vendor::Svm)), 3);
}

/// Rows 10 and 11: a freed table becomes data. A page cleared by `rep stos` is two exits, whatever its level: one to see
/// the instruction and unshadow the table, one to make the page writable.
#[test]
fn a_freed_table_is_unshadowed_by_what_no_kernel_writes_tables_with() {
    for level in [1, 2, 3] {
        let mut g = Guest::new(|map| WriteProtect::new(map, OnStore::Zap, Vendor::Vmx));
        let table = g.lab.table(1, USER, level);
        g.lab.set(g.pdpt, index_of(USER, 3), 0);
        let clear = StoreOp::RepStos { value: 0, count: 512 };
        let kinds = g.lab.kinds(|lab| lab.store_op(DIRECT_MAP + (table << 12), clear).unwrap());
        assert_eq!(kinds, [1, 0, 1, 0], "level {level}");
        assert_eq!(g.lab.exits(|lab| lab.set(table, 5, 77)), 0, "data now");
        g.lab.sound();
    }
}

/// With plain stores the policy cannot tell data from entries; after more than a table full of them it gives up.
#[test]
fn a_freed_table_that_is_stored_to_without_end_is_given_up() {
    let mut g = Guest::new(|map| WriteProtect::new(map, OnStore::Zap, Vendor::Vmx));
    g.lab.set(g.pd, index_of(USER, 2), 0);
    let pt = g.pt;
    let exits = g.lab.exits(|lab| (0..2000).for_each(|i| lab.set(pt, i % 512, 0x1234_5678)));
    // 513 stores trap, then one hidden fault makes the page writable.
    assert_eq!(exits, u64::from(write_protect::UNSHADOW_AFTER) + 2);
    g.lab.sound();
}

/// Row 23: the target of a shootdown exits for its own INVLPG, the sender for the interrupt.
#[test]
fn a_remote_shootdown_is_an_interrupt_and_an_invlpg_on_the_target() {
    let mut lab = Lab::new(SMALL, 2, |map| WriteProtect::new(map, OnStore::Zap, Vendor::Vmx));
    lab.boot_direct_map(1);
    lab.cr3(1);
    let target = VcpuId(1);
    lab.control_on(target, Control::Cr3(Cr3::flushing(Gfn::new(1).base())));
    assert_eq!(lab.exits(|lab| lab.control(Control::Ipi(VcpuSet::EMPTY.with(target)))), 1);
    assert_eq!(lab.exits(|lab| lab.control_on(target, Control::Invlpg(memvirt_addr::Gva::new(USER)))), 1);
}
