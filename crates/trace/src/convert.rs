//! Recordings as traces of memvirt's own.

use std::io::Write;

use memvirt_mvt::{Density, Header, MvtError, Writer, Written};
use memvirt_ops::process::{Batch, Op};

use crate::error::TraceError;
use crate::mvt::ROOTS;
use crate::recording::Recording;

/// What a conversion came to.
#[derive(Debug)]
pub struct Converted {
    /// What was written.
    pub written: Written,
    /// Processes in it: those forked, and the first; in a recorded order all share one stream.
    pub processes: u64,
    /// Why the recording ended early, where it did. What stands before is in the file.
    pub broken_off: Option<TraceError>,
}

/// Writes a whole recording as an `.mvt` trace. `progress` is called after each batch.
///
/// Each process is written as its stream gives it, so that whoever reads the file may choose another order than this reading
/// had; operations that change memory areas are in it whatever the reading does with them.
///
/// # Errors
///
/// [`TraceError::TooCoarse`] where lines are asked for and the recording keeps pages only; [`TraceError::Mvt`] where the file
/// cannot be written; others where nothing at all can be read.
pub fn convert<W: Write>(
    mut recording: Recording,
    output: W,
    name: &str,
    density: Density,
    progress: &mut dyn FnMut(&Recording),
) -> Result<(Converted, W), TraceError> {
    if density == Density::Lines && recording.density() == Density::Pages {
        return Err(TraceError::TooCoarse { name: recording.name().to_owned() });
    }
    let mut batch = Batch::default();
    // The first batch settles what the header says: which program it is.
    let mut held = Vec::new();
    let mut more =
        recording.next_batch_tapped(&mut batch, &mut |process, batch| held.push((process, batch.clone())))?;
    let mut writer = Writer::new(output, name, header(&recording, density))?;
    let mut forked = 0;
    for (process, batch) in held {
        forked += u64::from(begets(&batch));
        writer.batch(process, &batch)?;
    }
    let mut broken_off = None;
    let mut failed: Option<MvtError> = None;
    while more {
        let mut tap = |process, batch: &Batch| {
            forked += u64::from(begets(batch));
            if failed.is_none() {
                failed = writer.batch(process, batch).err();
            }
        };
        more = match recording.next_batch_tapped(&mut batch, &mut tap) {
            Ok(more) => more,
            Err(error) => {
                broken_off = Some(error);
                false
            }
        };
        if let Some(error) = failed.take() {
            return Err(error.into());
        }
        progress(&recording);
    }
    let (written, output) = writer.finish()?;
    Ok((Converted { processes: written.processes.max(1 + forked), written, broken_off }, output))
}

/// Whether a batch ends with the making of a process.
pub(crate) const fn begets(batch: &Batch) -> bool {
    matches!(batch.then, Some(Op::Fork { .. } | Op::Vfork { .. }))
}

fn header(recording: &Recording, density: Density) -> Header {
    let (order, roots) = recording.order();
    let tally = recording.tally();
    let mut notes = match recording.header() {
        Some(header) => header.notes.clone(),
        None => vec![("format".to_owned(), recording.format().name().to_owned())],
    };
    let mut note = |name: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty())
            && !notes.iter().any(|(other, _)| other == name)
        {
            notes.push((name.to_owned(), value));
        }
    };
    note("program", tally.command);
    note(ROOTS, Some(roots));
    Header { density, order, notes }
}

/// Where two readings of the same thing differ, in words; `None` where nowhere. Addresses are compared as far as the coarser
/// of the two keeps them. Processes are compared one by one, whatever order they run in.
///
/// # Errors
///
/// Where either cannot be read to its end.
pub fn difference(left: &mut Recording, right: &mut Recording) -> Result<Option<String>, TraceError> {
    let shift = if left.has_lines() && right.has_lines() { 6 } else { 12 };
    let (left, right) = (digests(left, shift)?, digests(right, shift)?);
    let all: std::collections::BTreeSet<_> = left.keys().chain(right.keys()).collect();
    for process in all {
        match (left.get(process), right.get(process)) {
            (Some(left), Some(right)) if left == right => {}
            (Some(left), Some(right)) => {
                let (a, b) = (left.batches, right.batches);
                return Ok(Some(format!("process {}: {a} batches against {b}, or other contents", process.0)));
            }
            _ => return Ok(Some(format!("process {} is in one of them only", process.0))),
        }
    }
    Ok(None)
}

/// What a process did, in short: 64 bits of checksum, and how many batches.
#[derive(Debug, Default, PartialEq, Eq)]
struct Digest {
    batches: u64,
    sum: u64,
}

fn digests(
    recording: &mut Recording,
    shift: u32,
) -> Result<std::collections::BTreeMap<memvirt_ops::process::ProcessId, Digest>, TraceError> {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut all = std::collections::BTreeMap::<_, Digest>::new();
    let mut batch = Batch::default();
    let mut add = |process, batch: &Batch| {
        let digest = all.entry(process).or_default();
        let mut hasher = DefaultHasher::new();
        digest.sum.hash(&mut hasher);
        for access in &batch.run {
            (access.gva().as_u64() >> shift, access.kind() as u8).hash(&mut hasher);
        }
        (batch.instructions, batch.then).hash(&mut hasher);
        *digest = Digest { batches: digest.batches + 1, sum: hasher.finish() };
    };
    while recording.next_batch_tapped(&mut batch, &mut add)? {}
    Ok(all)
}
