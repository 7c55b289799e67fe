//! The page of one comparison: its figures, everything that was counted, and where every price comes from.

use std::fmt::Write as _;

use memvirt_machine::spec::Listed;
use memvirt_machine::{Outcome, RunResult};
use memvirt_platform::ExitReason;

use super::figures::figures;
use super::html::{escape, table};
use super::section::{Page, Section};
use crate::comparison::Comparison;
use crate::error::LabError;
use crate::summary::{outcome, reason_name, reasons, summary};
use crate::text::{bytes, count, short, signed_percent};

/// The whole page.
pub(crate) fn page(comparison: &Comparison) -> Result<Page, LabError> {
    let mut drawn = Section::new("figures", "Figures").figures(figures(comparison)?);
    let words = glossary(comparison);
    if !words.is_empty() {
        drawn = drawn.html(words);
    }
    let sections = vec![drawn, whole_table(comparison), account(comparison), prices(comparison)];
    let foot = format!(
        "<p>Data: <a href=\"comparison.json\">comparison.json</a>, <a href=\"comparison.csv\">comparison.csv</a>. Schema {}. The \
         same command gives the same bytes.</p>\n",
        Comparison::SCHEMA
    );
    Ok(Page {
        title: format!("{}: memvirt", comparison.workload.name()),
        head: head(comparison) + &cards(comparison) + &benefits(comparison),
        command: format!("{} --out DIR", comparison.command),
        sections,
        foot,
        data: vec![("comparison.json", comparison.to_json()?), ("comparison.csv", comparison.to_csv()?)],
    })
}

fn head(comparison: &Comparison) -> String {
    let regimes: Vec<_> = comparison.results.iter().map(|result| result.regime.name()).collect();
    let mut facts = vec![
        ("Machine", comparison.machine.title.clone()),
        ("Regimes", regimes.join(", ")),
        ("Switches", comparison.switches()),
    ];
    if let crate::input::Described::Trace(trace) = &comparison.workload {
        let skipped = if trace.malformed > 0 { format!(", {} skipped", count(trace.malformed)) } else { String::new() };
        let lines = match trace.density {
            Some(density) => format!("packed as {density}"),
            None => format!("{} lines{skipped}", count(trace.lines)),
        };
        let lines =
            format!("{lines}, {} processes, {} instructions", count(trace.processes), count(trace.instructions));
        facts.insert(0, ("Trace", lines));
    } else {
        facts.push(("Seed", comparison.seed.to_string()));
    }
    let ended: Vec<String> = comparison
        .results
        .iter()
        .filter(|result| result.outcome != Outcome::Completed)
        .map(|result| format!("{}: {}", result.regime, outcome(result.outcome)))
        .collect();
    if !ended.is_empty() {
        facts.insert(0, ("Ended early", ended.join("; ")));
    }
    let facts: String = facts.iter().map(|(k, v)| format!("<dt>{k}</dt><dd>{}</dd>\n", escape(v))).collect();
    format!(
        "<header>\n<p class=\"kind\">memvirt comparison</p>\n<h1>{}</h1>\n<p class=\"lead\">{}</p>\n<dl class=\"facts\">\n{facts}</dl>\n\
         <pre><code>{}</code></pre>\n</header>\n",
        escape(comparison.workload.name()),
        escape(&comparison.workload.title()),
        escape(&comparison.command)
    )
}

fn cards(comparison: &Comparison) -> String {
    let card = |r: &RunResult| {
        let times = comparison.slowdown(r).map_or_else(|| short(r.cycles.total), |times| format!("{times:.2}x"));
        let unit = if comparison.slowdown(r).is_some() { "the native run's time" } else { "cycles" };
        format!(
            "<li><h2>{}</h2><p class=\"big\">{times}</p><p>{unit}</p><ul><li><b>{}</b> exits</li>\
             <li><b>{:.2}</b> references a walk</li><li><b>{}</b> of page tables</li></ul></li>\n",
            escape(r.regime.name()),
            count(r.total_exits()),
            r.refs_per_walk(),
            bytes(r.table_bytes.total)
        )
    };
    format!("<ul class=\"cards\">\n{}</ul>\n", comparison.results.iter().map(card).collect::<String>())
}

fn benefits(comparison: &Comparison) -> String {
    let mut text = String::new();
    for benefit in comparison.benefits() {
        let _ = writeln!(
            text,
            "<p class=\"benefit\">Benefit of <b>{}</b> over <b>{}</b>: <b>{}</b> <span>(T<sub>shadow</sub> / \
             T<sub>nested</sub> &minus; 1, with the switches above)</span></p>",
            escape(benefit.nested.regime.name()),
            escape(benefit.shadow.regime.name()),
            signed_percent(benefit.value())
        );
    }
    text
}

/// What the exits of the page mean.
fn glossary(comparison: &Comparison) -> String {
    let entries: String = reasons(&comparison.results)
        .map(|reason| format!("<dt>{}</dt><dd>{}</dd>\n", reason_name(reason), meaning(reason)))
        .collect();
    if entries.is_empty() { entries } else { format!("<dl class=\"words\">\n{entries}</dl>\n") }
}

const fn meaning(reason: ExitReason) -> &'static str {
    match reason {
        ExitReason::HiddenFault => {
            "only the shadow tables lacked the translation or the permission; the hypervisor fills them in and resumes"
        }
        ExitReason::ReflectedFault => {
            "the guest's own tables forbid the access; the hypervisor took the fault first and passes it on"
        }
        ExitReason::TableWrite => "the guest stored to one of its page tables, which is write-protected",
        ExitReason::Invlpg => "the guest flushed one page of its TLB",
        ExitReason::Cr3Load => "the guest changed its address space, or entered or left its kernel under isolation",
        ExitReason::CrAccess => "the guest accessed CR0 or CR4",
        ExitReason::Invpcid => "the guest flushed by process-context identifier",
        ExitReason::EptViolation => {
            "the nested tables did not map a guest frame yet; one for each frame touched, those of page tables included"
        }
        ExitReason::EptMisconfig => "an entry of the nested tables has illegal bits, on purpose: a device's page",
        ExitReason::Mmio => "an access to an address that is no memory",
        ExitReason::PmlFull => "the log of dirtied pages was full",
        ExitReason::Ipi => "an interrupt to or from another vCPU",
        ExitReason::Hypercall => "the guest asked its hypervisor for a service",
        ExitReason::PortIo => "port I/O",
        ExitReason::Msr => "a model-specific register was read or written",
        ExitReason::Cpuid => "CPUID",
        ExitReason::Halt => "the guest had nothing to do",
    }
}

fn whole_table(comparison: &Comparison) -> Section {
    let mut header = vec![String::new()];
    header.extend(comparison.results.iter().map(|result| result.regime.name().to_owned()));
    let mut rows: Vec<(Vec<String>, &str)> = Vec::new();
    for group in summary(comparison) {
        let mut title = vec![group.title.to_owned()];
        title.resize(header.len(), String::new());
        rows.push((title, "group"));
        for row in group.rows {
            let class = if row.total { "sum" } else { "" };
            rows.push((std::iter::once(row.label).chain(row.cells).collect(), class));
        }
    }
    let rows = rows.iter().map(|(row, class)| (row.as_slice(), *class));
    Section::new("all", "Everything that was counted").html(table(&header, rows))
}

/// Every item of the cycle account.
fn account(comparison: &Comparison) -> Section {
    let mut header = vec!["item".to_owned()];
    header.extend(comparison.results.iter().map(|result| result.regime.name().to_owned()));
    let mut items: Vec<(&'static str, &str)> = Vec::new();
    for part in comparison.results.iter().flat_map(|result| &result.cycles.parts) {
        if !items.contains(&(part.group, part.name.as_str())) {
            items.push((part.group, &part.name));
        }
    }
    let groups = ["base", "translation", "exits", "waiting"];
    items.sort_by_key(|(group, _)| groups.iter().position(|known| known == group));
    let cell = |result: &RunResult, (group, name): (&str, &str)| {
        let part = result.cycles.parts.iter().find(|part| part.group == group && part.name == name);
        part.map_or_else(|| "-".to_owned(), |part| format!("{} for {}", count(part.cycles), count(part.count)))
    };
    let rows: Vec<Vec<String>> = items
        .iter()
        .map(|item| {
            let label = format!("{}: {}", item.0, item.1.replace('_', " "));
            std::iter::once(label).chain(comparison.results.iter().map(|result| cell(result, *item))).collect()
        })
        .collect();
    Section::new("account", "The cycle account")
        .words("Cycles, and for how many things. The items add up to the totals exactly.")
        .html(table(&header, rows.iter().map(|row| (row.as_slice(), ""))))
}

fn prices(comparison: &Comparison) -> Section {
    let machine = &comparison.machine;
    let header = ["figure", "value", "unit", "source"].map(str::to_owned);
    let rows: Vec<(Vec<String>, &str)> = machine
        .figures()
        .map(|Listed { section, name, unit, figure }| {
            let label = format!("{section}: {}", name.replace('_', " "));
            let class = if figure.is_estimate() { "estimate" } else { "" };
            (vec![label, count(u64::from(figure.value)), unit.to_owned(), figure.source.clone()], class)
        })
        .collect();
    let estimates = rows.iter().filter(|(_, class)| !class.is_empty()).count();
    let estimated =
        format!("{estimates} of {} figures are estimates that nobody measured; they stand in italics.", rows.len());
    Section::new("machine", "The machine")
        .class("sources")
        .words(machine.about.trim())
        .words(&format!("TLB: {}", machine.tlb.source))
        .words(&estimated)
        .html(table(&header, rows.iter().map(|(row, class)| (row.as_slice(), *class))))
}
