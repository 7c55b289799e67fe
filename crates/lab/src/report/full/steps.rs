//! The walk that can be stepped through: every combination walked beforehand, the steps drawn by a little plain JavaScript.

use memvirt_addr::PageSize;
use serde::Serialize;

use super::Section;
use crate::error::LabError;
use crate::report::html::{escape, table};
use crate::walk::{
    CacheState, GuestPaging, HostLevels, NestedFormat, RecordedWalk, Tables, WalkReference, WalkSpec, record_walk,
};

const SCRIPT: &str = include_str!("walk.js");

/// One walk as the script reads it.
#[derive(Serialize)]
struct Prepared {
    regime: String,
    guest: u8,
    host: u8,
    guest_page: &'static str,
    host_page: &'static str,
    /// Dimension, what is translated, level, index, address, entry, what it says.
    steps: Vec<(&'static str, String, u8, usize, String, String, String)>,
}

impl Prepared {
    fn of(walk: &RecordedWalk) -> Self {
        let step = |r: &WalkReference| {
            let (address, entry) = (r.address.clone(), r.entry.clone());
            (r.dimension, r.serves.clone(), r.level, r.index, address, entry, r.says.clone())
        };
        Self {
            regime: walk.regime.to_owned(),
            guest: walk.guest_levels,
            host: walk.host_levels,
            guest_page: walk.guest_page,
            host_page: walk.host_page,
            steps: walk.references.iter().map(step).collect(),
        }
    }
}

const PAGES: [PageSize; 3] = [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G];

/// Every combination that the page offers, the one that it begins with first.
fn walks() -> Result<Vec<RecordedWalk>, LabError> {
    let mut specs = Vec::new();
    let guests = [GuestPaging::Four, GuestPaging::Five];
    let unpaged = |host| Tables::Nested { guest: None, host, format: NestedFormat::Ept };
    for guest in guests {
        for host in [HostLevels::Four, HostLevels::Five] {
            let tables = Tables::Nested { guest: Some(guest), host, format: NestedFormat::Ept };
            for guest_page in PAGES {
                specs.extend(PAGES.map(|host_page| (tables, guest_page, host_page)));
            }
        }
        for tables in [Tables::Native(guest), Tables::Shadow(guest)] {
            specs.extend(PAGES.map(|page| (tables, page, page)));
        }
        specs.push((Tables::Flat(guest), PageSize::Size4K, PageSize::Size4K));
    }
    for host in [HostLevels::Four, HostLevels::Five] {
        specs.extend(PAGES.map(|host_page| (unpaged(host), PageSize::Size4K, host_page)));
    }
    specs.extend((0..=4).map(|nested| (Tables::Agile(nested), PageSize::Size4K, PageSize::Size4K)));
    let walk = |(tables, guest_page, host_page)| {
        record_walk(&WalkSpec { tables, guest_page, host_page, address: None, caches: CacheState::Off })
    };
    specs.into_iter().map(walk).collect()
}

/// The section with its data and its script.
pub(super) fn section() -> Result<Section, LabError> {
    let walks = walks()?;
    let prepared: Vec<_> = walks.iter().map(Prepared::of).collect();
    // A closing tag within the data would end the element.
    let data = serde_json::to_string(&prepared)?.replace('<', "\\u003c");
    let first = walks.first().map_or_else(String::new, steps);
    Ok(Section::new("walk", "A walk, step by step").html(format!(
        "<p>Real tables in simulated memory, caches off. Choose depths and page \
         sizes, and step through the references with the buttons or the left and right keys.</p>\n<div id=\"walker\" hidden>\n<form class=\"choices\" onsubmit=\"return false\"></form>\n\
         <p class=\"steps\"><button type=\"button\" data-step=\"first\">First</button> <button type=\"button\" data-step=\"back\">Back</button> \
         <button type=\"button\" data-step=\"next\">Next</button> <button type=\"button\" data-step=\"last\">All</button> \
         <output aria-live=\"polite\"></output></p>\n<div class=\"scroll grid\"></div>\n</div>\n<details><summary>The references of the first \
         of these walks</summary>{first}</details>\n<p class=\"made\">Made by <code>memvirt walk</code> with the choices as \
         flags.</p>\n<script type=\"application/json\" id=\"walks\">{data}</script>\n<script>\n{SCRIPT}</script>\n"
    )))
}

fn steps(walk: &RecordedWalk) -> String {
    let header = ["step", "tables", "for", "level", "index", "address", "entry", "which says"].map(str::to_owned);
    let rows: Vec<Vec<String>> = walk
        .references
        .iter()
        .map(|r| {
            let numbers = [r.step.to_string(), r.dimension.to_owned(), r.serves.clone(), r.level.to_string()];
            let rest = [r.index.to_string(), r.address.clone(), r.entry.clone(), r.says.clone()];
            numbers.into_iter().chain(rest).collect()
        })
        .collect();
    let caption = escape(&format!("{} references", walk.total));
    format!("<p>{caption}</p>{}", table(&header, rows.iter().map(|row| (row.as_slice(), ""))))
}
