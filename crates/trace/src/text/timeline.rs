//! Events of several processes, in the order in which they happened, as one stream.

use std::collections::{BTreeMap, VecDeque};

use memvirt_addr::{Acc, AccessKind, Gva};
use memvirt_ops::process::{Batch, Op, ProcessId};

use crate::lackey::{Kind, Tally};

/// Processes and threads that are told apart at most; more share the last number.
const MAX_PROCESSES: usize = 1 << 16;

/// One thing that happens.
#[derive(Clone, Copy, Debug)]
enum Step {
    Access(Acc),
    Instructions(u64),
    Op(Op),
}

/// A task of the operating system: a process, or one of its threads.
#[derive(Clone, Copy, Debug)]
struct Task {
    process: ProcessId,
    /// The number of the process' first task.
    leader: u32,
    alive: bool,
}

/// The stream being made.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    tasks: BTreeMap<u32, Task>,
    numbers: u32,
    /// The task that acts.
    current: Option<u32>,
    steps: VecDeque<Step>,
    /// Accesses and operations so far, delivered or not.
    position: u64,
    orphans: u64,
    pub(crate) tally: Tally,
}

impl Timeline {
    pub(crate) fn orphans(&self) -> u64 {
        self.orphans
    }

    pub(crate) fn tally(&self) -> Tally {
        Tally { processes: u64::from(self.numbers), ..self.tally.clone() }
    }

    /// How many accesses and operations have happened.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    fn push(&mut self, step: Step) {
        self.position += u64::from(!matches!(step, Step::Instructions(_)));
        self.steps.push_back(step);
    }

    /// The number of each process' first task.
    pub(crate) fn leaders(&self) -> BTreeMap<ProcessId, u32> {
        self.tasks.values().map(|task| (task.process, task.leader)).collect()
    }

    /// Whether nothing has happened yet.
    pub(crate) fn is_idle(&self) -> bool {
        self.numbers == 0
    }

    /// Whether a task is known and has not ended.
    pub(crate) fn is_alive(&self, task: u32) -> bool {
        self.tasks.get(&task).is_some_and(|task| task.alive)
    }

    /// The process that a task belongs to.
    pub(crate) fn process(&self, task: u32) -> Option<ProcessId> {
        self.tasks.get(&task).map(|task| task.process)
    }

    fn add(&mut self, task: u32, process: ProcessId, leader: u32) {
        if self.tasks.len() < MAX_PROCESSES || self.tasks.contains_key(&task) {
            self.tasks.insert(task, Task { process, leader, alive: true });
        }
    }

    fn new_process(&mut self, task: u32) -> ProcessId {
        let process = ProcessId(self.numbers);
        self.numbers = self.numbers.saturating_add(1);
        self.add(task, process, task);
        process
    }

    /// Makes `task` the one that acts. One that nobody has heard of begins here: the first is the recording's own, others
    /// get an address space of their own.
    pub(crate) fn act(&mut self, task: u32) {
        if self.current == Some(task) {
            return;
        }
        if !self.is_alive(task) {
            let is_first = self.is_idle();
            let acts = self.current.is_some_and(|current| self.is_alive(current));
            let process = self.new_process(task);
            if !is_first {
                self.orphans += 1;
                // Only a process that lives can make one.
                let maker = self.tasks.values().find(|other| other.alive && other.process != process).copied();
                if let Some(maker) = maker.filter(|_| !acts) {
                    self.push(Step::Op(Op::Switch { to: maker.process }));
                }
                for op in [Op::Fork { child: process }, Op::Switch { to: process }, Op::Exec] {
                    self.push(Step::Op(op));
                }
            }
            self.current = Some(task);
            return;
        }
        let before = self.current.and_then(|current| self.tasks.get(&current).copied());
        let Some(now) = self.tasks.get(&task).copied() else { return };
        self.current = Some(task);
        match before.filter(|before| before.alive) {
            Some(before) if before.process == now.process => {
                self.tally.handoffs += 1;
                self.push(Step::Op(Op::Handoff { thread: task }));
            }
            _ => self.push(Step::Op(Op::Switch { to: now.process })),
        }
    }

    /// An access by the task that acts, where its address is a user's.
    pub(crate) fn access(&mut self, address: u64, kind: AccessKind) -> Result<(), &'static str> {
        let gva = Gva::try_new(address).ok().filter(|gva| gva.as_u64() < 1 << 56).ok_or("an address of user space")?;
        self.tally.access(match kind {
            AccessKind::Fetch => Kind::Fetch,
            AccessKind::Read => Kind::Load,
            AccessKind::Write => Kind::Store,
        });
        self.push(Step::Access(Acc::user(gva, kind)));
        Ok(())
    }

    /// Instructions by the task that acts.
    pub(crate) fn instructions(&mut self, count: u64) {
        if count > 0 {
            self.push(Step::Instructions(count));
        }
    }

    /// An operation of the task that acts, other than those below.
    pub(crate) fn op(&mut self, op: Op) {
        self.tally.operation(&op);
        self.push(Step::Op(op));
    }

    /// The task that acts makes a process.
    pub(crate) fn fork(&mut self, child: u32, borrows: bool) {
        if self.is_alive(child) {
            self.op(Op::Syscall { number: crate::calls::FORK });
            return;
        }
        let child = self.new_process(child);
        self.op(if borrows { Op::Vfork { child } } else { Op::Fork { child } });
    }

    /// The task that acts makes a thread.
    pub(crate) fn thread(&mut self, child: u32) {
        let Some(parent) = self.current.and_then(|current| self.tasks.get(&current).copied()) else { return };
        if !self.is_alive(child) {
            self.add(child, parent.process, parent.leader);
        }
        self.op(Op::Syscall { number: crate::calls::CLONE });
    }

    /// A task is a thread of the process whose first task is `leader`.
    pub(crate) fn join(&mut self, task: u32, leader: u32) {
        if task == leader || self.is_alive(task) {
            return;
        }
        self.act(leader);
        if let Some(of) = self.tasks.get(&leader).copied() {
            self.add(task, of.process, of.leader);
        }
    }

    /// The task that acts ends, and with it all of its process where `group` is set or it is the first task of it.
    pub(crate) fn exit(&mut self, group: bool) {
        let Some(current) = self.current else { return };
        let Some(task) = self.tasks.get(&current).copied().filter(|task| task.alive) else { return };
        if !group && task.leader != current {
            if let Some(task) = self.tasks.get_mut(&current) {
                task.alive = false;
            }
            self.op(Op::Syscall { number: crate::calls::EXIT });
            return;
        }
        // Numbers of tasks are given out again; what has ended is forgotten once the next act comes.
        for other in self.tasks.values_mut().filter(|other| other.process == task.process) {
            other.alive = false;
        }
        self.current = None;
        self.op(Op::Exit);
    }

    /// Moves what has happened into `batch`; true once the batch is complete.
    pub(crate) fn deliver(&mut self, batch: &mut Batch) -> bool {
        while let Some(step) = self.steps.front().copied() {
            match step {
                Step::Access(_) if batch.run.len() == Batch::CAPACITY => return true,
                Step::Access(access) => batch.run.push(access),
                Step::Instructions(count) => batch.instructions = batch.instructions.saturating_add(count),
                Step::Op(op) => {
                    self.steps.pop_front();
                    batch.then = Some(op);
                    return true;
                }
            }
            self.steps.pop_front();
        }
        false
    }

    /// What is left in `batch` at the end: true where that is anything.
    pub(crate) fn deliver_rest(&mut self, batch: &Batch) -> bool {
        !batch.is_empty()
    }
}
