//! `memvirt footprint`: what page tables take by kind, by process and over time, beside what a model predicts.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use memvirt_addr::PageSize;
use memvirt_lab::Overrides;
use memvirt_lab::footprint::{Beside, FootprintPlan, FootprintTable, Row, Use};
use memvirt_lab::text::{bytes, count, signed_percent};
use memvirt_lab::words::{portable, quoted};
use memvirt_machine::{MachineSpec, Outcome, RegimeKind};
use memvirt_workload::Workload;
use memvirt_workload::units::Footprint;

use crate::args::{assignment, guest_page, memory, page, size};
use crate::failure::{Status, warn};
use crate::output::{make_folder, print, render, table};

#[derive(Debug, Args)]
#[command(after_help = "\
Bytes are counted in the tables of each run; the prediction is given the parameters alone. Dense use is predicted to the byte, random
sparse use as an expectation. Of any workload but those of kind `residents` (the built-in `footprint`), --processes are instances that
live beside each other and take turns on one CPU; --footprint is the area of each, --scale how long it runs, --set a field of its file.

Examples:
  memvirt footprint
  memvirt footprint --processes 1,16,256 --footprint 64MiB --sparse 0.01
  memvirt footprint --processes 1 --footprint 64GiB --regimes nested,shadow:kvm
  memvirt footprint --processes 16 --sparse 0.02 --footprint 64MiB --shadow-page-limit 200
  memvirt footprint --workload kernel-build --regimes nested,shadow:kvm --out out
  memvirt footprint --workload key-value --processes 1,4,16 --footprint 256MiB --scale 0.1")]
pub(crate) struct FootprintArgs {
    /// A built-in workload, or a workload file
    #[arg(long, value_name = "NAME|FILE", default_value = "footprint")]
    workload: OsString,
    /// How many processes (instances of workloads of other kinds than `residents`), separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=65536))]
    processes: Vec<u32>,
    #[arg(long, value_name = "SIZE", value_parser = footprint_size, help = footprint_help())]
    footprint: Option<u64>,
    /// Each process stores to every page of it
    #[arg(long, conflicts_with = "sparse")]
    dense: bool,
    /// Each process stores to this share of its 4 KiB pages, drawn at random [default with the flag: 0.01]
    #[arg(long, value_name = "SHARE", num_args = 0..=1, default_missing_value = "0.01", value_parser = share)]
    sparse: Option<f64>,
    /// How often each process comes round to its pages [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    rounds: Option<u64>,
    /// Make each instance's run so many times as long: 0.1 for a tenth
    #[arg(long, value_name = "FACTOR")]
    scale: Option<f64>,
    /// Set a field of the workload's generator, as in `exponent=0.5`; may be given again
    #[arg(long, value_name = "FIELD=VALUE", value_parser = assignment)]
    set: Vec<(String, String)>,
    /// Pages of the guest's processes: 4K or 2M [default: 4K]
    #[arg(long, value_name = "SIZE", value_parser = guest_page)]
    page: Option<PageSize>,
    /// Host pages behind the guest's memory: 4K, 2M or 1G [default: 4K]
    #[arg(long, value_name = "SIZE", value_parser = page)]
    host_page: Option<PageSize>,
    /// The guest's memory [default: what the largest row needs and a quarter more, a power of two, at least 1 GiB]
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    memory: Option<u64>,
    /// Regimes, separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "native,nested,shadow:kvm")]
    regimes: Vec<RegimeKind>,
    /// Most shadow pages [default: the regime's own; KVM's is one for 50 frames of guest memory]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(64..))]
    shadow_page_limit: Option<u32>,
    /// The machine
    #[arg(long, value_name = "NAME|FILE", default_value = MachineSpec::DEFAULT)]
    machine: OsString,
    /// The seed of the workload's generator
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Threads; the results do not depend on them [default: one per processor]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// How to print
    #[arg(long, value_enum, default_value_t = FootprintFormat::Table)]
    format: FootprintFormat,
    /// Also write JSON, CSV (rows, processes, series) and figures into this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FootprintFormat {
    /// For people
    Table,
    /// For programs: rows with their series and owners
    Json,
    /// A line per row
    Csv,
}

/// How often each process comes round where nobody says.
const ROUNDS: u64 = 2;

fn footprint_size(text: &str) -> Result<u64, String> {
    Footprint::try_new(size(text)?).map(Footprint::bytes).map_err(|error| error.to_string())
}

/// The bound that [`footprint_size`] keeps. What a kind of workload remembers of each page, or a guest has of memory, may bound it further.
fn footprint_help() -> String {
    format!(
        "What each process maps, as in 1MiB or 64GiB: whole 4 KiB pages, at most {}; less where the workload's generator keeps something for \
         each page, or the guest would need more memory than the largest has: the error says how much [default: what the workload's file says]",
        Footprint::MAX
    )
}

fn share(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|share| *share > 0.0 && *share <= 1.0).ok_or("expected a share above 0 and up to 1")
}

pub(crate) fn footprint(args: &FootprintArgs) -> anyhow::Result<Status> {
    let workload = workload(args)?;
    let residents = matches!(workload.spec(), memvirt_workload::Spec::Residents(_));
    let resident_only =
        [("--dense", args.dense), ("--sparse", args.sparse.is_some()), ("--rounds", args.rounds.is_some())];
    if let Some((flag, _)) = resident_only.into_iter().find(|(_, given)| *given && !residents) {
        anyhow::bail!(
            "{flag} is for workloads of kind `residents`, such as footprint: `{}` uses its memory as its file says; give --footprint, \
             --scale or --set to change that",
            workload.name()
        );
    }
    if residents && args.scale.is_some() {
        anyhow::bail!(
            "--scale is not for workloads of kind `residents`: give --rounds to make `{}` longer",
            workload.name()
        );
    }
    let processes = match (&args.processes[..], residents) {
        ([], true) => vec![1, 2, 4, 8, 16, 32, 64],
        ([], false) => vec![1],
        (given, _) => given.to_vec(),
    };
    let plan = FootprintPlan {
        workload,
        regimes: args.regimes.clone(),
        processes,
        footprint: args.footprint,
        usage: if args.dense { Some(Use::Dense) } else { args.sparse.map(Use::Sparse) },
        rounds: Some(args.rounds.unwrap_or(ROUNDS)),
        shadow_page_limit: args.shadow_page_limit,
        overrides: Overrides {
            guest_page: args.page,
            host_page: args.host_page,
            memory_bytes: args.memory,
            ..Overrides::default()
        },
        machine: MachineSpec::load(&args.machine)?,
        seed: args.seed,
        threads: args.threads,
        command: command(args),
    };
    make_folder(args.out.as_deref())?;
    let measured = plan.run()?;
    print(&match args.format {
        FootprintFormat::Json => measured.to_json()?,
        FootprintFormat::Csv => measured.to_csv(),
        FootprintFormat::Table => people(&measured),
    })?;
    if let Some(dir) = &args.out {
        measured.write(dir)?;
        let place = format!("written: {}\n", dir.display());
        if args.format == FootprintFormat::Table { print(&place)? } else { warn(place.trim_end()) }
    }
    Ok(match ended_early(&measured) {
        None => Status::Fine,
        Some(what) => {
            warn(&what);
            Status::BadInput
        }
    })
}

fn workload(args: &FootprintArgs) -> anyhow::Result<Workload> {
    let set = |workload: Workload, (path, value): &(String, String)| workload.with_field(path, value);
    let workload = args.set.iter().try_fold(Workload::resolve(&args.workload)?, set)?;
    Ok(match args.scale {
        Some(factor) if !matches!(workload.spec(), memvirt_workload::Spec::Residents(_)) => workload.scaled(factor)?,
        _ => workload,
    })
}

/// The command that makes the same results.
fn command(args: &FootprintArgs) -> String {
    let list = |items: Vec<String>| items.join(",");
    let mut words = format!("memvirt footprint --workload {}", portable(&args.workload));
    let mut add = |flag: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = write!(words, " {flag}{}{value}", if value.is_empty() { "" } else { " " });
        }
    };
    let processes = list(args.processes.iter().map(ToString::to_string).collect());
    add("--processes", (!processes.is_empty()).then_some(processes));
    add("--footprint", args.footprint.map(|bytes| bytes.to_string()));
    add("--dense", args.dense.then(String::new));
    add("--sparse", args.sparse.map(|share| share.to_string()));
    add("--rounds", args.rounds.map(|rounds| rounds.to_string()));
    add("--scale", args.scale.map(|factor| factor.to_string()));
    for (path, value) in &args.set {
        add("--set", Some(quoted(&format!("{path}={value}"))));
    }
    add("--page", args.page.map(|page| page.name().to_owned()));
    add("--host-page", args.host_page.map(|page| page.name().to_owned()));
    add("--memory", args.memory.map(|bytes| bytes.to_string()));
    add("--regimes", Some(list(args.regimes.iter().map(ToString::to_string).collect())));
    add("--shadow-page-limit", args.shadow_page_limit.map(|n| n.to_string()));
    add("--machine", Some(portable(&args.machine)));
    add("--seed", Some(args.seed.to_string()));
    words
}

fn people(measured: &FootprintTable) -> String {
    let mut text = heading(measured);
    text.push_str(&kinds(measured));
    text.push_str(&owners(measured));
    text.push_str(&beside(measured));
    for row in measured.published() {
        let _ = writeln!(text, "published, {row}");
    }
    let _ = writeln!(text, "command: {}", measured.command);
    text
}

fn heading(measured: &FootprintTable) -> String {
    let usage = match (measured.usage, measured.touched_pages) {
        (Some(Use::Dense), _) => ", all of it used".to_owned(),
        (Some(Use::Sparse(_)), Some(pages)) => format!(", {} pages of it used at random", count(pages)),
        _ => String::new(),
    };
    format!(
        "{}: {} mapped by each process{usage}; guest pages {}, host pages {}, {} of guest memory\n",
        measured.workload,
        bytes(measured.footprint_bytes),
        measured.guest.guest_page.name(),
        measured.host.host_page.name(),
        bytes(measured.guest.memory_bytes)
    )
}

/// Bytes by kind at the end, the most there were, and the prediction.
fn kinds(measured: &FootprintTable) -> String {
    let mut grid = table([
        "regime",
        ">processes",
        ">guest tables",
        ">shadow",
        ">nested",
        ">reverse map",
        ">records",
        ">= total",
        ">at most",
        ">predicted",
        ">error",
    ]);
    for row in &measured.rows {
        let b = row.measured.end;
        let mut cells = vec![name(row), count(row.processes.into())];
        cells.extend([b.guest, b.shadow, b.nested, b.reverse_map, b.records, b.total()].map(bytes));
        cells.push(bytes(row.measured.peak.bytes.total()));
        cells.push(row.predicted.map_or_else(String::new, |predicted| bytes(predicted.total())));
        cells.push(match row.error {
            Some(_) if row.predicted == Some(b) => "equal".to_owned(),
            Some(error) if error.abs() < 0.0005 => "< 0.1 %".to_owned(),
            Some(error) => signed_percent(error),
            None => String::new(),
        });
        grid.add_row(cells);
    }
    render(&grid)
}

fn name(row: &Row) -> String {
    match early(row) {
        Some(why) => format!("{} ({why})", row.regime),
        None => row.regime.to_string(),
    }
}

/// Why a run did not come to its end.
const fn early(row: &Row) -> Option<&'static str> {
    match row.measured.outcome {
        Outcome::Completed | Outcome::WarmUpOnly => None,
        Outcome::GuestOutOfMemory => Some("the guest ran out of memory"),
        Outcome::HostOutOfMemory => Some("the host ran out of memory"),
        Outcome::GuestKernelFault => Some("the guest's kernel took a page fault"),
        Outcome::Livelock => Some("an access faulted again and again"),
        Outcome::InputError => Some("the input could not be read to its end"),
    }
}

/// What to do about runs that ended early.
fn ended_early(measured: &FootprintTable) -> Option<String> {
    let short = measured.rows.iter().filter(|row| early(row).is_some()).count();
    (short > 0).then(|| {
        format!(
            "{} of {} runs did not come to their end, with {} of guest memory: their figures are those up to there; give the guest more \
             with --memory, or ask for fewer --processes or a smaller --footprint",
            short,
            measured.rows.len(),
            bytes(measured.guest.memory_bytes)
        )
    })
}

/// Whose the tables at the peak were, and faults.
fn owners(measured: &FootprintTable) -> String {
    let mut grid = table([
        "regime",
        ">processes",
        ">guest, each",
        ">kernel",
        ">shadow, each",
        ">shared",
        ">nobody's",
        ">guest faults",
        ">hidden faults",
        ">refaults",
        ">page limit",
    ]);
    for row in &measured.rows {
        let m = &row.measured;
        let span = |(least, most): (u64, u64)| {
            if least == most { bytes(least) } else { format!("{} to {}", bytes(least), bytes(most)) }
        };
        let [guest, shadow] = row.extremes();
        let optional = |n: Option<u64>| n.map_or_else(String::new, count);
        let mut cells = vec![row.regime.to_string(), count(row.processes.into()), span(guest), bytes(m.owners.kernel)];
        cells.push(span(shadow));
        cells.extend([m.owners.shadow_shared, m.owners.shadow_unowned].map(bytes));
        cells.extend([m.guest_faults, m.hidden_faults].map(count));
        cells.extend([row.refaults, row.shadow_page_limit].map(optional));
        grid.add_row(cells);
    }
    format!(
        "\nBy process, at the peak (shadow pages with their headers and translations), and faults\n{}",
        render(&grid)
    )
}

/// One nested tree beside shadow tables for each process.
fn beside(measured: &FootprintTable) -> String {
    let all: Vec<_> = measured.beside().collect();
    if all.is_empty() {
        return String::new();
    }
    let mut grid =
        table(["shadow", ">processes", ">tables: shadow / nested", ">with reverse map and records", "least"]);
    for Beside { shadow, tables, all, .. } in &all {
        let least = if *all < 1.0 {
            "shadow"
        } else if *tables < 1.0 {
            "shadow, records aside"
        } else {
            "nested"
        };
        let ratio = |ratio: f64| format!("{ratio:.2}");
        let cells =
            [shadow.regime.to_string(), count(shadow.processes.into()), ratio(*tables), ratio(*all), least.to_owned()];
        grid.add_row(cells);
    }
    format!("\nShadow pages of every process beside one nested tree, at their peaks\n{}", render(&grid))
}
