//! The bare machine: hardware walks the operating system's own tables, nobody traps.
//!
//! The baseline of every comparison. "Guest" tables are the operating system's tables here, and its memory map is the
//! identity. Accessed bits are set on each level as the walk goes, even where it ends in a fault; accessed and dirty bits of
//! the leaf are set once the access is permitted. (Hardware may do either; this is the order of QEMU, on which the KVM
//! recordings that memvirt is checked against were made.)

use memvirt_addr::{Acc, Gfn, Gpa, GuestPhys, Hfn, HostPhys, Hpa, Level, PageSize, PfCode};
use memvirt_ops::arch::{Control, GuestFault, HostEvent};
use memvirt_pagetable::{Attrs, Entry, Format, Guest4, PhysMem, TableMem};

use crate::cpu::Regs;
use crate::cx::{Cx, tlb_entry};
use crate::engine::{Outcome, Regime, Request};
use crate::foresee::{Foresight, PlainLeaf, Tables, plain_walks};
use crate::host::{Backed, GuestMem, Host, MemoryMap};
use crate::ledger::WalkRefs;
use crate::mmu::{Caches, Partial};
use crate::probe::{CacheHit, Dimension, Probe, Reference, Update};
use crate::seam::{Refusal, TableBytes};

/// The bare machine.
#[derive(Debug, Default)]
pub struct Native;

impl Regime for Native {
    #[inline]
    fn miss(&mut self, cx: &mut Cx<'_>, request: &Request<'_>) -> Outcome {
        let vcpu = &cx.vcpus[cx.me.index()];
        let (regs, acc) = (&vcpu.regs, request.acc);
        let guest = GuestMem { host: cx.host, map: cx.map };
        let walked = match cx.cpus[vcpu.cpu].mmu.as_deref_mut() {
            None => Walker { guest, regs, caches: (), probe: &mut (), refs: 0, ad_updates: 0 }.walk(acc),
            Some(mmu) => {
                core::hint::cold_path();
                let (caches, probe) = mmu.walk(vcpu.tag(), cx.vm.0);
                Walker { guest, regs, caches, probe, refs: 0, ad_updates: 0 }.walk(acc)
            }
        };
        let refs = WalkRefs { guest: walked.refs, ..WalkRefs::default() };
        cx.out.counters.add_walk(refs, walked.ad_updates, 0);
        match walked.end {
            Ok(Leaf { gfn, size, perms, dirty }) => match cx.map.lookup(gfn) {
                Some(backed) => Outcome::Filled(tlb_entry(acc, Backed { size, ..backed }, size, perms, dirty)),
                None => Outcome::Emulated,
            },
            Err(code) => Outcome::Fault(GuestFault { gva: acc.gva(), code }),
        }
    }

    fn foresee(&self, cx: &Cx<'_>, ahead: &[Acc], found: &mut Foresight) {
        let (regs, host, map, tag) = (cx.regs(), &*cx.host, &*cx.map, cx.tag());
        let refs = WalkRefs { guest: 4, ..WalkRefs::default() };
        let (root, frames, global_pages) = (regs.cr3.root.frame(), map.frames(), regs.global_pages);
        let entry =
            |acc: Acc, leaf: PlainLeaf<GuestPhys>, frame| leaf.ready(tag, acc, frame, leaf.global & global_pages);
        if map.is_whole_host(host) {
            plain_walks(root, regs, ahead, &WholeHost(&host.mem), (found, refs), |acc, leaf| {
                let number = leaf.frame.number();
                (number < frames).then(|| entry(acc, leaf, Hfn::new(number)))
            });
        } else {
            plain_walks(root, regs, ahead, &Mapped(host, map), (found, refs), |acc, leaf| {
                Some(entry(acc, leaf, map.lookup(leaf.frame)?.frame))
            });
        }
    }

    fn control(&mut self, cx: &mut Cx<'_>, control: &Control) -> Result<(), Refusal> {
        cx.execute(control);
        Ok(())
    }

    fn host(&mut self, _: &mut Cx<'_>, _: &HostEvent) {}

    fn table_bytes(&self) -> TableBytes {
        TableBytes::default()
    }
}

/// Guest memory that is all of the host's.
struct WholeHost<'a>(&'a PhysMem<HostPhys>);

impl Tables<GuestPhys> for WholeHost<'_> {
    #[inline]
    fn place(&self, table: Gfn, index: u64) -> usize {
        self.0.place(Hfn::new(table.number()), index)
    }

    #[inline]
    fn memory(&self) -> &PhysMem<HostPhys> {
        self.0
    }
}

/// Guest memory wherever it lies.
struct Mapped<'a>(&'a Host, &'a MemoryMap);

impl Tables<GuestPhys> for Mapped<'_> {
    #[inline]
    fn place(&self, table: Gfn, index: u64) -> usize {
        self.1.lookup(table).map_or(0, |backed| self.0.mem.place(backed.frame, index))
    }

    #[inline]
    fn memory(&self) -> &PhysMem<HostPhys> {
        &self.0.mem
    }
}

/// The end of a successful walk of the operating system's tables.
struct Leaf {
    gfn: Gfn,
    size: PageSize,
    perms: Attrs,
    dirty: bool,
}

/// What one walk did; nothing of it is counted yet.
struct Walked {
    end: Result<Leaf, PfCode>,
    refs: u64,
    ad_updates: u64,
}

struct Walker<'a, C, P> {
    guest: GuestMem<'a>,
    regs: &'a Regs,
    caches: C,
    probe: &'a mut P,
    refs: u64,
    ad_updates: u64,
}

impl<C: Caches, P: Probe> Walker<'_, C, P> {
    #[inline]
    fn walk(mut self, acc: Acc) -> Walked {
        let mut end = None;
        if let Some((level, entry)) = self.caches.guest(acc.gva()) {
            self.probe.cached(CacheHit::Walk(Dimension::Guest, level));
            end = self.descend(acc, level.below().unwrap_or(Level::L1), entry).ok();
            if end.is_none() {
                self.caches.forget_guest(acc.gva());
            }
        }
        let end = end.map_or_else(|| self.descend(acc, Guest4::ROOT, self.root()), Ok);
        Walked { end, refs: self.refs, ad_updates: self.ad_updates }
    }

    #[inline]
    fn root(&self) -> Partial<GuestPhys> {
        Partial { table: self.regs.cr3.root.frame(), perms: Attrs::PERMISSIONS }
    }

    #[inline]
    fn descend(&mut self, acc: Acc, from: Level, start: Partial<GuestPhys>) -> Result<Leaf, PfCode> {
        let Partial { mut table, mut perms } = start;
        let mut level = from;
        loop {
            let at = table.entry(Guest4::index(acc.gva(), level));
            let raw = self.read(at, level);
            match Guest4::decode(raw, level) {
                Entry::Table { next, attrs } => {
                    perms &= attrs;
                    self.set_bits(at, level, raw, Guest4::RAW_ACCESSED);
                    self.caches.keep_guest(acc.gva(), level, Partial { table: next, perms });
                    table = next;
                    level = level.below().unwrap_or(Level::L1);
                }
                Entry::Leaf { frame, size, attrs } => {
                    perms &= attrs;
                    if !self.regs.permits(perms, acc) {
                        return Err(PfCode::of(acc, true));
                    }
                    let dirty = if acc.is_write() { Guest4::RAW_DIRTY } else { 0 };
                    let raw = self.set_bits(at, level, raw, Guest4::RAW_ACCESSED | dirty);
                    if attrs.contains(Attrs::GLOBAL) && self.regs.global_pages {
                        perms |= Attrs::GLOBAL;
                    }
                    let gfn = frame.offset(acc.gva().page_offset(size) >> 12);
                    return Ok(Leaf { gfn, size, perms, dirty: raw & Guest4::RAW_DIRTY != 0 });
                }
                Entry::Absent => return Err(PfCode::of(acc, false)),
                Entry::Reserved => return Err(PfCode::of(acc, true).with_reserved()),
            }
        }
    }

    #[inline]
    fn read(&mut self, gpa: Gpa, level: Level) -> u64 {
        self.refs += 1;
        let entry_at = self.guest.host_address(gpa);
        let raw = entry_at.map_or(0, |at| self.guest.host.mem.read(at));
        self.probe.reference(&Reference {
            dimension: Dimension::Guest,
            guest_level: Some(level),
            level,
            entry_at: entry_at.unwrap_or(Hpa::ZERO),
            gpa,
            raw,
        });
        raw
    }

    /// Sets `bits` in an entry as hardware does, with one locked update where any is missing; returns the entry.
    #[inline]
    fn set_bits(&mut self, at: Gpa, level: Level, raw: u64, bits: u64) -> u64 {
        if raw & bits != bits {
            core::hint::cold_path();
            self.ad_updates += 1;
            self.guest.write_entry(at, raw | bits);
            if let Some(entry_at) = self.guest.host_address(at) {
                self.probe.update(&Update { dimension: Dimension::Guest, level, entry_at, set: bits & !raw });
            }
        }
        raw | bits
    }
}
