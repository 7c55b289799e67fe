//! The operations in the order of strace's text, the faults of each address space between them.

use std::collections::{BTreeMap, VecDeque};

use memvirt_addr::{Acc, AccessKind, Gva};
use memvirt_ops::process::{Batch, Op, ProcessId};

use super::collect::{Event, Fault};
use super::matters;
use super::merge::Space;

/// Plays the operations in strace's order, the faults of each address space between them.
pub(super) struct Player {
    spaces: Vec<Space>,
    /// How many calls and faults of each have been played.
    calls: Vec<usize>,
    faults: Vec<usize>,
    /// The last address space made.
    made: usize,
    /// The address space of each process that has one of its own.
    own: BTreeMap<ProcessId, usize>,
    batches: VecDeque<Batch>,
}

impl Player {
    pub(super) fn new(spaces: Vec<Space>) -> Self {
        let zeros = vec![0; spaces.len()];
        Self { calls: zeros.clone(), faults: zeros, made: 0, own: BTreeMap::new(), spaces, batches: VecDeque::new() }
    }

    pub(super) fn play(mut self, events: &[Event]) -> VecDeque<Batch> {
        let mut running = ProcessId::FIRST;
        // A child that has its parent's address space, the parent, and what strace has it do before the child's exec.
        let mut lent: Option<(ProcessId, ProcessId, Vec<Event>)> = None;
        for (at, event) in events.iter().enumerate() {
            if let Op::Switch { to } = event.op {
                running = to;
            }
            if let Some((child, parent, held)) = &mut lent {
                // The kernel lets the parent go on within the child's exec, before strace prints that this has returned.
                if running == *parent {
                    held.push(*event);
                    continue;
                }
                if (event.op == Op::Switch { to: *child }) && !held.is_empty() {
                    continue;
                }
            }
            self.one(events, at, running);
            let (child, parent) = match event.op {
                Op::Vfork { child } => {
                    lent = Some((child, running, Vec::new()));
                    continue;
                }
                Op::Exec | Op::Exit => match lent.take_if(|(child, ..)| *child == running) {
                    Some((child, parent, held)) if !held.is_empty() => {
                        held.iter().for_each(|event| self.late(event));
                        (child, parent)
                    }
                    _ => continue,
                },
                _ => continue,
            };
            if event.op == Op::Exec {
                self.push(Op::Switch { to: child });
            } else {
                running = parent;
            }
        }
        for space in 0..self.spaces.len() {
            self.touch(space, usize::MAX, usize::MAX);
        }
        self.batches
    }

    /// An event that was held back.
    fn late(&mut self, event: &Event) {
        if matters(&event.op) { self.call(event) } else { self.push(event.op) }
    }

    fn one(&mut self, events: &[Event], at: usize, running: ProcessId) {
        let event = &events[at];
        match event.op {
            Op::Exec => {
                // What it did in the copy of its parent's space, which ends here.
                if let Some(left) = self.own.insert(running, event.space) {
                    self.touch(left, usize::MAX, usize::MAX);
                }
                self.made = self.made.max(event.space);
                let image = self.spaces[event.space].image;
                self.push(image.map_or(Op::Exec, |image| Op::Load { image }));
            }
            Op::Exit => {
                // After a vfork the space is the parent's, which goes on in it.
                if is_last_of(events, at) {
                    self.touch(event.space, usize::MAX, usize::MAX);
                }
                self.push(event.op);
            }
            Op::Fork { .. } | Op::Vfork { .. } => {
                // What the parent did before the child began.
                let child = self.spaces.get(self.made + 1).and_then(|space| space.faults.first());
                let before = child.map_or(usize::MAX, |(_, fault)| fault.order);
                self.touch(event.space, self.calls[event.space], before);
                if let Op::Fork { child } = event.op {
                    self.made += 1;
                    self.own.insert(child, self.made);
                }
                self.push(event.op);
            }
            op if matters(&op) => self.call(event),
            op => self.push(op),
        }
    }

    /// A call that concerns areas, after the faults that do not need it.
    fn call(&mut self, event: &Event) {
        let number = self.calls[event.space];
        self.touch(event.space, number, usize::MAX);
        self.calls[event.space] = number + 1;
        let moved = self.spaces[event.space].calls.get(number).copied();
        self.push(moved.unwrap_or(event.op));
    }

    fn push(&mut self, op: Op) {
        self.batches.push_back(Batch { then: Some(op), ..Batch::default() });
    }

    /// The faults of a space that need at most `calls` of its calls and come before fault number `before` of the recording.
    fn touch(&mut self, space: usize, calls: usize, before: usize) {
        let from = self.faults.get(space).copied().unwrap_or(0);
        let Some(rest) = self.spaces.get(space).map(|space| &space.faults[from..]) else { return };
        let ready = rest.iter().take_while(|(needed, fault)| *needed <= calls && fault.order < before);
        let run: Vec<Acc> = ready.filter_map(|(_, fault)| access(fault)).collect();
        let count = rest.iter().take_while(|(needed, fault)| *needed <= calls && fault.order < before).count();
        self.faults[space] = from + count;
        for part in run.chunks(Batch::CAPACITY) {
            // An access is at least one instruction; more is not known.
            self.batches.push_back(Batch { run: part.to_vec(), instructions: part.len() as u64, then: None });
        }
    }
}

/// Whether nothing happens in an address space after event number `at`.
fn is_last_of(events: &[Event], at: usize) -> bool {
    let space = events[at].space;
    !events[at + 1..].iter().any(|event| event.space == space && !matches!(event.op, Op::Switch { .. }))
}

fn access(fault: &Fault) -> Option<Acc> {
    let gva = Gva::try_new(fault.address).ok()?;
    Some(match fault.kind {
        AccessKind::Fetch | AccessKind::Read | AccessKind::Write => Acc::user(gva, fault.kind),
    })
}
