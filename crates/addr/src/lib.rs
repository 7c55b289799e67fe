#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

mod access;
mod address;
mod paging;

pub use access::{Acc, AccessKind, PfCode, Privilege};
pub use address::{
    Addr, AddrError, Frame, Gfn, Gpa, GuestPhys, GuestVirt, Gva, Hfn, HostPhys, Hpa, L1Phys, L1fn, L1pa, Space, Vpn,
};
pub use paging::{Level, PageSize};
