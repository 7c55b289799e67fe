//! `memvirt compare` and `memvirt run`.

use anyhow::Context;
use memvirt_lab::scale::Sharing;
use memvirt_lab::text::signed_percent;
use memvirt_lab::words::{portable, quoted};
use memvirt_lab::{Comparison, Described, Done, Experiment, Input, Vcpus, summary};
use memvirt_machine::{MachineSpec, Outcome, RegimeKind};
use memvirt_trace::{MemoryCalls, Reading, Turns};
use memvirt_workload::Workload;

use crate::args::{CommonArgs, CompareArgs, Format, OnOff, RunArgs};
use crate::failure::{Status, line, warn};
use crate::output::{make_folder, print, render, table};
use crate::progress::Bars;

pub(crate) fn compare(args: &CompareArgs) -> anyhow::Result<Status> {
    let mut regimes = args.regimes.clone();
    // Asked for twice is asked for once.
    let mut seen = Vec::new();
    regimes.retain(|regime| {
        !seen.contains(regime) && {
            seen.push(*regime);
            true
        }
    });
    let names: Vec<_> = regimes.iter().map(|regime| regime.name()).collect();
    let head = ["compare".to_owned(), "--regimes".to_owned(), names.join(",")];
    execute(&args.common, regimes, &head)
}

pub(crate) fn run(args: &RunArgs) -> anyhow::Result<Status> {
    execute(&args.common, vec![args.regime], &["run".to_owned(), "--regime".to_owned(), args.regime.to_string()])
}

fn execute(args: &CommonArgs, regimes: Vec<RegimeKind>, head: &[String]) -> anyhow::Result<Status> {
    let mut measure = args.measure.measure();
    let mut input = input(args)?;
    if let (true, Input::Workload(workload)) = (args.measure.steady, &mut input) {
        let steady = workload.as_ref().clone().steady();
        (**workload, measure.warm_up_accesses) = (steady.workload, steady.warm_up_accesses);
    }
    let experiment = Experiment {
        input,
        regimes,
        overrides: args.switches.overrides(),
        machine: MachineSpec::load(&args.machine)?,
        seed: args.seed,
        measure,
        check: args.check,
        threads: args.threads,
        command: command(args, head),
    };
    make_folder(args.out.as_deref())?;
    let bars = Bars::new(&experiment.regimes);
    let done = experiment.run_on(vcpus(args), &|progress| bars.show(progress));
    bars.clear();
    let done = done?;
    print(&show(&done.comparison, args.format)?)?;
    remark(&done);
    if let Some(dir) = &args.out {
        memvirt_lab::write_report(dir, &done.comparison)?;
        let place = format!("report: {}\n", dir.join("index.html").display());
        if args.format == Format::Table { print(&place)? } else { warn(place.trim_end()) }
    }
    Ok(verdict(&done))
}

fn vcpus(args: &CommonArgs) -> Vcpus {
    Vcpus { count: args.vcpus, sharing: args.sharing }
}

fn input(args: &CommonArgs) -> anyhow::Result<Input> {
    match (&args.workload, &args.trace) {
        (Some(name), _) => {
            let set = |workload: Workload, (path, value): &(String, String)| workload.with_field(path, value);
            let workload = args.set.iter().try_fold(Workload::resolve(name)?, set)?;
            let workload = args.scale.map_or(Ok(workload.clone()), |factor| workload.scaled(factor))?;
            let workload = args.footprint.map_or(Ok(workload.clone()), |bytes| workload.with_footprint(bytes))?;
            Ok(Input::Workload(Box::new(workload)))
        }
        (None, Some(path)) => Ok(Input::Trace(path.clone(), reading(args))),
        (None, None) => anyhow::bail!("nothing to run; give --workload NAME or --trace FILE"),
    }
}

/// How a trace is read.
fn reading(args: &CommonArgs) -> Reading {
    let calls = |on: OnOff| if on.is_on() { MemoryCalls::Apply } else { MemoryCalls::Ignore };
    let turns = Turns { quantum: args.quantum.unwrap_or(Turns::QUANTUM), seed: args.seed };
    Reading { memory_calls: args.memory_calls.map(calls), turns }
}

/// The command that makes the same results: without what they do not depend on, and without absolute folders.
fn command(args: &CommonArgs, head: &[String]) -> String {
    let mut words = vec!["memvirt".to_owned()];
    words.extend_from_slice(head);
    if let Some(workload) = &args.workload {
        words.extend(["--workload".to_owned(), portable(workload)]);
    }
    if let Some(trace) = &args.trace {
        words.extend(["--trace".to_owned(), portable(trace)]);
    }
    if let Some(calls) = args.memory_calls {
        words.extend(["--memory-calls", if calls.is_on() { "on" } else { "off" }].map(str::to_owned));
    }
    words.extend(args.quantum.map(|quantum| format!("--quantum {quantum}")));
    words.extend(["--machine".to_owned(), portable(&args.machine)]);
    if args.workload.is_some() {
        words.extend(["--seed".to_owned(), args.seed.to_string()]);
    }
    for (path, value) in &args.set {
        words.extend(["--set".to_owned(), quoted(&format!("{path}={value}"))]);
    }
    words.extend(args.scale.map(|factor| format!("--scale {factor}")));
    words.extend(args.footprint.map(|bytes| format!("--footprint {bytes}")));
    words.extend(args.measure.words());
    if args.vcpus > 1 {
        words.push(format!("--vcpus {}", args.vcpus));
        words.extend((args.sharing != Sharing::Tenants).then(|| format!("--sharing {}", args.sharing.name())));
    }
    words.extend(args.switches.overrides().words());
    words.extend(args.check.then(|| "--check".to_owned()));
    words.join(" ")
}

fn show(comparison: &Comparison, format: Format) -> anyhow::Result<String> {
    match format {
        Format::Json => comparison.to_json(),
        Format::Csv => comparison.to_csv(),
        Format::Table => Ok(people(comparison)),
    }
    .context("cannot print the results")
}

fn people(comparison: &Comparison) -> String {
    let mut grid =
        table(std::iter::once(String::new()).chain(comparison.results.iter().map(|r| format!(">{}", r.regime))));
    for (i, group) in summary(comparison).into_iter().enumerate() {
        if i > 0 {
            grid.add_row([" "]);
        }
        grid.add_row([group.title]);
        for row in group.rows {
            let sign = if row.total { '=' } else { ' ' };
            grid.add_row(std::iter::once(format!("{sign} {}", row.label)).chain(row.cells));
        }
    }
    let mut text = format!("{}: {}\n", comparison.workload.name(), comparison.workload.title());
    text += &render(&grid);
    text += &format!("machine {}: {}\n", comparison.machine.name, comparison.machine.title);
    text += &format!("switches: {}\n", comparison.switches());
    for benefit in comparison.benefits() {
        text += &format!(
            "benefit of {} over {}: {} (T_shadow / T_nested - 1, switches as above)\n",
            benefit.nested.regime,
            benefit.shadow.regime,
            signed_percent(benefit.value())
        );
    }
    text + &format!("command: {}\n", comparison.command)
}

/// What the user must know beside the results.
fn remark(done: &Done) {
    if let Described::Trace(trace) = &done.comparison.workload
        && !trace.left_out.is_empty()
    {
        let (name, format, beside) = (&trace.name, trace.format, few(&trace.left_out));
        let joined =
            if matches!(format, "perf" | "strace") { "; `memvirt faults` joins texts of strace and perf" } else { "" };
        warn(&format!("remark: of {name} what {format} recorded is run, not {beside}{joined}"));
    }
    if let Described::Trace(trace) = &done.comparison.workload
        && trace.repairs.lost > 0
    {
        let (lost, name) = (trace.repairs.lost, &trace.name);
        let why = if trace.syscalls == 0 { format!("; {}", crate::trace::NO_CALLS) } else { String::new() };
        warn(&format!("warning: {lost} processes of {name} are never forked and were left out{why}"));
    }
    if let Described::Trace(trace) = &done.comparison.workload
        && let Some(first) = &trace.first_malformed
    {
        warn(&format!(
            "warning: {} of {} lines of {} were skipped; the first: {first}",
            trace.malformed, trace.lines, trace.name
        ));
    }
    for result in &done.comparison.results {
        match result.outcome {
            Outcome::GuestOutOfMemory => {
                let has = memvirt_lab::text::bytes(result.switches.guest.memory_bytes);
                warn(&format!(
                    "error: {}: the guest ran out of its {has} of memory; give it more with --memory",
                    result.regime
                ));
            }
            Outcome::HostOutOfMemory => {
                warn(&format!(
                    "error: {}: the host ran out of memory; give the guest less with --memory",
                    result.regime
                ));
            }
            Outcome::GuestKernelFault | Outcome::Livelock => {
                let how = memvirt_lab::summary::outcome(result.outcome);
                warn(&format!("error: {}: {how}; run it with --check to see where", result.regime));
            }
            Outcome::WarmUpOnly => {
                let asked = result.switches.measure.warm_up_accesses;
                warn(&format!(
                    "error: {}: the input has no accesses left after the warm-up of {asked}; nothing was measured",
                    result.regime
                ));
            }
            Outcome::Completed | Outcome::InputError => {}
        }
    }
    violations(done);
    for stray in done.comparison.strays() {
        warn(&format!("check failed: {}: the guest did something else than under the first regime", stray.regime));
    }
}

/// The first few of some names, and how many more there are.
fn few(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let first = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{first} and {} more files", names.len() - SHOWN) } else { first }
}

/// The first violations of each regime; the results hold how many there are.
fn violations(done: &Done) {
    const SHOWN: usize = 4;
    for (regime, found) in &done.violations {
        for violation in found.iter().take(SHOWN) {
            warn(&format!("check failed: {regime}: {violation}"));
        }
    }
    for result in &done.comparison.results {
        let (name, broken) = (result.regime, result.stale.broken);
        if broken > 0 {
            warn(&format!("check failed: {name}: {broken} times the guest got what no hardware could have given"));
        } else if !result.regime.is_correct() && !result.stale.checked {
            warn(&format!("warning: {name} hands out wrong translations by design; --check counts them"));
        }
    }
}

fn verdict(done: &Done) -> Status {
    let outcome = |outcome| done.comparison.results.iter().any(|result| result.outcome == outcome);
    if let Some(error) = &done.input_error {
        warn(&format!("error: {}", line(&anyhow::anyhow!("{error}"))));
        return Status::BadInput;
    }
    let wrong = outcome(Outcome::GuestKernelFault) || outcome(Outcome::Livelock);
    if wrong || done.comparison.broken() > 0 || done.comparison.strays().next().is_some() {
        return Status::CheckFailed;
    }
    let memory = outcome(Outcome::GuestOutOfMemory) || outcome(Outcome::HostOutOfMemory);
    if memory || outcome(Outcome::WarmUpOnly) { Status::BadInput } else { Status::Fine }
}
