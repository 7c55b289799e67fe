//! Invalidation: every flush the architecture names.
//!
//! Which operation flushes what: Intel SDM volume 3, sections 4.10.4 (INVLPG, INVPCID, MOV to CR3 and CR4) and 28.3.3
//! (INVVPID, INVEPT); AMD APM volume 2, sections 5.5.3 and 15.16. Each flush here drops exactly the entries that its
//! operation must drop, never more.

use memvirt_addr::{Gva, PageSize};

use crate::entry::{Key, Packed};
use crate::geometry::FracturedInvlpg;
use crate::tag::Tag;
use crate::tlb::Tlb;

/// What a flush does to global entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeepGlobal {
    /// They stay, as at a CR3 load.
    Yes,
    /// They go too, as at a toggle of CR4.PGE.
    No,
}

impl Tlb {
    /// INVLPG, INVPCID type 0, INVVPID type 0: drops what translates `gva` for this tag, of any size, and the global
    /// entries of this VPID that do. All pieces of a fractured guest page go, not only the one that holds `gva`; with
    /// [`FracturedInvlpg::DropsVpid`], everything of a VPID that has a fractured entry.
    pub fn flush_page(&mut self, tag: Tag, gva: Gva) {
        if self.fractured == FracturedInvlpg::DropsVpid && self.holds_fractured(tag.vpid()) {
            self.flush_vpid(tag.vpid(), KeepGlobal::No);
            return;
        }
        let (vpid, pcid, page) = (tag.vpid(), tag.pcid(), gva.frame().number());
        let (mut dropped, pieces) = (0, self.pieces.maybe_around(page));
        for level in [&mut self.l1, &mut self.l2] {
            for size in PageSize::ALL {
                if let Some(array) = level.array_of_mut(size)
                    && array.live(size) > 0
                {
                    dropped += array.remove_key(Key::new(vpid, size, page), pcid, false);
                }
            }
            for array in level.arrays.iter_mut().filter(|array| pieces && array.fractured() > 0) {
                dropped += array.remove_where(|held| {
                    let guest_size = held.data.guest_size();
                    let its_page = Key::new(held.key.vpid(), guest_size, held.key.page());
                    its_page == Key::new(vpid, guest_size, page) && held.data.visible_to(pcid)
                });
            }
        }
        self.count_flush(dropped);
    }

    fn holds_fractured(&self, vpid: u16) -> bool {
        let mut arrays = self.l1.arrays.iter().chain(&self.l2.arrays).filter(|array| array.fractured() > 0);
        arrays.any(|array| array.iter().any(|packed| packed.fractured() && packed.key.vpid() == vpid))
    }

    /// Drops the entries of one tag: a CR3 load with [`KeepGlobal::Yes`], INVPCID type 1. With [`KeepGlobal::No`] the
    /// global entries of the VPID go too.
    pub fn flush_tag(&mut self, tag: Tag, keep: KeepGlobal) {
        self.flush_where(|held| {
            let condemned = if held.data.is_global() { keep == KeepGlobal::No } else { held.data.pcid() == tag.pcid() };
            held.key.vpid() == tag.vpid() && condemned
        });
    }

    /// Drops the entries of all PCIDs of a VPID or ASID: INVVPID types 1 and 3, INVPCID types 2 and 3, a toggle of
    /// CR4.PGE, a new ASID.
    pub fn flush_vpid(&mut self, vpid: u16, keep: KeepGlobal) {
        self.flush_where(|held| held.key.vpid() == vpid && !(held.data.is_global() && keep == KeepGlobal::Yes));
    }

    /// Drops everything: INVVPID type 2, INVEPT type 2, a world switch without tags.
    pub fn flush_all(&mut self) {
        let arrays = self.l1.arrays.iter_mut().chain(&mut self.l2.arrays);
        let dropped = arrays.map(|array| array.clear()).sum();
        self.small.clear();
        self.count_flush(dropped);
    }

    fn flush_where(&mut self, mut condemned: impl FnMut(&Packed) -> bool) {
        let mut dropped = 0;
        for array in self.l1.arrays.iter_mut().chain(&mut self.l2.arrays) {
            dropped += array.remove_where(&mut condemned);
        }
        self.count_flush(dropped);
    }

    fn count_flush(&mut self, dropped: u64) {
        self.l1.note_live();
        self.l2.note_live();
        if self.l1.arrays.iter().chain(&self.l2.arrays).all(|array| array.fractured() == 0) {
            self.pieces.clear();
        }
        self.stats.flushes += 1;
        self.stats.flushed_entries += dropped;
    }
}
