//! Random operations of a guest and its host over a small world of tables: 10 frames that are tables of any level, among them
//! three roots, linked at random, to themselves too; data; devices; large pages; everything written through the direct map or
//! through whatever else maps a table.

use memvirt_addr::{Acc, AccessKind, Gfn, Gva, PageSize, Privilege};
use memvirt_ops::arch::{Control, Cr3, CrWrite, GfnRange, HostEvent, Invpcid, Pcid, StoreOp, Width};
use memvirt_ops::{VcpuId, VmId};
use memvirt_platform::{Host, MemoryMap, Tags};
use memvirt_testkit::caches::any_caches;
use proptest::prelude::*;

use super::{A, Audited, D, DIRECT_MAP, Lab, Memory, NX, P, PS, U, W, index_of};

/// Frames 1 to `TABLES` are tables of any level, the first `ROOTS` of them roots.
const TABLES: u64 = 10;
const ROOTS: u64 = 3;

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Store {
        table: u64,
        index: usize,
        raw: u64,
    },
    Partial {
        table: u64,
        index: usize,
        width: Width,
        value: u64,
    },
    Clear {
        table: u64,
        index: usize,
        mask: u64,
    },
    Fill {
        table: u64,
        index: usize,
        count: u16,
    },
    Vector {
        table: u64,
        index: usize,
    },
    Access {
        path: [usize; 4],
        kind: AccessKind,
        privilege: Privilege,
    },
    Load {
        path: [usize; 4],
    },
    Through {
        path: [usize; 4],
        index: usize,
        raw: u64,
    },
    Cr3 {
        root: u64,
        pcid: u16,
        keep: bool,
    },
    Invlpg([usize; 4]),
    Invpcid {
        kind: u8,
        pcid: u16,
        path: [usize; 4],
    },
    Pge,
    Pcids(bool),
    WriteProtect(bool),
    Unmap {
        gfn: u64,
        frames: u64,
    },
    DirtyLog(bool),
    DirtyRound,
    SlotChange,
    Limit(u32),
    /// Another vCPU goes on.
    Cpu(u16),
}

/// The tables that suit an entry of `table`, by what it usually is: frames 1 to 3 roots, 4 and 5 level 3, 6 and 7 level 2, 8 to
/// 10 level 1, above them data.
const fn usual(table: u64) -> core::ops::Range<u64> {
    match table {
        1..=3 => 4..6,
        4..=5 => 6..8,
        6..=7 => 8..11,
        _ => 11..19,
    }
}

/// Something to store in `table`: mostly an entry that suits it.
fn raw(table: u64) -> impl Strategy<Value = u64> {
    let target = prop_oneof![
        24 => usual(table),
        3 => 1..=TABLES,
        3 => 11..19u64,
        3 => (1..4u64).prop_map(|large| large * 512),
    ];
    let flags = prop_oneof![
        20 => Just(P | W | U | A | D),
        4 => Just(P | W | U),
        2 => Just(P | U | A),
        1 => Just(P | W | A),
        1 => Just(P | W | U | A | NX),
        2 => Just(P | W | U | A | PS),
        1 => Just(P | W | U | A | D | PS),
        4 => Just(0),
    ];
    (target, flags).prop_map(|(gfn, flags)| gfn << 12 | flags)
}

fn path() -> impl Strategy<Value = [usize; 4]> {
    prop::array::uniform4(0..2usize)
}

fn table_steps() -> impl Strategy<Value = Step> {
    let entry = || (1..=TABLES, 0..2usize);
    let width = prop_oneof![Just(Width::B1), Just(Width::B2), Just(Width::B4)];
    prop_oneof![
        20 => (1..=TABLES).prop_flat_map(|table| (Just(table), 0..2usize, raw(table)))
            .prop_map(|(table, index, raw)| Step::Store { table, index, raw }),
        1 => (entry(), width, prop_oneof![Just(0u64), Just(0x27), Just(0x67), Just(0xc067)])
            .prop_map(|((table, index), width, value)| Step::Partial { table, index, width, value }),
        3 => (entry(), prop_oneof![Just(!A), Just(!D), Just(!(A | D)), Just(!W)])
            .prop_map(|((table, index), mask)| Step::Clear { table, index, mask }),
        1 => (entry(), 1..5u16).prop_map(|((table, index), count)| Step::Fill { table, index, count }),
        1 => entry().prop_map(|(table, index)| Step::Vector { table, index }),
        4 => (path(), 0..2usize, raw(8)).prop_map(|(path, index, raw)| Step::Through { path, index, raw }),
    ]
}

fn accesses() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![4 => Just(AccessKind::Read), 4 => Just(AccessKind::Write), 1 => Just(AccessKind::Fetch)];
    let privilege = prop_oneof![Just(Privilege::User), Just(Privilege::Supervisor)];
    prop_oneof![
        9 => (path(), kind, privilege).prop_map(|(path, kind, privilege)| Step::Access { path, kind, privilege }),
        1 => path().prop_map(|path| Step::Load { path }),
    ]
}

fn flushes() -> impl Strategy<Value = Step> {
    let pcid = || 0..3u16;
    prop_oneof![
        4 => (1..=ROOTS, pcid(), any::<bool>()).prop_map(|(root, pcid, keep)| Step::Cr3 { root, pcid, keep }),
        3 => path().prop_map(Step::Invlpg),
        1 => (0..4u8, pcid(), path()).prop_map(|(kind, pcid, path)| Step::Invpcid { kind, pcid, path }),
        1 => Just(Step::Pge),
        1 => any::<bool>().prop_map(Step::Pcids),
        1 => any::<bool>().prop_map(Step::WriteProtect),
    ]
}

fn host() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (0..40u64, 1..20u64).prop_map(|(gfn, frames)| Step::Unmap { gfn, frames }),
        1 => any::<bool>().prop_map(Step::DirtyLog),
        1 => Just(Step::DirtyRound),
        1 => Just(Step::SlotChange),
        1 => (0..70u32).prop_map(Step::Limit),
    ]
}

/// One operation.
pub(crate) fn step() -> impl Strategy<Value = Step> {
    let cpu = (0..2u16).prop_map(Step::Cpu);
    prop_oneof![30 => table_steps(), 40 => accesses(), 10 => flushes(), 5 => host(), 8 => cpu]
}

/// Every combination of page sizes of host and direct map.
pub(crate) fn memory() -> impl Strategy<Value = Memory> {
    let sizes = || prop_oneof![Just(PageSize::Size4K), Just(PageSize::Size2M)];
    // Walk caches change no result.
    let caches = prop::option::weighted(0.7, any_caches());
    (sizes(), sizes(), caches).prop_map(|(host_page, direct_map, caches)| Memory {
        frames: 2048,
        host_page,
        direct_map,
        caches,
    })
}

/// A user address by its four indices.
pub(crate) fn gva(path: [usize; 4]) -> u64 {
    path.iter().fold(0, |gva, index| gva << 9 | *index as u64) << 12
}

/// The machine that the operations run on.
pub(crate) fn world<R: Audited>(
    memory: Memory,
    vcpus: u16,
    tags: Tags,
    regime: impl FnOnce(&MemoryMap) -> R,
) -> Lab<R> {
    world_with_host(memory, vcpus, tags, |_, map| regime(map))
}

/// The same for regimes that reserve host memory.
pub(crate) fn world_with_host<R: Audited>(
    memory: Memory,
    vcpus: u16,
    tags: Tags,
    regime: impl FnOnce(&mut Host, &mut MemoryMap) -> R,
) -> Lab<R> {
    let mut lab = Lab::with_host(memory, vcpus, tags, regime);
    lab.boot_direct_map(1);
    for table in 1..=TABLES {
        for index in 0..2 {
            let target = usual(table).start + (table + index) % (usual(table).end - usual(table).start);
            lab.boot(table, usize::from(index == 1), target << 12 | P | W | U | A | D);
        }
    }
    for root in 2..=ROOTS {
        let entry = lab.peek(1, index_of(DIRECT_MAP, 4));
        lab.boot(root, index_of(DIRECT_MAP, 4), entry);
    }
    for cpu in 0..vcpus {
        lab.control_on(VcpuId(cpu), Control::Cr3(Cr3::flushing(Gfn::new(1).base())));
    }
    lab
}

fn direct(table: u64, index: usize) -> u64 {
    DIRECT_MAP + (table << 12) + 8 * index as u64
}

/// Carries out one operation. What faults has no effect; the oracle judges everything.
pub(crate) fn run<R: Audited>(lab: &mut Lab<R>, step: &Step) {
    let vm = VmId::FIRST;
    match *step {
        Step::Store { table, index, raw } => lab.set(table, index, raw),
        Step::Partial { table, index, width, value } => {
            _ = lab.store_op(direct(table, index), StoreOp::Mov { width, value });
        }
        Step::Clear { table, index, mask } => _ = lab.store_op(direct(table, index), StoreOp::And { mask }),
        Step::Fill { table, index, count } => {
            _ = lab.store_op(direct(table, index), StoreOp::RepStos { value: 0, count });
        }
        Step::Vector { table, index } => _ = lab.store_op(direct(table, index & !1), StoreOp::Vector),
        Step::Access { path, kind, privilege } => _ = lab.access(Acc::new(Gva::new(gva(path)), kind, privilege)),
        Step::Load { path } => _ = lab.load(gva(path)),
        Step::Through { path, index, raw } => _ = lab.store(gva(path) + 8 * index as u64, raw),
        Step::Cr3 { root, pcid, keep } => {
            let pcid = Pcid::try_new(pcid).unwrap_or_default();
            lab.control(Control::Cr3(Cr3 { root: Gfn::new(root).base(), pcid, keep }));
        }
        Step::Invlpg(path) => lab.invlpg(gva(path)),
        Step::Invpcid { kind, pcid, path } => {
            let pcid = Pcid::try_new(pcid).unwrap_or_default();
            lab.control(Control::Invpcid(match kind {
                0 => Invpcid::Address(pcid, Gva::new(gva(path))),
                1 => Invpcid::Single(pcid),
                2 => Invpcid::All,
                _ => Invpcid::AllGlobal,
            }));
        }
        Step::Pge => lab.control(Control::Cr(CrWrite::TogglePge)),
        Step::Pcids(on) => lab.control(Control::Cr(CrWrite::PcidEnable(on))),
        Step::WriteProtect(on) => lab.control(Control::Cr(CrWrite::WriteProtect(on))),
        Step::Unmap { gfn, frames } => lab.host(HostEvent::Unmap(vm, GfnRange { start: Gfn::new(gfn), frames })),
        Step::DirtyLog(on) => lab.host(HostEvent::DirtyLog(vm, on)),
        Step::DirtyRound => lab.host(HostEvent::DirtyRound(vm)),
        Step::SlotChange => lab.host(HostEvent::SlotChange(vm)),
        Step::Cpu(cpu) => lab.cpu = VcpuId(cpu % lab.vcpus),
        Step::Limit(pages) => lab.host(HostEvent::ShadowPageLimit(vm, pages)),
    }
}
