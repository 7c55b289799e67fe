//! Rules that the random recordings do not tell apart (spec F): take one away, and no recorded row changes.
//!
//! Each has a scenario here whose counters follow from the mechanism; without the rule, a counter differs.

use memvirt_addr::{AccessKind, PageSize};
use memvirt_ops::VmId;
use memvirt_ops::arch::{Control, CrWrite, HostEvent};
use memvirt_platform::{Tags, Vendor};
use memvirt_shadow::kvm::{Kernel, KvmConfig};

use crate::guest::{Inspect, Scenario, machine, scenario};
use memvirt_testkit::op::{
    A, D, Op, P, PD_A, PDPT_A, PML4A, PML4B, PT_A, PT_A1, PT_B, PWAD, PWUA, U, W, cr3, e, f, frames, invlpg, movups,
    pte, rd, v, wr,
};

/// Some more roots: copies of the first.
fn add_roots(s: &mut Scenario) -> [u64; 4] {
    let roots = [0x4_0000, 0x4_1000, 0x4_2000, 0x4_3000];
    for root in roots {
        (0..512).for_each(|i| s.set(e(root, i), s.machine.show(e(PML4A, i))));
    }
    roots
}

/// Runs operations of which nothing is asserted.
fn run(s: &mut Scenario, ops: &[Op]) {
    ops.iter().for_each(|op| s.machine.run(*op));
}

#[test]
fn finding_a_page_in_the_hash_clears_its_flooding_count() {
    const EXPECTED: &str = "
        third store to PML4B, whose page was found again after the second : exits=1 pf_taken=1 pf_emulate=1 insn_emulation=1 mmu_pte_write=1 mmu_pde_zapped=1
        ";
    scenario(EXPECTED, |s| {
        let roots = add_roots(s);
        run(s, &[cr3(PML4B), cr3(PML4A)]);
        run(s, &roots.map(cr3));
        run(s, &[pte(PML4B, 5, PDPT_A | PWUA), pte(PML4B, 6, PDPT_A | PWUA)]);
        run(s, &[cr3(PML4B), cr3(PML4A)]);
        s.line(&[pte(PML4B, 7, PDPT_A | PWUA)]);
    });
}

#[test]
fn switching_to_a_cached_root_clears_its_flooding_count() {
    const EXPECTED: &str = "
        third store to PML4B, which was the root after the second : exits=1 pf_taken=1 pf_emulate=1 insn_emulation=1 mmu_pte_write=1 mmu_pde_zapped=1
        ";
    scenario(EXPECTED, |s| {
        run(s, &[cr3(PML4B), cr3(PML4A)]);
        run(s, &[pte(PML4B, 5, PDPT_A | PWUA), pte(PML4B, 6, PDPT_A | PWUA)]);
        run(s, &[cr3(PML4B), cr3(PML4A)]);
        s.line(&[pte(PML4B, 7, PDPT_A | PWUA)]);
    });
}

/// The first store finds no leaf for the alias: it gets one, read-only, and its neighbours with it, before the store is
/// emulated. The alias is reached through the root itself, so stores to the root never flood it.
#[test]
fn a_store_through_a_page_clears_its_flooding_count() {
    const EXPECTED: &str = "
        first store, no leaf for the alias : exits=1 pf_taken=1 pf_emulate=1 insn_emulation=1 mmu_pte_write=1 mmu_pde_zapped=1 pages_4k=8
        second : exits=1 pf_taken=1 pf_emulate=1 insn_emulation=1 mmu_pte_write=1 mmu_pde_zapped=1
        third : exits=1 pf_taken=1 pf_emulate=1 insn_emulation=1 mmu_pte_write=1 mmu_pde_zapped=1
        fourth : exits=1 pf_taken=1 pf_emulate=1 insn_emulation=1 mmu_pte_write=1 mmu_pde_zapped=1
        ";
    scenario(EXPECTED, |s| {
        s.lines(&[5, 6, 7, 8].map(|i| pte(PML4A, i, PDPT_A | PWUA)));
        assert_eq!(s.machine.show(e(PML4A, 8)), PDPT_A | PWUA);
    });
}

#[test]
fn unsync_pages_below_a_table_are_synced_before_it_is_linked_again() {
    const EXPECTED: &str = "
        use the upper table again : exits=1 pf_taken=1 pf_fixed=1 tlb_flush=1 mmu_unsync=-1 remote_tlb_flush_requests=2 max_mmu_rmap_size=1
        ";
    scenario(EXPECTED, |s| {
        (0..8).for_each(|i| s.set(e(PT_A, i), f(i) | PWAD));
        run(s, &[rd(v(0)), pte(PT_A, 0, f(3) | PWAD), pte(PDPT_A, 0, PD_A | PWUA)]);
        s.line(&[rd(v(0))]);
        run(s, &[pte(PT_A, 0, f(4) | PWAD)]);
        assert_eq!(s.machine.stats().mmu_unsync, 1, "it was in sync, and write-protected");
    });
}

#[test]
fn invlpg_reaches_the_third_previous_root() {
    const EXPECTED: &str = "
        INVLPG : exits=1 tlb_flush=1 invlpg=1 insn_emulation=1 remote_tlb_flush_requests=1
        6.12 : exits=1 tlb_flush=1 invlpg=1 insn_emulation=1 pages_4k=-1 remote_tlb_flush_requests=1
        INVLPG once the root is forgotten : exits=1 invlpg=1 insn_emulation=1
        ";
    scenario(EXPECTED, |s| {
        let roots = add_roots(s);
        roots.into_iter().for_each(|root| s.set(e(root, 1), 0));
        (0..8).for_each(|i| s.set(e(PT_A, i), f(i) | PWAD));
        run(s, &[rd(v(0)), cr3(roots[0]), cr3(roots[1]), cr3(roots[2]), pte(PT_A, 0, f(9) | PWAD)]);
        s.line(&[invlpg(v(0))]);
        run(s, &[cr3(roots[3]), pte(PT_A, 1, f(9) | PWAD)]);
        s.line(&[invlpg(v(1))]);
    });
}

#[test]
fn the_user_bit_is_part_of_the_role() {
    const EXPECTED: &str = "
        the same table for the supervisor only : exits=1 pf_taken=1 pf_fixed=1 mmu_cache_miss=1 pages_4k=8 max_mmu_rmap_size=1
        ";
    scenario(EXPECTED, |s| {
        (0..8).for_each(|i| s.set(e(PT_A, i), f(8 + i) | PWAD | U));
        s.set(e(PD_A, 1), PT_A | P | W | A);
        run(s, &[rd(v(0))]);
        s.line(&[rd(v(512))]);
    });
}

/// Root, PDPT and PD take three of the 16 places of a batch, so 20 tables are synced 13 and 7 at a time. Each batch asks for a
/// flush when it write-protects; what the first batch changed is flushed with the second's request; what the second changed
/// is flushed at the end (Linux 6.12 changes nothing in the second).
#[test]
fn a_sync_goes_in_batches_of_sixteen() {
    const EXPECTED: &str = "
        CR3 with 20 unsync tables : exits=1 tlb_flush=1 insn_emulation=1 mmu_unsync=-20 pages_4k=-1 remote_tlb_flush_requests=3
        6.12 : exits=1 tlb_flush=1 insn_emulation=1 mmu_unsync=-20 pages_4k=-1 remote_tlb_flush_requests=2
        ";
    scenario(EXPECTED, |s| {
        let table = |i: u64| 0x60_0000 + (i << 12);
        for i in 0..20 {
            s.set(table(i), f(0) | PWAD);
            s.set(e(PD_A, i), table(i) | PWUA);
        }
        for i in 0..20 {
            run(s, &[rd(v(512 * i)), pte(table(i), 100, f(1) | PWAD)]);
        }
        run(s, &[pte(table(0), 0, f(1) | PWAD)]);
        assert_eq!(s.machine.stats().mmu_unsync, 20);
        s.line(&[cr3(PML4A)]);
    });
}

#[test]
fn a_prefetched_alias_of_a_table_is_writable_only_if_the_table_is_unsync() {
    const EXPECTED: &str = "
        prefetch the alias of a synced table : exits=1 pf_taken=1 pf_fixed=1 pages_4k=2 mmu_cache_miss=3 tlb_flush=1 remote_tlb_flush_requests=3
        store through it : exits=1 pf_taken=1 pf_fixed=1 mmu_unsync=1
        prefetch another alias of the table, unsync now : exits=1 pf_taken=1 pf_fixed=1 pages_4k=2 max_mmu_rmap_size=1
        store through that :
        ";
    scenario(EXPECTED, |s| {
        (0..8).for_each(|i| s.set(e(PT_B, i), f(8 + i) | PWAD));
        for (table, i) in [(PT_A1, 0), (PT_A1, 8)] {
            s.set(e(table, i), f(40) | PWAD);
            s.set(e(table, i + 1), PT_B | PWAD);
        }
        run(s, &[cr3(PML4B), rd(v(0)), cr3(PML4A)]);
        s.lines(&[rd(v(512)), wr(v(513) + 8 * 20, 0), rd(v(520)), wr(v(521) + 8 * 21, 0)]);
    });
}

#[test]
fn an_instruction_that_was_retried_in_vain_is_emulated() {
    const EXPECTED: &str = "
        same instruction, same address : exits=1 pf_taken=1 pf_emulate=1 tlb_flush=1 insn_emulation=1 mmu_shadow_zapped=1 mmu_pte_write=1 mmu_flooded=1 remote_tlb_flush_requests=1
        once more : exits=2 pf_taken=2 pf_fixed=1 pf_emulate=1 tlb_flush=1 insn_emulation=1 mmu_shadow_zapped=1 remote_tlb_flush_requests=1
        6.12 : exits=1 pf_taken=1 pf_emulate=1 tlb_flush=1 insn_emulation=1 mmu_shadow_zapped=1 mmu_pte_write=1 mmu_flooded=1 remote_tlb_flush_requests=1
        another address : exits=2 pf_taken=2 pf_fixed=1 pf_emulate=1 tlb_flush=1 insn_emulation=1 mmu_shadow_zapped=1 remote_tlb_flush_requests=1
        ";
    scenario(EXPECTED, |s| {
        (0..8).for_each(|i| s.set(e(PT_A, i), f(i) | PWAD));
        run(s, &[rd(v(0)), movups(PD_A, 8), rd(v(0))]);
        s.line(&[movups(PD_A, 8)]);
        run(s, &[rd(v(0))]);
        s.line(&[movups(PD_A, 8)]);
        run(s, &[rd(v(0))]);
        s.line(&[movups(PD_A, 10)]);
    });
}

#[test]
fn accessed_bits_set_by_kvm_make_the_table_dirty() {
    scenario("", |s| {
        s.set(PT_A, f(0) | P | W);
        s.machine.host(HostEvent::DirtyLog(VmId::FIRST, true));
        run(s, &[rd(v(0))]);
        s.machine.host(HostEvent::DirtyRound(VmId::FIRST));
        let dirty: Vec<_> = s.machine.kvm().dirty_frames().map(|gfn| gfn.base().as_u64()).collect();
        assert_eq!(dirty, [PT_A], "the page itself is clean and read-only");
    });
}

/// Ten tables and the root; the root, still held, goes for good when the vCPU lets go of it.
#[test]
fn a_changed_memory_slot_makes_every_page_obsolete() {
    const EXPECTED: &str = "
        the slot changes : exits=-1 mmu_shadow_zapped=11 pages_4k=-32 remote_tlb_flush_requests=1
        read : exits=2 pf_taken=2 pf_fixed=2 tlb_flush=1 mmu_shadow_zapped=1 mmu_cache_miss=7 pages_4k=16 remote_tlb_flush_requests=1
        ";
    scenario(EXPECTED, |s| {
        (0..8).for_each(|i| s.set(e(PT_A, i), f(i) | PWAD));
        run(s, &[rd(v(0))]);
        s.host_line(HostEvent::SlotChange(VmId::FIRST));
        s.line(&[rd(v(0))]);
        assert_eq!(s.machine.kvm().used_pages(), 7);
    });
}

/// The page belongs to the supervisor while it is writable, and to the user, read-only, once the user has read it.
#[test]
fn without_cr0_wp_a_read_only_user_page_changes_hands() {
    scenario("", |s| {
        s.set(PT_A, f(0) | P | U | A | D);
        let faults = |s: &Scenario| (s.machine.stats().pf_fixed, s.machine.stats().pf_guest);
        run(s, &[Op::Do(Control::Cr(CrWrite::WriteProtect(false))), wr(v(0), 1)]);
        let (fixed, reflected) = faults(s);
        run(s, &[wr(v(0), 2)]);
        assert_eq!(faults(s), (fixed, reflected), "the supervisor's own");
        assert!(s.machine.user(v(0), AccessKind::Read));
        assert_eq!(faults(s), (fixed + 1, reflected), "the user's, read-only");
        assert!(!s.machine.user(v(0), AccessKind::Write));
        assert_eq!(faults(s), (fixed + 1, reflected + 1));
        run(s, &[wr(v(0), 3)]);
        assert_eq!(faults(s), (fixed + 2, reflected + 1));
        assert_eq!(s.machine.show(f(0)), 3);
    });
}

/// A flush asked for by one vCPU interrupts the other, which serves the request at its next entry.
#[test]
fn a_remote_flush_reaches_the_other_vcpu() {
    let mut machine = machine(KvmConfig::new(Kernel::V6_1, Vendor::Vmx), PageSize::Size4K, 2, Tags::On);
    machine.boot();
    machine.start(1);
    (0..8).for_each(|i| machine.set(e(PT_A, i), f(i) | PWAD));
    machine.run(rd(v(0)));
    machine.switch_to(0);
    machine.run(pte(PT_A, 0, f(9) | PWAD));
    let before = machine.stats();
    machine.run(invlpg(v(0)));
    let after = machine.stats();
    assert_eq!(after.remote_tlb_flush - before.remote_tlb_flush, 1);
    assert_eq!(after.tlb_flush - before.tlb_flush, 1, "vCPU 0 has served it");
    machine.switch_to(1);
    machine.run(rd(v(1)));
    assert_eq!(machine.stats().tlb_flush - after.tlb_flush, 1, "and now vCPU 1");
    assert_eq!(machine.stats().pf_taken, after.pf_taken, "the shadow pages are shared");
    machine.check();
}

/// Adding the 1002nd leaf finds 1001: all go, the new one with them, and the access faults once more. That fault also prefetches
/// the neighbour just lost.
#[test]
fn a_frame_that_is_mapped_too_often_loses_all_its_leaves() {
    scenario("", |s| {
        let table = |i: u64| 0x60_0000 + (i << 12);
        for page in 0..1024 {
            s.set(e(table(page / 512), page % 512), f(100) | P);
        }
        (0..2).for_each(|i| s.set(e(PD_A, i), table(i) | PWUA));
        run(s, &[rd(v(0)), rd(v(512))]);
        let before = s.machine.stats();
        run(s, &(1..1024).filter(|page| *page != 512).map(|page| rd(v(page))).collect::<Vec<_>>());
        let after = s.machine.stats();
        assert_eq!(after.pf_fixed - before.pf_fixed, 1022 + 1);
        assert_eq!(after.remote_tlb_flush_requests - before.remote_tlb_flush_requests, 1);
        assert_eq!(after.max_mmu_rmap_size, 1001);
        assert_eq!(before.pages_4k + 1022 - after.pages_4k, 1002 - 2);
        s.machine.check();
    });
}

#[test]
fn a_page_that_the_host_took_away_is_not_reached_through_the_tlb() {
    let mut machine = machine(KvmConfig::new(Kernel::V6_12, Vendor::Vmx), PageSize::Size4K, 1, Tags::On);
    machine.boot();
    machine.set(PT_A, f(0) | PWAD);
    machine.run(rd(v(0)));
    let before = machine.stats();
    machine.run(rd(v(0)));
    assert_eq!(machine.stats().pf_taken, before.pf_taken, "tagged translations survive the marker");
    machine.host(HostEvent::Unmap(VmId::FIRST, frames(f(0), 0x1000)));
    machine.run(rd(v(0)));
    assert_eq!(machine.stats().pf_fixed, before.pf_fixed + 1);
}

#[test]
fn an_mmio_entry_of_an_older_memory_layout_is_made_anew() {
    const EXPECTED: &str = "
        read after a change of the slot : exits=1 pf_taken=1 pf_emulate=1 insn_emulation=1 mmio_exits=1 pf_mmio_spte_created=1 tlb_flush=1
        read : exits=1 insn_emulation=1 mmio_exits=1
        ";
    scenario(EXPECTED, |s| {
        s.set(PT_A, 0x4000_0000 | PWAD);
        run(s, &[rd(v(0))]);
        s.machine.host(HostEvent::DirtyLog(VmId::FIRST, true));
        s.lines(&[rd(v(0)), rd(v(0))]);
    });
}
