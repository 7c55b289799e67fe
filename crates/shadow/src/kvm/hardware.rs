//! Hardware's walk over KVM's shadow tables: at most four entries, A and D set in the leaf (the entries above have A from the
//! start, `make_nonleaf_spte`). Beside it stands the walk of all other policies, in `hardware`, which knows nothing of KVM's
//! reserved bits.

use memvirt_addr::{Acc, Gpa, Hfn, HostPhys, Hpa, Level, PageSize, PfCode};
use memvirt_pagetable::{Attrs, PhysMem};
use memvirt_platform::{
    Backed, CacheHit, Caches, Cx, Dimension, Foresight, Partial, Probe, Reference, Regs, Update, WalkRefs, plain_walks,
    tlb_entry,
};
use memvirt_tlb::Entry;

use super::Kvm;
use super::spte::Spte;

impl Kvm {
    /// Hardware's walk: the translation that the TLB gets, or the error code of the fault.
    pub(crate) fn hardware_walk(&self, cx: &mut Cx<'_>, acc: Acc) -> Result<Entry, PfCode> {
        let root = self.vcpu(cx).root;
        if !root.is_valid() {
            cx.out.counters.walks += 1;
            return Err(PfCode::of(acc, false));
        }
        let root = self.pages[root.page].table;
        let vcpu = &cx.vcpus[cx.me.index()];
        // The host keeps CR0.WP set whatever the guest does.
        let (regs, tag) = (Regs { write_protect: true, ..vcpu.regs }, vcpu.tag());
        let mem = &mut cx.host.mem;
        let (end, refs, ad_updates) = match cx.cpus[vcpu.cpu].mmu.as_deref_mut() {
            None => Walk { mem, regs: &regs, caches: (), probe: &mut (), refs: 0, ad_updates: 0 }.perform(root, acc),
            Some(mmu) => {
                core::hint::cold_path();
                let (caches, probe) = mmu.walk(tag, cx.vm.0);
                Walk { mem, regs: &regs, caches, probe, refs: 0, ad_updates: 0 }.perform(root, acc)
            }
        };
        cx.out.counters.add_walk(WalkRefs { shadow: refs, ..WalkRefs::default() }, ad_updates, 0);
        end
    }

    /// The walks that would do nothing but read, where the guest can run at once.
    pub(crate) fn hardware_foresees(&self, cx: &Cx<'_>, ahead: &[Acc], found: &mut Foresight) {
        let Some(mmu) = self.vcpus.get(cx.me.index()).filter(|mmu| !mmu.must_prepare() && mmu.root.is_valid()) else {
            return;
        };
        let (regs, mem, tag) = (Regs { write_protect: true, ..*cx.regs() }, &cx.host.mem, cx.tag());
        let refs = WalkRefs { shadow: 4, ..WalkRefs::default() };
        plain_walks(self.pages[mmu.root.page].table, &regs, ahead, mem, (found, refs), |acc, leaf| {
            // Reserved bits would lie within the frame's number.
            let plain = leaf.frame.base().as_u64() & Spte::RESERVED == 0;
            plain.then(|| leaf.ready(tag, acc, leaf.frame, false))
        });
    }
}

struct Walk<'a, C, P> {
    mem: &'a mut PhysMem<HostPhys>,
    regs: &'a Regs,
    caches: C,
    probe: &'a mut P,
    refs: u64,
    ad_updates: u64,
}

impl<C: Caches, P: Probe> Walk<'_, C, P> {
    /// The end of the walk, its references, and the bits it set.
    #[inline]
    fn perform(mut self, root: Hfn, acc: Acc) -> (Result<Entry, PfCode>, u64, u64) {
        let mut found = None;
        if let Some((level, Partial { table, perms })) = self.caches.guest(acc.gva()) {
            self.probe.cached(CacheHit::Walk(Dimension::Shadow, level));
            found = self.descend(acc, level.number() - 1, table, granted(perms)).ok();
            if found.is_none() {
                // A fault is confirmed without the caches.
                self.caches.forget_guest(acc.gva());
            }
        }
        let end = found.map_or_else(|| self.descend(acc, 4, root, u64::MAX), Ok);
        (end, self.refs, self.ad_updates)
    }

    #[inline]
    fn descend(&mut self, acc: Acc, from: u8, mut table: Hfn, mut granted: u64) -> Result<Entry, PfCode> {
        for level in Level::ALL[..usize::from(from)].iter().rev() {
            let at = table.entry(acc.gva().index(*level));
            let entry = self.read(at, *level);
            if entry.0 & Spte::P == 0 {
                return Err(PfCode::of(acc, false));
            }
            if entry.0 & Spte::RESERVED != 0 {
                return Err(PfCode::of(acc, true).with_reserved());
            }
            granted &= entry.0 ^ Spte::NX;
            if !entry.is_leaf(level.number()) {
                table = entry.frame();
                if C::ANY && entry.0 & Spte::A != 0 {
                    self.caches.keep_guest(acc.gva(), *level, Partial { table, perms: attrs(granted) });
                }
                continue;
            }
            let perms = attrs(granted);
            if !self.regs.permits(perms, acc) {
                return Err(PfCode::of(acc, true));
            }
            let entry = self.set_bits(at, *level, entry, acc.is_write());
            let size = level.page_size().unwrap_or(PageSize::Size4K);
            let backed = Backed { frame: entry.frame(), size };
            return Ok(tlb_entry(acc, backed, size, perms, entry.0 & Spte::D != 0));
        }
        unreachable!("an entry of level 1 is a leaf")
    }

    #[inline]
    fn read(&mut self, entry_at: Hpa, level: Level) -> Spte {
        let raw = self.mem.read(entry_at);
        self.refs += 1;
        let dimension = Dimension::Shadow;
        self.probe.reference(&Reference { dimension, guest_level: None, level, entry_at, gpa: Gpa::ZERO, raw });
        Spte(raw)
    }

    /// Sets A, and D for a store, as hardware does: one locked update where any is missing.
    #[inline]
    fn set_bits(&mut self, entry_at: Hpa, level: Level, entry: Spte, write: bool) -> Spte {
        let new = entry.with(Spte::A | if write { Spte::D } else { 0 });
        if new != entry {
            self.ad_updates += 1;
            self.mem.write(entry_at, new.0);
            let set = new.0 & !entry.0;
            self.probe.update(&Update { dimension: Dimension::Shadow, level, entry_at, set });
        }
        new
    }
}

const BITS: [(u64, Attrs); 3] = [(Spte::W, Attrs::WRITE), (Spte::U, Attrs::USER), (Spte::NX, Attrs::EXEC)];

/// The permissions that a walk has gathered; bit 63 is inverted, so that it gathers like the others.
#[inline]
fn attrs(granted: u64) -> Attrs {
    let mut perms = Attrs::READ;
    for (bit, attr) in BITS {
        if granted & bit != 0 {
            perms |= attr;
        }
    }
    perms
}

/// The bits for permissions: the other way round.
fn granted(perms: Attrs) -> u64 {
    BITS.into_iter().filter(|(_, attr)| perms.contains(*attr)).fold(0, |sum, (bit, _)| sum | bit)
}
