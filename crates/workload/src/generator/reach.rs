//! Where the accesses of a script's touches go.
//!
//! The structures of data-intensive programs are laid out in their area as flat arrays: what matters to translation is which
//! pages one operation reaches and in what order, not what the data says.

use std::collections::BTreeMap;

use memvirt_addr::{Acc, AccessKind};
use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::draw::{self, WORD, WriteShare};
use super::steady::Pattern as _;
use super::zipf::Zipf;
use crate::script::Pattern;
use crate::spec;
use crate::units::{Base, Count, Footprint, InstructionsPerAccess, Share};

/// What a touch reaches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub(super) start: u64,
    pub(super) bytes: u64,
    pub(super) count: u64,
    pub(super) pattern: Pattern,
    pub(super) write_share: Share,
    pub(super) writes: WriteShare,
    /// The kind of accesses that are no stores.
    pub(super) read: AccessKind,
}

/// Children of a node of a B-tree, and its bytes.
const FANOUT: u64 = 128;
const NODE: u64 = 4096;
/// Probes within a node: its header, and a binary search among its keys.
const PROBES: u32 = 7;
/// Bytes of a record that is searched, and reads that follow a search.
const RECORD: u64 = 16;
const READS: u32 = 8;
/// Edges of a vertex (Graph500's edge factor).
const DEGREE: u64 = 16;
/// Bytes of a row of a relation.
const ROW: u64 = 16;
const LINE: u64 = 64;

/// The state of the patterns that have one.
#[derive(Clone, Debug)]
pub(super) struct Reach {
    /// Tables of Zipf distributions, by area and exponent.
    zipfs: BTreeMap<(u64, u64, u64), Zipf>,
    /// The order of pages of the shuffled touch at hand.
    pages: Vec<u32>,
    /// The accesses of the operation at hand, the next one last.
    operation: Vec<(u64, bool)>,
}

impl Reach {
    pub(super) fn new<'t>(targets: impl Iterator<Item = &'t Target>, rng: &mut ChaCha8Rng) -> Self {
        let mut zipfs = BTreeMap::new();
        for target in targets {
            if let (Some(key), Some(spec)) = (zipf_key(target), zipf_spec(target)) {
                zipfs.entry(key).or_insert_with(|| Zipf::new(&spec, rng));
            }
        }
        Self { zipfs, pages: Vec::new(), operation: Vec::new() }
    }

    /// Appends `count` accesses, the first of which is number `done` of the touch.
    pub(super) fn extend(&mut self, target: &Target, done: u64, count: u64, rng: &mut ChaCha8Rng, run: &mut Vec<Acc>) {
        if done == 0 {
            self.operation.clear();
            self.shuffle(target, rng);
        }
        if let Some(zipf) = zipf_key(target).and_then(|key| self.zipfs.get_mut(&key)) {
            return zipf.extend(rng, usize::try_from(count).unwrap_or(usize::MAX), run);
        }
        for index in done..done + count {
            let (offset, fixed) = self.next(target, index, rng);
            let kind = match fixed {
                Some(AccessKind::Read) => target.read,
                Some(kind) => kind,
                None if target.writes.draw(rng) == AccessKind::Write => AccessKind::Write,
                None => target.read,
            };
            run.push(draw::user(target.start + offset, kind));
        }
    }

    fn shuffle(&mut self, target: &Target, rng: &mut ChaCha8Rng) {
        if target.pattern == Pattern::ShuffledPages {
            let pages = u32::try_from(target.bytes >> 12).unwrap_or(u32::MAX);
            self.pages.clear();
            self.pages.extend(0..pages);
            self.pages.shuffle(rng);
        }
    }

    /// Where access number `index` goes, and its kind where the pattern decides it.
    fn next(&mut self, target: &Target, index: u64, rng: &mut ChaCha8Rng) -> (u64, Option<AccessKind>) {
        let pages = target.bytes >> 12;
        match target.pattern {
            Pattern::Pages => ((index % pages) << 12, None),
            Pattern::ShuffledPages => {
                let slot = usize::try_from(index % pages).unwrap_or(0);
                (u64::from(self.pages.get(slot).copied().unwrap_or(0)) << 12, None)
            }
            Pattern::Lines => (index * LINE % target.bytes, None),
            Pattern::Uniform | Pattern::Zipf(_) => (word(rng, 0, target.bytes), None),
            Pattern::BTree | Pattern::Bisect | Pattern::Graph | Pattern::Join => {
                if self.operation.is_empty() {
                    operation(target, index, rng, &mut self.operation);
                    self.operation.reverse();
                }
                let (offset, data) = self.operation.pop().unwrap_or((0, true));
                (offset, if data { None } else { Some(AccessKind::Read) })
            }
        }
    }
}

/// A random word of `bytes` bytes from `first` on.
fn word(rng: &mut ChaCha8Rng, first: u64, bytes: u64) -> u64 {
    first + draw::split(rng.next_u64(), (bytes / WORD).max(1)).0 * WORD
}

/// The accesses of one operation: where, and whether it reaches data, which may be stored to.
fn operation(target: &Target, index: u64, rng: &mut ChaCha8Rng, out: &mut Vec<(u64, bool)>) {
    match target.pattern {
        Pattern::BTree => b_tree(target.bytes / NODE, rng, out),
        Pattern::Bisect => bisect(target.bytes, rng, out),
        Pattern::Graph => {
            let (offsets, edges) = (target.bytes / 16, target.bytes / 16 * 12);
            let vertex = draw::split(rng.next_u64(), (edges / WORD / DEGREE).max(1)).0;
            out.push((vertex * WORD % offsets, false));
            for edge in 0..DEGREE {
                out.push((offsets + (vertex * DEGREE + edge) * WORD % edges, false));
                out.push((word(rng, offsets + edges, target.bytes - offsets - edges), true));
            }
        }
        _ => {
            let half = target.bytes / 2;
            out.push((index / 2 * ROW % half, false));
            out.push((word(rng, half, half), true));
        }
    }
}

/// From the root to a random leaf: nodes lie level by level, each with its header and a binary search among its keys.
fn b_tree(nodes: u64, rng: &mut ChaCha8Rng, out: &mut Vec<(u64, bool)>) {
    let (mut first, mut width, mut node) = (0, 1, 0);
    while first + node < nodes {
        let base = (first + node) * NODE;
        out.push((base, false));
        let child = draw::split(rng.next_u64(), FANOUT).0;
        let (mut low, mut high) = (0, FANOUT);
        for _ in 0..PROBES {
            let middle = (low + high) / 2;
            out.push((base + middle * (NODE / FANOUT), false));
            if child < middle { high = middle } else { low = middle }
        }
        (first, width, node) = (first + width, width * FANOUT, node * FANOUT + child);
    }
    if let Some(last) = out.last_mut() {
        last.1 = true;
    }
}

fn bisect(bytes: u64, rng: &mut ChaCha8Rng, out: &mut Vec<(u64, bool)>) {
    let records = (bytes / 4 / RECORD).max(1);
    let key = draw::split(rng.next_u64(), records).0;
    let (mut low, mut high) = (0, records);
    while low + 1 < high {
        let middle = u64::midpoint(low, high);
        out.push((middle * RECORD, false));
        if key < middle { high = middle } else { low = middle }
    }
    out.extend((0..READS).map(|_| (word(rng, (bytes / 4) & !7, bytes / 4 * 3), true)));
}

fn zipf_key(target: &Target) -> Option<(u64, u64, u64)> {
    match target.pattern {
        Pattern::Zipf(exponent) => Some((target.start, target.bytes, exponent.get().to_bits())),
        _ => None,
    }
}

/// The generator of a Zipf-distributed touch; `None` where the area is larger than its table may be.
fn zipf_spec(target: &Target) -> Option<spec::Zipf> {
    let Pattern::Zipf(exponent) = target.pattern else { return None };
    let footprint = Footprint::try_new(target.bytes).ok()?;
    if footprint.pages() > spec::Spec::MAX_ZIPF_PAGES {
        return None;
    }
    Some(spec::Zipf {
        base: Base::try_new(target.start).ok()?,
        footprint,
        accesses: Count::MIN,
        exponent,
        write_share: target.write_share,
        instructions_per_access: InstructionsPerAccess::default(),
    })
}
