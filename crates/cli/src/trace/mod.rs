//! `memvirt trace`: recordings looked into, packed, checked, cut, shown and made.

mod convert;
mod info;
mod record;

pub(crate) use info::NO_CALLS;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use memvirt_mvt::Density;
use memvirt_trace::{MemoryCalls, Reading, Turns};

use crate::args::TreeFormat;
use crate::failure::Status;

/// Recordings are read whatever they are called: .mvt, Valgrind lackey logs (a file, or a directory or tar archive of several
/// processes), strace -f and perf script text, ChampSim traces; plain or compressed with zstd, xz or gzip.
#[derive(Debug, Subcommand)]
pub(crate) enum TraceCommand {
    /// What is in a trace: counts, processes, pages, where they lie, what could not be read
    Info(InfoArgs),
    /// Pack a recording as an .mvt trace
    Convert(ConvertArgs),
    /// Check an .mvt trace block by block, or compare it with the recording that it was packed from
    Verify(VerifyArgs),
    /// Make an .mvt trace of a part of a recording
    Cut(CutArgs),
    /// Print a recording as text, a run of accesses or an operation a line
    Cat(CatArgs),
    /// Run a program under Valgrind and leave one .mvt trace of it and of every process it makes
    Record(RecordArgs),
}

/// The order in which processes run.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct TurnArgs {
    /// Instructions that processes run in turn
    #[arg(long, value_name = "INSTRUCTIONS", default_value_t = Turns::QUANTUM)]
    #[arg(value_parser = clap::value_parser!(u64).range(1000..))]
    quantum: u64,
    /// The seed of the turns
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

impl TurnArgs {
    /// A reading that carries out everything.
    pub(crate) fn reading(self) -> Reading {
        let turns = Turns { quantum: self.quantum, seed: self.seed };
        Reading { memory_calls: Some(MemoryCalls::Apply), turns }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 where the recording is whole, 2 where it is damaged, breaks off or cannot be read; what is intact is counted first,
of a damaged .mvt trace each process as far as it goes.")]
pub(crate) struct InfoArgs {
    /// The recording
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) turns: TurnArgs,
    /// How to print
    #[arg(long, value_enum, default_value_t = TreeFormat::Table)]
    pub(crate) format: TreeFormat,
}

/// What is kept of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DensityArg {
    /// Their 4 KiB pages: the same counters in mode counts
    Pages,
    /// Their 64-byte lines: the same counters and cycles in every mode
    Lines,
}

impl From<DensityArg> for Density {
    fn from(density: DensityArg) -> Self {
        match density {
            DensityArg::Pages => Self::Pages,
            DensityArg::Lines => Self::Lines,
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Each process keeps a stream of its own, so that `--quantum` and `--seed` work on the packed trace as on the recording. Exit status:
0, or 2 where the recording breaks off (what stands before is in the trace) or cannot be read.

Examples:
  memvirt trace convert logs.tar.zst shell.mvt
  memvirt trace convert sort.lackey.zst sort.mvt --density lines")]
pub(crate) struct ConvertArgs {
    /// The recording
    pub(crate) input: PathBuf,
    /// The trace to be written
    pub(crate) output: PathBuf,
    /// What is kept of addresses
    #[arg(long, value_enum, default_value_t = DensityArg::Pages)]
    pub(crate) density: DensityArg,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 where everything is intact (and equal), 1 where something is not, 2 where there is nothing to check: no .mvt trace,
or no recording to compare it with.")]
pub(crate) struct VerifyArgs {
    /// The trace
    pub(crate) file: PathBuf,
    /// Also read this recording and compare every access, instruction count and operation
    #[arg(long, value_name = "RECORDING")]
    pub(crate) against: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Accesses are counted over all processes in the order of this reading, and the order is kept. Operations before the part stay, so
that processes and areas are what they were; their accesses go. A part that begins beyond the end is refused. Exit status as of
`memvirt trace convert`.

Example:
  memvirt trace cut redis.tar.zst fork.mvt --from 500000 --to 2000000")]
pub(crate) struct CutArgs {
    /// The recording
    pub(crate) input: PathBuf,
    /// The trace to be written
    pub(crate) output: PathBuf,
    /// The first access kept
    #[arg(long, value_name = "ACCESS", default_value_t = 0)]
    pub(crate) from: u64,
    /// The first access after the part
    #[arg(long, value_name = "ACCESS")]
    pub(crate) to: u64,
    /// What is kept of addresses
    #[arg(long, value_enum, default_value_t = DensityArg::Pages)]
    pub(crate) density: DensityArg,
    #[command(flatten)]
    pub(crate) turns: TurnArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
A line is the process and a run of the same accesses (`I` fetch, `L` load, `S` store; the address, how often) or an operation.
Exit status as of `memvirt trace info`; what is intact of a damaged recording is printed first.")]
pub(crate) struct CatArgs {
    /// The recording
    pub(crate) file: PathBuf,
    /// Lines at most
    #[arg(long, value_name = "N")]
    pub(crate) lines: Option<u64>,
    #[command(flatten)]
    pub(crate) turns: TurnArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The program runs at about a hundredth of its speed, and its logs take some 20 bytes an instruction on the disk until they are
packed. Valgrind must be installed.

Examples:
  memvirt trace record -- sort in.txt
  memvirt trace record --output build.mvt --density lines -- cc -c hello.c")]
pub(crate) struct RecordArgs {
    /// The trace to be written [default: the program's name with .mvt]
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// What is kept of addresses
    #[arg(long, value_enum, default_value_t = DensityArg::Pages)]
    pub(crate) density: DensityArg,
    /// Valgrind
    #[arg(long, value_name = "PROGRAM", default_value = "valgrind")]
    pub(crate) valgrind: OsString,
    /// Where the logs lie meanwhile [default: the system's folder for temporary files]
    #[arg(long, value_name = "DIR")]
    pub(crate) scratch: Option<PathBuf>,
    /// The program and its arguments
    #[arg(required = true, last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

pub(crate) fn trace(command: &TraceCommand) -> anyhow::Result<Status> {
    match command {
        TraceCommand::Info(args) => info::info(args),
        TraceCommand::Convert(args) => convert::convert(args),
        TraceCommand::Verify(args) => convert::verify(args),
        TraceCommand::Cut(args) => convert::cut(args),
        TraceCommand::Cat(args) => convert::cat(args),
        TraceCommand::Record(args) => record::record(args),
    }
}
