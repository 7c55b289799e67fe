#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

use std::fs::{self, File, FileType};
use std::io::{self, Read as _};
use std::path::Path;

/// Bytes of the largest file that is read.
pub const MAX_BYTES: u64 = 1 << 20;

/// Why there is no text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// The file cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// It is no small text file; what it is instead, and what helps.
    #[error("{0}")]
    Not(&'static str),
}

/// The text of a regular file of at most [`MAX_BYTES`], without a byte-order mark.
///
/// # Errors
///
/// [`TextError`] where the file cannot be read, is no regular file, is larger, or is no UTF-8.
pub fn read(path: &Path) -> Result<String, TextError> {
    let mut bytes = Vec::new();
    // One byte more than is allowed tells a file that is too large from the largest one, whatever its metadata say.
    open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(TextError::Not("it is larger than 1 MiB"));
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(TextError::Not("it is no UTF-8 text but UTF-16: save it as UTF-8"));
    }
    let text = String::from_utf8(bytes).map_err(|_| TextError::Not("it is no UTF-8 text"))?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// A regular file of any size, for those who read it piece by piece.
///
/// # Errors
///
/// [`TextError`] where the file cannot be opened, or is no regular file.
pub fn open(path: &Path) -> Result<File, TextError> {
    // Before it is opened: opening a named pipe waits for a writer.
    match other_kind(fs::metadata(path)?.file_type()) {
        Some(kind) => Err(TextError::Not(kind)),
        None => Ok(File::open(path)?),
    }
}

/// What something is that is no regular file.
fn other_kind(kind: FileType) -> Option<&'static str> {
    if kind.is_file() {
        return None;
    }
    if kind.is_dir() {
        return Some("it is a directory");
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt as _;
        if kind.is_fifo() {
            return Some("it is a pipe: copy what comes out of it into a file, and name that");
        }
        if kind.is_char_device() || kind.is_block_device() {
            return Some("it is a device: copy what is wanted of it into a file, and name that");
        }
    }
    Some("it is no regular file: copy it into one, and name that")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> Result<String, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, bytes).unwrap();
        read(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn a_byte_order_mark_is_left_out_at_the_beginning_alone() {
        assert_eq!(of(b"\xef\xbb\xbfa\xef\xbb\xbfb").unwrap(), "a\u{feff}b");
        assert_eq!(of(b"\xff\xfea\0").unwrap_err(), "it is no UTF-8 text but UTF-16: save it as UTF-8");
        assert_eq!(of(b"a\xff").unwrap_err(), "it is no UTF-8 text");
    }

    #[test]
    fn the_largest_file_is_read_and_one_byte_more_is_refused() {
        let mut bytes = vec![b' '; 1 << 20];
        assert_eq!(of(&bytes).unwrap().len(), 1 << 20);
        bytes.push(b' ');
        assert_eq!(of(&bytes).unwrap_err(), "it is larger than 1 MiB");
    }

    /// Were the pipe opened, the test would wait for ever.
    #[test]
    #[cfg(unix)]
    fn pipes_and_devices_are_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert!(read(&pipe).unwrap_err().to_string().starts_with("it is a pipe: copy"));
        assert!(read(Path::new("/dev/zero")).unwrap_err().to_string().starts_with("it is a device: copy"));
        assert_eq!(read(folder.path()).unwrap_err().to_string(), "it is a directory");
        assert!(matches!(read(&folder.path().join("none")), Err(TextError::Read(_))));
    }
}
