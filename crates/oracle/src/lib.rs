#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

#[cfg(feature = "platform")]
mod checked;
mod flushes;
mod history;
mod oracle;
mod search;
mod state;
mod verdict;

#[cfg(feature = "platform")]
pub use checked::Checked;
pub use oracle::{Oracle, View};
pub use search::Translation;
pub use state::State;
pub use verdict::{BitsVerdict, FaultRule, FaultVerdict, Seen, Tally, Verdict, Violation, Wrong};
