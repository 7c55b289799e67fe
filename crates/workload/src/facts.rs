//! What can be said of a workload without running it.

use std::fmt;

use serde::Serialize;

use memvirt_ops::process::Op;

use crate::program::{self, Action, Program};
use crate::script::{Fork, Loop, Script, Step, Workers};
use crate::spec::{Churn, ForkAndExit, Residents, Spec};
use crate::units::Weight;

/// A number of things in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    /// So many, whatever the seed.
    Exact(u64),
    /// So many expected; the seed decides. Displayed with a `~`.
    About(u64),
}

impl Figure {
    /// The number.
    #[must_use]
    pub const fn value(self) -> u64 {
        match self {
            Self::Exact(value) | Self::About(value) => value,
        }
    }

    /// How many of `draws` independent draws fall on something with this weight.
    const fn drawn(draws: u64, weight: Weight, total: u32) -> Self {
        match weight.get() {
            0 => Self::Exact(0),
            all if all == total => Self::Exact(draws),
            // At most 10^12 draws times a weight of 10^6: below 2^64.
            part => Self::About(draws * part as u64 / total as u64),
        }
    }

    const fn times(self, factor: u64) -> Self {
        match self {
            Self::Exact(value) => Self::Exact(value.saturating_mul(factor)),
            Self::About(value) => Self::About(value.saturating_mul(factor)),
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(value) => value.fmt(f),
            Self::About(value) => write!(f, "~{value}"),
        }
    }
}

/// The figures of a workload. All counts are over the whole run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// The generator's kind.
    pub kind: &'static str,
    /// Bytes of all areas that are mapped at the same time, in one process; of `residents`, in all of them.
    pub footprint_bytes: u64,
    /// Memory accesses.
    pub accesses: Figure,
    /// Instructions that the processes execute, accesses included.
    pub instructions: Figure,
    /// Areas mapped. Where a mix unmaps more than it maps, the generator maps more than this to have something to unmap.
    pub mmaps: Figure,
    /// Unmap operations.
    pub munmaps: Figure,
    /// Changes of permissions.
    pub mprotects: Figure,
    /// Children forked.
    pub forks: u64,
    /// Programs executed.
    pub execs: u64,
    /// System calls without effect on memory, those that move data included.
    pub calls: u64,
    /// Switches from one process to another.
    pub switches: u64,
}

impl Facts {
    pub(crate) fn of(spec: &Spec) -> Self {
        let steady = |footprint_bytes, accesses| Self::steady(spec.kind(), footprint_bytes, accesses);
        let facts = match spec {
            Spec::Sequential(s) => steady(s.footprint.bytes(), s.accesses.get()),
            Spec::Uniform(s) => steady(s.footprint.bytes(), s.accesses.get()),
            Spec::Zipf(s) => steady(s.footprint.bytes(), s.accesses.get()),
            Spec::PointerChase(s) => steady(s.footprint.bytes(), s.accesses.get()),
            Spec::TouchAndFree(s) => {
                let times = Figure::Exact(s.iterations.get());
                let steady = steady(s.footprint.bytes(), s.footprint.pages() * s.iterations.get());
                Self { mmaps: times, munmaps: times, ..steady }
            }
            Spec::ForkAndExit(s) => Self::fork(s, spec.kind()),
            Spec::Churn(s) => Self::churn(s, spec.kind()),
            Spec::Residents(s) => Self::residents(s, spec.kind()),
            Spec::Script(s) => return Self::script(s, spec.kind()),
        };
        Self { instructions: facts.accesses.times(u64::from(spec.instructions_per_access().get())), ..facts }
    }

    /// One area, mapped once.
    const fn steady(kind: &'static str, footprint_bytes: u64, accesses: u64) -> Self {
        const NONE: Figure = Figure::Exact(0);
        Self {
            kind,
            footprint_bytes,
            accesses: Figure::Exact(accesses),
            instructions: NONE,
            mmaps: Figure::Exact(1),
            munmaps: NONE,
            mprotects: NONE,
            forks: 0,
            execs: 0,
            calls: 0,
            switches: 0,
        }
    }

    fn fork(s: &ForkAndExit, kind: &'static str) -> Self {
        let forks = s.forks.get();
        let accesses = s.footprint.pages() + forks * (s.child_pages() + s.parent_pages());
        Self { forks, switches: 2 * forks, ..Self::steady(kind, s.footprint.bytes(), accesses) }
    }

    fn residents(s: &Residents, kind: &'static str) -> Self {
        let processes = u64::from(s.processes.get());
        let turns = processes * s.rounds.get();
        let switches = if processes > 1 { turns - 1 } else { 0 };
        let bytes = s.footprint.bytes().saturating_mul(processes);
        let mmaps = Figure::Exact(processes);
        Self { mmaps, forks: processes - 1, switches, ..Self::steady(kind, bytes, turns * s.touched_pages()) }
    }

    fn script(s: &Script, kind: &'static str) -> Self {
        let mut sums = Sums::default();
        sums.steps(&s.setup, 1);
        sums.steps(&s.body, s.iterations.get());
        let per_access = u64::from(s.instructions_per_access.get());
        let exact = Figure::Exact;
        Self {
            kind,
            footprint_bytes: s.areas.values().map(|area| area.size.bytes()).sum(),
            accesses: exact(sums.accesses),
            instructions: exact(sums.accesses.saturating_mul(per_access).saturating_add(sums.instructions)),
            mmaps: exact(sums.mmaps),
            munmaps: exact(sums.munmaps),
            mprotects: exact(sums.mprotects),
            forks: sums.forks,
            execs: sums.execs,
            calls: sums.calls,
            switches: sums.switches,
        }
    }

    /// Accesses of a script's setup.
    pub(crate) fn setup_accesses(s: &Script) -> u64 {
        let mut sums = Sums::default();
        sums.steps(&s.setup, 1);
        sums.accesses
    }

    /// The same with accesses that load memory before the others.
    pub(crate) fn with_loading(self, accesses: u64, spec: &Spec) -> Self {
        let more = |figure, n| match figure {
            Figure::Exact(value) => Figure::Exact(value + n),
            Figure::About(value) => Figure::About(value + n),
        };
        let instructions = accesses.saturating_mul(u64::from(spec.instructions_per_access().get()));
        Self { accesses: more(self.accesses, accesses), instructions: more(self.instructions, instructions), ..self }
    }

    fn churn(s: &Churn, kind: &'static str) -> Self {
        let drawn = |weight| Figure::drawn(s.operations.get(), weight, s.mix.total());
        let areas = u64::from(s.areas.get());
        Self {
            accesses: drawn(s.mix.touch).times(s.touches.get()),
            mmaps: match drawn(s.mix.mmap) {
                Figure::Exact(mmaps) if s.mix.munmap.get() == 0 => Figure::Exact(areas + mmaps),
                mmaps => Figure::About(areas + mmaps.value()),
            },
            munmaps: drawn(s.mix.munmap),
            mprotects: drawn(s.mix.mprotect),
            ..Self::steady(kind, areas * s.area.bytes(), 0)
        }
    }
}

/// What steps add up to. Turns to a worker that runs already are counted as switches too.
#[derive(Default)]
struct Sums {
    accesses: u64,
    instructions: u64,
    mmaps: u64,
    munmaps: u64,
    mprotects: u64,
    forks: u64,
    execs: u64,
    calls: u64,
    switches: u64,
}

impl Sums {
    fn steps(&mut self, steps: &[Step], times: u64) {
        for step in steps {
            self.step(step, times);
        }
    }

    fn step(&mut self, step: &Step, times: u64) {
        match step {
            Step::Map(_) => self.mmaps += times,
            Step::Unmap(_) => self.munmaps += times,
            Step::Protect(_) => self.mprotects += times,
            Step::Touch(touch) => self.accesses += touch.count.get() * times,
            Step::Call(call) => self.calls += call.times.get() * times,
            Step::Copy(_) => self.calls += times,
            Step::Compute(instructions) => {
                self.instructions = self.instructions.saturating_add(instructions.get().saturating_mul(times));
            }
            Step::Run(name) => program::find(name).into_iter().for_each(|program| self.program(program, times)),
            Step::Fork(Fork { child, parent }) => {
                self.forks += times;
                self.switches += 2 * times;
                self.steps(parent, times);
                self.steps(child, times);
            }
            Step::Vfork(body) => {
                self.forks += times;
                self.switches += 2 * times;
                self.steps(body, times);
            }
            Step::Workers(Workers { count, body }) => {
                self.forks += count.get() * times;
                self.switches += 2 * count.get() * times;
                self.steps(body, count.get() * times);
            }
            Step::Loop(Loop { times: rounds, body }) => self.steps(body, rounds.get() * times),
            Step::Turn(_) | Step::First => self.switches += times,
            Step::Discard(_) | Step::Trap(_) | Step::Interrupt(_) => {}
        }
    }

    fn program(&mut self, program: &Program, times: u64) {
        for action in program.actions() {
            match action {
                Action::Touch(..) => self.accesses += times,
                Action::Do(Op::Load { .. }) => self.execs += times,
                Action::Do(Op::Mmap { .. } | Op::MapFile { .. }) => self.mmaps += times,
                Action::Do(Op::Munmap { .. }) => self.munmaps += times,
                Action::Do(Op::Mprotect { .. }) => self.mprotects += times,
                Action::Do(Op::Syscall { .. } | Op::Copy { .. }) => self.calls += times,
                Action::Do(_) => {}
            }
        }
    }
}
