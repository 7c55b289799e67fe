//! The two texts read to their ends: what each address space did by `strace`, and what it faulted on by `perf`.
//!
//! An address space begins with an exec, or with a fork in the child. Those of two runs are matched by the process, whose numbers
//! grow in the order in which processes are made, and within one process by their order: in time they may overtake each other.

use std::collections::BTreeMap;
use std::io::Read;

use memvirt_addr::AccessKind;
use memvirt_ops::process::{Batch, Op, ProcessId, Source};

use super::matters;
use crate::error::TraceError;
use crate::text::{Grammar, TextReader};

/// A page fault of user mode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) address: u64,
    pub(crate) kind: AccessKind,
    /// When, among all faults of the recording.
    pub(crate) order: usize,
}

/// One operation, and in which address space its process was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) space: usize,
    pub(crate) op: Op,
}

/// Everything that strace says.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    pub(crate) events: Vec<Event>,
    /// The address space that a forked one is a copy of, for each; `None` for those that exec made.
    pub(crate) copied: Vec<Option<usize>>,
    /// The address spaces, process by process.
    pub(crate) ranked: Vec<usize>,
}

impl Calls {
    /// The space that exec made of which `space` is a copy, and what of areas was called up to the copying, oldest first; `None`
    /// where exec made it.
    pub(crate) fn origin(&self, space: usize) -> Option<(usize, Vec<Op>)> {
        let mut parts = Vec::new();
        let (mut origin, mut copy) = (self.copied[space]?, space);
        loop {
            // The fork that made the copy is the one, among those of its parent, that as many copies came before.
            let earlier = self.copied[..copy].iter().filter(|of| **of == Some(origin)).count();
            let of_parent = || self.events.iter().filter(|event| event.space == origin);
            let forks = |op: &Op| matches!(op, Op::Fork { .. });
            let mut seen = 0;
            let before = of_parent().take_while(|event| {
                seen += usize::from(forks(&event.op));
                seen <= earlier
            });
            parts.push(before.filter(|event| matters(&event.op)).map(|event| event.op).collect::<Vec<_>>());
            match self.copied[origin] {
                Some(next) if next < origin => (copy, origin) = (origin, next),
                _ => break,
            }
        }
        Some((origin, parts.into_iter().rev().flatten().collect()))
    }
}

/// Which address space each process is in.
#[derive(Debug, Default)]
struct Spaces {
    current: ProcessId,
    of: BTreeMap<ProcessId, usize>,
    copied: Vec<Option<usize>>,
    /// The process that each began with.
    owners: Vec<ProcessId>,
}

/// Sorts address spaces by process and time. Numbers count from that of the first process: they may have started again at the
/// lowest.
fn rank(spaces: &mut [usize], owners: &[ProcessId], leaders: &BTreeMap<ProcessId, u32>) {
    let leader = |process| leaders.get(&process).copied().unwrap_or(0);
    let first = leader(ProcessId::FIRST);
    spaces.sort_by_key(|space| (leader(owners[*space]).wrapping_sub(first), *space));
}

impl Spaces {
    fn begin(&mut self, process: ProcessId, copied: Option<usize>) -> usize {
        self.owners.push(process);
        self.copied.push(copied);
        self.of.insert(process, self.copied.len() - 1);
        self.copied.len() - 1
    }

    /// The space of the current process; a process that was there before its exec has none yet.
    fn here(&mut self) -> usize {
        let known = self.of.get(&self.current).copied();
        known.unwrap_or_else(|| self.begin(self.current, None))
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Switch { to } => self.current = to,
            Op::Exec | Op::Load { .. } => {
                self.begin(self.current, None);
            }
            Op::Fork { child } => {
                let copied = Some(self.here());
                self.begin(child, copied);
            }
            Op::Vfork { child } => {
                let lent = self.here();
                self.of.insert(child, lent);
            }
            _ => {}
        }
    }
}

/// The operations of a stream, with the address space that each concerns; and why it breaks off, where it does after the first.
pub(crate) fn calls<R: Read, G: Grammar>(
    source: &mut TextReader<R, G>,
) -> Result<(Calls, Option<TraceError>), TraceError> {
    let (mut spaces, mut all) = (Spaces::default(), Calls::default());
    let (mut batch, mut damage) = (Batch::default(), None);
    loop {
        match source.next_batch(&mut batch) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) if all.events.is_empty() => return Err(error),
            Err(error) => {
                damage = Some(error);
                break;
            }
        }
        if let Some(op) = batch.then {
            spaces.apply(op);
            // An exec belongs to the space that it makes, a fork to the one that it copies.
            let space = if matches!(op, Op::Switch { .. }) { 0 } else { spaces.here() };
            all.events.push(Event { space, op });
        }
    }
    all.ranked = (0..spaces.copied.len()).collect();
    rank(&mut all.ranked, &spaces.owners, &source.timeline().leaders());
    all.copied = spaces.copied;
    Ok((all, damage))
}

/// The faults of each address space that has any, process by process. A stream that breaks off ends there:
/// what is wrong was found when it was read first.
pub(crate) fn faults<R: Read, G: Grammar>(mut source: TextReader<R, G>) -> Vec<Vec<Fault>> {
    let (mut spaces, mut all) = (Spaces::default(), BTreeMap::<usize, Vec<Fault>>::new());
    let (mut batch, mut order) = (Batch::default(), 0);
    while source.next_batch(&mut batch).unwrap_or(false) {
        for access in &batch.run {
            let fault = Fault { address: access.gva().as_u64(), kind: access.kind(), order };
            all.entry(spaces.here()).or_default().push(fault);
            order += 1;
        }
        if let Some(op) = batch.then {
            spaces.apply(op);
        }
    }
    let mut ranked: Vec<usize> = all.keys().copied().collect();
    rank(&mut ranked, &spaces.owners, &source.timeline().leaders());
    ranked.iter().filter_map(|space| all.remove(space)).collect()
}
