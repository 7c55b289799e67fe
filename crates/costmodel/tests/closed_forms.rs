//! Closed forms against brute force, against each other, and against their limits.
#![expect(clippy::unwrap_used, reason = "a test: what cannot be had is a failure")]
#![expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "small numbers")]

use std::collections::{BTreeSet, VecDeque};

use memvirt_costmodel::footprint::{dense, distinct_pages, sparse, sparse_draws};
use memvirt_costmodel::literature::{LinearModel, Mosmodel, Run};
use memvirt_costmodel::mva::{Lock, Shootdown, asymptotes};
use memvirt_costmodel::stack::{SetStacks, Stack};
use memvirt_costmodel::usl::Usl;
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

fn close(a: f64, b: f64, share: f64) -> bool {
    (a - b).abs() <= share * b.abs().max(1e-300)
}

/// Hits of a least-recently-used cache, as one would write it down.
fn lru_hits(stream: &[u64], sets: u64, ways: usize) -> u64 {
    let mut cache = vec![VecDeque::new(); usize::try_from(sets).unwrap()];
    let mut hits = 0;
    for key in stream {
        let set: &mut VecDeque<u64> = &mut cache[usize::try_from(key % sets).unwrap()];
        if let Some(at) = set.iter().position(|held| held == key) {
            set.remove(at);
            hits += 1;
        }
        set.push_front(*key);
        set.truncate(ways);
    }
    hits
}

fn stream(seed: u64, length: usize, keys: u64) -> Vec<u64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // Squaring makes small keys more frequent, as pages are.
    (0..length).map(|_| (rng.random_range(0.0..1.0f64).powi(2) * keys as f64) as u64).collect()
}

proptest! {
    #![proptest_config(memvirt_properties::cases(40))]

    /// One pass counts the hits of every cache size, exactly.
    #[test]
    fn stack_distances_give_the_hits_of_every_size(seed in any::<u64>(), keys in 1u64..200) {
        let stream = stream(seed, 2000, keys);
        let mut stack = Stack::default();
        stream.iter().for_each(|key| { stack.access(*key); });
        for entries in [1, 2, 3, 8, 64, 199] {
            prop_assert_eq!(stack.distances().hits(entries), lru_hits(&stream, 1, entries), "{}", entries);
        }
        prop_assert_eq!(stack.distances().accesses(), 2000);
        prop_assert_eq!(stack.distances().first_accesses(), stack.keys() as u64);
    }

    /// A stack for each set is exact for caches indexed by low bits.
    #[test]
    fn stacks_of_sets_are_exact(seed in any::<u64>(), sets in 1u64..17) {
        let stream = stream(seed, 2000, 150);
        let mut stacks = SetStacks::new(usize::try_from(sets).unwrap());
        stream.iter().for_each(|key| { stacks.access(*key); });
        for ways in [1, 2, 4, 12] {
            prop_assert_eq!(stacks.distances().hits(ways), lru_hits(&stream, sets, ways));
        }
    }

    /// Tables of areas, counted one by one.
    #[test]
    fn dense_tables_are_counted_once(areas in proptest::collection::vec((0u64..6000, 0u64..1500), 0..6), level in 1u32..3) {
        let pages = areas.iter().flat_map(|(first, pages)| *first..first + pages);
        let tables: BTreeSet<u64> = pages.map(|page| page / 512u64.pow(level)).collect();
        prop_assert_eq!(dense(&areas, level), tables.len() as u64);
    }
}

#[test]
fn packing_forgets_nothing() {
    // More accesses than slots, more keys than half of them: the tree is packed and grows.
    let stream = stream(9, 30_000, 6000);
    let mut stack = Stack::default();
    stream.iter().for_each(|key| {
        stack.access(*key);
    });
    for entries in [10, 1000, 5000] {
        assert_eq!(stack.distances().hits(entries), lru_hits(&stream, 1, entries), "{entries}");
    }
}

#[test]
fn the_binomial_model_predicts_set_associative_caches_of_scattered_keys() {
    // Keys scattered over sets by a hash, as page numbers of several areas are.
    let stream: Vec<u64> =
        stream(10, 200_000, 3000).iter().map(|key| key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20).collect();
    let mut stack = Stack::default();
    stream.iter().for_each(|key| {
        stack.access(*key);
    });
    for (sets, ways) in [(16, 4), (128, 12), (64, 1), (1, 64)] {
        let expected = stack.distances().expected_hits(sets, ways);
        let measured = lru_hits(&stream, sets as u64, ways) as f64;
        assert!((expected - measured).abs() < 0.01 * stream.len() as f64, "{sets} x {ways}: {expected} {measured}");
    }
    // A set that holds every key hits whenever a fully associative cache of endless size does.
    let all = stack.distances().accesses() - stack.distances().first_accesses();
    assert!(close(stack.distances().expected_hits(4, 3000), all as f64, 1e-9));
}

#[test]
fn one_vcpu_waits_for_nobody() {
    let one = Lock::exclusive(900.0, 100.0).expected(1);
    assert!(close(one.throughput, 1e-3, 1e-12) && one.waiting.abs() < 1e-12, "{one:?}");
    assert!(close(one.utilization, 0.1, 1e-12) && close(one.speedup, 1.0, 1e-12), "{one:?}");
}

/// The machine-repair model by the probabilities of its states: utilization and throughput of the exact Markov chain.
fn repairman(think: f64, hold: f64, vcpus: usize) -> f64 {
    let mut weight = 1.0;
    let mut sum = 1.0;
    for busy in 0..vcpus {
        weight *= (vcpus - busy) as f64 * hold / think;
        sum += weight;
    }
    (1.0 - 1.0 / sum) / hold
}

#[test]
fn the_exclusive_lock_is_the_exact_markov_chain() {
    for (think, hold) in [(1000.0, 10.0), (1000.0, 100.0), (50.0, 100.0)] {
        for vcpus in [1, 2, 5, 17, 64] {
            let found = Lock::exclusive(think, hold).expected(vcpus).throughput;
            assert!(close(found, repairman(think, hold, vcpus), 1e-9), "{think} {hold} {vcpus}");
        }
    }
}

#[test]
fn throughput_stays_below_both_asymptotes_and_reaches_them() {
    let lock = Lock::exclusive(1000.0, 50.0);
    let (most, crossing) = asymptotes(&lock);
    assert!(close(most, 0.02, 1e-12) && close(crossing, 21.0, 1e-12));
    let mut before = 0.0;
    for vcpus in 1..=256 {
        let found = lock.expected(vcpus).throughput;
        assert!(found >= before && found <= most * (1.0 + 1e-12) && found <= vcpus as f64 / 1050.0 * (1.0 + 1e-12));
        before = found;
    }
    assert!(close(before, most, 1e-6));
    assert!(close(lock.expected(2).throughput, 2.0 / 1050.0, 0.01));
}

#[test]
fn many_vcpus_that_seldom_come_make_an_open_queue() {
    // N vCPUs, each thinking N times as long: Poisson arrivals, M/M/1. Response = S / (1 - rho).
    let (vcpus, rho, hold) = (20_000usize, 0.6, 10.0);
    let lock = Lock::exclusive(vcpus as f64 * hold / rho, hold);
    let found = lock.expected(vcpus);
    assert!(close(found.response, hold / (1.0 - rho), 1e-3), "{found:?}");
    assert!(close(found.utilization, rho, 1e-3), "{found:?}");
    // With constant service it is M/D/1: waiting is half of M/M/1's.
    let constant = Lock { variation: 0.0, ..lock }.expected(vcpus);
    assert!(close(constant.waiting, hold * rho / (1.0 - rho) / 2.0, 1e-2), "{constant:?}");
}

#[test]
fn a_lock_that_all_share_makes_nobody_wait() {
    let lock = Lock { shared: 1.0, hold_shared: 100.0, ..Lock::exclusive(900.0, 0.0) };
    for vcpus in [1, 8, 64] {
        let found = lock.expected(vcpus);
        assert!(close(found.throughput, vcpus as f64 / 1000.0, 1e-12) && found.waiting.abs() < 1e-9, "{found:?}");
        assert!(close(found.speedup, vcpus as f64, 1e-12));
    }
}

#[test]
fn shootdowns_cost_more_the_more_there_are() {
    let shootdown = Shootdown { rate: 0.1, send: 500.0, send_each: 100.0, receive: 1000.0, locked: false };
    let lock = Lock { shootdown, ..Lock::exclusive(10_000.0, 0.0) };
    assert!(close(lock.expected(1).throughput, 1e-4, 1e-12), "one vCPU flushes nobody");
    // By hand for 5: 0.1 * (500 + 400) + 0.1 * 1000 * 4 = 490 cycles a turn.
    assert!(close(lock.expected(5).throughput, 5.0 / 10_490.0, 1e-12));
    let locked = Lock { hold: 10.0, shootdown: Shootdown { locked: true, ..shootdown }, ..lock };
    assert!(locked.expected(64).throughput < lock.expected(64).throughput);
}

/// A lock that some share and others take alone, first come first served, simulated event by event with exponential times.
fn simulated(lock: &Lock, vcpus: usize) -> f64 {
    let mut rng = ChaCha8Rng::seed_from_u64(vcpus as u64);
    let mut draw = move |mean: f64| -mean * libm::log(1.0 - rng.random_range(0.0..1.0f64));
    let mut pick = ChaCha8Rng::seed_from_u64(77);
    // (time, vcpu, whether it comes for the lock or gives it back)
    let mut events: BTreeSet<(u64, usize, bool)> = BTreeSet::new();
    let ticks = |time: f64| (time * 1e6) as u64;
    let mut alone = vec![false; vcpus];
    let (mut queue, mut holders, mut held_alone) = (VecDeque::new(), 0usize, false);
    let (mut done, mut now) = (0u64, 0.0);
    (0..vcpus).for_each(|v| {
        events.insert((ticks(draw(lock.think)), v, true));
    });
    while done < 100_000 {
        let (time, v, comes) = events.pop_first().unwrap();
        now = time as f64 / 1e6;
        if comes {
            alone[v] = pick.random_range(0.0..1.0) >= lock.shared;
            queue.push_back(v);
        } else {
            done += 1;
            holders -= 1;
            held_alone = false;
            events.insert((ticks(now + draw(lock.think)), v, true));
        }
        while let Some(next) = queue.front().copied() {
            if held_alone || (alone[next] && holders > 0) {
                break;
            }
            queue.pop_front();
            holders += 1;
            held_alone = alone[next];
            let mean = if alone[next] { lock.hold } else { lock.hold_shared };
            events.insert((ticks(now + draw(mean)), next, false));
        }
    }
    done as f64 / now
}

#[test]
fn the_shared_lock_is_near_a_simulation() {
    let mut worst: f64 = 0.0;
    for (shared, hold, hold_shared) in
        [(0.5, 100.0, 100.0), (0.9, 200.0, 50.0), (0.99, 500.0, 100.0), (0.2, 50.0, 200.0)]
    {
        for vcpus in [2, 4, 8, 16, 32] {
            let lock = Lock { shared, hold_shared, ..Lock::exclusive(1000.0, hold) };
            let (found, simulated) = (lock.expected(vcpus).throughput, simulated(&lock, vcpus));
            worst = worst.max((found / simulated - 1.0).abs());
        }
    }
    assert!(worst < 0.10, "{worst}");
    let exclusive = Lock::exclusive(1000.0, 100.0);
    assert!(close(exclusive.expected(8).throughput, simulated(&exclusive, 8), 0.01), "the simulation itself");
}

#[test]
fn the_law_peaks_where_its_derivative_says() {
    let law = Usl { one: 1000.0, contention: 0.05, coherency: 2e-3 };
    assert!(close(law.peak(), (0.95f64 / 2e-3).sqrt(), 1e-12));
    let at = |n: f64| law.throughput(n);
    let peak = law.peak();
    assert!(at(peak) > at(peak - 0.5) && at(peak) > at(peak + 0.5));
    assert!(close(at(1.0), 1000.0, 1e-12));
    assert!(Usl { coherency: 0.0, ..law }.peak().is_infinite());
}

#[test]
fn planted_laws_are_recovered_from_noisy_throughputs() {
    for law in [
        Usl { one: 2e6, contention: 0.08, coherency: 1e-3 },
        Usl { one: 3.0, contention: 0.3, coherency: 0.0 },
        Usl { one: 50.0, contention: 0.0, coherency: 0.0 },
    ] {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let mut noisy = |n: f64| law.throughput(n) * (1.0 + rng.random_range(-0.01..0.01));
        let points: Vec<_> = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0].map(|n| (n, noisy(n))).to_vec();
        let (found, quality) = Usl::fit(&points).unwrap();
        assert!(close(found.one, law.one, 0.03), "{found:?}");
        assert!((found.contention - law.contention).abs() < 0.015, "{found:?} {law:?}");
        assert!((found.coherency - law.coherency).abs() < 2e-4, "{found:?} {law:?}");
        assert!(quality.max_relative < 0.03, "{quality:?}");
    }
    assert!(Usl::fit(&[(1.0, 1.0), (2.0, 0.0), (3.0, 1.0)]).is_err());
    assert!(Usl::fit(&[(1.0, 1.0), (2.0, 2.0)]).is_err());
}

#[test]
fn sparse_tables_are_expected_exactly() {
    // Few enough to count every draw: 2 tables' worth of a tiny area is beyond 512 entries, so check the probability itself.
    // 1024 pages, 2 drawn: both tables are touched with probability 512/1023 * ... = 1 - 2 * C(512,2)/C(1024,2).
    let same = 2.0 * (512.0 * 511.0) / (1024.0 * 1023.0);
    assert!(close(sparse(0, 1024, 2, 1), 2.0 - same, 1e-12));
    // Everything touched: dense.
    assert!(close(sparse(100, 5000, 5000, 1), dense(&[(100, 5000)], 1) as f64, 1e-12));
    assert!(close(sparse(0, 1 << 24, 1, 3), 1.0, 1e-12), "one page needs one table of each level");
    assert!(sparse(0, 1 << 24, 0, 1).abs() < 1e-12 && sparse(0, 0, 5, 1).abs() < 1e-12);
    // More than are there are all.
    assert!(close(sparse(0, 1000, 5000, 1), 2.0, 1e-12));
}

#[test]
fn sparse_tables_agree_with_drawing() {
    let mut rng = ChaCha8Rng::seed_from_u64(12);
    for (first, pages, touched) in [(300u64, 40_000u64, 100u64), (0, 1 << 20, 2000), (511, 1026, 3)] {
        let rounds = 400;
        let mut counted = 0;
        for _ in 0..rounds {
            let mut drawn = BTreeSet::new();
            while (drawn.len() as u64) < touched {
                drawn.insert(first + rng.random_range(0..pages));
            }
            counted += drawn.iter().map(|page| page / 512).collect::<BTreeSet<_>>().len();
        }
        let mean = counted as f64 / f64::from(rounds);
        let expected = sparse(first, pages, touched, 1);
        assert!(close(mean, expected, 0.03), "{first} {pages} {touched}: {mean} {expected}");
    }
}

#[test]
fn large_areas_are_as_exact_as_small_ones() {
    // The product and the gamma function meet; both sides of the switch agree with the binomial limit.
    let pages = 1u64 << 30;
    for touched in [60_000u64, 65_536, 65_537, 70_000, 1 << 22] {
        let tables = (pages >> 18) as f64;
        let limit = tables * -libm::expm1(touched as f64 * libm::log1p(-1.0 / tables));
        assert!(close(sparse(0, pages, touched, 2), limit, 1e-3), "{touched}");
    }
    let (below, above) = (sparse(0, pages, 65_536, 2), sparse(0, pages, 65_537, 2));
    assert!(above > below && above - below < 1.0, "{below} {above}");
}

#[test]
fn draws_with_replacement_touch_fewer_pages() {
    // n (1 - (1 - 1/n)^k).
    assert!(close(distinct_pages(1000, 1000), 1000.0 * (1.0 - 0.999f64.powi(1000)), 1e-9));
    assert!(close(distinct_pages(1, 7), 1.0, 1e-12));
    assert!(sparse_draws(0, 1 << 20, 5000, 1) < sparse(0, 1 << 20, 5000, 1));
    assert!(close(sparse_draws(0, 100, 1, 1), 1.0, 1e-12));
    assert!(sparse_draws(0, 100, 0, 1).abs() < 1e-12);
}

fn run(cycles: f64, walk_cycles: f64, l2_hits: f64, misses: f64) -> Run {
    Run { cycles, walk_cycles, l2_hits, misses }
}

#[test]
fn the_linear_models_are_calibrated_as_published() {
    let (small, large) = (run(1000.0, 300.0, 20.0, 10.0), run(760.0, 100.0, 5.0, 4.0));
    let middle = run(0.0, 200.0, 12.0, 7.0);
    for (model, expected) in [
        (LinearModel::Basu, 30.0 * 7.0 + 700.0),
        (LinearModel::Gandhi, 30.0 * 7.0 + 660.0),
        (LinearModel::Alam, 200.0 + 660.0),
        (LinearModel::Pham, 7.0 * 12.0 + 200.0 + (1000.0 - 300.0 - 140.0)),
        (LinearModel::Yaniv, 880.0),
    ] {
        let line = model.calibrate(&small, &large).unwrap();
        assert!(close(line.cycles(&middle), expected, 1e-12), "{model:?} {line:?}");
    }
    // Each meets the run that its base comes from; Yaniv both.
    for model in [LinearModel::Basu, LinearModel::Pham, LinearModel::Yaniv] {
        assert!(close(model.calibrate(&small, &large).unwrap().cycles(&small), 1000.0, 1e-12), "{model:?}");
    }
    for model in [LinearModel::Alam, LinearModel::Yaniv] {
        assert!(close(model.calibrate(&small, &large).unwrap().cycles(&large), 760.0, 1e-12), "{model:?}");
    }
    let none = run(1000.0, 0.0, 0.0, 0.0);
    assert!(
        LinearModel::Basu.calibrate(&none, &none).is_err() && LinearModel::Yaniv.calibrate(&small, &small).is_err()
    );
}

/// Runs whose time is a polynomial of third degree in the counters, with noise.
fn mixed_runs(noise: f64) -> Vec<Run> {
    let mut rng = ChaCha8Rng::seed_from_u64(13);
    let mut runs = Vec::new();
    for i in 0..36 {
        let share = f64::from(i) / 35.0;
        let misses = 1e7 * share * rng.random_range(0.9..1.1);
        let hits = 3e7 * rng.random_range(0.5..1.0);
        let walk = misses * (30.0 + 20.0 * share);
        let hidden = 1.0 - 0.4 * share.powi(2);
        let cycles = 1e9 + 7.0 * hits + walk * hidden;
        runs.push(run(cycles * (1.0 + noise * rng.random_range(-1.0..1.0)), walk, hits, misses));
    }
    runs
}

#[test]
fn mosmodel_predicts_runs_it_has_not_seen_where_lines_do_not() {
    let runs = mixed_runs(0.002);
    let relative =
        |predicted: &[f64]| runs.iter().zip(predicted).map(|(run, f)| (f / run.cycles - 1.0).abs()).fold(0.0, f64::max);
    let unseen = relative(&Mosmodel::leave_one_out(&runs, 1).unwrap());
    assert!(unseen < 0.03, "published: below 3 %; here {unseen}");
    let (small, large) = (runs[35], runs[0]);
    let line = LinearModel::Alam.calibrate(&small, &large).unwrap();
    let alam = relative(&runs.iter().map(|run| line.cycles(run)).collect::<Vec<_>>());
    assert!(alam > 2.0 * unseen, "{alam} {unseen}");
    assert_eq!(Mosmodel::TERMS.iter().collect::<BTreeSet<_>>().len(), 19);
}
