//! Predicting what was not fitted: folds of cross-validation, and a region held out.

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::error::FitError;

/// Positions to fit to, and positions to predict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fold {
    /// To fit to, in ascending order.
    pub train: Vec<usize>,
    /// To predict, in ascending order.
    pub test: Vec<usize>,
}

/// Divides `runs` runs at random into `k` parts whose sizes differ by one at most; each is predicted from all others. `k` = `runs`
/// leaves one out at a time; a larger `k` is taken for that, a smaller one than 2 for 2.
#[must_use]
pub fn folds(runs: usize, k: usize, seed: u64) -> Vec<Fold> {
    let k = k.clamp(2, runs.max(2));
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut order: Vec<usize> = (0..runs).collect();
    // Fisher and Yates.
    for i in (1..runs).rev() {
        order.swap(i, rng.random_range(0..=i));
    }
    let mut part = vec![0; runs];
    order.iter().enumerate().for_each(|(i, run)| part[*run] = i % k);
    let fold = |n: usize| {
        let (test, train) = (0..runs).partition(|run| part[*run] == n);
        Fold { train, test }
    };
    (0..k).map(fold).filter(|fold| !fold.test.is_empty() && !fold.train.is_empty()).collect()
}

/// Divides runs that belong together (of one workload, say) as wholes: `groups` names the group of each run. No run is predicted by
/// a fit that has seen another of its group. `k` as for [`folds`], of the groups.
#[must_use]
pub fn group_folds(groups: &[usize], k: usize, seed: u64) -> Vec<Fold> {
    let mut names: Vec<usize> = groups.to_vec();
    names.sort_unstable();
    names.dedup();
    let of =
        |parts: &[usize]| (0..groups.len()).filter(|run| parts.iter().any(|p| names[*p] == groups[*run])).collect();
    folds(names.len(), k, seed).iter().map(|fold| Fold { train: of(&fold.train), test: of(&fold.test) }).collect()
}

/// Fits to small runs, predicts large ones: those above the `share` quantile of `sizes` are held out. `None` where that would
/// leave nothing on one side.
#[must_use]
pub fn held_out(sizes: &[f64], share: f64) -> Option<Fold> {
    let mut sorted = sizes.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(clippy::cast_precision_loss, reason = "fewer runs than 2^52")]
    let place = (share.clamp(0.0, 1.0) * sizes.len() as f64).ceil();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the number of runs")]
    let limit = *sorted.get((place as usize).checked_sub(1)?)?;
    let (train, test): (Vec<_>, Vec<_>) = (0..sizes.len()).partition(|run| sizes[*run] <= limit);
    (!train.is_empty() && !test.is_empty()).then_some(Fold { train, test })
}

/// The prediction of each run by a fit that has not seen it: `predict` fits to the fold's `train` and predicts its `test`.
/// Not a number for runs that no fold tests.
///
/// # Errors
///
/// The first error of `predict`.
///
/// # Panics
///
/// Where `predict` gives another number of predictions than were asked for.
pub fn cross_validate(
    runs: usize,
    folds: &[Fold],
    mut predict: impl FnMut(&Fold) -> Result<Vec<f64>, FitError>,
) -> Result<Vec<f64>, FitError> {
    let mut predictions = vec![f64::NAN; runs];
    for fold in folds {
        let found = predict(fold)?;
        assert_eq!(found.len(), fold.test.len(), "a prediction for each run of the test");
        fold.test.iter().zip(found).for_each(|(run, prediction)| predictions[*run] = prediction);
    }
    Ok(predictions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folds_test_every_run_once_and_train_on_all_others() {
        for (runs, k) in [(10, 3), (7, 7), (5, 100), (2, 1)] {
            let folds = folds(runs, k, 1);
            let mut tested: Vec<usize> = folds.iter().flat_map(|fold| fold.test.clone()).collect();
            tested.sort_unstable();
            assert_eq!(tested, (0..runs).collect::<Vec<_>>());
            for fold in &folds {
                assert_eq!(fold.train.len() + fold.test.len(), runs);
                assert!(fold.test.iter().all(|run| !fold.train.contains(run)));
            }
            let sizes: Vec<usize> = folds.iter().map(|fold| fold.test.len()).collect();
            assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{sizes:?}");
        }
        assert_eq!(folds(20, 4, 9), folds(20, 4, 9));
        assert_ne!(folds(20, 4, 9), folds(20, 4, 10));
    }

    #[test]
    fn groups_are_never_torn_apart() {
        let groups = [3, 3, 8, 1, 8, 1, 1, 4];
        let folds = group_folds(&groups, 4, 5);
        assert_eq!(folds.len(), 4);
        for fold in &folds {
            assert!(fold.test.iter().all(|test| fold.train.iter().all(|train| groups[*train] != groups[*test])));
            assert_eq!(fold.test.len() + fold.train.len(), groups.len());
        }
        assert_eq!(folds.iter().map(|fold| fold.test.len()).sum::<usize>(), groups.len());
    }

    #[test]
    fn the_large_ones_are_held_out() {
        let fold = held_out(&[5.0, 1.0, 4.0, 2.0], 0.5).unwrap();
        assert_eq!((fold.train, fold.test), (vec![1, 3], vec![0, 2]));
        assert_eq!(held_out(&[1.0, 1.0], 0.5), None);
        assert_eq!(held_out(&[], 0.5), None);
    }
}
