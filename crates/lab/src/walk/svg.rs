//! A walk as a picture: the numbered grid of Bhargava et al. (ASPLOS 2008), figure 2.
//!
//! A column for each guest entry and, last, one for the data; a row for each nested level, and below them the guest's entries.
//! Numbers are the steps. The walk goes down a column, reads the guest's entry, and goes on at the top of the next column.

use std::fmt::Write as _;

use super::record::{RecordedWalk, WalkReference, entry_name};
use memvirt_addr::Level;

const CELL: (u32, u32) = (120, 72);
/// Left and top of the first cell's centre.
const ORIGIN: (u32, u32) = (176, 132);
const RADIUS: u32 = 20;

const STYLE: &str = "text{font-family:sans-serif;font-size:14px;fill:#222}.title{font-size:18px;font-weight:bold}\
    .axis{font-size:13px;fill:#555}.small{font-size:11px;fill:#555}.n{text-anchor:middle;font-weight:bold}.m{text-anchor:middle}\
    .e{text-anchor:end}.nested{fill:#cfe2f3;stroke:#1f5c99}.guest{fill:#fce5cd;stroke:#b45f06}.shadow{fill:#d9ead3;stroke:#38761d}\
    .data{fill:#eee;stroke:#555}.saved{fill:#fff;stroke:#aaa;stroke-dasharray:4 3}line,path{stroke:#555;stroke-width:1.5;fill:none}";

/// A place in the grid.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    column: usize,
    row: usize,
}

impl Place {
    fn x(self) -> u32 {
        ORIGIN.0 + CELL.0 * u32::try_from(self.column).unwrap_or(0)
    }

    fn y(self) -> u32 {
        ORIGIN.1 + CELL.1 * u32::try_from(self.row).unwrap_or(0)
    }
}

/// Rows and columns of a walk.
struct Grid {
    /// The guest's (or shadow) entries, top level first; the data's column comes after them.
    columns: Vec<Level>,
    /// The nested levels, top first; the row of the guest's entries comes after them.
    rows: Vec<Level>,
}

/// The levels from `top` down to the leaf of a page.
fn levels(top: u8, page: &str) -> Vec<Level> {
    let leaf = match page {
        "1G" => 3,
        "2M" => 2,
        _ => 1,
    };
    (leaf..=top).rev().filter_map(Level::from_number).collect()
}

impl Grid {
    fn of(walk: &RecordedWalk) -> Self {
        let smaller = if walk.guest_page == "4K" || walk.host_page == "1G" { walk.guest_page } else { walk.host_page };
        let leaf = if matches!(walk.regime, "shadow" | "agile:0") { smaller } else { walk.guest_page };
        match walk.regime {
            "flat" => Self { columns: levels(walk.guest_levels, leaf), rows: vec![Level::L1] },
            // Of the guest's tables the leaf alone is read.
            "register-walk" => {
                let level = levels(4, leaf).last().copied();
                Self { columns: level.into_iter().collect(), rows: vec![Level::L1] }
            }
            _ => Self { columns: levels(walk.guest_levels, leaf), rows: levels(walk.host_levels, walk.host_page) },
        }
    }

    fn guest_row(&self) -> usize {
        self.rows.len()
    }

    fn data_column(&self) -> usize {
        self.columns.len()
    }

    /// Where the page lies that the walk ends at.
    fn page(&self) -> Place {
        Place { column: self.data_column(), row: self.guest_row() }
    }

    /// Where a reference is drawn.
    fn place(&self, reference: &WalkReference) -> Place {
        let name = reference.serves.strip_prefix("guest ").unwrap_or(&reference.serves);
        let column = self.columns.iter().position(|level| entry_name(*level) == name).unwrap_or(self.data_column());
        let row = if reference.dimension == "nested" {
            self.rows.iter().position(|level| level.number() == reference.level).unwrap_or(0)
        } else {
            self.guest_row()
        };
        Place { column, row }
    }

    /// Every place of a walk without caches, save the page.
    fn places(&self) -> impl Iterator<Item = Place> {
        let (rows, page) = (self.guest_row(), self.page());
        let all = (0..=self.data_column()).flat_map(move |column| (0..=rows).map(move |row| Place { column, row }));
        all.filter(move |place| *place != page)
    }
}

/// The picture of a walk, as an SVG document.
#[must_use]
pub fn draw(walk: &RecordedWalk) -> String {
    let grid = Grid::of(walk);
    let width = Place { column: grid.data_column(), row: 0 }.x() + 140;
    let height = Place { column: 0, row: grid.guest_row() }.y() + 118;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         role=\"img\">\n<title>{}</title>\n<style>{STYLE}</style>\n\
         <defs><marker id=\"tip\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" \
         orient=\"auto\"><path d=\"M0 0 L8 4 L0 8 z\" style=\"fill:#555;stroke:none\"/></marker></defs>\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n",
        title(walk)
    );
    text(&mut svg, (20, 32), "title", &title(walk));
    text(&mut svg, (20, 54), "axis", &subtitle(walk));
    labels(&mut svg, walk, &grid);
    arrows(&mut svg, walk, &grid);
    cells(&mut svg, walk, &grid);
    legend(&mut svg, walk, height);
    svg + "</svg>\n"
}

fn title(walk: &RecordedWalk) -> String {
    let plural = if walk.total == 1 { "" } else { "s" };
    format!("{} walk: {} memory reference{plural}", walk.regime, walk.total)
}

fn subtitle(walk: &RecordedWalk) -> String {
    let pages = match walk.regime {
        "native" => format!("{} pages", walk.guest_page),
        _ => format!("guest pages {}, host pages {}", walk.guest_page, walk.host_page),
    };
    let machine = walk.machine.as_ref().map_or_else(String::new, |machine| format!(" ({machine})"));
    format!("{} at {}; {pages}; walk caches {}{machine}", walk.guest_virtual, walk.host_physical, walk.caches)
}

fn text(svg: &mut String, (x, y): (u32, u32), class: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(svg, "<text x=\"{x}\" y=\"{y}\" class=\"{class}\">{words}</text>");
}

/// The names of rows and columns, and what the axes are.
fn labels(svg: &mut String, walk: &RecordedWalk, grid: &Grid) {
    let top = Place { column: 0, row: 0 };
    let across = if grid.rows.is_empty() {
        "entries of the tables, top level first; then the data"
    } else {
        "what is translated: the address of each guest entry, top level first; then of the data"
    };
    text(svg, (top.x() - RADIUS, top.y() - 52), "axis", across);
    let last = Place { row: grid.guest_row(), ..top };
    for (column, level) in grid.columns.iter().enumerate() {
        let place = Place { column, ..last };
        let read = walk.references.iter().find(|reference| grid.place(reference) == place);
        let whose = read.map_or("guest", |reference| reference.dimension);
        text(svg, (place.x(), top.y() - 30), "m", &format!("{whose} {}", entry_name(*level)));
    }
    text(svg, (grid.page().x(), top.y() - 30), "m", "data");
    for (row, level) in grid.rows.iter().enumerate() {
        let place = Place { row, ..top };
        let name =
            if walk.regime == "flat" { "flat entry".to_owned() } else { format!("nested {}", entry_name(*level)) };
        text(svg, (place.x() - 48, place.y() + 5), "e", &name);
    }
    text(svg, (last.x() - 48, last.y() + 5), "e", "the entry itself");
    if grid.rows.len() > 1 {
        let (x, y) = (24, u32::midpoint(top.y(), last.y()));
        let _ = writeln!(
            svg,
            "<text x=\"{x}\" y=\"{y}\" class=\"axis m\" transform=\"rotate(-90 {x} {y})\">nested levels, top first</text>"
        );
    }
}

/// From each reference to the next, and from the last to the page.
fn arrows(svg: &mut String, walk: &RecordedWalk, grid: &Grid) {
    let places: Vec<_> = walk.references.iter().map(|reference| grid.place(reference)).chain([grid.page()]).collect();
    for pair in places.windows(2) {
        let (from, to) = (pair[0], pair[1]);
        let (x, y) = (from.x(), from.y());
        let path = if from.column == to.column {
            format!("M{x} {} V{}", y + RADIUS, to.y() - RADIUS - 1)
        } else {
            let middle = to.x() - CELL.0 / 2;
            format!("M{} {y} H{middle} V{} H{}", x + RADIUS, to.y(), to.x() - RADIUS - 1)
        };
        let _ = writeln!(svg, "<path d=\"{path}\" marker-end=\"url(#tip)\"/>");
    }
}

fn cells(svg: &mut String, walk: &RecordedWalk, grid: &Grid) {
    for place in grid.places() {
        let (x, y) = (place.x(), place.y());
        let reference = walk.references.iter().find(|reference| grid.place(reference) == place);
        if reference.is_none() && walk.caches == "off" {
            continue;
        }
        let class = reference.map_or("saved", |reference| reference.dimension);
        let _ = writeln!(svg, "<circle cx=\"{x}\" cy=\"{y}\" r=\"{RADIUS}\" class=\"{class}\"/>");
        if let Some(reference) = reference {
            text(svg, (x, y + 5), "n", &reference.step.to_string());
            text(svg, (x + RADIUS + 3, y + RADIUS + 4), "small", &format!("[{}]", reference.index));
        }
    }
    let (x, y) = (grid.page().x(), grid.page().y());
    let (left, top, width, height) = (x - RADIUS - 1, y - RADIUS, 2 * RADIUS + 2, 2 * RADIUS);
    let _ =
        writeln!(svg, "<rect x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{height}\" rx=\"4\" class=\"data\"/>");
    text(svg, (x, y + 5), "n", "page");
}

fn legend(svg: &mut String, walk: &RecordedWalk, height: u32) {
    let (mut x, y) = (ORIGIN.0 - RADIUS, height - 40);
    let mut item = |class: &str, words: &str, wide: u32| {
        let _ = writeln!(svg, "<circle cx=\"{}\" cy=\"{y}\" r=\"8\" class=\"{class}\"/>", x + 8);
        text(svg, (x + 22, y + 5), "axis", words);
        x += wide;
    };
    for (dimension, words) in [("guest", "guest table"), ("shadow", "shadow table"), ("nested", "nested table")] {
        if walk.references.iter().any(|reference| reference.dimension == dimension) {
            item(dimension, words, 120);
        }
    }
    if !walk.cache_hits.is_empty() {
        item("saved", "not read: a walk cache knew it", 200);
    }
    text(svg, (ORIGIN.0 - RADIUS, height - 14), "small", "number: the step; [n]: the index of the entry in its table");
}
