//! Scenarios of leaf tables: first touch, accessed and dirty bits, unsync tables, INVLPG.

use memvirt_ops::arch::{Control, CrWrite};

use crate::guest::{Scenario, scenario};
use memvirt_testkit::op::{A, D, Op, P, PML4A, PT_A, PWAD, W, clr, cr3, e, f, invlpg, pte, ptes, rd, v, wr};

fn map(s: &mut Scenario, pages: u64, bits: u64) {
    (0..pages).for_each(|i| s.set(e(PT_A, i), f(i) | bits));
}

#[test]
fn t1_each_page_costs_one_violation_and_nothing_is_prefetched() {
    scenario(
        "
        read page0 (new PDPT/PD/PT shadow) : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        read page1 (prefetched?) : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        read pages 0..7 : exits=6 pf_taken=6 pf_fixed=6 pages_4k=6
        read pages 8..63 : exits=56 pf_taken=56 pf_fixed=56 pages_4k=56
        write pages 0..63 (D already set) :
        ",
        |s| {
            map(s, 64, PWAD);
            s.lines(&[rd(v(0)), rd(v(1)), Op::Rds(v(0), 8), Op::Rds(v(8), 56), Op::Wrs(v(0), 64)]);
        },
    );
}

#[test]
fn t1b_hardware_sets_accessed_and_dirty_without_exits() {
    scenario(
        "
        read pages 0..63 : exits=64 pf_taken=64 pf_fixed=64 pages_4k=64
        write pages 0..63 (set D) :
        write pages 0..63 again :
        ",
        |s| {
            map(s, 64, P | W);
            s.line(&[Op::Rds(v(0), 64)]);
            assert_eq!((s.machine.show(PT_A), s.machine.show(e(PT_A, 63))), (0x40_0023, 0x43_f023));
            s.line(&[Op::Wrs(v(0), 64)]);
            assert_eq!(s.machine.show(PT_A), 0x40_0063);
            s.line(&[Op::Wrs(v(0), 64)]);
        },
    );
}

#[test]
fn t1c_a_first_store_costs_what_a_first_read_costs() {
    scenario(
        "
        write pages 0..63 : exits=64 pf_taken=64 pf_fixed=64 pages_4k=64
        ",
        |s| {
            map(s, 64, P | W);
            s.line(&[Op::Wrs(v(0), 64)]);
        },
    );
}

#[test]
fn t1d_clean_pages_are_dirtied_without_exits() {
    scenario(
        "
        read pages 0..63 : exits=64 pf_taken=64 pf_fixed=64 pages_4k=64
        write pages 0..63 (set D) :
        ",
        |s| {
            map(s, 64, P | W | A);
            s.lines(&[Op::Rds(v(0), 64), Op::Wrs(v(0), 64)]);
        },
    );
}

#[test]
fn t2_stores_to_tables_and_invlpg_do_not_exit() {
    scenario(
        "
        prime: read 0..63 : exits=64 pf_taken=64 pf_fixed=64 pages_4k=64
        1st PTE write (remap page0 -> DATA+0x100000) :
        2nd PTE write (page1 remap) :
        30 more PTE writes pages 2..31 :
        INVLPG page0 (6.1: zap+prefetch) :
        read page0 after INVLPG : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        INVLPG page40 (unchanged pte, unsync pt) :
        read page40 :
        read page1 w/o INVLPG (stale allowed) : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        PTE write page32 (still unsync) :
        CR3 reload same value (full sync) :
        read pages 0..63 after sync : exits=31 pf_taken=31 pf_fixed=31 pages_4k=31
        PTE write after sync (must unsync again) :
        CR3 reload :
        CR3 reload again (nothing unsync) :
        PTE write again :
        CR4.PGE toggle x2 : exits=3 tlb_flush=2 insn_emulation=3
        INVLPG on synced table page5 :
        read page5 :
        ",
        |s| {
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
        },
    );
}

#[test]
fn t3_demand_paging_and_copy_on_write_are_the_guest_s_own_business() {
    scenario(
        "
        read page0 (not present) : exits=4 pf_taken=4 pf_fixed=4 pages_4k=4
        -> guest #PF x1 ec=0 cr2=8000000000
        guest writes PTE0 = present,A,D :
        retry read page0 :
        read page1 (not present) :
        -> guest #PF x1 ec=0 cr2=8000001000
        guest writes PTE1 :
        retry read page1 : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        read page2 (not present) :
        -> guest #PF x1 ec=0 cr2=8000002000
        guest writes PTE2 :
        retry read page2 : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        CR3 reload :
        read page3 (not present) :
        -> guest #PF x1 ec=0 cr2=8000003000
        guest writes PTE3 :
        retry read page3 : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        COW: write-protect PTE0 (no flush) :
        write page0 via stale W (allowed until flush) :
        -> guest #PF x1 ec=3 cr2=8000000000
        INVLPG page0 :
        write page0 -> guest #PF :
        -> guest #PF x1 ec=3 cr2=8000000000
        guest sets W|D in PTE0 (RO->RW, no INVLPG) :
        retry write page0 :
        ",
        |s| {
            for page in 0..4 {
                s.line(&[rd(v(page))]);
                s.lines(&[pte(PT_A, page, f(page) | PWAD), rd(v(page))]);
                if page == 2 {
                    s.line(&[cr3(PML4A)]);
                }
            }
            s.lines(&[pte(PT_A, 0, f(0) | P | A), wr(v(0), 1), invlpg(v(0)), wr(v(0), 1)]);
            s.lines(&[pte(PT_A, 0, f(0) | PWAD), wr(v(0), 1)]);
        },
    );
}

#[test]
fn t7_cleared_accessed_and_dirty_bits_come_back_by_themselves() {
    scenario(
        "
        prime read 0..15 : exits=16 pf_taken=16 pf_fixed=16 pages_4k=16
        lock and ~A on PTE0 :
        lock and ~A on PTE1 :
        read page0 (stale, A not re-set) :
        INVLPG page0 :
        read page0 :
        CR3 reload :
        read page1 :
        clear D on PTE2 :
        INVLPG page2 :
        write page2 :
        ",
        |s| {
            map(s, 16, PWAD);
            s.lines(&[Op::Rds(v(0), 16), clr(PT_A, 0, A), clr(PT_A, 1, A), rd(v(0))]);
            assert_eq!(s.machine.show(PT_A), 0x40_0063, "the walk sets A again");
            s.lines(&[invlpg(v(0)), rd(v(0))]);
            assert_eq!(s.machine.show(PT_A), 0x40_0063);
            s.lines(&[cr3(PML4A), rd(v(1))]);
            assert_eq!(s.machine.show(e(PT_A, 1)), 0x40_1063);
            s.lines(&[clr(PT_A, 2, D), invlpg(v(2)), wr(v(2), 1)]);
        },
    );
}
