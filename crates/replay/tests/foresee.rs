//! Walks that are made ahead count and do what walks made one by one do. Two machines run the same random streams of a guest and
//! its host: one in runs of accesses, whose walks it may foresee; the other with walk caches of no entries, which makes each walk
//! when its time comes. Every counter, outcome, translation and table of the two must be the same.

use memvirt_addr::{Acc, AccessKind, Gfn, Gpa, Gva, PageSize, Privilege};
use memvirt_nested::{AdBits, DirtyLogging, Nested};
use memvirt_ops::arch::{Control, Cr3, CrWrite, Event, GfnRange, HostEvent, StoreOp, Width};
use memvirt_ops::{VcpuId, VmId};
use memvirt_pagetable::{Ept4, Npt4};
use memvirt_platform::{
    Counters, Engine, Horizon, Host, Ledger, MemoryMap, MmuCounts, MmuGeometry, Native, Platform, Regime, Stop, Tags,
    Vendor, VmSpec,
};
use memvirt_replay::golden::{
    DATA, DM, GUEST_FRAMES, HOST_FRAMES, Loader, PML4A, PML4B, PT_A, PT_A1, PT_B, Sequence, TV,
};
use memvirt_shadow::kvm::{Kernel, Kvm, KvmConfig};
use memvirt_shadow::{LazyFill, OnStore, Vbox, Vtlb, WriteProtect, Xen};
use memvirt_tlb::{ArrayGeometry, Geometry, Sizes};
use rand::prelude::*;
use rand_chacha::ChaCha8Rng;

const VM: VmId = VmId::FIRST;
const CPU: VcpuId = VcpuId::FIRST;

/// What a step of the stream asks for.
enum Step {
    Run(Vec<Acc>),
    Event(Event),
    Host(HostEvent),
}

fn access(rng: &mut ChaCha8Rng) -> Acc {
    let page = rng.random_range(0..6u64) << 12;
    let (gva, privilege) = match rng.random_range(0..8) {
        0..4 => (TV + (rng.random_range(0..3u64) << 21) + page, Privilege::User),
        4 => (TV + page, Privilege::Supervisor),
        _ => (DM + DATA + page, Privilege::Supervisor),
    };
    let kinds = [AccessKind::Read, AccessKind::Read, AccessKind::Read, AccessKind::Write, AccessKind::Fetch];
    Acc::new(Gva::new(gva), *kinds.choose(rng).unwrap_or(&AccessKind::Read), privilege)
}

fn step(rng: &mut ChaCha8Rng) -> Step {
    let frames = |rng: &mut ChaCha8Rng| GfnRange {
        start: Gfn::new((DATA >> 12) + rng.random_range(0..8u64)),
        frames: rng.random_range(1..4),
    };
    match rng.random_range(0..100) {
        0..50 => Step::Run((0..rng.random_range(1..60)).map(|_| access(rng)).collect()),
        50..80 => {
            let table = *[PT_A, PT_A1, PT_B].choose(rng).unwrap_or(&PT_A);
            let frame = DATA + (rng.random_range(0..8u64) << 12);
            let flags =
                *[0x67u64, 0x63, 0x65, 0x27, 0x27, 0x27, 0x7, 0x167, 0x0, 1 << 63 | 0x67].choose(rng).unwrap_or(&0);
            let value = if flags == 0 { 0 } else { frame | flags };
            let op = StoreOp::Mov { width: Width::B8, value };
            Step::Event(Event::Store { via: Gva::new(DM + table + 8 * rng.random_range(0..6u64)), op, ip: Gva::ZERO })
        }
        80..86 => Step::Event(Control::Invlpg(access(rng).gva()).into()),
        86..90 => {
            let root = *[PML4A, PML4B].choose(rng).unwrap_or(&PML4A);
            Step::Event(Control::Cr3(Cr3::flushing(Gpa::new(root))).into())
        }
        90..92 => Step::Event(Control::Cr(CrWrite::WriteProtect(rng.random())).into()),
        92..94 => Step::Host(HostEvent::DirtyLog(VM, rng.random())),
        94..96 => Step::Host(HostEvent::DirtyRound(VM)),
        96..98 => Step::Host(HostEvent::Unmap(VM, frames(rng))),
        _ => Step::Host(HostEvent::WorldSwitch(VM)),
    }
}

/// One machine and what it has counted.
struct Side<R> {
    engine: Engine<R>,
    out: Ledger,
}

impl<R: Regime> Side<R> {
    fn new(mut engine: Engine<R>) -> Self {
        let mut loader = Loader::new(&mut engine);
        loader.populate();
        loader.tables();
        loader.data(Sequence::Fuzz2);
        let mut side = Self { engine, out: Ledger::listing() };
        side.act(&Step::Event(Control::Cr3(Cr3::flushing(Gpa::new(PML4A))).into()));
        side
    }

    fn act(&mut self, step: &Step) -> String {
        match step {
            Step::Event(event) => format!("{:?}", self.engine.event(CPU, event, &mut self.out)),
            Step::Host(event) => {
                self.engine.host(event, &mut self.out);
                String::new()
            }
            Step::Run(run) => {
                let (mut done, mut stops) = (0, Vec::new());
                while done < run.len() {
                    let (more, stop) = self.engine.accesses(CPU, &run[done..], Horizon::Open, &mut self.out);
                    // An access that faults is given up.
                    done += more + usize::from(stop != Stop::Done);
                    stops.push((done, stop));
                }
                format!("{stops:?}")
            }
        }
    }

    fn counters(&self) -> Counters {
        Counters { caches: MmuCounts::default(), ..self.out.counters }
    }
}

/// Runs the streams on both machines that `make` makes.
fn same<R: Regime>(name: &str, make: impl Fn() -> Engine<R>) {
    for seed in 0..4 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut ahead = Side::new(make());
        let mut one_by_one = Side::new(make().with_walk_caches(&MmuGeometry::default()));
        for i in 0..250 {
            let step = step(&mut rng);
            assert_eq!(ahead.act(&step), one_by_one.act(&step), "{name}, seed {seed}, step {i}");
            assert_eq!(ahead.counters(), one_by_one.counters(), "{name}, seed {seed}, step {i}");
            let exits = |side: &mut Side<R>| side.out.exits.as_mut().map(core::mem::take);
            assert_eq!(exits(&mut ahead), exits(&mut one_by_one), "{name}, seed {seed}, step {i}");
        }
        assert!(ahead.out.counters.walks > 500, "{name}: {} walks", ahead.out.counters.walks);
        for page in 0..24u64 {
            for gva in [DM + DATA + (page << 12), TV + (page << 12)].map(Gva::new) {
                assert_eq!(ahead.engine.reached(CPU, gva), one_by_one.engine.reached(CPU, gva), "{name}, seed {seed}");
            }
        }
        for table in [PT_A, PT_A1, PT_B, PML4A, PML4B] {
            for at in (0..512).map(|i| Gpa::new(table + 8 * i)) {
                assert_eq!(ahead.engine.peek(VM, at), one_by_one.engine.peek(VM, at), "{name}, seed {seed}");
            }
        }
    }
}

/// A machine whose TLB holds so little that a run comes back to pages that it has changed a bit of and lost since.
fn engine<R: Regime>(tags: Tags, page: PageSize, make: impl FnOnce(&mut Host, &MemoryMap) -> R) -> Engine<R> {
    let mut host = Host::new(HOST_FRAMES);
    let map = MemoryMap::new(GUEST_FRAMES, page);
    let regime = make(&mut host, &map);
    Engine::new(host, 1, &small(), tags, vec![(VmSpec { map, vcpus: 1 }, regime)])
}

fn small() -> Geometry {
    Geometry::new(&[ArrayGeometry::full(Sizes::ALL, 2)], &[]).unwrap_or_default()
}

#[test]
fn on_the_bare_machine() {
    same("native", || {
        let vm = VmSpec { map: MemoryMap::identity(GUEST_FRAMES), vcpus: 1 };
        Engine::new(Host::new(GUEST_FRAMES), 1, &small(), Tags::On, vec![(vm, Native)])
    });
}

#[test]
fn under_nested_paging() {
    for (tags, page) in [(Tags::On, PageSize::Size4K), (Tags::Off, PageSize::Size2M)] {
        for ad in [AdBits::On, AdBits::Off] {
            for log in [DirtyLogging::WriteProtect, DirtyLogging::ModificationLog] {
                same("ept", || {
                    engine(tags, page, |host, _| {
                        let nested = Nested::<Ept4>::new(host, ad, Vendor::Vmx).expect("an empty host has a frame");
                        nested.with_dirty_logging(log)
                    })
                });
            }
        }
        same("npt", || {
            engine(tags, page, |host, _| {
                Nested::<Npt4>::new(host, AdBits::On, Vendor::Svm).expect("an empty host has a frame")
            })
        });
    }
}

#[test]
fn under_shadow_paging() {
    let vendor = Vendor::Vmx;
    for (tags, page) in [(Tags::On, PageSize::Size4K), (Tags::On, PageSize::Size2M), (Tags::Off, PageSize::Size4K)] {
        same("write-protect", || engine(tags, page, |_, map| WriteProtect::new(map, OnStore::Zap, vendor)));
        same("propagate", || engine(tags, page, |_, map| WriteProtect::new(map, OnStore::Propagate, vendor)));
        same("lazy-fill", || engine(tags, page, |_, map| LazyFill::new(map, vendor)));
        same("vtlb", || engine(tags, page, |_, map| Vtlb::new(map, vendor)));
        same("xen", || engine(tags, page, |_, map| Xen::new(map, 1, vendor)));
        same("vbox", || engine(tags, page, |_, map| Vbox::new(map, vendor)));
        for kernel in [Kernel::V6_1, Kernel::V6_12] {
            same("kvm", || engine(tags, page, |_, _| Kvm::new(KvmConfig::new(kernel, vendor))));
        }
    }
}
