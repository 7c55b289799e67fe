//! Entries in use, where three leaf tables at most may be out of sync: the events of Xen's policy.
//!
//! Each rule is that of the crate `memvirt-shadow`, module `xen`, with the functions of Xen that it comes from. One thing cannot be
//! known from the native run: the place of a table among the three is its host frame's number modulo 3. The guest's frame number
//! stands for it, so which table is pushed out is a guess where more than three are stored to at a time.

use memvirt_addr::{Gfn, Gpa};
use memvirt_ops::arch::StoreOp;

use crate::drift::Around;
use crate::events::Events;
use crate::path::Way;
use crate::shadows::{Neighbour, Orphans, Shadows};

/// Tables out of sync at most.
const PLACES: usize = 3;
/// Entries that a fault fills, the one asked for included.
const PREFETCH: u64 = 32;

/// Xen's view.
#[derive(Debug)]
pub(crate) struct Xen {
    shadows: Shadows,
    places: [Option<Gfn>; PLACES],
    last_zero: Option<Gfn>,
    root: Option<Gfn>,
}

impl Default for Xen {
    fn default() -> Self {
        Self { shadows: Shadows::new(Orphans::Go), places: [None; PLACES], last_zero: None, root: None }
    }
}

impl Xen {
    /// An access or store that completed.
    pub(crate) fn access(
        &mut self,
        way: &Way,
        store: Option<(Gpa, &StoreOp)>,
        around: &Around<'_>,
        events: &mut Events,
    ) {
        if self.shadows.held(way).is_some_and(|writable| writable || !way.write) {
            return;
        }
        if way.write && self.shadows.is_protected(way.frame) {
            if way.user {
                events.xen_stores += 1;
                self.zap(way.frame);
            } else if !self.unsync(way.frame, around) {
                events.xen_stores += 1;
                if let Some((at, op)) = store {
                    self.emulated(at, op, around);
                }
                return;
            }
        }
        self.last_zero = None;
        self.sync_path(way, around);
        self.shadows.fill(way, around);
        self.prefetch(way, around);
        events.xen_fills += 1;
    }

    /// Lets a leaf table out of sync; says no for others. Source: `sh_unsync`, `oos_hash_add`.
    fn unsync(&mut self, frame: Gfn, around: &Around<'_>) -> bool {
        let Some(table) = self.shadows.table_mut(frame).filter(|table| table.level == 1) else { return false };
        table.free = true;
        let home = |frame: Gfn| usize::try_from(frame.number() % PLACES as u64).unwrap_or(0);
        let at = home(frame);
        let evicted = match self.places[at].replace(frame) {
            Some(held) if home(held) == at => self.places[(at + 1) % PLACES].replace(held),
            other => other,
        };
        if let Some(evicted) = evicted {
            self.back_in_sync(evicted, around);
        }
        true
    }

    fn back_in_sync(&mut self, frame: Gfn, around: &Around<'_>) {
        if let Some(table) = self.shadows.table_mut(frame) {
            table.free = false;
        }
        self.shadows.protect(frame);
        for (entry, _, piece) in self.shadows.leaves(frame) {
            if (around.peek)(entry) != piece.raw {
                self.shadows.propagate(entry, 1, around);
            }
        }
    }

    fn resync(&mut self, frame: Gfn, around: &Around<'_>) {
        if let Some(place) = self.places.iter_mut().find(|place| **place == Some(frame)) {
            *place = None;
            self.back_in_sync(frame, around);
        }
    }

    /// Everything comes back into sync.
    fn resync_all(&mut self, around: &Around<'_>) {
        for frame in self.places.map(|place| place.into_iter()).into_iter().flatten() {
            self.resync(frame, around);
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
        if zero && self.last_zero.replace(frame) == Some(frame) && self.root != Some(frame) {
            self.zap(frame);
        }
        self.forget_freed();
    }

    fn zap(&mut self, frame: Gfn) {
        self.shadows.zap(frame);
        self.forget_freed();
    }

    fn forget_freed(&mut self) {
        for place in &mut self.places {
            *place = place.filter(|frame| self.shadows.table(*frame).is_some());
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

    fn prefetch(&mut self, way: &Way, around: &Around<'_>) {
        if way.leaf_level() > 1 {
            let first = way.frame.number();
            let last = (first | 511).min(first + PREFETCH - 1);
            for frame in (first + 1..=last).map(Gfn::new) {
                if self.shadows.prefetch_piece(way, frame, around) {
                    return;
                }
            }
            return;
        }
        let first = way.leaf().as_u64() & 0xfff;
        for i in 1..PREFETCH.min((0x1000 - first) / 8) {
            let entry = Gpa::new(way.leaf().as_u64() + 8 * i);
            if self.shadows.is_used(entry) {
                return;
            }
            match self.shadows.prefetch(entry, around) {
                Neighbour::Unused | Neighbour::Clean(..) => return,
                Neighbour::Absent | Neighbour::Filled => {}
            }
        }
    }

    /// A load of CR3.
    pub(crate) fn load_root(&mut self, root: Gfn, around: &Around<'_>) {
        self.root = Some(root);
        self.resync(root, around);
        self.shadows.make_table(root, 4);
        self.flush(around);
    }

    /// A flush of everything.
    pub(crate) fn flush(&mut self, around: &Around<'_>) {
        self.resync_all(around);
        self.forget_freed();
    }

    /// INVLPG, or a fault that the guest gets: the entry of a table out of sync goes. `lowest` is the last entry of the walk.
    pub(crate) fn flush_page(&mut self, lowest: Option<(Gpa, u8)>) {
        if let Some((entry, 1)) = lowest
            && self.shadows.table(entry.frame()).is_some_and(|table| table.free)
        {
            self.shadows.clear(entry);
        }
    }

    /// The guest got a page fault.
    pub(crate) fn fault(&mut self, lowest: Option<(Gpa, u8)>) {
        self.last_zero = None;
        self.flush_page(lowest);
    }
}
