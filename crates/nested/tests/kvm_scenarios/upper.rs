//! Scenarios of upper tables, roots and roles.

use memvirt_ops::arch::{Control, CrWrite};

use crate::guest::scenario;
use memvirt_testkit::op::{
    A, Op, P, PD_A, PDPT_A, PML4A, PML4B, PT_A, PT_A1, PT_B, PWAD, PWUA, PWUAD, U, cr3, e, f, movups, pte, rd, stos, v,
    wr,
};

#[test]
fn t4_stores_to_upper_tables_do_not_exit() {
    scenario(
        "
        prime read page0 : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        prime read page512 (PT_A1) : exits=2 pf_taken=2 pf_fixed=2 pages_4k=2
        PDE write #1 (entry 5, np->p) :
        PDE write #2 (entry 6) :
        PDE write #3 (entry 7) flood? :
        PDE write #4 (entry 8) :
        PDE write #5 :
        read page0 after flood :
        read page512 :
        PDE write then use: w1 :
         use via page512*10 :
        w2 :
         use :
        w3 :
         use :
        PDE change of present entry (zap child link) :
        read page512 (now PT_A) :
        rep stosq 512 over PD_A (freed PT page reuse) :
        ",
        |s| {
            for i in 0..16 {
                s.set(e(PT_A, i), f(i) | PWAD);
                s.set(e(PT_A1, i), f(512 + i) | PWAD);
            }
            let pde = |i| pte(PD_A, i, PT_A1 | PWUA);
            s.lines(&[rd(v(0)), rd(v(512)), pde(5), pde(6), pde(7), pde(8), pde(9), rd(v(0)), rd(v(512))]);
            s.lines(&[pde(10), rd(v(5120)), pde(11), rd(v(5632)), pde(12), rd(v(6144))]);
            s.lines(&[pte(PD_A, 1, PT_A | PWUA), rd(v(512)), stos(PD_A, 0, 512)]);
        },
    );
}

#[test]
fn t4b_the_kind_of_instruction_does_not_matter() {
    scenario(
        "
        prime read page0 : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        movups to PD_A+64 :
        movups to PD_A+80 :
        rep stosq 512 over PT_A (leaf table) :
        ",
        |s| {
            (0..16).for_each(|i| s.set(e(PT_A, i), f(i) | PWAD));
            s.lines(&[rd(v(0)), movups(PD_A, 8), movups(PD_A, 10), stos(PT_A, 0, 512)]);
        },
    );
}

#[test]
fn t5_switching_roots_does_not_exit() {
    scenario(
        "
        A: read 0..15 : exits=16 pf_taken=16 pf_fixed=16 pages_4k=16
        CR3 -> B (new root) : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        B: read 0..15 : exits=19 pf_taken=19 pf_fixed=19 pages_4k=19
        CR3 -> A (cached) :
        A: read 0..15 :
        A: modify PT_B entry0 from A (not reachable) :
        A: modify PT_A entry0 :
        CR3 -> B (sync B) :
        B: read 0..15 : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        CR3 -> A (sync A) :
        A: read 0..15 : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        shadow roots r0 : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        r1 : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        r2 : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        r3 : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        r4 : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        r5 : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        r0 again (evicted from prev_roots) :
        r5 (cached) :
        r0 (cached) :
        read page0 :
        ",
        |s| {
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
        },
    );
}

#[test]
fn t8_cr0_wp_exits_and_nothing_is_built_anew() {
    scenario(
        "
        read via PDE0 (RW) : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        read via PDE1 (RO alias) :
        write PTE0 (two shadows of one PT) :
        write via RO alias -> guest #PF : exits=3 pf_taken=3 pf_fixed=3 pages_4k=3
        -> guest #PF x1 ec=3 cr2=8000200000
        CR0.WP=0 : exits=1 insn_emulation=1
        read page0 with WP=0 (new roles) : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        CR0.WP=1 : exits=1 insn_emulation=1
        read page0 :
        ",
        |s| {
            (0..16).for_each(|i| s.set(e(PT_A, i), f(i) | PWAD));
            s.set(e(PD_A, 1), PT_A | P | U | A);
            s.lines(&[rd(v(0)), rd(v(512)), pte(PT_A, 0, f(3) | PWAD), wr(v(512), 1)]);
            let write_protect = |on| Op::Do(Control::Cr(CrWrite::WriteProtect(on)));
            s.lines(&[write_protect(false), rd(v(0)), write_protect(true), rd(v(0))]);
        },
    );
}

#[test]
fn t17_a_leaf_table_becomes_an_upper_one() {
    scenario(
        "
        prime : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        make PT_A unsync :
        PDPT entry1 -> PT_A as a PD (level-2 use) :
        access through it (PT_A entry0 as PDE) : exits=2 pf_taken=2 pf_fixed=2 pages_4k=2
        write PTE0 now (PT_A is upper-level too) :
        write PTE1 :
        write PTE2 :
        write PTE3 :
        ",
        |s| {
            (0..16).for_each(|i| s.set(e(PT_A, i), f(i) | PWAD));
            s.line(&[rd(v(0))]);
            s.set(f(3), f(9) | PWUAD);
            s.set(f(5), f(9) | PWUAD);
            s.line(&[pte(PT_A, 0, f(3) | PWAD)]);
            s.set(PT_A1, PT_A | PWUAD);
            s.lines(&[
                pte(PDPT_A, 1, PT_A | PWUA),
                rd(v(262_144)),
                pte(PT_A, 0, f(5) | PWAD),
                pte(PT_A, 1, f(6) | PWAD),
            ]);
            s.lines(&[pte(PT_A, 2, f(7) | PWAD), pte(PT_A, 3, f(8) | PWAD)]);
        },
    );
}
