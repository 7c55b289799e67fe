//! Entries in use, where leaf tables may drift between two flushes: the events and the work of KVM's policy.
//!
//! A leaf table that is stored to leaves the step once; from then on its stores are free, and what was used of it stays usable as it
//! was, until a load of CR3 brings it back (INVLPG: one entry). Tables above stay in step, every store to them noticed, and are given up
//! at the third store without a use. A table has a shadow for each set of permissions under which it is reached, which matters where a
//! kernel isolates its tables: its own root forbids to execute what is the process'. Neighbours of a leaf that need nothing are filled
//! with it. Source: Linux 6.1, `arch/x86/kvm/mmu`; the crate `memvirt-shadow`, module `kvm`, documents each rule. The limit on shadow
//! pages is left out.

mod fetch;
mod pages;
mod roots;
mod sync;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use memvirt_addr::{Gfn, Gpa, Gva};
use memvirt_ops::arch::StoreOp;
use memvirt_pagetable::Attrs;
use memvirt_platform::Work;

use crate::around::Around;
use crate::events::Events;
use crate::path::Way;
use crate::store::Store;
use roots::Root;

/// Stores to an upper table, without a use between them, that end its being one.
const FLOODED: u32 = 3;

/// A shadow page.
type Id = u32;

/// An entry of a shadow page.
type Slot = (Id, u16);

/// What a leaf may grant.
const ACCESS: Attrs = Attrs::WRITE.union(Attrs::USER).union(Attrs::EXEC);

/// An entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spte {
    Link(Id),
    /// Permissions, and the accessed and dirty bits of the hardware.
    Leaf(Gfn, Attrs),
}

/// A shadow page: of a guest table, or of a region within a large page.
#[derive(Debug)]
struct Page {
    gfn: Gfn,
    level: u8,
    access: Attrs,
    direct: bool,
    entries: BTreeMap<u16, Spte>,
    parents: BTreeSet<Slot>,
    unsync: bool,
    /// Entries below which something may drift.
    marks: BTreeSet<u16>,
    /// Stores without a use between them.
    stores: u32,
    /// How many roots name it.
    held: u32,
    /// Zapped while a root named it.
    invalid: bool,
}

/// KVM's view.
#[derive(Debug, Default)]
pub(crate) struct Kvm {
    pages: HashMap<Id, Page>,
    next: Id,
    /// By guest frame, oldest first.
    by_frame: HashMap<Gfn, Vec<Id>>,
    mapped: HashMap<Gfn, BTreeSet<Slot>>,
    root: Option<Root>,
    previous: [Option<Root>; 3],
    pgd: u64,
    requests: u8,
    retried: Option<(Gva, Gva)>,
    backed: HashSet<Gfn>,
    pub(crate) work: Work,
    /// Whether the fault being handled let a table drift.
    unsynced: bool,
}

/// Whether a fault is done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    /// The access is tried again.
    Retry,
    /// It was carried out.
    Emulated,
}

impl Kvm {
    /// The host has the frame from now on.
    pub(crate) fn back(&mut self, frame: Gfn) {
        self.backed.insert(frame);
    }

    /// An access or store that completed.
    pub(crate) fn access(&mut self, way: &Way, store: &Store<'_>, around: &Around<'_>, events: &mut Events) {
        // A store to a table that translates it takes a few faults; none takes more.
        for _ in 0..16 {
            self.enter(around);
            let (slot, present) = self.hardware(way);
            if let Some(slot) = slot {
                return self.mark(slot, way.write);
            }
            let done = self.fault(way, present, store, around, events);
            self.enter(around);
            if done == Done::Emulated {
                return;
            }
        }
    }

    /// The leaf that serves an access, and whether the walk ended at a leaf.
    fn hardware(&self, way: &Way) -> (Option<Slot>, bool) {
        let Some(leaf) = self.path(way.page << 12).last() else { return (None, false) };
        let Some(Spte::Leaf(_, attrs)) = self.entry(leaf) else { return (None, false) };
        let refused = way.write && !attrs.contains(Attrs::WRITE)
            || way.user && !attrs.contains(Attrs::USER)
            || way.fetch && !attrs.contains(Attrs::EXEC);
        ((!refused).then_some(leaf), true)
    }

    fn mark(&mut self, (page, index): Slot, write: bool) {
        if let Some(Spte::Leaf(_, attrs)) = self.pages.get_mut(&page).and_then(|page| page.entries.get_mut(&index)) {
            *attrs |= Attrs::ACCESSED | if write { Attrs::DIRTY } else { Attrs::empty() };
        }
    }

    /// The entries of the current root's tables that translate an address, as far down as they are linked.
    fn path(&self, address: u64) -> impl Iterator<Item = Slot> + use<> {
        let mut found = Vec::with_capacity(4);
        let mut at = self.root.map(|root| root.page);
        while let Some((id, page)) = at.and_then(|id| Some((id, self.pages.get(&id)?))) {
            let index = index(address, page.level);
            found.push((id, index));
            at = match page.entries.get(&index) {
                Some(Spte::Link(child)) => Some(*child),
                _ => None,
            };
        }
        found.into_iter()
    }

    fn entry(&self, (page, index): Slot) -> Option<Spte> {
        self.pages.get(&page)?.entries.get(&index).copied()
    }

    /// A page fault that hardware raised and the guest's tables do not call for.
    fn fault(&mut self, way: &Way, present: bool, store: &Store<'_>, around: &Around<'_>, events: &mut Events) -> Done {
        self.work.guest_entries_read += way.refs();
        if present && way.write && self.tracked(way.frame) {
            for (page, _) in self.path(way.page << 12) {
                self.used(page);
            }
            return self.table_write(way, store, events);
        }
        self.bring_in(way.frame);
        self.unsynced = false;
        if self.fetch(way, around) {
            return self.table_write(way, store, events);
        }
        *(if self.unsynced {
            &mut events.table_epochs
        } else if present {
            &mut events.drift_upgrades
        } else {
            &mut events.drift_fills
        }) += 1;
        Done::Retry
    }

    fn bring_in(&mut self, frame: Gfn) {
        self.work.frames_backed += u64::from(self.backed.insert(frame));
    }

    /// Whether the frame is shadowed as a table above level 1: its stores are emulated.
    fn tracked(&self, frame: Gfn) -> bool {
        self.tables_of(frame).any(|id| self.pages.get(&id).is_some_and(|page| page.level > 1))
    }

    /// A store to a protected table. Source: `x86_emulate_instruction`, `retry_instruction`.
    fn table_write(&mut self, way: &Way, store: &Store<'_>, events: &mut Events) -> Done {
        events.noticed_stores += 1;
        let key = (store.ip, store.gva);
        let repeated = self.retried.take() == Some(key);
        self.work.instructions_emulated += 1;
        if matches!(store.op, Some(StoreOp::RepStos { .. } | StoreOp::Vector)) && !repeated {
            self.work.guest_entries_read += way.refs();
            let mut zapped = Vec::new();
            for id in self.tables_of(way.frame).collect::<Vec<_>>() {
                self.zap(id, &mut zapped);
            }
            self.free(&mut zapped);
            self.retried = Some(key);
            return Done::Retry;
        }
        let elements = if let Some(StoreOp::RepStos { count, .. }) = store.op { u64::from(*count) } else { 1 };
        let first = way.frame.at(store.gva.as_u64() & 0xfff);
        for i in 0..elements {
            self.work.guest_entries_read += way.refs();
            self.bring_in(way.frame);
            self.track(first.wrapping_add(8 * i), store.bytes());
        }
        Done::Emulated
    }

    /// What shadowed the written bytes is out of date. Source: `kvm_mmu_pte_write`.
    fn track(&mut self, at: Gpa, bytes: u64) {
        let (mut zapped, mut flush) = (Vec::new(), false);
        let at = if bytes == 4 { at.as_u64() & !7 } else { at.as_u64() };
        let bytes = if bytes == 4 { 8 } else { bytes };
        let crosses = (at ^ (at + bytes - 1)) & !7 & 0xfff != 0 || bytes < 4;
        let misaligned = crosses && !(at & 7 == 0 && bytes == 1);
        let frame = Gpa::new_truncate(at).frame();
        for id in self.tables_of(frame).collect::<Vec<_>>() {
            if misaligned || self.is_flooded(id) {
                self.zap(id, &mut zapped);
            } else {
                let slot = (id, index(at << 9, 1));
                flush |= self.entry(slot).is_some();
                self.clear(slot);
            }
        }
        if !self.free(&mut zapped) {
            self.flush_if(flush);
        }
    }

    fn is_flooded(&mut self, id: Id) -> bool {
        self.pages.get_mut(&id).is_some_and(|page| {
            page.stores += u32::from(page.level > 1);
            page.level > 1 && page.stores >= FLOODED
        })
    }

    /// The page was used: stores count from nought again.
    fn used(&mut self, id: Id) {
        if let Some(page) = self.pages.get_mut(&id) {
            page.stores = 0;
        }
    }

    fn flush_if(&mut self, due: bool) {
        self.work.remote_flushes += u64::from(due);
    }

    /// The guest gets a page fault, after a walk of so many entries. Source: `kvm_inject_emulated_page_fault`.
    pub(crate) fn reflect(&mut self, gva: Gva, present: bool, refs: u64, around: &Around<'_>) {
        self.enter(around);
        self.work.guest_entries_read += refs;
        if present && let Some(root) = self.root {
            self.invalidate(gva, root.page, around);
        }
    }

    /// INVLPG. Source: `kvm_mmu_invlpg`.
    pub(crate) fn flush_page(&mut self, gva: Gva, around: &Around<'_>) {
        let roots = core::iter::once(self.root).chain(self.previous).flatten();
        for root in roots.map(|root| root.page).collect::<Vec<_>>() {
            self.invalidate(gva, root, around);
        }
    }
}

/// The index of an address at a level.
const fn index(address: u64, level: u8) -> u16 {
    (address >> (12 + 9 * (level - 1)) & 511) as u16
}
