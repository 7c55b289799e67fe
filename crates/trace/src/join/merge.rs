//! One address space: its calls at the addresses of the run that the faults are from, and between which of them each fault
//! belongs.
//!
//! The runs are not the same, so no clock orders calls and faults. What must hold does: a fault comes after the call that
//! mapped its page. Calls happen as late as the faults permit.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use memvirt_addr::{AccessKind, Gva};
use memvirt_ops::process::{Backing, Op, Prot, Range as Bytes, Sharing};

use super::collect::Fault;
use super::image::{Places, heap_start, image, program_shift};
use super::place::{Layout, Mapped, PAGE, whole_pages};

/// An address space, its calls moved.
#[derive(Debug)]
pub(crate) struct Space {
    /// What exec mapped.
    pub(crate) image: Option<memvirt_ops::process::Image>,
    /// The operations, in order, at the addresses of the run that the faults are from.
    pub(crate) calls: Vec<Op>,
    /// The faults, each with the number of calls that must come before it.
    pub(crate) faults: Vec<(usize, Fault)>,
    pub(crate) layout: Layout,
    heap: Option<(u64, u64)>,
}

/// How much above what the first fault shows the top of mappings is looked for, in pages: the interpreter is a few dozen long.
pub(crate) const TOPS: u64 = 512;
/// Calls and faults that are looked at to find the top.
const CALLS_FOR_TOP: usize = 256;
const FAULTS_FOR_TOP: usize = 4096;
/// How many calls ahead one is looked for that explains a fault.
const CALLS_AHEAD: usize = 4096;

fn mapped(op: &Op) -> Option<(Mapped, Prot)> {
    let (range, prot, file_offset) = match *op {
        Op::Mmap { range, prot, .. } => (range, prot, None),
        Op::MapFile { range, prot, first_page, .. } => (range, prot, Some(first_page.wrapping_mul(PAGE))),
        _ => return None,
    };
    Some((Mapped { start: range.start.as_u64(), bytes: range.bytes, file_offset }, prot))
}

/// How well the faults of an address space fit its calls if mappings fill the space below `top`: those on something that is
/// mapped and permits them, less those on nothing.
pub(crate) fn fit(calls: &[Op], faults: &[Fault], top: u64) -> i64 {
    let mut layout = Layout::below(Some(top));
    let mut areas = BTreeMap::new();
    for (mapping, prot) in calls.iter().take(CALLS_FOR_TOP).filter_map(mapped) {
        let at = layout.map(mapping);
        areas.insert(at, (at.saturating_add(whole_pages(mapping.bytes)), prot));
    }
    let Some(lowest) = areas.keys().next().copied() else { return 0 };
    let inside = faults.iter().take(FAULTS_FOR_TOP).filter(|fault| (lowest..top).contains(&fault.address));
    let one = |fault: &Fault| {
        // Later calls map parts of earlier ones anew: the last that begins before the fault, or one that holds it.
        let under = areas.range(..=fault.address).rev().take(8).find(|(_, (end, _))| fault.address < *end);
        match under {
            Some((_, (_, prot))) if fault.kind != AccessKind::Fetch || prot.execute => 1,
            _ => -1,
        }
    };
    inside.map(one).sum()
}

impl Space {
    /// Puts the calls of an address space where its faults are.
    pub(crate) fn new(calls: &[Op], faults: &[Fault], top: Option<u64>, has_kinds: bool, number: u32) -> Self {
        let mut layout = Layout::below(top);
        let ends = || calls.iter().filter_map(|op| if let Op::Brk { end } = op { Some(end.as_u64()) } else { None });
        let recorded_heap = ends().next();
        let grown = recorded_heap.zip(ends().max()).map_or(0, |(start, end)| end.saturating_sub(start));
        let mut trial = Layout::below(top);
        let lowest = calls.iter().filter_map(mapped).map(|(mapping, _)| trial.map(mapping)).min().unwrap_or(1 << 46);
        let end = top.or(first_end(calls)).unwrap_or(lowest);
        let heap = match (top, recorded_heap) {
            (Some(_), Some(recorded)) if grown > 0 => heap_start(faults, lowest, grown).map(|start| (recorded, start)),
            (_, recorded) => recorded.map(|recorded| (recorded, recorded)),
        };
        let mut places = Places {
            heap: heap.map_or(lowest, |(_, start)| start),
            mapped: lowest..end,
            program_relro: None,
            interpreter_relro: None,
        };
        let moved: Vec<Op> = {
            let mut mover = Mover { layout: &mut layout, heap, faults, places: &mut places };
            calls.iter().map(|op| mover.moved(op)).collect()
        };
        let image = image(faults, &places, number.wrapping_mul(2));
        let mut space = Self { image, calls: moved, faults: Vec::new(), layout, heap };
        space.order(faults, has_kinds);
        space
    }

    /// Finds the calls that each fault needs, and what an access was where the recording does not say.
    fn order(&mut self, faults: &[Fault], has_kinds: bool) {
        let mut areas = Known::of(self);
        let (mut done, mut owner) = (0, Vec::with_capacity(faults.len()));
        areas.stores_are_known = has_kinds;
        for fault in faults {
            if !areas.explain(fault)
                && let Some(next) =
                    (done..self.calls.len()).take(CALLS_AHEAD).find(|at| areas.would_explain(&self.calls[*at], fault))
            {
                // The interpreter maps a library whole and then its parts over it, before it touches any.
                let parts =
                    self.calls[next + 1..].iter().take_while(|call| areas_overlap(&self.calls[next], call)).count();
                for call in &self.calls[done..=next + parts] {
                    areas.apply(call);
                }
                done = next + parts + 1;
            }
            owner.push(areas.touch(fault));
            self.faults.push((done, *fault));
        }
        if has_kinds {
            return;
        }
        // What faulted on writable memory was a store, unless the same page faulted again: then it was a load before it.
        let mut later = BTreeSet::new();
        for ((_, fault), (area, writable)) in self.faults.iter_mut().zip(owner).rev() {
            let again = !later.insert((area, fault.address / PAGE));
            if fault.kind != AccessKind::Fetch {
                fault.kind = if writable && !again { AccessKind::Write } else { AccessKind::Read };
            }
        }
    }

    /// Faults on addresses that nothing maps, even after all calls.
    pub(crate) fn unplaced(&self) -> u64 {
        let mut areas = Known::of(self);
        let mut all = Vec::new();
        for call in &self.calls {
            areas.apply(call);
            if let Some((mapping, _)) = mapped(call) {
                all.push(mapping.start..mapping.start.saturating_add(whole_pages(mapping.bytes)));
            }
        }
        let known =
            |fault: &Fault| areas.at(fault.address).is_some() || all.iter().any(|range| range.contains(&fault.address));
        self.faults.iter().filter(|(_, fault)| !known(fault)).count() as u64
    }

    pub(crate) fn heap(&self) -> Option<u64> {
        self.heap.map(|(_, start)| start)
    }
}

/// Where the first mapping ends, as it was recorded.
fn first_end(calls: &[Op]) -> Option<u64> {
    let (mapping, _) = calls.iter().find_map(mapped)?;
    Some(mapping.start.saturating_add(whole_pages(mapping.bytes)))
}

/// Whether a call maps something within what another call maps.
fn areas_overlap(whole: &Op, part: &Op) -> bool {
    let range =
        |op| mapped(op).map(|(mapping, _)| (mapping.start, mapping.start.saturating_add(whole_pages(mapping.bytes))));
    let (Some(whole), Some(part)) = (range(whole), range(part)) else { return false };
    whole.0 <= part.0 && part.1 <= whole.1
}

/// Moves calls from the run that they were recorded in to the one that the faults are from.
struct Mover<'a> {
    layout: &'a mut Layout,
    /// Where the heap begins: recorded, and there.
    heap: Option<(u64, u64)>,
    faults: &'a [Fault],
    places: &'a mut Places,
}

impl Mover<'_> {
    fn moved(&mut self, op: &Op) -> Op {
        let at = |address: u64| Gva::new_truncate(address);
        match *op {
            Op::Mmap { range, prot, backing } => Op::Mmap { range: self.map(op, range), prot, backing },
            Op::MapFile { range, prot, sharing, file, first_page } => {
                Op::MapFile { range: self.map(op, range), prot, sharing, file, first_page }
            }
            Op::Munmap { range } => {
                let there = self.layout.unmap(range.start.as_u64(), range.bytes);
                Op::Munmap { range: Bytes { start: there.map_or(range.start, at), ..range } }
            }
            Op::Mprotect { range, prot } => Op::Mprotect { range: self.protect(range, prot), prot },
            Op::Discard { range } => {
                let there = self.layout.translate(range.start.as_u64());
                Op::Discard { range: Bytes { start: there.map_or(range.start, at), ..range } }
            }
            Op::Mremap { from, to } => {
                let there = self.layout.unmap(from.start.as_u64(), from.bytes);
                let from = Bytes { start: there.map_or(from.start, at), ..from };
                let new = Mapped { start: to.start.as_u64(), bytes: to.bytes, file_offset: None };
                Op::Mremap { from, to: Bytes { start: at(self.layout.map(new)), ..to } }
            }
            Op::Brk { end } => match self.heap {
                Some((recorded, there)) => Op::Brk { end: at(end.as_u64().wrapping_sub(recorded).wrapping_add(there)) },
                None => *op,
            },
            other => other,
        }
    }

    fn map(&mut self, op: &Op, range: Bytes) -> Bytes {
        let Some((mapping, _)) = mapped(op) else { return range };
        Bytes { start: Gva::new_truncate(self.layout.map(mapping)), ..range }
    }

    /// Where permissions change: in what calls mapped, in the interpreter above it, in the heap, or in the program.
    fn protect(&mut self, range: Bytes, prot: Prot) -> Bytes {
        let start = range.start.as_u64();
        let bytes = whole_pages(range.bytes);
        let relro = |start: u64| (!prot.write).then_some(Range { start, end: start.saturating_add(bytes) });
        let there = if let Some(there) = self.layout.translate(start) {
            there
        } else if let Some(there) = self.layout.above(start) {
            self.places.interpreter_relro = relro(there).or(self.places.interpreter_relro.take());
            there
        } else if let Some((recorded, there)) = self.heap.filter(|(recorded, _)| start >= *recorded) {
            (start - recorded).wrapping_add(there)
        } else {
            let recorded = Range { start, end: start.saturating_add(bytes) };
            let there = start.wrapping_add(program_shift(self.faults, self.places.heap, &recorded));
            self.places.program_relro = relro(there).or(self.places.program_relro.take());
            there
        };
        Bytes { start: Gva::new_truncate(there), ..range }
    }
}

/// What is mapped while calls and faults are put in order.
struct Known {
    /// By first address: the end, what is permitted, whether stores stay in the process, and a number.
    areas: BTreeMap<u64, (u64, Prot, bool, usize)>,
    numbers: usize,
    heap: Option<u64>,
    /// Whether a fault's kind is what the recording says.
    stores_are_known: bool,
    /// Pages that have faulted, with the area that they were in.
    touched: BTreeSet<(usize, u64)>,
}

impl Known {
    fn of(space: &Space) -> Self {
        let mut known = Self {
            areas: BTreeMap::new(),
            numbers: 0,
            heap: space.heap(),
            stores_are_known: false,
            touched: BTreeSet::new(),
        };
        let Some(image) = space.image else { return known };
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
                known.insert(at, u64::from(pages) * PAGE, prot, true);
                at += u64::from(pages) * PAGE;
            }
        }
        known.insert(image.vdso.as_u64(), 2 * PAGE, Prot::RX, true);
        let stack = u64::from(image.stack_pages) * PAGE;
        known.insert(image.stack_top.as_u64() - stack, stack, Prot::RW, true);
        known
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

    fn at(&self, address: u64) -> Option<(u64, Prot, bool, usize)> {
        self.areas.range(..=address).next_back().map(|(_, area)| *area).filter(|area| address < area.0)
    }

    /// Whether what is mapped now explains a fault: it permits the access, and the page has not faulted for good.
    fn explain(&self, fault: &Fault) -> bool {
        self.at(fault.address).is_some_and(|(_, prot, _, number)| {
            let again = self.touched.contains(&(number, fault.address / PAGE));
            self.permits(prot, fault.kind) && (prot.write || !again)
        })
    }

    fn permits(&self, prot: Prot, kind: AccessKind) -> bool {
        match kind {
            AccessKind::Fetch => prot.execute,
            AccessKind::Write => prot.write || !self.stores_are_known,
            AccessKind::Read => true,
        }
    }

    /// Whether a call maps what a fault is on.
    fn would_explain(&self, op: &Op, fault: &Fault) -> bool {
        if let Op::Brk { end } = op {
            return self.heap.is_some_and(|heap| (heap..end.as_u64()).contains(&fault.address));
        }
        mapped(op).is_some_and(|(mapping, prot)| {
            let inside = fault.address.wrapping_sub(mapping.start) < whole_pages(mapping.bytes);
            inside && self.permits(prot, fault.kind)
        })
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Mmap { range, prot, backing } => {
                self.insert(range.start.as_u64(), range.bytes, prot, backing == Backing::AnonymousPrivate);
            }
            Op::MapFile { range, prot, sharing, .. } => {
                self.insert(range.start.as_u64(), range.bytes, prot, sharing == Sharing::Private);
            }
            Op::Munmap { range } => {
                self.cut(range.start.as_u64(), range.start.as_u64().saturating_add(whole_pages(range.bytes)));
            }
            Op::Mprotect { range, prot } => {
                let start = range.start.as_u64();
                for (first, (last, _, private, number)) in
                    self.cut(start, start.saturating_add(whole_pages(range.bytes)))
                {
                    self.areas.insert(first, (last, prot, private, number));
                }
            }
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

    /// Notes a fault: the area's number, and whether a store to it is permitted.
    fn touch(&mut self, fault: &Fault) -> (usize, bool) {
        let (number, writable) =
            self.at(fault.address).map_or((usize::MAX, false), |(_, prot, _, number)| (number, prot.write));
        self.touched.insert((number, fault.address / PAGE));
        (number, writable)
    }
}
