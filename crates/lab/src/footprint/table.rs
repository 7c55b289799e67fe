//! The rows as CSV, and what they say of shadow paging beside nested paging.

use memvirt_addr::PageSize;
use serde::Serialize;

use super::{FootprintTable, ProcessBytes, Row};
use crate::error::LabError;
use crate::table::csv_line;
use crate::text;

/// Shadow paging beside nested paging, with the same processes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Beside<'a> {
    /// Shadow paging.
    #[serde(skip)]
    pub shadow: &'a Row,
    /// Nested paging.
    #[serde(skip)]
    pub nested: &'a Row,
    /// Tables of the one over tables of the other, at their peaks.
    pub tables: f64,
    /// The same with reverse maps and records.
    pub all: f64,
}

impl Row {
    /// The least and the most that an address space takes: guest tables, and shadow pages with their headers and translations.
    #[must_use]
    pub fn extremes(&self) -> [(u64, u64); 2] {
        let of = |bytes: fn(&ProcessBytes) -> u64| {
            let each = || self.measured.owners.processes.iter().map(bytes);
            (each().min().unwrap_or(0), each().max().unwrap_or(0))
        };
        [of(|process| process.guest), of(|process| process.shadow)]
    }
}

impl FootprintTable {
    /// Each row of a shadow regime beside the first nested regime with as many processes.
    pub fn beside(&self) -> impl Iterator<Item = Beside<'_>> {
        let kind = |row: &Row, prefix: &str| row.regime.name().split(':').next() == Some(prefix);
        let shadows = self.rows.iter().filter(move |row| kind(row, "shadow"));
        shadows.filter_map(move |shadow| {
            let nested = self.rows.iter().find(|row| kind(row, "nested") && row.processes == shadow.processes)?;
            let (one, other) = (shadow.measured.peak.bytes, nested.measured.peak.bytes);
            let tables = ratio(one.shadow, other.nested);
            Some(Beside { shadow, nested, tables, all: ratio(one.virtualization(), other.virtualization()) })
        })
    }

    /// Rows F2 and F4 of the published results, each with what this run has of it.
    #[must_use]
    pub fn published(&self) -> Vec<String> {
        let frames = self.guest.memory_bytes / 4096;
        let percent = |part: u64, of: u64| format!("{:.2} %", 100.0 * ratio(part, of));
        let limit = self.rows.iter().find_map(|row| row.shadow_page_limit).map(|limit| {
            format!(
                "F2: KVM's cap on shadow pages is 2 % of the guest's, at least 64; here {}, {}",
                text::count(limit),
                percent(limit, frames)
            )
        });
        let most = self.rows.iter().max_by_key(|row| row.processes);
        let touched = self.touched_pages.filter(|_| self.guest.guest_page == PageSize::Size4K);
        let each = most.zip(touched).map(|(row, touched)| {
            let tables = row.extremes()[0].1;
            format!(
                "F4: a leaf table for each 2 MiB touched in an address space (0.2 %), and upper levels; here at most {} of guest tables in \
                 each, {} of what it touches",
                text::bytes(tables),
                percent(tables, touched * 4096)
            )
        });
        limit.into_iter().chain(each).collect()
    }

    /// The results as JSON, with a newline at the end.
    ///
    /// # Errors
    ///
    /// Never in practice: every part serializes.
    pub fn to_json(&self) -> Result<String, LabError> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// A line for each row.
    #[must_use]
    pub fn to_csv(&self) -> String {
        let mut text = String::new();
        csv_line(
            &mut text,
            "regime,processes,footprint_bytes,guest,shadow,nested,reverse_map,records,total,peak_total,predicted_guest,\
             predicted_shadow,predicted_nested,predicted_reverse_map,predicted_records,predicted_total,error,guest_faults,\
             hidden_faults,refaults,shadow_page_limit,process_guest_least,process_guest_most,process_shadow_least,\
             process_shadow_most,kernel,shadow_shared,shadow_unowned,peak_guest,peak_shadow,peak_nested,peak_reverse_map,peak_records"
                .split(','),
        );
        for row in &self.rows {
            let m = &row.measured;
            let mut cells = vec![row.regime.to_string(), row.processes.to_string(), self.footprint_bytes.to_string()];
            let kinds = |b: &super::Bytes| [b.guest, b.shadow, b.nested, b.reverse_map, b.records, b.total()];
            cells.extend(kinds(&m.end).map(|n| n.to_string()));
            cells.push(m.peak.bytes.total().to_string());
            match &row.predicted {
                Some(predicted) => cells.extend(kinds(predicted).map(|n| n.to_string())),
                None => cells.extend([const { String::new() }; 6]),
            }
            cells.push(row.error.map_or_else(String::new, |error| error.to_string()));
            let optional = |n: Option<u64>| n.map_or_else(String::new, |n| n.to_string());
            cells.extend([m.guest_faults, m.hidden_faults].map(|n| n.to_string()));
            cells.extend([row.refaults, row.shadow_page_limit].map(optional));
            let [guest, shadow] = row.extremes();
            let owners = &m.owners;
            let ends = [guest.0, guest.1, shadow.0, shadow.1];
            cells.extend(
                ends.into_iter()
                    .chain([owners.kernel, owners.shadow_shared, owners.shadow_unowned])
                    .chain(m.peak.bytes.kinds())
                    .map(|n| n.to_string()),
            );
            csv_line(&mut text, cells.into_iter());
        }
        text
    }

    /// A line for each process of each row: whose the tables at the peak were.
    #[must_use]
    pub fn processes_csv(&self) -> String {
        let mut text = String::new();
        csv_line(&mut text, ["regime", "processes", "process", "guest", "shadow"].into_iter());
        for row in &self.rows {
            for process in &row.measured.owners.processes {
                let head = [row.regime.to_string(), row.processes.to_string()];
                let numbers = [process.process.into(), process.guest, process.shadow].map(|n: u64| n.to_string());
                csv_line(&mut text, head.into_iter().chain(numbers));
            }
        }
        text
    }

    /// A line for each look at each row.
    #[must_use]
    pub fn series_csv(&self) -> String {
        let mut text = String::new();
        let header = "regime,processes,accesses,hidden_faults,guest,shadow,nested,reverse_map,records,total";
        csv_line(&mut text, header.split(','));
        for row in &self.rows {
            for sample in &row.measured.series {
                let b = sample.bytes;
                let head = [row.regime.to_string(), row.processes.to_string()];
                let kinds = [b.guest, b.shadow, b.nested, b.reverse_map, b.records, b.total()];
                let numbers = [sample.accesses, sample.hidden_faults].into_iter().chain(kinds);
                csv_line(&mut text, head.into_iter().chain(numbers.map(|n| n.to_string())));
            }
        }
        text
    }
}

#[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
fn ratio(one: u64, other: u64) -> f64 {
    one as f64 / other as f64
}
