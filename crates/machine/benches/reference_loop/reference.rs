//! The loop that memvirt is measured against: what the counting costs, and nothing else.
//!
//! One page size, one process, one purpose: no tags, permissions, accessed bits, flushes or faults. A set is a list with the
//! most recently used page first, a table 512 entries in one vector of tables.

#![expect(clippy::cast_possible_truncation, reason = "indices within tables")]

use memvirt_addr::Acc;

use crate::machines::{PAGES, TABLES, lay_out};

/// What both sides count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) l1_hits: u64,
    pub(crate) l2_hits: u64,
    pub(crate) misses: u64,
    pub(crate) references: u64,
}

/// A radix walk in memory; returns the frame that holds the address.
pub(crate) trait Walk {
    const REFERENCES: u64;
    fn walk(&self, address: u64) -> u64;
}

/// A 64-entry 4-way and a 1536-entry 12-way TLB, both in true LRU order.
pub(crate) struct Reference<'w, W> {
    l1: [[u64; 4]; 16],
    l2: [[u64; 12]; 128],
    walk: &'w W,
    l2_hits: u64,
    misses: u64,
    accesses: u64,
    /// Keeps the walks from being optimized away.
    frames: u64,
}

/// Puts `page` first in the list, whether it was there or not (then the last goes); whether it was.
#[inline]
fn find_or_insert<const WAYS: usize>(set: &mut [u64; WAYS], page: u64) -> bool {
    let mut carry = page;
    for slot in set {
        let held = core::mem::replace(slot, carry);
        if held == page {
            return true;
        }
        carry = held;
    }
    false
}

impl<'w, W: Walk> Reference<'w, W> {
    pub(crate) fn new(walk: &'w W) -> Self {
        let (l1, l2) = ([[u64::MAX; 4]; 16], [[u64::MAX; 12]; 128]);
        Self { l1, l2, walk, l2_hits: 0, misses: 0, accesses: 0, frames: 0 }
    }

    pub(crate) fn run(&mut self, run: &[Acc]) {
        for acc in run {
            let page = acc.page_bits(12);
            let set = &mut self.l1[page as usize % 16];
            if set[0] == page || find_or_insert(set, page) {
                continue;
            }
            if find_or_insert(&mut self.l2[page as usize % 128], page) {
                self.l2_hits += 1;
            } else {
                self.misses += 1;
                self.frames = self.frames.wrapping_add(self.walk.walk(acc.page_bits(0)));
            }
        }
        self.accesses += run.len() as u64;
        core::hint::black_box(self.frames);
    }

    pub(crate) fn counts(&self) -> Counts {
        let (l2_hits, misses) = (self.l2_hits, self.misses);
        let l1_hits = self.accesses - l2_hits - misses;
        Counts { l1_hits, l2_hits, misses, references: misses * W::REFERENCES }
    }
}

const PRESENT: u64 = 1;

/// Tables, and the number of the next one made.
struct Tables(Vec<[u64; 512]>);

impl Tables {
    #[inline]
    fn entry(&self, table: u64, address: u64, level: u32) -> u64 {
        self.0[table as usize][(address >> (3 + 9 * level)) as usize % 512]
    }

    /// Four references from the table `root`.
    #[inline]
    fn walk(&self, root: u64, address: u64) -> u64 {
        let mut table = root;
        for level in [4, 3, 2, 1] {
            let entry = self.entry(table, address, level);
            if entry & PRESENT == 0 {
                return 0;
            }
            table = entry >> 12;
        }
        table
    }

    fn new_table(&mut self) -> u64 {
        self.0.push([0; 512]);
        self.0.len() as u64 - 1
    }

    fn set(&mut self, table: u64, address: u64, level: u32, frame: u64) {
        self.0[table as usize][(address >> (3 + 9 * level)) as usize % 512] = frame << 12 | PRESENT;
    }

    fn map(&mut self, root: u64, page: u64, frame: u64) {
        let (mut table, address) = (root, page << 12);
        for level in [4, 3, 2] {
            let mut entry = self.entry(table, address, level);
            if entry == 0 {
                let made = self.new_table();
                self.set(table, address, level, made);
                entry = made << 12;
            }
            table = entry >> 12;
        }
        self.set(table, address, 1, frame);
    }
}

/// The tables of a process, in order; their frames are numbered from `first`.
fn process(first: u64) -> Tables {
    let mut tables = vec![[0; 512]; TABLES as usize];
    lay_out(first, |table, index, frame| tables[table as usize][index as usize] = frame << 12 | PRESENT);
    Tables(tables)
}

/// Native, and under shadow paging: four references.
pub(crate) struct OneDimension(Tables);

impl OneDimension {
    pub(crate) fn new() -> Self {
        Self(process(0))
    }
}

impl Walk for OneDimension {
    const REFERENCES: u64 = 4;

    #[inline]
    fn walk(&self, address: u64) -> u64 {
        self.0.walk(0, address)
    }
}

/// Nested paging: four references to guest tables, each after four to nested ones, and four for the data.
///
/// Guest and nested tables lie in one vector, the number of a table is its host frame. Guest frame `PAGES + n` holds the
/// guest's table `n`, guest frames below `PAGES` hold data.
pub(crate) struct Nested {
    tables: Tables,
    nested_root: u64,
}

impl Nested {
    pub(crate) fn new() -> Self {
        let mut tables = process(PAGES);
        let nested_root = tables.new_table();
        for page in 0..PAGES {
            tables.map(nested_root, page, TABLES + page);
        }
        for table in 0..TABLES {
            tables.map(nested_root, PAGES + table, table);
        }
        Self { tables, nested_root }
    }
}

impl Walk for Nested {
    const REFERENCES: u64 = 24;

    #[inline]
    fn walk(&self, address: u64) -> u64 {
        let mut frame = PAGES;
        for level in [4, 3, 2, 1] {
            let table = self.tables.walk(self.nested_root, frame << 12);
            let entry = self.tables.entry(table, address, level);
            if entry & PRESENT == 0 {
                return 0;
            }
            frame = entry >> 12;
        }
        self.tables.walk(self.nested_root, frame << 12)
    }
}
