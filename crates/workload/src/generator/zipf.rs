//! Zipf-distributed pages by Walker's alias method: one table look-up per draw, exact to the 32 bits of its thresholds.
//!
//! Rejection sampling ([`rand_distr::Zipf`](https://docs.rs/rand_distr)) needs logarithms and powers for each draw; with a
//! bounded support a table is several times faster. Sources: Walker, ACM TOMS 3 (1977); Vose, IEEE TSE 17 (1991). The
//! powers come from `libm`, whose results do not depend on the platform's own mathematics library.

use std::hint::select_unpredictable;

use memvirt_addr::Acc;
use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::draw::{self, WORD, WriteShare};
use super::steady::Pattern;
use crate::spec;

/// A page has 2^9 words of 8 bytes.
const WORD_BITS: u32 = 9;

/// Numbers drawn at once: the look-ups that follow do not wait for the random stream, so that their cache misses overlap.
const GROUP: usize = 128;

/// A column of the alias table: of 2^32 equally likely values, those below `threshold` mean `page`, the others `alias`.
#[derive(Clone, Copy, Debug)]
struct Column {
    threshold: u32,
    page: u32,
    alias: u32,
}

#[derive(Clone, Debug)]
pub(super) struct Zipf {
    base: u64,
    table: Vec<Column>,
    writes: WriteShare,
}

impl Zipf {
    pub(super) fn new(s: &spec::Zipf, rng: &mut ChaCha8Rng) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "checked: at most 2^24 pages")]
        let mut pages: Vec<u32> = (0..s.footprint.pages() as u32).collect();
        pages.shuffle(rng);
        let table = alias_table(&pages, s.exponent.get());
        Self { base: s.base.get(), table, writes: WriteShare::new(s.write_share) }
    }
}

impl Pattern for Zipf {
    fn extend(&mut self, rng: &mut ChaCha8Rng, count: usize, run: &mut Vec<Acc>) {
        let Self { base, ref table, writes } = *self;
        let columns = table.len() as u64;
        let mut draws = [(0, 0); GROUP];
        let mut left = count;
        while left > 0 {
            let group = &mut draws[..left.min(GROUP)];
            group.fill_with(|| (rng.next_u64(), rng.next_u32()));
            run.extend(group.iter().map(|&(bits, rest)| {
                let (index, fraction) = draw::split(bits, columns);
                #[expect(clippy::cast_possible_truncation, reason = "an index into the table")]
                let column = table[index as usize];
                // Which of the two is a coin toss that no branch predictor foresees.
                let page = select_unpredictable(fraction < column.threshold, column.page, column.alias);
                // The top bits choose the word, the others load or store.
                let word = u64::from(rest >> (u32::BITS - WORD_BITS));
                draw::user(base + (u64::from(page) << 12) + word * WORD, writes.kind(rest << WORD_BITS))
            }));
            left -= left.min(GROUP);
        }
    }
}

/// Builds the table: `pages[k]` gets probability proportional to `(k + 1)^-exponent`. Linear time.
fn alias_table(pages: &[u32], exponent: f64) -> Vec<Column> {
    let mut weights: Vec<f64> = (1..=pages.len()).map(|rank| libm::pow(1.0 / to_f64(rank), exponent)).collect();
    // The smallest first, so that they are not lost against a large sum.
    let mean = weights.iter().rev().sum::<f64>() / to_f64(pages.len());
    let mut table: Vec<Column> = pages.iter().map(|&page| Column { threshold: u32::MAX, page, alias: page }).collect();
    // Weights fall with the rank: columns below the mean form a tail, those above it a head, and the head's are used up
    // one after the other. A head column that falls below the mean joins the small ones.
    let head = weights.partition_point(|&weight| weight >= mean);
    let mut small: Vec<usize> = (head..pages.len()).collect();
    let mut large = 0;
    while large < head {
        let Some(index) = small.pop() else { break };
        table[index].threshold = threshold(weights[index] / mean);
        table[index].alias = pages[large];
        weights[large] -= mean - weights[index];
        if weights[large] < mean {
            small.push(large);
            large += 1;
        }
    }
    table
}

/// The nearest 32-bit threshold to a probability. Full columns need no exact one: page and alias are the same.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the conversion saturates")]
fn threshold(probability: f64) -> u32 {
    (probability * 4_294_967_296.0).round() as u32
}

#[expect(clippy::cast_precision_loss, reason = "at most 2^24")]
const fn to_f64(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The probability that the table gives to each page, summed over its columns.
    fn probabilities(table: &[Column]) -> Vec<f64> {
        let mut sums = vec![0.0; table.len()];
        for column in table {
            let own = f64::from(column.threshold) / 4_294_967_296.0;
            sums[column.page as usize] += own / to_f64(table.len());
            sums[column.alias as usize] += (1.0 - own) / to_f64(table.len());
        }
        sums
    }

    #[test]
    fn the_table_holds_the_distribution() {
        for (pages, exponent) in [(1, 1.0), (2, 0.5), (7, 1.0), (1000, 0.99), (1000, 3.0), (65_536, 0.01), (4096, 10.0)]
        {
            let table = alias_table(&(0..pages).collect::<Vec<u32>>(), exponent);
            let norm: f64 = (1..=pages).rev().map(|k| f64::from(k).powf(-exponent)).sum();
            for (k, got) in (1..).zip(probabilities(&table)) {
                let expected = f64::from(k).powf(-exponent) / norm;
                assert!(
                    (got - expected).abs() < 1e-9,
                    "{pages} pages, exponent {exponent}, rank {k}: {got} {expected}"
                );
            }
        }
    }
}
