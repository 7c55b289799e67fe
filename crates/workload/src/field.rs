//! How the fields of workload files are read: one visitor for all, so that every error says in the same form what was found
//! and what the field's type accepts. [`units`](crate::units), `text` and `guest` hold the types.

use std::fmt;

use serde::de::{self, Unexpected, Visitor};

/// How one field type reads the TOML scalars. `None` refuses.
pub(crate) trait Field: Sized {
    const EXPECTED: &'static str;

    fn from_integer(_value: i64) -> Option<Self> {
        None
    }

    fn from_float(_value: f64) -> Option<Self> {
        None
    }

    fn from_text(_value: &str) -> Option<Self> {
        None
    }
}

pub(crate) struct FieldVisitor<T>(std::marker::PhantomData<T>);

impl<T> FieldVisitor<T> {
    pub(crate) const fn new() -> Self {
        Self(std::marker::PhantomData)
    }
}

impl<'de, T: Field> Visitor<'de> for FieldVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<T, E> {
        T::from_integer(value).ok_or_else(|| E::invalid_value(Unexpected::Signed(value), &self))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<T, E> {
        let field = i64::try_from(value).ok().and_then(T::from_integer);
        field.ok_or_else(|| E::invalid_value(Unexpected::Unsigned(value), &self))
    }

    fn visit_i128<E: de::Error>(self, value: i128) -> Result<T, E> {
        Err(E::invalid_value(Unexpected::Other(&format!("integer `{value}`")), &self))
    }

    fn visit_u128<E: de::Error>(self, value: u128) -> Result<T, E> {
        Err(E::invalid_value(Unexpected::Other(&format!("integer `{value}`")), &self))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<T, E> {
        T::from_float(value).ok_or_else(|| E::invalid_value(Unexpected::Float(value), &self))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<T, E> {
        T::from_text(value).ok_or_else(|| E::invalid_value(Unexpected::Str(value), &self))
    }

    /// TOML's dates arrive as maps too.
    fn visit_map<A: de::MapAccess<'de>>(self, _map: A) -> Result<T, A::Error> {
        Err(de::Error::invalid_type(Unexpected::Other("table or date"), &self))
    }
}

/// Gives a [`Field`] type its `Deserialize`.
macro_rules! deserialize_field {
    ($($name:ident),+ $(,)?) => {$(
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any($crate::field::FieldVisitor::<Self>::new())
            }
        }
    )+};
}
pub(crate) use deserialize_field;
