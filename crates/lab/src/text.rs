//! Numbers for people: digits in groups, bytes in binary units, shares.

/// Digits in groups of three: `1,234,567`.
#[must_use]
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in the largest binary unit that leaves at least one: `12.0 KiB`, exact where it is whole.
#[must_use]
pub fn bytes(n: u64) -> String {
    scaled(n, 1024, &["B", "KiB", "MiB", "GiB", "TiB"])
}

/// A large number in short: `12.3 M`.
#[must_use]
pub fn short(n: u64) -> String {
    if n < 10_000 { count(n) } else { scaled(n, 1000, &["", "k", "M", "G", "T", "P"]) }
}

fn scaled(n: u64, base: u64, units: &[&str]) -> String {
    let (mut unit, mut divisor) = (0, 1u64);
    while n / divisor >= base && unit + 1 < units.len() {
        divisor *= base;
        unit += 1;
    }
    if n.is_multiple_of(divisor) {
        return format!("{} {}", n / divisor, units[unit]);
    }
    format!("{:.*} {}", if n / divisor >= 100 { 0 } else { 1 }, fraction(n, divisor), units[unit])
}

#[expect(clippy::cast_precision_loss, reason = "a number for people")]
pub(crate) fn fraction(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// A share in percent: `12.3 %`; `< 0.1 %` for what would read as nothing.
#[must_use]
pub fn share(part: u64, whole: u64) -> String {
    let percent = fraction(part, whole) * 100.0;
    if part > 0 && percent < 0.05 { "< 0.1 %".to_owned() } else { format!("{percent:.1} %") }
}

/// A fraction as a signed percentage: `+12.3 %`.
#[must_use]
pub fn signed_percent(fraction: f64) -> String {
    format!("{:+.1} %", fraction * 100.0)
}

/// Bytes from a number with a binary unit, as in `512MiB` or `8G`; `None` for anything else.
#[must_use]
pub fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => Some(1),
        "k" | "kib" => Some(1 << 10),
        "m" | "mib" => Some(1 << 20),
        "g" | "gib" => Some(1 << 30),
        "t" | "tib" => Some(1u64 << 40),
        _ => None,
    };
    unit.zip(digits.parse::<u64>().ok()).and_then(|(unit, n)| n.checked_mul(unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(4096), "4 KiB");
        assert_eq!(bytes(6 << 20), "6 MiB");
        assert_eq!(bytes((6 << 20) + 4096), "6.0 MiB");
        assert_eq!(short(9_999), "9,999");
        assert_eq!(short(12_345_678), "12.3 M");
        assert_eq!(short(123_456_789), "123 M");
        assert_eq!(share(1, 8), "12.5 %");
        assert_eq!(share(1, 100_000), "< 0.1 %");
        assert_eq!(share(0, 0), "0.0 %");
        assert_eq!(signed_percent(-0.25), "-25.0 %");
    }
}
