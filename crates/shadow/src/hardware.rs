//! The hardware's walk of the shadow tables.
//!
//! It reads the entries in host memory, ANDs their permissions and sets accessed and dirty bits, one locked update each.
//! While shadow tables are in use CR0.WP is set whatever the guest believes (spec of KVM: `Documentation/virt/kvm/x86/mmu.rst`).

use memvirt_addr::{Acc, Gpa, Hfn, HostPhys, Hpa, Level, PageSize};
use memvirt_pagetable::{Attrs, Entry as TableEntry, Format, PhysMem, Shadow4, TableMem};
use memvirt_platform::{
    Backed, CacheHit, Caches, Counters, Cx, Dimension, Foresight, Partial, Probe, Reference, Regs, Update, WalkRefs,
    plain_walks, tlb_entry,
};
use memvirt_tlb::Entry;

/// What one walk did; nothing of it is counted yet.
#[derive(Debug)]
pub(crate) struct HardwareWalk {
    /// The translation, where the tables give it and permit the access.
    pub(crate) found: Option<Entry>,
    refs: u64,
    ad_updates: u64,
}

impl HardwareWalk {
    /// Walks the tables under `root` on the CPU of `cx`. Where that ends in a fault, nothing was changed.
    #[inline]
    pub(crate) fn perform(cx: &mut Cx<'_>, root: Hfn, acc: Acc) -> Self {
        let vcpu = &cx.vcpus[cx.me.index()];
        let regs = Regs { write_protect: true, ..vcpu.regs };
        let (mem, tag) = (&mut cx.host.mem, vcpu.tag());
        match cx.cpus[vcpu.cpu].mmu.as_deref_mut() {
            None => Walker { mem, regs: &regs, caches: (), probe: &mut (), refs: 0, ad_updates: 0 }.walk(root, acc),
            Some(mmu) => {
                core::hint::cold_path();
                let (caches, probe) = mmu.walk(tag, cx.vm.0);
                Walker { mem, regs: &regs, caches, probe, refs: 0, ad_updates: 0 }.walk(root, acc)
            }
        }
    }

    /// The walks under `root` that would do nothing but read.
    pub(crate) fn foresee(cx: &Cx<'_>, root: Hfn, ahead: &[Acc], found: &mut Foresight) {
        let (regs, mem, tag) = (Regs { write_protect: true, ..*cx.regs() }, &cx.host.mem, cx.tag());
        let refs = WalkRefs { shadow: 4, ..WalkRefs::default() };
        plain_walks(root, &regs, ahead, mem, (found, refs), |acc, leaf| Some(leaf.ready(tag, acc, leaf.frame, false)));
    }

    /// A walk that has no table to start from.
    pub(crate) const fn nowhere() -> Self {
        Self { found: None, refs: 0, ad_updates: 0 }
    }

    /// Counts the walk.
    pub(crate) fn count(&self, counters: &mut Counters) {
        let refs = WalkRefs { shadow: self.refs, ..WalkRefs::default() };
        counters.add_walk(refs, self.ad_updates, 0);
    }
}

/// The entries that one descent read, downwards; tables with the permissions down to them, for the caches.
struct Path {
    reads: [(Hpa, u64); 4],
    tables: [Partial<HostPhys>; 4],
    len: usize,
    top: Level,
}

impl Path {
    fn level(&self, i: usize) -> Level {
        Level::from_number(self.top.number() - u8::try_from(i).unwrap_or(0)).unwrap_or(Level::L1)
    }
}

/// A leaf that permits the access.
struct Leaf {
    frame: Hfn,
    size: PageSize,
    perms: Attrs,
}

struct Walker<'a, C, P> {
    mem: &'a mut PhysMem<HostPhys>,
    regs: &'a Regs,
    caches: C,
    probe: &'a mut P,
    refs: u64,
    ad_updates: u64,
}

impl<C: Caches, P: Probe> Walker<'_, C, P> {
    #[inline]
    fn walk(mut self, root: Hfn, acc: Acc) -> HardwareWalk {
        let mut found = None;
        if let Some((level, entry)) = self.caches.guest(acc.gva()) {
            self.probe.cached(CacheHit::Walk(Dimension::Shadow, level));
            found = self.descend(acc, level.below().unwrap_or(Level::L1), entry);
            if found.is_none() {
                // A fault is confirmed without the caches.
                self.caches.forget_guest(acc.gva());
            }
        }
        let start = Partial { table: root, perms: Attrs::PERMISSIONS };
        let found = found.or_else(|| self.descend(acc, Shadow4::ROOT, start));
        HardwareWalk { found, refs: self.refs, ad_updates: self.ad_updates }
    }

    #[inline]
    fn descend(&mut self, acc: Acc, from: Level, start: Partial<HostPhys>) -> Option<Entry> {
        let mut path = Path { reads: [(Hpa::ZERO, 0); 4], tables: [start; 4], len: 0, top: from };
        let leaf = self.read_path(acc, start, &mut path)?;
        let dirty = if acc.is_write() { Shadow4::RAW_DIRTY } else { 0 };
        let last = path.len - 1;
        for (i, (at, raw)) in path.reads.iter().enumerate().take(path.len) {
            let bits = Shadow4::RAW_ACCESSED | if i == last { dirty } else { 0 };
            if raw & bits != bits {
                self.mem.write_entry(*at, raw | bits);
                self.ad_updates += 1;
                let (level, set) = (path.level(i), bits & !raw);
                self.probe.update(&Update { dimension: Dimension::Shadow, level, entry_at: *at, set });
            }
        }
        if C::ANY {
            for (i, table) in path.tables.iter().enumerate().take(last) {
                self.caches.keep_guest(acc.gva(), path.level(i), *table);
            }
        }
        let Leaf { frame, size, perms } = leaf;
        let dirty = (path.reads[last].1 | dirty) & Shadow4::RAW_DIRTY != 0;
        let frame = frame.offset(acc.gva().page_offset(size) >> 12);
        Some(tlb_entry(acc, Backed { frame, size }, size, perms & Attrs::PERMISSIONS, dirty))
    }

    /// Reads entries down to the leaf; `None` where they do not map the page or do not permit the access.
    #[inline]
    fn read_path(&mut self, acc: Acc, start: Partial<HostPhys>, path: &mut Path) -> Option<Leaf> {
        let Partial { mut table, mut perms } = start;
        let mut level = path.top;
        loop {
            let entry_at = table.entry(Shadow4::index(acc.gva(), level));
            let raw = self.mem.read(entry_at);
            self.refs += 1;
            let dimension = Dimension::Shadow;
            self.probe.reference(&Reference { dimension, guest_level: None, level, entry_at, gpa: Gpa::ZERO, raw });
            path.reads[path.len % 4] = (entry_at, raw);
            path.len += 1;
            match (Shadow4::decode(raw, level), level.below()) {
                (TableEntry::Table { next, attrs }, Some(below)) => {
                    perms &= attrs;
                    if C::ANY {
                        path.tables[path.len - 1] = Partial { table: next, perms };
                    }
                    (table, level) = (next, below);
                }
                (TableEntry::Leaf { frame, size, attrs }, _) => {
                    perms &= attrs;
                    return self.regs.permits(perms, acc).then_some(Leaf { frame, size, perms });
                }
                _ => return None,
            }
        }
    }
}

/// The level of the leaf that maps pages of `size`, and those above it down from `from`.
pub(crate) fn levels(from: Level, to: Level) -> impl Iterator<Item = Level> {
    (to.number()..=from.number()).rev().filter_map(Level::from_number)
}
