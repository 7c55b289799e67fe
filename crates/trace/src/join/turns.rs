//! The schedule of a recording, carried over to areas and addresses of other runs.
//!
//! A switch stands in the recording after so many faults of the process that it leaves, counted from the last thing in its life
//! that both runs have (fork, exec, exit). It is put after the same share of that stretch in the joined stream. What the
//! recording does not say, who had a CPU before a program outside of it handed it back, say, is filled in as a switch that was
//! not recorded.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use memvirt_ops::process::{Batch, Op, ProcessId, Source};

use crate::error::TraceError;
use crate::text::schedule::{Schedule, Side, Switched};

/// Who has a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    /// A process of the recording.
    Own(ProcessId),
    /// A program outside of it, by the number of its task: an address space of its own.
    Foreign(u32),
    /// A thread of the kernel, which borrows the address space that is loaded.
    Kernel,
}

/// A CPU goes from one to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The CPU, numbered from 0 in the order in which the recording names them: the first process begins on the first.
    pub cpu: usize,
    /// Who leaves it.
    pub from: Party,
    /// Who gets it.
    pub to: Party,
    /// Whether the recording has this switch; others fill its gaps.
    pub is_recorded: bool,
}

/// One step of a replay.
#[derive(Clone, Debug)]
pub enum Step {
    /// What the process that has a CPU does there.
    Run {
        /// The CPU.
        cpu: usize,
        /// Accesses, and an operation.
        batch: Batch,
    },
    /// A CPU is given to somebody else.
    Turn(Turn),
}

/// An event in a process' life that every run of the program has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Begets,
    Executes,
    Ends,
}

impl Life {
    const fn of(op: &Op) -> Option<Self> {
        match op {
            Op::Fork { .. } | Op::Vfork { .. } => Some(Self::Begets),
            Op::Exec | Op::Load { .. } => Some(Self::Executes),
            Op::Exit => Some(Self::Ends),
            _ => None,
        }
    }
}

/// A process' life: its events, and the faults before each and after the last.
#[derive(Clone, Debug)]
struct Course {
    events: Vec<Life>,
    faults: Vec<u64>,
}

impl Default for Course {
    fn default() -> Self {
        Self { events: Vec::new(), faults: vec![0] }
    }
}

impl Course {
    fn access(&mut self, count: u64) {
        if let Some(last) = self.faults.last_mut() {
            *last += count;
        }
    }

    fn event(&mut self, op: &Op) {
        if let Some(life) = Life::of(op) {
            self.events.push(life);
            self.faults.push(0);
        }
    }
}

/// Where a process is in its life: events behind it, and faults since.
#[derive(Clone, Copy, Debug)]
struct Mark {
    process: ProcessId,
    events: usize,
    faults: u64,
}

/// A schedule with the place of each switch in the lives of processes.
#[derive(Debug, Default)]
pub(crate) struct Recorded {
    courses: BTreeMap<ProcessId, Course>,
    turns: Vec<(Turn, Option<Mark>)>,
    pub(crate) cpus: usize,
}

impl Recorded {
    /// Places the switches of a recording, whose stream `source` is, as far as that can be read.
    pub(crate) fn place(mut source: impl Source<Error = TraceError>, schedule: &Schedule) -> Self {
        let mut recorded = Self::default();
        let (mut current, mut position) = (ProcessId::FIRST, 0);
        let mut waiting = schedule.switches().iter().peekable();
        let mut cpus: Vec<u32> = schedule.first_cpu().into_iter().collect();
        let mut batch = Batch::default();
        while source.next_batch(&mut batch).unwrap_or(false) {
            let accesses = batch.run.len() as u64;
            for step in 0..accesses + u64::from(batch.then.is_some()) {
                while let Some(switched) = waiting.next_if(|next| next.position <= position) {
                    recorded.add(switched, schedule, &mut cpus);
                }
                position += 1;
                let course = recorded.courses.entry(current).or_default();
                match batch.then {
                    Some(op) if step == accesses => {
                        course.event(&op);
                        if let Op::Switch { to } = op {
                            current = to;
                        }
                    }
                    _ => course.access(1),
                }
            }
        }
        waiting.for_each(|switched| recorded.add(switched, schedule, &mut cpus));
        recorded.cpus = cpus.len().max(1);
        recorded
    }

    fn add(&mut self, switched: &Switched, schedule: &Schedule, cpus: &mut Vec<u32>) {
        let cpu = cpus.iter().position(|known| *known == switched.cpu).unwrap_or_else(|| {
            cpus.push(switched.cpu);
            cpus.len() - 1
        });
        let party = |side| match side {
            Side::Own(process) => Party::Own(process),
            Side::Other(pid) if schedule.is_kernel(pid) => Party::Kernel,
            Side::Other(pid) => Party::Foreign(pid),
        };
        let (from, to) = (party(switched.from), party(switched.to));
        let mark = match from {
            Party::Own(process) => {
                let course = self.courses.entry(process).or_default();
                let faults = course.faults.last().copied().unwrap_or(0);
                Some(Mark { process, events: course.events.len(), faults })
            }
            _ => None,
        };
        self.turns.push((Turn { cpu, from, to, is_recorded: true }, mark));
    }

    /// Switches that the recording has.
    pub(crate) fn turns(&self) -> u64 {
        self.turns.len() as u64
    }

    /// Puts the stream of other runs into this order; `None` where the lives of its processes are others.
    pub(crate) fn replay(&self, batches: VecDeque<Batch>) -> Option<VecDeque<Step>> {
        let player = Player::new(batches);
        let same = |process: &ProcessId, course: &Course| {
            self.courses.get(process).is_some_and(|recorded| recorded.events == course.events)
        };
        let all = player.lives.len() == self.courses.len();
        if !all || !player.lives.iter().all(|(process, life)| same(process, &life.course)) {
            return None;
        }
        Some(player.play(self))
    }
}

/// What a process does, and how far it has come.
#[derive(Debug, Default)]
struct Own {
    left: VecDeque<Batch>,
    course: Course,
    events: usize,
    faults: u64,
    /// The child that has its address space.
    lent_to: Option<ProcessId>,
}

/// Plays what each process does in the order of a schedule.
struct Player {
    lives: BTreeMap<ProcessId, Own>,
    begun: BTreeSet<ProcessId>,
    /// Who has each CPU.
    has: Vec<Party>,
    steps: VecDeque<Step>,
}

/// How deep processes may wait for each other.
const MAX_DEPTH: usize = 64;

impl Player {
    fn new(batches: VecDeque<Batch>) -> Self {
        let mut lives = BTreeMap::<ProcessId, Own>::new();
        let mut current = ProcessId::FIRST;
        for batch in batches {
            let life = lives.entry(current).or_default();
            life.course.access(batch.run.len() as u64);
            if let Some(op) = &batch.then {
                life.course.event(op);
            }
            if let Some(Op::Switch { to }) = batch.then {
                current = to;
                if !batch.run.is_empty() {
                    life.left.push_back(Batch { then: None, ..batch });
                }
            } else {
                life.left.push_back(batch);
            }
        }
        lives.retain(|_, life| !life.left.is_empty());
        Self { lives, begun: BTreeSet::from([ProcessId::FIRST]), has: Vec::new(), steps: VecDeque::new() }
    }

    fn play(mut self, recorded: &Recorded) -> VecDeque<Step> {
        self.has = vec![Party::Kernel; recorded.cpus];
        self.has[0] = Party::Own(ProcessId::FIRST);
        for (turn, mark) in &recorded.turns {
            if let Some(mark) = mark {
                let reached = self.scaled(*mark, recorded);
                self.advance(mark.process, mark.events, reached, turn.cpu, 0);
            }
            if let Party::Own(process) = turn.to {
                self.make_ready(process, 0);
            }
            self.give(turn.cpu, turn.from, false);
            self.give(turn.cpu, turn.to, true);
        }
        // What is left once the recording has ended.
        while let Some(process) = self.lives.iter().find(|(_, life)| !life.left.is_empty()).map(|(process, _)| *process)
        {
            let before = self.left();
            self.advance(process, usize::MAX, u64::MAX, 0, 0);
            if self.left() == before {
                break;
            }
        }
        self.steps
    }

    fn left(&self) -> usize {
        self.lives.values().map(|life| life.left.len()).sum()
    }

    /// The same share of the same stretch of a life.
    fn scaled(&self, mark: Mark, recorded: &Recorded) -> u64 {
        let stretch = |course: &Course| course.faults.get(mark.events).copied().unwrap_or(0);
        let here = self.lives.get(&mark.process).map_or(0, |life| stretch(&life.course));
        let there = recorded.courses.get(&mark.process).map_or(0, stretch).max(1);
        let share = u128::from(mark.faults) * u128::from(here) + u128::from(there) / 2;
        u64::try_from(share / u128::from(there)).unwrap_or(here)
    }

    /// Gives a CPU to somebody, unless he has it.
    fn give(&mut self, cpu: usize, to: Party, is_recorded: bool) {
        let from = self.has[cpu];
        if from == to && !is_recorded {
            return;
        }
        // A process that moved without a switch that says so has left its CPU before.
        if let (Party::Own(_), Some(other)) = (to, self.has.iter().position(|has| *has == to).filter(|at| *at != cpu)) {
            self.give(other, Party::Kernel, false);
        }
        self.has[cpu] = to;
        self.steps.push_back(Step::Turn(Turn { cpu, from, to, is_recorded }));
    }

    /// Has a process been made, and its address space come back to it?
    fn make_ready(&mut self, process: ProcessId, depth: usize) {
        if depth > MAX_DEPTH {
            return;
        }
        if !self.begun.contains(&process) {
            let makes = |batch: &Batch| matches!(batch.then, Some(Op::Fork { child } | Op::Vfork { child }) if child == process);
            let maker = self.lives.iter().find_map(|(maker, life)| {
                let at = life.left.iter().position(makes)?;
                let events = life.left.iter().take(at + 1).filter(|batch| is_event(batch)).count();
                Some((*maker, life.events + events))
            });
            if let Some((maker, events)) = maker {
                self.advance(maker, events, 0, 0, depth + 1);
            }
        }
        if let Some(child) = self.lives.get(&process).and_then(|life| life.lent_to) {
            self.advance(child, 1, 0, 0, depth + 1);
        }
    }

    /// Lets a process run until `events` of its life are behind it and `faults` since; on the CPU that it has, or else on `cpu`.
    fn advance(&mut self, process: ProcessId, events: usize, faults: u64, cpu: usize, depth: usize) {
        if depth > MAX_DEPTH {
            return;
        }
        while let Some(batch) = self.next_part(process, events, faults) {
            self.make_ready(process, depth);
            let party = Party::Own(process);
            let on = self.has.iter().position(|has| *has == party).unwrap_or_else(|| {
                self.give(cpu, party, false);
                cpu
            });
            let Some(life) = self.lives.get_mut(&process) else { return };
            life.faults += batch.run.len() as u64;
            if is_event(&batch) {
                (life.events, life.faults) = (life.events + 1, 0);
            }
            match batch.then {
                Some(Op::Fork { child }) => {
                    self.begun.insert(child);
                }
                Some(Op::Vfork { child }) => {
                    life.lent_to = Some(child);
                    self.begun.insert(child);
                }
                Some(Op::Exec | Op::Load { .. } | Op::Exit) => {
                    self.lives
                        .values_mut()
                        .filter(|life| life.lent_to == Some(process))
                        .for_each(|life| life.lent_to = None);
                }
                _ => {}
            }
            self.steps.push_back(Step::Run { cpu: on, batch });
        }
    }

    /// What a process does next, as far as it shall come.
    fn next_part(&mut self, process: ProcessId, events: usize, faults: u64) -> Option<Batch> {
        let life = self.lives.get_mut(&process)?;
        if life.events > events || (life.events == events && life.faults >= faults) {
            return None;
        }
        let batch = life.left.front_mut()?;
        if life.events < events {
            return life.left.pop_front();
        }
        let room = usize::try_from(faults - life.faults).unwrap_or(usize::MAX);
        if batch.run.len() <= room && !is_event(batch) {
            return life.left.pop_front();
        }
        let run: Vec<_> = batch.run.drain(..room.min(batch.run.len())).collect();
        let instructions = batch.instructions.min(run.len() as u64);
        batch.instructions -= instructions;
        (!run.is_empty()).then_some(Batch { run, instructions, then: None })
    }
}

fn is_event(batch: &Batch) -> bool {
    batch.then.as_ref().and_then(Life::of).is_some()
}
