//! What every exit says of the MMU lock and of kicked vCPUs, under every regime: what a scheduler in simulated time builds its
//! queues from.

use memvirt_machine::{HostConfig, RegimeKind};
use memvirt_ops::VcpuId;
use memvirt_ops::arch::VcpuSet;
use memvirt_platform::{Exit, ExitReason, LockMode, Work};

use super::lives::{CPUS, Life, config, seeds};

/// All exits of some lives, by the vCPU that made them.
fn exits(regime: RegimeKind) -> Vec<(VcpuId, Exit)> {
    let mut all = Vec::new();
    for seed in 0..seeds(8) {
        let mut life = Life::new(regime, config(seed), HostConfig::default(), seed, usize::from(CPUS));
        (0..300).for_each(|_| life.step());
        all.extend(life.lab.exits());
    }
    all
}

fn everybody_but(vcpu: VcpuId) -> VcpuSet {
    (0..CPUS).map(VcpuId).filter(|other| *other != vcpu).fold(VcpuSet::EMPTY, VcpuSet::with)
}

/// Whether tables of the hypervisor changed, or were compared so that they might.
const fn on_tables(work: &Work) -> bool {
    let entries = work.entries_set + work.entries_cleared + work.entries_synced;
    entries + work.tables_allocated + work.tables_freed > 0
}

const APART: [ExitReason; 6] =
    [ExitReason::Ipi, ExitReason::Hypercall, ExitReason::PortIo, ExitReason::Msr, ExitReason::Cpuid, ExitReason::Halt];

/// Checks what holds everywhere; returns how many exits held the lock alone, shared, not at all, and how many kicked.
fn sound(regime: RegimeKind) -> [u64; 4] {
    let [mut alone, mut shared, mut free, mut kicked] = [0; 4];
    for (vcpu, exit) in exits(regime) {
        match exit.lock {
            Some(LockMode::Exclusive) => alone += 1,
            Some(LockMode::Shared) => shared += 1,
            None => free += 1,
        }
        let what = format!("{regime}, {vcpu:?}: {exit:?}");
        // A flush of all vCPUs interrupts all others. KVM also interrupts them to let go of a root that was zapped.
        let all = everybody_but(vcpu);
        let asked = exit.work.remote_flushes > 0;
        let roots = !asked && matches!(regime, RegimeKind::ShadowKvm61 | RegimeKind::ShadowKvm612);
        assert!(exit.kick == if asked || roots && !exit.kick.is_empty() { all } else { VcpuSet::EMPTY }, "{what}");
        assert!(exit.kick.is_empty() || exit.lock.is_some(), "{what}: whoever waits for others holds the lock");
        kicked += u64::from(!exit.kick.is_empty());
        if APART.contains(&exit.reason) {
            assert!(exit.lock.is_none() && !on_tables(&exit.work), "{what}");
        }
        assert!(!on_tables(&exit.work) || exit.lock.is_some(), "{what}: tables change under the lock");
    }
    [alone, shared, free, kicked]
}

#[test]
fn shadow_paging_holds_the_lock_alone() {
    for regime in RegimeKind::ALL.iter().copied().filter(|kind| kind.name().starts_with("shadow:")) {
        let [alone, shared, free, kicked] = sound(regime);
        assert!(alone > 1000 && shared == 0 && free > 0, "{regime}: {alone}, {shared}, {free}");
        // A virtual TLB is its vCPU's own, so that nobody else ever hears of it; the naive policy lets others be stale.
        let private = matches!(regime, RegimeKind::ShadowVtlb | RegimeKind::ShadowInvlpgOnly);
        assert_eq!(kicked == 0, private, "{regime}: {kicked}");
    }
}

#[test]
fn nested_paging_shares_it_and_kicks_nobody() {
    for regime in [RegimeKind::NestedEpt, RegimeKind::NestedNpt, RegimeKind::Flat] {
        let [alone, shared, free, kicked] = sound(regime);
        assert!(alone == 0 && shared > 100 && free > 0 && kicked == 0, "{regime}: {alone}, {shared}, {free}, {kicked}");
    }
}

#[test]
fn agile_paging_does_both() {
    let [alone, shared, ..] = sound(RegimeKind::Agile);
    assert!(alone > 0 && shared > 0, "{alone}, {shared}");
}

/// The lock is the one of whose tables an exit changes: L1's shadow tables, or L0's of EPT12, are held alone.
#[test]
fn nested_hypervisors_hold_the_lock_alone() {
    for regime in [RegimeKind::NestedVirtShadow, RegimeKind::NestedVirtEpt, RegimeKind::NestedVirtPvm] {
        let [alone, shared, free, _] = sound(regime);
        assert!(alone > shared && free > 0, "{regime}: {alone}, {shared}, {free}");
    }
}

#[test]
fn a_bare_machine_has_neither() {
    assert!(exits(RegimeKind::Native).is_empty());
}
