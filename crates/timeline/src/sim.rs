//! The simulation: events in the order of time, and in the order in which they were made where times are equal.

use core::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crate::account::{Timeline, VmAccount};
use crate::lock::MmuLock;
use crate::step::{Program, Setup, Step, Work};
use crate::vcpu::{Doing, Interrupt, Vcpu};

/// Something that will happen.
#[derive(Debug)]
enum Event {
    /// A vCPU has done what it did, unless it was interrupted (its epoch has moved on).
    Ends { vcpu: usize, epoch: u64 },
    /// An interrupt reaches a vCPU.
    Arrives { vcpu: usize, interrupt: Interrupt },
    /// A kick reaches a vCPU.
    Kicks { vcpu: usize },
    /// The time slice of a physical CPU is over, unless another has begun.
    SliceEnds { cpu: usize, slice: u64 },
    /// A physical CPU has switched to a vCPU.
    Switched { vcpu: usize },
    /// A physical CPU begins.
    Begins { cpu: usize },
}

/// An event with its place in the order: time, then number. Compared by both alone.
struct Due(u64, u64, Event);

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// A physical CPU.
#[derive(Default)]
struct Cpu {
    /// Who waits for it, in turn.
    queue: VecDeque<usize>,
    /// The number of the current slice.
    slice: u64,
    /// Whether it is over.
    over: bool,
}

struct Sim<'a> {
    setup: &'a Setup,
    vcpus: Vec<Vcpu>,
    cpus: Vec<Cpu>,
    locks: Vec<MmuLock>,
    events: BinaryHeap<Reverse<Due>>,
    made: u64,
    now: u64,
    /// vCPUs that go on to their next step.
    ready: VecDeque<usize>,
    buffer: Vec<Step>,
}

/// Executes the programs of all vCPUs of `setup` to their ends.
pub fn run(setup: &Setup, program: &mut impl Program) -> Timeline {
    let mut sim = Sim::new(setup);
    sim.start();
    sim.settle(program);
    while let Some(Reverse(Due(time, _, event))) = sim.events.pop() {
        sim.now = time;
        sim.happen(event, program);
        sim.settle(program);
    }
    sim.finish()
}

impl<'a> Sim<'a> {
    fn new(setup: &'a Setup) -> Self {
        let vcpus: Vec<_> = setup.vm_of.iter().zip(&setup.cpu_of).map(|(vm, cpu)| Vcpu::new(*vm, *cpu)).collect();
        let most = |of: &[usize]| of.iter().max().map_or(0, |most| most + 1);
        let mut cpus: Vec<Cpu> = (0..most(&setup.cpu_of)).map(|_| Cpu::default()).collect();
        for (i, vcpu) in vcpus.iter().enumerate() {
            cpus[vcpu.cpu].queue.push_back(i);
        }
        let locks = (0..most(&setup.vm_of)).map(|_| MmuLock::default()).collect();
        let (events, ready) = (BinaryHeap::new(), VecDeque::new());
        Self { setup, vcpus, cpus, locks, events, made: 0, now: 0, ready, buffer: Vec::new() }
    }

    fn start(&mut self) {
        for cpu in 0..self.cpus.len() {
            match self.setup.begin.get(cpu).copied() {
                None | Some(0) => self.begins(cpu),
                Some(begin) => {
                    self.cpus[cpu].queue.iter().for_each(|vcpu| self.vcpus[*vcpu].doing = Doing::Done);
                    self.at(begin, Event::Begins { cpu });
                }
            }
        }
    }

    /// A physical CPU begins with its vCPUs.
    fn begins(&mut self, cpu: usize) {
        for vcpu in &self.cpus[cpu].queue {
            let vcpu = &mut self.vcpus[*vcpu];
            (vcpu.doing, vcpu.since, vcpu.account.begin) = (Doing::Off, self.now, self.now);
        }
        if let Some(first) = self.cpus[cpu].queue.pop_front() {
            self.run_on(cpu, first);
        }
    }

    fn at(&mut self, time: u64, event: Event) {
        self.made += 1;
        self.events.push(Reverse(Due(time, self.made, event)));
    }

    /// All vCPUs that can go on do, until each does something that takes time or waits.
    fn settle(&mut self, program: &mut impl Program) {
        while let Some(vcpu) = self.ready.pop_front() {
            self.advance(vcpu, program);
        }
    }

    fn happen(&mut self, event: Event, program: &mut impl Program) {
        match event {
            Event::Ends { vcpu, epoch } if self.vcpus[vcpu].epoch == epoch => self.ends(vcpu),
            Event::Ends { .. } => {}
            Event::Arrives { vcpu, interrupt } => self.arrives(vcpu, interrupt),
            Event::Kicks { vcpu } => {
                if self.vcpus[vcpu].in_guest() {
                    self.vcpus[vcpu].suspend(self.now);
                    self.vcpus[vcpu].account.kicks += 1;
                    self.takes(vcpu, Doing::Kicked, self.setup.latencies.kicked);
                }
            }
            Event::SliceEnds { cpu, slice } => self.slice_ends(cpu, slice),
            Event::Begins { cpu } => self.begins(cpu),
            Event::Switched { vcpu } => {
                self.vcpus[vcpu].account.world_switches += 1;
                program.world_switch(vcpu, self.now);
                self.run_on(self.vcpus[vcpu].cpu, vcpu);
            }
        }
    }

    /// A vCPU begins something that takes so long.
    fn takes(&mut self, vcpu: usize, doing: Doing, cycles: u64) {
        self.vcpus[vcpu].begin(doing, self.now);
        let (epoch, until) = (self.vcpus[vcpu].epoch, self.now.saturating_add(cycles));
        self.at(until, Event::Ends { vcpu, epoch });
    }

    fn ends(&mut self, vcpu: usize) {
        match &mut self.vcpus[vcpu].doing {
            Doing::Held(kick) => {
                let kick = core::mem::take(kick);
                self.held(vcpu, kick);
            }
            Doing::KickWait => self.release(vcpu),
            Doing::Handover(cycles, kick) => {
                let (cycles, kick) = (*cycles, core::mem::take(kick));
                self.takes(vcpu, Doing::Held(kick), cycles);
            }
            _ => self.go_on(vcpu),
        }
    }

    fn go_on(&mut self, vcpu: usize) {
        self.vcpus[vcpu].begin(Doing::Off, self.now);
        self.ready.push_back(vcpu);
    }

    /// The work under the lock is done; the kicks are sent, or the lock is given back.
    fn held(&mut self, vcpu: usize, kick: Vec<usize>) {
        let arrival = self.now.saturating_add(self.setup.latencies.interrupt);
        let mut sent = false;
        for target in kick {
            if target != vcpu && self.vcpus.get(target).is_some_and(Vcpu::in_guest) {
                self.at(arrival, Event::Kicks { vcpu: target });
                sent = true;
            }
        }
        if sent { self.takes(vcpu, Doing::KickWait, self.setup.latencies.interrupt) } else { self.release(vcpu) }
    }

    fn release(&mut self, vcpu: usize) {
        let mut granted = Vec::new();
        self.locks[self.vcpus[vcpu].vm].release(self.now, &mut granted);
        self.go_on(vcpu);
        for next in granted {
            if let Doing::WaitLock(_, cycles, kick) = &mut self.vcpus[next].doing {
                let (cycles, kick) = (*cycles, core::mem::take(kick));
                match self.setup.latencies.handover {
                    0 => self.takes(next, Doing::Held(kick), cycles),
                    handover => self.takes(next, Doing::Handover(cycles, kick), handover),
                }
            }
        }
    }

    fn arrives(&mut self, vcpu: usize, interrupt: Interrupt) {
        if self.vcpus[vcpu].doing == Doing::Done {
            self.acknowledge(interrupt.from);
            return;
        }
        self.vcpus[vcpu].pending.push_back(interrupt);
        if self.vcpus[vcpu].in_guest() && self.vcpus[vcpu].handler.is_none() {
            self.vcpus[vcpu].suspend(self.now);
            self.ready.push_back(vcpu);
        }
    }

    fn acknowledge(&mut self, sender: usize) {
        let vcpu = &mut self.vcpus[sender];
        vcpu.acks_left -= 1;
        if vcpu.acks_left == 0 && vcpu.doing == Doing::WaitAcks {
            self.go_on(sender);
        }
    }

    /// Sends a shootdown.
    fn shoot_down(&mut self, vcpu: usize, targets: Vec<(usize, Vec<Work>)>) {
        self.vcpus[vcpu].account.shootdowns += 1;
        let arrival = self.now.saturating_add(self.setup.latencies.interrupt);
        for (target, work) in targets {
            if target != vcpu && self.vcpus.get(target).is_some_and(|target| target.doing != Doing::Done) {
                self.vcpus[vcpu].acks_left += 1;
                self.at(
                    arrival,
                    Event::Arrives { vcpu: target, interrupt: Interrupt { from: vcpu, work: work.into() } },
                );
            }
        }
    }

    /// A vCPU goes on to whatever is next.
    fn advance(&mut self, vcpu: usize, program: &mut impl Program) {
        loop {
            let this = &mut self.vcpus[vcpu];
            // It may have lost its physical CPU or begun something since it was found ready.
            if !this.runs || this.doing != Doing::Off {
                return;
            }
            if this.is_open() {
                if let Some(interrupt) = this.pending.pop_front() {
                    this.account.served += 1;
                    this.handler = Some(interrupt);
                } else if self.cpus[this.cpu].over && self.give_way(vcpu) {
                    return;
                }
            }
            let this = &mut self.vcpus[vcpu];
            if this.waits && this.handler.is_none() {
                if this.acks_left > 0 {
                    this.begin(Doing::WaitAcks, self.now);
                    return;
                }
                this.waits = false;
            }
            match this.next() {
                Some(Step::Work(work)) => self.work(vcpu, work),
                Some(Step::Shootdown(targets)) => {
                    self.shoot_down(vcpu, targets);
                    self.vcpus[vcpu].waits = true;
                }
                Some(Step::Interrupt(targets)) => self.shoot_down(vcpu, targets),
                Some(Step::Await) => this.waits = true,
                None => {
                    if let Some(served) = self.vcpus[vcpu].handler.take() {
                        self.acknowledge(served.from);
                    } else if !self.ask(vcpu, program) {
                        self.leave(vcpu);
                        return;
                    }
                }
            }
        }
    }

    fn work(&mut self, vcpu: usize, work: Work) {
        match work {
            Work::Guest(0) | Work::Host(0) => {}
            Work::Guest(cycles) => self.takes(vcpu, Doing::Guest(self.now.saturating_add(cycles)), cycles),
            Work::Host(cycles) => self.takes(vcpu, Doing::Host, cycles),
            Work::Locked { mode, cycles, kick } => {
                if self.locks[self.vcpus[vcpu].vm].acquire(vcpu, mode, self.now) {
                    self.takes(vcpu, Doing::Held(kick), cycles);
                } else {
                    self.vcpus[vcpu].begin(Doing::WaitLock(mode, cycles, kick), self.now);
                }
            }
        }
    }

    /// Asks the program for the next steps; false where there are none.
    fn ask(&mut self, vcpu: usize, program: &mut impl Program) -> bool {
        let more = program.next(vcpu, self.now, &mut self.buffer);
        if more {
            self.vcpus[vcpu].steps.extend(self.buffer.drain(..));
        }
        self.buffer.clear();
        more
    }

    /// The program of a vCPU has ended.
    fn leave(&mut self, vcpu: usize) {
        let this = &mut self.vcpus[vcpu];
        this.begin(Doing::Done, self.now);
        this.account.end = self.now;
        this.runs = false;
        let (cpu, pending) = (this.cpu, core::mem::take(&mut this.pending));
        for interrupt in pending {
            self.acknowledge(interrupt.from);
        }
        self.switch(cpu);
    }

    /// A vCPU gets its physical CPU.
    fn run_on(&mut self, cpu: usize, vcpu: usize) {
        self.vcpus[vcpu].charge(self.now);
        self.vcpus[vcpu].runs = true;
        self.ready.push_back(vcpu);
        self.begin_slice(cpu);
    }

    fn begin_slice(&mut self, cpu: usize) {
        self.cpus[cpu].over = false;
        self.cpus[cpu].slice += 1;
        if !self.cpus[cpu].queue.is_empty() {
            let (slice, end) = (self.cpus[cpu].slice, self.now.saturating_add(self.setup.slice.0.max(1)));
            self.at(end, Event::SliceEnds { cpu, slice });
        }
    }

    fn slice_ends(&mut self, cpu: usize, slice: u64) {
        if self.cpus[cpu].slice != slice {
            return;
        }
        self.cpus[cpu].over = true;
        let current = self.vcpus.iter().position(|vcpu| vcpu.cpu == cpu && vcpu.in_guest() && vcpu.handler.is_none());
        if let Some(current) = current {
            self.vcpus[current].suspend(self.now);
            self.ready.push_back(current);
        }
    }

    /// A vCPU whose slice is over gives its physical CPU to the next; false where nobody waits for it.
    fn give_way(&mut self, vcpu: usize) -> bool {
        let cpu = self.vcpus[vcpu].cpu;
        if self.cpus[cpu].queue.is_empty() {
            self.cpus[cpu].over = false;
            return false;
        }
        self.vcpus[vcpu].begin(Doing::Off, self.now);
        self.vcpus[vcpu].runs = false;
        self.cpus[cpu].queue.push_back(vcpu);
        self.switch(cpu);
        true
    }

    /// A physical CPU switches to whoever is next.
    fn switch(&mut self, cpu: usize) {
        self.cpus[cpu].slice += 1;
        if let Some(next) = self.cpus[cpu].queue.pop_front() {
            let time = self.now.saturating_add(self.setup.latencies.world_switch);
            self.at(time, Event::Switched { vcpu: next });
        }
    }

    fn finish(self) -> Timeline {
        let vcpus: Vec<_> = self.vcpus.into_iter().map(|vcpu| vcpu.account).collect();
        let end = vcpus.iter().map(|account| account.end).max().unwrap_or(0);
        Timeline { end, vcpus, vms: self.locks.into_iter().map(|lock| VmAccount { lock: lock.account }).collect() }
    }
}
