//! The table *event x regime -> exits*, measured: every event is executed on a fresh machine under every regime, and the exits
//! that the [`Ledger`](memvirt_platform::Ledger) counted stand next to the figure that the specification gives.
//!
//! No count here is hard-coded; only the specification's figures are. Tags are off, as on the machines of the recordings: every
//! exit empties the TLB. Source: table C of the specification of shadow and nested paging, whose KVM and nested columns were
//! measured on Linux 6.1 and 6.12; the others follow from the policies' definitions.
//!
//! ```
//! use memvirt_lab::exits::{ExitTable, Vendor};
//!
//! let table = ExitTable::measure(Vendor::Svm);
//! let toggle = table.rows.iter().find(|row| row.row == "15").unwrap();
//! assert_eq!(toggle.cell("npt").unwrap().exits, Some(3));
//! ```

mod events;
mod guest;
mod measure;

pub use memvirt_platform::Vendor;
use serde::Serialize;

use crate::table::csv_line;
use events::{Event, Figure};
pub use measure::Column;

/// The measured table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExitTable {
    /// `memvirt/exits/1`.
    pub schema: &'static str,
    /// `vmx` or `svm`: whose hardware.
    pub virt: &'static str,
    /// `off`: every exit empties the TLB.
    pub tags: &'static str,
    /// The regimes measured, in the order of the cells.
    pub regimes: Vec<&'static str>,
    /// The events.
    pub rows: Vec<ExitRow>,
    /// Cells whose measured exits are not the specification's.
    pub differences: usize,
    /// Those of them without a recorded explanation.
    pub unexplained: usize,
}

/// One event under every regime.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExitRow {
    /// The row of the specification; a sign behind it tells events of one row apart.
    pub row: &'static str,
    /// The event in the specification's words.
    pub event: &'static str,
    /// What was executed and counted.
    pub done: &'static str,
    /// The regimes' cells.
    pub cells: Vec<ExitCell>,
}

/// One event under one regime.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExitCell {
    /// The regime.
    pub regime: &'static str,
    /// The exits counted; `None` where nothing could be executed.
    pub exits: Option<u64>,
    /// Page faults that the guest saw meanwhile.
    pub guest_faults: Option<u64>,
    /// The specification's words; `None` where it has no column for the regime.
    pub specified: Option<&'static str>,
    /// The least exits that these words come to here; `None` where they say nothing about it.
    pub least: Option<u64>,
    /// The most.
    pub most: Option<u64>,
    /// Whether they agree; `None` where one of both is missing.
    pub agrees: Option<bool>,
    /// Why they do not, where that is known.
    pub note: Option<&'static str>,
}

impl ExitTable {
    /// Executes every event on every regime with the hardware of `vendor`.
    #[must_use]
    pub fn measure(vendor: Vendor) -> Self {
        let rows: Vec<_> = events::all().map(|event| ExitRow::measure(event, vendor)).collect();
        let differ = || rows.iter().flat_map(|row| &row.cells).filter(|cell| cell.agrees == Some(false));
        let (differences, unexplained) = (differ().count(), differ().filter(|cell| cell.note.is_none()).count());
        Self {
            schema: "memvirt/exits/1",
            virt: match vendor {
                Vendor::Vmx => "vmx",
                Vendor::Svm => "svm",
            },
            tags: "off",
            regimes: Column::of(vendor).map(|column| column.key(vendor)).collect(),
            rows,
            differences,
            unexplained,
        }
    }

    /// The table as CSV (RFC 4180, lines ended by a newline): a header, then a line per event and regime.
    #[must_use]
    pub fn to_csv(&self) -> String {
        let mut text = String::new();
        let header = [
            "virt",
            "row",
            "event",
            "done",
            "regime",
            "exits",
            "guest_faults",
            "specified",
            "least",
            "most",
            "agrees",
            "note",
        ];
        csv_line(&mut text, header.into_iter());
        for (row, cell) in self.rows.iter().flat_map(|row| row.cells.iter().map(move |cell| (row, cell))) {
            let number = |n: Option<u64>| n.map_or_else(String::new, |n| n.to_string());
            let words = |text: Option<&str>| text.unwrap_or_default().to_owned();
            let cells = [
                self.virt.to_owned(),
                row.row.to_owned(),
                row.event.to_owned(),
                row.done.to_owned(),
                cell.regime.to_owned(),
                number(cell.exits),
                number(cell.guest_faults),
                words(cell.specified),
                number(cell.least),
                number(cell.most),
                cell.agrees.map_or_else(String::new, |agrees| agrees.to_string()),
                words(cell.note),
            ];
            csv_line(&mut text, cells.iter());
        }
        text
    }
}

impl ExitRow {
    fn measure(event: &Event, vendor: Vendor) -> Self {
        let cells = Column::of(vendor).map(|column| ExitCell::measure(event, column, vendor)).collect();
        Self { row: event.row, event: event.event, done: event.done, cells }
    }

    /// The cell of a regime.
    #[must_use]
    pub fn cell(&self, regime: &str) -> Option<&ExitCell> {
        self.cells.iter().find(|cell| cell.regime == regime)
    }
}

impl ExitCell {
    fn measure(event: &Event, column: Column, vendor: Vendor) -> Self {
        let measured = measure::measure(event, column, vendor);
        let exits = measured.map(|measured| measured.exits);
        let figure = event.figures.of(column, vendor);
        let agrees = exits.zip(figure).map(|(exits, Figure { least, most })| (least..=most).contains(&exits));
        Self {
            regime: column.key(vendor),
            exits,
            guest_faults: measured.map(|measured| measured.faults),
            specified: column.specified().map(|cell| event.cells[cell]),
            least: figure.map(|figure| figure.least),
            most: figure.map(|figure| figure.most),
            agrees,
            note: if agrees == Some(false) { event.note(column) } else { None },
        }
    }
}

#[cfg(test)]
mod tests;
