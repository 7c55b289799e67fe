//! The structure stays whole under any sequence of operations, and synced tables never grant what the guest's do not.

use memvirt_addr::{Gpa, Gva, PageSize};
use memvirt_ops::VmId;
use memvirt_ops::arch::{Control, Cr3, CrWrite, HostEvent, Invpcid, Pcid, StoreOp, Width};
use memvirt_platform::{Tags, Vendor};
use memvirt_shadow::kvm::{Kernel, KvmConfig};
use proptest::prelude::*;

use crate::guest::{Inspect, Machine, machine};
use memvirt_testkit::op::{
    A, D, Op, P, PD_A, PD_B, PDPT_A, PDPT_B, PML4A, PML4B, PT_A, PT_A1, PT_B, S, U, W, dm, e, f, frames, mov, v,
};

/// One step of a random run.
#[derive(Clone, Debug)]
enum Step {
    /// What the vCPU with this number does.
    Guest(u16, Op),
    Host(HostEvent),
}

const ROOTS: [u64; 5] = [PML4A, PML4B, 0x4_0000, 0x4_1000, 0x4_2000];
const TABLES: [u64; 7] = [PT_A, PT_A1, PT_B, PD_A, PD_B, PDPT_A, PDPT_B];

/// An address in the test region: one of two slots of each level, one of 16 pages, also in the 2 MiB pages.
fn address() -> impl Strategy<Value = u64> {
    (0u64..2, 0u64..4, 0u64..16).prop_map(|(gib, region, page)| v(gib << 18 | region << 9 | page))
}

/// An entry: a data page, a large page, a table or nothing, with any rights.
fn value() -> impl Strategy<Value = u64> {
    let bits =
        (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(write, user, accessed, dirty)| {
            let pick = |on: bool, bit: u64| if on { bit } else { 0 };
            P | pick(write, W) | pick(user, U) | pick(accessed, A) | pick(dirty, D)
        });
    prop_oneof![
        Just(0),
        (0u64..32, bits.clone()).prop_map(|(n, bits)| f(n) | bits),
        (prop::sample::select(&TABLES[..]), bits.clone()).prop_map(|(table, bits)| table | bits),
        (0u64..2, bits).prop_map(|(n, bits)| (0x200_0000 + (n << 21)) | bits | S),
        Just(0x4000_0000 | P | W | A | D),
    ]
}

fn store() -> impl Strategy<Value = Op> {
    let entry = (prop::sample::select(&TABLES[..]), 0u64..16);
    let wide = (entry.clone(), value()).prop_map(|((table, i), value)| Op::Wr(dm(e(table, i)), mov(Width::B8, value)));
    let clear = (entry.clone(), prop::sample::select(&[A, D, W][..]))
        .prop_map(|((table, i), bits)| Op::Wr(dm(e(table, i)), StoreOp::And { mask: !bits }));
    let part = (entry.clone(), 0u64..7, prop::sample::select(&[Width::B1, Width::B2][..]))
        .prop_map(|((table, i), byte, width)| Op::Wr(dm(e(table, i) + byte), mov(width, 0)));
    let other = (entry, 1u16..20, any::<bool>()).prop_map(|((table, i), count, vector)| {
        let op = if vector { StoreOp::Vector } else { StoreOp::RepStos { value: 0, count } };
        Op::Wr(dm(e(table, i & !1)), op)
    });
    let root = (0usize..5, 1u64..3, prop::sample::select(&[PDPT_A, PDPT_B, 0][..])).prop_map(|(root, i, table)| {
        Op::Wr(dm(e(ROOTS[root], i)), mov(Width::B8, if table == 0 { 0 } else { table | P | W | U | A }))
    });
    prop_oneof![8 => wide, 3 => clear, 1 => part, 1 => other, 1 => root]
}

fn control() -> impl Strategy<Value = Op> {
    let pcid = (0u16..3).prop_map(|number| Pcid::try_new(number).unwrap());
    let cr3 = (prop::sample::select(&ROOTS[..]), pcid.clone(), any::<bool>())
        .prop_map(|(root, pcid, keep)| Control::Cr3(Cr3 { root: Gpa::new(root), pcid, keep }));
    let invpcid = (pcid, address(), 0..4).prop_map(|(pcid, at, kind)| {
        Control::Invpcid(match kind {
            0 => Invpcid::Address(pcid, Gva::new(at)),
            1 => Invpcid::Single(pcid),
            2 => Invpcid::AllGlobal,
            _ => Invpcid::All,
        })
    });
    prop_oneof![
        8 => cr3,
        6 => address().prop_map(|at| Control::Invlpg(Gva::new(at))),
        2 => Just(Control::Cr(CrWrite::TogglePge)),
        1 => any::<bool>().prop_map(|on| Control::Cr(CrWrite::WriteProtect(on))),
        1 => any::<bool>().prop_map(|on| Control::Cr(CrWrite::PcidEnable(on))),
        2 => invpcid,
    ]
    .prop_map(Op::Do)
}

fn host() -> impl Strategy<Value = HostEvent> {
    let vm = VmId::FIRST;
    prop_oneof![
        (0u64..40, 1u64..8).prop_map(move |(n, count)| HostEvent::Unmap(vm, frames(f(n), count << 12))),
        (0u64..0x40).prop_map(move |n| HostEvent::Unmap(vm, frames(PDPT_A + (n << 12), 0x1000))),
        (8u64..40).prop_map(move |n| HostEvent::Discard(vm, frames(f(n), 0x2000))),
        any::<bool>().prop_map(move |on| HostEvent::DirtyLog(vm, on)),
        Just(HostEvent::DirtyRound(vm)),
        Just(HostEvent::SlotChange(vm)),
        Just(HostEvent::ShadowPageLimit(vm, 64)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let access = (address(), any::<bool>())
        .prop_map(|(at, write)| if write { Op::Wr(at + 8, mov(Width::B8, 7)) } else { Op::Rds(at, 1) });
    prop_oneof![
        10 => (0u16..2, access).prop_map(|(vcpu, op)| Step::Guest(vcpu, op)),
        10 => (0u16..2, store()).prop_map(|(vcpu, op)| Step::Guest(vcpu, op)),
        6 => (0u16..2, control()).prop_map(|(vcpu, op)| Step::Guest(vcpu, op)),
        1 => host().prop_map(Step::Host),
    ]
}

fn booted(config: KvmConfig, host_pages: PageSize, vcpus: u16, tags: Tags) -> Machine {
    let mut machine = machine(config, host_pages, vcpus, tags);
    machine.boot();
    if vcpus > 1 {
        machine.start(1);
    }
    for (t, table) in (0..).zip([PT_A, PT_A1, PT_B]) {
        (0..16).for_each(|i| machine.set(e(table, i), f((7 * t + i) % 32) | P | W | A | D));
    }
    for root in &ROOTS[2..] {
        (0..512).for_each(|i| machine.set(e(*root, i), machine.show(e(PML4A, i))));
    }
    machine.set(e(PD_A, 2), 0x200_0000 | P | W | U | A | D | S);
    machine.set(e(PD_A, 3), 0x220_0000 | P | W | U | A | S);
    machine
}

fn run(config: KvmConfig, host_pages: PageSize, vcpus: u16, tags: Tags, steps: &[Step]) {
    let mut machine = booted(config, host_pages, vcpus, tags);
    for step in steps {
        match step {
            Step::Guest(vcpu, op) => {
                machine.switch_to(vcpu % vcpus);
                machine.run(*op);
            }
            Step::Host(event) => machine.host(*event),
        }
        machine.check();
        machine.check_against_guest();
        let stats = machine.stats();
        assert!(machine.kvm().used_pages() <= machine.kvm().max_pages() + 4);
        assert!(stats.pf_taken >= stats.pf_fixed + stats.pf_emulate + stats.pf_spurious + stats.pf_guest);
        assert_eq!(stats.exits, machine.ledger.counters.total_exits());
    }
}

proptest! {
    #![proptest_config(memvirt_properties::cases(24))]

    #[test]
    fn the_structure_stays_whole(
        newer: bool, vmx: bool, large: bool, vcpus in 1u16..3, tagged: bool, steps in prop::collection::vec(step(), 1..250),
    ) {
        let kernel = if newer { Kernel::V6_12 } else { Kernel::V6_1 };
        let vendor = if vmx { Vendor::Vmx } else { Vendor::Svm };
        let tags = if tagged { Tags::On } else { Tags::Off };
        let host_pages = if large { PageSize::Size2M } else { PageSize::Size4K };
        run(KvmConfig::new(kernel, vendor), host_pages, vcpus, tags, &steps);
    }
}
