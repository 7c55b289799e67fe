//! The page-modification log: hardware's own list of dirtied pages.
//!
//! While it is on, each nested D bit that goes from 0 to 1 stores the guest-physical address of its page in a log of 512
//! entries, from index 511 down. An access that would have to set a nested A or D bit while the index has run out does not
//! happen: the log is full. Source: Intel SDM volume 3, section 28.2.6; how it is read, Linux `vmx_flush_pml_buffer`.

use memvirt_addr::{Gfn, Gpa, Hfn, HostPhys};
use memvirt_pagetable::PhysMem;

/// One vCPU's log: a frame of host memory and the index of the entry to be written next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModificationLog {
    frame: Hfn,
    index: u16,
}

impl ModificationLog {
    /// How many entries a log has.
    pub const ENTRIES: u16 = 512;

    /// An empty log in `frame`.
    #[must_use]
    pub const fn new(frame: Hfn) -> Self {
        Self { frame, index: Self::ENTRIES - 1 }
    }

    /// The index of the entry to be written next: 511 in an empty log, 0xffff in a full one.
    #[must_use]
    pub const fn index(&self) -> u16 {
        self.index
    }

    /// Whether no entry is left.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.index >= Self::ENTRIES
    }

    /// Logs the page of `gpa`; a full log stays as it is, for hardware asks before.
    pub(crate) fn push(&mut self, mem: &mut PhysMem<HostPhys>, gpa: Gpa) {
        if !self.is_full() {
            mem.write(self.frame.entry(usize::from(self.index)), gpa.frame().base().as_u64());
            self.index = self.index.wrapping_sub(1);
        }
    }

    /// The pages logged since the log was last emptied, the latest first.
    pub fn pages<'m>(&self, mem: &'m PhysMem<HostPhys>) -> impl Iterator<Item = Gfn> + use<'m> {
        let frame = self.frame;
        let first = if self.is_full() { 0 } else { self.index + 1 };
        (first..Self::ENTRIES).map(move |i| Gpa::new_truncate(mem.read(frame.entry(usize::from(i)))).frame())
    }

    /// Forgets what was logged.
    pub(crate) const fn reset(&mut self) {
        self.index = Self::ENTRIES - 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_filled_downwards_and_the_index_wraps_when_it_is_full() {
        let mut mem = PhysMem::new(2);
        let mut log = ModificationLog::new(Hfn::new(1));
        assert_eq!(log.pages(&mem).count(), 0);
        log.push(&mut mem, Gpa::new(0x5123));
        assert_eq!((log.index(), mem.read(Hfn::new(1).entry(511))), (510, 0x5000));
        (1..512).for_each(|i| log.push(&mut mem, Gpa::new(i << 12)));
        assert_eq!((log.index(), log.is_full()), (0xffff, true));
        assert_eq!(log.pages(&mem).count(), 512);
        log.push(&mut mem, Gpa::new(0x9000));
        assert_eq!(mem.read(Hfn::new(1).entry(0)), 511 << 12, "a full log takes nothing");
        log.reset();
        assert_eq!((log.index(), log.pages(&mem).count()), (511, 0));
    }
}
