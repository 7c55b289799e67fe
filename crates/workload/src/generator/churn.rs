//! A process that changes a set of areas: maps, unmaps, protects and touches them in a given mix.
//!
//! The generator keeps the state of each page, so that it never unmaps what is not mapped, protects no hole and accesses
//! only what is permitted. Where nothing is mapped, an area is mapped before the operation that needs one.

use memvirt_addr::AccessKind;
use memvirt_ops::process::{Batch, Op, Prot};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::draw::{self, WORD, WriteShare};
use crate::spec;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    Absent,
    ReadOnly,
    Writable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Mmap,
    Munmap,
    Mprotect,
    Touch,
}

#[derive(Clone, Debug)]
pub(super) struct Churn {
    spec: spec::Churn,
    writes: WriteShare,
    /// Areas that are mapped before the first operation.
    to_map: u32,
    operations_left: u64,
    /// An operation that waits for something to be mapped.
    pending: Option<Operation>,
    /// The area that is being touched, and how many touches are left.
    touching: Option<(u32, u64)>,
    /// Areas with at least one mapped page.
    mapped: Vec<u32>,
    /// Areas without any.
    vacant: Vec<u32>,
    /// Page states, area by area.
    pages: Vec<Page>,
    rng: ChaCha8Rng,
}

/// A run of pages of one area: first page and count.
type Span = (usize, usize);

impl Churn {
    pub(super) fn new(spec: spec::Churn, rng: ChaCha8Rng) -> Self {
        let pages = u64::from(spec.areas.get()) * spec.area.pages();
        Self {
            spec,
            writes: WriteShare::new(spec.write_share),
            to_map: 0,
            operations_left: spec.operations.get(),
            pending: None,
            touching: None,
            mapped: Vec::new(),
            vacant: Vec::new(),
            pages: vec![Page::Absent; usize::try_from(pages).unwrap_or(usize::MAX)],
            rng,
        }
    }

    pub(super) fn fill(&mut self, batch: &mut Batch) {
        if self.to_map < self.spec.areas.get() {
            let area = self.to_map;
            self.to_map += 1;
            self.mapped.push(area);
            batch.then = Some(self.map(area));
        } else if let Some((area, left)) = self.touching {
            self.touch(area, left, batch);
        } else if self.operations_left > 0 {
            self.operate(batch);
        }
    }

    /// Draws the next operation and does it.
    fn operate(&mut self, batch: &mut Batch) {
        let next = self.pending.take().unwrap_or_else(|| self.draw());
        if next != Operation::Mmap && self.mapped.is_empty() {
            self.pending = Some(next);
            batch.then = Some(self.map_any());
            return;
        }
        self.operations_left -= 1;
        batch.then = match next {
            Operation::Mmap => Some(self.map_any()),
            Operation::Munmap => Some(self.unmap()),
            Operation::Mprotect => Some(self.protect()),
            Operation::Touch => {
                let at = self.rng.random_range(0..self.mapped.len());
                self.touch(self.mapped[at], self.spec.touches.get(), batch);
                None
            }
        };
    }

    fn draw(&mut self) -> Operation {
        let spec::Mix { mmap, munmap, mprotect, .. } = self.spec.mix;
        let mut drawn = self.rng.random_range(0..self.spec.mix.total());
        for (weight, operation) in
            [(mmap, Operation::Mmap), (munmap, Operation::Munmap), (mprotect, Operation::Mprotect)]
        {
            if drawn < weight.get() {
                return operation;
            }
            drawn -= weight.get();
        }
        Operation::Touch
    }

    /// Maps an area of which nothing is mapped, or anew one that is.
    fn map_any(&mut self) -> Op {
        if self.vacant.is_empty() {
            let at = self.rng.random_range(0..self.mapped.len());
            self.map(self.mapped[at])
        } else {
            let at = self.rng.random_range(0..self.vacant.len());
            let area = self.vacant.swap_remove(at);
            self.mapped.push(area);
            self.map(area)
        }
    }

    fn map(&mut self, area: u32) -> Op {
        let span = (0, self.area_pages());
        self.states(area, span).fill(Page::Writable);
        draw::mmap(self.address(area, 0), self.spec.area.bytes())
    }

    fn unmap(&mut self) -> Op {
        let at = self.rng.random_range(0..self.mapped.len());
        let area = self.mapped[at];
        let span = if self.is_partial() { self.random_span(area) } else { (0, self.area_pages()) };
        self.states(area, span).fill(Page::Absent);
        let whole = (0, self.area_pages());
        if self.states(area, whole).iter().all(|&page| page == Page::Absent) {
            self.mapped.swap_remove(at);
            self.vacant.push(area);
        }
        Op::Munmap { range: self.range(area, span) }
    }

    /// Turns a run of mapped pages to the opposite of what its first page permits.
    fn protect(&mut self) -> Op {
        let at = self.rng.random_range(0..self.mapped.len());
        let area = self.mapped[at];
        let span = if self.is_partial() { self.random_span(area) } else { self.present_run(area, 0) };
        let (state, prot) = match self.states(area, span)[0] {
            Page::Writable => (Page::ReadOnly, Prot::R),
            _ => (Page::Writable, Prot::RW),
        };
        self.states(area, span).fill(state);
        Op::Mprotect { range: self.range(area, span), prot }
    }

    fn touch(&mut self, area: u32, left: u64, batch: &mut Batch) {
        let count = draw::chunk(left);
        for _ in 0..count {
            let from = self.rng.random_range(0..self.area_pages());
            let page = self.next_present(area, from);
            let kind = match self.states(area, (page, 1))[0] {
                Page::Writable => self.writes.draw(&mut self.rng),
                _ => AccessKind::Read,
            };
            let word = self.rng.random_range(0..4096 / WORD);
            batch.run.push(draw::user(self.address(area, page) + word * WORD, kind));
        }
        batch.instructions = count as u64 * u64::from(self.spec.instructions_per_access.get());
        let left = left - count as u64;
        self.touching = (left > 0).then_some((area, left));
    }

    fn is_partial(&mut self) -> bool {
        self.rng.random_bool(self.spec.partial_share.get())
    }

    /// A random part of a run of mapped pages.
    fn random_span(&mut self, area: u32) -> Span {
        let from = self.rng.random_range(0..self.area_pages());
        let (first, most) = self.present_run(area, from);
        (first, self.rng.random_range(1..=most))
    }

    /// The first mapped page at or after `from`, wrapping around, and how many mapped pages follow without a hole.
    fn present_run(&mut self, area: u32, from: usize) -> Span {
        let first = self.next_present(area, from);
        let rest = (first, self.area_pages() - first);
        let count = self.states(area, rest).iter().take_while(|&&page| page != Page::Absent).count();
        (first, count)
    }

    /// The first mapped page at or after `from`, wrapping around. The area has one: only such areas are in `mapped`.
    fn next_present(&mut self, area: u32, from: usize) -> usize {
        let whole = (0, self.area_pages());
        let states = self.states(area, whole);
        let present = |&page: &usize| states[page] != Page::Absent;
        (from..states.len()).find(present).or_else(|| (0..from).find(present)).unwrap_or(from)
    }

    fn states(&mut self, area: u32, (first, count): Span) -> &mut [Page] {
        let start = area as usize * self.area_pages() + first;
        &mut self.pages[start..start + count]
    }

    fn area_pages(&self) -> usize {
        usize::try_from(self.spec.area.pages()).unwrap_or(usize::MAX)
    }

    fn address(&self, area: u32, page: usize) -> u64 {
        self.spec.base.get() + u64::from(area) * self.spec.pitch() + ((page as u64) << 12)
    }

    fn range(&self, area: u32, (first, count): Span) -> memvirt_ops::process::Range {
        draw::range(self.address(area, first), (count as u64) << 12)
    }
}
