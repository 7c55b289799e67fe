//! The reader of lackey logs from outside: real logs, damaged ones, generated ones.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod bad_input;
mod common;
mod input;
mod properties;
mod real_logs;
