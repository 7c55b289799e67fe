//! The log of dirtied guest pages: one bit for each frame, kept by write protection.

use memvirt_addr::Gfn;

/// Which frames were stored to since the host last asked.
#[derive(Debug, Default)]
pub struct DirtyLog {
    bits: Option<Vec<u64>>,
    fetched: Vec<Gfn>,
}

impl DirtyLog {
    /// Whether logging is on.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.bits.is_some()
    }

    /// What the host was given last.
    #[must_use]
    pub fn fetched(&self) -> &[Gfn] {
        &self.fetched
    }

    pub(crate) fn set(&mut self, on: bool, frames: u64) {
        self.bits = on.then(|| vec![0; Gfn::new(frames.div_ceil(64)).as_index()]);
        self.fetched.clear();
    }

    /// `gfn` may have been stored to.
    #[inline]
    pub(crate) fn mark(&mut self, gfn: Gfn) {
        if let Some(word) = self.bits.as_mut().and_then(|bits| bits.get_mut(gfn.as_index() / 64)) {
            *word |= 1 << (gfn.as_index() % 64);
        }
    }

    /// The host fetches the log and clears it.
    pub(crate) fn fetch(&mut self) {
        self.fetched.clear();
        for (i, word) in (0u64..).zip(self.bits.iter_mut().flatten()) {
            let bits = core::mem::take(word);
            let set = (0..64).filter(|bit| bits >> bit & 1 == 1);
            self.fetched.extend(set.map(|bit| Gfn::new(64 * i + bit)));
        }
    }
}
