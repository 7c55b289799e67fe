//! How the throughput of vCPUs that share one lock levels off.

use memvirt_timeline::{Lock, Program, Setup, Step, Work, run};

struct Faults(Vec<u32>);

impl Program for Faults {
    fn next(&mut self, vcpu: usize, _now: u64, steps: &mut Vec<Step>) -> bool {
        self.0[vcpu] += 1;
        steps.extend([Work::Guest(9_000), Work::Host(1_000), Work::locked(Lock::Exclusive, 2_000)].map(Step::from));
        self.0[vcpu] <= 1_000
    }
}

fn main() {
    println!("vCPUs  faults per million cycles  lock held  waiting");
    for vcpus in [1, 2, 4, 8, 16, 32, 64] {
        let done = run(&Setup::alone(vcpus), &mut Faults(vec![0; vcpus]));
        let faults = done.vms[0].lock.acquisitions as f64;
        let waited: u64 = done.vcpus.iter().map(|account| account.waiting()).sum();
        let share = waited as f64 / (done.end * vcpus as u64) as f64;
        let held = done.vms[0].lock.utilization(done.end);
        println!("{vcpus:5}  {:25.1}  {:8.1}%  {:6.1}%", faults * 1e6 / done.end as f64, 100.0 * held, 100.0 * share);
    }
}
