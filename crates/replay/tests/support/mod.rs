//! Streams of operations like the recorded ones, for platforms that nobody recorded.

use std::fmt::Write;

use memvirt_replay::golden::{DATA, DM, LARGE, PD_A, PD_B, PDPT_A, PDPT_B, PT_A, PT_A1, PT_B, TV};
use rand::prelude::*;
use rand_chacha::ChaCha8Rng;

/// What the guest of a stream takes care of.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Habit {
    /// Nothing: stale translations are all over the place.
    Careless,
    /// It flushes everything after each store to a table.
    Flushing,
}

const FLAGS: [u64; 8] = [0x63, 0x61, 0x67, 0x27, 0x23, 0x21, 0x25, 0x00];
const LEAF_TABLES: [u64; 3] = [PT_A, PT_A1, PT_B];
const ROOTS: [u64; 6] = [0x1_0000, 0x2_0000, 0x4_0000, 0x4_1000, 0x4_2000, 0x4_3000];

struct Stream {
    rng: ChaCha8Rng,
    large: bool,
    root: u64,
}

impl Stream {
    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        *of.choose(&mut self.rng).expect("not empty")
    }

    fn page(&mut self) -> u64 {
        let gigabyte = if self.large { self.rng.random_range(0..2) } else { 0 };
        let region = self.rng.random_range(0..if self.large { 4 } else { 2 });
        TV + (gigabyte << 30) + (region << 21) + (self.rng.random_range(0..16u64) << 12)
    }

    fn flags(&mut self) -> u64 {
        self.pick(&FLAGS)
    }

    /// A leaf entry: mostly a data page, sometimes a page that is a table.
    fn leaf(&mut self) -> u64 {
        let flags = self.flags();
        let frame = match self.rng.random_range(0..20) {
            0 => self.pick(&LEAF_TABLES),
            1 => self.pick(&[PD_A, PD_B]),
            _ => DATA + (self.rng.random_range(0..32u64) << 12),
        };
        if flags == 0 { 0 } else { frame | flags }
    }

    fn upper(&mut self, tables: &[u64]) -> u64 {
        let (table, flags) = (self.pick(tables), self.pick(&[0x27, 0x27, 0x27, 0x25, 0x0]));
        if flags == 0 { 0 } else { table | flags }
    }

    fn directory_entry(&mut self) -> u64 {
        if self.large && self.rng.random_range(0..4) == 0 {
            let page = LARGE + (self.rng.random_range(0..2u64) << 21);
            return page | 0x80 | self.pick(&[0x67, 0x27, 0x65, 0x25]);
        }
        self.upper(&LEAF_TABLES)
    }

    fn table_store(&mut self) -> (&'static str, u64, u64) {
        let slot = 8 * self.rng.random_range(0..16u64);
        match self.rng.random_range(0..20) {
            0 if self.large => ("WRB", DM + self.pick(&LEAF_TABLES) + slot, self.flags()),
            1 if self.large => ("WRW", DM + self.pick(&[PD_A, PD_B]) + slot, 0),
            2 | 3 => {
                let at = self.pick(&[PD_A, PD_B]) + 8 * self.rng.random_range(0..4u64);
                ("PDE", DM + at, self.directory_entry())
            }
            4 if self.large => {
                let at = self.pick(&[PDPT_A, PDPT_B]) + 8 * self.rng.random_range(0..2u64);
                ("PDPTE", DM + at, self.upper(&[PD_A, PD_B]))
            }
            5 if self.large => ("PML4E", DM + self.pick(&ROOTS) + 8, self.upper(&[PDPT_A, PDPT_B])),
            6..9 => ("CLRA", DM + self.pick(&LEAF_TABLES) + slot, !self.pick(&[0x20, 0x40, 0x60])),
            _ => ("PTE", DM + self.pick(&LEAF_TABLES) + slot, self.leaf()),
        }
    }

    fn flush(&mut self) -> (&'static str, u64, u64) {
        if self.rng.random() { ("PGE", 0, 0) } else { ("CR3", self.root, 0) }
    }

    fn operation(&mut self) -> (&'static str, u64, u64) {
        match self.rng.random_range(0..100) {
            0..30 => ("RD", self.page(), 0),
            30..48 => ("WR", self.page() + 8, self.rng.random_range(0..256)),
            48..58 => ("INVLPG", self.page(), 0),
            58..67 => {
                self.root = if self.large { self.pick(&ROOTS) } else { self.pick(&ROOTS[..2]) };
                ("CR3", self.root, 0)
            }
            67..69 => ("PGE", 0, 0),
            _ => self.table_store(),
        }
    }
}

/// A recording of about `rows` operations with nothing recorded: FUZZ for even seeds, FUZZ2 for odd ones.
pub(crate) fn stream(seed: u64, rows: usize, habit: Habit) -> String {
    let large = seed % 2 == 1;
    let mut stream = Stream { rng: ChaCha8Rng::seed_from_u64(seed), large, root: ROOTS[0] };
    let (mut lines, mut idx) = (String::new(), 0);
    let mut put = |(name, a, b): (&str, u64, u64)| {
        let _ = writeln!(lines, "{idx},{name},{a:x},{b:x}{}", ",0".repeat(20));
        idx += 1;
    };
    for _ in 0..rows {
        let operation = stream.operation();
        put(operation);
        if habit == Habit::Flushing && operation.1 >= DM {
            put(stream.flush());
        }
    }
    format!("## FUZZ{} seed={seed} n={idx}\n{lines}", if large { "2" } else { "" })
}
