//! Several processes on one CPU: whose turn it is, within the order that forks and waits leave.
//!
//! Recordings of several processes say what each did, and little of what happened at the same time: a recorder slows some
//! parts of a program by a hundred and others not at all, so its own order would mean nothing. What must hold is causal: a
//! child runs after its fork, a wait returns after the child's exit, the parent of a vfork goes on after the child's exec or
//! exit. Within that the [`Interleaver`] takes turns, as a scheduler with one run queue does: a process runs for its quantum
//! of instructions, or until it waits or ends, and goes to the end of the queue. Quanta are drawn from a seeded generator
//! around their mean, so that processes do not run in lock step; the same seed gives the same order.

use std::collections::{BTreeMap, VecDeque};

use memvirt_ops::process::{Batch, Op, ProcessId, Source};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// How long processes run in turn, and the seed that decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Turns {
    /// Instructions of a turn on average; a turn has from half to one and a half of that, to the end of a batch.
    pub quantum: u64,
    /// The seed.
    pub seed: u64,
}

impl Turns {
    /// The quantum where none is given: Linux' base slice of 3 ms (`kernel/sched/fair.c`, `sysctl_sched_base_slice` on four
    /// CPUs) at 10^9 instructions a second.
    pub const QUANTUM: u64 = 3_000_000;
}

impl Default for Turns {
    fn default() -> Self {
        Self { quantum: Self::QUANTUM, seed: 1 }
    }
}

/// The streams of a recording, one for each process.
pub trait Family {
    /// The stream of one process: its accesses, and its own operations without switches.
    type Stream: Source<Error = Self::Error>;
    /// What can go wrong.
    type Error;

    /// Processes whose fork is in no stream, the first process among them.
    fn roots(&self) -> Vec<ProcessId>;

    /// How many processes there are.
    fn processes(&self) -> u64;

    /// Opens the stream of a process, when it is to run for the first time.
    ///
    /// # Errors
    ///
    /// Where it cannot be had.
    fn stream(&mut self, process: ProcessId) -> Result<Self::Stream, Self::Error>;
}

/// What had to be decided besides whose turn it is. All zero for a recording that is whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Repairs {
    /// Processes that nobody forks: they were forked from the first at the beginning, and have an address space of their own.
    pub orphans: u64,
    /// Exits that stand in no stream but are known from a wait that returned.
    pub exits: u64,
    /// Waits for a process that cannot have ended: they return all the same.
    pub waits: u64,
    /// Forks of a process that was there already: they are plain system calls.
    pub forks: u64,
    /// Processes whose parent never forks them: what they did is left out.
    pub lost: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    /// Waits for a process to end, or, after a vfork, for it to run in an address space of its own.
    Waits {
        child: ProcessId,
    },
    /// Waits for whichever of its children ends next.
    WaitsForAny,
    /// Its wait returns when its turn comes.
    Returns {
        child: Option<ProcessId>,
    },
    Borrowed {
        child: ProcessId,
    },
    /// Its stream is at its end, without an exit.
    Stopped,
    Exited,
}

struct Task<S> {
    state: State,
    parent: ProcessId,
    /// Whether its parent has waited for it.
    reaped: bool,
    stream: Option<S>,
}

/// Who looks at the batches of single processes.
pub type Tap<'a> = &'a mut dyn FnMut(ProcessId, &Batch);

/// One stream out of many.
pub struct Interleaver<F: Family> {
    family: F,
    tasks: BTreeMap<ProcessId, Task<F::Stream>>,
    queue: VecDeque<ProcessId>,
    /// Who runs by what was delivered.
    current: Option<ProcessId>,
    /// Instructions left of the turn.
    left: u64,
    turns: Turns,
    random: ChaCha8Rng,
    repairs: Repairs,
    /// Operations to be delivered before anything else, each by the process that is current then.
    pending: VecDeque<Op>,
    started: bool,
}

impl<F: Family> Interleaver<F> {
    /// All processes of a recording in turn.
    pub fn new(family: F, turns: Turns) -> Self {
        Self {
            family,
            tasks: BTreeMap::new(),
            queue: VecDeque::new(),
            current: Some(ProcessId::FIRST),
            left: 0,
            turns,
            random: ChaCha8Rng::seed_from_u64(turns.seed),
            repairs: Repairs::default(),
            pending: VecDeque::new(),
            started: false,
        }
    }

    /// The streams.
    pub fn family(&self) -> &F {
        &self.family
    }

    /// What had to be decided so far.
    #[must_use]
    pub fn repairs(&self) -> Repairs {
        self.repairs
    }

    /// As [`Source::next_batch`]; `tap` sees each batch as its process' stream gives it.
    ///
    /// # Errors
    ///
    /// As for [`Source::next_batch`].
    pub fn next_batch_tapped(&mut self, batch: &mut Batch, tap: Tap<'_>) -> Result<bool, F::Error> {
        batch.clear();
        if !self.started {
            self.start();
        }
        self.fill(batch, tap)
    }

    fn start(&mut self) {
        self.started = true;
        for process in self.family.roots() {
            self.admit(process, ProcessId::FIRST);
            if process != ProcessId::FIRST {
                self.repairs.orphans += 1;
                self.pending.extend([Op::Fork { child: process }, Op::Switch { to: process }, Op::Exec]);
                self.pending.push_back(Op::Switch { to: ProcessId::FIRST });
            }
        }
        self.new_turn();
    }

    fn admit(&mut self, process: ProcessId, parent: ProcessId) {
        self.tasks.insert(process, Task { state: State::Ready, parent, reaped: false, stream: None });
        self.queue.push_back(process);
    }

    fn new_turn(&mut self) {
        let quantum = self.turns.quantum.max(1);
        // The bias of the remainder is below one in 2^32 for every quantum that ends.
        self.left = quantum / 2 + self.random.next_u64() % quantum.saturating_add(1);
    }

    fn state(&self, process: ProcessId) -> Option<State> {
        self.tasks.get(&process).map(|task| task.state)
    }

    fn set_state(&mut self, process: ProcessId, state: State) {
        if let Some(task) = self.tasks.get_mut(&process) {
            task.state = state;
            if matches!(state, State::Exited | State::Stopped) {
                task.stream = None;
            }
        }
    }

    /// Takes the process that runs from the queue for good, or puts it at its end.
    fn end_turn(&mut self, stays: bool) {
        if let Some(process) = self.queue.pop_front()
            && stays
        {
            self.queue.push_back(process);
        }
        self.new_turn();
    }

    /// Lets those go on that waited for `process`, which has ended or has an address space of its own.
    fn wake(&mut self, process: ProcessId, ended: bool) {
        let parent = self.tasks.get(&process).map(|task| task.parent);
        let mut woken = Vec::new();
        for (id, task) in &mut self.tasks {
            let next = match task.state {
                State::Borrowed { child } if child == process => State::Ready,
                State::Waits { child } if ended && child == process => State::Returns { child: Some(child) },
                State::WaitsForAny if ended && Some(*id) == parent => State::Returns { child: Some(process) },
                _ => continue,
            };
            task.state = next;
            woken.push((*id, matches!(next, State::Returns { .. })));
        }
        for (id, reaps) in woken {
            self.queue.push_back(id);
            if reaps {
                self.reap(process);
            }
        }
    }

    fn reap(&mut self, child: ProcessId) {
        if let Some(task) = self.tasks.get_mut(&child) {
            task.reaped = true;
        }
    }

    /// One step of the process in front of the queue; `false` where it gave nothing.
    fn step(&mut self, process: ProcessId, batch: &mut Batch, tap: Tap<'_>) -> Result<bool, F::Error> {
        if let Some(State::Returns { child }) = self.state(process) {
            self.set_state(process, State::Ready);
            batch.then = Some(Op::Wait { child });
            return Ok(true);
        }
        let Some(task) = self.tasks.get_mut(&process) else { return Ok(false) };
        let stream = match &mut task.stream {
            Some(stream) => stream,
            none => none.insert(self.family.stream(process)?),
        };
        if !stream.next_batch(batch)? {
            self.stop(process);
            return Ok(false);
        }
        tap(process, batch);
        self.left = self.left.saturating_sub(batch.instructions.max(1));
        if let Some(op) = batch.then.take() {
            batch.then = self.operation(process, op);
        } else if self.left == 0 {
            self.end_turn(true);
        }
        Ok(!batch.is_empty())
    }

    /// What an operation of `process` means for the order. Returns what is delivered of it now.
    fn operation(&mut self, process: ProcessId, op: Op) -> Option<Op> {
        match op {
            Op::Fork { child } | Op::Vfork { child } => {
                if child == ProcessId::FIRST || self.tasks.contains_key(&child) {
                    self.repairs.forks += 1;
                    return Some(Op::Syscall { number: 57 });
                }
                self.admit(child, process);
                if matches!(op, Op::Vfork { .. }) {
                    self.set_state(process, State::Borrowed { child });
                    self.end_turn(false);
                }
            }
            Op::Exec | Op::Load { .. } => self.wake(process, false),
            Op::Exit => {
                self.set_state(process, State::Exited);
                self.end_turn(false);
                self.wake(process, true);
            }
            Op::Wait { child: Some(child) } => return self.wait(process, child),
            Op::Wait { child: None } => return self.wait_for_any(process),
            // A stream of one process has none; those of a damaged file could.
            Op::Switch { .. } => return Some(Op::Syscall { number: 24 }),
            _ if self.left == 0 => self.end_turn(true),
            _ => {}
        }
        Some(op)
    }

    fn wait(&mut self, process: ProcessId, child: ProcessId) -> Option<Op> {
        let returns = Op::Wait { child: Some(child) };
        match self.state(child) {
            Some(State::Exited) => {
                self.reap(child);
                Some(returns)
            }
            Some(State::Stopped) => {
                self.bury(child);
                self.reap(child);
                self.pending.extend([Op::Switch { to: process }, returns]);
                None
            }
            Some(_) if child != process => {
                self.set_state(process, State::Waits { child });
                self.end_turn(false);
                None
            }
            _ => {
                self.repairs.waits += 1;
                Some(returns)
            }
        }
    }

    fn wait_for_any(&mut self, process: ProcessId) -> Option<Op> {
        let own = |task: &Task<_>| task.parent == process && !task.reaped;
        let children = self.tasks.iter().filter(|(id, task)| **id != process && own(task));
        let children: Vec<_> = children.map(|(id, task)| (*id, task.state)).collect();
        let ended = children.iter().find(|(_, state)| matches!(state, State::Exited | State::Stopped));
        if let Some((child, _)) = ended {
            return self.wait(process, *child);
        }
        if children.is_empty() {
            return Some(Op::Syscall { number: 61 });
        }
        self.set_state(process, State::WaitsForAny);
        self.end_turn(false);
        None
    }

    /// Lets a process exit whose stream ended without: somebody has seen it dead.
    fn bury(&mut self, child: ProcessId) {
        self.repairs.exits += 1;
        self.set_state(child, State::Exited);
        self.pending.extend([Op::Switch { to: child }, Op::Exit]);
    }

    /// The stream of `process` is at its end without an exit.
    fn stop(&mut self, process: ProcessId) {
        self.set_state(process, State::Stopped);
        self.end_turn(false);
        let parent = self.tasks.get(&process).map(|task| task.parent);
        let seen_dead = self.tasks.iter().any(|(id, task)| match task.state {
            State::Waits { child } => child == process,
            State::WaitsForAny => Some(*id) == parent,
            _ => false,
        });
        if seen_dead {
            self.bury(process);
        }
        self.wake(process, seen_dead);
    }

    /// Nobody is in the queue: those that wait for each other, or for somebody who cannot end, go on.
    fn unlock(&mut self) -> bool {
        for (process, task) in &mut self.tasks {
            task.state = match task.state {
                State::Waits { child } => State::Returns { child: Some(child) },
                State::WaitsForAny => State::Returns { child: None },
                State::Borrowed { .. } => State::Ready,
                _ => continue,
            };
            self.repairs.waits += 1;
            self.queue.push_back(*process);
            return true;
        }
        false
    }

    fn fill(&mut self, batch: &mut Batch, tap: Tap<'_>) -> Result<bool, F::Error> {
        loop {
            if let Some(op) = self.pending.pop_front() {
                match op {
                    Op::Switch { to } if self.current == Some(to) => continue,
                    Op::Switch { to } => self.current = Some(to),
                    Op::Exit => self.current = None,
                    _ => {}
                }
                batch.then = Some(op);
                return Ok(true);
            }
            let Some(process) = self.queue.front().copied() else {
                if self.unlock() {
                    continue;
                }
                self.repairs.lost = self.family.processes().saturating_sub(self.tasks.len() as u64);
                return Ok(false);
            };
            if self.current != Some(process) {
                self.pending.push_back(Op::Switch { to: process });
                continue;
            }
            batch.clear();
            if self.step(process, batch, tap)? {
                if matches!(batch.then, Some(Op::Exit)) {
                    self.current = None;
                }
                return Ok(true);
            }
        }
    }
}

impl<F: Family> Source for Interleaver<F> {
    type Error = F::Error;

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, F::Error> {
        self.next_batch_tapped(batch, &mut |_, _| {})
    }
}

#[cfg(test)]
mod tests;
