//! A tar archive, compressed or not, whose members are read at the same time.
//!
//! A compressed archive cannot be entered in the middle. Each member that is read has a decompressor of its own, which began
//! at the front; decompressors that are done with one member are kept for members further on, so that reading one member
//! after the other decompresses the archive about once. Memory: one decompressor for each process that runs.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::tar::Entry;
use crate::input::{Compression, Input, Progress};

/// Decompressors that are kept for later.
const MAX_PARKED: usize = 4;

#[derive(Debug)]
pub(crate) struct Archive {
    path: PathBuf,
    compression: Compression,
    parked: Mutex<Vec<Place>>,
}

/// A decompressor and where it stands.
struct Place {
    input: Input<File>,
    at: u64,
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Place({})", self.at)
    }
}

impl Archive {
    pub(crate) fn new(path: PathBuf, compression: Compression) -> Arc<Self> {
        Arc::new(Self { path, compression, parked: Mutex::default() })
    }

    fn place_for(&self, offset: u64) -> io::Result<Place> {
        if self.compression == Compression::Plain {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(offset))?;
            return Ok(Place { input: Input::plain(file), at: offset });
        }
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        let before = parked.iter().enumerate().filter(|(_, place)| place.at <= offset);
        if let Some((index, _)) = before.max_by_key(|(_, place)| place.at) {
            return Ok(parked.swap_remove(index));
        }
        Ok(Place { input: Input::new(File::open(&self.path)?, Progress::default()), at: 0 })
    }

    fn park(&self, place: Place) {
        if self.compression != Compression::Plain {
            let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
            if parked.len() < MAX_PARKED {
                parked.push(place);
            }
        }
    }

    /// The contents of a member.
    pub(crate) fn open(self: &Arc<Self>, entry: &Entry) -> io::Result<ArchiveReader> {
        let mut place = self.place_for(entry.offset)?;
        let ahead = entry.offset - place.at;
        let skipped = io::copy(&mut place.input.by_ref().take(ahead), &mut io::sink())?;
        if skipped < ahead {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        place.at = entry.offset;
        Ok(ArchiveReader { archive: Arc::clone(self), place: Some(place), left: entry.bytes })
    }
}

/// The bytes of one member.
#[derive(Debug)]
pub(crate) struct ArchiveReader {
    archive: Arc<Archive>,
    place: Option<Place>,
    left: u64,
}

impl Read for ArchiveReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(place) = &mut self.place else { return Ok(0) };
        if self.left == 0 {
            if let Some(place) = self.place.take() {
                self.archive.park(place);
            }
            return Ok(0);
        }
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let count = place.input.read(&mut buffer[..wanted])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        place.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}
