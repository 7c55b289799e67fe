//! [`Notebook`]: what is noted of tables while walks are made ahead of their time.
//!
//! A last table covers 2 MiB. Of the walks that a stream needs, most begin as an earlier one did and differ in the last entry
//! alone. So what the entries above say is noted for each region of 2 MiB, and holds until a table may have changed. This is no
//! part of the simulated machine (its paging-structure caches are [`crate::mmu`]): the references that a walk stands for are
//! counted as ever; the simulator alone spares itself reading entries that it has just read.

/// Regions noted; a power of two. As many as 4 GiB has.
const LINES: usize = 2048;

#[derive(Clone, Copy, Debug)]
struct Line<const W: usize> {
    /// The region, and when it was noted.
    key: u64,
    words: [u64; W],
}

/// `W` words for each region, of which the last ones noted are kept.
#[derive(Debug, Default)]
pub struct Notebook<const W: usize> {
    /// None until it is first opened.
    lines: Option<Box<[Line<W>; LINES]>>,
    /// Notes of another epoch say nothing.
    epoch: u64,
}

impl<const W: usize> Notebook<W> {
    const BITS: u32 = 28;

    /// A table may have changed: nothing that was noted holds.
    pub fn forget(&mut self) {
        self.epoch += 1;
        if self.epoch >> Self::BITS != 0 {
            *self = Self { lines: None, epoch: 0 };
        }
    }

    /// Opens the book.
    #[inline]
    pub fn open(&mut self) -> Notes<'_, W> {
        // Epoch 0 would take lines that were never filled for those of region 0.
        self.epoch = self.epoch.max(1);
        let lines = self.lines.get_or_insert_with(|| Box::new([Line { key: 0, words: [0; W] }; LINES]));
        Notes { lines, epoch: self.epoch }
    }
}

/// An open [`Notebook`]. Regions are numbers of at most 36 bits.
#[derive(Debug)]
pub struct Notes<'a, const W: usize> {
    lines: &'a mut [Line<W>; LINES],
    epoch: u64,
}

impl<const W: usize> Notes<'_, W> {
    #[inline(always)]
    const fn key(&self, region: u64) -> u64 {
        region << Notebook::<W>::BITS | self.epoch
    }

    /// What is noted of a region.
    #[must_use]
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "taken modulo the number of lines")]
    pub fn get(&self, region: u64) -> Option<[u64; W]> {
        let line = &self.lines[region as usize % LINES];
        (line.key == self.key(region)).then_some(line.words)
    }

    /// Notes it.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "taken modulo the number of lines")]
    pub fn put(&mut self, region: u64, words: [u64; W]) {
        self.lines[region as usize % LINES] = Line { key: self.key(region), words };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_hold_until_they_are_forgotten_or_overwritten() {
        let mut book = Notebook::<2>::default();
        assert_eq!(book.open().get(0), None, "an empty line is no note");
        book.open().put(5, [1, 2]);
        assert_eq!(book.open().get(5), Some([1, 2]));
        book.open().put(5 + LINES as u64, [3, 4]);
        assert_eq!((book.open().get(5), book.open().get(5 + LINES as u64)), (None, Some([3, 4])));
        book.forget();
        assert_eq!(book.open().get(5 + LINES as u64), None);
    }

    #[test]
    fn no_epoch_comes_twice() {
        let mut book = Notebook::<1>::default();
        book.open().put(0, [7]);
        book.epoch = (1 << Notebook::<1>::BITS) - 1;
        book.forget();
        assert_eq!(book.open().get(0), None);
    }
}
