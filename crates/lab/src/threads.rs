//! A number of threads for what rayon spreads. Results never depend on it.

use std::num::NonZeroUsize;

use crate::error::LabError;

/// Runs `act` on `threads` threads, but on no more than `most`, since they would find nothing to do; on as many as the computer
/// has processors where `None`.
///
/// # Errors
///
/// [`LabError::Threads`] where they cannot be started.
pub(crate) fn on_threads<T: Send>(
    threads: Option<NonZeroUsize>,
    most: usize,
    act: impl FnOnce() -> T + Send,
) -> Result<T, LabError> {
    let Some(threads) = threads else { return Ok(act()) };
    let threads = threads.get().min(most.max(1));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    Ok(pool.map_err(|error| LabError::Threads { threads, reason: error.to_string() })?.install(act))
}
