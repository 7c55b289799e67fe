//! Nested paging against what real KVM did (`kvm_amd npt=1`, Linux 6.1): the named scenarios of the recording, line by line,
//! every counter of each.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod guest;
mod host;
mod leaf;
mod patterns;
mod upper;
