//! Sections that take many runs each: vCPUs, processes, the plane of who wins.

use memvirt_machine::RegimeKind;

use super::{Section, conditions};
use crate::claims::{Effort, Evidence, Residents, Scaled, benefit as benefit_of};
use crate::error::LabError;
use crate::phase::Dot;
use crate::report::Figure;
use crate::report::paint::Ink;
use crate::report::xy::{Axis, Mark, Plot, Series, Spacing};
use crate::scale::{PUBLISHED, Point};
use crate::text::{bytes, count, signed_percent};

const INKS: [Ink; 6] = [Ink::Blue, Ink::Vermillion, Ink::Green, Ink::Purple, Ink::Orange, Ink::Grey];

pub(super) fn scaling(evidence: &Evidence) -> Result<Section, LabError> {
    let all = &evidence.many.scaling;
    let published: Vec<_> = PUBLISHED.iter().map(|(row, text)| format!("{row}: {text}.")).collect();
    let mut section = Section::new("scaling", "Many vCPUs")
        .words(
            "One workload on more and more vCPUs of one virtual machine, in simulated time: the MMU lock is a queue, interrupts and kicks \
             are waited for. Each vCPU runs an instance of its own, threads where it says so.",
        )
        .figure(benefits(all)?)
        .words(
            "The benefit on one vCPU here is not that of the section on benefit: that one counts every reference's cache in the mode cycles, \
             with walk caches, and measures steady programs warm. The same workloads in both:",
        )
        .table(&conditions::COLUMNS, &twice(evidence));
    section = section.words(&format!("Published: {}", published.join(" ")));
    for one in all {
        let drawn = [
            ("throughput", one.table.throughput()?),
            ("errors", one.table.errors()?),
            ("waiting", one.table.waiting()?),
        ];
        section = section.figures(drawn.into_iter().map(|(name, figure)| {
            let figure = figure.titled(&format!("scaling-{}-{name}", one.id), one.title).made_by(&one.table.command);
            figure.with_words(&conditions::of_scale(&one.table))
        }));
    }
    let rows: Vec<Vec<String>> =
        all.iter().flat_map(|one| one.table.points.iter().map(|point| errors(one, point))).collect();
    let header =
        ["workload", "regime", "vCPUs", "measured", "MVA", "error", "assumptions", "USL error", "lock held", "waiting"];
    Ok(section
        .words(
            "Throughput of a vCPU relative to one alone: measured, by mean-value analysis fed from the run with one vCPU alone, which \
             also says whether its assumptions hold, and the error of the law of scalability fitted to all points.",
        )
        .details("The figures and their errors", &header, &rows))
}

/// Each workload on one vCPU, as the figure of many has it and as the section on benefit does, and how both were measured.
fn twice(evidence: &Evidence) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for one in &evidence.many.scaling {
        let kvm = one.table.benefits.iter().find(|row| row.shadow == RegimeKind::ShadowKvm61 && row.vcpus == 1);
        let Some(row) = kvm else { continue };
        let bar = evidence.fair.plain_of(&one.table.workload);
        if let Some((bar, value)) = bar.and_then(|bar| Some((bar, benefit_of(bar)?))) {
            rows.push(conditions::row_of_comparison(bar, signed_percent(value)));
        }
        rows.push(conditions::row_of_scale(&one.table, signed_percent(row.benefit)));
    }
    rows
}

fn errors(one: &Scaled, point: &Point) -> Vec<String> {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    vec![
        one.id.to_owned(),
        point.regime.to_string(),
        point.vcpus.to_string(),
        format!("{:.3}", point.efficiency),
        format!("{:.3}", point.mva.efficiency),
        // With one the analysis is fed what it is asked.
        if point.vcpus > 1 { signed_percent(point.mva_error) } else { "-".to_owned() },
        point.assumptions.name().to_owned(),
        point.usl_error.map_or_else(|| "-".to_owned(), signed_percent),
        percent(point.lock_utilization),
        percent(point.waits.total),
    ]
}

fn vcpus() -> Axis {
    Axis { name: "vCPUs".to_owned(), spacing: Spacing::Powers2, tick: |x| format!("{x:.0}") }
}

/// T_shadow / T_nested of all workloads, a doubling as far everywhere.
fn benefits(all: &[Scaled]) -> Result<Figure, LabError> {
    let rows_of = |one: &Scaled| -> Vec<(u16, f64)> {
        let kvm = one.table.benefits.iter().filter(|row| row.shadow == RegimeKind::ShadowKvm61);
        kvm.map(|row| (row.vcpus, 1.0 + row.benefit)).collect()
    };
    let line = |(i, one): (usize, &Scaled)| {
        let points = rows_of(one).into_iter().map(|(n, times)| (f64::from(n), times)).collect();
        Series::new(INKS[i % INKS.len()], one.title, Mark::DottedLine, points)
    };
    let mut series: Vec<_> = all.iter().enumerate().map(line).collect();
    let most = all.iter().flat_map(|one| &one.table.points).map(|point| point.vcpus).max().unwrap_or(2);
    series.push(Series::new(Ink::Muted, "", Mark::Dashed, vec![(1.0, 1.0), (f64::from(most), 1.0)]));
    let tick = |x: f64| if x < 1.0 { format!("{x}x") } else { format!("{x:.0}x") };
    let y = Axis { name: "time under shadow:kvm / time under nested".to_owned(), spacing: Spacing::Powers2, tick };
    let rows = all.iter().flat_map(|one| {
        rows_of(one)
            .into_iter()
            .map(|(n, times)| vec![one.id.to_owned(), n.to_string(), format!("{:.4}", 100.0 * (times - 1.0))])
    });
    let header = ["workload", "vcpus", "benefit_percent"].map(str::to_owned).to_vec();
    let caption = "T_shadow / T_nested against the number of vCPUs; above the dashed line nested paging wins. It grows with vCPUs where \
                   they come to queue for the MMU's lock (further down). How each was measured stands in the table below.";
    let plot = Plot { x: vcpus(), y, series };
    let figure = Figure::new(
        "scaling-benefit",
        "Benefit of nested paging by number of vCPUs",
        caption.to_owned(),
        (header, rows.collect()),
        plot,
    )?;
    Ok(figure.made_by_each(all.iter().map(|one| one.table.command.as_str())))
}

pub(super) fn footprint(evidence: &Evidence, section: Section) -> Result<Section, LabError> {
    let all = &evidence.many.footprints;
    let mut section = section.words(
        "Below, bytes of tables and records against the number of processes, each of which maps so much and stays: counted in the tables of \
         the run, beside what a model says that is given the parameters alone.",
    );
    for one in all {
        let command = &one.table.command;
        section = section
            .figure(one.table.against_processes()?.titled(&format!("footprint-{}", one.id), one.title).made_by(command))
            .figure(one.table.over_time()?.titled(&format!("footprint-{}-time", one.id), one.title).made_by(command));
    }
    let rows: Vec<Vec<String>> = all.iter().flat_map(sizes).collect();
    let header = [
        "what",
        "regime",
        "processes",
        "tables at the end",
        "with records",
        "predicted",
        "error",
        "at most",
        "shadow / nested",
    ];
    Ok(section.details("The sizes and the model's errors", &header, &rows))
}

fn sizes(one: &Residents) -> Vec<Vec<String>> {
    let row = |row: &crate::footprint::Row| {
        let end = row.measured.end;
        let beside = one.table.beside().find(|beside| std::ptr::eq(beside.shadow, row));
        vec![
            one.id.to_owned(),
            row.regime.to_string(),
            row.processes.to_string(),
            bytes(end.guest + end.shadow + end.nested),
            count(end.total()),
            row.predicted.map_or_else(|| "-".to_owned(), |predicted| count(predicted.total())),
            row.error.map_or_else(|| "-".to_owned(), |error| format!("{:+.2} %", 100.0 * error)),
            count(row.measured.peak.bytes.total()),
            beside.map_or_else(String::new, |beside| format!("{:.2}", beside.tables)),
        ]
    };
    one.table.rows.iter().map(row).collect()
}

pub(super) fn phase(evidence: &Evidence) -> Result<Section, LabError> {
    let (phase, planes) = (&evidence.many.phase, &evidence.many.vcpu_phase);
    let measured = match phase.measured_between {
        Some((below, above)) => format!("between {below:.0} and {above:.0} by the runs of the workload with two knobs"),
        None => "no such ratio in the runs, where one side always won".to_owned(),
    };
    let words = format!(
        "Nested paging pays for each TLB miss, shadow paging for each update of a page table. Break-even, in misses for one update: {:.0} \
         by the model, {measured}; {} of {} runs lie on the side of the model's line that won.",
        phase.model_misses_per_update, phase.right_side.0, phase.right_side.1
    );
    let ratios = planes.vcpus.iter().map(|vcpus| {
        let ratio = planes
            .border(*vcpus)
            .map_or_else(|| "none, one side always won".to_owned(), |(from, to)| format!("{from:.0} to {to:.0}"));
        format!("{vcpus} {}: {ratio}", if *vcpus == 1 { "vCPU" } else { "vCPUs" })
    });
    let (right, of) = planes.right();
    let more = format!(
        "With more vCPUs the handlers of shadow paging queue for the MMU lock. The border between the winners, in misses for one update, \
         lies between two points of the grid: {}. Mean-value analysis, fed from one vCPU, names the winner of {right} of {of} points with \
         several.",
        ratios.collect::<Vec<_>>().join("; ")
    );
    let quick = if evidence.effort == Effort::Quick { " --quick" } else { "" };
    let dots: Vec<Dot> = evidence.fair.plain.iter().filter_map(Dot::of).collect();
    let squares = format!("memvirt phase{quick} --machine {}", evidence.fits.machine);
    let commands = std::iter::once(squares.as_str()).chain(dots.iter().map(|dot| dot.command.as_str()));
    let plane = phase.figure_with(&dots)?.made_by_each(commands);
    let vcpus: Vec<String> = planes.vcpus.iter().map(u16::to_string).collect();
    Ok(Section::new("phase", "Who wins: the phase diagram").words(&words).figure(plane).words(&more).figure(
        planes.figure()?.made_by(&format!(
            "memvirt phase{quick} --vcpus {} --machine {}",
            vcpus.join(","),
            evidence.fits.machine
        )),
    ))
}
