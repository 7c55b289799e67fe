//! Memory areas of a process: what may be touched, and where its contents come from.
//!
//! The counterpart of Linux' `vm_area_struct`: half-open page ranges that never overlap, split when a part of one is
//! unmapped or protected differently.

use std::collections::BTreeMap;

use memvirt_addr::{Gva, Vpn};
use memvirt_ops::process::{Backing, Prot, Range};

pub(crate) use super::objects::ObjectId;

/// One area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Area {
    /// The first page.
    pub(crate) start: u64,
    /// The first page after it.
    pub(crate) end: u64,
    pub(crate) prot: Prot,
    pub(crate) backing: Backing,
    pub(crate) object: ObjectId,
    /// The page of the object that `start` shows.
    pub(crate) first: u64,
    /// Whether the process may have private copies of pages in it.
    pub(crate) has_private_pages: bool,
}

impl Area {
    /// The page of the object that a page of the area shows.
    pub(crate) const fn object_page(&self, page: u64) -> u64 {
        self.first + (page - self.start)
    }

    /// Whether stores stay within the process.
    pub(crate) const fn is_private(&self) -> bool {
        matches!(self.backing, Backing::AnonymousPrivate | Backing::FilePrivate)
    }

    fn clipped(&self, start: u64, end: u64) -> Self {
        let start = start.max(self.start);
        Self { start, end: end.min(self.end), first: self.object_page(start), ..*self }
    }
}

/// The areas of one process, by first page.
#[derive(Clone, Debug, Default)]
pub(crate) struct Areas(BTreeMap<u64, Area>);

/// The pages `start..end` of a range: whole pages, its end rounded up; `None` where it is empty or leaves user space.
pub(crate) fn pages_of(range: Range) -> Option<(u64, u64)> {
    const USER_PAGES: u64 = 1 << 35;
    let start = range.start.frame().number();
    let offset = range.start.page_offset(memvirt_addr::PageSize::Size4K);
    let end = start.checked_add(range.bytes.checked_add(offset)?.div_ceil(4096))?;
    (range.bytes > 0 && end <= USER_PAGES).then_some((start, end))
}

impl Areas {
    /// The area that holds `gva`.
    pub(crate) fn find(&self, gva: Gva) -> Option<&Area> {
        let page = gva.frame().number();
        self.0.range(..=page).next_back().map(|(_, area)| area).filter(|area| page < area.end)
    }

    /// Remembers that the process has private pages in the area of `page`.
    pub(crate) fn note_private(&mut self, page: Vpn) {
        if let Some((_, area)) = self.0.range_mut(..=page.number()).next_back() {
            area.has_private_pages = true;
        }
    }

    /// Adds an area over pages that no area covers.
    pub(crate) fn insert(&mut self, area: Area) {
        debug_assert!(self.overlapping(area.start, area.end).is_empty(), "areas must not overlap");
        self.0.insert(area.start, area);
    }

    /// The parts of areas within `start..end`, in order.
    pub(crate) fn overlapping(&self, start: u64, end: u64) -> Vec<Area> {
        let first = self.0.range(..start).next_back().map_or(start, |(first, _)| *first);
        let touched = self.0.range(first..end).map(|(_, area)| area).filter(|area| area.end > start);
        touched.map(|area| area.clipped(start, end)).collect()
    }

    /// Cuts `start..end` out of all areas and returns the parts cut out.
    pub(crate) fn remove(&mut self, start: u64, end: u64) -> Vec<Area> {
        let parts = self.overlapping(start, end);
        for part in &parts {
            let Some((_, whole)) = self.0.range(..=part.start).next_back().map(|(k, area)| (*k, *area)) else {
                continue;
            };
            self.0.remove(&whole.start);
            if whole.start < part.start {
                self.0.insert(whole.start, whole.clipped(whole.start, part.start));
            }
            if part.end < whole.end {
                self.0.insert(part.end, whole.clipped(part.end, whole.end));
            }
        }
        parts
    }

    /// Makes the area that ends at `page` longer, where there is one; true where there was.
    pub(crate) fn extend(&mut self, page: u64, end: u64) -> bool {
        let area = self.0.range_mut(..page).next_back().map(|(_, area)| area).filter(|area| area.end == page);
        area.map(|area| area.end = end).is_some()
    }

    /// All areas in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Area> {
        self.0.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(start: u64, end: u64) -> Area {
        Area {
            start,
            end,
            prot: Prot::RW,
            backing: Backing::AnonymousPrivate,
            object: ObjectId::Adopted,
            first: 0,
            has_private_pages: false,
        }
    }

    #[test]
    fn a_hole_splits_an_area_and_keeps_object_offsets() {
        let mut areas = Areas::default();
        areas.insert(area(10, 20));
        let cut = areas.remove(13, 15);
        assert_eq!((cut[0].start, cut[0].end, cut[0].first), (13, 15, 3));
        let left: Vec<_> = areas.iter().map(|a| (a.start, a.end, a.first)).collect();
        assert_eq!(left, [(10, 13, 0), (15, 20, 5)]);
        assert!(areas.find(Gva::new(14 << 12)).is_none());
        assert!(areas.find(Gva::new((19 << 12) + 4095)).is_some());
    }

    #[test]
    fn a_range_over_several_areas_cuts_each() {
        let mut areas = Areas::default();
        areas.insert(area(0, 4));
        areas.insert(area(6, 8));
        areas.insert(area(8, 12));
        let cut: Vec<_> = areas.remove(2, 9).iter().map(|a| (a.start, a.end)).collect();
        assert_eq!(cut, [(2, 4), (6, 8), (8, 9)]);
        let left: Vec<_> = areas.iter().map(|a| (a.start, a.end)).collect();
        assert_eq!(left, [(0, 2), (9, 12)]);
    }

    #[test]
    fn ranges_are_whole_pages_within_user_space() {
        let range = |start, bytes| pages_of(Range { start: Gva::new(start), bytes });
        assert_eq!(range(0x1000, 1), Some((1, 2)));
        assert_eq!(range(0x1fff, 2), Some((1, 3)));
        assert_eq!(range(0x1000, 0), None);
        assert_eq!(range(0x1000, 1 << 60), None);
        assert_eq!(range(0x1000, u64::MAX), None);
    }
}
