//! What is mapped, and what has faulted, while the calls and faults of an address space are put in order.

use std::collections::BTreeMap;

use memvirt_addr::AccessKind;
use memvirt_ops::process::{Backing, Image, Op, Prot, Range as Bytes, Sharing};

use super::collect::Fault;
use super::merge::{Space, mapped};
use super::place::{PAGE, whole_pages};

/// What is mapped while calls and faults are put in order.
pub(super) struct Known {
    /// By first address: the end, what is permitted, whether stores stay in the process, and a number.
    areas: BTreeMap<u64, (u64, Prot, bool, usize)>,
    numbers: usize,
    heap: Option<u64>,
    /// Whether a fault's kind is what the recording says.
    pub(super) stores_are_known: bool,
    /// Pages that have faulted, with the area that they were in, and whether the last fault was a store.
    touched: BTreeMap<(usize, u64), bool>,
    /// Ranges that calls to come give back to the kernel: what faults there again may do so after one of them.
    discards: Vec<(u64, u64)>,
    /// Ranges that calls to come unmap, for something else to be mapped there.
    unmapped: Vec<(u64, u64)>,
}

impl Known {
    pub(super) fn of(space: &Space) -> Self {
        let mut known = Self {
            areas: BTreeMap::new(),
            numbers: 0,
            heap: space.heap(),
            stores_are_known: false,
            touched: BTreeMap::new(),
            discards: Vec::new(),
            unmapped: Vec::new(),
        };
        if let Some(image) = space.image {
            known.begin(&image);
        }
        for call in &space.inherited {
            known.apply(call);
        }
        for call in &space.calls {
            let end = |range: Bytes| range.start.as_u64().saturating_add(whole_pages(range.bytes));
            match *call {
                Op::Discard { range } => known.discards.push((range.start.as_u64(), end(range))),
                // What one thread unmaps says little of where another is.
                Op::Munmap { range } if !space.is_threaded => known.unmapped.push((range.start.as_u64(), end(range))),
                _ => {}
            }
        }
        known
    }

    /// What exec maps.
    fn begin(&mut self, image: &Image) {
        for segments in [Some(image.program), image.interpreter].into_iter().flatten() {
            let mut at = segments.start.as_u64();
            let parts = [
                (segments.headers, Prot::R),
                (segments.text, Prot::RX),
                (segments.constants, Prot::R),
                (segments.data, Prot::RW),
                (segments.zeros, Prot::RW),
            ];
            for (pages, prot) in parts {
                self.insert(at, u64::from(pages) * PAGE, prot, true);
                at += u64::from(pages) * PAGE;
            }
        }
        self.insert(image.vdso.as_u64(), 2 * PAGE, Prot::RX, true);
        let stack = u64::from(image.stack_pages) * PAGE;
        self.insert(image.stack_top.as_u64() - stack, stack, Prot::RW, true);
    }

    fn insert(&mut self, start: u64, bytes: u64, prot: Prot, private: bool) {
        let end = start.saturating_add(whole_pages(bytes));
        self.cut(start, end);
        if end > start {
            self.areas.insert(start, (end, prot, private, self.numbers));
            self.numbers += 1;
        }
    }

    /// Removes a range; what was in it.
    fn cut(&mut self, start: u64, end: u64) -> Vec<(u64, (u64, Prot, bool, usize))> {
        let mut hit: Vec<_> = Vec::new();
        for (first, area) in self.areas.range(..end).rev() {
            if area.0 > start {
                hit.push((*first, *area));
            } else {
                break;
            }
        }
        let mut gone = Vec::new();
        for (first, (last, prot, private, number)) in hit {
            self.areas.remove(&first);
            if first < start {
                self.areas.insert(first, (start, prot, private, number));
            }
            if end < last {
                self.areas.insert(end, (last, prot, private, number));
            }
            gone.push((first.max(start), (last.min(end), prot, private, number)));
        }
        gone
    }

    pub(super) fn at(&self, address: u64) -> Option<(u64, Prot, bool, usize)> {
        self.areas.range(..=address).next_back().map(|(_, area)| *area).filter(|area| address < area.0)
    }

    /// Whether what is mapped now explains a fault: it permits the access, and the page has not faulted for good.
    pub(super) fn explain(&self, fault: &Fault) -> bool {
        self.at(fault.address).is_some_and(|(_, prot, private, number)| {
            let before = self.touched.get(&(number, fault.address / PAGE));
            let again = before.is_none_or(|stored| {
                // A load and then a store fault twice; a page that was stored to, or one that is given back, has gone between.
                // (What a file shares may fault at stores again and again, whenever it has been written back.)
                let holds = |(start, end): &(u64, u64)| (*start..*end).contains(&fault.address);
                let gone = || self.discards.iter().any(holds) || (private && self.unmapped.iter().any(holds));
                prot.write && !(gone() && (*stored || !self.stores_are_known))
            });
            again && self.permits(prot, fault.kind)
        })
    }

    /// A fork: every page may fault again, stores to copy, what was not copied to be mapped.
    pub(super) fn fork(&mut self) {
        for area in self.areas.values_mut() {
            area.3 = self.numbers;
            self.numbers += 1;
        }
    }

    fn permits(&self, prot: Prot, kind: AccessKind) -> bool {
        match kind {
            AccessKind::Fetch => prot.execute,
            AccessKind::Write => prot.write || !self.stores_are_known,
            AccessKind::Read => true,
        }
    }

    /// Whether a call maps what a fault is on.
    pub(super) fn would_explain(&self, op: &Op, fault: &Fault) -> bool {
        if let Op::Brk { end } = op {
            return self.heap.is_some_and(|heap| (heap..end.as_u64()).contains(&fault.address));
        }
        if let Op::Discard { range } = op {
            let inside = fault.address.wrapping_sub(range.start.as_u64()) < whole_pages(range.bytes);
            return inside && self.at(fault.address).is_some_and(|(_, prot, ..)| self.permits(prot, fault.kind));
        }
        if let Op::Mremap { from, to } = op {
            let inside = fault.address.wrapping_sub(to.start.as_u64()) < whole_pages(to.bytes);
            return inside && self.at(from.start.as_u64()).is_some_and(|(_, prot, ..)| self.permits(prot, fault.kind));
        }
        mapped(op).is_some_and(|(mapping, prot)| {
            let inside = fault.address.wrapping_sub(mapping.start) < whole_pages(mapping.bytes);
            inside && self.permits(prot, fault.kind)
        })
    }

    pub(super) fn apply(&mut self, op: &Op) {
        match *op {
            Op::Mmap { range, prot, backing } => {
                self.insert(range.start.as_u64(), range.bytes, prot, backing == Backing::AnonymousPrivate);
            }
            Op::MapFile { range, prot, sharing, .. } => {
                self.insert(range.start.as_u64(), range.bytes, prot, sharing == Sharing::Private);
            }
            Op::Munmap { range } => {
                let start = range.start.as_u64();
                let end = start.saturating_add(whole_pages(range.bytes));
                self.cut(start, end);
                forget(&mut self.unmapped, start, end);
            }
            Op::Mprotect { range, prot } => {
                let start = range.start.as_u64();
                for (first, (last, _, private, number)) in
                    self.cut(start, start.saturating_add(whole_pages(range.bytes)))
                {
                    self.areas.insert(first, (last, prot, private, number));
                }
            }
            Op::Discard { range } => {
                let start = range.start.as_u64();
                let end = start.saturating_add(whole_pages(range.bytes));
                for (first, (last, prot, private, _)) in self.cut(start, end) {
                    self.areas.insert(first, (last, prot, private, self.numbers));
                    self.numbers += 1;
                }
                forget(&mut self.discards, start, end);
            }
            Op::Mremap { from, to } => self.remap(from, to),
            Op::Brk { end } => {
                if let Some(heap) = self.heap.filter(|heap| *heap < end.as_u64()) {
                    let number = self.areas.get(&heap).map(|area| area.3);
                    self.insert(heap, end.as_u64() - heap, Prot::RW, true);
                    // It is the same heap: what faulted in it has faulted.
                    if let (Some(number), Some(area)) = (number, self.areas.get_mut(&heap)) {
                        area.3 = number;
                    }
                }
            }
            _ => {}
        }
    }

    /// An area grows, shrinks or moves; what faulted in it goes along.
    fn remap(&mut self, from: Bytes, to: Bytes) {
        let (start, bytes, at) = (from.start.as_u64(), whole_pages(from.bytes), to.start.as_u64());
        let cut = self.cut(start, start.saturating_add(bytes));
        let Some((_, (_, prot, private, number))) = cut.first().copied() else { return };
        self.insert(at, to.bytes, prot, private);
        let pages = start / PAGE..start.saturating_add(bytes) / PAGE;
        let touched: Vec<_> =
            self.touched.range((number, pages.start)..(number, pages.end)).map(|(k, v)| (*k, *v)).collect();
        for ((_, page), stored) in touched {
            self.touched.insert((self.numbers - 1, page - pages.start + at / PAGE), stored);
        }
    }

    /// Notes a fault: the area's number, and whether a store to it is permitted.
    pub(super) fn touch(&mut self, fault: &Fault) -> (usize, bool) {
        let (number, writable) =
            self.at(fault.address).map_or((usize::MAX, false), |(_, prot, _, number)| (number, prot.write));
        self.touched.insert((number, fault.address / PAGE), fault.kind == AccessKind::Write);
        (number, writable)
    }
}

/// Takes a range out of those to come.
fn forget(ranges: &mut Vec<(u64, u64)>, start: u64, end: u64) {
    if let Some(at) = ranges.iter().position(|range| *range == (start, end)) {
        ranges.remove(at);
    }
}
