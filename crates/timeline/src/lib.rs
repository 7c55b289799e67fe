#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod account;
mod lock;
mod sim;
mod step;
mod vcpu;

pub use account::{Account, LockAccount, Timeline, VmAccount};
pub use sim::run;
pub use step::{Latencies, Lock, Program, Setup, Slice, Step, Work};
