//! The hardware's walk of the shadow tables.
//!
//! It reads the entries in host memory, ANDs their permissions and sets accessed and dirty bits, one locked update each.
//! While shadow tables are in use CR0.WP is set whatever the guest believes (spec of KVM: `Documentation/virt/kvm/x86/mmu.rst`).

use memvirt_addr::{Acc, Hfn, HostPhys, Level};
use memvirt_pagetable::{Attrs, Format, PhysMem, Shadow4, TableMem, Walked, walk};
use memvirt_platform::{Backed, Counters, Regs, tlb_entry};
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
    /// Walks the tables under `root`. Where that ends in a fault, nothing was changed.
    pub(crate) fn perform(mem: &mut PhysMem<HostPhys>, root: Hfn, regs: &Regs, acc: Acc) -> Self {
        let regs = Regs { write_protect: true, ..*regs };
        let path = walk::<Shadow4, _>(mem, root, acc.gva());
        let mut done = Self { found: None, refs: u64::from(path.refs()), ad_updates: 0 };
        let (Walked::Mapped { frame, size }, Some(leaf)) = (path.end, path.leaf()) else { return done };
        if !regs.permits(path.perms, acc) {
            return done;
        }
        let dirty = if acc.is_write() { Shadow4::RAW_DIRTY } else { 0 };
        for step in path.steps() {
            let bits = Shadow4::RAW_ACCESSED | if step.level == leaf.level { dirty } else { 0 };
            if step.raw & bits != bits {
                mem.write_entry(step.entry_at, step.raw | bits);
                done.ad_updates += 1;
            }
        }
        let dirty = (leaf.raw | dirty) & Shadow4::RAW_DIRTY != 0;
        let frame = frame.offset(acc.gva().page_offset(size) >> 12);
        let perms = path.perms & Attrs::PERMISSIONS;
        done.found = Some(tlb_entry(acc, Backed { frame, size }, size, perms, dirty));
        done
    }

    /// A walk that has no table to start from.
    pub(crate) const fn nowhere() -> Self {
        Self { found: None, refs: 0, ad_updates: 0 }
    }

    /// Counts the walk.
    pub(crate) const fn count(&self, counters: &mut Counters) {
        counters.walks += 1;
        counters.refs.shadow += self.refs;
        counters.ad_updates += self.ad_updates;
    }
}

/// The level of the leaf that maps pages of `size`, and those above it down from `from`.
pub(crate) fn levels(from: Level, to: Level) -> impl Iterator<Item = Level> {
    (to.number()..=from.number()).rev().filter_map(Level::from_number)
}
