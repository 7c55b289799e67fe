//! The recorded machine under KVM's shadow MMU, on both kernels.

use memvirt_addr::PageSize;
use memvirt_platform::{Tags, Vendor};
use memvirt_shadow::kvm::{Kernel, Kvm, KvmConfig, KvmStats};
use memvirt_testkit::Recorded;
use memvirt_testkit::caches::skylake;

pub(crate) type Machine = memvirt_testkit::Machine<Kvm>;
pub(crate) type Scenario = memvirt_testkit::Scenario<Shadow>;

pub(crate) struct Shadow;

impl Recorded for Shadow {
    type Regime = Kvm;
    const FAULTS: bool = false;
    const UNREAD: &'static [&'static str] =
        &["mmu_recycled", "max_mmu_page_hash_collisions", "remote_tlb_flush=", "pf_fast"];

    fn counters(regime: &Kvm) -> Vec<(&'static str, u64)> {
        regime.stats().values().collect()
    }

    fn kernel(regime: &Kvm) -> &'static str {
        regime.config().kernel.name()
    }

    fn check(machine: &Machine) {
        machine.check();
    }
}

/// What only this regime can tell.
pub(crate) trait Inspect {
    fn kvm(&self) -> &Kvm;

    fn stats(&self) -> KvmStats {
        *self.kvm().stats()
    }

    /// Panics where the structure is not what it has to be.
    fn check(&self);

    /// Panics where a synced table grants what the guest's tables do not.
    fn check_against_guest(&self);
}

impl Inspect for Machine {
    fn kvm(&self) -> &Kvm {
        self.regime()
    }

    fn check(&self) {
        self.kvm().check_structure(self.host_memory(), self.map_of_memory()).unwrap();
    }

    fn check_against_guest(&self) {
        self.kvm().check_against_guest(self.host_memory(), self.map_of_memory()).unwrap();
    }
}

/// A fresh machine.
pub(crate) fn machine(config: KvmConfig, host_pages: PageSize, vcpus: u16, tags: Tags) -> Machine {
    Machine::new(host_pages, vcpus, tags, |_| Kvm::new(config))
}

/// Runs a scenario on both kernels, without walk caches and with them.
pub(crate) fn on_both_kernels(host_pages: PageSize, recorded: &'static str, script: impl Fn(&mut Scenario)) {
    for kernel in [Kernel::V6_1, Kernel::V6_12] {
        let machine = || machine(KvmConfig::new(kernel, Vendor::Svm), host_pages, 1, Tags::Off);
        for machine in [machine(), machine().with_walk_caches(&skylake())] {
            let mut scenario = Scenario::new(machine, recorded);
            script(&mut scenario);
            scenario.end();
        }
    }
}

/// The same over 4 KiB host pages.
pub(crate) fn scenario(recorded: &'static str, script: impl Fn(&mut Scenario)) {
    on_both_kernels(PageSize::Size4K, recorded, script);
}
