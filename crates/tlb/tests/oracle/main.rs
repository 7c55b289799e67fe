//! Each cache equals a naive one, written apart and obvious, on random shapes and random operations.

#![expect(clippy::cast_possible_truncation, reason = "small test numbers")]

mod naive;
mod nested;
mod tlb;
mod walk;
