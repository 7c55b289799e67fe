//! Any recording, whatever its format: [`Recording`].
//!
//! What a file is stands in its bytes, never in its name. A directory or an archive is the set of logs in it, or, where it
//! holds none, the one recording in it that says most.

use std::fs::File;
use std::path::Path;

use memvirt_mvt::{Density, Header, Mvt, Order};
use memvirt_ops::process::{Batch, ProcessId, Source};

use crate::bundle::{Bundle, MemberReader, head_of, tar};
use crate::calls::as_plain_call;
use crate::champsim::ChampSimReader;
use crate::error::TraceError;
use crate::format::{Format, is_recognized, sniff, worth};
use crate::input::{Compression, Progress};
use crate::interleave::{Family, Interleaver, Repairs, Tap, Turns};
use crate::lackey::logs::{self, LogSet};
use crate::lackey::{LackeyReader, MemoryCalls, Tally};
use crate::mvt::{MvtFamily, MvtStream};
use crate::text::TextReader;
use crate::text::perf::Perf;
use crate::text::strace::Strace;

/// How a recording is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// What becomes of calls that change memory areas; `None`: carried out, unless it is a single lackey log.
    pub memory_calls: Option<MemoryCalls>,
    /// How the processes of a recording without an order take turns.
    pub turns: Turns,
}

enum Streams {
    Log(Box<LackeyReader<MemberReader>>),
    Logs(Box<Interleaver<LogSet>>),
    Mvt(Box<Interleaver<MvtFamily>>),
    Ordered { family: Box<MvtFamily>, stream: Box<MvtStream> },
    Strace(Box<TextReader<MemberReader, Strace>>),
    Perf(Box<TextReader<MemberReader, Perf>>),
    ChampSim(Box<ChampSimReader<MemberReader>>),
}

/// A recording being read.
pub struct Recording {
    name: String,
    format: Format,
    compression: Compression,
    memory_calls: MemoryCalls,
    streams: Streams,
    /// The header of a trace of memvirt's own.
    header: Option<Header>,
    /// Counts of what was delivered.
    counted: Tally,
    /// Whether everything was.
    ended: bool,
    /// The size of what was opened.
    file_bytes: Option<u64>,
    /// The other recordings of a bundle that is read by one of them, and why the bundle ends early.
    beside: (Vec<String>, Option<String>),
}

impl Recording {
    /// Opens a file or directory.
    ///
    /// # Errors
    ///
    /// [`TraceError::Open`] where it cannot be opened, others where it is no recording.
    pub fn open(path: impl AsRef<Path>, reading: Reading) -> Result<Self, TraceError> {
        let path = path.as_ref();
        let failed = |source| TraceError::Open { path: path.to_owned(), source };
        if path.metadata().map_err(failed)?.is_dir() {
            let bundle = Bundle::directory(path)?;
            let file_bytes = Some(bundle.member_bytes());
            return Ok(Self { file_bytes, ..Self::of_bundle(bundle, reading)? });
        }
        let file = File::open(path).map_err(failed)?;
        let regular = file.metadata().map_err(failed)?.is_file();
        if !regular {
            // A pipe gives its first bytes only once; lackey logs are what is piped.
            return Ok(Self::log(MemberReader::File(file), path.display().to_string(), None, reading));
        }
        let file_bytes = Some(file.metadata().map_err(failed)?.len());
        let (head, compression) = head_of(file);
        if memvirt_mvt::is_mvt(&head) {
            return Self::of_mvt(Mvt::open(path)?, reading);
        }
        if tar::is_header(&head) {
            return Ok(Self { file_bytes, ..Self::of_bundle(Bundle::archive(path, compression)?, reading)? });
        }
        if looks_like_mvt(path, &head) {
            // Opening it says what is wrong.
            return Self::of_mvt(Mvt::open(path)?, reading);
        }
        let file = File::open(path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        Ok(Self::of_file(&head, MemberReader::File(file), path.display().to_string(), bytes, compression, reading))
    }

    fn of_file(
        head: &[u8],
        input: MemberReader,
        name: String,
        bytes: u64,
        compression: Compression,
        reading: Reading,
    ) -> Self {
        let (format, progress) = (sniff(head), Progress::new(Some(bytes)));
        let streams = match format {
            Format::Strace => {
                let reader = TextReader::new(input, name.clone(), progress, Strace::default());
                Streams::Strace(Box::new(reader))
            }
            Format::Perf => Streams::Perf(Box::new(TextReader::new(input, name.clone(), progress, Perf::default()))),
            Format::ChampSim => Streams::ChampSim(Box::new(ChampSimReader::new(input, name.clone(), progress))),
            Format::Lackey | Format::LackeySet => {
                return Self { compression, ..Self::log(input, name, Some(bytes), reading) };
            }
        };
        Self::new(name, format, compression, streams, reading)
    }

    fn log(input: MemberReader, name: String, bytes: Option<u64>, reading: Reading) -> Self {
        let reader = LackeyReader::with_progress(input, name.clone(), Progress::new(bytes));
        Self::new(name, Format::Lackey, Compression::Plain, Streams::Log(Box::new(reader)), reading)
    }

    fn new(name: String, format: Format, compression: Compression, streams: Streams, reading: Reading) -> Self {
        let memory_calls = reading.memory_calls.unwrap_or(format.calls_by_default());
        Self {
            name,
            format,
            compression,
            memory_calls,
            streams,
            header: None,
            counted: Tally::default(),
            ended: false,
            file_bytes: None,
            beside: (Vec::new(), None),
        }
    }

    fn of_bundle(bundle: Bundle, reading: Reading) -> Result<Self, TraceError> {
        let (name, compression) = (bundle.name.clone(), bundle.compression);
        if bundle.members.iter().any(|member| logs::head(&member.head).is_some())
            && let Some(logs) = LogSet::new(bundle.clone())
        {
            let streams = Streams::Logs(Box::new(Interleaver::new(logs, reading.turns)));
            return Ok(Self::new(name, Format::LackeySet, compression, streams, reading));
        }
        // Several recordings of one program: the one that says most, and of those the longest.
        let best = bundle.members.iter().max_by_key(|member| (worth(member), member.bytes));
        let Some(member) = best.filter(|member| worth(member) > 0) else {
            let (kind, files, cut) = (bundle.kind(), bundle.members.len(), bundle.cut.clone());
            return Err(TraceError::NoRecording { name, kind, files, cut });
        };
        let input = bundle.open(member)?;
        let (name, bytes) = (bundle.member_name(member), member.bytes);
        let others = bundle.members.iter().filter(|other| other.name != member.name);
        let beside = (others.map(|other| other.name.clone()).collect(), bundle.cut.clone());
        Ok(Self { beside, ..Self::of_file(&member.head, input, name, bytes, compression, reading) })
    }

    fn of_mvt(mvt: Mvt<File>, reading: Reading) -> Result<Self, TraceError> {
        let header = mvt.header().clone();
        let noted = header.note("format").unwrap_or_default();
        let format = Format::ALL.into_iter().find(|format| format.name() == noted).unwrap_or(Format::LackeySet);
        let name = mvt.name().to_owned();
        let family = MvtFamily::new(mvt);
        let streams = match header.order {
            Order::Free => Streams::Mvt(Box::new(Interleaver::new(family, reading.turns))),
            Order::Recorded => Streams::Ordered { stream: Box::new(family.first()), family: Box::new(family) },
        };
        Ok(Self { header: Some(header), ..Self::new(name, format, Compression::Plain, streams, reading) })
    }

    /// The name given when it was opened.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it was made with.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// The header, where it is a trace of memvirt's own.
    #[must_use]
    pub fn header(&self) -> Option<&Header> {
        self.header.as_ref()
    }

    /// How it is compressed.
    #[must_use]
    pub fn compression(&self) -> Compression {
        match &self.streams {
            _ if self.compression != Compression::Plain => self.compression,
            Streams::Log(reader) => reader.compression(),
            Streams::Strace(reader) => reader.compression(),
            Streams::Perf(reader) => reader.compression(),
            Streams::ChampSim(reader) => reader.compression(),
            _ => self.compression,
        }
    }

    /// What becomes of calls that change memory areas.
    #[must_use]
    pub fn memory_calls(&self) -> MemoryCalls {
        self.memory_calls
    }

    /// What is kept of addresses.
    #[must_use]
    pub fn density(&self) -> Density {
        self.header.as_ref().map_or(Density::Lines, |header| header.density)
    }

    /// Whether the 64-byte lines of addresses are kept.
    #[must_use]
    pub fn has_lines(&self) -> bool {
        self.density() == Density::Lines
    }

    /// What was read so far, lines and remarks included where the format has them.
    #[must_use]
    pub fn tally(&self) -> Tally {
        match &self.streams {
            Streams::Log(reader) => reader.tally().clone(),
            Streams::Logs(logs) => logs.family().tally(),
            Streams::Strace(reader) => reader.tally(),
            Streams::Perf(reader) => reader.tally(),
            Streams::ChampSim(reader) => reader.tally().clone(),
            Streams::Mvt(_) | Streams::Ordered { .. } => self.noted(self.counted.clone()),
        }
    }

    /// The counts of a trace of memvirt's own, with the program's name from its notes.
    fn noted(&self, mut tally: Tally) -> Tally {
        let header = self.header.as_ref();
        // Every process but the first is forked in the stream, also those whose fork nobody recorded.
        tally.processes = tally.forks + 1;
        tally.command = header.and_then(|header| header.note("program")).map(str::to_owned);
        tally
    }

    /// How far the input has been read.
    #[must_use]
    pub fn progress(&self) -> Progress {
        match &self.streams {
            Streams::Log(reader) => reader.progress(),
            Streams::Logs(logs) => logs.family().progress(),
            Streams::Strace(reader) => reader.progress(),
            Streams::Perf(reader) => reader.progress(),
            Streams::ChampSim(reader) => reader.progress(),
            Streams::Mvt(mvt) => mvt_progress(&mvt.family().mvt),
            Streams::Ordered { family, .. } => mvt_progress(&family.mvt),
        }
    }

    /// What had to be decided to put processes in order.
    #[must_use]
    pub fn repairs(&self) -> Repairs {
        match &self.streams {
            Streams::Logs(logs) => logs.repairs(),
            Streams::Mvt(mvt) => mvt.repairs(),
            Streams::Strace(reader) => Repairs { orphans: reader.orphans(), ..Repairs::default() },
            Streams::Perf(reader) => Repairs { orphans: reader.orphans(), ..Repairs::default() },
            _ => Repairs::default(),
        }
    }

    /// Files of a bundle that are no part of the recording, and why a bundle ends early, where it does.
    #[must_use]
    pub fn left_out(&self) -> (Vec<String>, Option<String>) {
        match &self.streams {
            Streams::Logs(logs) => (logs.family().others(), logs.family().bundle().cut.clone()),
            _ => self.beside.clone(),
        }
    }

    /// The size of the file in bytes, as it lies on the disk; of a directory, that of its files. `None` for a pipe.
    #[must_use]
    pub fn file_bytes(&self) -> Option<u64> {
        self.file_bytes.or(self.progress().total_bytes())
    }

    /// The order that a copy of it has, and the processes that nobody forks.
    #[must_use]
    pub fn order(&self) -> (Order, String) {
        let roots = match &self.streams {
            Streams::Logs(logs) => logs.family().roots(),
            Streams::Mvt(mvt) => mvt.family().roots(),
            _ => return (Order::Recorded, String::new()),
        };
        (Order::Free, roots.iter().map(|root| root.0.to_string()).collect::<Vec<_>>().join(","))
    }

    /// As [`Source::next_batch`]; `tap` sees each batch as its process gives it, before processes take turns.
    ///
    /// # Errors
    ///
    /// As for [`Source::next_batch`].
    pub fn next_batch_tapped(&mut self, batch: &mut Batch, tap: Tap<'_>) -> Result<bool, TraceError> {
        batch.clear();
        let more = match &mut self.streams {
            Streams::Logs(logs) => logs.next_batch_tapped(batch, tap)?,
            Streams::Mvt(mvt) => mvt.next_batch_tapped(batch, tap)?,
            Streams::Log(reader) => tapped(reader.next_batch(batch)?, batch, tap),
            Streams::Ordered { stream, .. } => tapped(stream.next_batch(batch)?, batch, tap),
            Streams::Strace(reader) => tapped(reader.next_batch(batch)?, batch, tap),
            Streams::Perf(reader) => tapped(reader.next_batch(batch)?, batch, tap),
            Streams::ChampSim(reader) => tapped(reader.next_batch(batch)?, batch, tap),
        };
        if self.header.is_some() {
            self.count(batch);
            if !more && let Some(damage) = self.damage_at_end() {
                return Err(damage);
            }
        }
        if self.memory_calls == MemoryCalls::Ignore {
            batch.then = batch.then.map(as_plain_call);
        }
        Ok(more)
    }

    /// What is wrong with a trace of memvirt's own, said once, when everything intact has been given.
    fn damage_at_end(&mut self) -> Option<TraceError> {
        if std::mem::replace(&mut self.ended, true) {
            return None;
        }
        match &self.streams {
            Streams::Mvt(mvt) => mvt.family().damage(),
            Streams::Ordered { family, .. } => family.damage(),
            _ => None,
        }
    }

    fn count(&mut self, batch: &Batch) {
        // A fetch over a page's end is two accesses: where every instruction is fetched, fetches are counted as the recording
        // counts them. Texts of events fetch now and then.
        let is_text = matches!(self.format, Format::Perf | Format::Strace);
        if !is_text {
            self.counted.fetches = self.counted.fetches.saturating_add(batch.instructions);
        }
        for access in &batch.run {
            match access.kind() {
                memvirt_addr::AccessKind::Fetch => self.counted.fetches += u64::from(is_text),
                memvirt_addr::AccessKind::Read => self.counted.access(crate::lackey::Kind::Load),
                memvirt_addr::AccessKind::Write => self.counted.access(crate::lackey::Kind::Store),
            }
        }
        if let Some(op) = &batch.then {
            self.counted.operation(op);
        }
    }
}

/// Whether a file that is no recording was meant to be one of memvirt's own: by what is left of its signature, or by its name
/// where its bytes are nothing else.
fn looks_like_mvt(path: &Path, head: &[u8]) -> bool {
    let named = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("mvt"));
    memvirt_mvt::broken_signature(head).is_some() || (named && !is_recognized(head))
}

fn tapped(more: bool, batch: &Batch, tap: Tap<'_>) -> bool {
    if more {
        tap(ProcessId::FIRST, batch);
    }
    more
}

fn mvt_progress(mvt: &Mvt<File>) -> Progress {
    Progress::of(mvt.bytes_read(), mvt.bytes())
}

impl Source for Recording {
    type Error = TraceError;

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, TraceError> {
        self.next_batch_tapped(batch, &mut |_, _| {})
    }
}
