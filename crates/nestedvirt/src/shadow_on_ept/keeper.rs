//! L1 at work on SPT12, in its own memory: its loads and stores go through EPT01.

use memvirt_addr::{Gfn, Gpa, GuestPhys, L1Phys, L1fn, L1pa};
use memvirt_pagetable::Attrs;
use memvirt_platform::{Cx, Work};

use crate::l0::Found;
use crate::merge::Keeper;
use crate::stack::Stack;

/// L1 at work on SPT12: its loads and stores go through EPT01.
pub(super) struct AtWork<'a, 'c> {
    pub(super) stack: &'a mut Stack,
    pub(super) cx: &'a mut Cx<'c>,
    pub(super) work: &'a mut Work,
}

impl Keeper<GuestPhys, L1Phys> for AtWork<'_, '_> {
    fn source(&mut self, at: Gpa) -> Option<u64> {
        self.stack.guest_load(self.cx, at, self.work)
    }

    fn load(&mut self, at: L1pa) -> Option<u64> {
        self.stack.load(self.cx, at, self.work)
    }

    fn store(&mut self, at: L1pa, value: u64) -> Option<()> {
        match self.stack.reach(self.cx, at, true, self.work)? {
            Found::At(hpa) => {
                self.cx.host.mem.write(hpa, value);
                Some(())
            }
            Found::Absent | Found::Protected => None,
        }
    }

    fn allocate(&mut self) -> Option<L1fn> {
        let frame = self.stack.l1.allocate_table()?;
        match self.stack.reach(self.cx, frame.base(), true, self.work)? {
            Found::At(hpa) => self.cx.host.mem.discard(hpa.frame()),
            Found::Absent | Found::Protected => return None,
        }
        Some(frame)
    }

    fn free(&mut self, frame: L1fn) {
        self.stack.l1.free_table(frame);
    }

    fn guard(&mut self, table: Gfn, on: bool) {
        self.stack
            .world
            .act(|| format!("{} L2's table in {table:?}", if on { "write-protects" } else { "lets go of" }));
    }

    fn target(&mut self, frame: Gfn) -> Option<L1fn> {
        self.stack.guest_frame(self.cx, frame, self.work)
    }

    fn leaf(attrs: Attrs) -> Attrs {
        let perms = attrs & Attrs::PERMISSIONS;
        if attrs.contains(Attrs::DIRTY) { perms } else { perms - Attrs::WRITE }
    }

    fn may_foresee(attrs: Attrs) -> bool {
        attrs.contains(Attrs::ACCESSED)
    }

    fn work(&mut self) -> &mut Work {
        self.work
    }
}
