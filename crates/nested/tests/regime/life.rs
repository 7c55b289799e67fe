//! How the nested tables come and go: what the host takes, splits and merges; devices; flushes; vendors.

use memvirt_addr::{Acc, AccessKind, Gfn, Gva, PageSize, PfCode};
use memvirt_nested::AdBits;
use memvirt_ops::VcpuId;
use memvirt_ops::arch::{Control, CrWrite, GfnRange, HostEvent};
use memvirt_pagetable::{Ept4, Npt4};
use memvirt_platform::{ExitReason, Horizon, Platform, Stop, Tags, Vendor};

use crate::lab::{A, CPU, D, Lab, P, ROOT, Setup, U, VM, W, direct};

const fn range(start: u64, frames: u64) -> GfnRange {
    GfnRange { start: Gfn::new(start), frames }
}

#[test]
fn the_host_takes_whole_large_pages_even_where_they_were_split() {
    let mut lab = Lab::<Ept4>::new(Setup::LARGE);
    lab.direct(600, AccessKind::Write);
    lab.host(HostEvent::DirtyLog(VM, true));
    let before = lab.stats().leaves;
    lab.host(HostEvent::Unmap(VM, range(1000, 1)));
    assert_eq!(lab.stats().leaves[0], before[0] - 512, "all pieces of the host's page");
    lab.sound();
    lab.direct(600, AccessKind::Read);
    lab.sound();
}

#[test]
fn a_table_left_over_from_logging_gives_way_to_a_large_page() {
    let mut lab = Lab::<Ept4>::new(Setup::LARGE);
    lab.direct(600, AccessKind::Write);
    lab.host(HostEvent::DirtyLog(VM, true));
    lab.host(HostEvent::Unmap(VM, range(512, 512)));
    lab.host(HostEvent::DirtyLog(VM, false));
    assert_eq!(lab.stats().leaves, [0, 0, 0], "the other region was merged");
    lab.direct(600, AccessKind::Read);
    assert_eq!(lab.stats().leaves, [0, 2, 0]);
    lab.sound();
}

#[test]
fn a_page_of_1_gib_is_split_to_the_bottom_and_merged_by_one_flush() {
    let frames = 1 << 18;
    let mut lab = Lab::<Ept4>::new(Setup { frames, host_page: PageSize::Size1G, ..Setup::SMALL });
    lab.direct(7, AccessKind::Write);
    assert_eq!(lab.stats().leaves, [0, 0, 1]);
    let bytes = lab.engine().table_bytes().nested;
    lab.host(HostEvent::DirtyLog(VM, true));
    assert_eq!(lab.stats().leaves, [frames, 0, 0]);
    assert_eq!(lab.engine().table_bytes().nested - bytes, 513 << 12);
    let requests = lab.stats().remote_tlb_flush_requests;
    lab.host(HostEvent::DirtyLog(VM, false));
    assert_eq!((lab.stats().leaves, lab.stats().remote_tlb_flush_requests - requests), ([0; 3], 1));
    assert_eq!(lab.engine().table_bytes().nested, bytes);
    lab.direct(7, AccessKind::Write);
    assert_eq!(lab.stats().leaves, [0, 0, 1]);
    lab.sound();
}

#[test]
fn a_discarded_page_reads_as_zero_read_only_and_is_exchanged_by_the_first_store() {
    let mut lab = Lab::<Ept4>::new(Setup::SMALL);
    let violations = |lab: &mut Lab<Ept4>, gfn, kind| lab.exits(ExitReason::EptViolation, |lab| lab.direct(gfn, kind));
    [40, 41].into_iter().for_each(|gfn| lab.store(CPU, direct(gfn, 0), 7).unwrap());
    lab.host(HostEvent::Discard(VM, range(40, 2)));
    assert_eq!([40, 41].map(|gfn| lab.peek(gfn, 0)), [0, 0]);
    assert_eq!(violations(&mut lab, 40, AccessKind::Read), 1);
    let before = lab.stats();
    assert_eq!(violations(&mut lab, 40, AccessKind::Write), 2, "exchanged, then mapped");
    let after = lab.stats();
    assert_eq!(after.pf_fixed - before.pf_fixed, 1);
    assert_eq!(after.remote_tlb_flush_requests - before.remote_tlb_flush_requests, 1, "the leaf was dropped between");
    assert_eq!(violations(&mut lab, 41, AccessKind::Write), 1, "a store that comes first finds nothing to exchange");
    lab.sound();
}

#[test]
fn a_discarded_page_that_the_host_has_stored_to_is_the_guest_s_own() {
    let mut lab = Lab::<Ept4>::new(Setup::SMALL);
    lab.direct(40, AccessKind::Write);
    lab.host(HostEvent::Discard(VM, range(40, 1)));
    lab.poke(40, 0, 9);
    let exits = lab.exits(ExitReason::EptViolation, |lab| {
        lab.direct(40, AccessKind::Read);
        lab.direct(40, AccessKind::Write);
    });
    assert_eq!(exits, 1);
    lab.sound();
}

#[test]
fn when_the_slots_change_all_tables_go_and_devices_are_found_anew() {
    let mut lab = Lab::<Npt4>::new(Setup { vendor: Vendor::Svm, ..Setup::SMALL });
    lab.direct(40, AccessKind::Write);
    lab.host(HostEvent::SlotChange(VM));
    assert_eq!((lab.stats().leaves, lab.engine().table_bytes().nested), ([0; 3], 4096));
    lab.sound();
    lab.direct(40, AccessKind::Read);
    lab.sound();
}

/// The guest maps page 0 of its first root to a device.
fn with_device<H: memvirt_nested::SecondStage>(setup: Setup) -> Lab<H> {
    let mut lab = Lab::<H>::new(setup);
    for (table, entry) in [(ROOT, 4u64 << 12), (4, 6 << 12), (6, 8 << 12), (8, 1 << 30)] {
        lab.poke(table, 0, entry | P | W | U | A | D);
    }
    lab
}

fn device_entries<H: memvirt_nested::SecondStage>(setup: Setup) {
    let mut lab = with_device::<H>(setup);
    let acc = Acc::user(Gva::new(0x18), AccessKind::Write);
    let touch = |lab: &mut Lab<H>| {
        let before = (lab.stats(), lab.out.counters.exits_for(ExitReason::EptMisconfig));
        lab.access(CPU, acc).unwrap();
        let after = lab.stats();
        assert_eq!((after.mmio_exits - before.0.mmio_exits, after.insn_emulation - before.0.insn_emulation), (1, 1));
        (
            after.pf_mmio_spte_created - before.0.pf_mmio_spte_created,
            after.pf_emulate - before.0.pf_emulate,
            lab.out.counters.exits_for(ExitReason::EptMisconfig) - before.1,
        )
    };
    assert_eq!(touch(&mut lab), (1, 1, 0), "a violation, answered with an entry");
    assert_eq!(touch(&mut lab), (0, 0, 1), "hardware stops at the entry");
    lab.host(HostEvent::DirtyLog(VM, true));
    assert_eq!(touch(&mut lab), (1, 1, 1), "the slot changed: the entry is of an older generation");
    assert_eq!(touch(&mut lab), (0, 0, 1));
    let (done, stop) = lab.checked.accesses(CPU, &[acc], Horizon::NextExit, &mut lab.out);
    assert_eq!((done, stop), (0, Stop::Horizon));
}

#[test]
fn the_entry_of_a_device_is_good_for_one_generation_of_slots() {
    device_entries::<Ept4>(Setup::SMALL);
    device_entries::<Npt4>(Setup { vendor: Vendor::Svm, ..Setup::SMALL });
}

#[test]
fn a_guest_table_in_a_device_exits_and_faults() {
    let mut lab = with_device::<Ept4>(Setup::SMALL);
    lab.poke(6, 0, 1 << 30 | P | W | U | A);
    let acc = Acc::user(Gva::new(0), AccessKind::Read);
    for reason in [ExitReason::EptViolation, ExitReason::EptMisconfig] {
        lab.direct(4, AccessKind::Read);
        let before = lab.stats();
        // The tables above it are touched for the first time before.
        let exits = lab.exits(reason, |lab| assert_eq!(lab.access(CPU, acc).unwrap_err().code, PfCode::of(acc, false)));
        assert!(exits >= 1, "{reason:?}");
        assert_eq!((lab.stats().mmio_exits, lab.stats().insn_emulation), (0, before.insn_emulation + 1));
    }
}

#[test]
fn each_vcpu_serves_a_requested_flush_once_however_many_there_were() {
    let mut lab = Lab::<Ept4>::new(Setup { vcpus: 2, ..Setup::SMALL });
    let write = Acc::supervisor(Gva::new(direct(40, 0)), AccessKind::Write);
    [0, 1].into_iter().for_each(|v| lab.access(VcpuId(v), write).unwrap());
    lab.host(HostEvent::DirtyLog(VM, true));
    lab.host(HostEvent::Unmap(VM, range(40, 1)));
    assert_eq!((lab.stats().remote_tlb_flush_requests, lab.stats().tlb_flush), (2, 0));
    assert!([0, 1].iter().all(|v| lab.reached(VcpuId(*v), direct(40, 0)).is_none()));
    lab.access(VcpuId(1), write).unwrap();
    assert_eq!(lab.stats().tlb_flush, 1);
    lab.access(VcpuId(0), write).unwrap();
    assert_eq!(lab.stats().tlb_flush, 2);
    lab.sound();
}

#[test]
fn the_vendor_decides_which_register_accesses_exit() {
    for (vendor, toggle, write_protect) in [(Vendor::Svm, 3, 1), (Vendor::Vmx, 0, 0)] {
        let mut lab = Lab::<Ept4>::new(Setup { vendor, ..Setup::SMALL });
        let mut exits = |write| lab.exits(ExitReason::CrAccess, |lab| lab.control_on(CPU, Control::Cr(write)));
        assert_eq!(exits(CrWrite::TogglePge), toggle);
        assert_eq!(exits(CrWrite::WriteProtect(false)), write_protect);
        assert_eq!(lab.stats().tlb_flush, if vendor == Vendor::Svm { 2 } else { 0 });
        assert_eq!(lab.stats().insn_emulation, toggle + write_protect);
    }
}

#[test]
fn without_tags_every_world_switch_flushes() {
    for (tags, flushes) in [(Tags::Off, 1), (Tags::On, 0)] {
        let mut lab = Lab::<Ept4>::new(Setup { tags, ..Setup::SMALL });
        lab.direct(40, AccessKind::Read);
        let before = lab.out.counters.tlb_flushes;
        lab.host(HostEvent::WorldSwitch(VM));
        assert_eq!(lab.out.counters.tlb_flushes - before, flushes);
        assert_eq!(lab.reached(CPU, direct(40, 0)).is_some(), tags == Tags::On);
    }
}

#[test]
fn without_nested_accessed_bits_a_table_costs_no_write_until_a_guest_bit_is_set() {
    let mut lab = Lab::<Ept4>::new(Setup { ad: AdBits::Off, ..Setup::SMALL });
    lab.direct(40, AccessKind::Write);
    lab.host(HostEvent::DirtyLog(VM, true));
    let read = lab.exits(ExitReason::EptViolation, |lab| lab.direct(40, AccessKind::Read));
    assert_eq!(read, 0, "reading tables is no write");
    let write = lab.exits(ExitReason::EptViolation, |lab| lab.direct(40, AccessKind::Write));
    assert_eq!(write, 1, "the page alone");
    assert_eq!(lab.stats().ad_updates_nested, 0);
    lab.sound();
}
