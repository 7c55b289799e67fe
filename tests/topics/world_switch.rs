//! A world switch between virtual machines: without tags the CPU forgets what it has cached, counted, whatever the hypervisor;
//! with tags each machine finds its own translations again.
//!
//! Source: Intel SDM volume 3, section 28.3.3.3 (VM entries and exits without VPIDs invalidate linear and combined mappings); AMD
//! APM volume 2, section 15.16.

use memvirt_addr::{Acc, AccessKind, Gfn, Gpa, Gva, PageSize};
use memvirt_alternatives::{Agile, DirectSegment, Flat, GuestSegment, Mode, Policy, RegisterWalk, Switching};
use memvirt_machine::RegimeKind;
use memvirt_nested::{AdBits, Nested};
use memvirt_nestedvirt::{Arrangement, Config, EptOnEpt, ShadowOnEpt};
use memvirt_ops::arch::{Control, Cr3, GfnRange, HostEvent};
use memvirt_ops::{VcpuId, VmId};
use memvirt_pagetable::{Attrs, Ept4, Guest4, Npt4};
use memvirt_platform::{Engine, Horizon, Host, Ledger, MemoryMap, Native, Platform, Regime, Tags, Vendor, VmSpec};
use memvirt_shadow::kvm::{Kernel, Kvm, KvmConfig};
use memvirt_shadow::{InvlpgOnly, LazyFill, OnStore, Vbox, Vtlb, WriteProtect, Xen};
use memvirt_tlb::Geometry;

/// Guest memory: 1 GiB, as nested hypervisors want it in whole GiB.
const FRAMES: u64 = 1 << 18;
/// Guest tables lie in frames 1 to 4, the root first; entry `i` of the last maps page `i`.
const ROOT: u64 = 1;
const LEAF: u64 = 4;
const PAGE: u64 = 16;

/// Two virtual machines that share one CPU.
struct Pair {
    platform: Box<dyn Platform>,
    out: Ledger,
}

/// What one step did.
#[derive(Debug, PartialEq, Eq)]
struct Did {
    flushes: u64,
    walks: u64,
    exits: u64,
}

impl Did {
    const NOTHING: Self = Self { flushes: 0, walks: 0, exits: 0 };
}

impl Pair {
    fn new<R: Regime + 'static>(tags: Tags, make: impl Fn(&mut Host, &mut MemoryMap) -> Option<R>) -> Self {
        let mut host = Host::new(4 * FRAMES);
        let machine = |host: &mut Host| {
            let mut map = MemoryMap::new(FRAMES, PageSize::Size4K);
            let regime = make(host, &mut map).expect("the host is large enough");
            (VmSpec { map, vcpus: 1 }, regime)
        };
        let vms = vec![machine(&mut host), machine(&mut host)];
        let engine = Engine::new(host, 1, &Geometry::default(), tags, vms);
        let mut pair = Self { platform: Box::new(engine), out: Ledger::sums() };
        (0..2).for_each(|vm| pair.boot(vm));
        pair
    }

    fn boot(&mut self, vm: u16) {
        for table in ROOT..LEAF {
            self.platform.poke(VmId(vm), Gpa::new(table << 12), (table + 1) << 12 | 0x27);
        }
        self.platform.poke(VmId(vm), Gfn::new(LEAF).entry(16), (PAGE + 64) << 12 | 0x67);
        let cr3 = Control::Cr3(Cr3::flushing(Gfn::new(ROOT).base()));
        self.platform.event(VcpuId(vm), &cr3.into(), &mut self.out).expect("the guest's root is memory");
    }

    fn step(&mut self, act: impl FnOnce(&mut dyn Platform, &mut Ledger)) -> Did {
        let count = |out: &Ledger| (out.counters.tlb_flushes, out.counters.walks, out.counters.total_exits());
        let before = count(&self.out);
        act(self.platform.as_mut(), &mut self.out);
        let after = count(&self.out);
        Did { flushes: after.0 - before.0, walks: after.1 - before.1, exits: after.2 - before.2 }
    }

    /// The CPU runs `vm` from now on.
    fn switch(&mut self, vm: u16) -> Did {
        self.step(|platform, out| platform.host(&HostEvent::WorldSwitch(VmId(vm)), out))
    }

    fn access(&mut self, vm: u16) -> Did {
        self.step(|platform, out| {
            let acc = Acc::user(Gva::new(PAGE << 12), AccessKind::Read);
            let (done, _) = platform.accesses(VcpuId(vm), &[acc], Horizon::Open, out);
            assert_eq!(done, 1, "the page is mapped");
        })
    }
}

/// Two machines under a regime. The match names each: a new regime has to come here.
fn pair(kind: RegimeKind, tags: Tags) -> Pair {
    let vmx = Vendor::Vmx;
    let kvm = |kernel| Pair::new(tags, move |_, _| Some(Kvm::new(KvmConfig::new(kernel, vmx))));
    let agile = |switching: Switching| Pair::new(tags, move |host, map| Agile::new(host, map, switching));
    let segment = |mode: fn() -> Mode| Pair::new(tags, move |host, map| DirectSegment::new(host, map, mode()));
    let l1 = |arrangement| Pair::new(tags, move |host, map| ShadowOnEpt::<4>::new(host, map, arrangement, Config::KVM));
    match kind {
        RegimeKind::Native => unreachable!("two machines on bare hardware are one"),
        RegimeKind::ShadowWriteProtect => Pair::new(tags, |_, map| Some(WriteProtect::new(map, OnStore::Zap, vmx))),
        RegimeKind::ShadowPropagate => Pair::new(tags, |_, map| Some(WriteProtect::new(map, OnStore::Propagate, vmx))),
        RegimeKind::ShadowLazyFill => Pair::new(tags, |_, map| Some(LazyFill::new(map, vmx))),
        RegimeKind::ShadowVtlb => Pair::new(tags, |_, map| Some(Vtlb::new(map, vmx))),
        RegimeKind::ShadowKvm61 => kvm(Kernel::V6_1),
        RegimeKind::ShadowKvm612 => kvm(Kernel::V6_12),
        RegimeKind::ShadowXen => Pair::new(tags, |_, map| Some(Xen::new(map, 1, vmx))),
        RegimeKind::ShadowVbox => Pair::new(tags, |_, map| Some(Vbox::new(map, vmx))),
        RegimeKind::ShadowInvlpgOnly => Pair::new(tags, |_, map| Some(InvlpgOnly::new(map, vmx))),
        RegimeKind::NestedEpt => Pair::new(tags, |host, _| Nested::<Ept4>::new(host, AdBits::On, vmx)),
        RegimeKind::NestedNpt => Pair::new(tags, |host, _| Nested::<Npt4>::new(host, AdBits::On, Vendor::Svm)),
        RegimeKind::NestedVirtShadow => l1(Arrangement::ShadowOnEpt),
        RegimeKind::NestedVirtPvm => l1(Arrangement::Pvm),
        RegimeKind::NestedVirtEpt => Pair::new(tags, |host, map| EptOnEpt::<4>::new(host, map, Config::KVM)),
        RegimeKind::Flat => Pair::new(tags, |host, map| Flat::<Guest4>::new(host, map)),
        RegimeKind::Agile => agile(Switching::Activity(Policy::DEFAULT)),
        RegimeKind::Agile0 => agile(Switching::Levels(0)),
        RegimeKind::Agile1 => agile(Switching::Levels(1)),
        RegimeKind::Agile2 => agile(Switching::Levels(2)),
        RegimeKind::Agile3 => agile(Switching::Levels(3)),
        RegimeKind::Agile4 => agile(Switching::Levels(4)),
        RegimeKind::DirectSegment => segment(|| Mode::Vmm),
        RegimeKind::DirectSegmentGuest => segment(|| Mode::Guest(far_segment())),
        RegimeKind::DirectSegmentDual => segment(|| Mode::Dual(far_segment())),
        RegimeKind::RegisterWalk => Pair::new(tags, |host, map| {
            RegisterWalk::new(host, map, GfnRange { start: Gfn::new(FRAMES / 2), frames: 512 })
        }),
    }
}

/// A guest's segment that the access does not lie in.
fn far_segment() -> GuestSegment {
    GuestSegment { base: Gva::new(1 << 30), pages: 64, to: Gfn::new(0), perms: Attrs::READ }
}

/// Every regime that virtualizes.
fn hypervisors() -> impl Iterator<Item = RegimeKind> {
    RegimeKind::ALL.iter().copied().filter(|kind| *kind != RegimeKind::Native)
}

/// Both machines have touched their page, and find it cached.
fn warm(kind: RegimeKind, tags: Tags) -> Pair {
    let mut pair = pair(kind, tags);
    for vm in 0..2 {
        let _ = pair.access(vm);
        // What the first touch's exits left to be flushed.
        let _ = pair.access(vm);
        assert_eq!(pair.access(vm), Did::NOTHING, "{kind} {tags:?}: the page is cached");
    }
    pair
}

#[test]
fn without_tags_a_world_switch_flushes_once_and_the_first_access_misses() {
    for kind in hypervisors() {
        let mut pair = warm(kind, Tags::Off);
        for vm in [0, 1, 0] {
            assert_eq!(pair.switch(vm), Did { flushes: 1, ..Did::NOTHING }, "{kind}: one flush, no exit");
            assert_eq!(pair.access(vm), Did { walks: 1, ..Did::NOTHING }, "{kind}: one walk finds all in the tables");
            assert_eq!(pair.access(vm), Did::NOTHING, "{kind}: cached again");
        }
    }
}

#[test]
fn with_tags_both_machines_keep_their_translations() {
    for kind in hypervisors() {
        let mut pair = warm(kind, Tags::On);
        for vm in [0, 1, 0] {
            assert_eq!(pair.switch(vm), Did::NOTHING, "{kind}: nothing to flush");
            assert_eq!(pair.access(vm), Did::NOTHING, "{kind}: a hit");
        }
    }
}

#[test]
fn a_bare_machine_has_nobody_to_switch_to() {
    for tags in [Tags::On, Tags::Off] {
        let vm = VmSpec { map: MemoryMap::identity(FRAMES), vcpus: 1 };
        let engine = Engine::new(Host::new(FRAMES), 1, &Geometry::default(), tags, vec![(vm, Native)]);
        let mut machine = Pair { platform: Box::new(engine), out: Ledger::sums() };
        machine.boot(0);
        let _ = machine.access(0);
        assert_eq!(machine.switch(0), Did::NOTHING);
        assert_eq!(machine.access(0), Did::NOTHING);
    }
}
