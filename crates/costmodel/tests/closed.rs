//! The closed queue against the exact Markov chain, against simulation event by event, and against its bounds.
#![expect(clippy::cast_precision_loss, reason = "small numbers")]

use memvirt_costmodel::closed::{Closed, Hold};
use memvirt_costmodel::mva::Lock;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

fn classes(of: &[(f64, f64)]) -> Vec<Hold> {
    of.iter().map(|(weight, time)| Hold { weight: *weight, time: *time }).collect()
}

fn closed(think: f64, of: &[(f64, f64)]) -> Closed {
    Closed { think, holds: classes(of), handover: 0.0 }
}

/// Takings by time, of vCPUs that think for exponential times; who did not find the lock free adds the handover.
fn simulated(queue: &Closed, vcpus: usize, takings: u32) -> f64 {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let think = |rng: &mut ChaCha8Rng| -queue.think * (1.0 - rng.random::<f64>()).ln();
    let weight: f64 = queue.holds.iter().map(|hold| hold.weight).sum();
    let mut asks: Vec<f64> = (0..vcpus).map(|_| think(&mut rng)).collect();
    let mut free = 0.0_f64;
    for _ in 0..takings {
        // First come, first served: who asked first has it next.
        let next = (0..vcpus).min_by(|a, b| asks[*a].total_cmp(&asks[*b])).unwrap_or(0);
        let mut pick = rng.random::<f64>() * weight;
        let class = queue.holds.iter().find(|hold| {
            pick -= hold.weight;
            pick < 0.0
        });
        let waited = if asks[next] < free { queue.handover } else { 0.0 };
        free = asks[next].max(free) + class.map_or(0.0, |hold| hold.time) + waited;
        asks[next] = free + think(&mut rng);
    }
    f64::from(takings) / free
}

#[test]
fn exponential_times_give_mean_value_analysis() {
    // The quantiles of an exponential distribution.
    let steps = 20_000;
    let hold = 100.0;
    let quantile = |i: usize| -hold * (1.0 - (i as f64 + 0.5) / steps as f64).ln();
    let holds: Vec<_> = (0..steps).map(|i| (1.0, quantile(i))).collect();
    for vcpus in [1, 2, 5, 16, 64] {
        let exact = Lock::exclusive(1500.0, hold).expected(vcpus);
        let found = closed(1500.0, &holds).expected(vcpus);
        for (a, b) in [
            (found.throughput, exact.throughput),
            (found.utilization, exact.utilization),
            (found.speedup, exact.speedup),
        ] {
            assert!((a / b - 1.0).abs() < 1e-3, "{vcpus}: {found:?}, {exact:?}");
        }
        assert!((found.waiting_share - exact.waiting_share).abs() < 1e-3);
    }
}

#[test]
fn any_distribution_meets_a_simulation() {
    let mixes: [&[(f64, f64)]; 3] = [&[(1.0, 100.0)], &[(0.99, 50.0), (0.01, 9000.0)], &[(3.0, 0.0), (1.0, 400.0)]];
    for mix in mixes {
        for handover in [0.0, 30.0] {
            for vcpus in [2, 16] {
                let queue = Closed { handover, ..closed(1500.0, mix) };
                let (found, simulated) = (queue.expected(vcpus).throughput, simulated(&queue, vcpus, 1_500_000));
                let allowed = if handover > 0.0 { 0.02 } else { 0.015 };
                assert!(
                    (found / simulated - 1.0).abs() < allowed,
                    "{mix:?}, {handover}, {vcpus}: {found}, {simulated}"
                );
            }
        }
    }
}

#[test]
fn many_and_long_ones_saturate_without_overflow() {
    let queue = closed(10.0, &[(1.0, 1e6)]);
    for vcpus in [2, 64, 256, 100_000] {
        let found = queue.expected(vcpus);
        assert!((found.throughput * 1e6 - 1.0).abs() < 1e-4, "{vcpus}: {found:?}");
        assert!(found.throughput <= queue.most(vcpus) * (1.0 + 1e-9));
    }
    let nothing = closed(0.0, &[(1.0, 0.0)]).expected(3);
    assert!(!nothing.throughput.is_nan(), "{nothing:?}");
}

#[test]
fn more_variation_waits_longer_and_nobody_does_better_than_in_step() {
    let even = closed(1000.0, &[(1.0, 100.0)]);
    let rough = closed(1000.0, &[(0.9, 50.0), (0.1, 550.0)]);
    for vcpus in [2, 8, 11, 30] {
        let (a, b) = (even.expected(vcpus).throughput, rough.expected(vcpus).throughput);
        assert!(b < a && a <= even.most(vcpus), "{vcpus}: {a}, {b}, {}", even.most(vcpus));
    }
    assert!((even.most(30) - 0.01).abs() < 1e-12 && (even.most(5) - 5.0 / 1100.0).abs() < 1e-12);
}
