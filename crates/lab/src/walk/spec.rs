//! What walk is asked for.

use memvirt_addr::PageSize;
use memvirt_platform::MmuGeometry;

/// How the guest pages, or the operating system of a machine without a hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestPaging {
    /// Long mode, four levels.
    Four,
    /// Long mode, five levels.
    Five,
    /// PAE: a page-directory-pointer table of 4 entries over two levels.
    Pae,
}

/// How many levels nested tables have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostLevels {
    /// Four.
    Four,
    /// Five.
    Five,
}

/// The format of nested tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NestedFormat {
    /// Intel EPT.
    Ept,
    /// AMD NPT.
    Npt,
}

/// What the hardware walks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tables {
    /// The tables of an operating system without a hypervisor.
    Native(GuestPaging),
    /// Shadow tables; a page is as large as the smaller of the guest's and the host's.
    Shadow(GuestPaging),
    /// The guest's tables and the nested ones.
    Nested {
        /// How the guest pages; `None` where it does not.
        guest: Option<GuestPaging>,
        /// The levels of the nested tables.
        host: HostLevels,
        /// Their format.
        format: NestedFormat,
    },
    /// The guest's tables, and one array of nested entries (Ahn, Jin, Huh, ISCA 2012).
    Flat(GuestPaging),
    /// Shadow tables above, guest and nested tables for this many of the lowest levels (Gandhi, Hill, Swift, ISCA 2016).
    Agile(u8),
    /// A direct segment in one dimension or both (Gandhi, Basu, Hill, Swift, MICRO 2014).
    DirectSegment(Segments),
    /// Registers that name the leaf tables of both dimensions (Zhang et al., ASPLOS 2024).
    Register,
}

/// Which dimensions a direct segment translates by registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segments {
    /// The host's: the guest's tables are walked, each entry found without a reference.
    Vmm,
    /// The guest's: the nested tables are walked for the data alone.
    Guest,
    /// Both: nothing is walked.
    Dual,
}

/// The walk caches of the machine that walks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheState {
    /// There are none: every reference goes to memory.
    #[default]
    Off,
    /// Empty at first; a walk in two dimensions profits from what it found itself.
    Cold(MmuGeometry),
    /// Filled by the same walk made before.
    Warm(MmuGeometry),
}

impl CacheState {
    /// `off`, `cold` or `warm`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Cold(_) => "cold",
            Self::Warm(_) => "warm",
        }
    }
}

/// A walk to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalkSpec {
    /// The tables.
    pub tables: Tables,
    /// The guest's page.
    pub guest_page: PageSize,
    /// The host's page; without a second dimension it matters to shadow tables only, and a host's segment has none.
    pub host_page: PageSize,
    /// The address to walk for; where `None`, one with another index at every level.
    pub address: Option<u64>,
    /// The walk caches.
    pub caches: CacheState,
}
