//! Valgrind lackey logs of one process.
//!
//! [`LackeyReader`] turns a log into batches of accesses and operations ([`Source`]). It reads in bounded memory
//! (`buffer`), parses nearly all lines with a loop-free nom parser (`access`) and the others with a grammar of nom combinators
//! (`line`), lowers system calls (`calls`), and counts (`tally`). Source of the format: the Valgrind 3.19 manual, chapter 13,
//! and logs recorded with it.

mod access;
pub(crate) mod buffer;
mod calls;
mod family;
mod line;
pub(crate) mod logs;
mod reader;
mod split;
mod tally;

use std::fs::File;
use std::path::Path;

#[cfg(doc)]
use memvirt_ops::process::Source;

pub(crate) use access::Kind;
pub use reader::{LackeyReader, MemoryCalls};
pub use tally::Tally;

use crate::error::TraceError;
use crate::input::Progress;

/// Opens a log. Whether it is one is found out by the first batch.
///
/// # Errors
///
/// [`TraceError::Open`] where the file cannot be opened.
pub fn open(path: impl AsRef<Path>) -> Result<LackeyReader<File>, TraceError> {
    let path = path.as_ref();
    let failed = |source| TraceError::Open { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        return Err(failed(std::io::ErrorKind::IsADirectory.into()));
    }
    let total = metadata.is_file().then_some(metadata.len());
    Ok(LackeyReader::with_progress(file, path.display().to_string(), Progress::new(total)))
}

/// Whether a line is one of a log.
pub(crate) fn is_line(text: &[u8]) -> bool {
    line::line(text).is_ok_and(|(_, line)| line != line::Line::Blank)
}
