//! The simulation: guests, their platform and the streams of all vCPUs, driven by simulated time.

use memvirt_guest::{Guest, GuestStats, Halted, Target};
use memvirt_machine::{
    Bench, MachineError, MachineSpec, Outcome, Setup, Shape, assemble, translation_cycles, work_cycles,
};
use memvirt_ops::process::{Batch, Op, ProcessId, Source};
use memvirt_ops::{VcpuId, VmId};
use memvirt_platform::{Counters, Exit, ExitReason, Ledger, Platform};
use memvirt_timeline::{Latencies, Program, Slice, Step, Timeline, Work, run as run_timeline};

use crate::recorder::{Recorder, Segment};
use crate::result::{Finished, Run, merge};
use crate::steps::{Base, Steps, kernel_cycles};
use crate::times::Part;

/// When time begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// When the guests have booted and made the first processes: nobody waits for that.
    #[default]
    Booted,
    /// Before: each guest's first vCPU does it, as in a run of one vCPU.
    Cold,
}

/// What several vCPUs depend on beside what one does.
#[derive(Clone, Debug)]
pub struct Smp {
    /// Regime, guest, host, prices, and how it is measured. The mode is `counts`; a warm-up is so many accesses of each vCPU, done
    /// in turn before time begins.
    pub setup: Setup,
    /// How many virtual machines, vCPUs and physical CPUs.
    pub shape: Shape,
    /// Fixed times.
    pub latencies: Latencies,
    /// How long a vCPU runs where several share a physical CPU.
    pub slice: Slice,
    /// When time begins.
    pub start: Start,
    /// For each physical CPU, the time at which it begins with its vCPUs; 0 where nothing is said.
    pub begin: Vec<u64>,
}

/// What runs on a vCPU.
#[derive(Clone, Debug)]
pub struct Load<S> {
    /// What it does.
    pub source: S,
    /// The processes that are made for it at the start, the first of them current; [`ProcessId::FIRST`] is there already. None
    /// where it is a thread of that process.
    pub processes: Vec<ProcessId>,
}

/// Runs `loads`, one for each vCPU in their order, to their ends.
///
/// # Errors
///
/// [`MachineError`] where the machine cannot be built.
///
/// # Panics
///
/// Where there are not as many loads as vCPUs.
pub fn run<S: Source>(smp: &Smp, loads: Vec<Load<S>>) -> Result<Finished<S::Error>, MachineError> {
    let vm_of = smp.shape.vm_of();
    assert_eq!(loads.len(), vm_of.len(), "one load for each vCPU");
    let setup = &Setup { guest: smp.setup.regime.asks_of(smp.setup.guest), ..smp.setup.clone() };
    let Some(mut bench) = assemble(setup, smp.shape)? else {
        let run = Run { outcome: Outcome::HostOutOfMemory, ..Run::default() };
        return Ok(Finished { run, input_error: None, violations: Vec::new() });
    };
    let mut driver = Driver::new(setup, bench.platform(), smp.shape, loads);
    let measure = setup.measure;
    if let Err(halted) = driver.boot(setup, smp.start).and_then(|()| driver.warm_up(measure.warm_up_accesses)) {
        driver.outcome = halted.into();
    }
    let timeline_setup = memvirt_timeline::Setup {
        vm_of: vm_of.iter().map(|vm| vm.index()).collect(),
        cpu_of: (0..vm_of.len()).map(|vcpu| vcpu % smp.shape.cpus.max(1)).collect(),
        begin: smp.begin.clone(),
        latencies: smp.latencies,
        slice: smp.slice,
    };
    let timeline = run_timeline(&timeline_setup, &mut driver);
    let (mut run, input_error) = driver.finish(timeline);
    let violations = check(&mut bench, &mut run);
    Ok(Finished { run, input_error, violations })
}

fn check(bench: &mut Bench, run: &mut Run) -> Vec<String> {
    let tables = bench.platform().table_bytes();
    run.tables = tables;
    let Some((tally, violations)) = bench.tally() else { return Vec::new() };
    (run.broken, run.allowed) = (Some(tally.violations()), tally.allowed);
    violations
}

/// One vCPU.
struct Runner<S> {
    source: S,
    processes: Vec<ProcessId>,
    vm: usize,
    /// Its number within its guest.
    cpu: usize,
    /// Steps of the boot.
    before: Vec<Step>,
    /// What its guest had counted on it when it was last paid for.
    paid: GuestStats,
    /// Instructions of processes, and what was paid for them.
    instructions: (u64, u64),
    /// Cycles since it gave the lock back.
    think: u64,
}

struct Driver<'a, S: Source> {
    spec: &'a MachineSpec,
    /// Whether anonymous memory is there as soon as it is mapped.
    prefault: bool,
    platform: &'a mut dyn Platform,
    guests: Vec<Guest>,
    vcpus: Vec<Runner<S>>,
    ledger: Ledger,
    log: Vec<Segment>,
    batch: Batch,
    outcome: Outcome,
    input_error: Option<S::Error>,
    /// Everything that is counted besides the ledger.
    run: Run,
}

/// How far counters had come.
#[derive(Clone, Copy)]
struct Mark {
    exits: [u64; ExitReason::COUNT],
    translation: u64,
    work: u64,
}

impl<'a, S: Source> Driver<'a, S> {
    fn new(setup: &'a Setup, platform: &'a mut dyn Platform, shape: Shape, loads: Vec<Load<S>>) -> Self {
        let each = usize::from(shape.vcpus).max(1);
        let runner = |(i, load): (usize, Load<S>)| Runner {
            source: load.source,
            processes: load.processes,
            vm: i / each,
            cpu: i % each,
            before: Vec::new(),
            paid: GuestStats::default(),
            instructions: (0, 0),
            think: 0,
        };
        Self {
            spec: &setup.machine,
            prefault: setup.measure.prefault,
            platform,
            guests: Vec::new(),
            vcpus: loads.into_iter().enumerate().map(runner).collect(),
            ledger: Ledger::listing(),
            log: Vec::new(),
            batch: Batch::default(),
            outcome: Outcome::Completed,
            input_error: None,
            run: Run::default(),
        }
    }

    /// Boots every guest, and makes the first processes.
    fn boot(&mut self, setup: &Setup, start: Start) -> Result<(), Halted> {
        let vms = self.vcpus.last().map_or(0, |last| last.vm + 1);
        for vm in 0..vms {
            let mine = (0u16..).zip(&self.vcpus).filter(|(_, vcpu)| vcpu.vm == vm).map(|(i, _)| VcpuId(i));
            let ids: Vec<VcpuId> = mine.collect();
            let before = self.mark();
            let id = VmId(u16::try_from(vm).unwrap_or(u16::MAX));
            let guest = Guest::boot_on(setup.guest, id, &ids, self.platform, &mut self.ledger)?;
            self.guests.push(guest);
            self.begin_with(ids[0].index(), &before);
        }
        for i in 0..self.vcpus.len() {
            let before = self.mark();
            let (vm, cpu) = (self.vcpus[i].vm, self.vcpus[i].cpu);
            let processes = std::mem::take(&mut self.vcpus[i].processes);
            let guest = &mut self.guests[vm];
            for id in processes.iter().rev().filter(|id| **id != ProcessId::FIRST) {
                guest.spawn_on(cpu, *id, self.platform, &mut self.ledger)?;
            }
            guest.share_on(cpu, processes.first().copied().unwrap_or_default(), self.platform, &mut self.ledger)?;
            self.begin_with(i, &before);
        }
        if start == Start::Booted {
            self.forget();
        }
        Ok(())
    }

    /// Lets every vCPU do its first batches, one in turn, until each has made so many accesses; then time begins.
    fn warm_up(&mut self, accesses: u64) -> Result<(), Halted> {
        if accesses == 0 {
            return Ok(());
        }
        let mut steps = Vec::new();
        let mut warm = false;
        while !std::mem::replace(&mut warm, true) {
            for i in 0..self.vcpus.len() {
                if self.guests[self.vcpus[i].vm].stats_on(self.vcpus[i].cpu).user_accesses >= accesses {
                    continue;
                }
                warm = false;
                match self.vcpus[i].source.next_batch(&mut self.batch) {
                    Ok(true) => self.execute(i, &mut steps)?,
                    Ok(false) => self.outcome = Outcome::WarmUpOnly,
                    Err(error) => (self.input_error, self.outcome) = (Some(error), Outcome::InputError),
                }
                if self.outcome != Outcome::Completed {
                    return Ok(());
                }
                steps.clear();
            }
        }
        self.forget();
        Ok(())
    }

    /// What vCPU `i` has done since `before` is what it begins with.
    fn begin_with(&mut self, i: usize, before: &Mark) {
        let cycles = self.paid_since(i, before);
        let exits = self.ledger.exits.as_mut().map(std::mem::take).unwrap_or_default();
        let mut steps = std::mem::take(&mut self.vcpus[i].before);
        let mut making = self.steps(&mut steps);
        let works = making.handler(cycles.base.process + cycles.base.kernel + cycles.translation, &exits);
        steps.extend(works.into_iter().map(Step::from));
        self.vcpus[i].before = steps;
    }

    /// Time begins now.
    fn forget(&mut self) {
        (self.ledger.counters, self.run) = (Counters::default(), Run::default());
        self.guests.iter_mut().for_each(Guest::restart_stats);
        for vcpu in &mut self.vcpus {
            vcpu.before.clear();
            (vcpu.paid, vcpu.instructions, vcpu.think) = (GuestStats::default(), (0, 0), 0);
        }
    }

    fn steps<'s>(&'s mut self, out: &'s mut Vec<Step>) -> Steps<'s> {
        let (spec, vcpus, demand) = (self.spec, self.vcpus.len(), &mut self.run.demand);
        Steps { spec, vcpus, out, demand, guest: 0 }
    }

    fn mark(&self) -> Mark {
        let counters = &self.ledger.counters;
        let (translation, work) = (translation_cycles(self.spec, counters), work_cycles(self.spec, &counters.work));
        Mark { exits: counters.exits, translation, work }
    }

    /// What vCPU `i` did in guest mode since it was last paid for; `before` is from the same time.
    fn paid_since(&mut self, i: usize, before: &Mark) -> Paid {
        let vcpu = &mut self.vcpus[i];
        let now = self.guests[vcpu.vm].stats_on(vcpu.cpu);
        let stats = now - vcpu.paid;
        vcpu.paid = now;
        let mut exits = self.ledger.counters.exits;
        exits.iter_mut().zip(before.exits).for_each(|(exits, before)| *exits -= before);
        let kernel = kernel_cycles(self.spec, &stats, exits);
        // Instructions have a price by the thousand: fractions of a cycle are carried over.
        vcpu.instructions.0 += stats.instructions;
        let all = self.spec.base.per_1000_instructions.times(vcpu.instructions.0) / 1000;
        let process = all - vcpu.instructions.1;
        vcpu.instructions.1 = all;
        let translation = translation_cycles(self.spec, &self.ledger.counters) - before.translation;
        self.run.base += process + kernel;
        self.run.translation += translation;
        Paid { base: Base { process, kernel }, translation }
    }

    /// Runs the batch on vCPU `i` and appends its steps.
    fn execute(&mut self, i: usize, out: &mut Vec<Step>) -> Result<(), Halted> {
        let (before, begin) = (self.mark(), out.len());
        self.log.clear();
        let (vm, cpu) = (self.vcpus[i].vm, self.vcpus[i].cpu);
        let me = VcpuId(u16::try_from(i).unwrap_or(u16::MAX));
        let made = self.guests[vm].stats_on(cpu).user_accesses;
        let mut recorder = Recorder { inner: self.platform, spec: self.spec, me, log: &mut self.log, sent: false };
        let mut done = self.guests[vm].batch_on(cpu, &self.batch, &mut recorder, &mut self.ledger);
        if let (true, Some(Op::Mmap { range, .. })) = (self.prefault, self.batch.then) {
            done = done.and_then(|()| self.guests[vm].prefault_on(cpu, range, self.platform));
        }
        let accesses = self.guests[vm].stats_on(cpu).user_accesses - made;
        let paid = self.paid_since(i, &before);
        let exits = self.ledger.exits.as_mut().map(std::mem::take).unwrap_or_default();
        let interrupts = self.interrupts(vm);
        let segments = std::mem::take(&mut self.log);
        let mut steps = self.steps(out);
        steps.batch(&segments, &exits, paid.base, interrupts);
        let listed: u64 = exits.iter().map(|exit| work_cycles(self.spec, &exit.work)).sum();
        let beside = work_cycles(self.spec, &self.ledger.counters.work) - before.work - listed;
        if beside > 0 {
            out.push(Work::Host(beside).into());
        }
        self.account(i, &out[begin..], accesses);
        self.log = segments;
        self.give_back(exits);
        done
    }

    /// Looks at how large all tables are.
    fn sample(&mut self) {
        let below = self.platform.table_bytes();
        let guests: u64 = self.guests.iter().map(Guest::table_bytes).sum();
        self.run.peak = self.run.peak.max(guests + below.shadow + below.nested + below.metadata);
    }

    /// Enters what vCPU `i` did itself into the figures for models.
    fn account(&mut self, i: usize, steps: &[Step], accesses: u64) {
        let mut part = Part { accesses, ..Part::default() };
        let think = &mut self.vcpus[i].think;
        for step in steps {
            match step {
                Step::Work(Work::Guest(cycles) | Work::Host(cycles)) => {
                    (part.cycles, *think) = (part.cycles + cycles, *think + cycles)
                }
                Step::Work(Work::Locked { cycles, .. }) => {
                    (part.cycles, part.locked, part.takings) =
                        (part.cycles + cycles, part.locked + cycles, part.takings + 1);
                    self.run.demand.thinks.add(std::mem::take(think));
                }
                Step::Shootdown(_) | Step::Interrupt(_) | Step::Await => {}
            }
        }
        self.run.demand.parts.add(part);
    }

    /// The list's buffer is used again.
    fn give_back(&mut self, mut exits: Vec<Exit>) {
        exits.clear();
        self.ledger.exits = Some(exits);
    }

    /// What the vCPUs do that the batch interrupted, for each interrupt that was sent.
    fn interrupts(&mut self, vm: usize) -> Vec<Vec<(usize, Vec<Work>)>> {
        let sent = self.guests[vm].take_shootdowns();
        let mut all = Vec::with_capacity(sent.len());
        for shootdown in sent {
            let mut targets = Vec::with_capacity(shootdown.targets.len());
            for Target { vcpu, ledger, stats, .. } in shootdown.targets {
                let counters = ledger.counters;
                let translation = translation_cycles(self.spec, &counters);
                let kernel = kernel_cycles(self.spec, &stats, counters.exits);
                self.vcpus[vcpu.index()].paid += stats;
                self.run.base += kernel;
                self.run.translation += translation;
                merge(&mut self.run.counters, &counters);
                let exits = ledger.exits.unwrap_or_default();
                let works = self.steps(&mut Vec::new()).handler(kernel + translation, &exits);
                targets.push((vcpu.index(), works));
            }
            self.run.shootdowns += 1;
            self.run.interrupted += targets.len() as u64;
            all.push(targets);
        }
        all
    }

    fn finish(mut self, timeline: Timeline) -> (Run, Option<S::Error>) {
        merge(&mut self.run.counters, &self.ledger.counters);
        let mut guest = GuestStats::default();
        self.guests.iter().for_each(|one| guest += one.stats());
        let guest_tables = self.guests.iter().map(Guest::table_bytes).sum();
        (Run { guest, guest_tables, outcome: self.outcome, timeline, ..self.run }, self.input_error)
    }
}

/// What guest mode cost.
struct Paid {
    base: Base,
    translation: u64,
}

impl<S: Source> Program for Driver<'_, S> {
    fn next(&mut self, vcpu: usize, _now: u64, steps: &mut Vec<Step>) -> bool {
        if self.outcome != Outcome::Completed {
            return false;
        }
        steps.append(&mut self.vcpus[vcpu].before);
        match self.vcpus[vcpu].source.next_batch(&mut self.batch) {
            Ok(true) => {}
            // Steps of the boot may be left where a stream is empty.
            Ok(false) => return !steps.is_empty(),
            Err(error) => {
                self.input_error = Some(error);
                self.outcome = Outcome::InputError;
                return false;
            }
        }
        let done = self.execute(vcpu, steps);
        self.sample();
        match done {
            Ok(()) => true,
            Err(halted) => {
                self.outcome = halted.into();
                false
            }
        }
    }

    fn world_switch(&mut self, vcpu: usize, _now: u64) {
        let id = VcpuId(u16::try_from(vcpu).unwrap_or(u16::MAX));
        self.platform.world_switch(id, &mut self.ledger);
        if let Some(exits) = &mut self.ledger.exits {
            exits.clear();
        }
    }
}
