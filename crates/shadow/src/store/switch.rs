//! Entries that lead hardware out of the shadow tables into the guest's own: the switching bit of agile paging.
//!
//! Such an entry has the form of one that points to a table, but the table is the guest's, named by its host frame, and
//! [`SWITCH`] is set: hardware goes on there with a two-dimensional walk. Source: Gandhi, Hill and Swift, *Agile Paging*, ISCA
//! 2016. The chains of these entries by guest frame are what lets a hypervisor take a frame away, or a table back.

use memvirt_addr::{Gfn, Hfn};
use memvirt_pagetable::{Attrs, Entry};
use memvirt_platform::{Host, Work};

use super::{Change, PageId, ShadowStore, Slot, Target};

/// The switching bit: bit 9 of an entry.
pub const SWITCH: Attrs = Attrs::SOFT_0;

impl ShadowStore {
    /// Makes an entry lead into the guest table of `gfn`, which lies in host frame `frame`.
    pub fn switch(
        &mut self,
        host: &mut Host,
        slot: Slot,
        (gfn, frame): (Gfn, Hfn),
        attrs: Attrs,
        work: &mut Work,
    ) -> Change {
        let new = Entry::Table { next: frame, attrs: attrs | Attrs::ACCESSED | SWITCH };
        self.replace(host, slot, new, Target::Switch(gfn), work)
    }

    /// The entries that lead into the guest table of `gfn`.
    pub fn switches(&self, gfn: Gfn) -> impl Iterator<Item = Slot> + '_ {
        self.nodes.slots(self.switches.get(&gfn.number()).copied().unwrap_or_default())
    }

    /// The guest tables into which some entry leads.
    pub fn switched(&self) -> impl Iterator<Item = Gfn> + '_ {
        self.switches.keys().map(|gfn| Gfn::new(*gfn))
    }

    /// Removes the entries that lead into the guest table of `gfn`.
    pub fn drop_switches(&mut self, host: &mut Host, gfn: Gfn, work: &mut Work) -> Change {
        let mut change = Change::Kept;
        loop {
            let first = self.switches(gfn).next();
            let Some(slot) = first else { return change };
            change = change.or(self.clear(host, slot, work));
        }
    }

    /// The entries that point to a shadow page.
    pub fn parents_of(&self, id: PageId) -> impl Iterator<Item = Slot> + '_ {
        self.nodes.slots(self.page(id).parents)
    }
}
