//! Isolation: no host frame serves two virtual machines, and nothing a guest can read holds a host address.
#![expect(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use std::collections::BTreeMap;

use memvirt_addr::{Acc, AccessKind, Gfn, Gpa, Gva, Hfn, PageSize};
use memvirt_nested::{AdBits, Nested};
use memvirt_ops::arch::{Control, Cr3};
use memvirt_ops::{VcpuId, VmId};
use memvirt_pagetable::Ept4;
use memvirt_platform::{Engine, Horizon, Host, Ledger, MemoryMap, Platform, Regime, Tags, Vendor, VmSpec};
use memvirt_shadow::{OnStore, WriteProtect};
use memvirt_tlb::Geometry;
use proptest::prelude::*;

const FRAMES: u64 = 2048;
/// Guest tables in frames 1 to 4, as every guest here lays them out: entry `i` of the leaf table maps page `i`.
const LEAF_TABLE: u64 = 4;

#[derive(Clone, Debug)]
struct Touch {
    vm: u16,
    page: u64,
    write: bool,
    /// First maps the page to this guest frame.
    remap: Option<u64>,
}

fn touches() -> impl Strategy<Value = Vec<Touch>> {
    let touch = (0u16..2, 0u64..64, any::<bool>(), prop::option::of(8u64..FRAMES));
    prop::collection::vec(touch.prop_map(|(vm, page, write, remap)| Touch { vm, page, write, remap }), 1..120)
}

/// Two machines with the same tables at the same guest addresses.
fn boot<R: Regime>(host: Host, regimes: [R; 2], map: impl Fn() -> MemoryMap) -> Engine<R> {
    let vms = regimes.into_iter().map(|regime| (VmSpec { map: map(), vcpus: 1 }, regime)).collect();
    let mut engine = Engine::new(host, 1, &Geometry::default(), Tags::On, vms);
    let mut ledger = Ledger::sums();
    for vm in 0..2 {
        for table in 1..LEAF_TABLE {
            engine.poke(VmId(vm), Gpa::new(table << 12), ((table + 1) << 12) | 0x27);
        }
        for page in 0..64 {
            engine.poke(VmId(vm), Gfn::new(LEAF_TABLE).entry(page), ((page as u64 + 8) << 12) | 0x27);
        }
        engine.event(VcpuId(vm), &Control::Cr3(Cr3::flushing(Gpa::new(0x1000))).into(), &mut ledger).unwrap();
    }
    engine
}

/// Runs the touches of both machines, interleaved, and checks who owns which frame.
fn check<R: Regime>(engine: &mut Engine<R>, touches: &[Touch]) -> Result<(), TestCaseError> {
    let mut ledger = Ledger::sums();
    for touch in touches {
        let vcpu = VcpuId(touch.vm);
        let gva = Gva::new(touch.page << 12);
        if let Some(frame) = touch.remap {
            engine.poke(
                VmId(touch.vm),
                Gfn::new(LEAF_TABLE).entry(usize::try_from(touch.page).unwrap()),
                (frame << 12) | 0x27,
            );
            engine.event(vcpu, &Control::Cr3(Cr3::flushing(Gpa::new(0x1000))).into(), &mut ledger).unwrap();
        }
        let kind = if touch.write { AccessKind::Write } else { AccessKind::Read };
        engine.accesses(vcpu, &[Acc::user(gva, kind)], Horizon::Open, &mut ledger);
        if let Some(reached) = engine.reached(vcpu, gva) {
            let other = VmId(1 - touch.vm);
            let stolen = (0..FRAMES).find(|gfn| engine.backing(other, Gfn::new(*gfn)) == Some(reached.frame));
            prop_assert_eq!(stolen, None, "{:?} reached a frame of the other machine", touch);
        }
    }
    let mut owners: BTreeMap<Hfn, u16> = BTreeMap::new();
    for vm in 0..2 {
        for (frame, size) in engine.map(VmId(vm)).host_pages() {
            for i in 0..size.frames() {
                let before = owners.insert(frame.offset(i), vm);
                prop_assert!(before.is_none(), "host frame {:?} backs two guest frames", frame.offset(i));
            }
        }
    }
    // What a guest reads of its own tables are guest frames: each present entry names a frame of its own memory, and where
    // the host put it differs.
    for vm in 0..2 {
        for page in 0..64 {
            let entry = engine.peek(VmId(vm), Gfn::new(LEAF_TABLE).entry(page));
            prop_assert!((entry & 0x000f_ffff_ffff_f000) >> 12 < FRAMES);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(memvirt_properties::cases(256))]

    #[test]
    fn no_frame_reaches_two_machines_under_nested_paging(touches in touches(), large in any::<bool>()) {
        let mut host = Host::new(1 << 16);
        let regime = |host: &mut Host| Nested::<Ept4>::new(host, AdBits::On, Vendor::Vmx).unwrap();
        let regimes = [regime(&mut host), regime(&mut host)];
        let size = if large { PageSize::Size2M } else { PageSize::Size4K };
        check(&mut boot(host, regimes, || MemoryMap::new(FRAMES, size)), &touches)?;
    }

    #[test]
    fn no_frame_reaches_two_machines_under_shadow_paging(touches in touches(), large in any::<bool>()) {
        let size = if large { PageSize::Size2M } else { PageSize::Size4K };
        let map = || MemoryMap::new(FRAMES, size);
        let regime = || WriteProtect::new(&map(), OnStore::Zap, Vendor::Vmx);
        check(&mut boot(Host::new(1 << 16), [regime(), regime()], map), &touches)?;
    }
}

/// The type system keeps the spaces apart; the compile-fail examples in `memvirt-addr` show it for addresses, this one for
/// tables: guest tables cannot be given host frames.
///
/// ```compile_fail
/// use memvirt_pagetable::{Guest4, Mapper, PhysMem};
/// let mut host = PhysMem::<memvirt_addr::HostPhys>::new(8);
/// Mapper::<Guest4, _>::new(&mut host, memvirt_addr::Hfn::new(1), memvirt_pagetable::map::TableAttrs::USER);
/// ```
#[test]
fn guest_tables_translate_to_guest_frames_by_type() {
    fn out_space<F: memvirt_pagetable::Format<Out = memvirt_addr::GuestPhys>>() {}
    out_space::<memvirt_pagetable::Guest4>();
}
