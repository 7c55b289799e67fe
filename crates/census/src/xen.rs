//! Entries in use, where three leaf tables at most may be out of sync: the events and the work of Xen's policy.
//!
//! Each rule is that of the crate `memvirt-shadow`, module `xen`, with the functions of Xen that it comes from. The place of a table
//! among the three is its host frame's number modulo 3. The native run has no host frames, but it says in which order frames of the
//! guest are touched and tables are shadowed and freed, and a host that hands frames out upwards, what was freed last first, gives each
//! its number in that order ([`Shadows::back`]). On a host that hands them out otherwise the places are a guess.

use memvirt_addr::{Gfn, Gpa, Gva};
use memvirt_ops::arch::StoreOp;
use memvirt_platform::Work;

use crate::around::Around;
use crate::events::Events;
use crate::path::Way;
use crate::shadows::{Clean, Neighbour, Orphans, Search, Shadows};

/// Tables out of sync at most.
const PLACES: usize = 3;
/// Entries that a fault fills, the one asked for included.
const PREFETCH: u64 = 32;

/// A table out of sync, and where it belongs.
#[derive(Clone, Copy, Debug)]
struct Place {
    table: Gfn,
    home: usize,
}

/// Xen's view.
#[derive(Debug)]
pub(crate) struct Xen {
    shadows: Shadows,
    places: [Option<Place>; PLACES],
    last_zero: Option<Gfn>,
}

impl Default for Xen {
    fn default() -> Self {
        Self { shadows: Shadows::new(Orphans::Go, Search::Scan), places: [None; PLACES], last_zero: None }
    }
}

impl Xen {
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
    pub(crate) fn access(
        &mut self,
        way: &Way,
        store: Option<(Gpa, &StoreOp)>,
        around: &Around<'_>,
        events: &mut Events,
    ) {
        let elements = if let Some((_, StoreOp::RepStos { count, .. })) = store { u64::from(*count) } else { 1 };
        for element in 0..elements {
            if self.shadows.serves(way) {
                return;
            }
            let store = store.map(|(at, op)| (at.wrapping_add(8 * element), op));
            self.fault(way, store, around, events);
        }
    }

    fn fault(&mut self, way: &Way, store: Option<(Gpa, &StoreOp)>, around: &Around<'_>, events: &mut Events) {
        self.shadows.work_mut().guest_entries_read += way.refs();
        if way.write && self.shadows.is_protected(way.frame) {
            if way.user && self.shadows.root() != Some(way.frame) && !way.leads_through(way.frame) {
                events.xen_stores += 1;
                self.zap(way.frame);
                self.shadows.flush();
                self.shadows.work_mut().guest_entries_read += way.refs();
            } else if way.user || !self.unsync(way.frame, store.map(|(at, _)| at), around) {
                events.xen_stores += 1;
                self.shadows.work_mut().instructions_emulated += 1;
                if let Some((at, op)) = store {
                    self.emulated(at, op, around);
                }
                self.shadows.flush();
                return;
            }
        }
        self.last_zero = None;
        self.sync_path(way, around);
        let slot = self.shadows.fill(way, around);
        self.prefetch(slot, around);
        self.reap();
        self.shadows.flush();
        events.xen_fills += 1;
    }

    /// Lets a leaf table out of sync; says no for others. Source: `sh_unsync`, `oos_hash_add`.
    fn unsync(&mut self, frame: Gfn, stored: Option<Gpa>, around: &Around<'_>) -> bool {
        if self.shadows.table(frame).is_none_or(|table| table.level != 1) {
            return false;
        }
        let at = self.shadows.back(frame).as_index() % PLACES;
        if let Some(table) = self.shadows.table_mut(frame) {
            table.free = true;
        }
        self.shadows.snapshot(frame, stored, around);
        let evicted = match self.places[at].replace(Place { table: frame, home: at }) {
            Some(held) if held.home == at => self.places[(at + 1) % PLACES].replace(held),
            other => other,
        };
        if let Some(evicted) = evicted {
            self.back_in_sync(evicted.table, around);
        }
        true
    }

    fn back_in_sync(&mut self, frame: Gfn, around: &Around<'_>) {
        if let Some(table) = self.shadows.table_mut(frame) {
            table.free = false;
        }
        self.shadows.protect(frame);
        for (entry, piece) in self.shadows.leaves(frame) {
            self.shadows.work_mut().entries_synced += 1;
            if (around.peek)(entry) != piece.raw {
                self.shadows.propagate(entry, 1, around);
            }
        }
    }

    fn resync(&mut self, frame: Gfn, around: &Around<'_>) {
        if let Some(place) = self.places.iter_mut().find(|place| place.is_some_and(|held| held.table == frame)) {
            *place = None;
            self.back_in_sync(frame, around);
        }
    }

    /// Everything comes back into sync.
    fn resync_all(&mut self, around: &Around<'_>) {
        for place in self.places.map(|place| place.into_iter()).into_iter().flatten() {
            self.resync(place.table, around);
        }
    }

    /// A store to a table that stays in sync was carried out.
    fn emulated(&mut self, at: Gpa, op: &StoreOp, around: &Around<'_>) {
        let (frame, level) = (at.frame(), self.shadows.table(at.frame()).map_or(1, |table| table.level));
        if self.shadows.propagate(at, level, around) {
            self.resync_all(around);
        }
        let zero = match op {
            StoreOp::Mov { value, .. } | StoreOp::RepStos { value, .. } => value & 0xffff_ffff == 0,
            StoreOp::Vector => true,
            StoreOp::And { .. } | StoreOp::Or { .. } => false,
        };
        if zero && self.last_zero.replace(frame) == Some(frame) && self.shadows.root() != Some(frame) {
            self.zap(frame);
        }
        self.reap();
    }

    fn zap(&mut self, frame: Gfn) {
        self.shadows.zap(frame);
        self.reap();
    }

    /// Frees what nothing leads to, and forgets tables out of sync that are none any more.
    fn reap(&mut self) {
        self.shadows.reap();
        for place in &mut self.places {
            *place = place.filter(|held| self.shadows.table(held.table).is_some());
        }
    }

    /// Tables about to be used in a new place come into sync. Source: `shadow_get_and_create_l1e`.
    fn sync_path(&mut self, way: &Way, around: &Around<'_>) {
        for (entry, next, level) in way.links().collect::<Vec<_>>() {
            let shadowed = self.shadows.table(next).is_some();
            if shadowed && self.shadows.child(entry) != Some(next) {
                self.resync_all(around);
            } else if level > 2 || !shadowed {
                self.resync(next, around);
            }
        }
    }

    fn prefetch(&mut self, slot: Gpa, around: &Around<'_>) {
        let left = (0x1000 - (slot.as_u64() & 0xfff)) / 8;
        for i in 1..PREFETCH.min(left) {
            let entry = slot.wrapping_add(8 * i);
            if self.shadows.is_used(entry) {
                return;
            }
            let neighbour = self.shadows.prefetch(entry, Clean::Skipped, around);
            if matches!(neighbour, Neighbour::Unused | Neighbour::Clean(..)) {
                return;
            }
        }
    }

    /// A load of CR3.
    pub(crate) fn load_root(&mut self, root: Gfn, around: &Around<'_>) {
        self.resync(root, around);
        self.shadows.enter(root);
        self.flush(around);
    }

    /// A flush of everything.
    pub(crate) fn flush(&mut self, around: &Around<'_>) {
        self.resync_all(around);
        self.reap();
        self.shadows.flush();
    }

    /// INVLPG: the entry of a table out of sync goes.
    pub(crate) fn flush_page(&mut self, gva: Gva) {
        if let Some(entry) = self.shadows.lowest(gva)
            && self.shadows.table(entry.frame()).is_some_and(|table| table.free)
        {
            self.shadows.clear(entry);
        }
        self.shadows.no_flush();
    }

    /// The guest got a page fault, after a walk of so many entries.
    pub(crate) fn reflect(&mut self, gva: Gva, refs: u64) {
        self.shadows.work_mut().guest_entries_read += refs;
        self.last_zero = None;
        self.flush_page(gva);
    }
}
