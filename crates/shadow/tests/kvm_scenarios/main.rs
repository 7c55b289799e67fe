//! KVM's shadow MMU against what real KVM did: the named scenarios of the recordings, the rules that the random recordings
//! cannot tell, and the invariants of the structure.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod guest;
mod host;
mod leaf;
mod patterns;
mod rules;
mod structure;
mod upper;
mod vcpus;
