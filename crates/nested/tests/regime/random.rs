//! Random operations of a guest of two vCPUs and its host, with the oracle beside it. Whatever happens: no translation that no
//! hardware could hold, violations heal, leaves map what the host has, and every page that changed is in the dirty log.

use std::collections::BTreeMap;

use memvirt_addr::{Acc, AccessKind, Gfn, Gva, PageSize, Privilege};
use memvirt_nested::{AdBits, DirtyLogging, SecondStage};
use memvirt_ops::VcpuId;
use memvirt_ops::arch::{Control, CrWrite, GfnRange, HostEvent, Trap};
use memvirt_pagetable::{Ept4, Npt4};
use memvirt_platform::{MmuGeometry, Platform, Tags, Vendor};
use memvirt_testkit::caches::any_caches;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::lab::{A, D, DIRECT_MAP, Lab, P, PS, ROOT, Setup, U, VM, W, cr3, direct, index_of};

/// Frames 1 to 10 are tables: two roots, then two for each level; 11 to 18 data, mapped by them; 20 to 31 more data.
const TABLES: u64 = 10;
const MORE: core::ops::Range<u64> = 20..32;
/// All frames that a step can name.
const WORLD: u64 = 32;

/// A device, mapped under both roots.
const DEVICE: u64 = 5 << 39;

#[derive(Clone, Debug)]
enum Step {
    Store { table: u64, index: usize, raw: u64 },
    Data { gfn: u64, value: u64 },
    Access { path: [usize; 4], kind: AccessKind, privilege: Privilege },
    Through { path: [usize; 4], value: u64 },
    Device(AccessKind),
    Cr3(u64),
    Invlpg([usize; 4]),
    Cr(CrWrite),
    Trap,
    Host(HostEvent),
}

const fn usual(table: u64) -> core::ops::Range<u64> {
    match table {
        1..=2 => 3..5,
        3..=4 => 5..7,
        5..=6 => 7..11,
        _ => 11..19,
    }
}

fn raw(table: u64) -> impl Strategy<Value = u64> {
    let target = prop_oneof![
        20 => usual(table),
        1 => 1..=TABLES,
        2 => Just(512u64),
    ];
    let flags = prop_oneof![
        12 => Just(P | W | U | A | D),
        6 => Just(P | W | U),
        3 => Just(P | U | A),
        2 => Just(P | W | U | A | PS),
        3 => Just(0),
    ];
    (target, flags).prop_map(|(gfn, flags)| gfn << 12 | flags)
}

fn path() -> impl Strategy<Value = [usize; 4]> {
    prop::array::uniform4(0..2usize)
}

fn host() -> impl Strategy<Value = Step> {
    let range = |start, frames| GfnRange { start: Gfn::new(start), frames };
    prop_oneof![
        3 => (0..40u64, 1..20u64).prop_map(move |(start, frames)| HostEvent::Unmap(VM, range(start, frames))),
        2 => (MORE, 1..4u64).prop_map(move |(start, frames)| HostEvent::Discard(VM, range(start, frames))),
        4 => any::<bool>().prop_map(|on| HostEvent::DirtyLog(VM, on)),
        4 => Just(HostEvent::DirtyRound(VM)),
        1 => Just(HostEvent::SlotChange(VM)),
        1 => Just(HostEvent::WorldSwitch(VM)),
    ]
    .prop_map(Step::Host)
}

fn step() -> impl Strategy<Value = (u16, Step)> {
    let kind = prop_oneof![4 => Just(AccessKind::Read), 4 => Just(AccessKind::Write), 1 => Just(AccessKind::Fetch)];
    let privilege = prop_oneof![Just(Privilege::User), Just(Privilege::Supervisor)];
    let step = prop_oneof![
        16 => (1..=TABLES).prop_flat_map(|table| (Just(table), 0..2usize, raw(table)))
            .prop_map(|(table, index, raw)| Step::Store { table, index, raw }),
        12 => (MORE, 1..1000u64).prop_map(|(gfn, value)| Step::Data { gfn, value }),
        30 => (path(), kind, privilege).prop_map(|(path, kind, privilege)| Step::Access { path, kind, privilege }),
        6 => (path(), 1..1000u64).prop_map(|(path, value)| Step::Through { path, value: value << 12 }),
        2 => prop_oneof![Just(AccessKind::Read), Just(AccessKind::Write)].prop_map(Step::Device),
        4 => (1..3u64).prop_map(Step::Cr3),
        3 => path().prop_map(Step::Invlpg),
        1 => Just(Step::Cr(CrWrite::TogglePge)),
        1 => any::<bool>().prop_map(|on| Step::Cr(CrWrite::WriteProtect(on))),
        1 => Just(Step::Trap),
        14 => host(),
    ];
    (0..2u16, step)
}

fn gva(path: [usize; 4]) -> u64 {
    path.iter().fold(0, |gva, index| gva << 9 | *index as u64) << 12
}

/// Frames as they were when the dirty log was last fetched.
type Snapshot = BTreeMap<u64, [u64; 512]>;

fn world<H: SecondStage>(setup: Setup) -> Lab<H> {
    let mut lab = Lab::new(setup);
    for table in 1..=TABLES {
        for index in 0..2 {
            let target = usual(table).start + (table + index) % (usual(table).end - usual(table).start);
            lab.poke(table, usize::from(index == 1), target << 12 | P | W | U | A | D);
        }
    }
    let shared = lab.peek(ROOT, index_of(DIRECT_MAP, 4));
    lab.poke(2, index_of(DIRECT_MAP, 4), shared);
    for (table, index, entry) in [(1, 5, 90), (2, 5, 90), (90, 0, 91), (91, 0, 92), (92, 0, 1u64 << 20)] {
        lab.poke(table, index, entry << 12 | P | W | U | A | D);
    }
    lab
}

/// Every address whose translation a vCPU may hold.
fn addresses() -> impl Iterator<Item = u64> {
    let user = (0..16usize).map(|i| gva([i & 1, i >> 1 & 1, i >> 2 & 1, i >> 3 & 1]));
    user.chain((0..WORLD).map(|gfn| direct(gfn, 0)))
}

/// What no cached translation may survive.
fn nothing_survives<H: SecondStage>(lab: &Lab<H>, event: &HostEvent, was_logging: bool) {
    let live: Vec<_> = (0..lab.setup.frames).filter_map(|gfn| lab.checked.backing(VM, Gfn::new(gfn))).collect();
    for (v, at) in (0..2).flat_map(|v| addresses().map(move |at| (VcpuId(v), at))) {
        let Some(reached) = lab.reached(v, at) else { continue };
        match event {
            HostEvent::Unmap(..) | HostEvent::Discard(..) => {
                assert!(live.contains(&reached.frame), "{at:x} still reaches a page that was taken away");
            }
            HostEvent::DirtyLog(_, true) if !was_logging => {
                assert!(!reached.writable, "{at:x} can be stored to unnoticed");
            }
            HostEvent::DirtyRound(_) if was_logging && !lab.nested().dirty_frames().is_empty() => {
                assert!(!reached.writable, "{at:x} can be stored to unnoticed");
            }
            HostEvent::SlotChange(_) => panic!("{at:x} is still cached"),
            _ => {}
        }
    }
}

fn host_event<H: SecondStage>(lab: &mut Lab<H>, event: HostEvent, snapshot: &mut Snapshot) {
    let was_logging = lab.nested().dirty_logging().is_some();
    let take = |lab: &Lab<H>| (0..WORLD).map(|gfn| (gfn, lab.contents(gfn))).collect();
    let changed: Vec<u64> =
        snapshot.iter().filter(|(gfn, old)| lab.contents(**gfn) != **old).map(|(gfn, _)| *gfn).collect();
    lab.host(event);
    nothing_survives(lab, &event, was_logging);
    match event {
        HostEvent::DirtyLog(_, true) if !was_logging => *snapshot = take(lab),
        HostEvent::DirtyLog(_, false) => snapshot.clear(),
        HostEvent::DirtyRound(_) if was_logging => {
            let logged = lab.nested().dirty_frames();
            let missing: Vec<_> = changed.iter().filter(|gfn| !logged.contains(&Gfn::new(**gfn))).collect();
            assert!(missing.is_empty(), "frames {missing:?} changed and are not in the log");
            *snapshot = take(lab);
        }
        // The host changed these itself.
        HostEvent::Discard(_, range) => snapshot.retain(|gfn, _| !range.contains(Gfn::new(*gfn))),
        _ => {}
    }
}

fn run<H: SecondStage>(lab: &mut Lab<H>, v: VcpuId, step: &Step, snapshot: &mut Snapshot) {
    match *step {
        Step::Store { table, index, raw } => lab.store(v, direct(table, index), raw).unwrap(),
        Step::Data { gfn, value } => lab.store(v, direct(gfn, 3), value).unwrap(),
        Step::Access { path, kind, privilege } => _ = lab.access(v, Acc::new(Gva::new(gva(path)), kind, privilege)),
        Step::Through { path, value } => _ = lab.store(v, gva(path) + 0x800, value),
        Step::Device(kind) => lab.access(v, Acc::user(Gva::new(DEVICE), kind)).unwrap(),
        Step::Cr3(root) => lab.control_on(v, cr3(root)),
        Step::Invlpg(path) => lab.control_on(v, Control::Invlpg(Gva::new(gva(path)))),
        Step::Cr(write) => lab.control_on(v, Control::Cr(write)),
        Step::Trap => lab.control_on(v, Control::Trap(Trap::Cpuid)),
        Step::Host(event) => host_event(lab, event, snapshot),
    }
}

/// No walk caches, or some of any shape: what a translation is must not depend on them.
fn caches() -> impl Strategy<Value = Option<MmuGeometry>> {
    prop::option::weighted(0.8, any_caches())
}

fn always_sound<H: SecondStage>(setup: Setup) {
    let config = Config { failure_persistence: None, max_shrink_iters: 300, ..memvirt_properties::cases(120) };
    let sizes = prop_oneof![Just(PageSize::Size4K), Just(PageSize::Size2M)];
    let input = (sizes, any::<bool>(), caches(), prop::collection::vec(step(), 1..160));
    let result = TestRunner::new(config).run(&input, |(host_page, tagged, caches, steps)| {
        let tags = if tagged { Tags::On } else { Tags::Off };
        let mut lab = world::<H>(Setup { frames: 1024, host_page, vcpus: 2, tags, caches, ..setup });
        let mut snapshot = Snapshot::new();
        for (i, (v, step)) in steps.iter().enumerate() {
            run(&mut lab, VcpuId(*v), step, &mut snapshot);
            if i % 8 == 0 || matches!(step, Step::Host(_)) {
                lab.sound();
            }
        }
        host_event(&mut lab, HostEvent::DirtyRound(VM), &mut snapshot);
        lab.sound();
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
}

#[test]
fn ept_with_accessed_bits_is_sound() {
    always_sound::<Ept4>(Setup::SMALL);
}

#[test]
fn ept_without_accessed_bits_is_sound() {
    always_sound::<Ept4>(Setup { ad: AdBits::Off, ..Setup::SMALL });
}

#[test]
fn ept_with_the_modification_log_is_sound() {
    always_sound::<Ept4>(Setup { logging: DirtyLogging::ModificationLog, ..Setup::SMALL });
}

#[test]
fn npt_is_sound() {
    always_sound::<Npt4>(Setup { vendor: Vendor::Svm, ..Setup::SMALL });
}
