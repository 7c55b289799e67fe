#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod account;
pub mod cpu;
pub mod cx;
pub mod engine;
pub mod exit;
pub mod foresee;
pub mod host;
pub mod ledger;
pub mod mmu;
pub mod native;
mod notes;
pub mod probe;
pub mod seam;
pub mod timed;
mod uppers;

pub use account::{Account, Cells, ServedBy};
pub use cpu::{Cpu, Regs, Vcpu};
pub use cx::{Cx, Interrupts, Tags, Vendor, tlb_entry};
pub use engine::{Engine, Outcome, Regime, Request, VmSpec, store_element};
pub use exit::{Exit, ExitReason, LockMode, Work};
pub use foresee::{AHEAD, Foresight, PlainLeaf, SHOWN, Tables, plain_walks};
pub use host::{Backed, GuestMem, Host, HostFrames, MemoryMap, read_guest};
pub use ledger::{Counters, Ledger, WalkRefs};
pub use mmu::{Cached, Caches, Invalidation, Listener, Mmu, MmuCounts, MmuGeometry, Partial};
pub use native::Native;
pub use notes::{Notebook, Notes};
pub use probe::{CacheHit, Dimension, Probe, Reference, Update};
pub use seam::{Attribution, Horizon, Platform, Reached, Refusal, RootTables, Served, ShadowSum, Stop, TableBytes};
pub use timed::{TimingSpec, WINDOW};
