//! [`Pieces`]: a filter that tells INVLPG whether pieces of the guest's page may be cached.
//!
//! A page of the guest that is larger than the host's is cached in pieces (a *fractured* entry each), all of which an INVLPG of
//! any address in it drops. A kernel's direct map makes such pieces in every guest, mostly far from where pages are flushed:
//! without the filter each flush would search all arrays for them. A clear bit is certain; a set one costs a search.

use memvirt_addr::PageSize;

use crate::entry::{Key, Packed};

/// Which pages of the guest, of 2 MiB and of 1 GiB, may have pieces.
pub(crate) struct Pieces([u64; Self::WORDS]);

impl Default for Pieces {
    fn default() -> Self {
        Self([0; Self::WORDS])
    }
}

impl Pieces {
    const WORDS: usize = 64;

    /// An entry was filled.
    #[inline]
    pub(crate) fn note(&mut self, new: &Packed) {
        if new.fractured() {
            core::hint::cold_path();
            let (word, bit) = place(new.data.guest_size(), new.key.page());
            self.0[word] |= bit;
        }
    }

    /// Whether the 4 KiB page may lie in a page of the guest that has pieces.
    pub(crate) fn maybe_around(&self, page: u64) -> bool {
        [PageSize::Size2M, PageSize::Size1G].into_iter().any(|size| {
            let (word, bit) = place(size, page);
            self.0[word] & bit != 0
        })
    }

    /// There are none.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// The bit of the page of `size` that holds a 4 KiB page.
fn place(size: PageSize, page: u64) -> (usize, u64) {
    let number = Key::new(0, size, page).0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52;
    ((number / 64) as usize % Pieces::WORDS, 1 << (number % 64))
}
