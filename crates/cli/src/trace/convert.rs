//! `memvirt trace convert`, `verify`, `cut` and `cat`.

use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::Path;

use anyhow::Context;
use memvirt_addr::AccessKind;
use memvirt_lab::text::{bytes, count};
use memvirt_mvt::{Density, Mvt};
use memvirt_ops::process::{Batch, Op, ProcessId, Source};
use memvirt_trace::{Converted, Reading, Recording, difference};

use super::{CatArgs, ConvertArgs, CutArgs, VerifyArgs};
use crate::failure::{Status, warn};
use crate::output::print;
use crate::progress::Bytes;

/// A file that appears under its name once it is whole.
pub(super) struct Output {
    file: BufWriter<File>,
    path: std::path::PathBuf,
    partial: std::path::PathBuf,
}

impl Output {
    pub(super) fn new(path: &Path) -> anyhow::Result<Self> {
        // A device or a pipe would be replaced by a file; a link is written through.
        let path = &std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let is_file = std::fs::metadata(path).map_or(true, |found| found.is_file());
        anyhow::ensure!(is_file, "cannot write {}: it is no file; name one, as in NEW.mvt", path.display());
        let mut partial = path.as_os_str().to_owned();
        partial.push(".part");
        let partial = std::path::PathBuf::from(partial);
        let file = File::create(&partial).with_context(|| format!("cannot write {}", partial.display()))?;
        Ok(Self { file: BufWriter::new(file), path: path.to_owned(), partial })
    }

    fn finish(mut self) -> anyhow::Result<()> {
        self.file.flush().with_context(|| format!("cannot write {}", self.partial.display()))?;
        std::fs::rename(&self.partial, &self.path).with_context(|| format!("cannot write {}", self.path.display()))
    }
}

impl Write for Output {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.file.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Packs a recording into `path` and says what came of it.
pub(super) fn pack(recording: Recording, path: &Path, density: Density) -> anyhow::Result<Status> {
    let bar = Bytes::new(recording.progress().total_bytes());
    let (mut raw, mut malformed) = (0, 0);
    let partial = Output::new(path)?;
    let (scratch, name) = (partial.partial.clone(), path.display().to_string());
    let mut look = |recording: &Recording| {
        let tally = recording.tally();
        (raw, malformed) = (tally.raw_bytes, tally.malformed);
        bar.show(recording.progress().bytes());
    };
    let packed = memvirt_trace::convert(recording, partial, &name, density, &mut look);
    bar.clear();
    let (converted, output) = packed.inspect_err(|_| drop(std::fs::remove_file(&scratch)))?;
    output.finish()?;
    if malformed > 0 {
        warn(&format!("warning: {malformed} lines were not understood and are not in {name}"));
    }
    report(&converted, &name, raw)
}

fn report(converted: &Converted, name: &str, raw: u64) -> anyhow::Result<Status> {
    let written = &converted.written;
    let ratio = if raw > 0 {
        format!(", 1/{} of the recording's {}", raw / written.bytes.max(1), bytes(raw))
    } else {
        String::new()
    };
    print(&format!(
        "{name}: {}{ratio}: {}, {}, {} in {}\n",
        bytes(written.bytes),
        many(written.accesses, "access", "accesses"),
        many(written.instructions, "instruction", "instructions"),
        many(converted.processes, "process", "processes"),
        many(written.blocks, "block", "blocks"),
    ))?;
    match &converted.broken_off {
        None => Ok(Status::Fine),
        Some(error) => {
            warn(&format!("error: {error}; what stands before is in {name}"));
            Ok(Status::BadInput)
        }
    }
}

/// A number of something.
fn many(number: u64, one: &str, more: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { more })
}

pub(crate) fn convert(args: &ConvertArgs) -> anyhow::Result<Status> {
    pack(Recording::open(&args.input, Reading::default())?, &args.output, args.density.into())
}

pub(crate) fn cut(args: &CutArgs) -> anyhow::Result<Status> {
    anyhow::ensure!(args.from < args.to, "nothing lies between --from {} and --to {}", args.from, args.to);
    let recording = Recording::open(&args.input, args.turns.reading())?;
    let output = Output::new(&args.output)?;
    let (scratch, name) = (output.partial.clone(), args.output.display().to_string());
    let done = memvirt_trace::cut(recording, output, &name, args.from..args.to, args.density.into());
    let (converted, output) = done.inspect_err(|_| drop(std::fs::remove_file(&scratch)))?;
    output.finish()?;
    report(&converted, &name, 0)
}

pub(crate) fn verify(args: &VerifyArgs) -> anyhow::Result<Status> {
    let mvt = Mvt::open(&args.file)?;
    let verified = mvt.verify()?;
    let header = mvt.header();
    let mut text = format!("{}: {}, density {}", mvt.name(), bytes(mvt.bytes()), header.density.name());
    for (name, value) in &header.notes {
        text += &format!(", {name} {value}");
    }
    text += &format!(
        "\n{} blocks intact: {} batches, {} accesses, {} instructions\n",
        count(verified.blocks),
        count(verified.batches),
        count(verified.accesses),
        count(verified.instructions),
    );
    for damage in &verified.damage {
        text += &format!("damaged: {damage}\n");
    }
    let mut status = if verified.damage.is_empty() { Status::Fine } else { Status::CheckFailed };
    if let Some(recording) = &args.against {
        let mut packed = Recording::open(&args.file, Reading::default())?;
        let mut raw = Recording::open(recording, Reading::default())?;
        // What is damaged differs: the packed trace has said how, and its recording is bad input.
        let difference = match difference(&mut packed, &mut raw) {
            Err(error) if error.is_damage() => Some(format!("it is damaged: {error}")),
            other => other?,
        };
        match difference {
            None => text += &format!("equal to {}{}\n", recording.display(), skipped(&raw)),
            Some(difference) => {
                text += &format!("differs from {}{}: {difference}\n", recording.display(), skipped(&raw));
                status = Status::CheckFailed;
            }
        }
    }
    print(&text)?;
    Ok(status)
}

/// What of a recording was not compared.
fn skipped(recording: &Recording) -> String {
    let tally = recording.tally();
    let Some(first) = &tally.first_malformed else { return String::new() };
    let lines = many(tally.malformed, "line", "lines");
    format!(" but for {lines} that no reader understands, in neither of the two; the first: {first}")
}

pub(crate) fn cat(args: &CatArgs) -> anyhow::Result<Status> {
    let mut recording = Recording::open(&args.file, args.turns.reading())?;
    let mut out = BufWriter::new(io::stdout().lock());
    match lines(&mut recording, args.lines.unwrap_or(u64::MAX), &mut out) {
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) => {
            Ok(Status::Fine)
        }
        result => result.map(|()| Status::Fine),
    }
}

fn lines(recording: &mut Recording, mut left: u64, out: &mut impl Write) -> anyhow::Result<()> {
    let (mut batch, mut current) = (Batch::default(), Some(ProcessId::FIRST));
    while left > 0 {
        match recording.next_batch(&mut batch) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                // What stands before comes before the error.
                out.flush()?;
                return Err(error.into());
            }
        }
        let who = current.map_or("-".to_owned(), |process| process.0.to_string());
        for run in batch.run.chunk_by(|a, b| a == b) {
            if left == 0 {
                break;
            }
            left -= 1;
            let kind = match run[0].kind() {
                AccessKind::Fetch => 'I',
                AccessKind::Read => 'L',
                AccessKind::Write => 'S',
            };
            let often = if run.len() > 1 { format!(" x{}", run.len()) } else { String::new() };
            writeln!(out, "{who} {kind} {:012x}{often}", run[0].gva().as_u64())?;
        }
        if let Some(op) = batch.then.filter(|_| left > 0) {
            left -= 1;
            writeln!(out, "{who} {op:?}")?;
            current = match op {
                Op::Switch { to } => Some(to),
                Op::Exit => None,
                _ => current,
            };
        }
    }
    out.flush()?;
    Ok(())
}
