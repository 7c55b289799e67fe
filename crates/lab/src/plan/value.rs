//! Values of axes as they stand in a file.

use std::fmt;

use toml::de::DeValue;

/// A scalar.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Text(String),
    Whole(i64),
    Fraction(f64),
    Switch(bool),
}

impl Value {
    /// `None` for lists, tables and dates.
    pub(super) fn of(value: &DeValue<'_>) -> Option<Self> {
        match value {
            DeValue::String(text) => Some(Self::Text(text.to_string())),
            DeValue::Boolean(on) => Some(Self::Switch(*on)),
            DeValue::Integer(n) => i64::from_str_radix(&n.as_str().replace('_', ""), n.radix()).ok().map(Self::Whole),
            // Whether `inf` and `nan` make sense is for the axis to say: for none they do.
            DeValue::Float(x) => x.as_str().replace('_', "").parse().ok().map(Self::Fraction),
            _ => None,
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// A count.
    pub(super) fn count(&self) -> Option<u64> {
        match self {
            Self::Whole(n) => u64::try_from(*n).ok(),
            Self::Text(text) => text.parse().ok(),
            _ => None,
        }
    }

    pub(super) fn fraction(&self) -> Option<f64> {
        match self {
            #[expect(clippy::cast_precision_loss, reason = "factors are small")]
            Self::Whole(n) => Some(*n as f64),
            Self::Fraction(x) => Some(*x),
            Self::Text(text) => text.parse().ok(),
            Self::Switch(_) => None,
        }
    }

    pub(super) fn switch(&self) -> Option<bool> {
        match self {
            Self::Switch(on) => Some(*on),
            Self::Text(text) => match text.as_str() {
                "on" | "true" => Some(true),
                "off" | "false" => Some(false),
                _ => None,
            },
            _ => None,
        }
    }

    /// Bytes: a number, or one with a binary unit.
    pub(super) fn bytes(&self) -> Option<u64> {
        match self {
            Self::Whole(n) => u64::try_from(*n).ok(),
            Self::Text(text) => crate::text::parse_bytes(text),
            _ => None,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Whole(n) => write!(f, "{n}"),
            Self::Fraction(x) => write!(f, "{x}"),
            Self::Switch(on) => write!(f, "{on}"),
        }
    }
}
