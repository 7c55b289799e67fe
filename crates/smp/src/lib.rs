#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod demand;
mod recorder;
mod result;
mod sim;
mod source;
mod steps;
mod times;

pub use demand::{Demand, Service};
pub use result::{Finished, Run};
pub use sim::{Load, Smp, Start, run};
pub use source::{Rotation, Tenant, Thread, ThreadError};
pub use times::{Part, Parts, Times};
