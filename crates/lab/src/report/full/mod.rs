//! The whole report: the claims and their verdicts, every table and figure behind them, each with the command that makes it.
//!
//! One page that works from a file: no network, no other file needed, plain JavaScript for the walk that can be stepped through
//! (without it, the walk's table is there). Figures and their data lie beside it.

mod benefit;
mod sections;
mod steps;

use std::path::Path;

use super::figures::Figure;
use super::html::{document, escape, figure_block, table};
use super::{write, write_figures};
use crate::claims::{Claim, Effort, Evidence, claims};
use crate::error::LabError;

/// A figure and the command that makes its data.
pub(super) struct Shown {
    figure: Figure,
    command: String,
}

/// Writes the report into the folder `dir`: `index.html`, `claims.json`, and each figure as SVG with its data as CSV.
///
/// # Errors
///
/// [`LabError`] where a figure cannot be drawn or a file cannot be written.
pub fn write_full_report(dir: &Path, evidence: &Evidence, command: &str) -> Result<(), LabError> {
    let claims = claims(evidence);
    let shown = benefit::figures(evidence)?;
    let page = page(evidence, &claims, &shown, command)?;
    let figures: Vec<Figure> = shown.into_iter().map(|shown| shown.figure).collect();
    write_figures(dir, &figures)?;
    write(&dir.join("claims.json"), &(serde_json::to_string_pretty(&claims)? + "\n"))?;
    write(&dir.join("index.html"), &page)
}

fn page(evidence: &Evidence, claims: &[Claim], shown: &[Shown], command: &str) -> Result<String, LabError> {
    let mut body = head(evidence, command);
    body += &claims_table(claims);
    let figure = |body: &mut String, id: &str| {
        for one in shown.iter().filter(|one| one.figure.id == id) {
            *body += &figure_block(&one.figure, &one.command, "");
        }
    };
    for id in ["benefit", "benefit-kpti", "cycles"] {
        figure(&mut body, id);
    }
    body += &steps::section()?;
    body += &sections::references(evidence);
    figure(&mut body, "references");
    body += &sections::events(evidence);
    for id in ["exits", "stores", "footprint"] {
        figure(&mut body, id);
    }
    body += &sections::isolation(evidence);
    body += &sections::nested_virt(evidence);
    body += &sections::published(evidence);
    Ok(document("memvirt: the report", &body))
}

fn head(evidence: &Evidence, command: &str) -> String {
    let effort = match evidence.effort {
        Effort::Quick => "quick: workloads cut to a twentieth, but to no fewer than 50,000 accesses",
        Effort::Full => "full: workloads as their files say",
    };
    let machine = evidence.plain.first().map_or("", |comparison| comparison.machine.title.as_str());
    format!(
        "<header>\n<p class=\"kind\">memvirt report</p>\n<h1>Shadow paging or nested paging?</h1>\n<p class=\"lead\">What the lecture \
         claims, what memvirt measures, and where each claim stops being true.</p>\n<dl class=\"facts\">\n<dt>Machine</dt><dd>{}</dd>\n\
         <dt>Effort</dt><dd>{effort}</dd>\n<dt>Benefit</dt><dd>T<sub>shadow</sub> / T<sub>nested</sub> &minus; 1, shadow is KVM&rsquo;s \
         shadow MMU, with the same page sizes, isolation and tags on both sides</dd>\n</dl>\n<pre><code>{}</code></pre>\n</header>\n",
        escape(machine),
        escape(command)
    )
}

fn claims_table(claims: &[Claim]) -> String {
    let row = |claim: &Claim| {
        format!(
            "<tr id=\"claim-{}\"><th scope=\"row\">{}</th><td>{}</td><td class=\"verdict {}\">{}</td><td><a href=\"#{}\">shown</a></td>\
             <td><code>{}</code></td></tr>\n",
            claim.id,
            escape(claim.claim),
            escape(&claim.measured),
            claim.verdict.words().replace(' ', "-"),
            claim.verdict.words(),
            claim.shown,
            escape(&claim.command)
        )
    };
    format!(
        "<section id=\"claims\">\n<h2>The claims</h2>\n<div class=\"scroll\"><table class=\"prose\">\n<thead><tr><th scope=\"col\">claim</th>\
         <th scope=\"col\">measured</th><th scope=\"col\">verdict</th><th scope=\"col\">where</th><th scope=\"col\">command</th></tr></thead>\n\
         <tbody>\n{}</tbody>\n</table></div>\n</section>\n",
        claims.iter().map(row).collect::<String>()
    )
}

/// A section with a heading, a paragraph and a table.
fn section(id: &str, title: &str, words: &str, header: &[&str], rows: &[Vec<String>]) -> String {
    let header: Vec<_> = header.iter().map(|&cell| cell.to_owned()).collect();
    format!(
        "<section id=\"{id}\">\n<h2>{}</h2>\n<p>{}</p>\n{}</section>\n",
        escape(title),
        escape(words),
        table(&header, rows.iter().map(|row| (row.as_slice(), "")))
    )
}
