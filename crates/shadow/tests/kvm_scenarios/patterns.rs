//! Whole patterns of an operating system: demand paging, unmapping, fork.

use crate::guest::scenario;
use memvirt_testkit::op::{
    A, D, Op, P, PD_B, PDPT_B, PML4A, PML4B, PT_A, PT_B, PWAD, PWUA, PWUAD, U, cr3, e, f, invlpg, pte, ptes, rd, stos,
    v, wr,
};

#[test]
fn t14_demand_paging_of_64_pages() {
    scenario("
        total for 64 pages, A|D preset (exits col +191) : exits=320 pf_taken=129 pf_fixed=65 pf_guest=64 tlb_flush=1 mmu_cache_miss=3 mmu_unsync=1 pages_4k=64 remote_tlb_flush_requests=3 max_mmu_rmap_size=1
        munmap: 64x (PTE=0) in one batch :
        then 64 INVLPGs : exits=64 tlb_flush=64 invlpg=64 insn_emulation=64 pages_4k=-64 remote_tlb_flush_requests=64
        CR3 reload : exits=1 tlb_flush=1 insn_emulation=1 mmu_unsync=-1 remote_tlb_flush_requests=1
        2nd round (write faults) total (+191) : exits=320 pf_taken=129 pf_fixed=65 pf_guest=64 mmu_unsync=1 pages_4k=64
        mprotect RO 64 ptes batch :
        CR3 reload (flush) : exits=1 tlb_flush=1 insn_emulation=1 mmu_unsync=-1 remote_tlb_flush_requests=2
        read 64 :
        write page0 -> guest PF : exits=1 pf_taken=1 pf_guest=1
        16x (PTE=0;INVLPG) one by one (+31) : exits=48 pf_taken=1 pf_fixed=1 tlb_flush=16 invlpg=16 insn_emulation=16 mmu_unsync=1 pages_4k=-16 remote_tlb_flush_requests=16
        np->p PTE20 store :
        INVLPG page0 after np->p : exits=1 invlpg=1 insn_emulation=1 pages_4k=1
          6.12 : exits=1 invlpg=1 insn_emulation=1
        read page0 :
          6.12 : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        ", |s| {
        s.line(&(0..64).flat_map(|i| [rd(v(i)), pte(PT_A, i, f(i) | PWAD), rd(v(i))]).collect::<Vec<_>>());
        s.lines(&[ptes(PT_A, 0, 0, 64), Op::Invlpgs(v(0), 64), cr3(PML4A)]);
        s.line(&(0..64).flat_map(|i| [wr(v(i), 0), pte(PT_A, i, f(i) | PWUAD), wr(v(i), 0)]).collect::<Vec<_>>());
        s.lines(&[ptes(PT_A, 0, f(0) | P | U | A | D, 64), cr3(PML4A), Op::Rds(v(0), 64), wr(v(0), 0)]);
        s.saw(1, 3, v(0));
        s.line(&(0..16).flat_map(|i| [pte(PT_A, i, 0), invlpg(v(i))]).collect::<Vec<_>>());
        s.lines(&[pte(PT_A, 0, f(0) | PWUAD), invlpg(v(0)), rd(v(0))]);
    });
}

#[test]
fn t15_fork_and_exit_of_a_child() {
    scenario("
        parent: write 64 pages : exits=8 pf_taken=8 pf_fixed=8 tlb_flush=1 mmu_cache_miss=3 pages_4k=64 remote_tlb_flush_requests=3 max_mmu_rmap_size=1
        child upper tables (3 stores, unshadowed) (+2) : exits=4 pf_taken=2 pf_fixed=2 pages_4k=16
        copy: parent PTEs -> RO (64 stores) : exits=1 pf_taken=1 pf_fixed=1 mmu_unsync=1
        copy: child PTEs (64 stores) :
        parent CR3 reload (flush) : exits=1 tlb_flush=1 insn_emulation=1 mmu_unsync=-1 remote_tlb_flush_requests=2
        parent write page0 -> guest COW #PF : exits=1 pf_taken=1 pf_guest=1
        parent PTE0 = new page RW (no INVLPG needed? changes gfn) : exits=1 pf_taken=1 pf_fixed=1 mmu_unsync=1
        parent INVLPG page0 : exits=1 tlb_flush=1 invlpg=1 insn_emulation=1 remote_tlb_flush_requests=1
          6.12 : exits=1 tlb_flush=1 invlpg=1 insn_emulation=1 pages_4k=-1 remote_tlb_flush_requests=1
        parent write page0 :
          6.12 : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        switch to child CR3 : exits=2 pf_taken=1 pf_fixed=1 tlb_flush=3 insn_emulation=1 mmu_cache_miss=1 remote_tlb_flush_requests=2
        child reads 64 : exits=8 pf_taken=8 pf_fixed=8 tlb_flush=1 mmu_cache_miss=3 pages_4k=64 remote_tlb_flush_requests=3 max_mmu_rmap_size=1
        child write page1 -> guest COW #PF : exits=1 pf_taken=1 pf_guest=1
        exit: zero child PTEs (64) : exits=1 pf_taken=1 pf_fixed=1 mmu_unsync=1
        exit: zero child PDE : exits=1 pf_taken=1 pf_emulate=1 tlb_flush=1 insn_emulation=1 mmu_pte_write=1 remote_tlb_flush_requests=1
        exit: zero child PDPTE : exits=1 pf_taken=1 pf_emulate=1 tlb_flush=1 insn_emulation=1 mmu_pte_write=1 remote_tlb_flush_requests=1
        exit: zero child PML4E : exits=1 pf_taken=1 pf_emulate=1 tlb_flush=1 insn_emulation=1 mmu_pte_write=1 remote_tlb_flush_requests=1
        switch to parent : exits=1 tlb_flush=1 insn_emulation=1 mmu_unsync=-1 remote_tlb_flush_requests=2
          6.12 : exits=1 tlb_flush=1 insn_emulation=1 mmu_unsync=-1 remote_tlb_flush_requests=1
        reuse PT_B as data: rep stosq :
        reuse PD_B as data: rep stosq : exits=2 pf_taken=2 pf_fixed=1 pf_emulate=1 tlb_flush=1 insn_emulation=1 mmu_shadow_zapped=1 remote_tlb_flush_requests=1
        reuse PDPT_B as data: 1 mov : exits=1 pf_taken=1 pf_emulate=1 insn_emulation=1 mmu_pte_write=1 mmu_pde_zapped=1
        reuse PDPT_B: 8 movs : exits=2 pf_taken=2 pf_fixed=1 pf_emulate=1 tlb_flush=1 insn_emulation=1 mmu_shadow_zapped=1 mmu_pte_write=1 mmu_flooded=1 remote_tlb_flush_requests=1
        reuse PML4B as data: rep stosq : exits=2 pf_taken=2 pf_fixed=1 pf_emulate=1 tlb_flush=1 insn_emulation=1 mmu_shadow_zapped=2 remote_tlb_flush_requests=1
          6.12 : exits=1 pf_taken=1 pf_emulate=1 tlb_flush=1 insn_emulation=1 mmu_shadow_zapped=2 mmu_pte_write=8 remote_tlb_flush_requests=1
        ", |s| {
        (0..64).for_each(|i| s.set(e(PT_A, i), f(i) | PWUAD));
        [e(PML4B, 1), PDPT_B, PD_B].into_iter().for_each(|at| s.set(at, 0));
        s.line(&[Op::Wrs(v(0), 64)]);
        s.line(&[pte(PML4B, 1, PDPT_B | PWUA), pte(PDPT_B, 0, PD_B | PWUA), pte(PD_B, 0, PT_B | PWUA)]);
        let read_only = f(0) | P | U | A | D;
        s.lines(&[ptes(PT_A, 0, read_only, 64), ptes(PT_B, 0, read_only, 64), cr3(PML4A), wr(v(0), 0)]);
        s.saw(1, 3, v(0));
        s.lines(&[pte(PT_A, 0, f(256) | PWUAD), invlpg(v(0)), wr(v(0), 0), cr3(PML4B)]);
        s.lines(&[Op::Rds(v(0), 64), wr(v(1), 0)]);
        s.saw(1, 3, v(1));
        s.lines(&[ptes(PT_B, 0, 0, 64), pte(PD_B, 0, 0), pte(PDPT_B, 0, 0), pte(PML4B, 1, 0), cr3(PML4A)]);
        s.lines(&[stos(PT_B, 0, 512), stos(PD_B, 0, 512), pte(PDPT_B, 0, 1), ptes(PDPT_B, 0, 0, 8), stos(PML4B, 0, 8)]);
    });
}
