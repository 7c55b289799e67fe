//! What L2's kernel, L1 and L0 do, and how often.

use memvirt_addr::Gva;
use memvirt_nestedvirt::{Config, Flushes, Linking, OnStore};
use memvirt_ops::arch::{Control, CrWrite, Trap};
use proptest::prelude::*;

use super::{DATA, PAGES};

#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// The kernel stores a leaf entry.
    Leaf {
        table: usize,
        index: u64,
        frame: u64,
        flags: u64,
    },
    /// The kernel links a leaf table, nothing, or a page of 2 MiB.
    Link {
        root: usize,
        slot: u64,
        to: Link,
    },
    /// The kernel takes the write permission from an entry.
    Protect {
        table: usize,
        index: u64,
    },
    /// The kernel clears a leaf table as it clears data.
    Clear {
        table: usize,
    },
    Touch {
        page: Gva,
        write: bool,
    },
    /// The kernel stores a value to a process' page and the process' alias shows it.
    Value {
        page: Gva,
        value: u64,
    },
    Switch {
        root: usize,
    },
    Control(Control),
    TakeL1 {
        frame: u64,
        frames: u64,
        discard: bool,
    },
    TakeL0 {
        nth: usize,
        frames: usize,
    },
    Slots,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Link {
    Nothing,
    Table(usize),
    Large(u64),
}

fn frames() -> impl Strategy<Value = u64> {
    prop_oneof![12 => DATA..DATA + 40, 1 => 1..30u64]
}

/// Addresses of the processes, as offsets.
fn pages() -> impl Strategy<Value = Gva> {
    (0..2u64, 0..PAGES).prop_map(|(slot, page)| Gva::new((slot << 21) + (page << 12)))
}

pub(crate) fn ops() -> impl Strategy<Value = Vec<Op>> {
    let flags = prop_oneof![3 => Just(0x67u64), 1 => Just(0x27), 1 => Just(0x07), 1 => Just(0x25), 1 => Just(0), 1 => Just(0x63)];
    let link = prop_oneof![1 => Just(Link::Nothing), 4 => (0..3usize).prop_map(Link::Table), 1 => (0..4u64).prop_map(Link::Large)];
    let control = prop_oneof![
        pages().prop_map(Control::Invlpg),
        Just(Control::Cr(CrWrite::TogglePge)),
        Just(Control::Trap(Trap::Cpuid)),
        Just(Control::ReadCr3),
    ];
    let op = prop_oneof![
        6 => (0..3usize, 0..PAGES, frames(), flags).prop_map(|(table, index, frame, flags)| Op::Leaf { table, index, frame, flags }),
        3 => (0..2usize, 0..2u64, link).prop_map(|(root, slot, to)| Op::Link { root, slot, to }),
        2 => (0..3usize, 0..PAGES).prop_map(|(table, index)| Op::Protect { table, index }),
        1 => (0..3usize).prop_map(|table| Op::Clear { table }),
        16 => (pages(), any::<bool>()).prop_map(|(page, write)| Op::Touch { page, write }),
        3 => (pages(), any::<u64>()).prop_map(|(page, value)| Op::Value { page, value }),
        2 => (0..2usize).prop_map(|root| Op::Switch { root }),
        1 => control.prop_map(Op::Control),
        2 => (0..150u64, 1..40u64, any::<bool>()).prop_map(|(frame, frames, discard)| Op::TakeL1 { frame, frames, discard }),
        2 => (any::<usize>(), 1..20usize).prop_map(|(nth, frames)| Op::TakeL0 { nth, frames }),
        1 => Just(Op::Slots),
    ];
    prop::collection::vec(op, 1..120)
}

pub(crate) fn config() -> impl Strategy<Value = Config> {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    flags.prop_map(|(eager, propagate, each)| Config {
        linking: if eager { Linking::Eager } else { Linking::Lazy },
        on_store: if propagate { OnStore::Propagate } else { OnStore::Zap },
        flushes: if each { Flushes::EachEntry } else { Flushes::Instruction },
    })
}
