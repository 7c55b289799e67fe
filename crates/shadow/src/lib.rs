#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod kvm;
pub mod store;
pub mod write_protect;
