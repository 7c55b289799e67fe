//! Where Linux puts a mapping that names no address: the layout of one run carried over to another.
//!
//! Two runs of a program map the same things in the same order, at addresses that differ by randomization. Linux fills the
//! space below a random top from above: a mapping goes to the end of the highest gap that holds it. One of 2 MiB or more is
//! aligned to 2 MiB where large pages may back it, so that gaps, and what fills them later, differ from run to run: areas are
//! not moved by one distance, they are placed again. Sources: Linux `mm/vma.c` (`unmapped_area_topdown`), `mm/huge_memory.c`
//! (`__thp_get_unmapped_area`), `mm/mmap.c` (`__get_unmapped_area`: anonymous memory is aligned where its length is whole
//! 2 MiB pages).

use std::collections::BTreeMap;

/// 4 KiB.
pub(crate) const PAGE: u64 = 4096;
/// 2 MiB.
const LARGE: u64 = 2 << 20;

/// A length in whole pages.
pub(crate) const fn whole_pages(bytes: u64) -> u64 {
    bytes.saturating_add(PAGE - 1) & !(PAGE - 1)
}

/// Something mapped, as the recorded call had it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapped {
    /// Its recorded address.
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    /// The offset in a file, for those that show one.
    pub(crate) file_offset: Option<u64>,
}

/// A part of the recorded layout, and where it lies in the other run.
#[derive(Clone, Copy, Debug)]
struct Piece {
    end: u64,
    to: u64,
}

/// The layout of one address space in the other run.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// The end of the space that mappings fill from above: recorded, and in the other run.
    recorded_top: Option<u64>,
    top: Option<u64>,
    /// What is taken below the top, in the other run: first address and end.
    taken: BTreeMap<u64, u64>,
    pieces: BTreeMap<u64, Piece>,
    /// Mappings that the rule puts elsewhere than they were recorded; they are moved by the distance of the tops.
    pub(crate) elsewhere: u64,
}

impl Layout {
    /// A layout below `top`, or with the recorded addresses.
    pub(crate) fn below(top: Option<u64>) -> Self {
        Self { recorded_top: None, top, taken: BTreeMap::new(), pieces: BTreeMap::new(), elsewhere: 0 }
    }

    /// Below what mappings are placed, where that is another run's.
    pub(crate) const fn top(&self) -> Option<u64> {
        self.top
    }

    /// The address of the recorded address `at` in the other run, where something is mapped there.
    pub(crate) fn translate(&self, at: u64) -> Option<u64> {
        let (start, piece) = self.pieces.range(..=at).next_back()?;
        (at < piece.end).then(|| (at - start).wrapping_add(piece.to))
    }

    /// The address of something above the top: the program's interpreter.
    pub(crate) fn above(&self, at: u64) -> Option<u64> {
        let recorded = self.recorded_top.filter(|top| at >= *top)?;
        Some((at - recorded).wrapping_add(self.top.unwrap_or(recorded)))
    }

    /// Maps something; its address in the other run. Over something that is mapped it lies where that does.
    pub(crate) fn map(&mut self, mapped: Mapped) -> u64 {
        let bytes = whole_pages(mapped.bytes);
        if let Some(at) = self.translate(mapped.start) {
            return at;
        }
        let recorded_top = *self.recorded_top.get_or_insert(mapped.start.saturating_add(bytes));
        let top = self.top.unwrap_or(recorded_top);
        let recorded: Vec<_> = self.recorded_gaps();
        let known = free_below(recorded_top, recorded.into_iter(), bytes, mapped.file_offset);
        let at = if known == Some(mapped.start) {
            free_below(top, self.taken.iter().rev().map(|(s, e)| (*s, *e)), bytes, mapped.file_offset)
        } else {
            self.elsewhere += 1;
            None
        };
        let at = at.unwrap_or_else(|| mapped.start.wrapping_sub(recorded_top).wrapping_add(top));
        self.taken.insert(at, at.saturating_add(bytes));
        self.pieces.insert(mapped.start, Piece { end: mapped.start.saturating_add(bytes), to: at });
        at
    }

    /// What is taken in the recorded layout, from above.
    fn recorded_gaps(&self) -> Vec<(u64, u64)> {
        self.pieces.iter().rev().map(|(start, piece)| (*start, piece.end)).collect()
    }

    /// Unmaps a recorded range; where its first address lay.
    pub(crate) fn unmap(&mut self, start: u64, bytes: u64) -> Option<u64> {
        let (end, at) = (start.saturating_add(whole_pages(bytes)), self.translate(start));
        let hit: Vec<_> =
            self.pieces.range(..end).filter(|(_, piece)| piece.end > start).map(|(s, p)| (*s, *p)).collect();
        for (first, piece) in hit {
            self.pieces.remove(&first);
            let (from, to) = (start.max(first), end.min(piece.end));
            let moved = |at: u64| (at - first).wrapping_add(piece.to);
            self.free(moved(from), moved(to));
            if first < from {
                self.pieces.insert(first, Piece { end: from, to: piece.to });
            }
            if to < piece.end {
                self.pieces.insert(to, Piece { end: piece.end, to: moved(to) });
            }
        }
        at
    }

    /// Changes the length of a recorded range where it lies.
    pub(crate) fn resize(&mut self, start: u64, old: u64, new: u64) {
        let (old, new) = (start.saturating_add(whole_pages(old)), start.saturating_add(whole_pages(new)));
        if new < old {
            self.unmap(new, old - new);
        } else if let Some(there) = self.translate(old.saturating_sub(1)).filter(|_| new > old) {
            let to = there.wrapping_add(1);
            self.taken.insert(to, to.saturating_add(new - old));
            self.pieces.insert(old, Piece { end: new, to });
        }
    }

    fn free(&mut self, start: u64, end: u64) {
        let hit: Vec<_> = self.taken.range(..end).filter(|(_, e)| **e > start).map(|(s, e)| (*s, *e)).collect();
        for (first, last) in hit {
            self.taken.remove(&first);
            if first < start {
                self.taken.insert(first, start);
            }
            if end < last {
                self.taken.insert(end, last);
            }
        }
    }
}

/// The place of `bytes` below `top`, what is taken being given from above.
fn free_below(top: u64, taken: impl Iterator<Item = (u64, u64)>, bytes: u64, file_offset: Option<u64>) -> Option<u64> {
    let aligned = match file_offset {
        Some(_) => bytes >= LARGE,
        None => bytes.is_multiple_of(LARGE),
    };
    let wanted = if aligned { bytes.checked_add(LARGE)? } else { bytes };
    let mut high = top;
    let mut found = None;
    for (start, end) in taken {
        if high.saturating_sub(end) >= wanted {
            found = Some(high - wanted);
            break;
        }
        high = high.min(start);
    }
    let at = found.or_else(|| high.checked_sub(wanted))?;
    if !aligned {
        return Some(at);
    }
    match file_offset.unwrap_or(0).wrapping_sub(at) % LARGE {
        0 => at.checked_add(LARGE),
        short => at.checked_add(short),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(layout: &mut Layout, start: u64, bytes: u64, file_offset: Option<u64>) -> u64 {
        layout.map(Mapped { start, bytes, file_offset })
    }

    #[test]
    fn mappings_go_below_each_other_and_into_the_gaps_that_alignment_leaves() {
        // As a compiler's start was recorded: a library above 2 MiB is aligned, the next ones fill the gap above it.
        let mut layout = Layout::below(Some(0x7fff_f7fc_d000));
        let calls = [
            (0x7f46_6bac_b000, 8192, None),
            (0x7f46_6bac_1000, 37827, Some(0)),
            (0x7f46_6b80_0000, 2_137_880, Some(0)),
            (0x7f46_6ba9_f000, 137_216, Some(0)),
        ];
        let placed: Vec<_> = calls.iter().map(|(start, bytes, file)| map(&mut layout, *start, *bytes, *file)).collect();
        assert_eq!(layout.elsewhere, 0, "the rule gives the recorded addresses themselves");
        assert_eq!(placed, [0x7fff_f7fc_b000, 0x7fff_f7fc_1000, 0x7fff_f7c0_0000, 0x7fff_f7f9_f000]);
        assert_eq!(layout.translate(0x7f46_6b86_2000), Some(0x7fff_f7c6_2000));
        assert_eq!(layout.unmap(0x7f46_6bac_1000, 37827), Some(0x7fff_f7fc_1000));
        assert_eq!(layout.translate(0x7f46_6bac_1000), None);
        // The hole is used again.
        assert_eq!(map(&mut layout, 0x7f46_6bac_a000, 4096, None), 0x7fff_f7fc_a000);
    }

    #[test]
    fn a_mapping_that_the_rule_does_not_explain_keeps_its_distance() {
        let mut layout = Layout::below(Some(0x7000_0010_0000));
        assert_eq!(map(&mut layout, 0x7f00_000f_f000, 4096, None), 0x7000_000f_f000);
        assert_eq!(map(&mut layout, 0x7f00_0000_0000, 4096, None), 0x7000_0000_0000);
        assert_eq!(layout.elsewhere, 1);
        // Recorded addresses stay where there is no other run.
        let mut same = Layout::below(None);
        assert_eq!(map(&mut same, 0x7f00_000f_f000, 4096, None), 0x7f00_000f_f000);
    }
}
