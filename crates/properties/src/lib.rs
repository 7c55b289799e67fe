#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

use proptest::test_runner::{Config, RngSeed};

/// The seed of every property test.
pub const SEED: u64 = 20_261_123;

/// A configuration of `usual` cases from [`SEED`], unless `PROPTEST_CASES` and `PROPTEST_RNG_SEED` say otherwise.
#[must_use]
pub fn cases(usual: u32) -> Config {
    let config = Config::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { config.cases } else { usual };
    let rng_seed = match config.rng_seed {
        RngSeed::Random => RngSeed::Fixed(SEED),
        asked @ RngSeed::Fixed(_) => asked,
    };
    Config { cases, rng_seed, ..config }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    use super::*;

    fn drawn() -> Vec<u64> {
        let mut runner = TestRunner::new(Config { failure_persistence: None, ..cases(8) });
        (0..8).map(|_| any::<u64>().new_tree(&mut runner).unwrap().current()).collect()
    }

    #[test]
    fn two_runners_draw_the_same() {
        assert_eq!(drawn(), drawn());
    }

    #[test]
    fn the_usual_number_and_seed_are_a_default() {
        let config = cases(8);
        if std::env::var_os("PROPTEST_CASES").is_none() {
            assert_eq!(config.cases, 8);
        }
        assert_ne!(config.rng_seed, RngSeed::Random);
    }
}
