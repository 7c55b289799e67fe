//! Values that flags take, and what is accepted.

use clap::ValueEnum;
use memvirt_addr::PageSize;
use memvirt_lab::MEMORY_BYTES;
use memvirt_lab::text::parse_bytes;

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// The contract of docs/results.md
    Json,
    /// A row per regime
    Csv,
}

/// How everything else is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TreeFormat {
    /// For people
    Table,
    /// For programs
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnOff {
    /// On
    On,
    /// Off
    Off,
}

impl OnOff {
    pub(crate) fn is_on(self) -> bool {
        self == Self::On
    }
}

pub(crate) fn page(text: &str) -> Result<PageSize, &'static str> {
    text.parse()
}

pub(crate) fn guest_page(text: &str) -> Result<PageSize, &'static str> {
    let processes = "expected 4K or 2M: processes get no larger pages";
    text.parse().ok().filter(|size| *size != PageSize::Size1G).ok_or(processes)
}

pub(super) fn tick(text: &str) -> Result<u64, &'static str> {
    let accepted = "expected 0 (no ticks) or a number of instructions from 1000";
    text.parse().ok().filter(|n| *n == 0 || *n >= 1000).ok_or(accepted)
}

/// A size in bytes with a binary unit.
pub(crate) fn size(text: &str) -> Result<u64, &'static str> {
    parse_bytes(text).ok_or("expected a size in KiB, MiB, GiB or TiB, as in 512MiB or 128GiB")
}

/// A field and its value.
pub(crate) fn assignment(text: &str) -> Result<(String, String), &'static str> {
    let parts = text.split_once('=').map(|(field, value)| (field.trim(), value.trim()));
    let (field, value) = parts
        .filter(|(field, value)| !field.is_empty() && !value.is_empty())
        .ok_or("expected FIELD=VALUE, as in exponent=0.5")?;
    Ok((field.to_owned(), value.to_owned()))
}

/// The guest's memory.
pub(crate) fn memory(text: &str) -> Result<u64, String> {
    parse_bytes(text)
        .filter(|bytes| MEMORY_BYTES.contains(bytes) && bytes.is_multiple_of(2 << 20))
        .ok_or_else(|| "expected 64MiB to 2TiB in whole 2 MiB, as in 512MiB or 8GiB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_and_bounds() {
        assert_eq!(memory("8G"), Ok(8 << 30));
        assert_eq!(memory("512MiB"), Ok(512 << 20));
        assert_eq!(memory("67108864"), Ok(64 << 20));
        for bad in ["", "8", "8X", "1K", "999999999999T", "-1G", "64MiB1", "3T", "67108865"] {
            assert!(memory(bad).is_err(), "{bad}");
        }
    }
}
