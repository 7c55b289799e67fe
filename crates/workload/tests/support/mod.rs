//! A naive guest to hold streams against: processes with lists of areas, and counts of what happened.

use std::collections::{BTreeMap, BTreeSet};

use memvirt_addr::{AccessKind, Privilege};
use memvirt_ops::process::{Batch, Image, Op, ProcessId, Prot, Range, Source};
use memvirt_workload::Generator;

/// Areas by first address: one past the last address, and what they permit. Never overlapping.
type Areas = BTreeMap<u64, (u64, Prot)>;

/// What happened in a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) accesses: u64,
    pub(crate) stores: u64,
    pub(crate) instructions: u64,
    pub(crate) mmaps: u64,
    pub(crate) munmaps: u64,
    pub(crate) mprotects: u64,
    pub(crate) forks: u64,
    pub(crate) exits: u64,
    pub(crate) switches: u64,
    pub(crate) execs: u64,
    pub(crate) calls: u64,
    /// Accesses that no area permits.
    pub(crate) refused: u64,
    /// Stores of the process that the stream starts with.
    pub(crate) stores_of_first: u64,
}

pub(crate) struct Model {
    living: BTreeMap<u32, Areas>,
    /// Where the heap of each process ends that has asked.
    heaps: BTreeMap<u32, u64>,
    ever: BTreeSet<u32>,
    current: Option<u32>,
    pub(crate) tally: Tally,
}

impl Default for Model {
    fn default() -> Self {
        let living = BTreeMap::from([(ProcessId::FIRST.number(), Areas::new())]);
        Self { living, heaps: BTreeMap::new(), ever: BTreeSet::from([0]), current: Some(0), tally: Tally::default() }
    }
}

/// Runs a stream to its end and returns what happened. Panics at the first thing that no process can do.
pub(crate) fn replay(mut generator: Generator) -> Tally {
    let (mut model, mut batch) = (Model::default(), Batch::default());
    while generator.next_batch(&mut batch).unwrap() {
        assert!(!batch.is_empty());
        assert!(batch.run.len() <= Batch::CAPACITY, "{} accesses in a batch", batch.run.len());
        model.apply(&batch);
    }
    assert!(batch.is_empty(), "something is left in the batch at the end");
    assert!(!generator.next_batch(&mut batch).unwrap(), "the stream goes on after its end");
    assert!(model.current.is_some(), "nobody is current at the end");
    model.tally
}

impl Model {
    pub(crate) fn apply(&mut self, batch: &Batch) {
        for acc in &batch.run {
            let current = self.current.expect("an access between an exit and the next switch");
            let address = acc.gva().as_u64();
            assert_eq!(acc.privilege(), Privilege::User);
            assert!(address.is_multiple_of(8), "{acc:?} is no aligned word and might cross a page");
            let (_, &(end, prot)) =
                self.living[&current].range(..=address).next_back().expect("an access below all areas");
            assert!(address + 8 <= end, "{acc:?} lies in no area");
            let permitted = match acc.kind() {
                AccessKind::Read => prot.read,
                AccessKind::Write => prot.write,
                AccessKind::Fetch => prot.execute,
            };
            self.tally.refused += u64::from(!permitted);
            self.tally.stores += u64::from(acc.is_write());
            self.tally.stores_of_first += u64::from(acc.is_write() && current == 0);
        }
        self.tally.accesses += batch.run.len() as u64;
        self.tally.instructions += batch.instructions;
        if let Some(op) = batch.then {
            self.operate(op);
        }
    }

    fn areas(&mut self) -> &mut Areas {
        let current = self.current.expect("an operation between an exit and the next switch");
        self.living.get_mut(&current).unwrap()
    }

    fn operate(&mut self, op: Op) {
        match op {
            Op::Mmap { range, prot, .. } => {
                let (start, end) = bounds(range);
                cut(self.areas(), start, end);
                self.areas().insert(start, (end, prot));
                self.tally.mmaps += 1;
            }
            Op::MapFile { range, prot, .. } => {
                let (start, end) = bounds(range);
                cut(self.areas(), start, end);
                self.areas().insert(start, (end, prot));
                self.tally.mmaps += 1;
            }
            Op::Munmap { range } => {
                let (start, end) = bounds(range);
                assert!(cut(self.areas(), start, end) > 0, "unmaps nothing: {range:?}");
                self.tally.munmaps += 1;
            }
            Op::Mprotect { range, prot } => {
                let (start, end) = bounds(range);
                assert_eq!(cut(self.areas(), start, end), end - start, "protects a hole: {range:?}");
                self.areas().insert(start, (end, prot));
                self.tally.mprotects += 1;
            }
            Op::Fork { child } | Op::Vfork { child } => {
                if let Some(heap) = self.current.and_then(|current| self.heaps.get(&current)).copied() {
                    self.heaps.insert(child.number(), heap);
                }
                let copy = self.areas().clone();
                assert!(self.ever.insert(child.number()), "{child:?} existed before");
                self.living.insert(child.number(), copy);
                self.tally.forks += 1;
            }
            Op::Exit => {
                let gone = self.current.take().expect("an exit of nobody");
                self.living.remove(&gone).unwrap();
                self.tally.exits += 1;
            }
            Op::Switch { to } => {
                assert!(self.living.contains_key(&to.number()), "{to:?} does not live");
                assert_ne!(self.current, Some(to.number()), "a switch to itself");
                self.current = Some(to.number());
                self.tally.switches += 1;
            }
            Op::Exec => self.areas().clear(),
            Op::Load { image } => {
                self.load(&image);
                self.tally.execs += 1;
            }
            Op::Brk { end } => self.brk(end.as_u64()),
            Op::Discard { range } => {
                let (start, end) = bounds(range);
                assert_eq!(cut(&mut self.areas().clone(), start, end), end - start, "discards a hole: {range:?}");
            }
            Op::Mremap { from, to } => {
                let ((start, end), (to_start, to_end)) = (bounds(from), bounds(to));
                let prot = self.areas().range(..=start).next_back().expect("moves nothing").1.1;
                assert_eq!(cut(self.areas(), start, end), end - start, "moves a hole: {from:?}");
                cut(self.areas(), to_start, to_end);
                self.areas().insert(to_start, (to_end, prot));
            }
            Op::Copy { range, .. } => {
                let address = range.start.as_u64();
                let (_, &(end, _)) = self.areas().range(..=address).next_back().expect("a copy below all areas");
                assert!(address + range.bytes <= end, "{range:?} lies in no area");
                self.tally.calls += 1;
            }
            Op::Syscall { .. } => self.tally.calls += 1,
            Op::Interrupt | Op::Trap { .. } | Op::Wait { .. } | Op::Handoff { .. } => {
                assert!(self.current.is_some(), "{op:?} of nobody");
            }
        }
    }

    fn load(&mut self, image: &Image) {
        let areas = self.areas();
        areas.clear();
        for segments in [Some(&image.program), image.interpreter.as_ref()].into_iter().flatten() {
            let mut start = segments.start.as_u64();
            for (pages, prot) in [
                (segments.headers, Prot::R),
                (segments.text, Prot::RX),
                (segments.constants, Prot::R),
                (segments.data, Prot::RW),
                (segments.zeros, Prot::RW),
            ] {
                let end = start + u64::from(pages) * 4096;
                assert_eq!(cut(areas, start, end), 0, "segments overlap");
                if end > start {
                    areas.insert(start, (end, prot));
                }
                start = end;
            }
        }
        let top = image.stack_top.as_u64();
        let stack = top - u64::from(image.stack_pages) * 4096;
        assert_eq!(cut(areas, stack, top), 0, "the stack overlaps");
        areas.insert(stack, (top, Prot::RW));
        areas.insert(image.vdso.as_u64(), (image.vdso.as_u64() + 8192, Prot::RX));
        self.heaps.remove(&self.current.expect("a program of nobody"));
    }

    fn brk(&mut self, end: u64) {
        let current = self.current.expect("a heap of nobody");
        if let Some(old) = self.heaps.insert(current, end) {
            cut(self.areas(), old.min(end), old.max(end));
            if end > old {
                self.areas().insert(old, (end, Prot::RW));
            }
        }
    }
}

fn bounds(range: Range) -> (u64, u64) {
    let (start, bytes) = (range.start.as_u64(), range.bytes);
    assert!(start.is_multiple_of(4096) && bytes.is_multiple_of(4096) && bytes > 0, "{range:?}");
    assert!(start + bytes <= (1 << 47) - 4096, "beyond user space: {range:?}");
    (start, start + bytes)
}

/// Cuts a hole into areas; returns how many bytes of areas lay in it.
fn cut(areas: &mut Areas, start: u64, end: u64) -> u64 {
    let hit: Vec<_> =
        areas.range(..end).filter(|&(_, &(area_end, _))| area_end > start).map(|(&at, &area)| (at, area)).collect();
    let mut bytes = 0;
    for (area_start, (area_end, prot)) in hit {
        areas.remove(&area_start);
        if area_start < start {
            areas.insert(area_start, (start, prot));
        }
        if area_end > end {
            areas.insert(end, (area_end, prot));
        }
        bytes += area_end.min(end) - area_start.max(start);
    }
    bytes
}
