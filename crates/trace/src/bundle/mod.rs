//! Several files that belong together: a directory, or a tar archive of any compression.

mod archive;
pub(crate) mod tar;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use archive::{Archive, ArchiveReader};
use tar::Entry;

use crate::error::TraceError;
use crate::input::{Compression, Input, Progress};

/// How much of a file is looked at to tell what it is.
pub(crate) const HEAD_BYTES: u64 = 64 << 10;
/// Files of a directory that are looked at, at most.
const MAX_FILES: usize = 1 << 16;

/// One file of a bundle.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    place: Place,
    /// Its first bytes, decompressed.
    pub(crate) head: Vec<u8>,
}

#[derive(Clone, Debug)]
enum Place {
    File(PathBuf),
    Archive(Entry),
}

/// Files that belong together.
#[derive(Clone, Debug)]
pub(crate) struct Bundle {
    pub(crate) name: String,
    pub(crate) members: Vec<Member>,
    pub(crate) compression: Compression,
    /// Why the bundle ends early, where it does.
    pub(crate) cut: Option<String>,
    archive: Option<Arc<Archive>>,
}

/// The contents of a member.
#[derive(Debug)]
pub(crate) enum MemberReader {
    File(File),
    /// A file as long as it was when it was found.
    Part(io::Take<File>),
    Archive(ArchiveReader),
}

impl Read for MemberReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read(buffer),
            Self::Part(part) => part.read(buffer),
            Self::Archive(reader) => reader.read(buffer),
        }
    }
}

/// The first bytes of anything, decompressed, as far as they can be read.
pub(crate) fn head_of(input: impl Read) -> (Vec<u8>, Compression) {
    let mut input = Input::new(input, Progress::default());
    let mut head = vec![0; usize::try_from(HEAD_BYTES).unwrap_or(0)];
    let mut got = 0;
    while got < head.len() {
        match input.read(&mut head[got..]) {
            Ok(0) | Err(_) => break,
            Ok(count) => got += count,
        }
    }
    head.truncate(got);
    (head, input.compression())
}

impl Bundle {
    /// The files of a directory, by name; other directories in it are left out.
    pub(crate) fn directory(path: &Path) -> Result<Self, TraceError> {
        let failed = |source| TraceError::Open { path: path.to_owned(), source };
        let mut members = Vec::new();
        for entry in std::fs::read_dir(path).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let Ok(metadata) = path.metadata() else { continue };
            // Files without a size hold nothing, or are made as they are read and may never end (`/proc`).
            if metadata.is_file() && metadata.len() > 0 && members.len() < MAX_FILES {
                let file = File::open(&path).map_err(|source| TraceError::Open { path: path.clone(), source })?;
                let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                let (head, _) = head_of(file.take(metadata.len()));
                members.push(Member { name, bytes: metadata.len(), place: Place::File(path), head });
            }
        }
        members.sort_by(|a, b| a.name.cmp(&b.name));
        let name = path.display().to_string();
        Ok(Self { name, members, compression: Compression::Plain, cut: None, archive: None })
    }

    /// The members of an archive, by name.
    pub(crate) fn archive(path: &Path, compression: Compression) -> Result<Self, TraceError> {
        let failed = |source| TraceError::Open { path: path.to_owned(), source };
        let input = Input::new(File::open(path).map_err(failed)?, Progress::default());
        let mut heads = Vec::new();
        let (entries, cut) = tar::scan(input, HEAD_BYTES, &mut |_, head| heads.push(head_of(head).0));
        let member = |(entry, head): (Entry, Vec<u8>)| Member {
            name: entry.name.clone(),
            bytes: entry.bytes,
            place: Place::Archive(entry),
            head,
        };
        let mut members: Vec<_> = entries.into_iter().zip(heads).map(member).collect();
        members.sort_by(|a, b| a.name.cmp(&b.name));
        let archive = Some(Archive::new(path.to_owned(), compression));
        let cut = cut.map(|error| error.to_string());
        Ok(Self { name: path.display().to_string(), members, compression, cut, archive })
    }

    /// What its members take, before they are packed.
    pub(crate) fn member_bytes(&self) -> u64 {
        self.members.iter().map(|member| member.bytes).sum()
    }

    /// What it is, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        if self.archive.is_some() { "tar archive" } else { "directory" }
    }

    /// What messages call a member.
    pub(crate) fn member_name(&self, member: &Member) -> String {
        format!("{}/{}", self.name, member.name)
    }

    /// Opens a member.
    pub(crate) fn open(&self, member: &Member) -> Result<MemberReader, TraceError> {
        let opened = match (&member.place, &self.archive) {
            (Place::File(path), _) => File::open(path).map(|file| MemberReader::Part(file.take(member.bytes))),
            (Place::Archive(entry), Some(archive)) => archive.open(entry).map(MemberReader::Archive),
            (Place::Archive(_), None) => Err(io::ErrorKind::NotFound.into()),
        };
        opened.map_err(|source| TraceError::Open { path: self.member_name(member).into(), source })
    }
}
