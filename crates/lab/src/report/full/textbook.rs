//! A textbook's exercise, answered with memvirt's own walks and the model `textbook-5-14`; its figures can be changed on the page,
//! where a little plain JavaScript computes the same formulas.

use memvirt_costmodel::Model;
use memvirt_machine::RegimeKind;

use super::Section;
use crate::claims::{Evidence, result};
use crate::error::LabError;
use crate::report::html::escape;
use crate::text::fraction;
use crate::walk::RecordedWalk;

const SCRIPT: &str = include_str!("textbook.js");
const MODEL: &str = "textbook-5-14";

/// An input of the page: the parameter of the model, its label, and how many of the model's units one of the page's is.
const FIELDS: [(&str, &str, f64); 5] = [
    ("base", "cycles for each instruction, not virtualized", 1.0),
    ("tlb_misses", "TLB misses for 1000 instructions", 1000.0),
    ("page_faults", "page faults for 1000 instructions", 1000.0),
    ("nested_miss", "cycles of a TLB miss under nested paging", 1.0),
    ("shadow_fault", "cycles of a page fault under shadow paging", 1.0),
];

/// A result of the page: the model's output, its label, and the factor as above.
const RESULTS: [(&str, &str, f64); 5] = [
    ("shadow", "cycles for each instruction under shadow paging", 1.0),
    ("nested", "cycles for each instruction under nested paging", 1.0),
    ("reference", "cycles for each reference that this miss leaves", 1.0),
    ("extra", "under nested paging, counting only the references that it adds", 1.0),
    ("even", "page faults for 1000 instructions at which both cost the same", 1000.0),
];

/// How results are written, here and by the script.
fn fixed(value: f64) -> String {
    format!("{value:.5}")
}

/// Without zeros that say nothing.
fn plain(value: f64) -> String {
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn references(walks: &[RecordedWalk], regime: &str) -> Option<usize> {
    walks.iter().find(|walk| walk.regime == regime && walk.guest_page == "4K").map(|walk| walk.total)
}

#[expect(clippy::cast_precision_loss, reason = "references of one walk")]
pub(super) fn section(evidence: &Evidence) -> Result<Section, LabError> {
    let failed = |error: &dyn std::fmt::Display| LabError::Model(error.to_string());
    let model = Model::find(MODEL).map_err(|error| failed(&error))?;
    let refs = |regime| {
        references(&evidence.walks, regime)
            .ok_or_else(|| LabError::Walk(format!("no {regime} walk of 4 KiB pages was recorded")))
    };
    let (native, nested) = (refs("native")?, refs("nested")?);
    let point = [("native_refs", native as f64), ("nested_refs", nested as f64)];
    let values = model.at(&point).map_err(|error| failed(&error))?;
    let result = |name: &str| {
        let at = model.outputs().position(|output| output.name == name);
        at.and_then(|at| values.get(at)).copied().ok_or_else(|| failed(&name))
    };
    let own = own_figures(evidence);
    let mut inputs = String::new();
    for (name, label, factor) in FIELDS {
        let param = model.params().iter().find(|param| param.name == name).ok_or_else(|| failed(&name))?;
        let own = own.iter().find(|(field, _)| *field == name);
        let own = own.map_or_else(String::new, |(_, value)| format!(" data-own=\"{}\"", plain(*value)));
        let given = plain(param.value * factor);
        inputs += &format!(
            "<label><span>{}</span> <input name=\"{name}\" type=\"number\" step=\"any\" min=\"0\" value=\"{given}\" \
             data-given=\"{given}\"{own}></label>\n",
            escape(label)
        );
    }
    let mut outputs = String::new();
    for (name, label, factor) in RESULTS {
        let value = fixed(result(name)? * factor);
        outputs += &format!(
            "<dt>{}</dt><dd><output name=\"{name}\" data-rust=\"{value}\">{value}</output></dd>\n",
            escape(label)
        );
    }
    let answer = format!(
        "A TLB miss makes {native} references natively and {nested} under nested paging, counted by walking tables of 4 levels with 4 KiB \
         pages. With the exercise's figures an instruction takes {:.2} cycles under shadow paging and {:.2} under nested paging. What \
         would help: shadow tables that may go out of sync, so that fewer stores trap; walk caches and large pages, so that a walk in two \
         dimensions makes fewer references.",
        result("shadow")?,
        result("nested")?
    );
    Ok(Section::new("textbook", "A textbook's exercise")
        .words(
            "Patterson and Hennessy, Computer Organization and Design, 5th edition, exercise 5.14: how many memory references a TLB miss \
             makes natively and under nested paging, and what an instruction costs under shadow paging and under nested paging.",
        )
        .words(&answer)
        .html(format!(
            "<form id=\"exercise\" class=\"exercise\" data-native=\"{native}\" data-nested=\"{nested}\" onsubmit=\"return false\">\n{inputs}\
             <p class=\"choices\" hidden><button type=\"button\" data-set=\"given\">The exercise&rsquo;s figures</button> \
             <button type=\"button\" data-set=\"own\">memvirt&rsquo;s figures</button></p>\n\
             <dl class=\"facts\" aria-live=\"polite\">\n{outputs}</dl>\n</form>\n<script>\n{SCRIPT}</script>\n"
        ))
        .words(
            "memvirt's figures: TLB misses and faults of `web-server`, natively; what its walks cost under nested paging; and what its page \
             faults cost in exits and handlers under KVM's shadow MMU.",
        )
        .command(&format!("memvirt model eval {MODEL} native_refs={native} nested_refs={nested}")))
}

/// The same figures as memvirt measures them, in the page's units.
fn own_figures(evidence: &Evidence) -> Vec<(&'static str, f64)> {
    let of = |regime| evidence.of("web-server").and_then(|comparison| result(comparison, regime));
    let runs = (of(RegimeKind::Native), of(RegimeKind::NestedEpt), of(RegimeKind::ShadowKvm61));
    let (Some(native), Some(nested), Some(shadow)) = runs else { return Vec::new() };
    let instructions = native.guest.instructions;
    vec![
        ("base", fraction(native.cycles.total, instructions)),
        ("tlb_misses", 1000.0 * fraction(native.walks, instructions)),
        ("page_faults", 1000.0 * fraction(native.guest_page_faults, instructions)),
        ("nested_miss", fraction(nested.cycles.translation, nested.walks)),
        ("shadow_fault", fraction(shadow.cycles.exits, shadow.guest_page_faults)),
    ]
}
