//! The mode `cycles` on a bare machine small enough to count by hand.

use std::num::NonZeroU32;

use memvirt_addr::{Acc, AccessKind, Gpa, Gva, Level};
use memvirt_cache::{CacheHierarchy, Purpose};
use memvirt_ops::arch::{Control, Cr3, Event, StoreOp, Width};
use memvirt_ops::{VcpuId, VmId};
use memvirt_platform::{
    Account, Cells, Engine, Horizon, Host, Ledger, MemoryMap, MmuGeometry, Native, Platform, ServedBy, Stop, Tags,
    TimingSpec, VmSpec,
};
use memvirt_tlb::{Geometry, Shape, WalkGeometry};

const VCPU: VcpuId = VcpuId::FIRST;
const PAGES: u64 = 200;

fn spec(walkers: u32) -> TimingSpec {
    let walkers = NonZeroU32::new(walkers).expect("not 0");
    TimingSpec { caches: CacheHierarchy::example(), walk_cache_cycles: 1, walkers }
}

/// One table of each level in frames 1 to 4; page `i` is frame `64 + i`.
fn machine(timing: Option<TimingSpec>, caches: Option<&MmuGeometry>) -> (Engine<Native>, Ledger) {
    let vm = VmSpec { map: MemoryMap::identity(512), vcpus: 1 };
    let mut machine = Engine::new(Host::new(512), 1, &Geometry::default(), Tags::On, vec![(vm, Native)]);
    if let Some(geometry) = caches {
        machine = machine.with_walk_caches(geometry);
    }
    if let Some(spec) = timing {
        machine = machine.with_timing(spec);
    }
    for (at, entry) in [(0x1000, 0x2027), (0x2000, 0x3027), (0x3000, 0x4027)] {
        machine.poke(VmId::FIRST, Gpa::new(at), entry);
    }
    for page in 0..PAGES {
        machine.poke(VmId::FIRST, Gpa::new(0x4000 + 8 * page), (64 + page) << 12 | 0x67);
    }
    let mut ledger = Ledger::sums();
    machine.event(VCPU, &Control::Cr3(Cr3::flushing(Gpa::new(0x1000))).into(), &mut ledger).expect("loads CR3");
    (machine, Ledger::sums())
}

fn load(page: u64, offset: u64) -> Acc {
    Acc::user(Gva::new(page << 12 | offset), AccessKind::Read)
}

fn run(machine: &mut Engine<Native>, ledger: &mut Ledger, run: &[Acc]) -> Account {
    assert_eq!(machine.accesses(VCPU, run, Horizon::Open, ledger), (run.len(), Stop::Done));
    ledger.served.as_deref().cloned().unwrap_or_default()
}

fn references(cells: &Cells) -> u64 {
    cells.iter().filter(|(_, served, _)| served.is_reference()).map(|(_, _, count)| count).sum()
}

fn guest(account: &Account, served: ServedBy) -> [u64; 4] {
    [Level::L4, Level::L3, Level::L2, Level::L1].map(|level| account.walks.of(Purpose::guest(level), served))
}

#[test]
fn each_reference_is_served_by_the_level_that_holds_its_line() {
    let (mut machine, mut ledger) = machine(Some(spec(1)), None);
    let account = run(&mut machine, &mut ledger, &[load(0, 0)]);
    assert_eq!(guest(&account, ServedBy::Dram), [1; 4], "a cold walk");
    assert_eq!(account.data.of(Purpose::Data, ServedBy::Dram), 1);

    // The same line, the next line, and a page whose leaf stands in the line that was read: entries are 8 bytes.
    let account = run(&mut machine, &mut ledger, &[load(0, 8), load(0, 64), load(7, 0)]);
    assert_eq!(guest(&account, ServedBy::Dram), [1; 4]);
    assert_eq!(guest(&account, ServedBy::L1), [1; 4]);
    assert_eq!(account.data.of(Purpose::Data, ServedBy::Dram), 3);
    assert_eq!(account.data.of(Purpose::Data, ServedBy::L1), 1);

    // The leaf of page 8 stands in the next line.
    let account = run(&mut machine, &mut ledger, &[load(8, 0)]);
    assert_eq!(guest(&account, ServedBy::Dram), [1, 1, 1, 2]);
    assert_eq!(guest(&account, ServedBy::L1), [2, 2, 2, 1]);
    assert_eq!(references(&account.walks), ledger.counters.refs.total());
}

#[test]
fn a_walk_cache_takes_the_place_of_the_references_that_it_saves() {
    let geometry = MmuGeometry {
        guest: WalkGeometry::NONE.with(Level::L2, Shape::new(4, 4).expect("four entries")),
        ..MmuGeometry::default()
    };
    let (mut machine, mut ledger) = machine(Some(spec(1)), Some(&geometry));
    let account = run(&mut machine, &mut ledger, &[load(0, 0), load(1, 0)]);
    assert_eq!(guest(&account, ServedBy::Dram), [1; 4]);
    assert_eq!(guest(&account, ServedBy::WalkCache), [0, 0, 1, 0]);
    assert_eq!(guest(&account, ServedBy::L1), [0, 0, 0, 1]);
}

#[test]
fn counters_do_not_depend_on_the_mode() {
    let stream: Vec<_> = (0..5000u64).map(|i| load(i * 7919 % PAGES, i * 64 % 4096)).collect();
    let (mut counting, mut counted) = machine(None, None);
    let (mut timing, mut timed) = machine(Some(spec(1)), None);
    run(&mut counting, &mut counted, &stream);
    let account = run(&mut timing, &mut timed, &stream);
    assert!(counted.served.is_none() && counted.counters.l2_hits > 0);
    let caches = timed.counters.caches;
    assert_eq!(caches.guest.hits, [0; 4], "no walk caches were asked for");
    let plain = memvirt_platform::Counters { caches: counted.counters.caches, ..timed.counters };
    assert_eq!(plain, counted.counters);
    assert_eq!(references(&account.data), stream.len() as u64);
    assert_eq!(references(&account.walks), timed.counters.refs.total());
}

#[test]
fn of_overlapping_walks_the_longest_counts() {
    // Every page once: each access misses.
    let stream: Vec<_> = (0..PAGES).map(|page| load(page, 0)).collect();
    let cycles = |cells: &Cells, spec: &TimingSpec| -> u64 {
        cells.iter().map(|(_, served, count)| count * u64::from(spec.latency_cycles(served))).sum()
    };
    let with = |walkers| {
        let (mut machine, mut ledger) = machine(Some(spec(walkers)), None);
        let account = run(&mut machine, &mut ledger, &stream);
        assert_eq!(references(&account.walks) + references(&account.overlapped), 4 * PAGES);
        (cycles(&account.walks, &spec(walkers)), references(&account.walks))
    };
    // The first walk: four lines from DRAM. Of each eight pages that share a line of leaves the first finds it in DRAM, the
    // others everything in L1: 25 lines, 200 pages.
    let (dram, hit) = (3 * 4 + 200, 4 * 4);
    assert_eq!(with(1).0, 800 + 24 * dram + 175 * hit);
    // Groups of two: the first of a line with the second, the others in pairs.
    assert_eq!(with(2), (800 + 24 * dram + 75 * hit, 4 * PAGES / 2));
    // Groups of four: every other group has a line's first walk.
    assert_eq!(with(4), (800 + 24 * dram + 25 * hit, 4 * PAGES / 4));
}

#[test]
fn a_group_ends_at_its_window_and_at_the_end_of_a_run() {
    let far = |between: u64| {
        let (mut machine, mut ledger) = machine(Some(spec(4)), None);
        let mut stream = vec![load(0, 0)];
        stream.extend((1..between).map(|i| load(0, i % 512 * 8)));
        stream.push(load(1, 0));
        references(&run(&mut machine, &mut ledger, &stream).overlapped)
    };
    let window = memvirt_platform::WINDOW as u64;
    assert_eq!(far(window), 4, "the second walk hides behind the first");
    assert_eq!(far(window + 1), 0);

    let (mut machine, mut ledger) = machine(Some(spec(4)), None);
    run(&mut machine, &mut ledger, &[load(0, 0)]);
    assert_eq!(references(&run(&mut machine, &mut ledger, &[load(1, 0)]).overlapped), 0);
}

#[test]
fn stores_of_the_kernel_go_through_the_caches_too() {
    let (mut machine, mut ledger) = machine(Some(spec(1)), None);
    let op = StoreOp::RepStos { value: 0, count: 16 };
    machine.event(VCPU, &Event::Store { via: Gva::new(0x9000), op, ip: Gva::ZERO }, &mut ledger).expect("stores");
    let account = ledger.served.as_deref().cloned().unwrap_or_default();
    assert_eq!(account.data.of(Purpose::Data, ServedBy::Dram), 2, "16 words are two lines");
    assert_eq!(account.data.of(Purpose::Data, ServedBy::L1), 14);
    let op = StoreOp::Mov { width: Width::B8, value: 1 };
    machine.event(VCPU, &Event::Store { via: Gva::new(0x9040), op, ip: Gva::ZERO }, &mut ledger).expect("stores");
    let account = ledger.served.as_deref().cloned().unwrap_or_default();
    assert_eq!(account.data.of(Purpose::Data, ServedBy::L1), 15);
    assert_eq!(ledger.counters.accesses, 17);
}
