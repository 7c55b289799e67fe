//! The checked quantities of a workload file: each field's type admits only values that make sense, and says in its error
//! what does. Sizes are strings with a unit (`"64MiB"`), counts and addresses TOML integers, shares numbers from 0 to 1.
//!
//! The generator parameters of [`spec`](crate::spec) are made of these types, so that a parameter set built in code obeys
//! the same bounds as one read from a file.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::field::{Field, deserialize_field};

/// A value outside the bounds of its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}")]
pub struct OutOfBounds {
    /// What the type admits, as it also stands in errors about workload files.
    pub expected: &'static str,
}

/// An integer type with inclusive bounds.
macro_rules! bounded_integer {
    ($(#[$doc:meta])* $name:ident, $raw:ty, $min:literal, $max:literal, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name($raw);

        impl $name {
            /// The smallest value.
            pub const MIN: Self = Self($min);
            /// The largest value.
            pub const MAX: Self = Self($max);

            /// The value as this type.
            ///
            /// # Errors
            ///
            /// [`OutOfBounds`] outside [`MIN`](Self::MIN) to [`MAX`](Self::MAX).
            pub const fn try_new(value: $raw) -> Result<Self, OutOfBounds> {
                if matches!(value, $min..=$max) { Ok(Self(value)) } else { Err(OutOfBounds { expected: $expected }) }
            }

            /// The number.
            #[must_use]
            pub const fn get(self) -> $raw {
                self.0
            }
        }

        impl Field for $name {
            const EXPECTED: &'static str = $expected;

            fn from_integer(value: i64) -> Option<Self> {
                <$raw>::try_from(value).ok().and_then(|value| Self::try_new(value).ok())
            }
        }

        deserialize_field!($name);
    };
}

bounded_integer!(
    /// How often something happens in a run: accesses, iterations, forks or operations.
    Count, u64, 1, 1_000_000_000_000, "an integer from 1 to 1_000_000_000_000");
bounded_integer!(
    /// Instructions that the process executes for each memory access, the accessing one included.
    InstructionsPerAccess, u32, 1, 1_000_000, "an integer from 1 to 1_000_000");
bounded_integer!(
    /// How many areas a process keeps.
    Areas, u32, 1, 1_048_576, "an integer from 1 to 1_048_576");
bounded_integer!(
    /// A weight in a mix: how often one thing happens in relation to the others.
    Weight, u32, 0, 1_000_000, "an integer from 0 to 1_000_000");

impl Count {
    /// This count times `factor`, rounded, at least 1.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the conversion saturates")]
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    pub(crate) fn scaled(self, factor: f64) -> Result<Self, String> {
        if !(factor > 0.0 && factor.is_finite()) {
            return Err("expected a factor above 0".into());
        }
        let scaled = (self.0 as f64 * factor).round() as u64;
        Self::try_new(scaled.max(1))
            .map_err(|_| format!("the run becomes too long; at most {}", Self::MAX.0 as f64 / self.0 as f64))
    }
}

impl Default for InstructionsPerAccess {
    /// 3: about a third of the instructions of integer programs load or store (Hennessy and Patterson, *Computer
    /// Architecture*, appendix A).
    fn default() -> Self {
        Self(3)
    }
}

/// A byte size that is a string with a unit in files.
macro_rules! byte_size {
    ($(#[$doc:meta])* $name:ident, multiple of $grain:literal up to $max:expr, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u64);

        impl $name {
            /// The largest value.
            pub const MAX: Self = Self($max);

            /// The size of so many bytes.
            ///
            /// # Errors
            ///
            /// [`OutOfBounds`] for zero, above [`MAX`](Self::MAX), and off the grain of the type.
            pub const fn try_new(bytes: u64) -> Result<Self, OutOfBounds> {
                if bytes == 0 || bytes > $max || !bytes.is_multiple_of($grain) {
                    Err(OutOfBounds { expected: $expected })
                } else {
                    Ok(Self(bytes))
                }
            }

            /// The size in bytes.
            #[must_use]
            pub const fn bytes(self) -> u64 {
                self.0
            }
        }

        impl Field for $name {
            const EXPECTED: &'static str = $expected;

            fn from_text(value: &str) -> Option<Self> {
                parse_bytes(value).and_then(|bytes| Self::try_new(bytes).ok())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_bytes(f, self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        deserialize_field!($name);
    };
}

byte_size!(
    /// The size of a memory area: whole 4 KiB pages, at most 64 TiB.
    Footprint, multiple of 4096 up to 1 << 46,
    "a size in whole 4 KiB pages, from \"4KiB\" to \"64TiB\", such as \"64MiB\"");
byte_size!(
    /// The distance between neighbouring elements: whole 8-byte words.
    Stride, multiple of 8 up to 1 << 46,
    "a size in whole 8-byte words, from \"8B\" to \"64TiB\", such as \"64B\"");

impl Footprint {
    /// The size in 4 KiB pages.
    #[must_use]
    pub const fn pages(self) -> u64 {
        self.0 >> 12
    }
}

const UNITS: [(&str, u32); 5] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

/// Reads `<digits>[ ]<unit>`, digits with `_` between them as in TOML.
fn parse_bytes(text: &str) -> Option<u64> {
    let (number, shift) =
        UNITS.iter().find_map(|&(unit, shift)| text.strip_suffix(unit).map(|number| (number.trim_end(), shift)))?;
    if !number.starts_with(|c: char| c.is_ascii_digit()) || number.ends_with('_') {
        return None;
    }
    let digits = number.replace('_', "");
    let value: u64 = if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok()? } else { return None };
    value.checked_mul(1 << shift)
}

/// Writes the size with the largest unit that divides it, so that [`parse_bytes`] reads the same number back.
pub(crate) fn write_bytes(f: &mut fmt::Formatter<'_>, bytes: u64) -> fmt::Result {
    let exact = UNITS.iter().find(|&&(_, shift)| bytes != 0 && bytes.trailing_zeros() >= shift);
    let &(unit, shift) = exact.unwrap_or(&UNITS[4]);
    write!(f, "{}{unit}", bytes >> shift)
}

/// The first address of a generator's areas: page-aligned, in the lower (user) half of 48-bit addresses and above the
/// lowest 64 KiB, which Linux keeps free (`vm.mmap_min_addr`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Base(u64);

impl Base {
    /// One past the last address of a user process: Linux ends it one page below 2^47.
    pub const USER_END: u64 = (1 << 47) - 4096;

    /// The address as a base.
    ///
    /// # Errors
    ///
    /// [`OutOfBounds`] for unaligned addresses and those outside 64 KiB to [`USER_END`](Self::USER_END).
    pub const fn try_new(address: u64) -> Result<Self, OutOfBounds> {
        if address.is_multiple_of(4096) && address >= 0x1_0000 && address < Self::USER_END {
            Ok(Self(address))
        } else {
            Err(OutOfBounds { expected: <Self as Field>::EXPECTED })
        }
    }

    /// The address.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl Default for Base {
    /// `0x10_0000_0000` (64 GiB): aligned to 1 GiB, so that every page size can map it.
    fn default() -> Self {
        Self(0x10_0000_0000)
    }
}

impl Field for Base {
    const EXPECTED: &'static str = "an integer address, a multiple of 4096 from 0x1_0000 to 0x7fff_ffff_e000";

    fn from_integer(value: i64) -> Option<Self> {
        u64::try_from(value).ok().and_then(|address| Self::try_new(address).ok())
    }
}

/// A share of a whole, 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct Share(f64);

impl Share {
    /// Nothing.
    pub const ZERO: Self = Self(0.0);
    /// Everything.
    pub const ONE: Self = Self(1.0);

    /// The share.
    ///
    /// # Errors
    ///
    /// [`OutOfBounds`] below 0, above 1 and for NaN.
    pub fn try_new(value: f64) -> Result<Self, OutOfBounds> {
        // `+ 0.0` turns a negative zero, which compares equal to zero but prints a sign, into the plain one.
        if (0.0..=1.0).contains(&value) { Ok(Self(value + 0.0)) } else { Err(OutOfBounds { expected: Self::EXPECTED }) }
    }

    /// The share as a number.
    #[must_use]
    pub const fn get(self) -> f64 {
        self.0
    }

    /// This share of `whole`, rounded to the nearest integer.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "a share of a whole is at most the whole")]
    #[expect(clippy::cast_sign_loss, reason = "shares are not negative")]
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    pub fn of(self, whole: u64) -> u64 {
        ((self.0 * whole as f64).round() as u64).min(whole)
    }
}

impl Field for Share {
    const EXPECTED: &'static str = "a share from 0.0 to 1.0";

    fn from_integer(value: i64) -> Option<Self> {
        match value {
            0 => Some(Self::ZERO),
            1 => Some(Self::ONE),
            _ => None,
        }
    }

    fn from_float(value: f64) -> Option<Self> {
        Self::try_new(value).ok()
    }
}

/// The exponent of a Zipf distribution: rank `k` has probability proportional to `k^-exponent`.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct Exponent(f64);

impl Exponent {
    /// The exponent.
    ///
    /// # Errors
    ///
    /// [`OutOfBounds`] for zero and less, above 10 and for NaN.
    pub fn try_new(value: f64) -> Result<Self, OutOfBounds> {
        if value > 0.0 && value <= 10.0 { Ok(Self(value)) } else { Err(OutOfBounds { expected: Self::EXPECTED }) }
    }

    /// The exponent as a number.
    #[must_use]
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl Field for Exponent {
    const EXPECTED: &'static str = "a number above 0.0 and up to 10.0";

    fn from_integer(value: i64) -> Option<Self> {
        u8::try_from(value).ok().and_then(|value| Self::try_new(f64::from(value)).ok())
    }

    fn from_float(value: f64) -> Option<Self> {
        Self::try_new(value).ok()
    }
}

deserialize_field!(Base, Share, Exponent);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_back_what_they_print() {
        for bytes in [4096, 8192, 65_536, 3 << 20, 1 << 30, 5 << 40, 1 << 46] {
            let size = Footprint::try_new(bytes).unwrap();
            assert_eq!(parse_bytes(&size.to_string()), Some(bytes));
        }
        assert_eq!(Footprint::try_new(64 << 20).unwrap().to_string(), "64MiB");
        assert_eq!(parse_bytes("1_024 KiB"), Some(1 << 20));
    }

    #[test]
    fn what_is_said_of_sizes_is_their_bound() {
        assert!(Footprint::EXPECTED.contains(&format!("to \"{}\"", Footprint::MAX)), "{}", Footprint::EXPECTED);
        assert!(Stride::EXPECTED.contains(&format!("to \"{}\"", Stride::MAX)), "{}", Stride::EXPECTED);
    }

    #[test]
    fn malformed_sizes_are_refused() {
        for text in
            ["", "MiB", "64", "64mib", "-1KiB", "+1KiB", "1.5MiB", "_1KiB", "1_KiB", "64 M", "99999999TiB", "٣KiB"]
        {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
    }

    #[test]
    fn bounds_are_inclusive() {
        assert!(Footprint::try_new(1 << 46).is_ok());
        assert!(Footprint::try_new((1 << 46) + 4096).is_err());
        assert!(Footprint::try_new(4095).is_err());
        assert!(Count::try_new(0).is_err());
        assert!(Count::try_new(Count::MAX.get()).is_ok());
        assert!(Base::try_new(Base::USER_END).is_err());
        assert!(Base::try_new(Base::USER_END - 4096).is_ok());
        assert!(Exponent::try_new(f64::NAN).is_err());
        assert!(Share::try_new(-0.0).unwrap().get().is_sign_positive());
        assert_eq!(Share::try_new(0.5).unwrap().of(5), 3);
    }
}
