//! What agile paging does that neither shadow nor nested paging does: parts of one address space in either mode, by what the
//! guest does to its tables. Each count follows from a mechanism that is named beside it.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use memvirt_addr::PageSize;
use memvirt_alternatives::{Agile, Policy, Switching};
use memvirt_nested::{AdBits, Nested};
use memvirt_pagetable::Ept4;
use memvirt_platform::{ExitReason, Host, MemoryMap, Tags, Vendor};
use memvirt_shadow::{OnStore, WriteProtect};
use proptest::prelude::*;
use support::lab::steps::{Step, run, step, world_with_host};
use support::lab::{A, Audited, D, DIRECT_MAP, Lab, P, SMALL, U, W};

const USER: u64 = 0x80_0000_0000;
const ENTRY: u64 = P | W | U | A | D;
const DATA: u64 = 64;
const INTERVAL: u64 = 32;

/// Page `page` of leaf table `table`.
const fn at(table: u64, page: u64) -> u64 {
    USER + (table << 21) + (page << 12)
}

/// A guest with three leaf tables, four pages in each, all touched for reading and writing.
fn guest<R: Audited>(regime: impl FnOnce(&mut Host, &mut MemoryMap) -> R) -> Lab<R> {
    let mut lab = Lab::with_host(SMALL, 1, Tags::On, regime);
    lab.boot_direct_map(1);
    for (table, page) in (0..3).flat_map(|table| (0..4).map(move |page| (table, page))) {
        lab.boot_map(1, at(table, page), PageSize::Size4K, (DATA + 4 * table + page) << 12 | ENTRY, ENTRY);
    }
    lab.cr3(1);
    for (table, page) in (0..3).flat_map(|table| (0..4).map(move |page| (table, page))) {
        lab.write(at(table, page)).unwrap();
    }
    // The kernel has looked at all its tables.
    for (table, level) in [(0, 1), (1, 1), (2, 1), (0, 2)] {
        let frame = lab.table(1, at(table, 0), level);
        lab.load(DIRECT_MAP + (frame << 12)).unwrap();
    }
    lab
}

fn agile() -> Lab<Agile> {
    let switching = Switching::Activity(Policy { threshold: 2, interval: INTERVAL });
    guest(|host, map| Agile::new(host, map, switching).unwrap())
}

/// References of one walk for a page that the TLB does not hold; nothing exits.
fn walk<R: Audited>(lab: &mut Lab<R>, gva: u64) -> u64 {
    lab.invlpg(gva);
    let exits = lab.out.counters.total_exits();
    let (walks, refs) = (lab.out.counters.walks, lab.out.counters.refs.total());
    lab.read(gva).unwrap();
    assert_eq!((lab.out.counters.walks - walks, lab.out.counters.total_exits() - exits), (1, 0));
    lab.out.counters.refs.total() - refs
}

/// Stores an entry of the leaf table of region `table` that changes nothing of what is touched.
fn churn<R: Audited>(lab: &mut Lab<R>, table: u64, times: u64) -> u64 {
    let frame = lab.table(1, at(table, 0), 1);
    lab.exits(|lab| (0..times).for_each(|i| lab.set(frame, 500, (DATA + i % 4) << 12 | P | U)))
}

/// Lets misses pass on pages of leaf table `table`.
fn misses<R: Audited>(lab: &mut Lab<R>, table: u64, count: u64) {
    for i in 0..count {
        lab.invlpg(at(table, i % 4));
        lab.read(at(table, i % 4)).unwrap();
    }
}

#[test]
fn stores_to_a_table_stop_exiting_once_it_is_nested() {
    // Shadow paging traps every store.
    assert_eq!(churn(&mut guest(|_, map| WriteProtect::new(map, OnStore::Zap, Vendor::Vmx)), 0, 100), 100);
    // Agile paging the first two; with the second the table goes nested, and that store goes through.
    let mut lab = agile();
    assert_eq!(lab.kinds(|lab| _ = churn(lab, 0, 1)), [0, 0, 1, 0]);
    assert_eq!(lab.kinds(|lab| _ = churn(lab, 0, 1)), [0, 0, 1, 0]);
    assert_eq!(churn(&mut lab, 0, 98), 0);
    assert_eq!(lab.policy().stats().to_nested, 1);
    lab.audit();
    lab.sound();
}

#[test]
fn a_process_that_changes_a_table_ends_nested_there_and_only_there() {
    let mut lab = agile();
    assert_eq!([0, 1, 2].map(|table| walk(&mut lab, at(table, 0))), [4, 4, 4], "all shadow");
    churn(&mut lab, 1, 3);
    // The nested tables are filled on first touch.
    (0..4).for_each(|page| lab.write(at(1, page)).unwrap());
    assert_eq!([0, 1, 2].map(|table| walk(&mut lab, at(table, 0))), [4, 8, 4], "4 + 4 for one level");
    // It goes on changing it: it stays so, whatever number of intervals ends.
    for _ in 0..5 {
        misses(&mut lab, 1, INTERVAL);
        churn(&mut lab, 1, 1);
    }
    assert!(lab.policy().stats().intervals >= 5);
    assert_eq!([0, 1, 2].map(|table| walk(&mut lab, at(table, 0))), [4, 8, 4]);
    assert_eq!((lab.policy().stats().to_nested, lab.policy().stats().to_shadow), (1, 0));
    // Nested paging proper makes 24 of each, wherever.
    let host = |host: &mut Host, _: &mut MemoryMap| Nested::<Ept4>::new(host, AdBits::On, Vendor::Vmx).unwrap();
    let mut nested = guest(|h, map| Plain(host(h, map)));
    assert_eq!([0, 1, 2].map(|table| walk(&mut nested, at(table, 0))), [24, 24, 24]);
    lab.audit();
    lab.sound();
}

#[test]
fn a_process_that_has_become_quiet_ends_all_shadow() {
    let mut lab = agile();
    churn(&mut lab, 0, 50);
    churn(&mut lab, 2, 50);
    for table in [0, 2] {
        (0..4).for_each(|page| lab.write(at(table, page)).unwrap());
        assert_eq!(walk(&mut lab, at(table, 0)), 8);
    }
    assert_eq!(lab.policy().nested_tables().count(), 2);
    // The interval in which the last store fell, and a whole one after it.
    misses(&mut lab, 1, 3 * INTERVAL);
    assert_eq!(lab.policy().nested_tables().count(), 0);
    assert_eq!((lab.policy().stats().to_nested, lab.policy().stats().to_shadow), (2, 2));
    // The shadow is built again by hidden faults, one for each page.
    let rebuilt = lab.kinds(|lab| (0..4).for_each(|page| lab.write(at(0, page)).unwrap()));
    assert_eq!(rebuilt, [4, 0, 0, 0]);
    assert_eq!(walk(&mut lab, at(0, 0)), 4);
    assert_eq!(churn(&mut lab, 0, 1), 1, "and its table is protected again");
    lab.audit();
    lab.sound();
}

#[test]
fn a_table_takes_all_below_it_along_and_gives_it_back_from_the_top() {
    let mut lab = agile();
    let frame = lab.table(1, at(0, 0), 2);
    // An entry that nothing uses, twice.
    (0..2).for_each(|_| lab.set(frame, 300, 0x1000));
    (0..2).for_each(|_| lab.set(frame, 300, 0));
    assert_eq!(lab.policy().stats().to_nested, 1);
    (0..3).for_each(|table| lab.write(at(table, 0)).unwrap());
    assert_eq!([0, 1, 2].map(|table| walk(&mut lab, at(table, 0))), [12, 12, 12], "4 + 8 for two levels");
    // Leaf tables below are not protected either: the kernel's alias is made writable at the first store, and that was it.
    assert_eq!(lab.kinds(|lab| _ = churn(lab, 0, 100)), [1, 0, 0, 0]);
    // Quiet again, from the top: then the leaf tables are shadowed too, for nobody has stored to them since.
    misses(&mut lab, 0, 3 * INTERVAL);
    (0..3).for_each(|table| lab.write(at(table, 0)).unwrap());
    assert_eq!([0, 1, 2].map(|table| walk(&mut lab, at(table, 0))), [4, 4, 4]);
    lab.audit();
    lab.sound();
}

#[test]
fn fixed_levels_trap_stores_above_the_switch_and_no_others() {
    for lowest in 0..=4u8 {
        let mut lab = guest(|host, map| Agile::new(host, map, Switching::Levels(lowest)).unwrap());
        for level in 1..=4u8 {
            let frame = lab.table(1, at(0, 0), level);
            // The store that finds the alias without a translation for writing is not counted.
            lab.set(frame, 400, 0x1000);
            let exits = lab.exits(|lab| (0..10).for_each(|i| lab.set(frame, 400, i << 12)));
            assert_eq!(exits, if level > lowest { 10 } else { 0 }, "{lowest} levels nested, a table of level {level}");
        }
        assert_eq!(walk(&mut lab, at(0, 0)), 4 + 4 * u64::from(lowest));
        lab.audit();
        lab.sound();
    }
}

/// Nested paging, which has no audit of this kind here.
#[derive(Debug)]
struct Plain(Nested<Ept4>);

impl memvirt_platform::Regime for Plain {
    fn miss(
        &mut self,
        cx: &mut memvirt_platform::Cx<'_>,
        request: &memvirt_platform::Request<'_>,
    ) -> memvirt_platform::Outcome {
        self.0.miss(cx, request)
    }

    fn control(
        &mut self,
        cx: &mut memvirt_platform::Cx<'_>,
        control: &memvirt_ops::arch::Control,
    ) -> Result<(), memvirt_platform::Refusal> {
        self.0.control(cx, control)
    }

    fn host(&mut self, cx: &mut memvirt_platform::Cx<'_>, event: &memvirt_ops::arch::HostEvent) {
        self.0.host(cx, event);
    }

    fn table_bytes(&self) -> memvirt_platform::TableBytes {
        self.0.table_bytes()
    }
}

impl Audited for Plain {
    fn audit(&self, host: &Host, map: &MemoryMap) -> Vec<String> {
        self.0.audit(host, map)
    }
}

/// What both count in the same way.
fn exits<R: Audited>(lab: &Lab<R>) -> [u64; 4] {
    [ExitReason::HiddenFault, ExitReason::ReflectedFault, ExitReason::TableWrite, ExitReason::Cr3Load]
        .map(|reason| lab.out.counters.exits_for(reason))
}

fn all_shadow(steps: &[Step]) -> (Lab<Agile>, Lab<WriteProtect>) {
    let memory = support::lab::Memory { caches: None, ..SMALL };
    let all_shadow = Switching::Levels(0);
    let mut agile = world_with_host(memory, 1, Tags::On, |host, map| Agile::new(host, map, all_shadow).unwrap());
    let mut shadow = world_with_host(memory, 1, Tags::On, |_, map| WriteProtect::new(map, OnStore::Zap, Vendor::Vmx));
    for step in steps {
        run(&mut agile, step);
        run(&mut shadow, step);
    }
    (agile, shadow)
}

/// Found at random: agile paging flushed for every frame taken away, on account of tables that hardware might have entered.
#[test]
fn a_frame_taken_away_costs_no_flush_where_nothing_is_nested() {
    let (agile, shadow) = all_shadow(&[
        Step::Store { table: 8, index: 0, raw: 0 },
        Step::Unmap { gfn: 9, frames: 1 },
        Step::Store { table: 8, index: 0, raw: 0 },
    ]);
    assert_eq!(agile.out.counters.tlb_flushes, shadow.out.counters.tlb_flushes);
    assert_eq!(exits(&agile), exits(&shadow));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..memvirt_properties::cases(100) })]

    /// With no level nested agile paging is write-protecting shadow paging, exit by exit; only INVLPG and its like do not exit.
    #[test]
    fn with_nothing_nested_it_exits_as_write_protecting_shadow_paging(
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let memory = support::lab::Memory { caches: None, ..SMALL };
        let mut agile = world_with_host(memory, 1, Tags::On, |host, map| {
            Agile::new(host, map, Switching::Levels(0)).unwrap()
        });
        let mut shadow =
            world_with_host(memory, 1, Tags::On, |_, map| WriteProtect::new(map, OnStore::Zap, Vendor::Vmx));
        // Dirty logging is told apart: here a log that is on already is not started again.
        let logging = |step: &&Step| matches!(step, Step::DirtyLog(_) | Step::DirtyRound);
        for step in steps.iter().filter(|step| !logging(step)) {
            run(&mut agile, step);
            run(&mut shadow, step);
            prop_assert_eq!(exits(&agile), exits(&shadow), "after {:?}", step);
        }
    }
}
