//! KVM
