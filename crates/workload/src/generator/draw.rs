//! Draws from the random stream that hot loops make, written out so that their cost and their bytes are fixed here.

use memvirt_addr::{Acc, AccessKind, Gva};
use memvirt_ops::process::{Backing, Op, Prot, Range};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::units::Share;

/// Bytes of the words that accesses are aligned to. An aligned word crosses no page.
pub(super) const WORD: u64 = 8;

/// Decides between load and store.
#[derive(Clone, Copy, Debug)]
pub(super) struct WriteShare {
    /// Of 2^32 equally likely values, those below are stores.
    threshold: u64,
}

impl WriteShare {
    pub(super) fn new(share: Share) -> Self {
        Self { threshold: share.of(1 << 32) }
    }

    /// The one kind that ever comes, if there is only one: then nothing need be drawn.
    pub(super) const fn constant(self) -> Option<AccessKind> {
        match self.threshold {
            0 => Some(AccessKind::Read),
            0x1_0000_0000 => Some(AccessKind::Write),
            _ => None,
        }
    }

    /// The kind that 32 random bits select.
    #[inline]
    pub(super) const fn kind(self, bits: u32) -> AccessKind {
        if (bits as u64) < self.threshold { AccessKind::Write } else { AccessKind::Read }
    }

    /// Draws a kind.
    #[inline]
    pub(super) fn draw(self, rng: &mut ChaCha8Rng) -> AccessKind {
        match self.constant() {
            Some(kind) => kind,
            None => self.kind(rng.next_u32()),
        }
    }
}

/// Splits 64 random bits into an index below `bound` and 32 further bits. The index is the integer part of
/// `bits / 2^64 * bound`, the rest its fraction: independent of it up to `bound / 2^64` (Lemire, *Fast Random Integer
/// Generation in an Interval*, 2019, without the rejection, whose bias is of the same size).
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "takes the integer part and the top of the fraction")]
pub(super) const fn split(bits: u64, bound: u64) -> (u64, u32) {
    let product = bits as u128 * bound as u128;
    ((product >> 64) as u64, (product >> 32) as u32)
}

/// A user access.
#[inline]
pub(super) const fn user(address: u64, kind: AccessKind) -> Acc {
    Acc::user(Gva::new_truncate(address), kind)
}

/// A new private anonymous area that can be read and written.
pub(super) const fn mmap(start: u64, bytes: u64) -> Op {
    Op::Mmap { range: range(start, bytes), prot: Prot::RW, backing: Backing::AnonymousPrivate }
}

pub(super) const fn range(start: u64, bytes: u64) -> Range {
    Range { start: Gva::new_truncate(start), bytes }
}

/// How many of `left` accesses go into one batch.
pub(super) fn chunk(left: u64) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(memvirt_ops::process::Batch::CAPACITY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_covers_its_bounds() {
        assert_eq!(split(0, 10), (0, 0));
        assert_eq!(split(u64::MAX, 10), (9, u32::MAX));
        assert_eq!(split(1 << 63, 10), (5, 0));
        assert_eq!(split(1 << 63, 5), (2, 1 << 31));
    }

    #[test]
    fn extreme_shares_draw_nothing() {
        assert_eq!(WriteShare::new(Share::ZERO).constant(), Some(AccessKind::Read));
        assert_eq!(WriteShare::new(Share::ONE).constant(), Some(AccessKind::Write));
        let half = WriteShare::new(Share::try_new(0.5).unwrap());
        assert_eq!(half.kind((1 << 31) - 1), AccessKind::Write);
        assert_eq!(half.kind(1 << 31), AccessKind::Read);
    }
}
