//! Runs a script: a flat program with a counter, made once from the nested steps.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use memvirt_addr::{AccessKind, Gva};
use memvirt_ops::process::{Backing, Batch, FileId, Op, ProcessId, Prot, Range, Sharing, Transfer};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::draw::{self, WriteShare};
use super::reach::{Reach, Target};
use crate::program::{self, Action, Program};
use crate::script::{AreaKind, Direction, Fork, Loop, Order, Permission, Script, Step, Workers};

/// One instruction of the flat program.
#[derive(Clone, Debug)]
enum Code {
    Do(Op),
    /// The same operation several times.
    Repeat(Op, u64),
    Compute(u64),
    Touch(Target),
    Run(&'static Program),
    /// A child comes into being.
    Child(Birth),
    /// The last child that came into being runs, its parent waits.
    Enter,
    /// The child ends, its parent runs.
    EndChild,
    /// The worker waits, its parent runs.
    EndWorker,
    Turn(Order),
    First,
    Loop(u64),
    /// The end of the loop that begins after this instruction.
    EndLoop(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Birth {
    Fork,
    Vfork,
    Worker,
}

#[derive(Clone, Debug)]
pub(super) struct Run {
    code: Arc<[Code]>,
    at: usize,
    /// Rounds left of each loop that is open.
    loops: Vec<u64>,
    /// Parents that wait for the current process.
    waiting: Vec<ProcessId>,
    /// Children that have not run yet.
    born: Vec<ProcessId>,
    current: ProcessId,
    next_process: u32,
    workers: Vec<ProcessId>,
    turn: usize,
    /// What the current instruction has left to do.
    queue: VecDeque<Op>,
    /// How far the touch or program at hand is.
    done: u64,
    reach: Reach,
    instructions_per_access: u64,
    rng: ChaCha8Rng,
}

impl Run {
    pub(super) fn new(script: &Script, mut rng: ChaCha8Rng) -> Self {
        let mut compiler = Compiler { script, layout: script.layout(), code: Vec::new() };
        compiler.steps(&script.setup);
        compiler.repeat(script.iterations.get(), &script.body, &[], &[]);
        let code: Arc<[Code]> = compiler.code.into();
        let targets = code.iter().filter_map(|code| if let Code::Touch(target) = code { Some(target) } else { None });
        let reach = Reach::new(targets, &mut rng);
        Self {
            code,
            at: 0,
            loops: Vec::new(),
            waiting: Vec::new(),
            born: Vec::new(),
            current: ProcessId::FIRST,
            next_process: 1,
            workers: Vec::new(),
            turn: 0,
            queue: VecDeque::new(),
            done: 0,
            reach,
            instructions_per_access: script.instructions_per_access.get().into(),
            rng,
        }
    }

    /// Fills the batch up to its next operation; leaves it empty at the end.
    pub(super) fn fill(&mut self, batch: &mut Batch) {
        while batch.then.is_none() && batch.run.len() < Batch::CAPACITY {
            if let Some(op) = self.queue.pop_front() {
                batch.then = Some(op);
                return;
            }
            let code = Arc::clone(&self.code);
            let Some(code) = code.get(self.at) else { return };
            self.step(code, batch);
        }
    }

    fn step(&mut self, code: &Code, batch: &mut Batch) {
        match code {
            Code::Touch(target) => return self.touch(target, batch),
            Code::Run(program) => return self.run(program, batch),
            Code::Repeat(op, times) => return self.repeat(*op, *times, batch),
            Code::Do(op) => batch.then = Some(*op),
            Code::Compute(instructions) => batch.instructions += instructions,
            Code::Child(birth) => self.bear(*birth),
            Code::Enter => {
                if let Some(child) = self.born.pop() {
                    self.waiting.push(self.current);
                    self.switch(child);
                }
            }
            Code::EndChild => {
                self.queue.push_back(Op::Exit);
                self.back();
            }
            Code::EndWorker => self.back(),
            Code::Turn(order) => self.turn(*order),
            Code::First => self.switch(ProcessId::FIRST),
            Code::Loop(times) => self.loops.push(*times),
            Code::EndLoop(start) => {
                let left = self.loops.last_mut().map_or(0, |left| {
                    *left -= 1;
                    *left
                });
                if left > 0 {
                    self.at = *start;
                } else {
                    self.loops.pop();
                }
            }
        }
        self.at += 1;
    }

    fn touch(&mut self, target: &Target, batch: &mut Batch) {
        let room = (Batch::CAPACITY - batch.run.len()) as u64;
        let count = room.min(target.count - self.done);
        self.reach.extend(target, self.done, count, &mut self.rng, &mut batch.run);
        batch.instructions += count * self.instructions_per_access;
        self.advance(count, target.count);
    }

    /// Does the next actions of a program up to its next operation.
    fn run(&mut self, program: &Program, batch: &mut Batch) {
        let actions = program.actions();
        let left = actions.iter().skip(usize::try_from(self.done).unwrap_or(usize::MAX));
        for action in left {
            self.done += 1;
            match action {
                Action::Touch(address, kind) => {
                    batch.run.push(draw::user(*address, *kind));
                    batch.instructions += self.instructions_per_access;
                }
                Action::Do(op) => {
                    batch.then = Some(*op);
                    break;
                }
            }
        }
        self.advance(0, actions.len() as u64);
    }

    fn repeat(&mut self, op: Op, times: u64, batch: &mut Batch) {
        batch.then = Some(op);
        self.advance(1, times);
    }

    fn advance(&mut self, count: u64, of: u64) {
        self.done += count;
        if self.done >= of {
            self.done = 0;
            self.at += 1;
        }
    }

    fn bear(&mut self, birth: Birth) {
        let child = ProcessId(self.next_process);
        self.next_process = self.next_process.saturating_add(1);
        self.queue.push_back(if birth == Birth::Vfork { Op::Vfork { child } } else { Op::Fork { child } });
        if birth == Birth::Worker {
            self.workers.push(child);
        }
        self.born.push(child);
    }

    fn back(&mut self) {
        if let Some(parent) = self.waiting.pop() {
            self.switch(parent);
        }
    }

    fn turn(&mut self, order: Order) {
        if self.workers.is_empty() {
            return;
        }
        let next = match order {
            Order::Next => (self.turn + 1) % self.workers.len(),
            Order::Random => {
                usize::try_from(draw::split(self.rng.next_u64(), self.workers.len() as u64).0).unwrap_or(0)
            }
        };
        self.turn = next;
        self.switch(self.workers[next]);
    }

    fn switch(&mut self, to: ProcessId) {
        if to != self.current {
            self.queue.push_back(Op::Switch { to });
            self.current = to;
        }
    }
}

struct Compiler<'s> {
    script: &'s Script,
    layout: BTreeMap<&'s str, u64>,
    code: Vec<Code>,
}

impl<'s> Compiler<'s> {
    fn steps(&mut self, steps: &'s [Step]) {
        for step in steps {
            self.step(step);
        }
    }

    fn step(&mut self, step: &'s Step) {
        match step {
            Step::Map(area) => self.operation(self.map(area)),
            Step::Unmap(area) => self.operation(Op::Munmap { range: self.range(area, None) }),
            Step::Discard(area) => self.operation(Op::Discard { range: self.range(area, None) }),
            Step::Protect(protect) => {
                let range = self.range(&protect.area, protect.pages.map(crate::units::Count::get));
                let prot = match protect.to {
                    Permission::None => Prot::NONE,
                    Permission::Read => Prot::R,
                    Permission::Write => Prot::RW,
                };
                self.operation(Op::Mprotect { range, prot });
            }
            Step::Touch(touch) => {
                let range = self.range(&touch.area, touch.pages.map(crate::units::Count::get));
                self.code.push(Code::Touch(Target {
                    start: range.start.as_u64(),
                    bytes: range.bytes,
                    count: touch.count.get(),
                    pattern: touch.pattern,
                    write_share: touch.write_share,
                    writes: WriteShare::new(touch.write_share),
                    read: if touch.fetch { AccessKind::Fetch } else { AccessKind::Read },
                }));
            }
            Step::Call(call) => self.code.push(Code::Repeat(Op::Syscall { number: call.number }, call.times.get())),
            Step::Copy(copy) => {
                let transfer = match copy.to {
                    Direction::User => Transfer::ToUser,
                    Direction::Kernel => Transfer::FromUser,
                };
                let range = Range { start: self.range(&copy.area, None).start, bytes: copy.bytes.get() };
                self.operation(Op::Copy { number: copy.number, transfer, range });
            }
            Step::Compute(instructions) => self.code.push(Code::Compute(instructions.get())),
            Step::Run(name) => self.code.extend(program::find(name).map(Code::Run)),
            Step::Fork(Fork { child, parent }) => self.child(Birth::Fork, parent, child),
            Step::Vfork(body) => self.child(Birth::Vfork, &[], body),
            Step::Workers(Workers { count, body }) => {
                self.repeat(count.get(), body, &[Code::Child(Birth::Worker), Code::Enter], &[Code::EndWorker]);
            }
            Step::Turn(order) => self.code.push(Code::Turn(*order)),
            Step::First => self.code.push(Code::First),
            Step::Loop(Loop { times, body }) => self.repeat(times.get(), body, &[], &[]),
            Step::Trap(traps) => {
                let times = u32::try_from(traps.times.get()).unwrap_or(u32::MAX);
                self.operation(Op::Trap { trap: traps.what.trap(), times });
            }
            Step::Interrupt(times) => self.code.push(Code::Repeat(Op::Interrupt, times.get())),
        }
    }

    fn operation(&mut self, op: Op) {
        self.code.push(Code::Do(op));
    }

    fn child(&mut self, birth: Birth, parent: &'s [Step], child: &'s [Step]) {
        self.code.push(Code::Child(birth));
        self.steps(parent);
        self.code.push(Code::Enter);
        self.steps(child);
        self.code.push(Code::EndChild);
    }

    /// A loop, with what comes before and after the body in each round.
    fn repeat(&mut self, times: u64, body: &'s [Step], before: &[Code], after: &[Code]) {
        let start = self.code.len();
        self.code.push(Code::Loop(times));
        self.code.extend_from_slice(before);
        self.steps(body);
        self.code.extend_from_slice(after);
        self.code.push(Code::EndLoop(start));
    }

    fn range(&self, area: &str, pages: Option<u64>) -> Range {
        let start = self.layout.get(area).copied().unwrap_or_default();
        let whole = self.script.areas.get(area).map_or(0, |area| area.size.bytes());
        Range { start: Gva::new_truncate(start), bytes: pages.map_or(whole, |pages| pages << 12) }
    }

    fn map(&self, name: &str) -> Op {
        let range = self.range(name, None);
        let (kind, file) = self.script.areas.get(name).map_or((AreaKind::Anonymous, 0), |area| (area.of, area.file));
        let file = |prot, sharing| Op::MapFile { range, prot, sharing, file: FileId(file), first_page: 0 };
        match kind {
            AreaKind::Anonymous => Op::Mmap { range, prot: Prot::RW, backing: Backing::AnonymousPrivate },
            AreaKind::Shared => Op::Mmap { range, prot: Prot::RW, backing: Backing::AnonymousShared },
            AreaKind::Text => file(Prot::RX, Sharing::Private),
            AreaKind::File => file(Prot::RW, Sharing::Private),
            AreaKind::FileShared => file(Prot::RW, Sharing::Shared),
        }
    }
}
