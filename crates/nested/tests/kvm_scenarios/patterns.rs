//! Whole patterns of an operating system: demand paging, unmapping, fork.

use crate::guest::scenario;
use memvirt_testkit::op::{
    A, D, Op, P, PD_B, PDPT_B, PML4A, PML4B, PT_A, PT_B, PWAD, PWUA, PWUAD, U, cr3, e, f, invlpg, pte, ptes, rd, stos,
    v, wr,
};

#[test]
fn t14_demand_paging_of_64_pages() {
    scenario(
        "
        total for 64 pages, A|D preset (exits col +191) : exits=258 pf_taken=67 pf_fixed=67 pages_4k=67
        munmap: 64x (PTE=0) in one batch :
        then 64 INVLPGs :
        CR3 reload :
        2nd round (write faults) total (+191) : exits=191
        mprotect RO 64 ptes batch :
        CR3 reload (flush) :
        read 64 :
        write page0 -> guest PF :
        -> guest #PF x1 ec=3 cr2=8000000000
        16x (PTE=0;INVLPG) one by one (+31) : exits=31
        np->p PTE20 store :
        INVLPG page0 after np->p :
        read page0 :
        ",
        |s| {
            s.line(&(0..64).flat_map(|i| [rd(v(i)), pte(PT_A, i, f(i) | PWAD), rd(v(i))]).collect::<Vec<_>>());
            assert_eq!(s.machine.faults.len(), 64);
            s.lines(&[ptes(PT_A, 0, 0, 64), Op::Invlpgs(v(0), 64), cr3(PML4A)]);
            s.line(&(0..64).flat_map(|i| [wr(v(i), 0), pte(PT_A, i, f(i) | PWUAD), wr(v(i), 0)]).collect::<Vec<_>>());
            s.lines(&[ptes(PT_A, 0, f(0) | P | U | A | D, 64), cr3(PML4A), Op::Rds(v(0), 64), wr(v(0), 0)]);
            s.line(&(0..16).flat_map(|i| [pte(PT_A, i, 0), invlpg(v(i))]).collect::<Vec<_>>());
            s.lines(&[pte(PT_A, 0, f(0) | PWUAD), invlpg(v(0)), rd(v(0))]);
        },
    );
}

#[test]
fn t15_fork_and_exit_of_a_child() {
    scenario(
        "
        parent: write 64 pages : exits=64 pf_taken=64 pf_fixed=64 pages_4k=64
        child upper tables (3 stores, unshadowed) (+2) : exits=5 pf_taken=3 pf_fixed=3 pages_4k=3
        copy: parent PTEs -> RO (64 stores) :
        copy: child PTEs (64 stores) : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        parent CR3 reload (flush) :
        parent write page0 -> guest COW #PF : exits=3 pf_taken=3 pf_fixed=3 pages_4k=3
        -> guest #PF x1 ec=3 cr2=8000000000
        parent PTE0 = new page RW (no INVLPG needed? changes gfn) :
        parent INVLPG page0 :
        parent write page0 : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        switch to child CR3 :
        child reads 64 :
        child write page1 -> guest COW #PF :
        -> guest #PF x1 ec=3 cr2=8000001000
        exit: zero child PTEs (64) :
        exit: zero child PDE :
        exit: zero child PDPTE :
        exit: zero child PML4E :
        switch to parent :
        reuse PT_B as data: rep stosq :
        reuse PD_B as data: rep stosq :
        reuse PDPT_B as data: 1 mov :
        reuse PDPT_B: 8 movs :
        reuse PML4B as data: rep stosq :
        ",
        |s| {
            (0..64).for_each(|i| s.set(e(PT_A, i), f(i) | PWUAD));
            [e(PML4B, 1), PDPT_B, PD_B].into_iter().for_each(|at| s.set(at, 0));
            s.line(&[Op::Wrs(v(0), 64)]);
            s.line(&[pte(PML4B, 1, PDPT_B | PWUA), pte(PDPT_B, 0, PD_B | PWUA), pte(PD_B, 0, PT_B | PWUA)]);
            let read_only = f(0) | P | U | A | D;
            s.lines(&[ptes(PT_A, 0, read_only, 64), ptes(PT_B, 0, read_only, 64), cr3(PML4A), wr(v(0), 0)]);
            s.lines(&[pte(PT_A, 0, f(256) | PWUAD), invlpg(v(0)), wr(v(0), 0), cr3(PML4B)]);
            s.lines(&[Op::Rds(v(0), 64), wr(v(1), 0)]);
            s.lines(&[ptes(PT_B, 0, 0, 64), pte(PD_B, 0, 0), pte(PDPT_B, 0, 0), pte(PML4B, 1, 0), cr3(PML4A)]);
            s.lines(&[
                stos(PT_B, 0, 512),
                stos(PD_B, 0, 512),
                pte(PDPT_B, 0, 1),
                ptes(PDPT_B, 0, 0, 8),
                stos(PML4B, 0, 8),
            ]);
        },
    );
}
