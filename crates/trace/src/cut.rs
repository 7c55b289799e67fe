//! A part of a recording, as a trace of its own.

use std::io::Write;
use std::ops::Range;

use memvirt_addr::AccessKind;
use memvirt_mvt::{Density, Header, Order, Writer};
use memvirt_ops::process::{Batch, ProcessId, Source};

use crate::convert::{Converted, begets};
use crate::error::TraceError;
use crate::recording::Recording;

/// Writes the accesses numbered by `range`, counted over all processes in the order of this reading, with every operation up
/// to the end of the range: areas and processes are what they were. The order is kept as it is.
///
/// # Errors
///
/// As for [`crate::convert`]; [`TraceError::BeyondEnd`] where the recording has no access in the range.
pub fn cut<W: Write>(
    mut recording: Recording,
    output: W,
    name: &str,
    range: Range<u64>,
    density: Density,
) -> Result<(Converted, W), TraceError> {
    if density == Density::Lines && !recording.has_lines() {
        return Err(TraceError::TooCoarse { name: recording.name().to_owned() });
    }
    let mut batch = Batch::default();
    let mut more = recording.next_batch(&mut batch)?;
    let mut notes = vec![("format".to_owned(), recording.format().name().to_owned())];
    notes.extend(recording.tally().command.map(|program| ("program".to_owned(), program)));
    notes.push(("cut".to_owned(), format!("accesses {}..{}", range.start, range.end)));
    let mut writer = Writer::new(output, name, Header { density, order: Order::Recorded, notes })?;
    let (mut seen, mut processes, mut broken_off) = (0u64, 1, None);
    while more && seen < range.end {
        let before = seen;
        seen += batch.run.len() as u64;
        trim(&mut batch, before, &range);
        if seen > range.end {
            batch.then = None;
        }
        processes += u64::from(begets(&batch));
        if !batch.is_empty() {
            writer.batch(ProcessId::FIRST, &batch)?;
        }
        more = recording.next_batch(&mut batch).unwrap_or_else(|error| {
            broken_off = Some(error);
            false
        });
    }
    let (written, output) = writer.finish()?;
    // A text of calls has no accesses: its beginning is all of it.
    if range.start > 0 && seen <= range.start && broken_off.is_none() {
        return Err(TraceError::BeyondEnd { name: recording.name().to_owned(), accesses: seen, from: range.start });
    }
    Ok((Converted { written, processes, broken_off }, output))
}

/// Drops the accesses of a batch outside of the range, and the instructions that made them.
fn trim(batch: &mut Batch, before: u64, range: &Range<u64>) {
    let length = batch.run.len();
    let place = |number: u64| usize::try_from(number.saturating_sub(before)).unwrap_or(usize::MAX).min(length);
    let kept = place(range.start)..place(range.end);
    if kept.len() == length && length > 0 {
        return;
    }
    if length == 0 {
        let inside = range.contains(&before);
        batch.instructions = if inside { batch.instructions } else { 0 };
        return;
    }
    batch.run.truncate(kept.end);
    batch.run.drain(..kept.start.min(kept.end));
    // Recordings with fetches have one for each instruction.
    batch.instructions = batch.run.iter().filter(|access| access.kind() == AccessKind::Fetch).count() as u64;
}
