//! The line of a memory access, which makes up nearly all of a log, and its fast parser.
//!
//! Valgrind's lackey prints `I  %08lx,%lu` for an instruction fetch and ` L %08lx,%lu`, ` S ...`, ` M ...` for a load, a
//! store and a modify (`lackey/lk_main.c`, `trace_instr` and its neighbours; user manual, chapter 13). [`fast`] is a nom
//! parser of one such line as lackey writes it: 8 to 15 lower-case hexadecimal digits, a size of one or two digits, a
//! newline, and at least [`WINDOW`] bytes of input to look at. It decodes eight digits at a time in a 64-bit word and has no
//! loops. Everything else it leaves to the general grammar (`line`), which says what is wrong where something is.

use nom::IResult;

use super::line::Mismatch;

/// The four kinds of access line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Fetch,
    Load,
    Store,
    Modify,
}

/// One access line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) kind: Kind,
    pub(crate) address: u64,
    /// 1 to [`MAX_ACCESS_BYTES`].
    pub(crate) bytes: u32,
}

/// The largest access that is believed. The largest real ones are those of XSAVE and of system calls, some kilobytes.
pub(crate) const MAX_ACCESS_BYTES: u32 = 1 << 20;

/// What [`fast`] needs to see: a kind (3 bytes), 15 digits, comma, 2 digits, newline, and room to load whole words.
const WINDOW: usize = 24;

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x80 * ONES;

/// The value of eight lower-case hexadecimal digits, the first in the lowest byte; `None` where one is no digit.
#[inline]
fn hex8(digits: u64) -> Option<u64> {
    if digits & HIGH != 0 {
        return None;
    }
    // With every byte below 0x80 no sum leaves its byte: adding 0x7f - n sets the top bit exactly where a byte exceeds n.
    let from_0 = digits ^ (u64::from(b'0') * ONES);
    let from_a = digits ^ (0x60 * ONES);
    let decimal = !(from_0 + 0x76 * ONES);
    let letter = (from_a + 0x7f * ONES) & !(from_a + 0x79 * ONES);
    if (decimal | letter) & HIGH != HIGH {
        return None;
    }
    let nibbles = (digits & (0x0f * ONES)) + 9 * ((digits >> 6) & ONES);
    let bytes = ((nibbles << 4) | (nibbles >> 8)) & 0x00ff_00ff_00ff_00ff;
    let halves = ((bytes << 8) | (bytes >> 16)) & 0x0000_ffff_0000_ffff;
    Some(((halves << 16) | (halves >> 32)) & 0xffff_ffff)
}

/// The index of the first comma among eight characters, the first in the lowest byte.
#[inline]
fn first_comma(characters: u64) -> Option<u32> {
    let difference = characters ^ (u64::from(b',') * ONES);
    let zero = difference.wrapping_sub(ONES) & !difference & HIGH;
    if zero == 0 { None } else { Some(zero.trailing_zeros() / 8) }
}

/// One or two decimal digits and a newline at the front: the number and how many bytes these are.
#[inline]
fn short_size(input: &[u8; 4]) -> Option<(u32, usize)> {
    let [first, second, third, _] = *input;
    let tens = u32::from(first.wrapping_sub(b'0'));
    let units = u32::from(second.wrapping_sub(b'0'));
    match (second, third) {
        (b'\n', _) if (1..10).contains(&tens) => Some((tens, 2)),
        (_, b'\n') if (1..10).contains(&tens) && units < 10 => Some((10 * tens + units, 3)),
        _ => None,
    }
}

fn decode(input: &[u8]) -> Option<(usize, Access)> {
    let window: &[u8; WINDOW] = input.first_chunk()?;
    let kind = match (window[0], window[1], window[2]) {
        (b'I', b' ', b' ') => Kind::Fetch,
        (b' ', b'L', b' ') => Kind::Load,
        (b' ', b'S', b' ') => Kind::Store,
        (b' ', b'M', b' ') => Kind::Modify,
        _ => return None,
    };
    let word = |at: usize| Some(u64::from_le_bytes(*window.get(at..)?.first_chunk()?));
    let high = hex8(word(3)?)?;
    let tail = word(11)?;
    let extra = first_comma(tail)?;
    // The digits before the comma, moved to the end of a word of zeros.
    let low = ((tail << (56 - 8 * extra)) << 8) | ((u64::from(b'0') * ONES) >> (8 * extra));
    let address = (high << (4 * extra)) | hex8(low)?;
    let comma = 11 + extra as usize;
    let (bytes, length) = short_size(window.get(comma + 1..)?.first_chunk()?)?;
    Some((comma + 1 + length, Access { kind, address, bytes }))
}

/// A nom parser of one access line and its newline, in the shape lackey gives it.
///
/// # Errors
///
/// For every other line, well-formed or not, and within the last [`WINDOW`] bytes of the input.
#[inline]
pub(crate) fn fast(input: &[u8]) -> IResult<&[u8], Access, Mismatch<'_>> {
    match decode(input) {
        Some((length, access)) => Ok((&input[length..], access)),
        None => Err(nom::Err::Error(Mismatch { at: input, expected: "an access line" })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(memvirt_properties::cases(256))]

        #[test]
        fn eight_digits_are_decoded_as_the_standard_library_does(bytes: [u8; 8]) {
            let lower = bytes.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            let expected = if lower { std::str::from_utf8(&bytes).ok().and_then(|s| u64::from_str_radix(s, 16).ok()) } else { None };
            prop_assert_eq!(hex8(u64::from_le_bytes(bytes)), expected);
        }

        #[test]
        fn every_value_survives(value: u32) {
            let text: [u8; 8] = format!("{value:08x}").into_bytes().try_into().unwrap();
            prop_assert_eq!(hex8(u64::from_le_bytes(text)), Some(u64::from(value)));
        }

        #[test]
        fn the_first_comma_is_found(bytes in prop::array::uniform8(0x2bu8..0x2e)) {
            let expected = bytes.iter().position(|&b| b == b',').map(|at| u32::try_from(at).unwrap());
            prop_assert_eq!(first_comma(u64::from_le_bytes(bytes)), expected);
        }
    }

    #[test]
    fn each_byte_in_each_place_is_judged_alone() {
        for place in 0..8 {
            for byte in 0..=255u8 {
                let mut text = *b"00000000";
                text[place] = byte;
                let expected = char::from(byte).to_digit(16).filter(|_| !byte.is_ascii_uppercase());
                let value = expected.map(|digit| u64::from(digit) << (4 * (7 - place)));
                assert_eq!(hex8(u64::from_le_bytes(text)), value, "byte {byte:#x} in place {place}");
            }
        }
    }

    #[test]
    fn lines_as_lackey_writes_them() {
        let rest = b"I  04001090,3\nI  04001090,3\n";
        for (line, kind, address, bytes) in [
            ("I  04001090,3\n", Kind::Fetch, 0x0400_1090, 3),
            (" L 1ffefff888,8\n", Kind::Load, 0x1f_feff_f888, 8),
            (" S 7ffffffffffffff,32\n", Kind::Store, 0x07ff_ffff_ffff_ffff, 32),
            (" M 00000000,1\n", Kind::Modify, 0, 1),
        ] {
            let text = [line.as_bytes(), rest].concat();
            assert_eq!(fast(&text).unwrap(), (&rest[..], Access { kind, address, bytes }), "{line}");
        }
        for line in ["I  0400109,3\n", "I  04001090,0\n", "I  04001090,100\n", "I 04001090,3\n", "I  0400109G,3\n"] {
            assert!(fast(&[line.as_bytes(), rest].concat()).is_err(), "{line}");
        }
    }
}
