//! The figures of a comparison: what each shows, its data, its caption.

use memvirt_machine::RunResult;

use super::chart::{Bar, Chart, Panel, Scale};
use super::figure::{Figure, column};
use super::paint::Ink;
use crate::comparison::Comparison;
use crate::error::LabError;
use crate::summary::{exits_for, reason_name, reasons};
use crate::text::{bytes, count, fraction, share, short};

struct Sketch {
    id: &'static str,
    title: &'static str,
    caption: String,
    header: Vec<String>,
    rows: Vec<Vec<String>>,
    chart: Chart,
}

impl Sketch {
    fn draw(self) -> Result<Figure, LabError> {
        let Self { id, title, caption, header, rows, chart } = self;
        Figure::new(id, title, caption, (header, rows), chart)
    }
}

/// All figures, in the order of the page.
pub(crate) fn figures(comparison: &Comparison) -> Result<Vec<Figure>, LabError> {
    let results = &comparison.results;
    [cycles(comparison), exits(results), references(results), tables(results)].into_iter().map(Sketch::draw).collect()
}

#[expect(clippy::cast_precision_loss, reason = "lengths of bars")]
const fn length(n: u64) -> f64 {
    n as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "ticks are small, not negative")]
const fn whole(x: f64) -> u64 {
    x as u64
}

/// A column for the regime, then these, all in one unit.
fn header(columns: &[&str], unit: &str) -> Vec<String> {
    std::iter::once("regime".to_owned()).chain(columns.iter().map(|name| column(name, unit))).collect()
}

fn row(result: &RunResult, cells: impl IntoIterator<Item = String>) -> Vec<String> {
    std::iter::once(result.regime.name().to_owned()).chain(cells).collect()
}

fn cycles(comparison: &Comparison) -> Sketch {
    let parts = |r: &RunResult| [r.cycles.base, r.cycles.translation, r.cycles.exits, r.cycles.waiting];
    let inks = [Ink::Blue, Ink::Green, Ink::Vermillion, Ink::Orange];
    let results = &comparison.results;
    let bar = |r: &RunResult| {
        let times = comparison.slowdown(r).filter(|_| results.len() > 1);
        let times = times.map_or(String::new(), |times| format!(", {times:.2}x native"));
        Bar {
            label: r.regime.name().to_owned(),
            parts: inks.into_iter().zip(parts(r).map(length)).collect(),
            value: short(r.cycles.total) + &times,
        }
    };
    let names = ["base", "translation", "exits", "waiting"];
    let used = |i: &usize| results.iter().any(|r| parts(r)[*i] > 0);
    Sketch {
        id: "cycles",
        title: "Where the cycles go",
        caption: format!(
            "Cycles of the whole run on {}, by what they were spent on. Base is the guest's own work, its kernel's included; \
             translation is second-level TLB hits and page walks; exits are the round trips to the hypervisor and its \
             handlers; waiting is for locks and other vCPUs. Counts come from the simulation, prices from the machine file \
             below.",
            comparison.machine.title
        ),
        header: [
            header(&["base", "translation", "exits", "waiting", "total"], "cycles"),
            vec!["exits_time_percent".to_owned()],
        ]
        .concat(),
        rows: results
            .iter()
            .map(|r| {
                let cells = parts(r).into_iter().chain([r.cycles.total]).map(count);
                row(r, cells.chain([share(r.cycles.exits, r.cycles.total)]))
            })
            .collect(),
        chart: Chart {
            axis: "cycles",
            scale: Scale::Decimal,
            tick: |x| short(whole(x)),
            legend: (0..4).filter(used).map(|i| (inks[i], names[i])).collect(),
            panels: vec![Panel { heading: None, bars: results.iter().map(bar).collect() }],
            marks: Vec::new(),
        },
    }
}

fn exits(results: &[RunResult]) -> Sketch {
    let reasons: Vec<_> = reasons(results).collect();
    let bar = |r: &RunResult, reason| {
        let n = exits_for(r, reason);
        let parts = vec![(Ink::Vermillion, length(n))];
        Bar { label: reason_name(reason).to_owned(), parts, value: count(n) }
    };
    let panel = |r: &RunResult| {
        let virtualized = r.total_exits() > 0;
        Panel {
            heading: Some(format!(
                "{}: {}",
                r.regime,
                if virtualized { count(r.total_exits()) } else { "none".into() }
            )),
            bars: if virtualized { reasons.iter().map(|reason| bar(r, *reason)).collect() } else { Vec::new() },
        }
    };
    let columns: Vec<_> = reasons.iter().map(|reason| reason_name(*reason)).chain(["total"]).collect();
    Sketch {
        id: "exits",
        title: "VM exits by reason",
        caption: "How often the guest stopped and the hypervisor ran, over the whole run. The guest executes the same stream \
                  under every regime; the regime decides which of its events exit."
            .to_owned(),
        header: header(&columns, "exits"),
        rows: results
            .iter()
            .map(|r| row(r, reasons.iter().map(|reason| exits_for(r, *reason)).chain([r.total_exits()]).map(count)))
            .collect(),
        chart: Chart {
            axis: "VM exits",
            scale: Scale::Decimal,
            tick: |x| short(whole(x)),
            legend: Vec::new(),
            panels: results.iter().map(panel).collect(),
            marks: Vec::new(),
        },
    }
}

fn references(results: &[RunResult]) -> Sketch {
    let parts = |r: &RunResult| [r.walk_refs.guest, r.walk_refs.shadow, r.walk_refs.host].map(|n| fraction(n, r.walks));
    let inks = [(Ink::Blue, "guest tables"), (Ink::Purple, "shadow tables"), (Ink::Vermillion, "nested tables")];
    let bar = |r: &RunResult| Bar {
        label: r.regime.name().to_owned(),
        parts: inks.iter().map(|(ink, _)| *ink).zip(parts(r)).collect(),
        value: format!("{:.2}", r.refs_per_walk()),
    };
    let used = |i: &usize| results.iter().any(|r| parts(r)[*i] > 0.0);
    let two = results.iter().any(|r| r.walk_refs.host > 0);
    let one = results.iter().any(|r| r.walk_refs.host == 0);
    let marks = [(one, 4.0, "4"), (two, 24.0, "24")];
    Sketch {
        id: "references",
        title: "Memory references of a page walk",
        caption: "References to page tables that the hardware makes for one TLB miss, on average over the run's walks. Dashed: \
                  a walk through 4 levels with 4 KiB pages makes 4 in one dimension and 24 in two, because each of the guest's \
                  4 tables and the data has its own address translated by 4 nested tables. Large pages and walks that end \
                  early in a fault make fewer."
            .to_owned(),
        header: ["regime", "walks", "guest_references", "shadow_references", "nested_references", "references_per_walk"]
            .map(str::to_owned)
            .to_vec(),
        rows: results
            .iter()
            .map(|r| {
                let refs = [r.walks, r.walk_refs.guest, r.walk_refs.shadow, r.walk_refs.host].map(count);
                row(r, refs.into_iter().chain([format!("{:.3}", r.refs_per_walk())]))
            })
            .collect(),
        chart: Chart {
            axis: "references per walk",
            scale: Scale::Decimal,
            tick: |x| count(whole(x)),
            legend: (0..3).filter(used).map(|i| inks[i]).collect(),
            panels: vec![Panel { heading: None, bars: results.iter().map(bar).collect() }],
            marks: marks.into_iter().filter(|(shown, _, _)| *shown).map(|(_, at, name)| (at, name)).collect(),
        },
    }
}

fn tables(results: &[RunResult]) -> Sketch {
    let parts =
        |r: &RunResult| [r.table_bytes.guest, r.table_bytes.shadow, r.table_bytes.nested, r.table_bytes.metadata];
    let kinds = [
        (Ink::Blue, "guest tables"),
        (Ink::Purple, "shadow tables"),
        (Ink::Vermillion, "nested tables"),
        (Ink::Grey, "hypervisor's records"),
    ];
    let panel = |r: &RunResult| Panel {
        heading: Some(format!("{}: {}", r.regime, bytes(r.table_bytes.total))),
        bars: kinds
            .iter()
            .zip(parts(r))
            .filter(|(_, n)| *n > 0)
            .map(|((ink, name), n)| Bar { label: (*name).to_owned(), parts: vec![(*ink, length(n))], value: bytes(n) })
            .collect(),
    };
    Sketch {
        id: "tables",
        title: "Memory for page tables",
        caption: "Bytes of page tables at the end of the run, by whose they are. The hypervisor's records are what it keeps \
                  beside its tables: of shadow paging, the reverse map and the marks of tables among the guest's frames, which \
                  grow with the guest's memory and not with its tables."
            .to_owned(),
        header: header(&["guest", "shadow", "nested", "records", "total", "at most"], "bytes"),
        rows: results
            .iter()
            .map(|r| row(r, parts(r).into_iter().chain([r.table_bytes.total, r.table_bytes.peak]).map(count)))
            .collect(),
        chart: Chart {
            axis: "bytes",
            scale: Scale::Binary,
            tick: |x| bytes(whole(x)),
            legend: Vec::new(),
            panels: results.iter().map(panel).collect(),
            marks: Vec::new(),
        },
    }
}
