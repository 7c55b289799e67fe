//! Accesses as bytes: one token for an access, or for a run of fetches.
//!
//! Addresses are kept in units: 4 KiB pages, or 64-byte lines. Fetches and data have a list of recent units each, the last
//! used in front; a token names the unit by its rank in the list, and a unit in neither list is spelled out in a column of
//! its own as the difference to the front. Programs run in loops, so ranks repeat, and what repeats the compressor behind
//! this removes. The *order* of all accesses is kept: which page was used last, and whether a fetch or a store came first,
//! is what TLBs decide by.
//!
//! | token | fetches | token | data |
//! |---|---|---|---|
//! | `00..1f` | 1 to 32 from the unit in front | `80..be` | a read of the unit of rank 0 to 62 |
//! | `20..3f` | 1 to 32 from the unit after the front | `bf` | a read of a unit spelled out |
//! | `40..7e` | one from the unit of rank 0 to 62 | `c0..fe` | a write to the unit of rank 0 to 62 |
//! | `7f` | one from a unit spelled out | `ff` | a write to a unit spelled out |

use memvirt_addr::{Acc, AccessKind, Gva};

use crate::varint::{put, take, unzigzag, zigzag};

/// Units that a list holds.
const RANKS: usize = 63;
/// Fetches that one token holds.
const LONGEST: u8 = 32;

const SAME: u8 = 0x00;
const NEXT: u8 = 0x20;
const FETCH: u8 = 0x40;
const READ: u8 = 0x80;
const WRITE: u8 = 0xc0;
/// The rank that says: spelled out.
const NEW: u8 = 0x3f;

/// Units in order of last use.
#[derive(Clone, Debug)]
struct Recent {
    units: [u64; RANKS],
    len: usize,
}

impl Recent {
    const fn new() -> Self {
        Self { units: [0; RANKS], len: 0 }
    }

    fn front(&self) -> u64 {
        self.units[0]
    }

    /// Moves `unit` to the front; says which rank it had.
    #[inline]
    fn touch(&mut self, unit: u64) -> Option<u8> {
        let rank = self.units[..self.len].iter().position(|held| *held == unit);
        match rank {
            Some(rank) => {
                self.raise(rank);
                u8::try_from(rank).ok()
            }
            None => {
                self.push(unit);
                None
            }
        }
    }

    #[inline]
    fn raise(&mut self, rank: usize) {
        if rank > 0 {
            let unit = self.units[rank];
            self.units.copy_within(..rank, 1);
            self.units[0] = unit;
        }
    }

    #[inline]
    fn push(&mut self, unit: u64) {
        self.len = (self.len + 1).min(RANKS);
        self.units.copy_within(..RANKS - 1, 1);
        self.units[0] = unit;
    }

    /// The unit of this rank, moved to the front.
    #[inline]
    fn pick(&mut self, rank: u8) -> Option<u64> {
        let rank = usize::from(rank);
        if rank >= self.len {
            return None;
        }
        self.raise(rank);
        Some(self.units[0])
    }
}

/// What a block's accesses become.
#[derive(Clone, Debug)]
pub(crate) struct Encoder {
    shift: u32,
    code: Recent,
    data: Recent,
    /// A run of fetches that may go on: its token so far.
    run: Option<u8>,
    pub(crate) tokens: Vec<u8>,
    pub(crate) units: Vec<u8>,
}

impl Encoder {
    pub(crate) const fn new(shift: u32) -> Self {
        Self { shift, code: Recent::new(), data: Recent::new(), run: None, tokens: Vec::new(), units: Vec::new() }
    }

    /// Starts a block: nothing before it is needed to read it.
    pub(crate) fn restart(&mut self) {
        (self.code, self.data) = (Recent::new(), Recent::new());
        self.tokens.clear();
        self.units.clear();
    }

    /// Adds the accesses of one batch.
    pub(crate) fn add(&mut self, run: &[Acc]) {
        for access in run {
            let unit = access.gva().as_u64() >> self.shift;
            match access.kind() {
                AccessKind::Fetch => self.fetch(unit),
                AccessKind::Read => self.datum(READ, unit),
                AccessKind::Write => self.datum(WRITE, unit),
            }
        }
        self.end_run();
    }

    #[inline]
    fn end_run(&mut self) {
        self.tokens.extend(self.run.take());
    }

    #[inline]
    fn fetch(&mut self, unit: u64) {
        if unit == self.code.front() && self.code.len > 0 {
            match &mut self.run {
                Some(token) if *token % LONGEST < LONGEST - 1 => *token += 1,
                _ => {
                    self.end_run();
                    self.run = Some(SAME);
                }
            }
            return;
        }
        self.end_run();
        let (front, known) = (self.code.front(), self.code.len > 0);
        let rank = self.code.touch(unit);
        if known && unit == front.wrapping_add(1) {
            self.run = Some(NEXT);
        } else {
            self.name(FETCH, rank, unit.wrapping_sub(front));
        }
    }

    #[inline]
    fn datum(&mut self, base: u8, unit: u64) {
        self.end_run();
        let front = self.data.front();
        let rank = self.data.touch(unit);
        self.name(base, rank, unit.wrapping_sub(front));
    }

    #[inline]
    fn name(&mut self, base: u8, rank: Option<u8>, difference: u64) {
        self.tokens.push(base | rank.unwrap_or(NEW));
        if rank.is_none() {
            put(&mut self.units, zigzag(difference));
        }
    }
}

/// Why bytes are no accesses.
pub(crate) type Wrong = &'static str;

/// Reads what an [`Encoder`] wrote.
#[derive(Clone, Debug)]
pub(crate) struct Decoder {
    shift: u32,
    code: Recent,
    data: Recent,
}

impl Decoder {
    pub(crate) const fn new(shift: u32) -> Self {
        Self { shift, code: Recent::new(), data: Recent::new() }
    }

    fn access(&self, unit: u64, kind: AccessKind) -> Acc {
        Acc::user(Gva::new_truncate(unit << self.shift), kind)
    }

    /// Takes `count` accesses from the front of both columns.
    pub(crate) fn take(
        &mut self,
        count: usize,
        tokens: &mut &[u8],
        units: &mut &[u8],
        run: &mut Vec<Acc>,
    ) -> Result<(), Wrong> {
        let end = run.len() + count;
        while run.len() < end {
            let (token, rest) = tokens.split_first().ok_or("accesses end too early")?;
            *tokens = rest;
            match *token {
                token @ 0..FETCH => {
                    if token >= NEXT {
                        let next = self.code.front().wrapping_add(1);
                        self.code.touch(next);
                    }
                    let length = usize::from(token % LONGEST) + 1;
                    if self.code.len == 0 || length > end - run.len() {
                        return Err("a run of fetches that cannot be");
                    }
                    run.resize(run.len() + length, self.access(self.code.front(), AccessKind::Fetch));
                }
                token => {
                    let (list, kind) = match token {
                        FETCH..READ => (&mut self.code, AccessKind::Fetch),
                        READ..WRITE => (&mut self.data, AccessKind::Read),
                        _ => (&mut self.data, AccessKind::Write),
                    };
                    let unit = named(list, token & NEW, units)?;
                    run.push(self.access(unit, kind));
                }
            }
        }
        Ok(())
    }
}

#[inline]
fn named(list: &mut Recent, rank: u8, units: &mut &[u8]) -> Result<u64, Wrong> {
    if rank == NEW {
        let difference = unzigzag(take(units).ok_or("addresses end too early")?);
        let unit = list.front().wrapping_add(difference);
        list.push(unit);
        Ok(unit)
    } else {
        list.pick(rank).ok_or("an address that is in no list")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn accesses() -> impl Strategy<Value = Vec<Acc>> {
        let kinds = prop_oneof![
            4 => Just(AccessKind::Fetch), 2 => Just(AccessKind::Read), 1 => Just(AccessKind::Write)
        ];
        // Few pages next to each other, many, and any address at all.
        let address = prop_oneof![4 => 0x40_0000u64..0x40_3000, 2 => 0u64..0x40_0000, 1 => any::<u64>()];
        prop::collection::vec((address, kinds, 1usize..40), 0..300).prop_map(|parts| {
            parts.into_iter().flat_map(|(at, kind, n)| vec![Acc::user(Gva::new_truncate(at), kind); n]).collect()
        })
    }

    proptest! {
        #![proptest_config(memvirt_properties::cases(256))]

        #[test]
        fn accesses_survive_in_order(run in accesses(), cut: prop::sample::Index, lines: bool) {
            let shift = if lines { 6 } else { 12 };
            let (first, second) = run.split_at(if run.is_empty() { 0 } else { cut.index(run.len()) });
            let mut encoder = Encoder::new(shift);
            encoder.add(first);
            encoder.add(second);
            let (mut tokens, mut units) = (&encoder.tokens[..], &encoder.units[..]);
            let mut decoder = Decoder::new(shift);
            let mut decoded = Vec::new();
            decoder.take(first.len(), &mut tokens, &mut units, &mut decoded).unwrap();
            decoder.take(second.len(), &mut tokens, &mut units, &mut decoded).unwrap();
            prop_assert!(tokens.is_empty() && units.is_empty());
            let unit = |acc: &Acc| (acc.gva().as_u64() >> shift, acc.kind());
            prop_assert_eq!(decoded.iter().map(unit).collect::<Vec<_>>(), run.iter().map(unit).collect::<Vec<_>>());
            let canonical = decoded.iter().all(|acc| acc.gva() == Gva::new_truncate(acc.gva().as_u64()));
            prop_assert!(canonical);
        }

        #[test]
        fn any_bytes_are_accesses_or_refused(tokens: Vec<u8>, units: Vec<u8>, count in 0usize..500) {
            let mut run = Vec::new();
            let _ = Decoder::new(12).take(count, &mut &tokens[..], &mut &units[..], &mut run);
            prop_assert!(run.len() <= count);
        }
    }

    #[test]
    fn a_loop_over_two_pages_is_two_tokens_a_round() {
        let fetch = Acc::user(Gva::new(0x1000), AccessKind::Fetch);
        let store = Acc::user(Gva::new(0x9000), AccessKind::Write);
        let mut encoder = Encoder::new(12);
        encoder.add(&[fetch, fetch, store, fetch, fetch, fetch, store, store]);
        assert_eq!(encoder.tokens, [0x7f, 0x00, 0xff, 0x02, 0xc0, 0xc0]);
        assert_eq!(encoder.units, [2, 18]);
    }
}
