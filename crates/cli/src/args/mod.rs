//! The command line.

mod run;
mod switches;
mod values;
mod walk;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use memvirt_replay::Under;
use memvirt_shadow::kvm::Kernel;

pub(crate) use run::{CommonArgs, CompareArgs, RunArgs};
pub(crate) use switches::SwitchArgs;
pub(crate) use values::{Format, OnOff, TreeFormat, assignment, guest_page, memory, page, size};
pub(crate) use walk::{Caches, Guest, HostDepth, Nested, WalkArgs, WalkFormat, WalkRegime};

/// The laboratory for memory virtualization.
///
/// Runs a workload, or the memory trace of a real program, on a simulated machine without virtualization, under shadow paging
/// and under nested paging, and counts what each does: TLB misses, references of page walks, VM exits by reason, bytes of page
/// tables, cycles.
#[derive(Debug, Parser)]
#[command(name = "memvirt", version, arg_required_else_help = true, subcommand_required = true, max_term_width = 100)]
#[command(after_help = "\
Examples:
  memvirt compare --workload zipf                     three regimes side by side
  memvirt compare --trace app.lackey.zst --out DIR    a recorded program, and a report with figures
  memvirt run --regime nested --workload churn --check
  memvirt walk                                        the 24 references of a two-dimensional walk

Exit status: 0 fine, 1 a check failed, 2 the command line or an input is at fault.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run one input under several regimes, side by side
    Compare(CompareArgs),
    /// Run one input under one regime
    Run(RunArgs),
    /// Show every memory reference of one page walk
    Walk(WalkArgs),
    /// Recordings of real programs: look into them, pack, check, cut and show them, make new ones
    Trace {
        #[command(subcommand)]
        command: crate::trace::TraceCommand,
    },
    /// Replay a recording of real KVM: every counter of every row, or the oracle's verdict on any other platform
    Replay(ReplayArgs),
    /// Which guest events exit, and how often: measured on every regime, next to what the specification says
    Exits(ExitsArgs),
    /// One page fault of a nested guest, step by step: world switches and L0 exits beside the published ones
    NestedVirt(crate::nested_virt::NestedVirtArgs),
    /// One workload on 1, 2, 4, ... vCPUs in simulated time: throughput, benefit, what vCPUs wait for, beside models
    Scale(crate::scale::ScaleArgs),
    /// Cost models: formulas with units, built in or your own
    Model {
        #[command(subcommand)]
        command: crate::model::ModelCommand,
    },
    /// Who wins over the plane of TLB misses and page-table updates, shadow or nested paging, and by how much
    Phase(crate::phase::PhaseArgs),
    /// Plans: grids of runs as files, carried out into one table that can be continued
    Plan {
        #[command(subcommand)]
        command: crate::plan::PlanCommand,
    },
    /// Page faults and TLB flushes of a program, predicted from its strace and perf texts, beside those its kernel counted
    Faults(crate::faults::FaultsArgs),
    /// Measurements from the literature beside what memvirt predicts, with the events that make each prediction
    Published(crate::published::PublishedArgs),
    /// Bytes of page tables by kind, by process and over time, beside what a model predicts
    Footprint(crate::footprint::FootprintArgs),
    /// The claims about shadow and nested paging beside what is measured, in one page with figures
    Report(crate::report::ReportArgs),
    /// List the workloads that are built in, or explain one
    Workloads(ModelArgs),
    /// List the machines that are built in, or explain one: every figure with its unit and source, estimates marked
    Machines(ModelArgs),
    /// List the regimes
    Regimes,
}

#[derive(Debug, Args)]
#[command(after_help = "\
On kvm-shadow and kvm-nested every counter of every row, the page faults that the guest sees and the values it reads are compared
with the recording. On any other platform the same operations run under the oracle: a translation is *broken* where no hardware
could have returned it since the last flush that covers it.

Exit status: 0 where nothing differs and nothing is broken, 1 where something does or is, 2 for a malformed recording (what stands
before the malformed line is still reported) and for one with fewer rows than it announces.

Examples:
  memvirt replay tests/data/kvm/fuzz1-linux61-shadow.csv.zst --platform kvm-shadow
  memvirt replay tests/data/kvm/fuzz2-linux612-shadow.csv.zst --platform kvm-shadow --kernel 6.12 --strict
  memvirt replay tests/data/kvm/fuzz1-linux61-shadow.csv.zst --platform invlpg-only --format json")]
pub(crate) struct ReplayArgs {
    /// The recording: CSV, plain or compressed with zstd
    pub(crate) file: PathBuf,
    /// What it is replayed on
    #[arg(long, value_name = "NAME", default_value = "kvm-shadow", value_parser = platforms())]
    pub(crate) platform: Under,
    /// The kernel whose KVM it is: 6.1 or 6.12
    #[arg(long, value_name = "VERSION", default_value = "6.1")]
    pub(crate) kernel: Kernel,
    /// Let no column differ. Otherwise tlb_flush and remote_req of kernel 6.12 may, by one
    #[arg(long)]
    pub(crate) strict: bool,
    /// Compare counters and results alone, without the oracle: an order of magnitude faster
    #[arg(long)]
    pub(crate) no_oracle: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t = TreeFormat::Table)]
    pub(crate) format: TreeFormat,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Every event runs on a fresh machine under every regime, with tags off: every exit empties the TLB, as on the machines of the
recordings. A cell shows the exits counted and, in parentheses, the specification's figure for what was executed; a difference
is marked with != and explained below the table where the cause is known. lazy-fill, xen and vbox have no column in the
specification.

Exit status: 0 where every difference is explained, 1 otherwise.

Examples:
  memvirt exits
  memvirt exits --virt svm --format csv")]
pub(crate) struct ExitsArgs {
    /// The hardware: vmx (Intel, nested paging is EPT) or svm (AMD, NPT)
    #[arg(long, value_enum, default_value_t = Virt::Vmx)]
    pub(crate) virt: Virt,
    /// How to print
    #[arg(long, value_enum, default_value_t = ExitsFormat::Table)]
    pub(crate) format: ExitsFormat,
}

/// Hardware for virtualization.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Virt {
    /// Intel VT-x
    Vmx,
    /// AMD-V
    Svm,
}

/// How the table of exits is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExitsFormat {
    /// For people
    Table,
    /// For programs
    Json,
    /// A line per event and regime
    Csv,
}

#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// One of them, by name, or a file by path
    pub(crate) name: Option<OsString>,
    /// How to print
    #[arg(long, value_enum, default_value_t = TreeFormat::Table)]
    pub(crate) format: TreeFormat,
}

/// The platforms by name, which the help lists; `write-protect/zap` is the longer name of one.
fn platforms() -> impl TypedValueParser<Value = Under> {
    let names = Under::all(Kernel::V6_1).map(|under| match under {
        Under::WriteProtect => PossibleValue::new(under.name()).alias("write-protect/zap"),
        _ => PossibleValue::new(under.name()),
    });
    PossibleValuesParser::new(names).try_map(|name| name.parse::<Under>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
