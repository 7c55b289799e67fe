//! `memvirt phase`: who wins over the plane of TLB misses and page-table updates.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use memvirt_lab::phase::{Phase, VcpuPhase};
use memvirt_lab::plan::{Plan, PlanRun, Size};
use memvirt_machine::{MachineSpec, RegimeKind};

use crate::failure::Status;
use crate::output::{make_folder, print, render, table};
use crate::plan::{carry_out, verdict, version};

#[derive(Debug, Args)]
#[command(after_help = "\
Runs the plan `phase` on a machine: a workload with two knobs over the plane, and the built-in workloads in it. Both rates are those
of the native run. With --out the runs stand in DIR/phase-MACHINE/phase.csv, from where an interrupted diagram goes on, beside the
figure and its data.

Examples:
  memvirt phase --quick
  memvirt phase --machine zen4 --out results
  memvirt phase --vcpus 1,4,16,64
  memvirt phase --shadow shadow:lazy-fill --format svg > phase.svg")]
pub(crate) struct PhaseArgs {
    /// The machine that prices: a built-in one, or a machine file
    #[arg(long, value_name = "NAME|FILE", default_value = MachineSpec::DEFAULT)]
    machine: OsString,
    /// The shadow regime: shadow:kvm, shadow:write-protect or shadow:lazy-fill
    #[arg(long, value_name = "REGIME", default_value = "shadow:kvm", value_parser = shadow)]
    shadow: RegimeKind,
    /// The short form
    #[arg(long)]
    quick: bool,
    /// Numbers of vCPUs, separated by commas: instead of one plane with the built-in workloads, one for each number
    #[arg(long, value_delimiter = ',', value_name = "LIST", value_parser = clap::value_parser!(u16).range(1..=256))]
    vcpus: Vec<u16>,
    /// Threads; the results do not depend on them [default: one per processor]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Write the runs, the figure and its data into this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// How to print
    #[arg(long, value_enum, default_value_t = PhaseFormat::Table)]
    format: PhaseFormat,
}

/// How the diagram is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PhaseFormat {
    /// For people
    Table,
    /// For programs
    Json,
    /// A line per guest
    Csv,
    /// A picture
    Svg,
}

fn shadow(text: &str) -> Result<RegimeKind, String> {
    let known = || Phase::SHADOWS.map(RegimeKind::name).join(", ");
    text.parse().ok().filter(|regime| Phase::SHADOWS.contains(regime)).ok_or_else(|| format!("accepted: {}", known()))
}

pub(crate) fn phase(args: &PhaseArgs) -> anyhow::Result<Status> {
    let machine = MachineSpec::load(&args.machine)?;
    if !args.vcpus.is_empty() {
        return planes(args, &machine);
    }
    let name = args.machine.to_string_lossy();
    let plan = Plan::resolve("phase".as_ref())?.with_axis("machine", &[&name])?;
    // Without a folder the runs are kept nowhere.
    let scratch = tempfile::tempdir()?;
    let dir =
        args.out.as_ref().map_or_else(|| scratch.path().to_owned(), |out| out.join(format!("phase-{}", machine.name)));
    let (version, size) = (version(), if args.quick { Size::Quick } else { Size::Full });
    let run = PlanRun { plan: &plan, size, dir: &dir, version: &version, threads: args.threads };
    let done = carry_out(&run)?;
    let found = Phase::of(&done.table, &plan.points(size)?, &machine, args.shadow)?;
    if args.out.is_some() {
        found.write_to(&dir.join(args.shadow.name().replace(':', "-")))?;
    }
    print(&match args.format {
        PhaseFormat::Table => people(&found),
        PhaseFormat::Json => serde_json::to_string_pretty(&found)? + "\n",
        PhaseFormat::Csv => found.to_csv(),
        PhaseFormat::Svg => found.to_svg()?,
    })?;
    Ok(verdict(&done))
}

/// The plane for each number of vCPUs.
fn planes(args: &PhaseArgs, machine: &MachineSpec) -> anyhow::Result<Status> {
    if args.shadow != RegimeKind::ShadowKvm61 {
        anyhow::bail!("--vcpus compares nested paging with shadow:kvm; leave out --shadow");
    }
    make_folder(args.out.as_deref())?;
    let size = if args.quick { Size::Quick } else { Size::Full };
    let found = VcpuPhase::measure(size, machine, &args.vcpus, args.threads)?;
    if let Some(dir) = &args.out {
        found.write_to(dir)?;
    }
    print(&match args.format {
        PhaseFormat::Table => people_of_planes(&found),
        PhaseFormat::Json => serde_json::to_string_pretty(&found)? + "\n",
        PhaseFormat::Csv => found.to_csv(),
        PhaseFormat::Svg => found.to_svg()?,
    })?;
    Ok(Status::Fine)
}

fn people_of_planes(planes: &VcpuPhase) -> String {
    let mut grid = table([">vCPUs", ">misses", ">updates", "wins", ">by", ">by MVA"]);
    for sample in &planes.samples {
        let percent = |ln: f64| format!("{:.1} %", 100.0 * (ln.abs().exp() - 1.0));
        let sign = if (sample.predicted > 0.0) == (sample.advantage > 0.0) { "" } else { "-" };
        grid.add_row([
            sample.vcpus.to_string(),
            format!("{:.4}", sample.misses),
            format!("{:.4}", sample.updates),
            if sample.advantage > 0.0 { "nested" } else { "shadow" }.to_owned(),
            percent(sample.advantage),
            format!("{sign}{}", percent(sample.predicted)),
        ]);
    }
    let border = planes.vcpus.iter().map(|vcpus| {
        let ratio = planes.misses_per_update(*vcpus).map_or_else(|| "none".to_owned(), |ratio| format!("{ratio:.0}"));
        format!("{vcpus} vCPUs {ratio}")
    });
    let (right, of) = planes.right();
    format!(
        "{}: nested against shadow:kvm; misses and updates for 1000 instructions of one vCPU natively\n{}border, misses for one update: \
         {}\nmean-value analysis fed from one vCPU names the winner of {right} of {of} points with several\n",
        planes.machine,
        render(&grid),
        border.collect::<Vec<_>>().join(", ")
    )
}

fn people(phase: &Phase) -> String {
    let mut grid = table(["guest", ">misses", ">updates", ">shadow", ">nested", "wins", ">by", ">predicted"]);
    for sample in &phase.samples {
        let wins = if sample.advantage > 0.0 { "nested" } else { "shadow" };
        let percent = |ln: f64| format!("{:.1} %", 100.0 * (ln.abs().exp() - 1.0));
        let predicted = if (sample.predicted > 0.0) == (sample.advantage > 0.0) { "" } else { "-" };
        grid.add_row([
            sample.name.clone(),
            format!("{:.4}", sample.misses),
            format!("{:.4}", sample.updates),
            format!("{:.3}x", sample.shadow),
            format!("{:.3}x", sample.nested),
            wins.to_owned(),
            percent(sample.advantage),
            format!("{predicted}{}", percent(sample.predicted)),
        ]);
    }
    let measured = match phase.measured_between {
        Some((below, above)) => format!("between {below:.0} and {above:.0} by the runs of two-rates"),
        None => "no such ratio in the runs of two-rates, where one side always won".to_owned(),
    };
    format!(
        "{}: nested against {}; misses and updates for 1000 instructions of the native run, times native\n{}break-even, misses for \
         one update: {:.0} by the model, {measured}\n{} of {} runs of two-rates lie on the side of the model's line that won\n",
        phase.machine,
        phase.shadow,
        render(&grid),
        phase.model_misses_per_update,
        phase.right_side.0,
        phase.right_side.1
    )
}
