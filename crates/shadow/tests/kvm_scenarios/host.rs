//! Scenarios of large guest pages, the page limit, what the host does, and MMIO.

use memvirt_addr::PageSize;
use memvirt_ops::VmId;
use memvirt_ops::arch::HostEvent;

use crate::guest::{Inspect, on_both_kernels, scenario};
use memvirt_testkit::op::{Op, PD_A, PT_A, PWAD, PWUA, PWUAD, S, e, f, frames, rd, v, wr};

const VM: VmId = VmId::FIRST;

#[test]
fn t9_a_large_guest_page_over_small_host_pages_is_splintered() {
    scenario("
        read 2M+0 : exits=1 pf_taken=1 pf_fixed=1 tlb_flush=1 mmu_cache_miss=3 pages_4k=8 remote_tlb_flush_requests=2
        read 2M pages 0..511 : exits=63 pf_taken=63 pf_fixed=63 pages_4k=504
        write 2M+0 (D set) :
        clean 2M: read +0 : exits=1 pf_taken=1 pf_fixed=1 mmu_cache_miss=1 pages_4k=8
        clean 2M: write +0 : exits=1 pf_taken=1 pf_fixed=1 tlb_flush=1 mmu_cache_miss=1 pages_4k=8 remote_tlb_flush_requests=1 max_mmu_rmap_size=1
        clean 2M: read +4096*64 : exits=1 pf_taken=1 pf_fixed=1 pages_4k=8
        ", |s| {
        s.set(e(PD_A, 2), 0x200_0000 | PWUAD | S);
        s.lines(&[rd(v(1024)), Op::Rds(v(1024), 512), wr(v(1024), 1)]);
        s.set(e(PD_A, 3), 0x220_0000 | PWUA | S);
        s.lines(&[rd(v(1536)), wr(v(1536), 1), rd(v(1600))]);
        assert_eq!(s.machine.show(e(PD_A, 3)), 0x220_0000 | PWUAD | S);
    });
}

#[test]
fn t9b_a_table_inside_a_large_page_splinters_it() {
    on_both_kernels(PageSize::Size2M, "
        read 2M+0 : exits=1 pf_taken=1 pf_fixed=1 tlb_flush=1 mmu_cache_miss=2 pages_2m=1 remote_tlb_flush_requests=2
        read 2M pages 0..511 :
        clean 2M: read : exits=1 pf_taken=1 pf_fixed=1 pages_2m=1
        clean 2M: write : exits=1 pf_taken=1 pf_fixed=1
        use PT at gpa 0x2001000 (inside 2M page) : exits=1 pf_taken=1 pf_fixed=1 tlb_flush=1 mmu_cache_miss=1 pages_4k=1 remote_tlb_flush_requests=1 max_mmu_rmap_size=1
        write 2M+0 after PT shadowed : exits=1 pf_taken=1 pf_fixed=1 tlb_flush=1 mmu_cache_miss=1 pages_4k=8 pages_2m=-1 remote_tlb_flush_requests=1
        read 2M pages 0..511 : exits=63 pf_taken=63 pf_fixed=63 pages_4k=504
        write PT page via 2M mapping : exits=1 pf_taken=1 pf_fixed=1 mmu_unsync=1
        ", |s| {
        s.set(e(PD_A, 2), 0x200_0000 | PWUAD | S);
        s.lines(&[rd(v(1024)), Op::Rds(v(1024), 512)]);
        s.set(e(PD_A, 3), 0x220_0000 | PWUA | S);
        s.lines(&[rd(v(1536)), wr(v(1536), 1)]);
        s.set(e(PD_A, 4), 0x200_1000 | PWUA);
        s.set(0x200_1000, f(0) | PWAD);
        s.lines(&[rd(v(2048)), wr(v(1024), 2), Op::Rds(v(1024), 512), wr(v(1025) + 8, 0x40_1000 | PWAD)]);
    });
}

#[test]
fn t10_the_oldest_pages_go_when_the_limit_is_reached() {
    scenario(
        "
        ioctl SET_NR_MMU_PAGES(64) [exits col off by -1] : exits=-1
        re-touch table 0 : exits=1 pf_taken=1 pf_fixed=1 mmu_cache_miss=1 pages_4k=1
        re-touch table 99 :
        ",
        |s| {
            let table = |i: u64| 0x60_0000 + 4096 * i;
            for i in 0..100 {
                s.set(table(i), f(0) | PWAD);
                s.set(e(PD_A, i), table(i) | PWUA);
            }
            assert_eq!(s.machine.kvm().max_pages(), 655);
            s.host_line(HostEvent::ShadowPageLimit(VM, 64));
            (0..100).for_each(|i| s.machine.run(rd(v(512 * i))));
            s.lines(&[rd(v(0)), rd(v(50688))]);
            let stats = s.machine.stats();
            assert_eq!((stats.mmu_recycled, stats.mmu_shadow_zapped, stats.mmu_cache_miss), (63, 63, 119));
        },
    );
}

#[test]
fn t11_what_the_host_takes_away_faults_once_more() {
    scenario("
        prime 0..15 : exits=2 pf_taken=2 pf_fixed=2 tlb_flush=1 mmu_cache_miss=3 pages_4k=16 remote_tlb_flush_requests=3 max_mmu_rmap_size=1
        madvise DONTNEED 4 data pages [exits-1] : exits=-1 pages_4k=-8 remote_tlb_flush_requests=1
        read 0..15 : exits=4 pf_taken=4 pf_fixed=4 tlb_flush=1 pages_4k=4
        mprotect host page0 RO [exits-1] : exits=-1 pages_4k=-20 remote_tlb_flush_requests=1
        write page0 : exits=2 pf_taken=2 pf_fixed=1 tlb_flush=1 pages_4k=1
        ", |s| {
        (0..16).for_each(|i| s.set(e(PT_A, i), f(i) | PWAD));
        s.line(&[Op::Rds(v(0), 16)]);
        s.host_line(HostEvent::Discard(VM, frames(f(0), 0x4000)));
        s.line(&[Op::Rds(v(0), 16)]);
        s.host_line(HostEvent::Unmap(VM, frames(f(0), 0x20_0000)));
        s.machine.host(HostEvent::Unmap(VM, frames(f(0), 0x20_0000)));
        s.line(&[wr(v(0), 1)]);
    });
}

#[test]
fn t12_dirty_logging_costs_one_exit_per_page_and_round() {
    scenario("
        prime write 0..15 : exits=2 pf_taken=2 pf_fixed=2 tlb_flush=1 mmu_cache_miss=3 pages_4k=16 remote_tlb_flush_requests=3 max_mmu_rmap_size=1
        enable dirty log [exits-1] : exits=-1 remote_tlb_flush_requests=1
        (settle) read page0 : tlb_flush=1
        write 0..15 : exits=16 pf_taken=16 pf_fixed=16
        write 0..15 again :
        GET_DIRTY_LOG [exits-1] : exits=-1 remote_tlb_flush_requests=1
        (settle) read page0 : tlb_flush=1
        write 0..15 : exits=16 pf_taken=16 pf_fixed=16
        disable dirty log [exits-1] : exits=-1
        write 0..15 :
        ", |s| {
        (0..16).for_each(|i| s.set(e(PT_A, i), f(i) | PWAD));
        let store = Op::Wrs(v(0), 16);
        s.line(&[store]);
        s.host_line(HostEvent::DirtyLog(VM, true));
        s.lines(&[rd(v(0)), store, store]);
        s.host_line(HostEvent::DirtyRound(VM));
        assert_eq!(s.machine.kvm().dirty_frames().map(|gfn| gfn.base().as_u64()).collect::<Vec<_>>(), (0..16).map(f).collect::<Vec<_>>());
        s.lines(&[rd(v(0)), store]);
        s.host_line(HostEvent::DirtyLog(VM, false));
        s.line(&[store]);
    });
}

#[test]
fn t12b_dirty_logging_splits_a_large_page_at_its_first_store() {
    on_both_kernels(PageSize::Size2M, "
        write 2M+0 : exits=1 pf_taken=1 pf_fixed=1 tlb_flush=1 mmu_cache_miss=2 pages_2m=1 remote_tlb_flush_requests=2
        enable dirty log [exits-1] : exits=-1 remote_tlb_flush_requests=1
        (settle) nop read 0x4000 : tlb_flush=1
        read 2M+0 :
        write 2M+0 : exits=1 pf_taken=1 pf_fixed=1 tlb_flush=1 mmu_cache_miss=1 pages_4k=1 pages_2m=-1 remote_tlb_flush_requests=1
        write 512 pages : exits=511 pf_taken=511 pf_fixed=511 pages_4k=511
        disable dirty log [exits-1] : exits=-1 pages_4k=-512 remote_tlb_flush_requests=1
        (settle) nop read 0x4000 : tlb_flush=1
        write 512 pages : exits=1 pf_taken=1 pf_fixed=1 tlb_flush=1 pages_2m=1 remote_tlb_flush_requests=1
        ", |s| {
        s.set(e(PD_A, 2), 0x200_0000 | PWUAD | S);
        s.line(&[wr(v(1024), 1)]);
        s.host_line(HostEvent::DirtyLog(VM, true));
        s.lines(&[rd(0x4000), rd(v(1024)), wr(v(1024), 1), Op::Wrs(v(1024), 512)]);
        s.host_line(HostEvent::DirtyLog(VM, false));
        s.lines(&[rd(0x4000), Op::Wrs(v(1024), 512)]);
    });
}

#[test]
fn t13_an_mmio_entry_saves_the_walk_but_not_the_exit() {
    scenario("
        mmio read #1 : exits=1 pf_taken=1 pf_emulate=1 tlb_flush=1 insn_emulation=1 mmio_exits=1 pf_mmio_spte_created=1 mmu_cache_miss=3 pages_4k=1 remote_tlb_flush_requests=3 max_mmu_rmap_size=1
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
