//! [`Agile`]: shadow paging for what the guest leaves alone, nested paging for what it changes, within one walk.
//!
//! A walk begins in shadow tables and may go on, from any level down, in the guest's own ([`Switching`]). Guest tables that
//! are shadowed are write-protected, so stores to them exit; those walked nested are not. With all four levels shadowed a walk
//! makes 4 references, with the lowest k nested 4 + 4k. Source: Gandhi, Hill and Swift, *Agile Paging: Exceeding the Best of
//! Nested and Shadow Paging*, ISCA 2016.
//!
//! **What exits**: CR3 loads, since the hypervisor has to find the shadow root (the paper's cache of roots in hardware is not
//! modelled); faults that only the shadow part has (hidden), or that the guest's tables have where their shadow ends
//! (reflected); stores to shadowed tables; violations of the nested tables. Not INVLPG, INVPCID and CR0/CR4: shadows are
//! always in step with the guest's tables, and what is nested needs no help. Hardware applies CR0.WP = 1 to a walk that ends in the
//! shadow tables, the guest's own to one that ends in the guest's.

mod guest;
mod host;
mod policy;
mod tables;
mod walk;

use memvirt_addr::PageSize;
use memvirt_addr::{Gfn, Level, PfCode};
use memvirt_ops::VcpuId;
use memvirt_ops::arch::{Control, GuestFault, HostEvent, VcpuSet};
use memvirt_pagetable::{Attrs, Entry, Guest4, Path, TableMem, Walked as Ended};
use memvirt_platform::{
    Backed, Cx, ExitReason, Horizon, Host, LockMode, MemoryMap, Outcome, Refusal, Regime, Request, TableBytes, Work,
};
use memvirt_shadow::store::{Change, ShadowStore, Slot};

pub use policy::{Policy, Switching};

use policy::Activity;
use tables::{Making, Tables};
use walk::{Hardware, Root, Walked};

use crate::dirty::DirtyLog;
use crate::hypervisor::{self, device, flush_if, stopped};
use crate::meter::{on_cpu, shown};
use crate::radix::Radix;
use crate::stage::{HostTables, Violation};
use crate::walk::End;
use memvirt_platform::Probe;

/// How many stores without a use in between make a shadowed table data, as under `memvirt_shadow::write_protect`.
const UNSHADOW_AFTER: u32 = memvirt_shadow::write_protect::UNSHADOW_AFTER;

/// How often parts moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgileStats {
    /// Tables that went from shadow to nested.
    pub to_nested: u64,
    /// Tables that went back.
    pub to_shadow: u64,
    /// Intervals that ended.
    pub intervals: u64,
}

/// Agile paging for one virtual machine.
#[derive(Debug)]
pub struct Agile {
    tables: Tables,
    activity: Activity,
    log: DirtyLog,
    stats: AgileStats,
}

impl Agile {
    /// A machine with the memory of `map` and no tables yet. `None` where the host has no frame left.
    pub fn new(host: &mut Host, map: &MemoryMap, switching: Switching) -> Option<Self> {
        let mut tables = Tables::new(map, Radix::new(host)?);
        if let Switching::Activity(_) = switching {
            tables.store.count_references();
        }
        Some(Self {
            tables,
            activity: Activity::new(switching),
            log: DirtyLog::default(),
            stats: AgileStats::default(),
        })
    }

    /// How often parts moved.
    #[must_use]
    pub const fn stats(&self) -> AgileStats {
        self.stats
    }

    /// The shadow tables.
    #[must_use]
    pub const fn store(&self) -> &ShadowStore {
        &self.tables.store
    }

    /// The log of dirtied pages.
    #[must_use]
    pub const fn log(&self) -> &DirtyLog {
        &self.log
    }

    /// The guest tables that are nested because the guest changes them; none under [`Switching::Levels`].
    pub fn nested_tables(&self) -> impl Iterator<Item = Gfn> + '_ {
        self.activity.nested()
    }

    /// One hardware walk without walk caches, shown to `probe` and counted nowhere; true where it found the translation.
    pub fn show<P: Probe>(&self, cx: &mut Cx<'_>, request: &Request<'_>, probe: &mut P) -> bool {
        let walked = shown(cx, request.acc, self.hardware(cx.me), probe);
        matches!(walked, Walked::Shadow(_) | Walked::Nested(End::Mapped(_)))
    }

    fn hardware(&self, v: VcpuId) -> Hardware<'_> {
        Hardware { stage: &self.tables.nested, top: self.tables.top(v) }
    }

    fn making(&self, write: bool) -> Making {
        Making { write, logging: self.log.is_on(), dirty: !self.activity.adapts() }
    }

    /// Puts the vCPU on the root of its CR3; on none where that is no memory. `None` where the host has no frame left.
    fn load_root(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> Option<Change> {
        let (gfn, level) = (cx.regs().cr3.root.frame(), Level::L4);
        if !cx.map.contains(gfn) {
            self.tables.set_root(cx.me, None);
            return Some(Change::Kept);
        }
        if self.activity.is_nested(gfn, level) {
            let frame = cx.back(gfn, work)?.frame;
            self.tables.set_root(cx.me, Some(Root::Guest(gfn, frame)));
            return Some(Change::Kept);
        }
        let room = self.tables.make_room(cx, work);
        let (id, change) = self.tables.table(cx, gfn, level, work)?;
        self.tables.set_root(cx.me, Some(Root::Shadow(id)));
        Some(change.or(room))
    }

    /// The shadow tables did not serve the access.
    fn missing(&mut self, cx: &mut Cx<'_>, request: &Request<'_>) -> Outcome {
        let mut work = Work::default();
        if self.tables.root(cx.me).is_none() {
            let Some(loaded) = self.load_root(cx, &mut work) else { return Outcome::OutOfMemory };
            // At once: not every repair flushes.
            flush_if(cx, loaded, &mut work);
        }
        self.repair(cx, request, ExitReason::HiddenFault, Change::Kept, work)
    }

    /// Brings the shadow in step with the guest's tables as far as they are shadowed, or says what the guest must do. Counts
    /// the exit, for `reason` where the shadow was all that lacked.
    fn repair(
        &mut self,
        cx: &mut Cx<'_>,
        request: &Request<'_>,
        reason: ExitReason,
        change: Change,
        mut work: Work,
    ) -> Outcome {
        let acc = request.acc;
        let path = guest::read_path(cx, acc, &mut work);
        let nested = path.steps().position(|step| {
            let gfn = step.entry_at.frame();
            cx.map.contains(gfn) && self.activity.is_nested(gfn, step.level)
        });
        let filled = match nested {
            Some(depth) => self.enter_nested(cx, request, &path, depth, &mut work),
            None => {
                let Some(page) = guest::page(cx.regs(), &path, acc) else {
                    self.note_use(&path);
                    let kick = flush_if(cx, change, &mut work);
                    cx.exit(ExitReason::ReflectedFault, work, None, kick);
                    return Outcome::Fault(GuestFault { gva: acc.gva(), code: code(&path, acc) });
                };
                guest::mark_used(cx, &path, usize::MAX, acc, |gfn| self.log.mark(gfn));
                if !cx.map.contains(page.gfn) {
                    return device(cx, request, true);
                }
                if acc.is_write() && self.tables.is_protected(page.gfn) {
                    return self.table_store(cx, request, page.gfn, &path, work);
                }
                if acc.is_write() && !path.perms.contains(Attrs::WRITE) {
                    return self.store_despite_protection(cx, request, page.gfn, work);
                }
                if acc.is_write() {
                    self.log.mark(page.gfn);
                    self.activity.touched(page.gfn);
                }
                self.fill(cx, request, &path, &page, &mut work)
            }
        };
        let Some(filled) = filled else { return Outcome::OutOfMemory };
        self.note_use(&path);
        let kick = flush_if(cx, change.or(filled), &mut work);
        cx.exit(reason, work, Some(LockMode::Exclusive), kick);
        Outcome::Retry
    }

    /// Shadows the part of a path above a nested table, which stands at `depth`, and makes hardware go on there.
    fn enter_nested(
        &mut self,
        cx: &mut Cx<'_>,
        request: &Request<'_>,
        path: &Path<Guest4>,
        depth: usize,
        work: &mut Work,
    ) -> Option<Change> {
        if depth == 0 {
            return self.load_root(cx, work);
        }
        let room = self.tables.make_room(cx, work);
        guest::mark_used(cx, path, depth, request.acc, |gfn| self.log.mark(gfn));
        let gva = request.acc.gva();
        let (table, built) = self.tables.build(cx, gva, path, depth, work)?;
        let Some(Entry::Table { next, attrs }) = path.steps().nth(depth - 1).map(|step| step.entry) else {
            return None;
        };
        let switched = self.tables.switch(cx, table, gva, (next, attrs), work)?;
        Some(room.or(built).or(switched))
    }

    fn fill(
        &mut self,
        cx: &mut Cx<'_>,
        request: &Request<'_>,
        path: &Path<Guest4>,
        page: &guest::Page,
        work: &mut Work,
    ) -> Option<Change> {
        let room = self.tables.make_room(cx, work);
        let gva = request.acc.gva();
        let (table, built) = self.tables.build(cx, gva, path, path.refs() as usize, work)?;
        let making = self.making(request.acc.is_write());
        let leaf = self.tables.leaf(cx, table, gva, page, making, work)?;
        Some(room.or(built).or(leaf))
    }

    /// The tables on the way were used: stores to them count from nought again.
    fn note_use(&mut self, path: &Path<Guest4>) {
        for step in path.steps() {
            for id in self.tables.shadows_of(step.entry_at.frame()) {
                self.tables.store.page_mut(id).writes = 0;
            }
        }
    }

    /// A store to a shadowed table.
    fn table_store(
        &mut self,
        cx: &mut Cx<'_>,
        request: &Request<'_>,
        gfn: Gfn,
        path: &Path<Guest4>,
        mut work: Work,
    ) -> Outcome {
        let reason = ExitReason::TableWrite;
        let free = !self.tables.is_root(gfn) && !guest::leads_through(path, gfn);
        if guest::is_data(request) && free {
            let change = self.tables.unshadow(cx, gfn, &mut work);
            let kick = flush_if(cx, change, &mut work);
            cx.exit(reason, work, Some(LockMode::Exclusive), kick);
            return Outcome::Retry;
        }
        if self.activity.stored(gfn) {
            return self.let_go(cx, request, gfn, work);
        }
        let Some(words) = guest::emulate(cx, request, gfn, &mut work) else { return Outcome::OutOfMemory };
        self.log.mark(gfn);
        let (mut change, mut flooded) = (Change::Kept, false);
        for id in self.tables.shadows_of(gfn) {
            for word in &words {
                change = change.or(self.tables.store.clear(cx.host, Slot::new(id, *word), &mut work));
            }
            let page = self.tables.store.page_mut(id);
            page.writes += 1;
            flooded |= page.writes > UNSHADOW_AFTER;
        }
        if (flooded || guest::misaligned(request)) && !self.tables.is_root(gfn) {
            change = change.or(self.tables.unshadow(cx, gfn, &mut work));
        }
        let kick = flush_if(cx, change, &mut work);
        cx.exit(reason, work, Some(LockMode::Exclusive), kick);
        Outcome::Emulated
    }

    /// The table is nested from now on. The store that decided it goes through.
    fn let_go(&mut self, cx: &mut Cx<'_>, request: &Request<'_>, gfn: Gfn, mut work: Work) -> Outcome {
        let Some(change) = self.make_nested(cx, gfn, &mut work) else { return Outcome::OutOfMemory };
        let writable = self.map_nested(cx, gfn, true, &mut work);
        let Some(writable) = writable else { return Outcome::OutOfMemory };
        self.repair(cx, request, ExitReason::TableWrite, change.or(writable), work)
    }

    /// Replaces the shadows of a table by entries that lead into it; what was shadowed only below it goes too.
    fn make_nested(&mut self, cx: &mut Cx<'_>, gfn: Gfn, work: &mut Work) -> Option<Change> {
        self.stats.to_nested += 1;
        let frame = cx.back(gfn, work)?.frame;
        let (mut change, tables) = (Change::Lost, &mut self.tables);
        for id in tables.shadows_of(gfn) {
            for slot in tables.store.parents_of(id).collect::<Vec<_>>() {
                let attrs = tables.store.entry(cx.host, slot).attrs() & Attrs::PERMISSIONS;
                change = change.or(tables.store.switch(cx.host, slot, (gfn, frame), attrs, work));
            }
            tables.replace_roots(|root| *root == Root::Shadow(id), Some(Root::Guest(gfn, frame)));
            change = change.or(tables.store.zap(cx.host, id, work));
        }
        Some(change.or(tables.store.reap(cx.host, work)))
    }

    /// Maps the page behind `gfn` in the nested tables.
    fn map_nested(&mut self, cx: &mut Cx<'_>, gfn: Gfn, write: bool, work: &mut Work) -> Option<Change> {
        let backed = cx.back(gfn, work)?;
        if write {
            self.log.mark(gfn);
            self.activity.touched(gfn);
        }
        let size = match self.log.is_on() {
            true => PageSize::Size4K,
            false => self.tables.store.clear_of_tables(gfn, backed.size),
        };
        let writable = !self.tables.is_protected(gfn) && (write || !self.log.is_on());
        self.tables.nested.map(cx.host, gfn, Backed { size, ..backed }, writable, work)
    }

    /// The nested tables stopped the part of a walk that goes through the guest's.
    fn violated(&mut self, cx: &mut Cx<'_>, request: &Request<'_>, violation: &Violation) -> Outcome {
        stopped(cx, request, violation);
        let gfn = violation.gpa.frame();
        if !cx.map.contains(gfn) {
            return device(cx, request, violation.on_data);
        }
        let mut work = Work::default();
        let write = violation.want.perms.contains(Attrs::WRITE);
        if write && self.tables.is_protected(gfn) {
            if violation.on_data {
                let path = guest::read_path(cx, request.acc, &mut work);
                return self.table_store(cx, request, gfn, &path, work);
            }
            return self.set_bits(cx, violation, work);
        }
        let Some(change) = self.map_nested(cx, gfn, write, &mut work) else { return Outcome::OutOfMemory };
        let kick = flush_if(cx, change, &mut work);
        cx.exit(ExitReason::EptViolation, work, Some(LockMode::Shared), kick);
        Outcome::Retry
    }

    /// Sets accessed and dirty bits in a table that is shadowed too (as one of another level), for hardware, which may not.
    fn set_bits(&mut self, cx: &mut Cx<'_>, violation: &Violation, mut work: Work) -> Outcome {
        let mut guest = cx.guest();
        let raw = guest.read(violation.gpa);
        guest.write_entry(violation.gpa, raw | violation.update);
        self.log.mark(violation.gpa.frame());
        work.instructions_emulated += 1;
        cx.exit(ExitReason::EptViolation, work, Some(LockMode::Exclusive), VcpuSet::EMPTY);
        Outcome::Retry
    }

    /// Carries out a store that CR0.WP = 0 allows.
    fn store_despite_protection(
        &mut self,
        cx: &mut Cx<'_>,
        request: &Request<'_>,
        gfn: Gfn,
        mut work: Work,
    ) -> Outcome {
        if guest::emulate(cx, request, gfn, &mut work).is_none() {
            return Outcome::OutOfMemory;
        }
        self.log.mark(gfn);
        self.activity.touched(gfn);
        cx.exit(ExitReason::HiddenFault, work, Some(LockMode::Exclusive), VcpuSet::EMPTY);
        Outcome::Emulated
    }

    /// The end of an interval: the dirty bits of nested tables tell which are quiet. The hypervisor does it beside the guest,
    /// whose vCPUs it interrupts to flush.
    fn interval_over(&mut self, cx: &mut Cx<'_>) {
        self.stats.intervals += 1;
        let (mut work, mut change) = (Work::default(), Change::Kept);
        for gfn in self.activity.nested().collect::<Vec<_>>() {
            work.entries_synced += 1;
            let dirty = self.tables.take_dirty(cx, gfn, &mut work);
            // A cached translation would hide the next store.
            change = change.or(if dirty { Change::Lost } else { Change::Kept });
            if self.activity.looked_at(gfn, dirty) {
                self.stats.to_shadow += 1;
                change = change.or(self.tables.store.drop_switches(cx.host, gfn, &mut work));
                self.tables.replace_roots(|root| matches!(root, Root::Guest(at, _) if *at == gfn), None);
            }
        }
        change = change.or(self.tables.store.reap(cx.host, &mut work));
        flush_if(cx, change, &mut work);
        cx.out.counters.work += work;
    }
}

/// The error code of a fault that the guest's tables raise.
fn code(path: &Path<Guest4>, acc: memvirt_addr::Acc) -> PfCode {
    match path.end {
        Ended::Reserved(_) => PfCode::of(acc, true).with_reserved(),
        Ended::Absent(_) => PfCode::of(acc, false),
        Ended::Mapped { .. } => PfCode::of(acc, true),
    }
}

impl Regime for Agile {
    fn miss(&mut self, cx: &mut Cx<'_>, request: &Request<'_>) -> Outcome {
        if self.activity.missed() {
            self.interval_over(cx);
        }
        let walked = on_cpu(cx, request.acc, self.hardware(cx.me));
        let may_exit = cx.horizon != Horizon::NextExit;
        match walked {
            Walked::Shadow(outcome) => outcome,
            Walked::Nested(End::Mapped(found)) => walk::filled(request.acc, &found),
            Walked::Nested(End::GuestFault(code)) => Outcome::Fault(GuestFault { gva: request.acc.gva(), code }),
            Walked::Nested(End::Violation(violation)) if may_exit => self.violated(cx, request, &violation),
            Walked::Missing if may_exit => self.missing(cx, request),
            Walked::Nested(_) | Walked::Missing => Outcome::Horizon,
        }
    }

    fn control(&mut self, cx: &mut Cx<'_>, control: &Control) -> Result<(), Refusal> {
        hypervisor::control(cx, control);
        if let Control::Cr3(_) = control {
            let mut work = Work::default();
            let change = self.load_root(cx, &mut work).ok_or(Refusal::HostOutOfMemory)?;
            let kick = flush_if(cx, change, &mut work);
            cx.exit(ExitReason::Cr3Load, work, Some(LockMode::Exclusive), kick);
        }
        Ok(())
    }

    fn host(&mut self, cx: &mut Cx<'_>, event: &HostEvent) {
        self.host_event(cx, event);
    }

    fn table_bytes(&self) -> TableBytes {
        let shadow = self.tables.store.table_bytes();
        TableBytes { nested: self.tables.nested.bytes(), ..shadow }
    }
}
