//! Where the bytes of a trace come from: any reader, decompressed on the way.
//!
//! Compression is recognized by the first bytes, never by a file name. Formats: zstd (RFC 8878, section 3.1), xz (the .xz
//! file format 1.2.0, section 2.1.1.1), gzip (RFC 1952, section 2.3.1); anything else is taken as it is. Concatenated
//! frames, streams and members are read one after the other.

use std::fmt;
use std::io::{self, BufReader, Chain, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;
use liblzma::bufread::XzDecoder;

/// How a trace is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum Compression {
    /// Not at all.
    Plain,
    /// Zstandard.
    Zstd,
    /// The .xz format.
    Xz,
    /// gzip.
    Gzip,
}

impl Compression {
    /// The longest sequence of first bytes that is looked at.
    const MAGIC_BYTES: usize = 6;

    /// What the first bytes of a file say.
    #[must_use]
    pub fn of(first: &[u8]) -> Self {
        match first {
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame, with which some zstd tools begin.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [0x1f, 0x8b, ..] => Self::Gzip,
            _ => Self::Plain,
        }
    }

    /// The name in messages and results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Gzip => "gzip",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How far a reader has come in its (possibly compressed) input. Clones show the same reader, also from other threads.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    read: Arc<AtomicU64>,
    total: Option<u64>,
}

impl Progress {
    pub(crate) fn new(total: Option<u64>) -> Self {
        Self { read: Arc::default(), total }
    }

    /// The progress of somebody else's counter.
    pub(crate) fn of(read: Arc<AtomicU64>, total: u64) -> Self {
        Self { read, total: Some(total) }
    }

    /// Bytes read from the input so far, before decompression.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// The size of the input in bytes, before decompression; `None` where it is not known.
    #[must_use]
    pub fn total_bytes(&self) -> Option<u64> {
        self.total
    }
}

/// Counts what passes.
#[derive(Debug)]
struct Counted<R> {
    inner: R,
    progress: Progress,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.progress.read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// The input with the bytes put back that were read to recognize the compression.
type Whole<R> = Chain<Cursor<Vec<u8>>, Counted<R>>;

/// A reader of decompressed bytes.
pub(crate) struct Input<R: Read> {
    state: State<R>,
    progress: Progress,
}

enum State<R: Read> {
    Unopened(R),
    Plain(Whole<R>),
    Zstd(Box<zstd::stream::read::Decoder<'static, BufReader<Whole<R>>>>),
    Xz(Box<XzDecoder<BufReader<Whole<R>>>>),
    Gzip(Box<MultiGzDecoder<BufReader<Whole<R>>>>),
    Failed,
}

impl<R: Read> Input<R> {
    pub(crate) fn new(inner: R, progress: Progress) -> Self {
        Self { state: State::Unopened(inner), progress }
    }

    /// Bytes that are taken as they are.
    pub(crate) fn plain(inner: R) -> Self {
        let counted = Counted { inner, progress: Progress::default() };
        Self { state: State::Plain(Cursor::new(Vec::new()).chain(counted)), progress: Progress::default() }
    }

    pub(crate) fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// What was recognized; `Plain` before the first read.
    pub(crate) fn compression(&self) -> Compression {
        match self.state {
            State::Zstd(_) => Compression::Zstd,
            State::Xz(_) => Compression::Xz,
            State::Gzip(_) => Compression::Gzip,
            State::Unopened(_) | State::Plain(_) | State::Failed => Compression::Plain,
        }
    }

    fn open(inner: R, progress: Progress) -> io::Result<State<R>> {
        const BUFFER_BYTES: usize = 128 << 10;
        let mut counted = Counted { inner, progress };
        let mut first = Vec::new();
        counted.by_ref().take(Compression::MAGIC_BYTES as u64).read_to_end(&mut first)?;
        let compression = Compression::of(&first);
        let whole = Cursor::new(first).chain(counted);
        let buffered = |whole| BufReader::with_capacity(BUFFER_BYTES, whole);
        Ok(match compression {
            Compression::Plain => State::Plain(whole),
            Compression::Zstd => State::Zstd(Box::new(zstd::stream::read::Decoder::with_buffer(buffered(whole))?)),
            Compression::Xz => State::Xz(Box::new(XzDecoder::new_multi_decoder(buffered(whole)))),
            Compression::Gzip => State::Gzip(Box::new(MultiGzDecoder::new(buffered(whole)))),
        })
    }
}

impl<R: Read> Read for Input<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if matches!(self.state, State::Unopened(_))
            && let State::Unopened(inner) = std::mem::replace(&mut self.state, State::Failed)
        {
            self.state = Self::open(inner, self.progress.clone())?;
        }
        match &mut self.state {
            State::Plain(input) => input.read(buffer),
            State::Zstd(input) => input.read(buffer),
            State::Xz(input) => input.read(buffer),
            State::Gzip(input) => input.read(buffer),
            State::Unopened(_) | State::Failed => Ok(0),
        }
    }
}
