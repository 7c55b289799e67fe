//! Pages that the host has given back to its kernel: what the first touch finds there.
//!
//! After `madvise(MADV_DONTNEED)` nothing lies behind a guest frame. A read brings in the kernel's shared page of zeros, which
//! may not be written, so the leaf is read-only whatever the slot permits; a later store makes the kernel exchange it, and its
//! notifier tells the hypervisor to try again. A store that comes first gets a page of its own at once. Source: Linux
//! `mm/memory.c` (`do_anonymous_page`, `wp_page_copy`); KVM's `mmu_invalidate_retry_hva`, measured.

use std::collections::BTreeMap;

use memvirt_addr::Gfn;
use memvirt_ops::arch::GfnRange;

/// What the host has behind a frame that was discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Discarded {
    /// Nothing.
    Gone,
    /// The shared page of zeros.
    Zero,
}

/// The discarded frames.
#[derive(Debug, Default)]
pub(super) struct ZeroPages(BTreeMap<u64, Discarded>);

impl ZeroPages {
    pub(super) fn discard(&mut self, range: GfnRange, limit: u64) {
        let end = range.start.number().saturating_add(range.frames).min(limit);
        self.0.extend((range.start.number()..end).map(|gfn| (gfn, Discarded::Gone)));
    }

    #[inline]
    pub(super) fn get(&self, gfn: Gfn) -> Option<Discarded> {
        if self.0.is_empty() { None } else { self.0.get(&gfn.number()).copied() }
    }

    /// A read brought in the page of zeros.
    pub(super) fn read(&mut self, gfn: Gfn) {
        self.0.insert(gfn.number(), Discarded::Zero);
    }

    /// The frame has a page of its own again.
    pub(super) fn written(&mut self, gfn: Gfn) {
        self.0.remove(&gfn.number());
    }
}
