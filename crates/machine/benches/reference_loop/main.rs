//! Loads a second of `Platform::accesses` in counts mode, beside a loop that does nothing but the counting.
//!
//! Tables of 4 KiB pages over 4 GiB are built and every page is touched before anything is measured, so no run exits. Each
//! round empties both TLBs and runs the loop and memvirt in turn; the fastest round of each counts. Hits, misses, walks and
//! references of the two must be equal.
//!
//! `cargo bench -p memvirt-machine --bench reference_loop` runs 20 million loads of each stream; `MEMVIRT_BENCH_ACCESSES` and
//! `MEMVIRT_BENCH_ROUNDS` change that, `MEMVIRT_BENCH_ONLY=nested/zipf` picks. Outside `cargo bench` the streams are short.

#![expect(clippy::cast_precision_loss, reason = "rates are printed to three digits")]

mod machines;
mod reference;
mod streams;

use std::time::{Duration, Instant};

use memvirt_addr::Acc;
use memvirt_ops::VcpuId;
use memvirt_platform::{Counters, Horizon, Ledger, Platform, Stop};

use machines::{empty_tlb, native, nested, shadow};
use reference::{Counts, Nested, OneDimension, Reference, Walk};

struct Options {
    accesses: usize,
    rounds: usize,
    only: Option<String>,
}

impl Options {
    fn from_env() -> Self {
        let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse().ok());
        let bench = std::env::args().any(|arg| arg == "--bench");
        Self {
            accesses: number("MEMVIRT_BENCH_ACCESSES").unwrap_or(if bench { 20_000_000 } else { 100_000 }),
            rounds: number("MEMVIRT_BENCH_ROUNDS").unwrap_or(if bench { 5 } else { 1 }),
            only: std::env::var("MEMVIRT_BENCH_ONLY").ok(),
        }
    }
}

/// How long this thread has waited for a CPU so far, where the system (Linux) tells that.
fn waited() -> Duration {
    let scheduled = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = scheduled.and_then(|fields| fields.split(' ').nth(1)?.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or(0))
}

/// The fastest of several rounds.
struct Best(Duration);

impl Best {
    fn note<T>(&mut self, run: impl FnOnce() -> T) -> T {
        let waited_before = waited();
        let start = Instant::now();
        let result = run();
        let waited = waited().saturating_sub(waited_before);
        self.0 = self.0.min(start.elapsed().saturating_sub(waited));
        result
    }

    fn million_a_second(&self, accesses: usize) -> f64 {
        accesses as f64 / self.0.as_secs_f64() / 1e6
    }
}

fn counts(counters: &Counters) -> Counts {
    Counts {
        l1_hits: counters.l1_hits,
        l2_hits: counters.l2_hits,
        misses: counters.misses,
        references: counters.refs.total(),
    }
}

/// One regime over one stream; returns loads a second of the loop, in millions.
fn measure<W: Walk>(name: &str, platform: &mut dyn Platform, walk: &W, stream: &[Acc], rounds: usize) -> f64 {
    let (mut loop_time, mut memvirt_time) = (Best(Duration::MAX), Best(Duration::MAX));
    for _ in 0..rounds {
        let mut reference = Reference::new(walk);
        loop_time.note(|| reference.run(stream));
        empty_tlb(platform);
        let mut ledger = Ledger::sums();
        let end = memvirt_time.note(|| platform.accesses(VcpuId::FIRST, stream, Horizon::Open, &mut ledger));
        assert_eq!(end, (stream.len(), Stop::Done), "{name}");
        assert_eq!(ledger.counters.total_exits(), 0, "{name}: everything was touched before");
        assert_eq!(counts(&ledger.counters), reference.counts(), "{name}");
        assert_eq!(ledger.counters.walks, ledger.counters.misses, "{name}");
    }
    let (theirs, ours) = (loop_time.million_a_second(stream.len()), memvirt_time.million_a_second(stream.len()));
    println!("{name:14} {theirs:8.1} {ours:8.1} {:8.2}", theirs / ours);
    theirs
}

fn regime<W: Walk>(name: &str, make: fn() -> Box<dyn Platform>, walk: &W, options: &Options) {
    let wanted = |stream: &str| options.only.as_deref().is_none_or(|only| format!("{name}/{stream}").contains(only));
    let names: Vec<&str> = streams::NAMES.into_iter().filter(|stream| wanted(stream)).collect();
    if names.is_empty() {
        return;
    }
    let mut platform = make();
    let rates: Vec<(&str, f64)> = names
        .into_iter()
        .map(|stream| {
            let accesses = streams::make(stream, options.accesses);
            (stream, measure(&format!("{name} {stream}"), &mut *platform, walk, &accesses, options.rounds))
        })
        .collect();
    let rate = |stream: &str| rates.iter().find(|(name, _)| *name == stream).map(|(_, rate)| rate);
    if let (Some(hot), Some(zipf), Some(rand)) = (rate("hot"), rate("zipf"), rate("rand")) {
        println!("{name}: the loop's own hot : zipf : rand = {:.1} : {:.2} : 1", hot / rand, zipf / rand);
        for (loop_name, [hot_there, zipf_there, rand_there]) in elsewhere(name) {
            let (hots, zipfs) = (hot_there / rand_there, zipf_there / rand_there);
            let factor = |here: f64, there: f64| (here / there).max(there / here);
            let (hot_off, zipf_off) = (factor(hot / rand, hots), factor(zipf / rand, zipfs));
            println!(
                "  {loop_name:14} {hots:6.1} : {zipfs:.2} : 1, from which ours differ by {hot_off:.1} and {zipf_off:.1}"
            );
        }
    }
}

/// What loops that do the same reached on another computer, an AMD EPYC of the Zen 4 generation: hot, zipf and rand, million
/// loads a second. Ours is the scalar one. How much of the ratios is left depends on how much of the tables the computer's
/// caches hold, and on how many walks it has under way by itself: where all 8 MiB of leaf tables stay in a large cache, misses
/// cost the scalar loop no more than they cost the one that prefetches.
fn elsewhere(regime: &str) -> &'static [(&'static str, [f64; 3])] {
    const ONE_DIMENSION: [(&str, [f64; 3]); 3] =
        [("scalar", [769.0, 21.0, 9.3]), ("vector", [690.0, 30.0, 15.0]), ("prefetching", [263.0, 65.0, 59.0])];
    const NESTED: [(&str, [f64; 3]); 2] = [("nested", [500.0, 8.2, 3.3]), ("prefetching", [63.0, 25.0, 18.0])];
    if regime == "nested" { &NESTED } else { &ONE_DIMENSION }
}

fn main() {
    let options = Options::from_env();
    println!("million loads/s, {} loads, best of {} rounds", options.accesses, options.rounds);
    println!("{:14} {:>8} {:>8} {:>8}", "", "loop", "memvirt", "ratio");
    regime("native", native, &OneDimension::new(), &options);
    regime("shadow", shadow, &OneDimension::new(), &options);
    regime("nested", nested, &Nested::new(), &options);
}
