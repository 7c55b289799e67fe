//! What the quick form of the report cuts, and what that changes: said at the head of its page.

use super::conditions;
use crate::claims::{Effort, Evidence};
use crate::report::html::{escape, prose, table};
use crate::text::count;

/// A workload that comes out on another side in the quick form than in the full one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedByCuts {
    /// The workload, or the claim.
    pub id: &'static str,
    /// In which part of the page.
    pub part: &'static str,
    /// What the quick form has.
    pub quick: &'static str,
    /// What the full form has.
    pub full: &'static str,
}

/// All of them, on the default machine; others were not compared. A test holds them against a full report.
pub const CHANGED_BY_CUTS: [ChangedByCuts; 4] = [
    ChangedByCuts {
        id: "jvm",
        part: "benefit",
        quick: "shadow paging wins: nothing is collected after the warm-up",
        full: "nested paging wins: the collector gives pages back, and tables change",
    },
    ChangedByCuts { id: "context-switch-96", part: "benefit", quick: "gains more than 20 %", full: "gains up to 20 %" },
    ChangedByCuts {
        id: "churn",
        part: "scaling",
        quick: "the benefit of its threads does not grow with vCPUs",
        full: "it grows, from some vCPUs on",
    },
    ChangedByCuts {
        id: "same-structure",
        part: "claims",
        quick: "the claim holds under a condition",
        full: "the claim fails: shadow tables are more than a tenth larger",
    },
];

/// The words at the head of the page; nothing in the full form.
pub(super) fn head(evidence: &Evidence, command: &str) -> String {
    if evidence.effort == Effort::Full {
        return String::new();
    }
    let full = command.replacen(" --quick", "", 1);
    let cut: Vec<Vec<String>> = evidence
        .fair
        .plain
        .iter()
        .filter_map(|one| {
            let words = cuts(&one.command);
            let counted = count(conditions::accesses(one)[0]);
            (!words.is_empty()).then(|| vec![one.workload.name().to_owned(), words, counted])
        })
        .collect();
    let changed = CHANGED_BY_CUTS.map(|one| [one.id, one.part, one.quick, one.full].map(str::to_owned).to_vec());
    let header = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    let rows =
        |rows: &[Vec<String>], names: &[&str]| table(&header(names), rows.iter().map(|row| (row.as_slice(), "")));
    format!(
        "<div class=\"cut\">\n<p><strong>The runs of this page are cut.</strong> {}</p>\n{}<details><summary>What was cut of the {} \
         workloads</summary>{}</details>\n<p>The full form: <code>{}</code></p>\n</div>\n",
        prose(
            "Workloads run a twentieth of their accesses, but no fewer than 50,000, warm-up included, and large areas are 32 MiB; on several \
             vCPUs, which end at 16, each runs some hundred or thousand accesses (in the section on vCPUs); one workload stands for five in \
             the section on the literature's models. On `skylake-sp` directions are as in the full form but for these, which come out on \
             another side:"
        ),
        rows(&changed, &["what", "part", "here", "in the full form"]),
        cut.len(),
        rows(&cut, &["workload", "cut by", "counted accesses"]),
        escape(&full)
    )
}

/// The words of a command that cut its run.
fn cuts(command: &str) -> String {
    let words = command.split(" --").skip(1);
    let cut = words.filter(|word| ["scale ", "footprint ", "set "].iter().any(|start| word.starts_with(start)));
    cut.map(|word| format!("--{word}")).collect::<Vec<_>>().join(" ")
}
