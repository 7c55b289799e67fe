//! The events as data: the words of the specification's table C, its cells, the exits they come to for what is done here, and
//! what is done.
//!
//! Each row of the table is one event or several: `6` is the first store to a table, `6+` the next ones. Numbers of exits are
//! the table's figure times what is done ("1 per aligned group of 8" for 64 pages is 8); where the table leaves a choice, a
//! range.

mod patterns;
mod single;

use memvirt_platform::Vendor;
use memvirt_shadow::kvm::Kernel;

use super::guest::Guest;
use super::measure::Column;

/// Exits that the specification asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Figure {
    pub(crate) least: u64,
    pub(crate) most: u64,
}

/// Exactly `n` exits.
const fn exactly(n: u64) -> Option<Figure> {
    between(n, n)
}

/// At least `least` and at most `most` exits.
const fn between(least: u64, most: u64) -> Option<Figure> {
    Some(Figure { least, most })
}

/// The figures of one event; `None` where the table says nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    naive: Option<Figure>,
    zap: Option<Figure>,
    propagate: Option<Figure>,
    kvm_6_1: Option<Figure>,
    kvm_6_12: Option<Figure>,
    vtlb: Option<Figure>,
    nested: Option<Figure>,
    nested_svm: Option<Figure>,
    /// With the page-modification log; `None`: as without.
    nested_pml: Option<Figure>,
    /// What an exit more on SVM adds to every shadow column: CR4 is also read.
    svm_more: u64,
}

/// Exact figures: naive, write-protect with zap and with propagation, KVM, virtual TLB, nested.
const fn exits(naive: u64, zap: u64, propagate: u64, kvm: u64, vtlb: u64, nested: u64) -> Figures {
    Figures {
        naive: exactly(naive),
        zap: exactly(zap),
        propagate: exactly(propagate),
        kvm_6_1: exactly(kvm),
        kvm_6_12: exactly(kvm),
        vtlb: exactly(vtlb),
        nested: exactly(nested),
        nested_svm: exactly(nested),
        nested_pml: None,
        svm_more: 0,
    }
}

/// The same figure for every shadow policy.
const fn shadow(n: u64, nested: u64) -> Figures {
    exits(n, n, n, n, n, nested)
}

const NONE: Figures = Figures {
    naive: None,
    zap: None,
    propagate: None,
    kvm_6_1: None,
    kvm_6_12: None,
    vtlb: None,
    nested: None,
    nested_svm: None,
    nested_pml: None,
    svm_more: 0,
};

impl Figures {
    const fn write_protect(mut self, figure: Option<Figure>) -> Self {
        self.zap = figure;
        self.propagate = figure;
        self
    }

    const fn naive(mut self, figure: Option<Figure>) -> Self {
        self.naive = figure;
        self
    }

    const fn kvm(mut self, figure: Option<Figure>) -> Self {
        self.kvm_6_1 = figure;
        self.kvm_6_12 = figure;
        self
    }

    const fn kvm_6_12(mut self, figure: Option<Figure>) -> Self {
        self.kvm_6_12 = figure;
        self
    }

    const fn nested(mut self, figure: Option<Figure>) -> Self {
        self.nested = figure;
        self.nested_svm = figure;
        self
    }

    const fn nested_svm(mut self, figure: Option<Figure>) -> Self {
        self.nested_svm = figure;
        self
    }

    const fn nested_pml(mut self, figure: Option<Figure>) -> Self {
        self.nested_pml = figure;
        self
    }

    const fn svm_more(mut self, exits: u64) -> Self {
        self.svm_more = exits;
        self
    }

    /// The figure of a column.
    pub(crate) fn of(&self, column: Column, vendor: Vendor) -> Option<Figure> {
        let figure = match column {
            Column::InvlpgOnly => self.naive,
            Column::Zap => self.zap,
            Column::Propagate => self.propagate,
            Column::Kvm(Kernel::V6_1) => self.kvm_6_1,
            Column::Kvm(Kernel::V6_12) => self.kvm_6_12,
            Column::Vtlb => self.vtlb,
            Column::Nested if vendor == Vendor::Svm => return self.nested_svm,
            Column::Nested => return self.nested,
            Column::NestedPml => return self.nested_pml.or(self.nested),
            Column::LazyFill | Column::Xen | Column::Vbox => None,
        };
        let more = if vendor == Vendor::Svm { self.svm_more } else { 0 };
        figure.map(|Figure { least, most }| Figure { least: least + more, most: most + more })
    }
}

/// Why a column counts something else than the table, where that is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Note {
    pub(crate) columns: &'static [Column],
    pub(crate) text: &'static str,
}

/// One event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    /// The row of the table; a sign behind it tells events of one row apart.
    pub(crate) row: &'static str,
    /// The event in the table's words.
    pub(crate) event: &'static str,
    /// What is done here, and counted.
    pub(crate) done: &'static str,
    /// The cells of the table: N, WP, LAZY (KVM), vTLB, EPT.
    pub(crate) cells: [&'static str; 5],
    /// What the cells come to here.
    pub(crate) figures: Figures,
    /// vCPUs.
    pub(crate) vcpus: u16,
    /// What is done before, uncounted.
    pub(crate) prepare: fn(&mut Guest),
    /// What is counted; `None` where no machine here can execute the event.
    pub(crate) measured: Option<fn(&mut Guest)>,
    /// What is known about differences.
    pub(crate) notes: &'static [Note],
}

impl Event {
    /// An event without figures on one vCPU.
    const fn new(
        row: &'static str,
        event: &'static str,
        done: &'static str,
        cells: [&'static str; 5],
        measured: fn(&mut Guest),
    ) -> Self {
        let (measured, prepare) = (Some(measured), (|_| {}) as fn(&mut Guest));
        Self { row, event, done, cells, figures: NONE, vcpus: 1, prepare, measured, notes: &[] }
    }

    /// What is done first.
    const fn after(mut self, prepare: fn(&mut Guest)) -> Self {
        self.prepare = prepare;
        self
    }

    const fn figures(mut self, figures: Figures) -> Self {
        self.figures = figures;
        self
    }

    const fn vcpus(mut self, vcpus: u16) -> Self {
        self.vcpus = vcpus;
        self
    }

    const fn notes(mut self, notes: &'static [Note]) -> Self {
        self.notes = notes;
        self
    }

    /// The recorded explanation of a difference in `column`.
    pub(crate) fn note(&self, column: Column) -> Option<&'static str> {
        self.notes.iter().find(|note| note.columns.contains(&column)).map(|note| note.text)
    }
}

/// All events, in the order of the table.
pub(crate) fn all() -> impl Iterator<Item = &'static Event> {
    single::EVENTS.iter().chain(patterns::EVENTS)
}
