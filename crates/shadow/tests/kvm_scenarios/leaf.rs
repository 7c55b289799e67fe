//! Scenarios of leaf tables: first touch, accessed and dirty bits, unsync tables, INVLPG.

use memvirt_ops::arch::{Control, CrWrite};

use crate::guest::{Scenario, scenario};
use memvirt_testkit::op::{A, D, Op, P, PML4A, PT_A, PWAD, W, clr, cr3, e, f, invlpg, pte, ptes, rd, v, wr};

fn map(s: &mut Scenario, pages: u64, bits: u64) {
    (0..pages).for_each(|i| s.set(e(PT_A, i), f(i) | bits));
}

#[test]
fn t1_first_touch_prefetches_the_aligned_eight() {
    scenario("
        read page0 (new PDPT/PD/PT shadow) : exits=1 pf_taken=1 pf_fixed=1 tlb_flush=1 mmu_cache_miss=3 pages_4k=8 remote_tlb_flush_requests=3 max_mmu_rmap_size=1
        read page1 (prefetched?) :
        read pages 0..7 :
        read pages 8..63 : exits=7 pf_taken=7 pf_fixed=7 pages_4k=56
        write pages 0..63 (D already set) :
        ", |s| {
        map(s, 64, PWAD);
        s.lines(&[rd(v(0)), rd(v(1)), Op::Rds(v(0), 8), Op::Rds(v(8), 56), Op::Wrs(v(0), 64)]);
    });
}

#[test]
fn t1b_pages_not_accessed_are_not_prefetched_and_the_first_store_sets_dirty() {
    scenario("
        read pages 0..63 : exits=64 pf_taken=64 pf_fixed=64 tlb_flush=1 mmu_cache_miss=3 pages_4k=64 remote_tlb_flush_requests=3 max_mmu_rmap_size=1
        write pages 0..63 (set D) : exits=64 pf_taken=64 pf_fixed=64
        write pages 0..63 again :
        ", |s| {
        map(s, 64, P | W);
        s.line(&[Op::Rds(v(0), 64)]);
        assert_eq!((s.machine.show(PT_A), s.machine.show(e(PT_A, 63))), (0x40_0023, 0x43_f023));
        s.line(&[Op::Wrs(v(0), 64)]);
        assert_eq!(s.machine.show(PT_A), 0x40_0063);
        s.line(&[Op::Wrs(v(0), 64)]);
    });
}

#[test]
fn t1c_a_first_store_sets_accessed_and_dirty_in_one_exit() {
    scenario("
        write pages 0..63 : exits=64 pf_taken=64 pf_fixed=64 tlb_flush=1 mmu_cache_miss=3 pages_4k=64 remote_tlb_flush_requests=3 max_mmu_rmap_size=1
        ", |s| {
        map(s, 64, P | W);
        s.line(&[Op::Wrs(v(0), 64)]);
    });
}

#[test]
fn t1d_clean_pages_are_prefetched_read_only() {
    scenario("
        read pages 0..63 : exits=8 pf_taken=8 pf_fixed=8 tlb_flush=1 mmu_cache_miss=3 pages_4k=64 remote_tlb_flush_requests=3 max_mmu_rmap_size=1
        write pages 0..63 (set D) : exits=64 pf_taken=64 pf_fixed=64
        ", |s| {
        map(s, 64, P | W | A);
        s.lines(&[Op::Rds(v(0), 64), Op::Wrs(v(0), 64)]);
    });
}

#[test]
fn t2_the_first_store_to_a_leaf_table_unsyncs_it_and_the_next_are_free() {
    scenario("
        prime: read 0..63 : exits=8 pf_taken=8 pf_fixed=8 tlb_flush=1 mmu_cache_miss=3 pages_4k=64 remote_tlb_flush_requests=3 max_mmu_rmap_size=1
        1st PTE write (remap page0 -> DATA+0x100000) : exits=1 pf_taken=1 pf_fixed=1 mmu_unsync=1
        2nd PTE write (page1 remap) :
        30 more PTE writes pages 2..31 :
        INVLPG page0 (6.1: zap+prefetch) : exits=1 tlb_flush=1 invlpg=1 insn_emulation=1 remote_tlb_flush_requests=1
          6.12 : exits=1 tlb_flush=1 invlpg=1 insn_emulation=1 pages_4k=-1 remote_tlb_flush_requests=1
        read page0 after INVLPG :
          6.12 : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        INVLPG page40 (unchanged pte, unsync pt) : exits=1 tlb_flush=1 invlpg=1 insn_emulation=1 remote_tlb_flush_requests=1
          6.12 : exits=1 invlpg=1 insn_emulation=1
        read page40 :
        read page1 w/o INVLPG (stale allowed) :
        PTE write page32 (still unsync) :
        CR3 reload same value (full sync) : exits=1 tlb_flush=1 insn_emulation=1 mmu_unsync=-1 pages_4k=-32 remote_tlb_flush_requests=2
        read pages 0..63 after sync : exits=5 pf_taken=5 pf_fixed=5 pages_4k=32
        PTE write after sync (must unsync again) : exits=1 pf_taken=1 pf_fixed=1 mmu_unsync=1
        CR3 reload : exits=1 tlb_flush=1 insn_emulation=1 mmu_unsync=-1 pages_4k=-1 remote_tlb_flush_requests=2
        CR3 reload again (nothing unsync) : exits=1 tlb_flush=1 insn_emulation=1
        PTE write again : exits=1 pf_taken=1 pf_fixed=1 mmu_unsync=1
        CR4.PGE toggle x2 : exits=3 tlb_flush=3 insn_emulation=3 mmu_unsync=-1 remote_tlb_flush_requests=1
        INVLPG on synced table page5 : exits=1 invlpg=1 insn_emulation=1
        read page5 :
        ", |s| {
        map(s, 64, PWAD);
        s.lines(&[
            Op::Rds(v(0), 64),
            pte(PT_A, 0, f(256) | PWAD),
            pte(PT_A, 1, f(257) | PWAD),
            ptes(PT_A, 2, f(258) | PWAD, 30),
            invlpg(v(0)),
            rd(v(0)),
            invlpg(v(40)),
            rd(v(40)),
            rd(v(1)),
            pte(PT_A, 32, f(288) | PWAD),
            cr3(PML4A),
            Op::Rds(v(0), 64),
            pte(PT_A, 0, f(0) | PWAD),
            cr3(PML4A),
            cr3(PML4A),
            pte(PT_A, 0, f(3) | PWAD),
            Op::Do(Control::Cr(CrWrite::TogglePge)),
            invlpg(v(5)),
            rd(v(5)),
        ]);
    });
}

#[test]
fn t3_demand_paging_and_copy_on_write() {
    scenario("
        read page0 (not present) : exits=1 pf_taken=1 pf_guest=1
        guest writes PTE0 = present,A,D :
        retry read page0 : exits=1 pf_taken=1 pf_fixed=1 tlb_flush=1 mmu_cache_miss=3 pages_4k=1 remote_tlb_flush_requests=3 max_mmu_rmap_size=1
        read page1 (not present) : exits=1 pf_taken=1 pf_guest=1
        guest writes PTE1 : exits=1 pf_taken=1 pf_fixed=1 mmu_unsync=1
        retry read page1 : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        read page2 (not present) : exits=1 pf_taken=1 pf_guest=1
        guest writes PTE2 :
        retry read page2 : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        CR3 reload : exits=1 tlb_flush=1 insn_emulation=1 mmu_unsync=-1 remote_tlb_flush_requests=2
          6.12 : exits=1 tlb_flush=1 insn_emulation=1 mmu_unsync=-1 remote_tlb_flush_requests=1
        read page3 (not present) : exits=1 pf_taken=1 pf_guest=1
        guest writes PTE3 : exits=1 pf_taken=1 pf_fixed=1 mmu_unsync=1
        retry read page3 : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        COW: write-protect PTE0 (no flush) :
        write page0 via stale W (allowed until flush) :
        INVLPG page0 : exits=1 tlb_flush=1 invlpg=1 insn_emulation=1 remote_tlb_flush_requests=1
        write page0 -> guest #PF : exits=1 pf_taken=1 pf_guest=1 tlb_flush=1 remote_tlb_flush_requests=1
          6.12 : exits=1 pf_taken=1 pf_guest=1
        guest sets W|D in PTE0 (RO->RW, no INVLPG) :
        retry write page0 : exits=1 pf_taken=1 pf_fixed=1
        ", |s| {
        for page in 0..4 {
            s.line(&[rd(v(page))]);
            s.saw(1, 0, v(page));
            s.lines(&[pte(PT_A, page, f(page) | PWAD), rd(v(page))]);
            if page == 2 {
                s.line(&[cr3(PML4A)]);
            }
        }
        s.lines(&[pte(PT_A, 0, f(0) | P | A), wr(v(0), 1), invlpg(v(0)), wr(v(0), 1)]);
        s.saw(1, 3, v(0));
        s.lines(&[pte(PT_A, 0, f(0) | PWAD), wr(v(0), 1)]);
    });
}

#[test]
fn t7_cleared_accessed_and_dirty_bits_come_back_after_a_flush() {
    scenario("
        prime read 0..15 : exits=2 pf_taken=2 pf_fixed=2 tlb_flush=1 mmu_cache_miss=3 pages_4k=16 remote_tlb_flush_requests=3 max_mmu_rmap_size=1
        lock and ~A on PTE0 : exits=1 pf_taken=1 pf_fixed=1 mmu_unsync=1
        lock and ~A on PTE1 :
        read page0 (stale, A not re-set) :
        INVLPG page0 : exits=1 tlb_flush=1 invlpg=1 insn_emulation=1 pages_4k=-1 remote_tlb_flush_requests=1
        read page0 : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        CR3 reload : exits=1 tlb_flush=1 insn_emulation=1 mmu_unsync=-1 pages_4k=-1 remote_tlb_flush_requests=2
        read page1 : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        clear D on PTE2 : exits=1 pf_taken=1 pf_fixed=1 mmu_unsync=1
        INVLPG page2 : exits=1 tlb_flush=1 invlpg=1 insn_emulation=1 remote_tlb_flush_requests=1
        write page2 : exits=1 pf_taken=1 pf_fixed=1
        ", |s| {
        map(s, 16, PWAD);
        s.lines(&[Op::Rds(v(0), 16), clr(PT_A, 0, A), clr(PT_A, 1, A), rd(v(0))]);
        assert_eq!(s.machine.show(PT_A), 0x40_0043, "stale: A stays clear");
        s.lines(&[invlpg(v(0)), rd(v(0))]);
        assert_eq!(s.machine.show(PT_A), 0x40_0063);
        s.lines(&[cr3(PML4A), rd(v(1))]);
        assert_eq!(s.machine.show(e(PT_A, 1)), 0x40_1063);
        s.lines(&[clr(PT_A, 2, D), invlpg(v(2)), wr(v(2), 1)]);
    });
}
