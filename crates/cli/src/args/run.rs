//! `memvirt compare` and `memvirt run`: the input, what is measured, where it goes.

use std::ffi::OsString;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;

use clap::{ArgGroup, Args, value_parser};
use memvirt_lab::scale::Sharing;
use memvirt_machine::{MachineSpec, Measure, Mode, RegimeKind};

use super::switches::SwitchArgs;
use super::values::{Format, OnOff, assignment, size};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  memvirt compare --workload zipf
  memvirt compare --trace sort.lackey.zst --out report    then open report/index.html
  memvirt compare --workload uniform --host-page 2M --guest-page 2M
  memvirt compare --workload fork-and-exit --kpti on --pcid on --regimes native,nested --check
  memvirt compare --workload my.toml --machine my-machine.toml --format json > results.json

Lists: `memvirt workloads`, `memvirt machines`, `memvirt regimes`. The fields of the JSON and CSV forms: docs/results.md.")]
pub(crate) struct CompareArgs {
    /// Regimes, separated by commas; `memvirt regimes` lists them
    #[arg(long, value_delimiter = ',', value_name = "LIST", default_value = "native,shadow:write-protect,nested")]
    pub(crate) regimes: Vec<RegimeKind>,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  memvirt run --regime nested --workload zipf
  memvirt run --regime shadow:write-protect --trace sort.lackey.zst --check --format json")]
pub(crate) struct RunArgs {
    /// The regime; `memvirt regimes` lists them
    #[arg(long)]
    pub(crate) regime: RegimeKind,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("input").required(true).args(["workload", "trace"]))]
pub(crate) struct CommonArgs {
    /// A built-in workload, or a workload file (a path with a `/` or ending in `.toml`)
    #[arg(long, value_name = "NAME|FILE", help_heading = "Input")]
    pub(crate) workload: Option<OsString>,
    /// A recording of real programs: .mvt, Valgrind lackey logs (a file, or a directory or tar archive of several processes),
    /// strace -f or perf script text, a ChampSim trace; compressed or not
    #[arg(long, value_name = "FILE", help_heading = "Input")]
    pub(crate) trace: Option<PathBuf>,
    /// Carry out the trace's mmap, munmap, mprotect, mremap, madvise and brk; off, they are system calls like any other
    /// [default: off for a single lackey log, else on]
    #[arg(long, value_enum, value_name = "on|off", hide_possible_values = true, conflicts_with = "workload")]
    #[arg(help_heading = "Input")]
    pub(crate) memory_calls: Option<OnOff>,
    /// Instructions that the processes of a trace run in turn [default: 3000000]
    #[arg(long, value_name = "INSTRUCTIONS", value_parser = clap::value_parser!(u64).range(1000..), conflicts_with = "workload")]
    #[arg(help_heading = "Input")]
    pub(crate) quantum: Option<u64>,
    /// The seed of the workload's generator, or of the turns that a trace's processes take
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Input")]
    pub(crate) seed: u64,
    /// Make the workload's run so many times as long: 0.1 for a tenth
    #[arg(long, value_name = "FACTOR", conflicts_with = "trace", help_heading = "Input")]
    pub(crate) scale: Option<f64>,

    /// The size of the workload's area, as in 512MiB or 128GiB [default: what its file says]
    #[arg(long, value_name = "SIZE", value_parser = size, conflicts_with = "trace", help_heading = "Input")]
    pub(crate) footprint: Option<u64>,

    /// Set a field of the workload's generator, as in `exponent=0.5` or `body.0.touch.count=100`; may be given again
    #[arg(long, value_name = "FIELD=VALUE", value_parser = assignment, conflicts_with = "trace", help_heading = "Input")]
    pub(crate) set: Vec<(String, String)>,

    #[command(flatten)]
    pub(crate) measure: MeasureArgs,

    /// vCPUs, in simulated time and --mode counts: all counts are their sums; `memvirt scale` compares several numbers of them
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u16).range(1..=256))]
    #[arg(conflicts_with = "trace", help_heading = "vCPUs")]
    pub(crate) vcpus: u16,
    /// What several vCPUs run: tenants, an instance of the workload each; threads, of one process
    #[arg(long, value_name = "tenants|threads", default_value = "tenants", help_heading = "vCPUs")]
    pub(crate) sharing: Sharing,

    /// The machine that prices: a built-in one, or a machine file
    #[arg(long, value_name = "NAME|FILE", default_value = MachineSpec::DEFAULT)]
    pub(crate) machine: OsString,
    /// Let an oracle watch every access; a translation that no hardware could give makes the exit status 1
    #[arg(long)]
    pub(crate) check: bool,
    /// Threads; the results do not depend on them [default: one per processor]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,

    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Table, help_heading = "Output")]
    pub(crate) format: Format,
    /// Also write a report into this folder: index.html, figures, the data as JSON and CSV
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub(crate) out: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) switches: SwitchArgs,
}

/// What is measured, and from when on.
#[derive(Debug, Args)]
#[command(next_help_heading = "Measuring")]
pub(crate) struct MeasureArgs {
    /// counts: one price for each kind of reference; cycles: every reference goes through the machine's caches
    #[arg(long, value_name = "counts|cycles", default_value_t = Mode::Counts)]
    mode: Mode,
    /// Page walks that a CPU makes at a time, with --mode cycles
    #[arg(long, value_name = "N", default_value = "1", value_parser = value_parser!(u32).range(1..=64))]
    walkers: u32,
    /// Have all memory mapped before it is touched, in the guest's tables and in nested ones; uncounted
    #[arg(long)]
    prefault: bool,
    /// Begin to count after so many accesses, at the next batch
    #[arg(long, value_name = "ACCESSES", default_value_t = 0)]
    warm_up: u64,
    /// Measure the workload in its steady state: it first stores to every page that its setup maps, then runs a quarter of its
    /// accesses, and counting begins
    #[arg(long, conflicts_with_all = ["trace", "warm_up"])]
    pub(crate) steady: bool,
}

impl MeasureArgs {
    pub(crate) fn measure(&self) -> Measure {
        let walkers = NonZeroU32::new(self.walkers).unwrap_or(NonZeroU32::MIN);
        Measure { mode: self.mode, walkers, prefault: self.prefault, warm_up_accesses: self.warm_up }
    }

    /// The flags that differ from their defaults, as they are written.
    pub(crate) fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        let mut flag = |given: bool, name: &str, value: String| {
            if given {
                words.extend([name.to_owned(), value].into_iter().filter(|word| !word.is_empty()));
            }
        };
        flag(self.mode != Mode::Counts, "--mode", self.mode.to_string());
        flag(self.walkers != 1, "--walkers", self.walkers.to_string());
        flag(self.prefault, "--prefault", String::new());
        flag(self.warm_up > 0, "--warm-up", self.warm_up.to_string());
        flag(self.steady, "--steady", String::new());
        words
    }
}
