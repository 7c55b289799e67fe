//! `memvirt exits`: which guest events exit, measured on every regime, next to what the specification says.

use memvirt_lab::exits::{ExitCell, ExitTable, Vendor};

use crate::args::{ExitsArgs, ExitsFormat, Virt};
use crate::failure::Status;
use crate::output::{print, render, table};

pub(crate) fn exits(args: &ExitsArgs) -> anyhow::Result<Status> {
    let measured = ExitTable::measure(match args.virt {
        Virt::Vmx => Vendor::Vmx,
        Virt::Svm => Vendor::Svm,
    });
    print(&match args.format {
        ExitsFormat::Json => serde_json::to_string_pretty(&measured)? + "\n",
        ExitsFormat::Csv => measured.to_csv(),
        ExitsFormat::Table => people(&measured),
    })?;
    Ok(if measured.unexplained == 0 { Status::Fine } else { Status::CheckFailed })
}

/// The table, then a line for each difference.
fn people(measured: &ExitTable) -> String {
    let fixed = ["row", "event", "executed"].map(str::to_owned);
    let regimes = measured.regimes.iter().map(|regime| format!(">{regime}"));
    let mut grid = table(fixed.into_iter().chain(regimes));
    let mut notes = Vec::new();
    for row in &measured.rows {
        let mut cells = [row.row, row.event, row.done].map(str::to_owned).to_vec();
        for cell in &row.cells {
            cells.push(words(cell));
            if cell.agrees == Some(false) {
                let why = cell.note.unwrap_or("unexplained");
                notes.push(format!("!= row {}, {}: counted {}\n   {why}\n", row.row, cell.regime, words(cell)));
            }
        }
        grid.add_row(cells);
    }
    format!(
        "VM exits per event on {}, tags {}: counted (the specification's figure, times what was executed)\n{}{}{}",
        measured.virt,
        measured.tags,
        render(&grid),
        notes.concat(),
        total(measured)
    )
}

/// The exits counted, and the figure; a difference is marked.
fn words(cell: &ExitCell) -> String {
    let counted = cell.exits.map_or_else(|| "-".to_owned(), |exits| exits.to_string());
    let figure = match (cell.least, cell.most) {
        (Some(least), Some(most)) if least == most => format!(" ({least})"),
        (Some(least), Some(most)) => format!(" ({least}-{most})"),
        _ => String::new(),
    };
    let mark = if cell.agrees == Some(false) { "!=" } else { "" };
    format!("{mark}{counted}{figure}")
}

fn total(measured: &ExitTable) -> String {
    let cells = || measured.rows.iter().flat_map(|row| &row.cells);
    let compared = cells().filter(|cell| cell.agrees.is_some()).count();
    format!(
        "{compared} cells compared with the specification: {} differ, {} of them unexplained\n",
        measured.differences, measured.unexplained
    )
}
