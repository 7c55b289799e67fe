//! Two vCPUs of one virtual machine: shadow pages are everybody's, roots are each one's own, and the MMU lock is held by what
//! touches either.

use memvirt_addr::PageSize;
use memvirt_ops::VcpuId;
use memvirt_ops::arch::Control;
use memvirt_ops::arch::{Trap, VcpuSet};
use memvirt_platform::{Exit, ExitReason, LockMode, Tags, Vendor};
use memvirt_shadow::kvm::{Kernel, KvmConfig};
use memvirt_testkit::op::{Op, PML4A, PML4B, PT_A, PWAD, cr3, e, f, invlpg, pte, rd, v};

use crate::guest::{Inspect, Machine, machine};

/// The kernel's table for the lowest 2 MiB, which both roots show.
fn kernel_table(machine: &Machine) -> u64 {
    (0..3).fold(PML4A, |table, _| machine.show(e(table, 0)) & !0xfff)
}

/// vCPU 0 under one root, vCPU 1 under another; both have used a page of the kernel.
fn two_roots(kernel: Kernel) -> Machine {
    let mut machine = machine(KvmConfig::new(kernel, Vendor::Vmx), PageSize::Size4K, 2, Tags::On);
    machine.ledger.exits = Some(Vec::new());
    machine.boot();
    machine.start(1);
    machine.run(cr3(PML4B));
    for number in 0..2 {
        machine.switch_to(number);
        machine.run(rd(0x9000));
    }
    machine
}

/// The exits of one operation on one vCPU, for this reason.
fn exits(machine: &mut Machine, vcpu: u16, op: Op, reason: ExitReason) -> Vec<Exit> {
    machine.switch_to(vcpu);
    machine.ledger.exits = Some(Vec::new());
    machine.run(op);
    let all = machine.ledger.exits.take().unwrap();
    all.into_iter().filter(|exit| exit.reason == reason).collect()
}

fn other(vcpu: u16) -> VcpuSet {
    VcpuSet::EMPTY.with(VcpuId(1 - vcpu))
}

/// `kvm_mmu_mark_parents_unsync`, `mmu_sync_children`: a table of the kernel that goes out of sync does so for every root above
/// it, and the first vCPU that loads one of them brings it back, for all.
#[test]
fn a_kernel_table_out_of_sync_is_synced_by_whichever_root_is_loaded() {
    for kernel in [Kernel::V6_1, Kernel::V6_12] {
        let mut machine = two_roots(kernel);
        let table = kernel_table(&machine);
        let stores =
            |machine: &mut Machine| exits(machine, 0, pte(table, 9, 0x9000 | PWAD), ExitReason::HiddenFault).len();
        assert_eq!(stores(&mut machine), 1, "the store lets the table drift");
        assert_eq!(stores(&mut machine), 0, "and further ones are free");
        assert_eq!(machine.stats().mmu_unsync, 1);
        // vCPU 1 loads its own root: the table is protected and compared, and vCPU 0 must forget that it may write.
        let load = exits(&mut machine, 1, cr3(PML4B), ExitReason::Cr3Load)[0];
        assert!(load.work.entries_synced > 0);
        assert_eq!((load.lock, load.kick), (Some(LockMode::Exclusive), other(1)));
        assert_eq!(machine.stats().mmu_unsync, 0);
        // vCPU 0's root was above the table as well: it looks, and finds nothing left to compare.
        let load = exits(&mut machine, 0, cr3(PML4A), ExitReason::Cr3Load)[0];
        assert_eq!((load.work.entries_synced, load.kick), (0, VcpuSet::EMPTY));
        assert_eq!(stores(&mut machine), 1, "the next store traps again, whoever synced");
        machine.check();
    }
}

/// `fast_pgd_switch`, `is_unsync_root`: a root in the vCPU's cache with nothing out of sync below is loaded without the lock.
#[test]
fn a_load_of_a_cached_root_in_sync_takes_no_lock() {
    for kernel in [Kernel::V6_1, Kernel::V6_12] {
        let mut machine = two_roots(kernel);
        let lock = |machine: &mut Machine, root| exits(machine, 0, cr3(root), ExitReason::Cr3Load)[0].lock;
        assert_eq!(lock(&mut machine, PML4B), Some(LockMode::Exclusive), "a root that this vCPU has not held");
        assert_eq!(lock(&mut machine, PML4A), None);
        assert_eq!(lock(&mut machine, PML4B), None);
        let table = kernel_table(&machine);
        machine.run(pte(table, 9, 0x9000 | PWAD));
        assert_eq!(lock(&mut machine, PML4A), Some(LockMode::Exclusive), "something to sync");
    }
}

/// A fault fills a shadow page for all vCPUs below whose roots it lies.
#[test]
fn a_page_filled_for_one_vcpu_is_there_for_the_other() {
    let mut machine = two_roots(Kernel::V6_12);
    machine.set(e(PT_A, 0), f(0) | PWAD);
    machine.switch_to(1);
    machine.run(cr3(PML4A));
    let faults = |machine: &mut Machine, vcpu| exits(machine, vcpu, rd(v(0)), ExitReason::HiddenFault);
    let filled = faults(&mut machine, 0);
    assert_eq!(filled.len(), 1);
    assert_eq!(filled[0].lock, Some(LockMode::Exclusive));
    assert_eq!(faults(&mut machine, 1).len(), 0);
}

/// Linux 6.1 flushes all vCPUs for an entry that INVLPG zaps: the address may be in use through other roots.
#[test]
fn invlpg_of_a_stale_entry_kicks_and_of_another_one_does_not() {
    let mut machine = two_roots(Kernel::V6_1);
    machine.set(e(PT_A, 0), f(0) | PWAD);
    machine.switch_to(0);
    machine.run(rd(v(0)));
    machine.run(pte(PT_A, 0, f(9) | PWAD));
    let stale = exits(&mut machine, 0, invlpg(v(0)), ExitReason::Invlpg)[0];
    assert_eq!((stale.lock, stale.kick, stale.work.remote_flushes), (Some(LockMode::Exclusive), other(0), 1));
    let nothing = exits(&mut machine, 0, invlpg(0x7000_0000), ExitReason::Invlpg)[0];
    assert_eq!((nothing.lock, nothing.kick), (Some(LockMode::Exclusive), VcpuSet::EMPTY));
}

#[test]
fn interrupts_and_what_has_nothing_to_do_with_paging_take_no_lock() {
    let mut machine = two_roots(Kernel::V6_1);
    for (control, reason) in [
        (Control::Ipi(other(0)), ExitReason::Ipi),
        (Control::Interrupt, ExitReason::Ipi),
        (Control::Trap(Trap::Cpuid), ExitReason::Cpuid),
        (Control::ReadCr3, ExitReason::CrAccess),
    ] {
        let exit = exits(&mut machine, 0, Op::Do(control), reason)[0];
        assert_eq!((exit.lock, exit.kick), (None, VcpuSet::EMPTY), "{control:?}: nobody waits for the other vCPU");
    }
}
