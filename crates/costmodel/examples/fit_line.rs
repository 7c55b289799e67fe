//! A place for the crate's example.
fn main() {}
