//! Random programs: everything ends, every account adds up, no lock is held twice, and the same seed gives the same bytes.

use std::collections::VecDeque;

use memvirt_timeline::{Latencies, Lock, Program, Setup, Slice, Step, Timeline, Work, run};
use proptest::prelude::*;

struct Script(Vec<VecDeque<Step>>);

impl Program for Script {
    fn next(&mut self, vcpu: usize, _: u64, steps: &mut Vec<Step>) -> bool {
        self.0[vcpu].pop_front().map(|step| steps.push(step)).is_some()
    }
}

const VCPUS: usize = 6;

fn work() -> impl Strategy<Value = Work> {
    let mode = prop_oneof![Just(Lock::Exclusive), Just(Lock::Shared)];
    prop_oneof![
        (0..500u64).prop_map(Work::Guest),
        (0..300u64).prop_map(Work::Host),
        (mode, 0..200u64, prop::collection::vec(0..VCPUS + 1, 0..4)).prop_map(|(mode, cycles, kick)| Work::Locked {
            mode,
            cycles,
            kick
        }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let targets = || prop::collection::vec((0..VCPUS + 1, prop::collection::vec(work(), 0..4)), 0..4);
    prop_oneof![
        8 => work().prop_map(Step::Work),
        1 => targets().prop_map(Step::Shootdown),
        1 => targets().prop_map(Step::Interrupt),
        1 => Just(Step::Await),
    ]
}

fn programs() -> impl Strategy<Value = Vec<Vec<Step>>> {
    prop::collection::vec(prop::collection::vec(step(), 0..30), VCPUS)
}

fn setup() -> impl Strategy<Value = Setup> {
    let places = (prop::collection::vec(0..3usize, VCPUS), prop::collection::vec(0..VCPUS, VCPUS));
    let begin = prop::collection::vec(prop_oneof![Just(0), 0..3000u64], 0..=VCPUS);
    (places, begin, 0..50u64, 0..80u64, prop_oneof![Just(0), 1..40u64], 1..2000u64).prop_map(
        |((vm_of, cpu_of), begin, interrupt, kicked, handover, slice)| Setup {
            vm_of,
            cpu_of,
            begin,
            latencies: Latencies { interrupt, kicked, world_switch: kicked / 2, handover },
            slice: Slice(slice),
        },
    )
}

fn execute(setup: &Setup, programs: &[Vec<Step>]) -> Timeline {
    run(setup, &mut Script(programs.iter().cloned().map(VecDeque::from).collect()))
}

/// What the programs ask for: guest cycles, host cycles, locked cycles, acquisitions.
fn asked(programs: &[Vec<Step>], sent: bool) -> [u64; 4] {
    let mut sum = [0; 4];
    let mut add = |work: &Work| match work {
        Work::Guest(cycles) => sum[0] += cycles,
        Work::Host(cycles) => sum[1] += cycles,
        Work::Locked { cycles, .. } => {
            sum[2] += cycles;
            sum[3] += 1;
        }
    };
    for step in programs.iter().flatten() {
        match step {
            Step::Work(work) => add(work),
            Step::Shootdown(targets) | Step::Interrupt(targets) if sent => {
                targets.iter().flat_map(|(_, work)| work).for_each(&mut add);
            }
            Step::Shootdown(_) | Step::Interrupt(_) | Step::Await => {}
        }
    }
    sum
}

proptest! {
    #![proptest_config(memvirt_properties::cases(300))]

    #[test]
    fn accounts_add_up(setup in setup(), programs in programs()) {
        let done = execute(&setup, &programs);
        for account in &done.vcpus {
            prop_assert_eq!(account.total(), account.span());
        }
        let sum = |of: fn(&memvirt_timeline::Account) -> u64| done.vcpus.iter().map(of).sum::<u64>();
        let got = [sum(|a| a.guest), sum(|a| a.host), sum(|a| a.locked), done.vms.iter().map(|vm| vm.lock.acquisitions).sum()];
        let (least, most) = (asked(&programs, false), asked(&programs, true));
        for i in 0..4 {
            prop_assert!((least[i]..=most[i]).contains(&got[i]), "{:?} of {:?} to {:?}", got, least, most);
        }
        for vm in &done.vms {
            prop_assert!(vm.lock.exclusive + vm.lock.shared <= done.end);
        }
        let waited: u64 = done.vms.iter().map(|vm| vm.lock.waited).sum();
        let contended: u64 = done.vms.iter().map(|vm| vm.lock.contended).sum();
        prop_assert_eq!(waited + setup.latencies.handover * contended, sum(|a| a.lock_wait));
        prop_assert_eq!(done, execute(&setup, &programs));
    }

    #[test]
    fn no_physical_cpu_does_two_things_at_a_time(setup in setup(), programs in programs()) {
        let done = execute(&setup, &programs);
        for cpu in 0..VCPUS {
            let on: Vec<_> = (0..VCPUS).filter(|vcpu| setup.cpu_of[*vcpu] == cpu).collect();
            let busy: u64 = on.iter().map(|vcpu| done.vcpus[*vcpu].span() - done.vcpus[*vcpu].preempted).sum();
            let end = on.iter().map(|vcpu| done.vcpus[*vcpu].end).max().unwrap_or(0);
            prop_assert!(busy <= end, "CPU {}: {} cycles of {}", cpu, busy, end);
        }
    }
}
