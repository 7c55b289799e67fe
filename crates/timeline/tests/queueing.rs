//! The lock against queueing theory: what a closed network of vCPUs and one lock must do.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::VecDeque;

use memvirt_timeline::{Lock, Program, Setup, Step, Work, run};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp};

/// Each vCPU thinks and takes the lock, `rounds` times.
struct Cycle {
    rounds: Vec<u32>,
    mode: Lock,
    think: f64,
    serve: f64,
    /// Exponential times instead of fixed ones.
    random: Option<ChaCha8Rng>,
}

impl Cycle {
    fn new(vcpus: usize, rounds: u32, mode: Lock, think: f64, serve: f64) -> Self {
        Self { rounds: vec![rounds; vcpus], mode, think, serve, random: None }
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "cycles")]
    fn draw(&mut self, mean: f64) -> u64 {
        let time = self.random.as_mut().map_or(mean, |random| Exp::new(1.0 / mean).unwrap().sample(random));
        time.round() as u64
    }
}

impl Program for Cycle {
    fn next(&mut self, vcpu: usize, _: u64, steps: &mut Vec<Step>) -> bool {
        let left = self.rounds[vcpu];
        self.rounds[vcpu] = left.saturating_sub(1);
        let (think, serve) = (self.draw(self.think), self.draw(self.serve));
        steps.extend([Work::Guest(think), Work::locked(self.mode, serve)].map(Step::from));
        left > 0
    }
}

#[test]
fn fixed_times_saturate_exactly() {
    // Think 900, serve 100: up to 10 vCPUs fit without waiting once they have fallen into step; 20 are served 100 apart.
    for (vcpus, per_round) in [(1, 1000), (4, 1000), (10, 1000), (20, 2000), (64, 6400)] {
        let rounds = 1000;
        let done = run(&Setup::alone(vcpus), &mut Cycle::new(vcpus, rounds, Lock::Exclusive, 900.0, 100.0));
        let (end, ideal) = (done.end, u64::from(rounds) * per_round);
        assert!(end.abs_diff(ideal) <= 900 + 100 * vcpus as u64, "{vcpus} vCPUs: {end}, {ideal}");
        assert_eq!(done.vms[0].lock.exclusive, u64::from(rounds) * 100 * vcpus as u64);
        assert!(done.vcpus.iter().all(|account| account.total() == account.end));
    }
}

/// Exact mean-value analysis of one queue and think time (Reiser & Lavenberg 1980).
fn throughput(vcpus: usize, think: f64, serve: f64) -> f64 {
    let mut queue = 0.0;
    let mut rate = 0.0;
    for n in 1..=vcpus {
        let response = serve * (1.0 + queue);
        rate = n as f64 / (think + response);
        queue = rate * response;
    }
    rate
}

#[test]
fn exponential_times_meet_mean_value_analysis() {
    for vcpus in [1, 2, 4, 8, 16, 32] {
        let rounds = 160_000 / u32::try_from(vcpus).unwrap();
        let mut program = Cycle::new(vcpus, rounds, Lock::Exclusive, 90_000.0, 10_000.0);
        program.random = Some(ChaCha8Rng::seed_from_u64(7));
        let done = run(&Setup::alone(vcpus), &mut program);
        let measured = f64::from(rounds) * vcpus as f64 / done.end as f64;
        let expected = throughput(vcpus, 90_000.0, 10_000.0);
        assert!((measured / expected - 1.0).abs() < 0.02, "{vcpus} vCPUs: {measured:e}, {expected:e}");
    }
}

#[test]
fn a_lock_that_changes_hands_takes_its_time() {
    // Think 0, serve 100: the lock goes from hand to hand, and each pair of hands but the first waits for its line.
    let mut setup = Setup::alone(3);
    setup.latencies.handover = 7;
    let done = run(&setup, &mut Cycle::new(3, 10, Lock::Exclusive, 0.0, 100.0));
    assert_eq!(done.end, 30 * 100 + 29 * 7);
    assert_eq!((done.vms[0].lock.contended, done.vms[0].lock.exclusive), (29, done.end));
    (setup.vm_of, setup.cpu_of) = (vec![0], vec![0]);
    let alone = run(&setup, &mut Cycle::new(1, 10, Lock::Exclusive, 0.0, 100.0));
    assert_eq!(alone.end, 1000, "who finds it free has it at once");
}

#[test]
fn who_begins_later_is_idle_until_then() {
    let mut setup = Setup::alone(2);
    (setup.begin, setup.latencies.interrupt) = (vec![0, 500], 10);
    let shoot = |at: u64| vec![Work::Guest(at).into(), Step::Shootdown(vec![(1, vec![Work::Guest(30)])])];
    let steps = [shoot(100), shoot(490)].concat();
    let done = run(&setup, &mut script(vec![steps, vec![Work::Guest(200).into()]]));
    // The first interrupt is not sent to an idle vCPU; the second one that works.
    assert_eq!((done.vcpus[0].end, done.vcpus[0].shootdown_wait), (100 + 490 + 40, 40));
    assert_eq!((done.vcpus[1].begin, done.vcpus[1].end, done.vcpus[1].span()), (500, 730, 230));
    assert_eq!(done.vcpus[1].served, 1);
}

#[test]
fn who_shares_the_lock_does_not_wait() {
    let done = run(&Setup::alone(64), &mut Cycle::new(64, 100, Lock::Shared, 900.0, 100.0));
    assert_eq!(done.end, 100 * 1000);
    assert_eq!(done.vms[0].lock.contended, 0);
    assert!(done.vcpus.iter().all(|account| account.waiting() == 0));
}

#[test]
fn locks_of_two_machines_are_two_locks() {
    let mut setup = Setup::alone(4);
    setup.vm_of = vec![0, 1, 2, 3];
    let done = run(&setup, &mut Cycle::new(4, 100, Lock::Exclusive, 0.0, 100.0));
    assert_eq!(done.end, 100 * 100);
    assert_eq!(done.vms.iter().map(|vm| vm.lock.contended).collect::<Vec<_>>(), [0; 4]);
}

/// Fixed steps for each vCPU.
struct Script(Vec<VecDeque<Step>>);

impl Program for Script {
    fn next(&mut self, vcpu: usize, _: u64, steps: &mut Vec<Step>) -> bool {
        self.0[vcpu].pop_front().map(|step| steps.push(step)).is_some()
    }
}

fn script(of: Vec<Vec<Step>>) -> Script {
    Script(of.into_iter().map(VecDeque::from).collect())
}

#[test]
fn a_shootdown_waits_for_the_slowest() {
    let mut setup = Setup::alone(3);
    setup.latencies.interrupt = 10;
    // vCPU 2 is in the hypervisor until 500 and serves the interrupt then.
    let done = run(
        &setup,
        &mut script(vec![
            vec![
                Work::Guest(100).into(),
                Step::Shootdown(vec![(1, vec![Work::Guest(30)]), (2, vec![Work::Host(40)]), (7, vec![])]),
                Work::Guest(1).into(),
            ],
            vec![Work::Guest(1000).into()],
            vec![Work::Host(500).into(), Work::Guest(100).into()],
        ]),
    );
    assert_eq!(done.vcpus.iter().map(|account| account.end).collect::<Vec<_>>(), [541, 1030, 640]);
    assert_eq!((done.vcpus[0].shootdown_wait, done.vcpus[0].shootdowns), (440, 1));
    assert_eq!(done.vcpus.iter().map(|account| account.served).collect::<Vec<_>>(), [0, 1, 1]);
}

#[test]
fn a_sender_that_goes_on_waits_for_the_rest() {
    let halves = |meanwhile| {
        let targets = vec![(1, vec![Work::Guest(50)])];
        let steps = vec![Step::Interrupt(targets), Work::Guest(meanwhile).into(), Step::Await, Work::Guest(1).into()];
        let mut setup = Setup::alone(2);
        setup.latencies.interrupt = 10;
        run(&setup, &mut script(vec![steps, vec![Work::Guest(1000).into()]])).vcpus[0]
    };
    // 60 cycles pass until the target has done it; what the sender does meanwhile is not waited for.
    assert_eq!((halves(20).shootdown_wait, halves(20).end), (40, 61));
    assert_eq!((halves(80).shootdown_wait, halves(80).end), (0, 81));
    assert_eq!(halves(80).shootdowns, 1);
}

#[test]
fn two_who_shoot_at_each_other_serve_each_other() {
    let shoot = |at| vec![Work::Guest(100).into(), Step::Shootdown(vec![(at, vec![Work::Guest(50)])])];
    let mut setup = Setup::alone(2);
    setup.latencies.interrupt = 10;
    let done = run(&setup, &mut script(vec![shoot(1), shoot(0)]));
    assert_eq!(done.end, 160);
}

#[test]
fn a_kick_leaves_who_is_outside_guest_mode_alone() {
    let mut setup = Setup::alone(4);
    (setup.latencies.interrupt, setup.latencies.kicked) = (10, 70);
    let kick = Work::Locked { mode: Lock::Exclusive, cycles: 100, kick: vec![0, 1, 2, 3] };
    let done = run(
        &setup,
        &mut script(vec![
            vec![kick.into()],
            vec![Work::Guest(1000).into()],
            vec![Work::Host(1000).into()],
            vec![Work::locked(Lock::Exclusive, 5).into()],
        ]),
    );
    assert_eq!(done.vcpus.iter().map(|account| account.kicks).collect::<Vec<_>>(), [0, 1, 0, 0]);
    assert_eq!(done.vcpus.iter().map(|account| account.end).collect::<Vec<_>>(), [110, 1070, 1000, 115]);
    assert_eq!((done.vcpus[0].kick_wait, done.vcpus[3].lock_wait), (10, 110));
}

#[test]
fn a_preempted_vcpu_is_late_and_a_slice_is_shared() {
    let mut setup = Setup::alone(3);
    setup.cpu_of = vec![0, 1, 1];
    setup.slice.0 = 1000;
    setup.latencies.world_switch = 5;
    // vCPU 2 runs from 1005 on, and only then acknowledges.
    let done = run(
        &setup,
        &mut script(vec![
            vec![Step::Shootdown(vec![(2, vec![Work::Guest(50)])])],
            vec![Work::Guest(2000).into()],
            vec![Work::Guest(100).into()],
        ]),
    );
    assert_eq!(done.vcpus.iter().map(|account| account.end).collect::<Vec<_>>(), [1055, 2160, 1155]);
    assert_eq!(done.vcpus[2].preempted, 1005);
    assert_eq!(done.vcpus.iter().map(|account| account.world_switches).collect::<Vec<_>>(), [0, 1, 1]);
    assert!(done.vcpus.iter().all(|account| account.total() == account.end));
}
