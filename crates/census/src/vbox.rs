//! Entries in use, where tables are monitored and sixteen leaf tables at most are dirty: the events and the work of VirtualBox's policy.
//!
//! Each rule is that of the crate `memvirt-shadow`, module `vbox`, with the functions of VirtualBox that it comes from. The limit on
//! shadow pages is left out: guests here stay below it.

use std::collections::BTreeSet;

use memvirt_addr::{Gfn, Gpa, Level};
use memvirt_ops::arch::StoreOp;
use memvirt_pagetable::{Attrs, Entry, Format, Guest4};
use memvirt_platform::Work;

use crate::around::Around;
use crate::events::Events;
use crate::path::Way;
use crate::shadows::{Clean, Orphans, Search, Shadows};
use crate::store::Store;

const LEAF_LIMIT: u32 = 4;
const UPPER_LIMIT: u32 = 24;
/// Entries that a fault looks at, half of them before the one asked for.
const SYNC_PAGES: u64 = 32;
const SLOTS: usize = 16;

impl Store<'_> {
    /// Source: `pgmRZPoolMonitorIsReused`.
    fn is_reused(&self, user: bool) -> bool {
        let unaligned = self.bytes() >= 8 && self.gva.as_u64() & 7 != 0;
        user || unaligned || matches!(self.op, Some(StoreOp::RepStos { count, .. }) if *count >= 64)
    }

    /// Source: `pgmRZPoolMonitorIsForking`.
    fn is_forking(&self) -> bool {
        matches!(self.op, Some(StoreOp::And { mask }) if *mask == !Guest4::RAW_WRITE)
    }
}

/// A run of stores up a table.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    frame: Option<Gfn>,
    at: u64,
    ip: u64,
    stores: u64,
}

/// The dirty tables.
#[derive(Debug, Default)]
struct Slots {
    held: [Option<Gfn>; SLOTS],
    next: usize,
}

impl Slots {
    fn add(&mut self, table: Gfn) -> Option<Gfn> {
        let flushed = self.held[self.next].replace(table);
        let mut after = (1..=SLOTS).map(|i| (self.next + i) % SLOTS);
        self.next = after.find(|slot| self.held[*slot].is_none()).unwrap_or((self.next + 1) % SLOTS);
        flushed
    }

    fn remove(&mut self, table: Gfn) -> bool {
        let Some(slot) = self.held.iter().position(|held| *held == Some(table)) else { return false };
        if self.held.iter().all(Option::is_some) {
            self.next = slot;
        }
        self.held[slot] = None;
        true
    }
}

/// VirtualBox's view.
#[derive(Debug)]
pub(crate) struct Vbox {
    shadows: Shadows,
    slots: Slots,
    modified: BTreeSet<Gfn>,
    stores: u64,
    run: Run,
}

impl Default for Vbox {
    fn default() -> Self {
        Self {
            shadows: Shadows::new(Orphans::Stay, Search::ReverseMap),
            slots: Slots::default(),
            modified: BTreeSet::new(),
            stores: 0,
            run: Run::default(),
        }
    }
}

impl Vbox {
    pub(crate) const fn work(&self) -> &Work {
        self.shadows.work()
    }

    /// Counts from nought: what was done so far is part of the start.
    pub(crate) fn start(&mut self) {
        *self.shadows.work_mut() = Work::default();
    }

    /// The host has the frame from now on.
    pub(crate) fn back(&mut self, frame: Gfn) {
        self.shadows.back(frame);
    }

    /// An access or store that completed.
    pub(crate) fn access(&mut self, way: &Way, store: &Store<'_>, around: &Around<'_>, events: &mut Events) {
        if self.shadows.serves(way) {
            return;
        }
        self.shadows.work_mut().guest_entries_read += way.refs();
        if way.write && self.shadows.is_protected(way.frame) && self.trapped(way, store, around, events) {
            return;
        }
        events.vbox_fills += 1;
        self.reset_path(way, around);
        let absent = self.shadows.is_absent(way);
        let slot = self.shadows.fill(way, around);
        if absent {
            self.sync_around(slot, around);
        }
        self.shadows.flush();
    }

    /// The guest got a page fault, after a walk of so many entries.
    pub(crate) const fn reflect(&mut self, refs: u64) {
        self.shadows.work_mut().guest_entries_read += refs;
    }

    /// A store to a monitored table; whether that was all. Source: `pgmRZPoolAccessPfHandler`.
    fn trapped(&mut self, way: &Way, store: &Store<'_>, around: &Around<'_>, events: &mut Events) -> bool {
        let frame = way.frame;
        let locked = self.shadows.root() == Some(frame) || way.leads_through(frame);
        let run = self.runs_up(store, frame);
        let (count, limit) = self.modifications(frame);
        let guessed = !locked && (store.is_reused(way.user) || store.is_forking());
        if locked || count < limit && !guessed {
            self.interpret(way, store);
            events.vbox_stores += 1;
            self.shadows.flush();
            return true;
        }
        if limit == LEAF_LIMIT && !run && !guessed {
            self.make_dirty(frame, around);
            return false;
        }
        events.vbox_stores += 1;
        self.slots.remove(frame);
        self.shadows.zap(frame);
        self.shadows.flush();
        let repeated = matches!(store.op, Some(StoreOp::RepStos { .. }));
        let work = self.shadows.work_mut();
        *(if repeated { &mut work.guest_entries_read } else { &mut work.instructions_emulated }) +=
            if repeated { way.refs() } else { 1 };
        !repeated
    }

    fn interpret(&mut self, way: &Way, store: &Store<'_>) {
        let frame = way.frame;
        let elements = if let Some(StoreOp::RepStos { count, .. }) = store.op { u64::from(*count) } else { 1 };
        let first = frame.at(store.gva.as_u64() & 0xff8).as_u64();
        self.shadows.work_mut().instructions_emulated += elements;
        for i in 0..elements {
            self.shadows.clear(Gpa::new(first + 8 * i));
        }
        self.set_modifications(frame, self.modifications(frame).0 + 1);
        if elements == 1 {
            self.note_run(store, frame);
        }
    }

    fn modifications(&self, frame: Gfn) -> (u32, u32) {
        let table = self.shadows.table(frame);
        let limit = if table.is_some_and(|table| table.level == 1) { LEAF_LIMIT } else { UPPER_LIMIT };
        (table.map_or(0, |table| table.writes), limit)
    }

    fn set_modifications(&mut self, frame: Gfn, count: u32) {
        if let Some(table) = self.shadows.table_mut(frame) {
            if table.writes == 0 {
                self.modified.insert(frame);
            }
            table.writes = count;
        }
    }

    fn runs_up(&mut self, store: &Store<'_>, frame: Gfn) -> bool {
        self.stores += 1;
        let (at, ip) = (store.gva.as_u64(), store.ip.as_u64());
        let goes_on = self.run.frame == Some(frame)
            && ip.abs_diff(self.run.ip) < 0x40
            && at == self.run.at + store.bytes()
            && self.stores == self.run.stores + 1;
        if goes_on {
            self.set_modifications(frame, 2 * self.modifications(frame).0);
            (self.run.at, self.run.stores) = (at, self.stores);
        }
        goes_on
    }

    fn note_run(&mut self, store: &Store<'_>, frame: Gfn) {
        let (at, ip) = (store.gva.as_u64(), store.ip.as_u64());
        if matches!(store.op, Some(StoreOp::Mov { .. })) && at & 0xfff == 0 && self.shadows.root() != Some(frame) {
            self.run = Run { frame: Some(frame), at, ip, stores: self.stores };
            if self.modifications(frame).0 > 8 {
                self.set_modifications(frame, 2);
            }
        } else if self.run.at == at {
            self.run.stores = self.stores;
        } else {
            self.run = Run::default();
        }
    }

    /// Source: `pgmPoolAddDirtyPage`.
    fn make_dirty(&mut self, frame: Gfn, around: &Around<'_>) {
        self.shadows.unlink(frame);
        if let Some(table) = self.shadows.table_mut(frame) {
            table.free = true;
        }
        if let Some(flushed) = self.slots.add(frame) {
            self.reset(flushed, around);
        }
    }

    /// Monitors a dirty table again, and drops what the guest changed. Source: `pgmPoolFlushDirtyPage`.
    fn reset(&mut self, frame: Gfn, around: &Around<'_>) {
        self.shadows.protect(frame);
        let mut changes = 0;
        for (entry, piece) in self.shadows.leaves(frame) {
            self.shadows.work_mut().entries_synced += 1;
            let held = piece.attrs;
            let same = match Guest4::decode((around.peek)(entry), Level::L1) {
                Entry::Leaf { frame, attrs, .. } => {
                    let clean = if attrs.contains(Attrs::DIRTY) { Attrs::empty() } else { Attrs::WRITE };
                    let perms = (attrs & Attrs::PERMISSIONS) - clean;
                    frame == piece.frame
                        && attrs.contains(Attrs::ACCESSED)
                        && perms.contains(held & Attrs::PERMISSIONS)
                        && (held | Attrs::WRITE).contains(perms)
                }
                _ => false,
            };
            if !same {
                changes += 1;
                self.shadows.clear(entry);
            }
        }
        if let Some(table) = self.shadows.table_mut(frame) {
            table.free = false;
            table.writes = if changes < 4 { 1 } else { (table.writes / 2).max(1) };
        }
    }

    fn reset_path(&mut self, way: &Way, around: &Around<'_>) {
        for (entry, _) in way.entries().collect::<Vec<_>>() {
            if self.slots.remove(entry.frame()) {
                self.reset(entry.frame(), around);
            }
        }
    }

    fn sync_around(&mut self, slot: Gpa, around: &Around<'_>) {
        let (table, at) = (slot.frame(), (slot.as_u64() & 0xfff) / 8);
        for i in at.saturating_sub(SYNC_PAGES / 2)..(at + SYNC_PAGES / 2).min(512) {
            let entry = table.at(8 * i);
            if !self.shadows.is_used(entry) {
                let _ = self.shadows.prefetch(entry, Clean::Filled, around);
            }
        }
    }

    /// A load of CR3.
    pub(crate) fn load_root(&mut self, root: Gfn, around: &Around<'_>) {
        for frame in std::mem::take(&mut self.modified) {
            if let Some(table) = self.shadows.table_mut(frame) {
                table.writes = 0;
            }
        }
        self.reset_all(around);
        self.shadows.enter(root);
        self.shadows.flush();
    }

    /// Any flush: all dirty tables are monitored again.
    pub(crate) fn flush(&mut self, around: &Around<'_>) {
        self.reset_all(around);
        self.shadows.flush();
    }

    fn reset_all(&mut self, around: &Around<'_>) {
        for frame in std::mem::take(&mut self.slots).held.into_iter().flatten() {
            self.reset(frame, around);
        }
    }
}
