//! Numbers of varying length: seven bits a byte, the lowest first, the top bit set on all but the last (LEB128).

/// Appends `value`.
pub(crate) fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// Takes one number from the front; `None` where there is none, or one over 64 bits.
#[inline]
pub(crate) fn take(input: &mut &[u8]) -> Option<u64> {
    let (first, rest) = input.split_first()?;
    if *first < 0x80 {
        *input = rest;
        return Some(u64::from(*first));
    }
    take_long(input)
}

fn take_long(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = input.split_first()?;
        *input = rest;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// A number of at most 32 bits.
pub(crate) fn take32(input: &mut &[u8]) -> Option<u32> {
    take(input)?.try_into().ok()
}

/// A signed difference as a number whose small values are small differences either way.
#[inline]
pub(crate) const fn zigzag(value: u64) -> u64 {
    (value << 1) ^ (value.cast_signed() >> 63).cast_unsigned()
}

/// The inverse of [`zigzag`].
#[inline]
pub(crate) const fn unzigzag(value: u64) -> u64 {
    (value >> 1) ^ (value & 1).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(memvirt_properties::cases(256))]

        #[test]
        fn numbers_survive(value: u64, small in 0u64..300) {
            for value in [value, small, small.wrapping_neg(), value >> 40] {
                let mut bytes = Vec::new();
                put(&mut bytes, value);
                let mut input = &bytes[..];
                prop_assert_eq!(take(&mut input), Some(value));
                prop_assert!(input.is_empty());
                prop_assert_eq!(unzigzag(zigzag(value)), value);
                for cut in 0..bytes.len() {
                    prop_assert_eq!(take(&mut &bytes[..cut]), None);
                }
            }
        }
    }

    #[test]
    fn more_than_64_bits_are_refused() {
        assert_eq!(take(&mut &[0xff; 11][..]), None);
        assert_eq!(take(&mut &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02][..]), None);
        assert_eq!((zigzag(0), zigzag(u64::MAX), zigzag(1)), (0, 1, 2));
    }
}
