//! The seven ways in which a hypervisor that listens to INVLPG alone goes wrong: in each the oracle refuses what such a
//! hypervisor would do, and permits it up to the flush. Source: the failures of the naive policy, and Intel SDM volume 3,
//! section 4.10.4, for what each flush covers.

mod support;

use memvirt_addr::Gva;
use memvirt_ops::arch::{Control, CrWrite, Invpcid, Pcid};
use memvirt_oracle::{BitsVerdict, FaultRule, FaultVerdict, Oracle, Verdict};
use support::{V0, V1, World, read, write};

const P: u64 = 0x21;
const W: u64 = 0x2;
const G: u64 = 0x100;
const OLD: u64 = 50;
const NEW: u64 = 60;

/// Roots in frames 1 and 2, one path of tables below each: 1 -> 11 -> 12 -> 13, 2 -> 21 -> 22 -> 23. Page 0 of each lies in
/// frame `OLD`, writable; root 1 is loaded on all vCPUs.
fn world(vcpus: u16) -> World {
    let mut world = World::new(vcpus);
    for root in [1u64, 2] {
        let tables = [root, 10 * root + 1, 10 * root + 2, 10 * root + 3, OLD];
        for pair in tables.windows(2) {
            world.set(pair[0], 0, pair[1] << 12 | P | W | 0x40);
        }
    }
    for v in 0..vcpus {
        world.load_cr3(memvirt_ops::VcpuId(v), 1);
    }
    assert_eq!(world.judge(V0, write(0), OLD), Verdict::Fresh);
    world
}

#[test]
fn way_1_a_cr3_load_flushes() {
    let mut world = world(1);
    world.set(13, 0, OLD << 12 | P); // copy on write: W is revoked
    assert_eq!(world.judge(V0, write(0), OLD), Verdict::Allowed, "no flush yet");
    world.load_cr3(V0, 1);
    assert_eq!(world.judge(V0, write(0), OLD), Verdict::Broken, "parent and child would share the page");
    assert_eq!(world.judge(V0, read(0), OLD), Verdict::Fresh);
    for flush in [Control::Cr(CrWrite::TogglePge), Control::Invpcid(Invpcid::AllGlobal), Control::Invpcid(Invpcid::All)]
    {
        world.set(13, 0, NEW << 12 | P | W);
        assert_eq!(world.judge(V0, write(0), NEW), Verdict::Fresh);
        world.set(13, 0, OLD << 12 | P | W);
        assert_eq!(world.judge(V0, read(0), NEW), Verdict::Allowed);
        world.control(V0, flush);
        assert_eq!(world.judge(V0, read(0), NEW), Verdict::Broken, "{flush:?}");
    }
}

#[test]
fn way_2_tables_edited_while_away_are_read_again() {
    let mut world = world(1);
    world.load_cr3(V0, 2);
    world.set(13, 0, NEW << 12 | P | W);
    world.load_cr3(V0, 1);
    assert_eq!(world.judge(V0, read(0), OLD), Verdict::Broken);
    assert_eq!(world.judge(V0, read(0), NEW), Verdict::Fresh);
}

#[test]
fn way_3_one_table_many_mappings() {
    let mut world = world(1);
    world.set(22, 0, 13 << 12 | P | W); // both roots share leaf table 13
    world.load_cr3(V0, 1);
    world.set(13, 0, NEW << 12 | P | W);
    world.control(V0, Control::Invlpg(Gva::new(0)));
    world.load_cr3(V0, 2);
    assert_eq!(world.judge(V0, read(0), OLD), Verdict::Broken, "a shadow kept for the other root");

    // A global page, cached under one PCID, dropped by INVLPG under another.
    world.set(13, 0, OLD << 12 | P | W | G);
    world.control(V0, Control::Cr(CrWrite::TogglePge));
    world.control(V0, Control::Cr(CrWrite::PcidEnable(true)));
    world.load_cr3_pcid(V0, 1, 1, false);
    assert_eq!(world.judge(V0, read(0), OLD), Verdict::Fresh);
    world.load_cr3_pcid(V0, 2, 2, false);
    world.set(13, 0, NEW << 12 | P | W | G);
    assert_eq!(world.judge(V0, read(0), OLD), Verdict::Allowed, "global entries survive CR3 loads");
    world.control(V0, Control::Invlpg(Gva::new(0)));
    world.load_cr3_pcid(V0, 1, 1, true);
    assert_eq!(world.judge(V0, read(0), OLD), Verdict::Broken, "INVLPG drops global entries of all PCIDs");
}

#[test]
fn way_4_upper_entries_and_mappings_made_without_a_flush() {
    let mut world = world(1);
    world.set(12, 0, 0); // the PDE goes
    world.control(V0, Control::Invlpg(Gva::new(0)));
    assert_eq!(world.judge(V0, read(0), OLD), Verdict::Broken);
    assert_eq!(world.judge_fault(V0, read(0), 0), FaultVerdict::Justified);
    world.set(23, 0, NEW << 12 | P | W);
    world.set(12, 0, 23 << 12 | P | W); // another table: no flush is needed for np -> present
    assert_eq!(world.judge(V0, read(0), OLD), Verdict::Broken, "a child link kept in the shadow");
    assert_eq!(world.judge(V0, read(0), NEW), Verdict::Fresh);

    // The same at the leaf, flushed lazily under another root.
    world.set(23, 0, 0);
    world.load_cr3(V0, 2);
    world.load_cr3(V0, 1);
    world.set(23, 0, OLD << 12 | P | W);
    assert_eq!(world.judge(V0, read(0), NEW), Verdict::Broken);
}

#[test]
fn way_5_a_table_freed_and_used_again() {
    let mut world = world(1);
    world.set(12, 0, 0);
    world.load_cr3(V0, 1);
    world.set(13, 0, NEW << 12 | P | W); // as data, or as somebody else's table
    world.set(13, 0, 70 << 12 | P | W);
    world.set(12, 0, 13 << 12 | P | W);
    assert_eq!(world.judge(V0, read(0), 70), Verdict::Fresh);
    assert_eq!(world.judge(V0, read(0), OLD), Verdict::Broken, "contents from before the flush");
    assert_eq!(world.judge(V0, read(0), NEW), Verdict::Broken, "contents while no entry pointed to it");
}

#[test]
fn way_6_accessed_and_dirty_bits_cleared_and_flushed() {
    let mut world = world(1);
    world.set(13, 0, OLD << 12 | P | W);
    world.load_cr3(V0, 1);
    assert_eq!(
        world.judge_bits(V0, write(0)),
        BitsVerdict::DirtyLost,
        "nothing excuses a clear dirty bit after a store"
    );
    world.hardware_sets(13, 0, 0x40);
    assert_eq!(world.judge_bits(V0, write(0)), BitsVerdict::Set);
    world.set(13, 0, OLD << 12 | (P & !0x20) | W);
    assert_eq!(world.judge_bits(V0, read(0)), BitsVerdict::Excused, "a cached translation need not set it again");
    world.load_cr3(V0, 1);
    assert_eq!(world.judge_bits(V0, read(0)), BitsVerdict::AccessedLost, "the walk after the flush has to");
    world.hardware_sets(13, 0, 0x20);
    assert_eq!(world.judge_bits(V0, read(0)), BitsVerdict::Set);
    // np -> present with A clear: nothing can be cached, so nothing excuses.
    world.set(13, 0, 0);
    world.fault(V0, 0, 0);
    world.set(13, 0, OLD << 12 | 3);
    assert_eq!(world.judge_bits(V0, read(0)), BitsVerdict::AccessedLost);
}

#[test]
fn way_6_a_small_page_outlives_what_drops_its_neighbour_of_the_large_one() {
    const LARGE: u64 = 0x200;
    for neighbour in [World::invlpg_neighbour, World::fault_at_neighbour] {
        let mut world = world(1);
        world.set(13, 0, LARGE << 12 | P | W | 0x40);
        world.load_cr3(V0, 1);
        world.set(12, 0, LARGE << 12 | (P & !0x20) | W | 0x80); // the same frame, now in a page of 2 MiB
        neighbour(&mut world);
        assert_eq!(world.judge_bits(V0, write(0)), BitsVerdict::Excused, "the page of 4 KiB may still be cached");
        world.control(V0, Control::Invlpg(Gva::new(0)));
        assert_eq!(world.judge_bits(V0, write(0)), BitsVerdict::AccessedLost);
    }
    let mut world = world(1);
    world.set(12, 0, LARGE << 12 | P | W | 0xc0);
    world.load_cr3(V0, 1);
    world.set(12, 0, LARGE << 12 | (P & !0x20) | W | 0x80);
    world.invlpg_neighbour();
    assert_eq!(world.judge_bits(V0, write(0)), BitsVerdict::AccessedLost, "of the large page itself all pieces went");
}

#[test]
fn way_7_every_processor_flushes_for_itself() {
    let mut world = world(2);
    world.set(13, 0, NEW << 12 | P | W);
    world.control(V0, Control::Invlpg(Gva::new(0)));
    assert_eq!(world.judge(V0, read(0), OLD), Verdict::Broken);
    assert_eq!(world.judge(V1, read(0), OLD), Verdict::Allowed, "the shootdown has not reached it");
    world.control(V1, Control::Invlpg(Gva::new(0x800)));
    assert_eq!(world.judge(V1, read(0), OLD), Verdict::Broken);
}

#[test]
fn upgrades_need_no_flush_and_faults_follow_the_current_tables() {
    let mut world = world(1);
    world.set(13, 1, 0);
    assert_eq!(world.judge_fault(V0, read(0x1000), 0), FaultVerdict::Justified);
    assert!(
        matches!(world.judge_fault(V0, read(0x1000), 1), FaultVerdict::Unjustified { expected: Some(code) } if code.bits() == 0)
    );
    world.set(13, 1, NEW << 12 | P);
    assert_eq!(world.judge_fault(V0, read(0x1000), 0), FaultVerdict::Unjustified { expected: None });
    assert_eq!(world.judge_fault(V0, write(0x1000), 3), FaultVerdict::Justified);
    world.set(13, 1, NEW << 12 | P | W);
    assert_eq!(world.judge_fault(V0, write(0x1000), 3), FaultVerdict::Unjustified { expected: None });
    world.set(11, 0, 12 << 12 | P | W | 0x80 | 0x2000); // a 1 GiB page at an address that is none
    assert_eq!(world.judge_fault(V0, read(0x1000), 9), FaultVerdict::Justified);
}

#[test]
fn the_host_side_is_never_stale() {
    let mut world = world(1);
    world.gone.push(OLD);
    assert_eq!(world.judge(V0, read(0), OLD), Verdict::Broken);
}

#[test]
fn invlpg_ends_upper_staleness_everywhere_but_leaves_translations_of_other_pages() {
    let mut world = world(1);
    world.set(13, 1, OLD << 12 | P | W);
    world.set(23, 1, NEW << 12 | P | W);
    world.set(12, 0, 23 << 12 | P | W); // the PDE now points elsewhere
    assert_eq!(world.judge(V0, read(0x1000), OLD), Verdict::Allowed);
    world.control(V0, Control::Invlpg(Gva::new(0)));
    assert_eq!(world.judge(V0, read(0x1000), OLD), Verdict::Allowed, "page 1 itself may have been cached");
    world.set(13, 1, 70 << 12 | P | W);
    assert_eq!(
        world.judge(V0, read(0x1000), 70),
        Verdict::Broken,
        "the old PDE is no longer cached when this is stored"
    );
    world.control(V0, Control::Invpcid(Invpcid::Address(Pcid::ZERO, Gva::new(0x1000))));
    assert_eq!(world.judge(V0, read(0x1000), OLD), Verdict::Broken);
}

#[test]
fn a_fault_ends_staleness_for_kvm_only_where_something_was_present() {
    for (rule, code, verdict) in [
        (FaultRule::Architecture, 2, Verdict::Broken),
        (FaultRule::Architecture, 3, Verdict::Broken),
        (FaultRule::Kvm, 2, Verdict::Allowed),
        (FaultRule::Kvm, 3, Verdict::Broken),
        (FaultRule::Kvm, 11, Verdict::Allowed),
    ] {
        let mut world = world(1);
        world.oracle = Oracle::new(1).with_fault_rule(rule);
        world.load_cr3(V0, 1);
        world.set(13, 0, 0);
        world.fault(V0, 0, code);
        assert_eq!(world.judge(V0, read(0), OLD), verdict, "{rule:?}, code {code}");
    }
}

#[test]
fn invlpg_drops_all_of_a_large_page_but_only_a_piece_of_one_that_is_gone() {
    let mut world = world(1);
    let large = |frame: u64| frame << 12 | P | W | 0x80;
    world.set(12, 0, large(0x400));
    assert_eq!(world.judge(V0, read(0x5000), 0x405), Verdict::Fresh);
    world.set(12, 0, large(0x600));
    world.control(V0, Control::Invlpg(Gva::new(0)));
    assert_eq!(world.judge(V0, read(0x5000), 0x405), Verdict::Broken, "one INVLPG for the whole page");

    world.set(13, 5, NEW << 12 | P | W);
    world.set(12, 0, 13 << 12 | P | W);
    world.control(V0, Control::Invlpg(Gva::new(0)));
    assert_eq!(world.judge(V0, read(0x5000), 0x605), Verdict::Allowed, "a piece of the large page that was");
    assert_eq!(world.judge(V0, read(0), 0x600), Verdict::Broken);
}
