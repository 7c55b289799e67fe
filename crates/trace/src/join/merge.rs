//! One address space: its calls at the addresses of the run that the faults are from, and between which of them each fault
//! belongs.
//!
//! The runs are not the same, so no clock orders calls and faults. What must hold does: a fault comes after the call that
//! mapped its page. Calls happen as late as the faults permit.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use memvirt_addr::{AccessKind, Gva};
use memvirt_ops::process::{Op, Prot, Range as Bytes};

use super::collect::Fault;
use super::image::{Places, heap_start, image, program_shift};
use super::known::Known;
use super::place::{Layout, Mapped, PAGE, whole_pages};

/// An address space, its calls moved.
#[derive(Debug)]
pub(crate) struct Space {
    /// What exec mapped.
    pub(crate) image: Option<memvirt_ops::process::Image>,
    /// What the spaces did that it is a copy of, before it was copied.
    pub(crate) inherited: Vec<Op>,
    /// The operations, in order, at the addresses of the run that the faults are from.
    pub(crate) calls: Vec<Op>,
    /// The faults, each with the number of calls that must come before it.
    pub(crate) faults: Vec<(usize, Fault)>,
    pub(crate) layout: Layout,
    pub(crate) heap: Option<(u64, u64)>,
    /// Whether several threads are in it.
    pub(crate) is_threaded: bool,
    places: Places,
}

/// What the texts say of an address space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told<'a> {
    pub(crate) calls: &'a [Op],
    pub(crate) faults: &'a [Fault],
    /// The number of the first fault of each space that is a copy of it: forks stand before these.
    pub(crate) forks: &'a [usize],
    /// Whether a fault's kind is what the recording says.
    pub(crate) has_kinds: bool,
    /// Whether several threads are in it.
    pub(crate) is_threaded: bool,
}

/// The space that exec made of which a forked one is a copy, and what was called up to the fork.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin<'a> {
    pub(crate) space: &'a Space,
    pub(crate) faults: &'a [Fault],
    pub(crate) calls: &'a [Op],
}

/// How much above what the first fault shows the top of mappings is looked for, in pages: the interpreter is a few dozen long.
pub(crate) const TOPS: u64 = 512;
/// Calls and faults that are looked at to find the top.
const CALLS_FOR_TOP: usize = 256;
const FAULTS_FOR_TOP: usize = 4096;
/// How many calls ahead one is looked for that explains a fault.
const CALLS_AHEAD: usize = 4096;

pub(super) fn mapped(op: &Op) -> Option<(Mapped, Prot)> {
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
    pub(crate) fn new(told: Told<'_>, top: Option<u64>, number: u32) -> Self {
        let Told { calls, faults, .. } = told;
        let mut layout = Layout::below(top);
        let ends = || calls.iter().filter_map(|op| if let Op::Brk { end } = op { Some(end.as_u64()) } else { None });
        let recorded_heap = ends().next();
        let grown = recorded_heap.zip(ends().max()).map_or(0, |(start, end)| end.saturating_sub(start));
        let mut trial = Layout::below(top);
        let lowest = calls.iter().filter_map(mapped).map(|(mapping, _)| trial.map(mapping)).min().unwrap_or(1 << 46);
        let end = top.or(first_end(calls)).unwrap_or(lowest);
        let heap = match (top, recorded_heap) {
            // A heap that never grew is nowhere: in the other run it lies elsewhere, and everything below the mappings is the
            // program.
            (Some(_), Some(_)) if grown == 0 => None,
            (Some(_), Some(recorded)) => heap_start(faults, lowest, grown).map(|start| (recorded, start)),
            (_, recorded) => recorded.map(|recorded| (recorded, recorded)),
        };
        let mut places = Places {
            heap: heap.map_or(lowest, |(_, start)| start),
            mapped: lowest..end,
            program_relro: None,
            interpreter_relro: None,
        };
        let moved = Mover { layout: &mut layout, heap, faults, places: &mut places }.all(calls);
        let image = image(faults, &places, number.wrapping_mul(2));
        let inherited = Vec::new();
        let is_threaded = told.is_threaded;
        let mut space = Self { image, inherited, calls: moved, faults: Vec::new(), layout, heap, is_threaded, places };
        space.order(told);
        space
    }

    /// A copy that fork made: it lies where its origin lay.
    pub(crate) fn copy(told: Told<'_>, origin: Origin<'_>) -> Self {
        let Origin { space: &Self { image, heap, ref places, .. }, faults, calls } = origin;
        let (mut layout, mut places) = (Layout::below(origin.space.layout.top()), places.clone());
        let mut mover = Mover { layout: &mut layout, heap, faults, places: &mut places };
        let inherited = mover.all(calls);
        // Those are counted where they were called.
        mover.layout.elsewhere = 0;
        let moved = mover.all(told.calls);
        let is_threaded = told.is_threaded;
        let mut space = Self { image, inherited, calls: moved, faults: Vec::new(), layout, heap, is_threaded, places };
        space.order(told);
        space
    }

    /// Finds the calls that each fault needs, and what an access was where the recording does not say.
    fn order(&mut self, told: Told<'_>) {
        let Told { faults, has_kinds, .. } = told;
        let mut forks = told.forks.iter().peekable();
        let mut areas = Known::of(self);
        let (mut done, mut owner) = (0, Vec::with_capacity(faults.len()));
        areas.stores_are_known = has_kinds;
        for fault in faults {
            while forks.next_if(|fork| **fork <= fault.order).is_some() {
                areas.fork();
            }
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
            let mapping = match call {
                Op::Mremap { to, .. } => Some((to.start.as_u64(), to.bytes)),
                _ => mapped(call).map(|(mapping, _)| (mapping.start, mapping.bytes)),
            };
            if let Some((start, bytes)) = mapping {
                all.push(start..start.saturating_add(whole_pages(bytes)));
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
    fn all(&mut self, calls: &[Op]) -> Vec<Op> {
        calls.iter().map(|op| self.moved(op)).collect()
    }

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
                // A new place is looked for while the old one is still taken (Linux `mm/mremap.c`).
                let (old, new) = (from.start.as_u64(), to.start.as_u64());
                let there = self.layout.translate(old).map_or(from.start, at);
                let moved = if old == new {
                    self.layout.resize(old, from.bytes, to.bytes);
                    there
                } else {
                    let moved = self.layout.map(Mapped { start: new, bytes: to.bytes, file_offset: None });
                    self.layout.unmap(old, from.bytes);
                    at(moved)
                };
                Op::Mremap { from: Bytes { start: there, ..from }, to: Bytes { start: moved, ..to } }
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
