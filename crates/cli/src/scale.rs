//! `memvirt scale`: one workload on 1, 2, 4, ... vCPUs, in simulated time, beside what models say that were fed from one.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::{Args, ValueEnum, value_parser};
use memvirt_lab::claims::Done;
use memvirt_lab::scale::{
    Interrupts, Latencies, PUBLISHED, Point, QUANTUM, SLICE, STAGGER, ScalePlan, ScaleTable, Sharing, latencies,
};
use memvirt_lab::text::{count, signed_percent};
use memvirt_lab::words::{portable, quoted};
use memvirt_machine::{MachineSpec, Measure, RegimeKind};
use memvirt_workload::Workload;

use crate::args::SwitchArgs;
use crate::failure::{Status, warn};
use crate::output::{make_folder, print, render, table};
use crate::progress::Rows;

/// Longer than any run: what is added up of such times cannot overflow.
const MOST_CYCLES: u64 = 1_000_000_000_000;

#[derive(Debug, Args)]
#[command(after_help = "\
Each vCPU runs an instance of the workload of its own (--tenants), or all are threads of one process (--threads), whose flushes
interrupt each other. Time is simulated: vCPUs are ordered by their clocks, the MMU lock is a queue, interrupts and kicks are waited
for. Throughput is accesses by processes in a vCPU's own time; `vs one` is relative to one vCPU. `MVA` is the same from mean-value
analysis of vCPUs and one lock, fed from the run with one vCPU alone, `USL` the law of scalability fitted to all points.

Examples:
  memvirt scale --workload touch-and-free --vcpus 1,2,4,8,16,32,64
  memvirt scale --workload churn --threads --regimes native,shadow:kvm,nested
  memvirt scale --workload touch-and-free --vcpus 4 --vms 4 --physical-cpus 8 --regimes shadow:kvm,nested --tags off
  memvirt scale --workload churn --vcpus 64 --processes 1024 --quantum 200000 --format json --out report

docs/scaling.md says what is modelled and what was measured.")]
pub(crate) struct ScaleArgs {
    /// A built-in workload, or a workload file (a path with a `/` or ending in `.toml`)
    #[arg(long, value_name = "NAME|FILE")]
    workload: OsString,
    /// Numbers of vCPUs, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "LIST", default_value = "1,2,4,8,16,32,64")]
    #[arg(value_parser = value_parser!(u16).range(1..=256))]
    vcpus: Vec<u16>,
    /// Regimes, separated by commas; `memvirt regimes` lists them
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "LIST",
        default_value = "native,shadow:kvm,shadow:write-protect,nested"
    )]
    regimes: Vec<RegimeKind>,
    /// vCPUs are threads of one process and do the workload's work in areas of their own
    #[arg(long = "threads", conflicts_with = "tenants")]
    sharing_threads: bool,
    /// vCPUs have processes of their own (the default)
    #[arg(long)]
    tenants: bool,
    /// Virtual machines, each with so many vCPUs
    #[arg(long, value_name = "M", default_value_t = 1)]
    vms: u16,
    /// Physical CPUs [default: one for each vCPU]
    #[arg(long, value_name = "P")]
    physical_cpus: Option<u16>,
    /// Instances of the workload in each virtual machine, dealt out to its vCPUs [default: one for each vCPU]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=65536))]
    processes: Option<u32>,
    /// Instructions that an instance runs before the next one on its vCPU does
    #[arg(long, value_name = "INSTRUCTIONS", default_value_t = QUANTUM, value_parser = value_parser!(u64).range(1000..))]
    quantum: u64,
    /// Make each instance's run so many times as long: 0.1 for a tenth
    #[arg(long, value_name = "FACTOR")]
    scale: Option<f64>,
    /// The size of each instance's area, as in 512MiB [default: what the workload's file says]
    #[arg(long, value_name = "SIZE", value_parser = crate::args::size)]
    footprint: Option<u64>,
    /// Set a field of the workload's generator, as in `body.0.touch.count=100`; may be given again
    #[arg(long, value_name = "FIELD=VALUE", value_parser = crate::args::assignment)]
    set: Vec<(String, String)>,
    /// Accesses that each vCPU makes before time begins, so that steady work is measured without its first touches
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "What is measured")]
    warm_up: u64,
    /// Anonymous memory is there as soon as it is mapped, as if touched before
    #[arg(long, help_heading = "What is measured")]
    prefault: bool,
    /// vCPUs begin at random times within this share of the time that one alone takes; 0: all at once
    #[arg(long, value_name = "SHARE", default_value_t = STAGGER, help_heading = "What is measured")]
    stagger: f64,
    /// The seed of the generators
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// The machine that prices: a built-in one, or a machine file
    #[arg(long, value_name = "NAME|FILE", default_value = MachineSpec::DEFAULT, help_heading = "Times")]
    machine: OsString,
    /// Interrupts between vCPUs: sending and receiving exit, only sending does, or hardware delivers them [default: the machine's]
    #[arg(long, value_enum, help_heading = "Times")]
    interrupts: Option<InterruptsArg>,
    /// Cycles from sending an interrupt to its arrival [default: the machine's]
    #[arg(long, value_name = "CYCLES", help_heading = "Times", value_parser = value_parser!(u64).range(..=MOST_CYCLES))]
    interrupt_cycles: Option<u64>,
    /// Cycles that a kick costs the vCPU that is kicked [default: the machine's]
    #[arg(long, value_name = "CYCLES", help_heading = "Times", value_parser = value_parser!(u64).range(..=MOST_CYCLES))]
    kick_cycles: Option<u64>,
    /// Cycles from giving the MMU lock back until the next in its queue has it [default: the machine's]
    #[arg(long, value_name = "CYCLES", help_heading = "Times", value_parser = value_parser!(u64).range(..=MOST_CYCLES))]
    handover_cycles: Option<u64>,
    /// Cycles of a world switch, where vCPUs share physical CPUs [default: the machine's]
    #[arg(long, value_name = "CYCLES", help_heading = "Times", value_parser = value_parser!(u64).range(..=MOST_CYCLES))]
    world_switch_cycles: Option<u64>,
    /// Cycles that a vCPU has its physical CPU for
    #[arg(long, value_name = "CYCLES", default_value_t = SLICE, help_heading = "Times")]
    slice: u64,

    /// Let an oracle watch every access; a translation that no hardware could give makes the exit status 1
    #[arg(long)]
    check: bool,
    /// Threads of the laboratory itself; the results do not depend on them [default: one per processor]
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// How to print
    #[arg(long, value_enum, default_value_t = ScaleFormat::Table, help_heading = "Output")]
    format: ScaleFormat,
    /// Also write scale.json, scale.csv and figures into this folder
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    out: Option<PathBuf>,
    #[command(flatten)]
    switches: SwitchArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum InterruptsArg {
    /// Sending one exits, and receiving one
    Exiting,
    /// Sending one exits; it is posted to the receiver
    Posted,
    /// Neither exits
    Virtualized,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ScaleFormat {
    /// For people
    Table,
    /// For programs: everything
    Json,
    /// A row per regime and number of vCPUs
    Csv,
}

pub(crate) fn scale(args: &ScaleArgs) -> anyhow::Result<Status> {
    let plan = plan(args)?;
    make_folder(args.out.as_deref())?;
    let (rows, points) = (Rows::new(), AtomicUsize::new(0));
    let done = plan.run_watched(&|Done { what, of }| rows.show(points.fetch_add(1, Ordering::Relaxed) + 1, of, &what));
    rows.clear();
    let done = done?;
    print(&match args.format {
        ScaleFormat::Json => serde_json::to_string_pretty(&done)? + "\n",
        ScaleFormat::Csv => done.to_csv(),
        ScaleFormat::Table => people(&done),
    })?;
    if let Some(dir) = &args.out {
        done.write_to(dir)?;
        let place = format!("written to {}\n", dir.display());
        if args.format == ScaleFormat::Table { print(&place)? } else { warn(place.trim_end()) }
    }
    Ok(if done.broken() == 0 { Status::Fine } else { Status::CheckFailed })
}

fn plan(args: &ScaleArgs) -> anyhow::Result<ScalePlan> {
    let machine = MachineSpec::load(&args.machine)?;
    let mut workload = Workload::resolve(&args.workload)?;
    for (field, value) in &args.set {
        workload = workload.with_field(field, value)?;
    }
    if let Some(factor) = args.scale {
        workload = workload.scaled(factor)?;
    }
    if let Some(bytes) = args.footprint {
        workload = workload.with_footprint(bytes)?;
    }
    let usual = latencies(&machine);
    let latencies = Latencies {
        interrupt: args.interrupt_cycles.unwrap_or(usual.interrupt),
        kicked: args.kick_cycles.unwrap_or(usual.kicked),
        world_switch: args.world_switch_cycles.unwrap_or(usual.world_switch),
        handover: args.handover_cycles.unwrap_or(usual.handover),
    };
    Ok(ScalePlan {
        workload,
        regimes: args.regimes.clone(),
        vcpus: args.vcpus.clone(),
        sharing: if args.sharing_threads { Sharing::Threads } else { Sharing::Tenants },
        vms: args.vms,
        physical_cpus: args.physical_cpus,
        processes: args.processes,
        quantum: args.quantum,
        latencies: Some(latencies),
        slice: args.slice,
        interrupts: match args.interrupts {
            None => machine.smp_times().interrupts,
            Some(InterruptsArg::Exiting) => Interrupts::Exiting,
            Some(InterruptsArg::Posted) => Interrupts::Posted,
            Some(InterruptsArg::Virtualized) => Interrupts::Virtualized,
        },
        measure: Measure { warm_up_accesses: args.warm_up, prefault: args.prefault, ..Measure::default() },
        stagger: args.stagger,
        overrides: args.switches.overrides(),
        machine,
        seed: args.seed,
        check: args.check,
        threads: args.jobs,
        command: command(args),
    })
}

/// The command that makes the same results: without what they do not depend on, and without absolute folders.
fn command(args: &ScaleArgs) -> String {
    let list = |items: Vec<String>| items.join(",");
    let mut words = vec!["memvirt scale --workload".to_owned(), portable(&args.workload), "--vcpus".to_owned()];
    words.push(list(args.vcpus.iter().map(u16::to_string).collect()));
    words.extend(["--regimes".to_owned(), list(args.regimes.iter().map(RegimeKind::to_string).collect())]);
    words.extend(args.sharing_threads.then(|| "--threads".to_owned()));
    words.extend(args.set.iter().map(|(field, value)| format!("--set {}", quoted(&format!("{field}={value}")))));
    let mut flag = |given: bool, flag: &str, value: String| {
        if given {
            words.push(format!("{flag} {value}"));
        }
    };
    flag(args.vms != 1, "--vms", args.vms.to_string());
    let optional = [
        ("--physical-cpus", args.physical_cpus.map(|n| n.to_string())),
        ("--processes", args.processes.map(|n| n.to_string())),
        ("--scale", args.scale.map(|n| n.to_string())),
        ("--footprint", args.footprint.map(|n| n.to_string())),
        ("--kick-cycles", args.kick_cycles.map(|n| n.to_string())),
        ("--handover-cycles", args.handover_cycles.map(|n| n.to_string())),
        ("--interrupt-cycles", args.interrupt_cycles.map(|n| n.to_string())),
        ("--world-switch-cycles", args.world_switch_cycles.map(|n| n.to_string())),
    ];
    for (name, value) in optional {
        flag(value.is_some(), name, value.unwrap_or_default());
    }
    flag(args.quantum != QUANTUM, "--quantum", args.quantum.to_string());
    flag(args.slice != SLICE, "--slice", args.slice.to_string());
    let interrupts =
        args.interrupts.and_then(|which| which.to_possible_value()).map(|value| value.get_name().to_owned());
    flag(args.interrupts.is_some(), "--interrupts", interrupts.unwrap_or_default());
    flag(args.warm_up > 0, "--warm-up", args.warm_up.to_string());
    flag((args.stagger - STAGGER).abs() > 0.0, "--stagger", args.stagger.to_string());
    flag(true, "--machine", portable(&args.machine));
    flag(true, "--seed", args.seed.to_string());
    words.extend(args.switches.overrides().words());
    words.extend(args.prefault.then(|| "--prefault".to_owned()));
    words.extend(args.check.then(|| "--check".to_owned()));
    words.join(" ")
}

fn people(done: &ScaleTable) -> String {
    let mut text = format!("{}\n", title(done));
    let header = [
        "regime",
        ">vCPUs",
        ">acc/Mcycle",
        ">vs one",
        ">MVA",
        ">error",
        "assumptions",
        ">USL error",
        ">lock held",
        ">waiting",
        ">lock",
        ">kick",
        ">shootdown",
        ">kicked",
        ">no CPU",
        ">exits/vCPU",
        ">shootdowns",
    ];
    let mut grid = table(header);
    for point in &done.points {
        grid.add_row(row(point, done.vms));
    }
    text += &render(&grid);
    text += &benefits(done);
    for (row, published) in PUBLISHED {
        text += &format!("published, {row}: {published}\n");
    }
    text
}

fn title(done: &ScaleTable) -> String {
    let sharing = match (done.sharing, done.processes) {
        (Sharing::Threads, _) => "threads of one process".to_owned(),
        (Sharing::Tenants, None) => "an instance on each vCPU".to_owned(),
        (Sharing::Tenants, Some(n)) => format!("{n} instances on all vCPUs"),
    };
    let machines = if done.vms > 1 { format!(", {} virtual machines", done.vms) } else { String::new() };
    let cpus = done.physical_cpus.map_or(String::new(), |n| format!(", {n} physical CPUs"));
    format!("{}: {sharing}{machines}{cpus}, machine {}", done.workload, done.machine)
}

fn row(point: &Point, vms: u16) -> Vec<String> {
    let share = |x: f64| if x == 0.0 { "-".to_owned() } else { format!("{:.1} %", 100.0 * x) };
    let (waits, all) = (&point.waits, u64::from(point.vcpus) * u64::from(vms));
    vec![
        point.regime.to_string(),
        point.vcpus.to_string(),
        format!("{:.1}", point.throughput),
        format!("{:.3}", point.efficiency),
        format!("{:.3}", point.mva.efficiency),
        signed_percent(point.mva_error),
        point.assumptions.name().to_owned(),
        point.usl_error.map_or("-".to_owned(), signed_percent),
        share(point.lock_utilization),
        share(waits.total),
        share(waits.lock),
        share(waits.kick),
        share(waits.shootdown),
        share(waits.kicked),
        share(waits.preempted),
        count(point.exits / all.max(1)),
        count(point.shootdowns),
    ]
}

/// The benefit of nested paging by number of vCPUs.
fn benefits(done: &ScaleTable) -> String {
    let mut pairs: Vec<_> = done.benefits.iter().map(|row| (row.shadow, row.nested)).collect();
    pairs.dedup();
    let Some(first) = pairs.first() else { return String::new() };
    let of = |pair: &(RegimeKind, RegimeKind)| {
        done.benefits.iter().filter(move |row| (row.shadow, row.nested) == *pair).collect::<Vec<_>>()
    };
    let columns = of(first).iter().map(|row| format!(">{}", row.vcpus)).collect::<Vec<_>>();
    let mut grid = table(std::iter::once("benefit: T_shadow / T_nested - 1, by vCPUs".to_owned()).chain(columns));
    for pair in &pairs {
        let cells = of(pair).into_iter().map(|row| signed_percent(row.benefit));
        grid.add_row(std::iter::once(format!("{} over {}", pair.1, pair.0)).chain(cells).collect::<Vec<_>>());
    }
    render(&grid)
}
