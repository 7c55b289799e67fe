//! Two vCPUs touch fresh memory under KVM's shadow paging and under EPT: who waits for the MMU lock?

use memvirt_machine::{GuestConfig, HostConfig, MachineSpec, Measure, Setup, Shape};
use memvirt_smp::{Load, Smp, Start, Tenant, run};
use memvirt_timeline::{Latencies, Slice};
use memvirt_workload::Workload;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let workload = Workload::find("touch-and-free")?.scaled(0.05)?;
    for regime in ["shadow:kvm", "nested"] {
        let (guest, host, measure) = (GuestConfig::default(), HostConfig::default(), Measure::default());
        let machine = MachineSpec::load(MachineSpec::DEFAULT)?;
        let setup = Setup { regime: regime.parse()?, guest, host, machine, measure, check: false };
        let latencies = Latencies { interrupt: 500, kicked: 1500, world_switch: 2000, handover: 150 };
        let shape = Shape { cpus: 2, vms: 1, vcpus: 2 };
        let smp = Smp { setup, shape, latencies, slice: Slice(1 << 24), start: Start::Booted, begin: Vec::new() };
        let tenants = (0..2).map(|i| Tenant::new(workload.generator(u64::from(i)), i, 2));
        let loads = tenants.map(|tenant| Load { processes: vec![tenant.first()], source: tenant });
        let done = run(&smp, loads.collect())?.run;
        let wait: u64 = done.timeline.vcpus.iter().map(|vcpu| vcpu.lock_wait).sum();
        println!("{regime}: {} cycles, {wait} of them waiting for the lock", done.cycles());
    }
    Ok(())
}
