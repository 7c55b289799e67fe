//! A cached entry never survives what must remove it, and survives everything else: each invalidation against each kind of
//! entry. Source: Intel SDM volume 3, sections 4.10.4.1 and 28.3.3.1; AMD APM volume 2, section 15.16.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use memvirt_addr::{Acc, AccessKind, Frame, Gpa, GuestPhys, Gva, Hfn, HostPhys, Level, PageSize};
use memvirt_pagetable::Attrs;
use memvirt_platform::{Caches, Cpu, Invalidation, Mmu, MmuGeometry, Partial};
use memvirt_tlb::{Geometry, KeepGlobal, NestedEntry, Perms, Shape, Tag, WalkGeometry};

const VPID: u16 = 3;
const ROOT: u16 = 7;
const TAG: Tag = Tag::new(VPID, 1);
const GVA: Gva = Gva::new(0x7f12_3456_7000);
const GPA: Gpa = Gpa::new(0x1_2345_6000);

/// What there is to be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// The paging-structure entry on the way to `GVA`, for `TAG`.
    Path,
    /// One for the same tag, on the way to another address.
    OtherAddress,
    /// One for another PCID of the VPID.
    OtherPcid,
    /// One of another VPID.
    OtherVpid,
    /// The nested entry on the way to `GPA`, under `ROOT`.
    NestedPath,
    /// One on the way to another guest-physical address.
    OtherNestedPath,
    /// The guest-physical page of `GPA`.
    Page,
    /// Another page.
    OtherPage,
    /// A nested entry and a page of another root, both.
    OtherRoot,
}

use Held::*;

const ALL: [Held; 9] =
    [Path, OtherAddress, OtherPcid, OtherVpid, NestedPath, OtherNestedPath, Page, OtherPage, OtherRoot];

const FAR: u64 = 1 << 34;

fn guest() -> [(Held, Tag, Gva); 4] {
    [
        (Path, TAG, GVA),
        (OtherAddress, TAG, GVA.wrapping_add(FAR)),
        (OtherPcid, Tag::new(VPID, 2), GVA),
        (OtherVpid, Tag::new(VPID + 1, 1), GVA),
    ]
}

fn host() -> [(Held, u16, Gpa); 3] {
    [(NestedPath, ROOT, GPA), (OtherNestedPath, ROOT, GPA.wrapping_add(FAR)), (OtherRoot, ROOT + 1, GPA)]
}

fn pages() -> [(Held, u16, Gpa); 3] {
    [(Page, ROOT, GPA), (OtherPage, ROOT, GPA.wrapping_add(FAR)), (OtherRoot, ROOT + 1, GPA)]
}

fn full() -> Cpu {
    let shape = Shape::new(16, 16).unwrap();
    let dimension = [Level::L2, Level::L3, Level::L4].into_iter();
    let dimension = dimension.fold(WalkGeometry::NONE, |geometry, level| geometry.with(level, shape));
    let mut cpu = Cpu::new(&Geometry::default());
    let mut mmu = Mmu::new(&MmuGeometry { guest: dimension, host: dimension, nested_tlb: Some(shape) });
    for (_, tag, gva) in guest() {
        let entry = Partial::<GuestPhys> { table: Frame::new(5), perms: Attrs::RWX };
        mmu.walk(tag, ROOT).0.keep_guest(gva, Level::L2, entry);
    }
    for (_, root, gpa) in host() {
        let entry = Partial::<HostPhys> { table: Frame::new(6), perms: Attrs::RWX };
        mmu.walk(TAG, root).0.keep_host(gpa, Level::L3, entry);
    }
    for (_, root, gpa) in pages() {
        let entry = NestedEntry { page: gpa.frame(), frame: Hfn::new(9), size: PageSize::Size4K, perms: Perms::ALL };
        mmu.walk(TAG, root).0.keep_page(entry);
    }
    cpu.mmu = Some(Box::new(mmu));
    cpu
}

fn survivors(cpu: &mut Cpu) -> Vec<Held> {
    let mmu = cpu.mmu.as_deref_mut().unwrap();
    let mut held = Vec::new();
    for (what, tag, gva) in guest() {
        held.extend(mmu.walk(tag, ROOT).0.guest::<GuestPhys>(gva).map(|_| what));
    }
    for (what, root, gpa) in host() {
        held.extend(mmu.walk(TAG, root).0.host::<HostPhys>(gpa).map(|_| what));
    }
    for (what, root, gpa) in pages() {
        held.extend(mmu.walk(TAG, root).0.page(gpa, Perms::NONE).map(|_| what));
    }
    held
}

/// What `flush` drops, and under which name it is counted.
fn dropped(flush: impl FnOnce(&mut Cpu)) -> (Vec<Held>, Vec<Invalidation>) {
    let mut cpu = full();
    assert_eq!(survivors(&mut cpu).len(), ALL.len() + 1, "all are there at first, two of the other root");
    flush(&mut cpu);
    let counts = cpu.mmu.as_ref().unwrap().counts();
    let counted = Invalidation::ALL.into_iter().filter(|what| counts.invalidations[*what as usize] > 0).collect();
    let left = survivors(&mut cpu);
    let other_root = left.iter().filter(|held| **held == OtherRoot).count();
    assert!(other_root == 0 || other_root == 2, "both dimensions go by root");
    (ALL.into_iter().filter(|held| !left.contains(held)).collect(), counted)
}

#[test]
fn guest_operations_drop_the_guest_dimension_and_never_guest_physical_mappings() {
    let keep = KeepGlobal::Yes;
    for (flush, gone, name) in [
        // INVLPG: all paging-structure entries of the PCID, whatever their address.
        (
            &(|cpu: &mut Cpu| cpu.flush_page(TAG, GVA)) as &dyn Fn(&mut Cpu),
            vec![Path, OtherAddress],
            Invalidation::Page,
        ),
        // INVPCID and INVVPID of one address: those that would be used for it.
        (&|cpu| cpu.flush_address(TAG, GVA), vec![Path], Invalidation::Address),
        // A CR3 load: the PCID; none of these caches' entries is global.
        (&|cpu| cpu.flush_tag(TAG, keep), vec![Path, OtherAddress], Invalidation::Context),
        // CR4.PGE: all PCIDs.
        (&|cpu| cpu.flush_vpid(VPID, keep), vec![Path, OtherAddress, OtherPcid], Invalidation::Vpid),
        (&|cpu| cpu.page_fault(TAG, GVA), vec![Path], Invalidation::PageFault),
        // Without VPIDs everything but guest-physical mappings, which EPT roots tag.
        (&|cpu| cpu.flush_untagged(), vec![Path, OtherAddress, OtherPcid, OtherVpid], Invalidation::Untagged),
    ] {
        assert_eq!(dropped(flush), (gone, vec![name]));
    }
}

#[test]
fn a_hypervisor_s_flushes_reach_guest_physical_mappings_of_their_root() {
    // INVEPT of one root: guest-physical mappings, and the combined ones made through them.
    let of_root = [NestedPath, OtherNestedPath, Page, OtherPage];
    let (gone, counted) = dropped(|cpu| cpu.flush_root(VPID, ROOT));
    assert_eq!(gone, [&[Path, OtherAddress, OtherPcid], &of_root[..]].concat());
    assert_eq!(counted, [Invalidation::Vpid, Invalidation::GuestPhysical]);
    let (gone, _) = dropped(|cpu| cpu.flush_guest_physical(ROOT));
    assert_eq!(gone, of_root);
    // An EPT violation: what was used for the guest-physical address, and for the linear one that it came from.
    let (gone, counted) = dropped(|cpu| cpu.violation(ROOT, GPA, None));
    assert_eq!((gone, counted), (vec![NestedPath, Page], vec![Invalidation::Violation]));
    let (gone, _) = dropped(|cpu| cpu.violation(ROOT, GPA, Some((TAG, GVA))));
    assert_eq!(gone, [Path, NestedPath, Page]);
}

#[test]
fn the_tlb_is_flushed_with_them() {
    let entry = memvirt_tlb::Entry::new(GVA.frame(), Hfn::new(1), PageSize::Size4K, Perms::ALL);
    let read = Acc::user(GVA, AccessKind::Read);
    for flush in [
        &(|cpu: &mut Cpu| cpu.flush_page(TAG, GVA)) as &dyn Fn(&mut Cpu),
        &|cpu| cpu.flush_address(TAG, GVA),
        &|cpu| cpu.flush_tag(TAG, KeepGlobal::Yes),
        &|cpu| cpu.flush_vpid(VPID, KeepGlobal::No),
        &|cpu| cpu.flush_root(VPID, ROOT),
        &|cpu| cpu.flush_untagged(),
        &|cpu| cpu.page_fault(TAG, GVA),
    ] {
        let mut cpu = full();
        cpu.fill(TAG, entry);
        assert!(cpu.tlb().probe(TAG, read.gva()).is_some());
        flush(&mut cpu);
        assert!(cpu.tlb().probe(TAG, read.gva()).is_none());
    }
}
