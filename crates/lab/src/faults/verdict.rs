//! Predictions beside recorded counts, kind by kind, each with its band.

use serde::Serialize;

use super::{Faults, Flushes};

/// How far a predicted count of faults may be off, in percent of the recorded one.
pub const FAULTS_BAND: f64 = 5.0;
/// The same for flushes.
pub const FLUSHES_BAND: f64 = 25.0;

/// Whether a prediction holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Within its band.
    In,
    /// Outside of it.
    Out,
    /// Nothing was recorded to compare with.
    NotRecorded,
}

/// One kind of event: what was predicted, what was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Kind {
    /// What is counted.
    pub name: &'static str,
    /// How many the guest makes.
    pub predicted: u64,
    /// How many the kernel counted.
    pub recorded: Option<u64>,
    /// How far the prediction is off, in percent of what was recorded, where that is not zero.
    pub off_percent: Option<f64>,
    /// How far it may be off, in percent.
    pub band_percent: f64,
    /// Whether it holds.
    pub verdict: Verdict,
}

impl Kind {
    fn new(name: &'static str, predicted: u64, recorded: Option<u64>, band_percent: f64) -> Self {
        let off_percent = recorded.filter(|count| *count > 0).map(|count| percent(predicted, count));
        let verdict = match (recorded, off_percent) {
            (None, _) => Verdict::NotRecorded,
            (Some(_), Some(off)) if off.abs() <= band_percent => Verdict::In,
            (Some(_), None) if predicted == 0 => Verdict::In,
            _ => Verdict::Out,
        };
        Self { name, predicted, recorded, off_percent, band_percent, verdict }
    }
}

/// All kinds of faults and flushes, each followed by their sums.
pub(super) fn kinds(faults: &Faults, flushes: &Flushes, recorded: Option<(&Faults, &Flushes)>) -> Vec<Kind> {
    type Of<T> = fn(&T) -> u64;
    let of_faults: [(&str, Of<Faults>); 5] = [
        ("loads", |faults| faults.load),
        ("fetches", |faults| faults.fetch),
        ("stores, page not present", |faults| faults.store),
        ("stores, page read-only", |faults| faults.protection),
        ("user page faults", |faults| faults.total()),
    ];
    let of_flushes: [(&str, Of<Flushes>); 4] = [
        ("own address space", |flushes| flushes.local),
        ("task switch", |flushes| flushes.task_switch),
        ("other CPUs", |flushes| flushes.remote),
        ("TLB flushes", |flushes| flushes.total()),
    ];
    let one = |(name, of): (&'static str, Of<Faults>)| {
        Kind::new(name, of(faults), recorded.map(|(known, _)| of(known)), FAULTS_BAND)
    };
    let other = |(name, of): (&'static str, Of<Flushes>)| {
        Kind::new(name, of(flushes), recorded.map(|(_, known)| of(known)), FLUSHES_BAND)
    };
    of_faults.into_iter().map(one).chain(of_flushes.into_iter().map(other)).collect()
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn percent(predicted: u64, recorded: u64) -> f64 {
    100.0 * (predicted as f64 / recorded as f64 - 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_band_is_of_the_recorded_count_and_nothing_recorded_is_no_verdict() {
        let verdict = |predicted, recorded| Kind::new("x", predicted, recorded, 25.0).verdict;
        let cases = [(75, Some(100)), (74, Some(100)), (125, Some(100)), (126, Some(100)), (0, Some(0)), (1, Some(0))];
        use Verdict::{In, Out};
        let expected = [In, Out, In, Out, In, Out];
        assert_eq!(cases.map(|(predicted, recorded)| verdict(predicted, recorded)), expected);
        assert_eq!(verdict(5, None), Verdict::NotRecorded);
    }
}
