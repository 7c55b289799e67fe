//! The report's tables: events and their exits, references, two machines, nested virtualization, published figures.

use memvirt_nestedvirt::Arrangement;

use super::Section;
use crate::claims::Evidence;
use crate::nested_virt::Published;
use crate::published::PublishedRow;
use crate::text::count;

pub(super) fn references(evidence: &Evidence) -> Section {
    let rows: Vec<_> = evidence
        .walks
        .iter()
        .map(|walk| {
            let (guest, host) = (u64::from(walk.guest_levels), u64::from(walk.host_levels));
            let whose = if walk.regime == "native" { "-".to_owned() } else { walk.host_page.to_owned() };
            let form = if walk.regime == "native" { "g" } else { "(g + 1)(h + 1) - 1" };
            let (g, h) = (leaf_depth(guest, walk.guest_page), leaf_depth(host, walk.host_page));
            let closed = if walk.regime == "native" { g } else { (g + 1) * (h + 1) - 1 };
            let cells = [walk.regime.to_owned(), walk.guest_page.to_owned(), whose, walk.total.to_string()];
            cells.into_iter().chain([format!("{form} = {closed}")]).collect()
        })
        .collect();
    Section::new("matrix", "References of a cold walk")
        .words(
            "Counted by walking tables in simulated memory, beside the closed form for g guest and h host levels read.",
        )
        .table(&["regime", "guest page", "host page", "references walked", "closed form"], &rows)
}

/// How many levels are read down to a leaf of this size.
fn leaf_depth(levels: u64, page: &str) -> u64 {
    levels
        - match page {
            "1G" => 2,
            "2M" => 1,
            _ => 0,
        }
}

pub(super) fn events(evidence: &Evidence) -> Vec<Section> {
    let mut sections = Vec::new();
    for (i, table) in evidence.exits.iter().enumerate() {
        let header: Vec<&str> = ["row", "event", "done"].into_iter().chain(table.regimes.iter().copied()).collect();
        let rows: Vec<Vec<String>> = table
            .rows
            .iter()
            .map(|row| {
                let cells = row.cells.iter().map(|cell| match (cell.exits, cell.agrees) {
                    (None, _) => "-".to_owned(),
                    (Some(exits), Some(false)) => format!("{exits} \u{2260}"),
                    (Some(exits), _) => exits.to_string(),
                });
                [row.row, row.event, row.done].map(str::to_owned).into_iter().chain(cells).collect()
            })
            .collect();
        let notes: Vec<_> = table.rows.iter().flat_map(|row| &row.cells).filter_map(|cell| cell.note).collect();
        let hardware = if table.virt == "vmx" { "Intel (VMX, EPT)" } else { "AMD (SVM, NPT)" };
        let words = format!(
            "Exits of each event on {hardware}, tags off. A cell marked \u{2260} is not as the specification says, because: {}.",
            if notes.is_empty() { "no such cell".to_owned() } else { notes.join("; ") }
        );
        let id = if i == 0 { "events".to_owned() } else { format!("events-{}", table.virt) };
        let title = format!("Which events exit: {hardware}");
        let section = Section::new(&id, &title).words(&words).table(&header, &rows);
        sections.push(section.command(&format!("memvirt exits --virt {}", table.virt)));
    }
    sections
}

pub(super) fn isolation(evidence: &Evidence) -> Section {
    let mut rows: Vec<Vec<String>> = evidence
        .isolation
        .iter()
        .flat_map(|one| {
            [
                ("host frames behind two machines with equal tables", one.frames),
                ("of these, frames that back memory of both", one.shared),
                ("present entries of guest tables", one.entries),
                ("of these, entries that name the host frame where the page lies", one.telling),
            ]
            .map(|(what, n)| vec![format!("{}: {what}", one.regime), count(n)])
        })
        .collect();
    let switches = evidence.world_switches;
    let (untagged, tagged) = switches.per_switch();
    for (what, misses) in [("without tags", untagged), ("with tags", tagged)] {
        let words = format!(
            "TLB misses after each of {} world switches, {} pages touched, {what}",
            switches.switches, switches.pages
        );
        rows.push(vec![words, format!("{misses:.1}")]);
    }
    Section::new("isolation", "Two machines on one CPU")
        .words("Both machines have the same tables at the same guest addresses and touch the same pages, in turn.")
        .table(&["what", "count"], &rows)
}

pub(super) fn nested_virt(evidence: &Evidence) -> Section {
    let formula = |key: &str| {
        let found = Arrangement::ALL.into_iter().find(|which| which.name() == key);
        found.map_or("", Published::formula)
    };
    let rows: Vec<Vec<String>> = evidence
        .nested_virt
        .faults
        .iter()
        .map(|row| {
            vec![
                row.arrangement.to_owned(),
                row.levels.to_string(),
                format!("{} / {}", row.world_switches, row.l0_exits),
                format!("{} / {}", row.published.world_switches, row.published.l0_exits),
                formula(row.arrangement).to_owned(),
            ]
        })
        .collect();
    Section::new("nested-virt", "One page fault of a nested guest")
        .words(
            "World switches and exits to L0, counted with L0, L1 and L2 each owning tables, beside the published figures (Huang et al., SOSP \
         2023). Command: memvirt nested-virt.",
        )
        .table(&["arrangement", "levels n", "counted", "published", "closed form"], &rows)
}

/// Columns of published figures as a page shows them: sources and reasons are long, and stand last.
const IN_THIS_ORDER: [usize; 9] = [0, 1, 3, 4, 5, 6, 7, 2, 8];

pub(super) fn published(evidence: &Evidence) -> Section {
    let ordered = |cells: [String; 9]| IN_THIS_ORDER.map(|i| cells[i].clone()).to_vec();
    let rows: Vec<Vec<String>> = evidence.published_rows().iter().map(|row| ordered(row.cells())).collect();
    Section::new("published", "Measured elsewhere")
        .words(
            "Figures of the literature beside what memvirt measures. Counts must be equal, some figures must lie in a band, of some only the \
             direction can be checked; inputs, and figures that were remembered and not read again, are shown and judge nothing. Command: \
             memvirt published.",
        )
        .table(&IN_THIS_ORDER.map(|i| PublishedRow::HEADER[i]), &rows)
}
