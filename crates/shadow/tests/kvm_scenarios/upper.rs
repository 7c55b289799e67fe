//! Scenarios of upper tables, roots and roles.

use memvirt_ops::arch::{Control, CrWrite};

use crate::guest::scenario;
use memvirt_testkit::op::{
    A, Op, P, PD_A, PDPT_A, PML4A, PML4B, PT_A, PT_A1, PT_B, PWAD, PWUA, PWUAD, U, cr3, e, f, movups, pte, rd, stos, v,
    wr,
};

#[test]
fn t4_stores_to_upper_tables_are_emulated_and_the_third_in_a_row_floods() {
    scenario("
        prime read page0 : exits=1 pf_taken=1 pf_fixed=1 tlb_flush=1 mmu_cache_miss=3 pages_4k=8 remote_tlb_flush_requests=3 max_mmu_rmap_size=1
        prime read page512 (PT_A1) : exits=1 pf_taken=1 pf_fixed=1 tlb_flush=1 mmu_cache_miss=1 pages_4k=8 remote_tlb_flush_requests=1
        PDE write #1 (entry 5, np->p) : exits=1 pf_taken=1 pf_emulate=1 insn_emulation=1 mmu_pte_write=1 mmu_pde_zapped=1
        PDE write #2 (entry 6) : exits=1 pf_taken=1 pf_emulate=1 insn_emulation=1 mmu_pte_write=1 mmu_pde_zapped=1
        PDE write #3 (entry 7) flood? : exits=1 pf_taken=1 pf_emulate=1 tlb_flush=1 insn_emulation=1 mmu_shadow_zapped=1 mmu_pte_write=1 mmu_flooded=1 remote_tlb_flush_requests=1
        PDE write #4 (entry 8) : exits=1 pf_taken=1 pf_fixed=1
        PDE write #5 :
        read page0 after flood : exits=1 pf_taken=1 pf_fixed=1 tlb_flush=1 mmu_cache_miss=1 remote_tlb_flush_requests=2
        read page512 : exits=1 pf_taken=1 pf_fixed=1 tlb_flush=1 remote_tlb_flush_requests=1
        PDE write then use: w1 : exits=1 pf_taken=1 pf_emulate=1 insn_emulation=1 mmu_pte_write=1 mmu_pde_zapped=1
        use via page512*10 : exits=1 pf_taken=1 pf_spurious=1
        w2 : exits=1 pf_taken=1 pf_emulate=1 insn_emulation=1 mmu_pte_write=1 mmu_pde_zapped=1
        use : exits=1 pf_taken=1 pf_spurious=1
        w3 : exits=1 pf_taken=1 pf_emulate=1 insn_emulation=1 mmu_pte_write=1 mmu_pde_zapped=1
        use : exits=1 pf_taken=1 pf_spurious=1
        PDE change of present entry (zap child link) : exits=1 pf_taken=1 pf_emulate=1 tlb_flush=1 insn_emulation=1 mmu_pte_write=1 mmu_pde_zapped=1 remote_tlb_flush_requests=1
        read page512 (now PT_A) : exits=1 pf_taken=1 pf_spurious=1
        rep stosq 512 over PD_A (freed PT page reuse) : exits=2 pf_taken=2 pf_fixed=1 pf_emulate=1 tlb_flush=1 insn_emulation=1 mmu_shadow_zapped=1 remote_tlb_flush_requests=1
        ", |s| {
        for i in 0..16 {
            s.set(e(PT_A, i), f(i) | PWAD);
            s.set(e(PT_A1, i), f(512 + i) | PWAD);
        }
        let pde = |i| pte(PD_A, i, PT_A1 | PWUA);
        s.lines(&[rd(v(0)), rd(v(512)), pde(5), pde(6), pde(7), pde(8), pde(9), rd(v(0)), rd(v(512))]);
        s.lines(&[pde(10), rd(v(5120)), pde(11), rd(v(5632)), pde(12), rd(v(6144))]);
        s.lines(&[pte(PD_A, 1, PT_A | PWUA), rd(v(512)), stos(PD_A, 0, 512)]);
    });
}

#[test]
fn t4b_an_instruction_that_writes_no_tables_unshadows_them() {
    scenario("
        prime read page0 : exits=1 pf_taken=1 pf_fixed=1 tlb_flush=1 mmu_cache_miss=3 pages_4k=8 remote_tlb_flush_requests=3 max_mmu_rmap_size=1
        movups to PD_A+64 : exits=2 pf_taken=2 pf_fixed=1 pf_emulate=1 tlb_flush=1 insn_emulation=1 mmu_shadow_zapped=1 remote_tlb_flush_requests=1
        movups to PD_A+80 :
        rep stosq 512 over PT_A (leaf table) : exits=1 pf_taken=1 pf_fixed=1 mmu_unsync=1
        ", |s| {
        (0..16).for_each(|i| s.set(e(PT_A, i), f(i) | PWAD));
        s.lines(&[rd(v(0)), movups(PD_A, 8), movups(PD_A, 10), stos(PT_A, 0, 512)]);
    });
}

#[test]
fn t5_roots_are_cached_and_found_again() {
    scenario("
        A: read 0..15 : exits=2 pf_taken=2 pf_fixed=2 tlb_flush=1 mmu_cache_miss=3 pages_4k=16 remote_tlb_flush_requests=3 max_mmu_rmap_size=1
        CR3 -> B (new root) : exits=2 pf_taken=1 pf_fixed=1 tlb_flush=2 insn_emulation=1 mmu_cache_miss=1 remote_tlb_flush_requests=1
        B: read 0..15 : exits=2 pf_taken=2 pf_fixed=2 mmu_cache_miss=3 pages_4k=16
        CR3 -> A (cached) : exits=1 tlb_flush=1 insn_emulation=1
        A: read 0..15 :
        A: modify PT_B entry0 from A (not reachable) : exits=1 pf_taken=1 pf_fixed=1 mmu_unsync=1 pages_4k=8
        A: modify PT_A entry0 : exits=1 pf_taken=1 pf_fixed=1 mmu_unsync=1
        CR3 -> B (sync B) : exits=1 tlb_flush=1 insn_emulation=1 mmu_unsync=-1 pages_4k=-1 remote_tlb_flush_requests=2
        B: read 0..15 : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        CR3 -> A (sync A) : exits=1 tlb_flush=1 insn_emulation=1 mmu_unsync=-1 pages_4k=-1 remote_tlb_flush_requests=2
        A: read 0..15 : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        shadow roots r0 : exits=2 pf_taken=1 pf_spurious=1 tlb_flush=1 insn_emulation=1 mmu_cache_miss=1
        r1 : exits=2 pf_taken=1 pf_spurious=1 tlb_flush=1 insn_emulation=1 mmu_cache_miss=1
        r2 : exits=2 pf_taken=1 pf_spurious=1 tlb_flush=1 insn_emulation=1 mmu_cache_miss=1
        r3 : exits=2 pf_taken=1 pf_spurious=1 tlb_flush=1 insn_emulation=1 mmu_cache_miss=1
        r4 : exits=2 pf_taken=1 pf_spurious=1 tlb_flush=1 insn_emulation=1 mmu_cache_miss=1
        r5 : exits=2 pf_taken=1 pf_spurious=1 tlb_flush=1 insn_emulation=1 mmu_cache_miss=1
        r0 again (evicted from prev_roots) : exits=1 tlb_flush=1 insn_emulation=1
        r5 (cached) : exits=1 tlb_flush=1 insn_emulation=1
        r0 (cached) : exits=1 tlb_flush=1 insn_emulation=1
        read page0 : exits=1 pf_taken=1 pf_fixed=1 tlb_flush=1 remote_tlb_flush_requests=1
        ", |s| {
        for i in 0..16 {
            s.set(e(PT_A, i), f(i) | PWAD);
            s.set(e(PT_B, i), f(256 + i) | PWAD);
        }
        let all = Op::Rds(v(0), 16);
        s.lines(&[all, cr3(PML4B), all, cr3(PML4A), all]);
        s.lines(&[pte(PT_B, 0, f(512) | PWAD), pte(PT_A, 0, f(513) | PWAD)]);
        s.lines(&[cr3(PML4B), all, cr3(PML4A), all]);
        let root = |r: u64| 0x4_0000 + 4096 * r;
        for r in 0..6 {
            (0..512).for_each(|i| s.set(e(root(r), i), s.machine.show(e(PML4A, i))));
        }
        s.lines(&[0, 1, 2, 3, 4, 5, 0, 5, 0].map(|r| cr3(root(r))));
        s.line(&[rd(v(0))]);
    });
}

#[test]
fn t8_one_table_under_two_accesses_and_two_modes() {
    scenario("
        read via PDE0 (RW) : exits=1 pf_taken=1 pf_fixed=1 tlb_flush=1 mmu_cache_miss=3 pages_4k=8 remote_tlb_flush_requests=3 max_mmu_rmap_size=1
        read via PDE1 (RO alias) : exits=1 pf_taken=1 pf_fixed=1 mmu_cache_miss=1 pages_4k=8 max_mmu_rmap_size=1
        write PTE0 (two shadows of one PT) : exits=1 pf_taken=1 pf_fixed=1 mmu_unsync=2
        write via RO alias -> guest #PF : exits=1 pf_taken=1 pf_guest=1 tlb_flush=1 remote_tlb_flush_requests=1 max_mmu_rmap_size=1
          6.12 : exits=1 pf_taken=1 pf_guest=1 tlb_flush=1 pages_4k=-1 remote_tlb_flush_requests=1
        CR0.WP=0 : exits=2 pf_taken=1 pf_fixed=1 insn_emulation=1 mmu_cache_miss=4 pages_4k=8
        read page0 with WP=0 (new roles) : exits=1 pf_taken=1 pf_fixed=1 tlb_flush=1 mmu_cache_miss=3 pages_4k=8 remote_tlb_flush_requests=1 max_mmu_rmap_size=2
        CR0.WP=1 : exits=1 tlb_flush=1 insn_emulation=1 mmu_unsync=-2 pages_4k=-1 remote_tlb_flush_requests=1
        read page0 : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1 max_mmu_rmap_size=1
        ", |s| {
        (0..16).for_each(|i| s.set(e(PT_A, i), f(i) | PWAD));
        s.set(e(PD_A, 1), PT_A | P | U | A);
        s.lines(&[rd(v(0)), rd(v(512)), pte(PT_A, 0, f(3) | PWAD), wr(v(512), 1)]);
        s.saw(1, 3, v(512));
        let write_protect = |on| Op::Do(Control::Cr(CrWrite::WriteProtect(on)));
        s.lines(&[write_protect(false), rd(v(0)), write_protect(true), rd(v(0))]);
    });
}

#[test]
fn t17_an_unsync_leaf_table_becomes_an_upper_one() {
    scenario("
        prime : exits=1 pf_taken=1 pf_fixed=1 tlb_flush=1 mmu_cache_miss=3 pages_4k=8 remote_tlb_flush_requests=3 max_mmu_rmap_size=1
        make PT_A unsync : exits=1 pf_taken=1 pf_fixed=1 mmu_unsync=1
        PDPT entry1 -> PT_A as a PD (level-2 use) : exits=1 pf_taken=1 pf_emulate=1 insn_emulation=1 mmu_pte_write=1 mmu_pde_zapped=1
        access through it (PT_A entry0 as PDE) : exits=1 pf_taken=1 pf_fixed=1 tlb_flush=1 mmu_shadow_zapped=1 mmu_cache_miss=2 mmu_unsync=-1 pages_4k=-7 remote_tlb_flush_requests=3
        write PTE0 now (PT_A is upper-level too) : exits=1 pf_taken=1 pf_emulate=1 tlb_flush=1 insn_emulation=1 mmu_pte_write=1 mmu_pde_zapped=1 remote_tlb_flush_requests=1
        write PTE1 : exits=1 pf_taken=1 pf_emulate=1 insn_emulation=1 mmu_pte_write=1 mmu_pde_zapped=1
        write PTE2 : exits=1 pf_taken=1 pf_emulate=1 tlb_flush=1 insn_emulation=1 mmu_shadow_zapped=1 mmu_pte_write=1 mmu_flooded=1 remote_tlb_flush_requests=1
        write PTE3 : exits=1 pf_taken=1 pf_fixed=1
        ", |s| {
        (0..16).for_each(|i| s.set(e(PT_A, i), f(i) | PWAD));
        s.line(&[rd(v(0))]);
        s.set(f(3), f(9) | PWUAD);
        s.set(f(5), f(9) | PWUAD);
        s.line(&[pte(PT_A, 0, f(3) | PWAD)]);
        s.set(PT_A1, PT_A | PWUAD);
        s.lines(&[pte(PDPT_A, 1, PT_A | PWUA), rd(v(262_144)), pte(PT_A, 0, f(5) | PWAD), pte(PT_A, 1, f(6) | PWAD)]);
        s.lines(&[pte(PT_A, 2, f(7) | PWAD), pte(PT_A, 3, f(8) | PWAD)]);
    });
}
