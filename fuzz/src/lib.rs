//! What the fuzz targets share: a recording in a file, read to its end under assertions that hold for whatever bytes.

use std::fs;
use std::path::PathBuf;

use memvirt_ops::process::{Batch, Source};
use memvirt_trace::{Format, Reading, Recording};

/// Batches that are read of one input: compressed bytes may stand for any length, and a run has to end.
pub const MOST_BATCHES: usize = 2000;

/// A place for this process' input. Readers of several formats open paths.
#[must_use]
pub fn scratch() -> PathBuf {
    let folder = std::env::temp_dir().join(format!("memvirt-fuzz-{}", std::process::id()));
    let _ = fs::create_dir_all(&folder);
    folder
}

/// Reads a source to its end, its first error or [`MOST_BATCHES`]: batches stay within their bound.
///
/// # Panics
///
/// Where a batch is larger than one may be, or anything follows an end.
pub fn drain<S: Source>(source: &mut S, mut see: impl FnMut(&Batch)) -> Option<S::Error> {
    let mut batch = Batch::default();
    for _ in 0..MOST_BATCHES {
        match source.next_batch(&mut batch) {
            Ok(true) => {
                assert!(batch.run.len() <= Batch::CAPACITY, "a batch of {} accesses", batch.run.len());
                see(&batch);
            }
            Ok(false) => {
                assert!(!source.next_batch(&mut batch).unwrap_or(false), "an end is an end");
                return None;
            }
            Err(error) => return Some(error),
        }
    }
    None
}

/// Opens bytes as a recording, whatever they are, and reads it.
pub fn read_file(bytes: &[u8]) {
    let path = scratch().join("input");
    if fs::write(&path, bytes).is_ok() {
        read(&path);
    }
}

/// The same with bytes in front that show a format.
pub fn read_as(format: Format, first: &str, bytes: &[u8]) {
    let path = scratch().join("input");
    if fs::write(&path, [first.as_bytes(), bytes].concat()).is_err() {
        return;
    }
    if let Some(found) = read(&path) {
        // Many lines of another format outvote the first; a short input cannot.
        assert!(found == format || bytes.iter().filter(|byte| **byte == b'\n').count() > 0, "{found:?}");
    }
}

/// Reads the recording at a path: errors name it, counts fit each other.
///
/// # Panics
///
/// Where they do not.
pub fn read(path: &std::path::Path) -> Option<Format> {
    let name = path.display().to_string();
    let named = |error: String| assert!(error.contains(&name), "{error}");
    let mut recording = match Recording::open(path, Reading::default()) {
        Ok(recording) => recording,
        Err(error) => {
            named(error.to_string());
            return None;
        }
    };
    if let Some(error) = drain(&mut recording, |_| {}) {
        named(error.to_string());
    }
    let tally = recording.tally();
    assert!(tally.malformed <= tally.lines, "{} of {} lines", tally.malformed, tally.lines);
    Some(recording.format())
}
