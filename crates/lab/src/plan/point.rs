//! One run of a plan: its settings, its command, the experiment.

use std::path::PathBuf;

use memvirt_machine::{MachineSpec, Measure, Mode, RegimeKind};
use memvirt_trace::{MemoryCalls, Reading, Turns};
use memvirt_workload::Workload;

use crate::error::LabError;
use crate::experiment::{Done, Experiment};
use crate::input::Input;
use crate::scale::Sharing;
use crate::several::Vcpus;
use crate::switches::Overrides;
use crate::words::quoted;

/// One run: what its command says, and no more.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// The workload, by name or path.
    pub workload: Option<String>,
    /// Or the trace, by path.
    pub trace: Option<String>,
    /// Whether the trace's memory calls are carried out.
    pub memory_calls: Option<bool>,
    /// Instructions that the processes of a trace run in turn.
    pub quantum: Option<u64>,
    /// The regime.
    pub regime: RegimeKind,
    /// The machine, by name or path.
    pub machine: String,
    /// The seed.
    pub seed: u64,
    /// How many times as long the workload's run is.
    pub scale: Option<f64>,
    /// The size of the workload's area in bytes.
    pub footprint: Option<u64>,
    /// Fields of the workload's generator, and what they are set to.
    pub set: Vec<(String, String)>,
    /// How it is measured.
    pub measure: Measure,
    /// Whether the workload is measured in its steady state.
    pub steady: bool,
    /// On how many vCPUs it runs.
    pub vcpus: Vcpus,
    /// Switches that differ from their defaults.
    pub overrides: Overrides,
    /// Whether the oracle watches.
    pub check: bool,
}

impl Default for Point {
    fn default() -> Self {
        Self {
            workload: None,
            trace: None,
            memory_calls: None,
            quantum: None,
            regime: RegimeKind::Native,
            machine: MachineSpec::DEFAULT.to_owned(),
            seed: 0,
            scale: None,
            footprint: None,
            set: Vec::new(),
            measure: Measure::default(),
            steady: false,
            vcpus: Vcpus::default(),
            overrides: Overrides::default(),
            check: false,
        }
    }
}

impl Point {
    /// The experiment with this one run.
    ///
    /// # Errors
    ///
    /// Where the workload or the machine cannot be had.
    pub fn experiment(&self) -> Result<Experiment, LabError> {
        let (mut input, mut measure) = (self.input()?, self.measure);
        if let (true, Input::Workload(workload)) = (self.steady, &mut input) {
            let steady = workload.as_ref().clone().steady();
            (**workload, measure.warm_up_accesses) = (steady.workload, steady.warm_up_accesses);
        }
        Ok(Experiment {
            input,
            regimes: vec![self.regime],
            overrides: self.overrides,
            machine: MachineSpec::load(&self.machine)?,
            seed: self.seed,
            measure,
            check: self.check,
            threads: None,
            command: self.command(),
        })
    }

    /// Runs it.
    ///
    /// # Errors
    ///
    /// As [`experiment`](Self::experiment), and where it cannot be run at all.
    pub fn run(&self) -> Result<Done, LabError> {
        self.experiment()?.run_on(self.vcpus, &|_| {})
    }

    /// About how long the run takes on one processor, in seconds: a guess from what its workload's file says, good for telling
    /// seconds from minutes from hours. Measured with builds without link-time optimization: 15 s for the plan `regimes`.
    pub(crate) fn expected_seconds(&self) -> f64 {
        const RUN: f64 = 0.01;
        const ACCESS: f64 = 150e-9;
        const PAGE: f64 = 1e-6;
        const PROCESS: f64 = 1e-3;
        let cycles = if self.measure.mode == Mode::Cycles { 3.0 } else { 1.0 };
        let checked = if self.check { 4.0 } else { 1.0 };
        let Ok(Experiment { input: Input::Workload(workload), measure, .. }) = self.experiment() else {
            // A packed recording has some millions of accesses.
            return 5e6 * ACCESS * cycles * checked;
        };
        let facts = workload.facts();
        let accesses = real(facts.accesses.value());
        let pages = real(facts.footprint_bytes / 4096);
        let touched = if measure.prefault { pages } else { pages.min(accesses) };
        let one =
            RUN + accesses * ACCESS * cycles * checked + touched * PAGE + real(facts.forks + facts.execs) * PROCESS;
        // One vCPU runs before several do.
        one * if self.vcpus.count > 1 { 1.0 + f64::from(self.vcpus.count) } else { 1.0 }
    }

    fn input(&self) -> Result<Input, LabError> {
        if let Some(path) = &self.trace {
            let calls = |on| if on { MemoryCalls::Apply } else { MemoryCalls::Ignore };
            let turns = Turns { quantum: self.quantum.unwrap_or(Turns::QUANTUM), seed: self.seed };
            let reading = Reading { memory_calls: self.memory_calls.map(calls), turns };
            return Ok(Input::Trace(PathBuf::from(path), reading));
        }
        let mut workload = Workload::resolve(self.workload.as_deref().unwrap_or_default().as_ref())?;
        for (path, value) in &self.set {
            workload = workload.with_field(path, value)?;
        }
        if let Some(factor) = self.scale {
            workload = workload.scaled(factor)?;
        }
        if let Some(bytes) = self.footprint {
            workload = workload.with_footprint(bytes)?;
        }
        Ok(Input::Workload(Box::new(workload)))
    }

    /// The command that makes this run again.
    #[must_use]
    pub fn command(&self) -> String {
        let mut words = Words(format!("memvirt run --regime {}", self.regime));
        words.flag("--workload", self.workload.as_ref());
        words.flag("--trace", self.trace.as_ref());
        words.switch("--memory-calls", self.memory_calls);
        words.flag("--quantum", self.quantum);
        words.flag("--machine", Some(&self.machine));
        words.flag("--seed", self.workload.as_ref().map(|_| self.seed));
        for (path, value) in &self.set {
            words.flag("--set", Some(format!("{path}={value}")));
        }
        words.flag("--scale", self.scale);
        words.flag("--footprint", self.footprint);
        self.measure_words(&mut words);
        for word in self.overrides.words() {
            words.0 += &format!(" {word}");
        }
        if self.check {
            words.0 += " --check";
        }
        words.0
    }

    fn measure_words(&self, words: &mut Words) {
        let Measure { mode, walkers, prefault, warm_up_accesses } = self.measure;
        words.flag("--mode", (mode != Mode::Counts).then_some(mode));
        words.flag("--walkers", (walkers.get() > 1).then_some(walkers));
        if prefault {
            words.0 += " --prefault";
        }
        words.flag("--warm-up", (warm_up_accesses > 0).then_some(warm_up_accesses));
        if self.steady {
            words.0 += " --steady";
        }
        let Vcpus { count, sharing } = self.vcpus;
        words.flag("--vcpus", (count > 1).then_some(count));
        words.flag("--sharing", (count > 1 && sharing != Sharing::Tenants).then(|| sharing.name()));
    }

    /// What stands in a row before the counters: the settings that are no switches of guest or host, by column.
    pub(super) fn cells(&self) -> [(&'static str, String); 11] {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        [
            ("workload", text(&self.workload)),
            ("trace", text(&self.trace)),
            ("memory_calls", shown(self.memory_calls)),
            ("quantum", shown(self.quantum)),
            ("machine", self.machine.clone()),
            ("seed", self.seed.to_string()),
            ("scale", shown(self.scale)),
            ("footprint", shown(self.footprint)),
            ("steady", self.steady.to_string()),
            ("sharing", if self.vcpus.count > 1 { self.vcpus.sharing.name().to_owned() } else { String::new() }),
            ("check", self.check.to_string()),
        ]
    }
}

#[expect(clippy::cast_precision_loss, reason = "a guess")]
const fn real(count: u64) -> f64 {
    count as f64
}

fn shown(value: Option<impl ToString>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

/// The words of a command.
struct Words(String);

impl Words {
    fn flag(&mut self, flag: &str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.0 += &format!(" {flag} {}", quoted(&value.to_string()));
        }
    }

    fn switch(&mut self, flag: &str, value: Option<bool>) {
        self.flag(flag, value.map(|on| if on { "on" } else { "off" }));
    }
}
