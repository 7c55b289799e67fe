//! The recorded machine under nested paging, as it was when its scenarios were recorded (`kvm_amd npt=1`, Linux 6.1).

use memvirt_addr::PageSize;
use memvirt_nested::{AdBits, Nested};
use memvirt_pagetable::Npt4;
use memvirt_platform::{Tags, Vendor};
use memvirt_testkit::caches::skylake;
use memvirt_testkit::{Machine, Recorded};

pub(crate) struct Npt;

impl Recorded for Npt {
    type Regime = Nested<Npt4>;
    const FAULTS: bool = true;
    const UNREAD: &'static [&'static str] = &[];

    fn counters(regime: &Self::Regime) -> Vec<(&'static str, u64)> {
        regime.stats().values().collect()
    }

    fn kernel(_: &Self::Regime) -> &'static str {
        "6.1"
    }

    fn check(machine: &Machine<Self::Regime>) {
        let wrong = machine.regime().audit(machine.host_memory(), machine.map_of_memory());
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}

pub(crate) type Scenario = memvirt_testkit::Scenario<Npt>;

/// Runs a scenario without and with walk caches; no recorded line may be left over.
pub(crate) fn scenario_over(host_pages: PageSize, recorded: &'static str, script: impl Fn(&mut Scenario)) {
    let nested = |host: &mut _| Nested::new(host, AdBits::On, Vendor::Svm).unwrap();
    let machine = || Machine::new(host_pages, 1, Tags::Off, nested);
    for machine in [machine(), machine().with_walk_caches(&skylake())] {
        let mut scenario = Scenario::new(machine, recorded);
        script(&mut scenario);
        scenario.end();
    }
}

/// The same over 4 KiB host pages.
pub(crate) fn scenario(recorded: &'static str, script: impl Fn(&mut Scenario)) {
    scenario_over(PageSize::Size4K, recorded, script);
}
