#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod exits;
mod fault;
mod graph;
mod guest;
mod hardware;
pub mod invlpg_only;
pub mod kvm;
pub mod lazy_fill;
mod rooted;
pub mod store;
mod tree;
pub mod vbox;
pub mod vtlb;
pub mod write_protect;
pub mod xen;

pub use invlpg_only::InvlpgOnly;
pub use lazy_fill::LazyFill;
pub use store::{Footprint, ShadowStore};
pub use vbox::Vbox;
pub use vtlb::Vtlb;
pub use write_protect::{OnStore, WriteProtect};
pub use xen::Xen;
