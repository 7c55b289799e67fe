//! Generators draw from the distributions that they are named after.

#![expect(clippy::unwrap_used, reason = "test helpers may stop the test")]

use std::collections::BTreeSet;

use memvirt_addr::Acc;
use memvirt_ops::process::{Batch, Op, Source};
use memvirt_workload::Workload;
use rand::SeedableRng;
use rand::distr::Distribution;
use rand_chacha::ChaCha12Rng;

const BASE: u64 = 0x10_0000_0000;

/// A stream with these lines in its `[generator]` table.
fn stream(fields: &str, seed: u64) -> (Vec<Acc>, Vec<Op>) {
    let text = format!("name = 't'\ntitle = 't'\nabout = 't'\nsource = 'estimate'\n[generator]\n{fields}");
    let mut generator = Workload::parse("t.toml", &text).unwrap().generator(seed);
    let (mut batch, mut accesses, mut ops) = (Batch::default(), Vec::new(), Vec::new());
    while generator.next_batch(&mut batch).unwrap() {
        accesses.extend_from_slice(&batch.run);
        ops.extend(batch.then);
    }
    (accesses, ops)
}

fn page(acc: &Acc) -> usize {
    usize::try_from((acc.gva().as_u64() - BASE) >> 12).unwrap()
}

fn frequencies(accesses: &[Acc], pages: usize) -> Vec<u64> {
    let mut counts = vec![0; pages];
    accesses.iter().for_each(|acc| counts[page(acc)] += 1);
    counts
}

/// Pearson's statistic, and the value that it passes once in some 10^7 times (mean + 6 standard deviations and a bit for
/// the skew of the chi-square distribution).
fn chi_square(observed: &[u64], expected: &[f64]) -> (f64, f64) {
    let statistic = observed.iter().zip(expected).map(|(&o, e)| (o as f64 - e).powi(2) / e).sum();
    let freedom = (observed.len() - 1) as f64;
    (statistic, freedom + 6.0 * (2.0 * freedom).sqrt() + 12.0)
}

fn assert_share(what: &str, hits: usize, draws: usize, share: f64) {
    let (hits, draws) = (hits as f64, draws as f64);
    let deviation = (draws * share * (1.0 - share)).sqrt();
    assert!((hits - draws * share).abs() <= 5.0 * deviation, "{what}: {hits} of {draws}, expected {share}");
}

#[test]
fn sequential_walks_and_wraps() {
    let (accesses, _) =
        stream("kind = 'sequential'\nfootprint = '8KiB'\naccesses = 10000\nstride = '24B'\nwrite_share = 0.25", 3);
    for (i, acc) in (0..).zip(&accesses) {
        assert_eq!(acc.gva().as_u64() - BASE, i * 24 % 8192);
    }
    assert_share("stores", accesses.iter().filter(|acc| acc.is_write()).count(), accesses.len(), 0.25);
}

#[test]
fn uniform_covers_all_pages_and_words_alike() {
    let (accesses, _) = stream("kind = 'uniform'\nfootprint = '1MiB'\naccesses = 1_000_000\nwrite_share = 0.1", 5);
    let (statistic, limit) = chi_square(&frequencies(&accesses, 256), &[1e6 / 256.0; 256]);
    assert!(statistic < limit, "pages: {statistic} of at most {limit}");
    let mut words = [0; 512];
    accesses.iter().for_each(|acc| words[(acc.gva().as_u64() & 4095) as usize / 8] += 1);
    let (statistic, limit) = chi_square(&words, &[1e6 / 512.0; 512]);
    assert!(statistic < limit, "words: {statistic} of at most {limit}");
    assert_share("stores", accesses.iter().filter(|acc| acc.is_write()).count(), accesses.len(), 0.1);
    // Address and kind come from one draw: the stores alone must be uniform too.
    let stores: Vec<Acc> = accesses.into_iter().filter(|acc| acc.is_write()).collect();
    let (statistic, limit) = chi_square(&frequencies(&stores, 256), &[stores.len() as f64 / 256.0; 256]);
    assert!(statistic < limit, "stores: {statistic} of at most {limit}");
}

fn zipf_frequencies(pages: usize, exponent: f64, accesses: usize, seed: u64) -> (Vec<u64>, Vec<f64>) {
    let kib = pages * 4;
    let fields = format!(
        "kind = 'zipf'\nfootprint = '{kib}KiB'\naccesses = {accesses}\nexponent = {exponent}\nwrite_share = 0.3"
    );
    let (run, _) = stream(&fields, seed);
    assert_share("stores", run.iter().filter(|acc| acc.is_write()).count(), run.len(), 0.3);
    let mut counts = frequencies(&run, pages);
    // Ranks are shuffled; so many draws order the frequent ones again.
    counts.sort_unstable_by(|a, b| b.cmp(a));
    let norm: f64 = (1..=pages).map(|k| (k as f64).powf(-exponent)).sum();
    let expected = (1..=pages).map(|k| accesses as f64 * (k as f64).powf(-exponent) / norm).collect();
    (counts, expected)
}

#[test]
fn zipf_frequencies_follow_the_closed_form() {
    for (seed, exponent) in [(1, 0.5), (2, 0.99), (3, 1.5)] {
        let (counts, expected) = zipf_frequencies(50, exponent, 2_000_000, seed);
        let (statistic, limit) = chi_square(&counts, &expected);
        assert!(statistic < limit, "exponent {exponent}: {statistic} of at most {limit}");
    }
}

#[test]
fn zipf_agrees_with_rejection_sampling() {
    let draws = 1_000_000;
    let (counts, _) = zipf_frequencies(1000, 0.99, draws, 9);
    let zipf = rand_distr::Zipf::new(1000.0, 0.99).unwrap();
    let mut rng = ChaCha12Rng::seed_from_u64(1);
    let mut ranks: Vec<f64> = zipf.sample_iter(&mut rng).take(draws).collect();
    ranks.sort_unstable_by(f64::total_cmp);
    for head in [1_u32, 10, 100, 500] {
        let ours: u64 = counts.iter().take(head as usize).sum();
        let theirs = ranks.partition_point(|&rank| rank <= f64::from(head)) as f64;
        // Both are samples: the difference has twice the variance of one.
        let deviation = (2.0 * theirs * (1.0 - theirs / draws as f64)).sqrt();
        assert!((ours as f64 - theirs).abs() < 5.0 * deviation, "the first {head}: {ours} against {theirs}");
    }
}

#[test]
fn zipf_stores_are_spread_over_all_words() {
    let (run, _) =
        stream("kind = 'zipf'\nfootprint = '4MiB'\naccesses = 1_000_000\nexponent = 0.99\nwrite_share = 0.4", 4);
    let stores: Vec<_> = run.iter().filter(|acc| acc.is_write()).collect();
    let mut words = [0; 512];
    stores.iter().for_each(|acc| words[(acc.gva().as_u64() & 4095) as usize / 8] += 1);
    let (statistic, limit) = chi_square(&words, &[stores.len() as f64 / 512.0; 512]);
    assert!(statistic < limit, "{statistic} of at most {limit}");
}

#[test]
fn zipf_ranks_are_spread_over_the_area() {
    let (run, _) = stream("kind = 'zipf'\nfootprint = '4MiB'\naccesses = 200000\nexponent = 1.0\nwrite_share = 0", 4);
    let counts = frequencies(&run, 1024);
    let mut by_count: Vec<usize> = (0..1024).collect();
    by_count.sort_unstable_by_key(|&page| std::cmp::Reverse(counts[page]));
    let in_first_half = by_count[..100].iter().filter(|&&page| page < 512).count();
    assert!((25..=75).contains(&in_first_half), "{in_first_half} of the 100 hottest pages lie in the first half");
}

#[test]
fn a_chase_visits_each_node_once_per_cycle_and_in_the_same_order() {
    for (node, nodes) in [("64B", 1024), ("4KiB", 16), ("32KiB", 2)] {
        let fields = format!(
            "kind = 'pointer-chase'\nfootprint = '64KiB'\nnode = '{node}'\naccesses = {}\nwrite_share = 0",
            3 * nodes
        );
        let (run, _) = stream(&fields, 8);
        let cycles: Vec<_> = run.chunks(nodes).collect();
        let visited: BTreeSet<u64> = cycles[0].iter().map(|acc| acc.gva().as_u64() - BASE).collect();
        let expected: BTreeSet<u64> = (0..nodes as u64).map(|i| i * (65_536 / nodes as u64)).collect();
        assert_eq!(visited, expected);
        assert_eq!((cycles[0], cycles[0]), (cycles[1], cycles[2]));
    }
    let (run, _) =
        stream("kind = 'pointer-chase'\nfootprint = '1MiB'\nnode = '64B'\naccesses = 16384\nwrite_share = 0", 8);
    let ascending = run.windows(2).filter(|pair| pair[0].gva() < pair[1].gva()).count();
    assert_share("steps upwards", ascending, run.len() - 1, 0.5);
}

#[test]
fn a_touch_covers_each_page_once_and_unmaps_what_it_mapped() {
    let (run, ops) = stream("kind = 'touch-and-free'\nfootprint = '40MiB'\niterations = 2\nwrite_share = 0.5", 2);
    assert!(run.iter().enumerate().all(|(i, acc)| page(acc) == i % 10_240));
    assert_eq!(run.len(), 2 * 10_240);
    assert!(matches!(ops[..], [Op::Mmap { .. }, Op::Munmap { .. }, Op::Mmap { .. }, Op::Munmap { .. }]));
    assert_share("stores", run.iter().filter(|acc| acc.is_write()).count(), run.len(), 0.5);
}

#[test]
fn a_child_stores_to_distinct_pages_drawn_anew_each_time() {
    let (run, ops) = stream(
        "kind = 'fork-and-exit'\nfootprint = '4MiB'\nforks = 200\nchild_write_share = 0.1\nparent_write_share = 0.0",
        6,
    );
    let children: Vec<BTreeSet<usize>> = run[1024..].chunks(102).map(|run| run.iter().map(page).collect()).collect();
    assert_eq!(children.len(), 200);
    assert!(children.iter().all(|pages| pages.len() == 102), "a child stored twice to a page");
    assert_ne!(children[0], children[1]);
    let (statistic, limit) = chi_square(&frequencies(&run[1024..], 1024), &[200.0 * 102.0 / 1024.0; 1024]);
    assert!(statistic < limit, "{statistic} of at most {limit}");
    let order: Vec<_> = ops[1..5].to_vec();
    assert!(matches!(order[..], [Op::Fork { child }, Op::Switch { to }, Op::Exit, Op::Switch { to: back }]
        if child == to && back == memvirt_ops::process::ProcessId::FIRST));
}

#[test]
fn churn_keeps_its_mix() {
    let (run, ops) = stream(
        "kind = 'churn'\nareas = 100\narea = '64KiB'\noperations = 100_000\nmix = { mmap = 2, munmap = 1, mprotect = 3, touch = 4 }
        partial_share = 0.3\ntouches = 5\nwrite_share = 0.5",
        6,
    );
    let tail = &ops[100..];
    let of = |matching: fn(&Op) -> bool| tail.iter().filter(|op| matching(op)).count();
    assert_share("mmap", of(|op| matches!(op, Op::Mmap { .. })), 100_000, 0.2);
    assert_share("munmap", of(|op| matches!(op, Op::Munmap { .. })), 100_000, 0.1);
    assert_share("mprotect", of(|op| matches!(op, Op::Mprotect { .. })), 100_000, 0.3);
    assert_share("touch", run.len() / 5, 100_000, 0.4);
    let whole = of(|op| matches!(op, Op::Munmap { range } if range.bytes == 65_536));
    let munmaps = of(|op| matches!(op, Op::Munmap { .. }));
    // A part is the whole now and then: when it starts at the first of 16 pages and is drawn full.
    assert_share("whole areas", whole, munmaps, 0.7 + 0.3 / 256.0);
}
