//! L0 at work on EPT02, in the host's memory.

use memvirt_addr::{Hfn, HostPhys, Hpa, L1Phys, L1fn, L1pa, PageSize};
use memvirt_pagetable::Attrs;
use memvirt_platform::{Cx, Work};

use crate::merge::Keeper;
use crate::stack::Stack;

/// L0 at work on EPT02: its own memory is the host's.
pub(super) struct AtWork<'a, 'c> {
    pub(super) stack: &'a mut Stack,
    pub(super) cx: &'a mut Cx<'c>,
    pub(super) work: &'a mut Work,
}

impl Keeper<L1Phys, HostPhys> for AtWork<'_, '_> {
    fn source(&mut self, at: L1pa) -> Option<u64> {
        self.work.guest_entries_read += 1;
        Some(self.stack.l0.address(at).map_or(0, |hpa| self.cx.host.mem.read(hpa)))
    }

    fn load(&mut self, at: Hpa) -> Option<u64> {
        Some(self.cx.host.mem.read(at))
    }

    fn store(&mut self, at: Hpa, value: u64) -> Option<()> {
        self.cx.host.mem.write(at, value);
        Some(())
    }

    fn allocate(&mut self) -> Option<Hfn> {
        self.cx.host.allocate(PageSize::Size4K)
    }

    fn free(&mut self, frame: Hfn) {
        self.cx.host.free(frame, PageSize::Size4K);
    }

    fn guard(&mut self, table: L1fn, on: bool) {
        self.stack.l0.guard(self.cx.host, table, on, self.work);
        self.stack
            .world
            .act(|| format!("{} L1's table in {table:?}", if on { "write-protects" } else { "lets go of" }));
    }

    fn target(&mut self, frame: L1fn) -> Option<Hfn> {
        self.stack.back(self.cx, frame, self.work)
    }

    fn leaf(attrs: Attrs) -> Attrs {
        attrs & (Attrs::RWX | Attrs::WRITE_BACK) | Attrs::WRITE_BACK
    }

    fn may_foresee(_: Attrs) -> bool {
        true
    }

    fn work(&mut self) -> &mut Work {
        self.work
    }
}
