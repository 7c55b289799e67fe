//! Where KVM cannot shadow the kernel's direct map with large pages although host and guest have them: regions of 2 MiB that hold a
//! shadowed table. The region falls into pieces when the table is first used; what the kernel reached before stays unmapped there
//! until it is reached again, and a fault brings the aligned eight entries around it.

use std::collections::BTreeMap;

use super::{Direct, ENTRIES, Machine, Program, Tables, float};

/// Entries that one fault in a direct page brings.
const PREFETCH: u64 = 8;

/// A region that holds a shadowed table.
#[derive(Clone, Copy, Debug)]
struct Region {
    /// The first frame that is mapped in pieces.
    from: Option<u64>,
}

/// The regions, by number, as the frames are handed out.
#[derive(Debug, Default)]
struct Regions(BTreeMap<u64, Region>);

impl Regions {
    fn shadow(&mut self, table: u64) {
        self.0.entry(table / ENTRIES).or_insert(Region { from: None });
    }

    /// The kernel reaches a frame.
    fn reach(&mut self, frame: u64) {
        if let Some(region) = self.0.get_mut(&(frame / ENTRIES)) {
            let group = frame / PREFETCH * PREFETCH;
            region.from = Some(region.from.map_or(group, |from| from.min(group)));
        }
    }

    /// The kernel reaches all frames of a run, in order.
    fn reach_run(&mut self, first: u64, end: u64) {
        let mut at = first;
        while at < end {
            self.reach(at);
            at = (at / ENTRIES + 1) * ENTRIES;
        }
    }

    /// Frames of a run that are mapped in pieces.
    fn pieces(&self, first: u64, end: u64) -> u64 {
        let (mut at, mut pieces) = (first, 0);
        while at < end {
            let next = ((at / ENTRIES + 1) * ENTRIES).min(end);
            if let Some(from) = self.0.get(&(at / ENTRIES)).and_then(|region| region.from) {
                pieces += next.saturating_sub(from.max(at));
            }
            at = next;
        }
        pieces
    }
}

/// Exact for small pages that are all used in ascending order. The first page of each table is handed out before the table.
pub(super) fn of_dense(machine: &Machine, program: &Program) -> Direct {
    let mut regions = Regions::default();
    let mut frame = machine.first_free + machine.kernel_tables();
    // The kernel's root, and each process' root and stack; all of them are reached again.
    let mut reached = vec![machine.first_free];
    for _ in 0..program.processes {
        reached.extend([frame, frame + 1]);
        frame += 2;
    }
    for (i, at) in reached.iter().enumerate() {
        if i % 2 == 1 || i == 0 {
            regions.shadow(*at);
        }
    }
    reached.iter().for_each(|at| regions.reach(*at));
    let mut runs = Vec::new();
    for _ in 0..program.processes {
        area(program, &mut frame, &mut regions, &mut runs);
    }
    let described: u64 = runs.iter().map(|(first, end)| regions.pieces(*first, *end)).sum();
    Direct {
        pages: float(regions.0.values().filter(|region| region.from.is_some()).count() as u64),
        described: float(described),
    }
}

/// One process touches its area: frames for pages and tables, in the order in which they are handed out.
fn area(program: &Program, frame: &mut u64, regions: &mut Regions, runs: &mut Vec<(u64, u64)>) {
    let (mut page, end) = (program.first_page, program.first_page + program.pages);
    let (mut level3, mut level2) = (0, 0);
    while page < end {
        let next = ((page / ENTRIES + 1) * ENTRIES).min(end);
        let fresh = |span: u64| page == program.first_page || page.is_multiple_of(span);
        regions.reach(*frame);
        runs.push((*frame, *frame + 1));
        *frame += 1;
        let mut made = Vec::new();
        let mut table = |at: &mut u64| {
            *at = *frame;
            made.push(*frame);
            *frame += 1;
        };
        if fresh(ENTRIES * ENTRIES * ENTRIES) {
            table(&mut level3);
        } else if fresh(ENTRIES * ENTRIES) {
            regions.reach(level3);
        }
        if fresh(ENTRIES * ENTRIES) {
            table(&mut level2);
        } else {
            regions.reach(level2);
        }
        let mut level1 = 0;
        table(&mut level1);
        made.iter().for_each(|table| regions.shadow(*table));
        let others = next - page - 1;
        if others > 0 {
            regions.reach_run(*frame, *frame + others);
            regions.reach(level1);
            runs.push((*frame, *frame + others));
            *frame += others;
        }
        page = next;
    }
}

/// The expectation for small pages drawn at random: most tables come with the first pages drawn. In a region, a frame is mapped in
/// pieces where a table came before it: the number of tables is taken as Poisson's, at the rate at which new ones are expected.
pub(super) fn of_random(machine: &Machine, program: &Program, touched: u64, tables: &Tables) -> Direct {
    // All but the root and one table of each level above.
    let (pages, blocks) = (float(program.pages), tables.each - 3.0);
    let until = |drawn: f64| blocks * (1.0 - libm::pow((1.0 - drawn / pages).max(0.0), 512.0_f64.min(pages)));
    let start = machine.first_free + machine.kernel_tables() + 2 * program.processes;
    let mut run = Run::after(start, machine.first_free);
    for _ in 0..program.processes {
        // The first page brings a table of each level.
        run.hand_out(1.0, 0.0);
        run.tables(3.0);
        let mut drawn = 1.0;
        while drawn < float(touched) {
            let count = float(PREFETCH).min(float(touched) - drawn);
            run.hand_out(count, until(drawn + count) - until(drawn));
            drawn += count;
        }
    }
    Direct { pages: run.direct + 1.0 - run.none, described: run.described }
}

/// Frames handed out one after the other, of which it is known how likely they are tables.
#[derive(Clone, Copy, Debug)]
struct Run {
    frame: f64,
    /// How likely the region holds no table so far.
    none: f64,
    direct: f64,
    described: f64,
}

impl Run {
    /// All regions up to `frame` hold tables.
    fn after(frame: u64, first: u64) -> Self {
        let none = if frame.is_multiple_of(ENTRIES) { 1.0 } else { 0.0 };
        Self { frame: float(frame), none, direct: float(frame / ENTRIES - first / ENTRIES), described: 0.0 }
    }

    /// So many pages, and the tables that they are expected to bring.
    fn hand_out(&mut self, pages: f64, tables: f64) {
        self.described += pages * (1.0 - self.none * libm::exp(-tables / 2.0));
        self.none *= libm::exp(-tables);
        self.advance(pages + tables);
    }

    /// So many tables for certain.
    fn tables(&mut self, tables: f64) {
        self.none = 0.0;
        self.advance(tables);
    }

    fn advance(&mut self, frames: f64) {
        let region = (self.frame / 512.0).floor();
        self.frame += frames;
        if (self.frame / 512.0).floor() > region {
            self.direct += 1.0 - self.none;
            self.none = 1.0;
        }
    }
}
