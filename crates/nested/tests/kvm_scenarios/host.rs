//! Scenarios of large guest pages, the page limit, what the host does, and MMIO.

use memvirt_addr::PageSize;
use memvirt_ops::VmId;
use memvirt_ops::arch::HostEvent;

use crate::guest::{scenario, scenario_over};
use memvirt_testkit::op::{Op, PD_A, PDPT_A, PML4A, PT_A, PWAD, PWUA, PWUAD, S, e, f, frames, rd, v, wr};

const VM: VmId = VmId::FIRST;

#[test]
fn t9_a_large_guest_page_over_small_host_pages_is_filled_page_by_page() {
    scenario(
        "
        read 2M+0 : exits=2 pf_taken=2 pf_fixed=2 pages_4k=2
        read 2M pages 0..511 : exits=511 pf_taken=511 pf_fixed=511 pages_4k=511
        write 2M+0 (D set) :
        clean 2M: read +0 : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        clean 2M: write +0 :
        clean 2M: read +4096*64 : exits=1 pf_taken=1 pf_fixed=1 pages_4k=1
        ",
        |s| {
            s.set(e(PD_A, 2), 0x200_0000 | PWUAD | S);
            s.lines(&[rd(v(1024)), Op::Rds(v(1024), 512), wr(v(1024), 1)]);
            s.set(e(PD_A, 3), 0x220_0000 | PWUA | S);
            s.lines(&[rd(v(1536)), wr(v(1536), 1), rd(v(1600))]);
            assert_eq!(s.machine.show(e(PD_A, 3)), 0x220_0000 | PWUAD | S);
        },
    );
}

#[test]
fn t9b_a_large_host_page_is_mapped_at_once() {
    scenario_over(
        PageSize::Size2M,
        "
        read 2M+0 : exits=1 pf_taken=1 pf_fixed=1 pages_2m=1
        read 2M pages 0..511 :
        clean 2M: read : exits=1 pf_taken=1 pf_fixed=1 pages_2m=1
        clean 2M: write :
        use PT at gpa 0x2001000 (inside 2M page) :
        write 2M+0 after PT shadowed :
        read 2M pages 0..511 :
        write PT page via 2M mapping :
        ",
        |s| {
            s.set(e(PD_A, 2), 0x200_0000 | PWUAD | S);
            s.lines(&[rd(v(1024)), Op::Rds(v(1024), 512)]);
            s.set(e(PD_A, 3), 0x220_0000 | PWUA | S);
            s.lines(&[rd(v(1536)), wr(v(1536), 1)]);
            s.set(e(PD_A, 4), 0x200_1000 | PWUA);
            s.set(0x200_1000, f(0) | PWAD);
            s.lines(&[rd(v(2048)), wr(v(1024), 2), Op::Rds(v(1024), 512), wr(v(1025) + 8, 0x40_1000 | PWAD)]);
        },
    );
}

#[test]
fn t10_there_are_no_shadow_pages_to_limit() {
    scenario(
        "
        ioctl SET_NR_MMU_PAGES(64) [exits col off by -1] : exits=-1
        re-touch table 0 :
        re-touch table 99 :
        ",
        |s| {
            let table = |i: u64| 0x60_0000 + 4096 * i;
            for i in 0..100 {
                s.set(table(i), f(0) | PWAD);
                s.set(e(PD_A, i), table(i) | PWUA);
            }
            s.host_line(HostEvent::ShadowPageLimit(VM, 64));
            (0..100).for_each(|i| s.machine.run(rd(v(512 * i))));
            s.lines(&[rd(v(0)), rd(v(50688))]);
        },
    );
}

#[test]
fn t11_what_the_host_takes_away_violates_once_more() {
    scenario(
        "
        prime 0..15 : exits=16 pf_taken=16 pf_fixed=16 pages_4k=16
        madvise DONTNEED 4 data pages [exits-1] : exits=-1 pages_4k=-4 remote_tlb_flush_requests=1
        read 0..15 : exits=4 pf_taken=4 pf_fixed=4 tlb_flush=1 pages_4k=4
        mprotect host page0 RO [exits-1] : exits=-1 pages_4k=-16 remote_tlb_flush_requests=1
        write page0 : exits=2 pf_taken=2 pf_fixed=1 tlb_flush=1 pages_4k=1
        ",
        |s| {
            (0..16).for_each(|i| s.set(e(PT_A, i), f(i) | PWAD));
            s.line(&[Op::Rds(v(0), 16)]);
            s.host_line(HostEvent::Discard(VM, frames(f(0), 0x4000)));
            s.line(&[Op::Rds(v(0), 16)]);
            s.host_line(HostEvent::Unmap(VM, frames(f(0), 0x20_0000)));
            s.machine.host(HostEvent::Unmap(VM, frames(f(0), 0x20_0000)));
            s.line(&[wr(v(0), 1)]);
        },
    );
}

#[test]
fn t12_dirty_logging_costs_one_exit_per_page_and_round_tables_included() {
    scenario(
        "
        prime write 0..15 : exits=16 pf_taken=16 pf_fixed=16 pages_4k=16
        enable dirty log [exits-1] : exits=-1 remote_tlb_flush_requests=1
        (settle) read page0 : exits=7 pf_taken=7 pf_fixed=7 pf_fast=7 tlb_flush=1
        write 0..15 : exits=16 pf_taken=16 pf_fixed=16 pf_fast=16
        write 0..15 again :
        GET_DIRTY_LOG [exits-1] : exits=-1 remote_tlb_flush_requests=1
        (settle) read page0 : exits=7 pf_taken=7 pf_fixed=7 pf_fast=7 tlb_flush=1
        write 0..15 : exits=16 pf_taken=16 pf_fixed=16 pf_fast=16
        disable dirty log [exits-1] : exits=-1
        write 0..15 :
        ",
        |s| {
            (0..16).for_each(|i| s.set(e(PT_A, i), f(i) | PWAD));
            let store = Op::Wrs(v(0), 16);
            s.line(&[store]);
            s.host_line(HostEvent::DirtyLog(VM, true));
            s.lines(&[rd(v(0)), store, store]);
            s.host_line(HostEvent::DirtyRound(VM));
            // 23 pages: the data, and every table that a walk went through.
            let mut dirty = vec![PML4A, PDPT_A, PD_A, PT_A];
            dirty.extend((0..16).map(f).chain([0x80_0000, 0x80_1000, 0x80_2000]));
            assert_eq!(
                s.machine.regime().dirty_frames().iter().map(|gfn| gfn.base().as_u64()).collect::<Vec<_>>(),
                dirty
            );
            s.lines(&[rd(v(0)), store]);
            s.host_line(HostEvent::DirtyLog(VM, false));
            s.line(&[store]);
        },
    );
}

#[test]
fn t12b_large_pages_are_split_when_logging_starts_and_dropped_when_it_ends() {
    scenario_over(
        PageSize::Size2M,
        "
        write 2M+0 : exits=1 pf_taken=1 pf_fixed=1 pages_2m=1
        enable dirty log [exits-1] : exits=-1 pages_4k=2048 pages_2m=-4 remote_tlb_flush_requests=1
        (settle) nop read 0x4000 : exits=4 pf_taken=4 pf_fixed=4 pf_fast=4 tlb_flush=1
        read 2M+0 : exits=2 pf_taken=2 pf_fixed=2 pf_fast=2
        write 2M+0 : exits=1 pf_taken=1 pf_fixed=1 pf_fast=1
        write 512 pages : exits=511 pf_taken=511 pf_fixed=511 pf_fast=511
        disable dirty log [exits-1] : exits=-1 pages_4k=-2048 remote_tlb_flush_requests=4
        (settle) nop read 0x4000 : exits=2 pf_taken=2 pf_fixed=2 tlb_flush=1 pages_2m=2
        write 512 pages : exits=1 pf_taken=1 pf_fixed=1 pages_2m=1
        ",
        |s| {
            s.set(e(PD_A, 2), 0x200_0000 | PWUAD | S);
            s.line(&[wr(v(1024), 1)]);
            s.host_line(HostEvent::DirtyLog(VM, true));
            s.lines(&[rd(0x4000), rd(v(1024)), wr(v(1024), 1), Op::Wrs(v(1024), 512)]);
            s.host_line(HostEvent::DirtyLog(VM, false));
            s.lines(&[rd(0x4000), Op::Wrs(v(1024), 512)]);
        },
    );
}

#[test]
fn t13_a_device_s_entry_saves_the_violation_but_not_the_exit() {
    scenario("
        mmio read #1 : exits=2 pf_taken=2 pf_fixed=1 pf_emulate=1 insn_emulation=1 mmio_exits=1 pf_mmio_spte_created=1 pages_4k=1
        mmio read #2 : exits=1 insn_emulation=1 mmio_exits=1
        mmio write : exits=1 insn_emulation=1 mmio_exits=1
        ram read page1 :
        mmio read #3 : exits=1 insn_emulation=1 mmio_exits=1
        ", |s| {
        s.set(PT_A, 0x4000_0000 | PWAD);
        s.set(e(PT_A, 1), f(0) | PWAD);
        s.lines(&[rd(v(0)), rd(v(0)), wr(v(0), 0), rd(v(1)), rd(v(0))]);
        assert_eq!(s.machine.value, 0, "devices read as zero");
    });
}
