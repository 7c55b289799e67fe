//! Sizes, ways and lines: what a cache can look like.

use core::fmt;

/// Bytes, ways and line size of one cache, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    sets: u32,
    ways: u32,
    line_shift: u32,
}

/// A cache cannot have this shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShapeError {
    /// The size asked for, in bytes.
    pub size_bytes: u64,
    /// The ways asked for.
    pub ways: u32,
    /// The line asked for, in bytes.
    pub line_bytes: u32,
}

impl fmt::Display for ShapeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size_bytes, ways, line_bytes } = self;
        write!(
            f,
            "{size_bytes} bytes in {ways} ways of {line_bytes}-byte lines; a line is a power of two from 8 to 4096 bytes, and \
             ways times lines must divide the size, which is at most {} bytes",
            Shape::MAX_BYTES
        )
    }
}

impl core::error::Error for ShapeError {}

impl Shape {
    /// The largest cache, 4 GiB.
    pub const MAX_BYTES: u64 = 1 << 32;

    /// A cache of `size_bytes` in `ways` ways of `line_bytes`-byte lines. As many ways as lines: fully associative.
    ///
    /// # Errors
    ///
    /// [`ShapeError`] where these do not fit together.
    pub const fn new(size_bytes: u64, ways: u32, line_bytes: u32) -> Result<Self, ShapeError> {
        let error = ShapeError { size_bytes, ways, line_bytes };
        if !line_bytes.is_power_of_two() || line_bytes < 8 || line_bytes > 4096 || ways == 0 {
            return Err(error);
        }
        let set_bytes = ways as u64 * line_bytes as u64;
        if size_bytes == 0 || size_bytes > Self::MAX_BYTES || !size_bytes.is_multiple_of(set_bytes) {
            return Err(error);
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most 2^29 lines")]
        let sets = (size_bytes / set_bytes) as u32;
        Ok(Self { sets, ways, line_shift: line_bytes.trailing_zeros() })
    }

    /// How many sets.
    #[must_use]
    pub const fn sets(&self) -> u32 {
        self.sets
    }

    /// Lines in a set.
    #[must_use]
    pub const fn ways(&self) -> u32 {
        self.ways
    }

    /// Bytes of a line.
    #[must_use]
    pub const fn line_bytes(&self) -> u32 {
        1 << self.line_shift
    }

    /// log2 of [`Shape::line_bytes`].
    #[must_use]
    pub const fn line_shift(&self) -> u32 {
        self.line_shift
    }

    /// The size in bytes.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        (self.sets as u64 * self.ways as u64) << self.line_shift
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_refused_at_their_bounds() {
        let llc = Shape::new(22 << 20, 11, 64).expect("the last level of a published model");
        assert_eq!((llc.sets(), llc.ways(), llc.line_bytes(), llc.size_bytes()), (32_768, 11, 64, 22 << 20));
        assert_eq!(Shape::new(30 << 20, 12, 64).map(|shape| shape.sets()), Ok(40_960), "any number of sets");
        for (size, ways, line) in
            [(0, 1, 64), (64, 0, 64), (100, 1, 64), (64, 2, 64), (48, 1, 48), (8192, 1, 8192), ((1 << 32) + 64, 1, 64)]
        {
            let error = Shape::new(size, ways, line).unwrap_err();
            assert_eq!((error.size_bytes, error.ways, error.line_bytes), (size, ways, line));
        }
    }
}
