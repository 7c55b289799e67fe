//! How the bytes arrive: in pieces, compressed, cut off.

use std::io::{self, Read, Write};

use crate::common::{LOGS, run, text};
use memvirt_trace::{Compression, LackeyReader, TraceError, TraceInfo};

/// A reader that gives 1, 2, .., `most` bytes and then 1 again.
struct Dribble<'a> {
    rest: &'a [u8],
    most: usize,
    next: usize,
}

impl Read for Dribble<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.next = self.next % self.most + 1;
        let count = self.next.min(buffer.len()).min(self.rest.len());
        buffer[..count].copy_from_slice(&self.rest[..count]);
        self.rest = &self.rest[count..];
        Ok(count)
    }
}

#[test]
fn pieces_of_any_size_give_the_same_batches() {
    for name in ["threads.lackey", "threads-server.lackey", "fork-child.lackey.zst"] {
        let text = text(name);
        let expected = run(&text[..]);
        for most in [1, 2, 3, 7, 23, 24, 25, 4096, 70_000] {
            let pieces = run(Dribble { rest: &text, most, next: 0 });
            assert!(pieces.batches == expected.batches, "{name}, up to {most} bytes");
            assert_eq!(pieces.tally, expected.tally);
        }
    }
}

#[test]
fn a_log_can_be_split_at_every_byte() {
    let text = text("threads.lackey");
    let expected = run(&text[..]);
    for at in 0..=text.len() {
        let (first, second) = text.split_at(at);
        let split = run(first.chain(second));
        assert!(split.batches == expected.batches, "split at byte {at}");
        assert_eq!(split.tally, expected.tally, "split at byte {at}");
    }
}

fn compress(text: &[u8], compression: Compression) -> Vec<u8> {
    match compression {
        Compression::Zstd => zstd::encode_all(text, 3).unwrap(),
        Compression::Xz => {
            let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
            encoder.write_all(text).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(text).unwrap();
            encoder.finish().unwrap()
        }
        _ => text.to_vec(),
    }
}

const COMPRESSED: [Compression; 3] = [Compression::Zstd, Compression::Xz, Compression::Gzip];

#[test]
fn compression_is_recognized_and_changes_nothing() {
    let text = text(LOGS[0]);
    let expected = run(&text[..]);
    for compression in COMPRESSED {
        let packed = compress(&text, compression);
        assert_eq!(Compression::of(&packed), compression);
        assert!(run(&packed[..]).batches == expected.batches, "{compression}");
        let mut reader = LackeyReader::new(&packed[..], "packed");
        let info = TraceInfo::read(&mut reader).unwrap();
        assert_eq!((info.compression, info.file_bytes), (compression, packed.len() as u64));
        // Two files one after the other are one stream, as `cat` and the tools have it.
        let (first, second) = text.split_at(text.len() / 3);
        let parts = [compress(first, compression), compress(second, compression)].concat();
        assert!(run(&parts[..]).batches == expected.batches, "{compression} in two parts");
    }
}

#[test]
fn a_cut_compressed_file_gives_what_comes_before_the_cut() {
    let text = text(LOGS[0]);
    let expected = run(&text[..]).accesses();
    for compression in COMPRESSED {
        let packed = compress(&text, compression);
        for kept in [packed.len() / 2, packed.len() * 9 / 10] {
            let cut = run(&packed[..kept]);
            let Some(TraceError::Truncated { name, compression: said, line }) = &cut.error else {
                panic!("{compression}: {:?}", cut.error)
            };
            assert_eq!((name.as_str(), *said, *line), ("test.lackey", compression, cut.tally.lines));
            assert!(cut.error.as_ref().unwrap().to_string().contains("test.lackey is cut off"));
            let accesses = cut.accesses();
            assert!(accesses.len() > expected.len() / 4, "{compression}: only {}", accesses.len());
            assert!(accesses == expected[..accesses.len()], "{compression}");
            assert_eq!(cut.tally.malformed, 0, "the line that is cut is not read as a line");
            let info = TraceInfo::read(&mut LackeyReader::new(&packed[..kept], "cut")).unwrap();
            assert_eq!(info.accesses, accesses.len() as u64);
            assert!(info.broken_off.unwrap().contains("cut is cut off"));
        }
    }
}

#[test]
fn a_file_cut_within_its_header_is_an_error() {
    let text = text("threads.lackey");
    for compression in COMPRESSED {
        let packed = compress(&text, compression);
        for kept in 6..12 {
            let cut = run(&packed[..kept]);
            assert!(cut.error.is_some() && cut.batches.is_empty(), "{compression}, {kept} bytes");
        }
    }
}

#[test]
fn damaged_compressed_data_is_an_error_and_no_panic() {
    let text = text("fork-child.lackey.zst");
    for compression in COMPRESSED {
        let packed = compress(&text, compression);
        for at in (12..packed.len()).step_by(97) {
            let mut damaged = packed.clone();
            damaged[at] ^= 0x55;
            // zstd written without a checksum can decode damaged literals; then lines are malformed, or addresses wrong.
            let run = run(&damaged[..]);
            if let Some(error) = &run.error {
                assert!(error.to_string().contains("test.lackey"));
            } else {
                assert_eq!(compression, Compression::Zstd, "xz and gzip have checksums");
            }
        }
    }
}

#[test]
fn a_device_that_fails_is_an_error_after_what_it_gave() {
    struct Failing<'a>(&'a [u8]);
    impl Read for Failing<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() { Err(io::Error::other("the disk is gone")) } else { self.0.read(buffer) }
        }
    }
    let run = run(Failing(b"I  04001090,3\nI  04001093,5\nI  040"));
    assert_eq!(run.accesses().len(), 2);
    assert_eq!(run.error.unwrap().to_string(), "cannot read trace test.lackey beyond line 2: the disk is gone");
}

#[test]
fn a_missing_file_and_a_directory_cannot_be_opened() {
    let directory = tempfile::tempdir().unwrap();
    for path in [directory.path().join("none.lackey"), directory.path().to_owned()] {
        let error = memvirt_trace::open(&path).err().unwrap();
        assert!(matches!(error, TraceError::Open { .. }));
        assert!(error.to_string().starts_with(&format!("cannot open trace {}: ", path.display())));
    }
}
