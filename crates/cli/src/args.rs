//! The command line.

use std::ffi::OsString;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum, value_parser};
use memvirt_addr::PageSize;
use memvirt_lab::{MEMORY_BYTES, Overrides};
use memvirt_machine::{FrameOrder, MachineSpec, Measure, Mode, RegimeKind, TableFrames};
use memvirt_replay::Under;
use memvirt_shadow::kvm::Kernel;

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
    /// Look into recorded traces
    Trace {
        #[command(subcommand)]
        command: TraceCommand,
    },
    /// Replay a recording of real KVM: every counter of every row, or the oracle's verdict on any other platform
    Replay(ReplayArgs),
    /// Which guest events exit, and how often: measured on every regime, next to what the specification says
    Exits(ExitsArgs),
    /// List the workloads that are built in, or explain one
    Workloads(ModelArgs),
    /// List the machines that are built in, or explain one: every figure with its unit and source, estimates marked
    Machines(ModelArgs),
    /// List the regimes
    Regimes,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TraceCommand {
    /// What is in a trace: counts, pages, where they lie, what could not be read
    Info(TraceArgs),
}

#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    /// A Valgrind lackey log, plain or compressed with zstd, xz or gzip
    pub(crate) file: PathBuf,
    /// How to print
    #[arg(long, value_enum, default_value_t = TreeFormat::Table)]
    pub(crate) format: TreeFormat,
}

#[derive(Debug, Args)]
#[command(after_help = "\
On kvm-shadow and kvm-nested every counter of every row, the page faults that the guest sees and the values it reads are compared
with the recording. On any other platform the same operations run under the oracle: a translation is *broken* where no hardware
could have returned it since the last flush that covers it.

Exit status: 0 where nothing differs and nothing is broken, 1 where something does or is, 2 for a malformed recording (what stands
before the malformed line is still reported).

Examples:
  memvirt replay tests/data/kvm/fuzz1-linux61-shadow.csv.zst --platform kvm-shadow
  memvirt replay tests/data/kvm/fuzz2-linux612-shadow.csv.zst --platform kvm-shadow --kernel 6.12 --strict
  memvirt replay tests/data/kvm/fuzz1-linux61-shadow.csv.zst --platform invlpg-only --format json")]
pub(crate) struct ReplayArgs {
    /// The recording: CSV, plain or compressed with zstd
    pub(crate) file: PathBuf,
    /// What it is replayed on: kvm-shadow, kvm-nested, write-protect, write-protect/propagate, lazy-fill, vtlb, xen, vbox, invlpg-only, native
    #[arg(long, value_name = "NAME", default_value = "kvm-shadow")]
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
    /// The memory trace of a real program: a Valgrind lackey log, plain or compressed
    #[arg(long, value_name = "FILE", help_heading = "Input")]
    pub(crate) trace: Option<PathBuf>,
    /// Carry out the trace's mmap, munmap, mprotect, mremap and brk; off, they are system calls like any other [default: off]
    #[arg(long, value_enum, value_name = "on|off", hide_possible_values = true, conflicts_with = "workload")]
    #[arg(help_heading = "Input")]
    pub(crate) memory_calls: Option<OnOff>,
    /// The seed of the workload's generator
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Input")]
    pub(crate) seed: u64,
    /// Make the workload's run so many times as long: 0.1 for a tenth
    #[arg(long, value_name = "FACTOR", conflicts_with = "trace", help_heading = "Input")]
    pub(crate) scale: Option<f64>,

    /// The size of the workload's area, as in 512MiB or 128GiB [default: what its file says]
    #[arg(long, value_name = "SIZE", value_parser = size, conflicts_with = "trace", help_heading = "Input")]
    pub(crate) footprint: Option<u64>,

    #[command(flatten)]
    pub(crate) measure: MeasureArgs,

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
        words
    }
}

/// Switches of the simulated guest and its hypervisor. Those not given are left to the workload's file, or to the defaults.
#[derive(Debug, Args)]
#[command(next_help_heading = "Switches")]
pub(crate) struct SwitchArgs {
    /// Pages of the guest's processes: 4K or 2M [default: 4K]
    #[arg(long, value_name = "SIZE", value_parser = guest_page)]
    guest_page: Option<PageSize>,
    /// Host pages behind the guest's memory: 4K, 2M or 1G [default: 4K]
    #[arg(long, value_name = "SIZE", value_parser = page)]
    host_page: Option<PageSize>,
    /// Pages of the guest kernel's direct map: 4K, 2M or 1G [default: 2M]
    #[arg(long, value_name = "SIZE", value_parser = page)]
    direct_map_page: Option<PageSize>,
    /// Kernel-page-table isolation: a CR3 load on each kernel entry and exit [default: off]
    #[arg(long, value_enum, value_name = "on|off", hide_possible_values = true)]
    kpti: Option<OnOff>,
    /// Process-context identifiers in the guest [default: off]
    #[arg(long, value_enum, value_name = "on|off", hide_possible_values = true)]
    pcid: Option<OnOff>,
    /// VPID or ASID: translations survive VM exits [default: on]
    #[arg(long, value_enum, value_name = "on|off", hide_possible_values = true)]
    tags: Option<OnOff>,
    /// Accessed and dirty bits in EPT [default: on]
    #[arg(long, value_enum, value_name = "on|off", hide_possible_values = true)]
    ept_ad: Option<OnOff>,
    /// The machine's walk caches and nested TLB [default: off; on with --mode cycles]
    #[arg(long, value_enum, value_name = "on|off", hide_possible_values = true)]
    walk_caches: Option<OnOff>,
    /// In which order the host hands out its frames: contiguous or scattered [default: contiguous]
    #[arg(long, value_name = "ORDER")]
    host_frames: Option<FrameOrder>,
    /// Where the guest's page tables lie: mixed with its data, or grouped in blocks of their own, as Linux does
    /// [default: mixed]
    #[arg(long, value_name = "mixed|grouped")]
    table_frames: Option<TableFrames>,
    /// Guest instructions between timer ticks, 0 for none [default: 10000000]
    #[arg(long, value_name = "INSTRUCTIONS", value_parser = tick)]
    tick: Option<u64>,
    /// Up to how many pages the guest flushes one by one [default: 33]
    #[arg(long, value_name = "PAGES")]
    flush_ceiling: Option<u64>,
    /// The guest's memory, as in 512MiB or 8G [default: twice the footprint, at least 4 GiB]
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    memory: Option<u64>,
}

impl SwitchArgs {
    /// What the user asks for.
    pub(crate) fn overrides(&self) -> Overrides {
        Overrides {
            memory_bytes: self.memory,
            kpti: self.kpti.map(OnOff::is_on),
            pcid: self.pcid.map(OnOff::is_on),
            guest_page: self.guest_page,
            direct_map_page: self.direct_map_page,
            tick_instructions: self.tick,
            flush_ceiling: self.flush_ceiling,
            host_page: self.host_page,
            tags: self.tags.map(OnOff::is_on),
            ept_ad: self.ept_ad.map(OnOff::is_on),
            walk_caches: self.walk_caches.map(OnOff::is_on),
            host_frames: self.host_frames,
            table_frames: self.table_frames,
        }
    }

    /// The flags that were given, as they are written.
    pub(crate) fn words(&self) -> Vec<String> {
        let page = |page: PageSize| page.name().to_owned();
        let on = |switch: OnOff| if switch.is_on() { "on" } else { "off" }.to_owned();
        let flags = [
            ("--guest-page", self.guest_page.map(page)),
            ("--host-page", self.host_page.map(page)),
            ("--direct-map-page", self.direct_map_page.map(page)),
            ("--kpti", self.kpti.map(on)),
            ("--pcid", self.pcid.map(on)),
            ("--tags", self.tags.map(on)),
            ("--ept-ad", self.ept_ad.map(on)),
            ("--walk-caches", self.walk_caches.map(on)),
            ("--host-frames", self.host_frames.map(|order| order.to_string())),
            ("--table-frames", self.table_frames.map(|tables| tables.to_string())),
            ("--tick", self.tick.map(|n| n.to_string())),
            ("--flush-ceiling", self.flush_ceiling.map(|n| n.to_string())),
            ("--memory", self.memory.map(|n| n.to_string())),
        ];
        flags.into_iter().filter_map(|(flag, value)| value.map(|value| [flag.to_owned(), value])).flatten().collect()
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  memvirt walk                                     4 guest levels on 4 nested ones: 24 references
  memvirt walk --guest-page 2M --host-page 2M      15
  memvirt walk --guest 5 --host 5                  35
  memvirt walk --host none                         a machine without virtualization: 4
  memvirt walk --regime shadow --guest-page 2M --host-page 4K   what shadow tables make of it")]
pub(crate) struct WalkArgs {
    /// Levels of the guest's tables; none: the guest does not page
    #[arg(long, value_enum, default_value_t = Depth::Four)]
    pub(crate) guest: Depth,
    /// Levels of the nested tables; none: no second dimension [default: 4, none with --regime native or shadow]
    #[arg(long, value_enum)]
    pub(crate) host: Option<Depth>,
    /// The guest's page
    #[arg(long, value_name = "SIZE", value_parser = page, default_value = "4K")]
    pub(crate) guest_page: PageSize,
    /// The host's page
    #[arg(long, value_name = "SIZE", value_parser = page, default_value = "4K")]
    pub(crate) host_page: PageSize,
    /// What the hardware walks [default: nested, native with --host none]
    #[arg(long, value_enum)]
    pub(crate) regime: Option<WalkRegime>,
    /// The format of the nested tables: Intel's or AMD's
    #[arg(long, value_enum, default_value_t = Nested::Ept)]
    pub(crate) nested_format: Nested,
    /// The guest-virtual address to walk for [default: one with another index at every level]
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub(crate) address: Option<u64>,
    /// Page-walk caches; off: every reference goes to memory
    #[arg(long, value_enum, default_value_t = Caches::Off)]
    pub(crate) caches: Caches,
    /// How to print
    #[arg(long, value_enum, default_value_t = TreeFormat::Table)]
    pub(crate) format: TreeFormat,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// The contract of docs/results.md
    Json,
    /// A row per regime
    Csv,
}

/// How everything else is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TreeFormat {
    /// For people
    Table,
    /// For programs
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnOff {
    /// On
    On,
    /// Off
    Off,
}

impl OnOff {
    pub(crate) fn is_on(self) -> bool {
        self == Self::On
    }
}

/// Levels of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Depth {
    /// None
    None,
    /// 4
    #[value(name = "4")]
    Four,
    /// 5
    #[value(name = "5")]
    Five,
}

/// What the hardware walks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WalkRegime {
    /// The guest's tables alone
    Native,
    /// Shadow tables
    Shadow,
    /// Both dimensions
    Nested,
}

/// The format of nested tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Nested {
    /// Intel EPT
    Ept,
    /// AMD NPT
    Npt,
}

/// Page-walk caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Caches {
    /// None: a cold walk
    Off,
}

fn page(text: &str) -> Result<PageSize, &'static str> {
    text.parse()
}

fn guest_page(text: &str) -> Result<PageSize, &'static str> {
    let processes = "expected 4K or 2M: processes get no larger pages";
    text.parse().ok().filter(|size| *size != PageSize::Size1G).ok_or(processes)
}

fn tick(text: &str) -> Result<u64, &'static str> {
    let accepted = "expected 0 (no ticks) or a number of instructions from 1000";
    text.parse().ok().filter(|n| *n == 0 || *n >= 1000).ok_or(accepted)
}

fn address(text: &str) -> Result<u64, &'static str> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(&digits.replace('_', ""), 16)
        .map_err(|_| "expected a hexadecimal address, as in 0x7f0012345678")
}

/// A size in bytes with a binary unit.
fn size(text: &str) -> Result<u64, &'static str> {
    bytes(text).ok_or("expected a size, as in 512MiB or 128GiB")
}

fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => Some(1),
        "k" | "kib" => Some(1 << 10),
        "m" | "mib" => Some(1 << 20),
        "g" | "gib" => Some(1 << 30),
        "t" | "tib" => Some(1u64 << 40),
        _ => None,
    };
    unit.zip(digits.parse::<u64>().ok()).and_then(|(unit, n)| n.checked_mul(unit))
}

/// The guest's memory.
fn memory(text: &str) -> Result<u64, String> {
    bytes(text)
        .filter(|bytes| MEMORY_BYTES.contains(bytes) && bytes.is_multiple_of(2 << 20))
        .ok_or_else(|| "expected 64MiB to 2TiB in whole 2 MiB, as in 512MiB or 8GiB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_have_units_and_bounds() {
        assert_eq!(memory("8G"), Ok(8 << 30));
        assert_eq!(memory("512MiB"), Ok(512 << 20));
        assert_eq!(memory("67108864"), Ok(64 << 20));
        for bad in ["", "8", "8X", "1K", "999999999999T", "-1G", "64MiB1", "3T", "67108865"] {
            assert!(memory(bad).is_err(), "{bad}");
        }
    }
}
