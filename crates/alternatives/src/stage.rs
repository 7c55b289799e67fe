//! The second stage: how hardware turns a guest-physical address into a host-physical one, and how the hypervisor changes
//! that.
//!
//! A [`Stage`] is hardware's half: it reads entries in host memory, one reference at a time, and sets their accessed and dirty
//! bits. [`HostTables`] is the hypervisor's: it maps, protects and takes away. Implemented by the radix tree of EPT
//! ([`Radix`](crate::Radix)), by a linear array ([`FlatTable`](crate::FlatTable)) and by a segment
//! ([`Segment`](crate::Segment)).
//!
//! One rule for all of them: to read an entry of a guest table is a read; to set an accessed or dirty bit in one is a write,
//! which the second stage must permit. (EPT with accessed and dirty bits on counts both as writes: SDM volume 3, section
//! 28.2.3.2. The proposals need the difference: a guest table may be write-protected and still be walked, and its host dirty
//! bit has to say whether the guest stored to it.)

use memvirt_addr::{Gfn, Gpa, Hfn, HostPhys, Hpa, Level, PageSize};
use memvirt_nested::{SecondStage, Want};
use memvirt_pagetable::{Attrs, Ept4, Format, PhysMem};
use memvirt_platform::{Backed, Caches, Dimension, Host, Probe, Work};
use memvirt_shadow::store::Change;

use crate::meter::Meter;

/// The host page behind a guest-physical address, as hardware found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPage {
    /// The host frame that holds the address.
    pub frame: Hfn,
    /// The size at which it may be cached.
    pub size: PageSize,
    /// What the host permits.
    pub perms: Attrs,
    /// Whether the host's dirty bit is set.
    pub dirty: bool,
    /// The entry that said so; `None` where none was read.
    pub entry: Option<Leaf>,
}

/// A leaf of the second stage, as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Where it lies.
    pub at: Hpa,
    /// Its raw bits.
    pub raw: u64,
    /// Its level.
    pub level: Level,
}

/// Why the second stage stopped a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The guest-physical address that was being translated.
    pub gpa: Gpa,
    /// What the access asked for.
    pub want: Want,
    /// What the host permits there; empty where nothing is mapped.
    pub had: Attrs,
    /// Whether the address was the data's own, not a guest table's.
    pub on_data: bool,
    /// The bits that hardware wanted to set in a guest entry, where that was what failed.
    pub update: u64,
}

/// Hardware's half of a second stage.
pub trait Stage {
    /// Translates one guest-physical address; `serves` is the level of the guest entry that lies there, `None` for data.
    ///
    /// # Errors
    ///
    /// [`Violation`] where nothing is mapped or `want` is not permitted.
    fn translate<P: Probe, C: Caches>(
        &self,
        mem: &mut PhysMem<HostPhys>,
        gpa: Gpa,
        serves: Option<Level>,
        want: Want,
        meter: &mut Meter<'_, P, C>,
    ) -> Result<HostPage, Violation>;
}

/// The hypervisor's half: every change reports whether cached translations may say more than the tables now do.
pub trait HostTables: Stage {
    /// Maps the host page `backed`, of the size given there, around `gfn`, whatever was there before. `None` where the host
    /// has no frame left.
    fn map(&mut self, host: &mut Host, gfn: Gfn, backed: Backed, writable: bool, work: &mut Work) -> Option<Change>;

    /// Takes away what maps any of `frames` frames from `first` on.
    fn unmap(&mut self, host: &mut Host, first: Gfn, frames: u64, work: &mut Work) -> Change;

    /// Makes every mapping read-only and no larger than 4 KiB; what is larger goes.
    fn protect_all(&mut self, host: &mut Host, work: &mut Work) -> Change;

    /// Takes everything away.
    fn clear(&mut self, host: &mut Host, work: &mut Work) -> Change;

    /// Stores to single pages are being logged from now on, or no more. A stage that cannot tell pages apart steps aside
    /// meanwhile.
    fn set_logging(&mut self, on: bool) -> Change {
        let _ = on;
        Change::Kept
    }

    /// The bytes of its tables.
    fn bytes(&self) -> u64;
}

/// Sets the accessed bit of a host entry, and its dirty bit for a write; returns the entry as it is then.
pub(crate) fn mark<P: Probe, C: Caches>(
    mem: &mut PhysMem<HostPhys>,
    entry: Leaf,
    write: bool,
    meter: &mut Meter<'_, P, C>,
) -> Leaf {
    let Leaf { at, raw, level } = entry;
    let bits = Ept4::RAW_ACCESSED | if write { Ept4::RAW_DIRTY } else { 0 };
    if raw & bits != bits {
        mem.write(at, raw | bits);
        meter.update(Dimension::Host, level, at, bits & !raw);
    }
    Leaf { raw: raw | bits, ..entry }
}

/// What reading an entry of a guest table needs.
pub(crate) fn table_read() -> Want {
    Ept4::table_read(memvirt_nested::AdBits::Off)
}
