//! The whole report: the claims and their verdicts, every table and figure behind them, each with the command that makes it.
//!
//! One page that works from a file: no network, no other file needed, plain JavaScript for the walk that can be stepped through
//! (without it, the walk's table is there). Figures and their data lie beside it.

mod benefit;
mod breakdown;
mod conditions;
mod cut;
mod fits;
mod literature;
mod many;
mod sections;
mod steps;
mod textbook;

use std::path::Path;

use super::html::{escape, prose};
use super::section::{Page, Section};
use crate::claims::{Claim, Effort, Evidence, claims};
use crate::error::LabError;
pub use cut::{CHANGED_BY_CUTS, ChangedByCuts};
pub use fits::write_fits;

/// Writes the report into the folder `dir`: `index.html`, `claims.json`, and each figure as SVG and PNG with its data as CSV.
///
/// # Errors
///
/// [`LabError`] where a figure cannot be drawn or a file cannot be written.
pub fn write_full_report(dir: &Path, evidence: &Evidence) -> Result<(), LabError> {
    page(evidence)?.write(dir)
}

fn page(evidence: &Evidence) -> Result<Page, LabError> {
    let command = evidence.command();
    let claims = claims(evidence);
    let mut sections = vec![claims_table(&claims), benefit::benefits(evidence)?, breakdown::accounts(evidence)?];
    sections.push(steps::section()?);
    sections.push(sections::references(evidence).figure(benefit::references(evidence)?));
    sections.extend(sections::events(evidence));
    sections.push(benefit::traps(evidence)?);
    sections.push(many::scaling(evidence)?);
    sections.push(many::footprint(evidence, benefit::tables(evidence)?)?);
    sections.push(many::phase(evidence)?);
    sections.push(fits::section(&evidence.fits)?);
    sections.push(literature::section(&evidence.fits));
    sections.extend([sections::isolation(evidence), sections::nested_virt(evidence), sections::published(evidence)]);
    sections.push(textbook::section(evidence)?);
    Ok(Page {
        title: "memvirt: the report".to_owned(),
        head: head(evidence, &command),
        command,
        sections,
        foot:
            "<p>Data: <a href=\"claims.json\">claims.json</a>, and beside each figure. The same command gives the same \
               bytes.</p>\n"
                .to_owned(),
        data: vec![("claims.json", serde_json::to_string_pretty(&claims)? + "\n")],
    })
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
         shadow MMU, with the same page sizes, isolation and tags on both sides</dd>\n</dl>\n<pre><code>{}</code></pre>\n{}</header>\n",
        escape(machine),
        escape(command),
        cut::head(evidence, command)
    )
}

fn claims_table(claims: &[Claim]) -> Section {
    let row = |claim: &Claim| {
        let condition =
            claim.condition().map_or_else(String::new, |words| format!("<p class=\"when\">{}</p>", prose(words)));
        format!(
            "<tr id=\"claim-{}\"><th scope=\"row\">{}</th><td>{condition}{}<p class=\"made\"><code>{}</code></p></td>\
             <td class=\"verdict {}\">{}</td><td><a href=\"#{}\">shown</a></td></tr>\n",
            claim.id,
            prose(claim.claim),
            prose(claim.figures()),
            escape(&claim.command),
            claim.verdict.words().replace(' ', "-"),
            claim.verdict.words(),
            claim.shown
        )
    };
    Section::new("claims", "The claims").html(format!(
        "<div class=\"scroll\"><table class=\"prose\">\n<thead><tr><th scope=\"col\">claim</th><th scope=\"col\">measured, and the command</th>\
         <th scope=\"col\">verdict</th><th scope=\"col\">where</th></tr></thead>\n<tbody>\n{}</tbody>\n\
         </table></div>\n",
        claims.iter().map(row).collect::<String>()
    ))
}
