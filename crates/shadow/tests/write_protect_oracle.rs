//! Write-protect shadow paging against a naive walker: after any sequence of stores to tables, flushes and host events, each
//! access does what the guest's tables say at that very moment, and the structures stay sound.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod lab;

use lab::*;
use memvirt_addr::{Acc, AccessKind, Gfn, Gva, PageSize, Privilege};
use memvirt_ops::VmId;
use memvirt_ops::arch::{Control, CrWrite, GfnRange, HostEvent, StoreOp, Width};
use memvirt_platform::{Tags, Vendor};
use memvirt_shadow::{OnStore, WriteProtect};
use proptest::prelude::*;

/// Frames 1 to `TABLES` are tables of any level, the first `ROOTS` of them roots.
const TABLES: u64 = 10;
const ROOTS: u64 = 3;

#[derive(Clone, Debug)]
enum Step {
    Store { table: u64, index: usize, raw: u64 },
    Partial { table: u64, index: usize, width: Width, value: u64 },
    Clear { table: u64, index: usize, mask: u64 },
    Fill { table: u64, index: usize, count: u16 },
    Vector { table: u64, index: usize },
    Access { path: [usize; 4], kind: AccessKind, privilege: Privilege },
    Through { path: [usize; 4], index: usize, raw: u64 },
    Cr3(u64),
    Invlpg([usize; 4]),
    Pge,
    WriteProtect(bool),
    Unmap { gfn: u64, frames: u64 },
    DirtyLog(bool),
    DirtyRound,
    SlotChange,
    Limit(u32),
}

fn raw() -> impl Strategy<Value = u64> {
    let target = prop_oneof![
        6 => 1..=TABLES,
        4 => TABLES + 1..40u64,
        2 => (1..4u64).prop_map(|large| large * 512),
        1 => Just(5000u64),
    ];
    let flags = prop_oneof![
        8 => Just(P | W | U | A | D),
        2 => Just(P | W | U),
        1 => Just(P | U | A),
        1 => Just(P | W | A),
        1 => Just(P | W | U | A | NX),
        2 => Just(P | W | U | A | PS),
        1 => Just(P | W | U | A | D | PS),
        2 => Just(0),
    ];
    (target, flags).prop_map(|(gfn, flags)| gfn << 12 | flags)
}

fn path() -> impl Strategy<Value = [usize; 4]> {
    prop::array::uniform4(0..3usize)
}

fn step() -> impl Strategy<Value = Step> {
    let entry = || (1..=TABLES, 0..3usize);
    let width = prop_oneof![Just(Width::B1), Just(Width::B2), Just(Width::B4)];
    let kind = prop_oneof![4 => Just(AccessKind::Read), 4 => Just(AccessKind::Write), 1 => Just(AccessKind::Fetch)];
    let privilege = prop_oneof![Just(Privilege::User), Just(Privilege::Supervisor)];
    prop_oneof![
        20 => (entry(), raw()).prop_map(|((table, index), raw)| Step::Store { table, index, raw }),
        1 => (entry(), width, any::<u64>())
            .prop_map(|((table, index), width, value)| Step::Partial { table, index, width, value }),
        3 => (entry(), prop_oneof![Just(!A), Just(!D), Just(!(A | D)), Just(!W)])
            .prop_map(|((table, index), mask)| Step::Clear { table, index, mask }),
        1 => (entry(), 1..5u16).prop_map(|((table, index), count)| Step::Fill { table, index, count }),
        1 => entry().prop_map(|(table, index)| Step::Vector { table, index }),
        40 => (path(), kind, privilege).prop_map(|(path, kind, privilege)| Step::Access { path, kind, privilege }),
        4 => (path(), 0..3usize, raw()).prop_map(|(path, index, raw)| Step::Through { path, index, raw }),
        4 => (1..=ROOTS).prop_map(Step::Cr3),
        2 => path().prop_map(Step::Invlpg),
        1 => Just(Step::Pge),
        1 => any::<bool>().prop_map(Step::WriteProtect),
        1 => (0..40u64, 1..20u64).prop_map(|(gfn, frames)| Step::Unmap { gfn, frames }),
        1 => any::<bool>().prop_map(Step::DirtyLog),
        1 => Just(Step::DirtyRound),
        1 => Just(Step::SlotChange),
        1 => (8..40u32).prop_map(Step::Limit),
    ]
}

/// A user address by its four indices; slot 1 upwards of the root, where the direct map is not.
fn gva(path: [usize; 4]) -> u64 {
    path.iter().fold(0, |gva, index| gva << 9 | *index as u64) << 12
}

fn lab(memory: Memory, on_store: OnStore, tags: Tags) -> Lab<WriteProtect> {
    let mut lab = Lab::with_tags(memory, 1, tags, |map| WriteProtect::new(map, on_store, Vendor::Vmx));
    lab.boot_direct_map(1);
    for root in 2..=ROOTS {
        let entry = lab.peek(1, index_of(DIRECT_MAP, 4));
        lab.boot(root, index_of(DIRECT_MAP, 4), entry);
    }
    lab.cr3(1);
    lab
}

fn direct(table: u64, index: usize) -> u64 {
    DIRECT_MAP + (table << 12) + 8 * index as u64
}

fn run(lab: &mut Lab<WriteProtect>, step: &Step) {
    match *step {
        Step::Store { table, index, raw } => lab.set(table, index, raw),
        Step::Partial { table, index, width, value } => {
            lab.store_op(direct(table, index), StoreOp::Mov { width, value }).unwrap();
        }
        Step::Clear { table, index, mask } => lab.store_op(direct(table, index), StoreOp::And { mask }).unwrap(),
        Step::Fill { table, index, count } => {
            lab.store_op(direct(table, index), StoreOp::RepStos { value: 0, count }).unwrap();
        }
        Step::Vector { table, index } => lab.store_op(direct(table, index & !1), StoreOp::Vector).unwrap(),
        Step::Access { path, kind, privilege } => lab.exact(Acc::new(Gva::new(gva(path)), kind, privilege)),
        Step::Through { path, index, raw } => {
            let at = gva(path) + 8 * index as u64;
            let truth = lab.truth(Acc::supervisor(Gva::new(at), AccessKind::Write));
            let done = lab.store(at, raw);
            assert_eq!(matches!(truth, Truth::Fault(_)), done.is_err());
            if let Truth::Page { gfn, .. } = truth
                && gfn.number() < lab.memory.frames
            {
                assert_eq!(lab.peek(gfn.number(), index), raw, "the store went elsewhere");
            }
        }
        Step::Cr3(root) => lab.cr3(root),
        Step::Invlpg(path) => lab.invlpg(gva(path)),
        Step::Pge => lab.control(Control::Cr(CrWrite::TogglePge)),
        Step::WriteProtect(on) => lab.control(Control::Cr(CrWrite::WriteProtect(on))),
        Step::Unmap { gfn, frames } => {
            lab.host(HostEvent::Unmap(VmId::FIRST, GfnRange { start: Gfn::new(gfn), frames }));
        }
        Step::DirtyLog(on) => lab.host(HostEvent::DirtyLog(VmId::FIRST, on)),
        Step::DirtyRound => lab.host(HostEvent::DirtyRound(VmId::FIRST)),
        Step::SlotChange => lab.host(HostEvent::SlotChange(VmId::FIRST)),
        Step::Limit(pages) => lab.host(HostEvent::ShadowPageLimit(VmId::FIRST, pages)),
    }
}

fn memories() -> impl Strategy<Value = Memory> {
    let sizes = || prop_oneof![Just(PageSize::Size4K), Just(PageSize::Size2M)];
    (sizes(), sizes()).prop_map(|(host_page, direct_map)| Memory { frames: 2048, host_page, direct_map })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_access_agrees_with_the_tables_of_that_moment(
        memory in memories(),
        propagate: bool,
        tagged: bool,
        steps in prop::collection::vec(step(), 1..250),
    ) {
        let on_store = if propagate { OnStore::Propagate } else { OnStore::Zap };
        let mut lab = lab(memory, on_store, if tagged { Tags::On } else { Tags::Off });
        for (i, step) in steps.iter().enumerate() {
            run(&mut lab, step);
            if i % 16 == 0 {
                lab.audit();
            }
        }
        lab.audit();
    }
}
