//! The guest's switches, each with its default and the source of what it stands for.
//!
//! [`GuestConfig::default`] is the plainest guest there is and what recordings run on; [`GuestConfig::linux`] is Linux as
//! distributions build it.

use memvirt_addr::{Gfn, PageSize};
use memvirt_ops::arch::GfnRange;
use serde::{Serialize, Serializer};

/// What happens to an access outside all areas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Undeclared {
    /// It is refused, as by a segmentation fault: generated workloads declare their areas.
    Refuse,
    /// Its page is taken as one that the process already had, all accesses permitted: recordings start after the program
    /// was loaded, and the areas of its text, data and stack stand nowhere in them.
    Adopt,
}

/// What becomes of a file's page that nobody maps any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PageCache {
    /// It is forgotten, as if the file were read anew the next time.
    Dropped,
    /// It stays until memory runs short, and files with a number are in memory before they are first touched: programs and
    /// libraries that ran before.
    Kept,
}

/// Which pages a flush by INVLPG covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FlushRange {
    /// Those that were mapped.
    Mapped,
    /// All from the first to the last that was mapped, as `__tlb_adjust_range` collects them.
    Span,
}

/// Whether the guest flushes single pages at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Invlpg {
    /// It does.
    Used,
    /// It never does and relies on the next CR3 load: a guest with this bug shows which hypervisors rely on INVLPG.
    Forgotten,
}

/// What address space a CPU is left on by a process that ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LazySwitch {
    /// That of the process: its last flush loads its own root again.
    Off,
    /// The kernel's: a process gives up its address space before it takes it down (`exit_mm`, `enter_lazy_tlb`), and a flush
    /// of an address space that is only borrowed loads the kernel's root instead (`flush_tlb_func`).
    On,
}

/// Where page tables lie in the guest's memory. It decides which entries of the nested tables share lines and tables with those
/// of the pages that they map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TableFrames {
    /// Where the next free frame is: a leaf table next to the pages that it maps.
    Mixed,
    /// In 2 MiB blocks that hold nothing else, as Linux groups frames by mobility.
    Grouped,
    /// Each leaf table at the index of the entry that leads to it, in a block for each table of level 2, from memory set aside
    /// for nothing else: what translation by registers asks for (DMT, ASPLOS 2024). Other tables as in `Mixed`.
    LeafArrays,
}

impl std::str::FromStr for TableFrames {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "mixed" => Ok(Self::Mixed),
            "grouped" => Ok(Self::Grouped),
            "leaf-arrays" => Ok(Self::LeafArrays),
            _ => Err(format!("unknown place of tables `{s}`; known: mixed, grouped, leaf-arrays")),
        }
    }
}

impl std::fmt::Display for TableFrames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Mixed => "mixed",
            Self::Grouped => "grouped",
            Self::LeafArrays => "leaf-arrays",
        })
    }
}

impl GuestConfig {
    /// The memory that is set aside for leaf tables where these lie in arrays: the last sixteenth, in whole 2 MiB blocks.
    #[must_use]
    pub const fn leaf_arena(&self) -> GfnRange {
        let (total, block) = (self.memory_bytes / 4096, PageSize::Size2M.frames());
        let frames = total / 16 / block * block;
        GfnRange { start: Gfn::new((total - frames) / block * block), frames }
    }
}

/// Switches of the guest. The defaults are stated with each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct GuestConfig {
    /// Memory in bytes; default 4 GiB.
    pub memory_bytes: u64,
    /// Kernel-page-table isolation: two roots for each process, a CR3 load on each kernel entry and exit; default off.
    pub kpti: bool,
    /// Process-context identifiers, 6 in rotation as in Linux; default off.
    pub pcid: bool,
    /// Pages for anonymous memory, where an aligned one fits into the area; default 4 KiB.
    #[serde(serialize_with = "page_size")]
    pub guest_page: PageSize,
    /// Pages of the kernel's direct map; default 2 MiB.
    #[serde(serialize_with = "page_size")]
    pub direct_map_page: PageSize,
    /// Instructions between timer ticks, 0 for none; default 10 million.
    pub tick_instructions: u64,
    /// Up to how many pages are flushed one by one; default 33 (`tlb_single_page_flush_ceiling`).
    pub flush_ceiling: u64,
    /// What happens outside all areas; default: refused.
    pub undeclared: Undeclared,
    /// Aligned window of pages around a fault on a file that are mapped with it, a power of two up to 512; default 1, which
    /// is none (Linux: `fault_around_bytes`, 64 KiB, 16 pages).
    pub fault_around_pages: u64,
    /// What becomes of a file's pages; default: dropped with their last mapping.
    pub page_cache: PageCache,
    /// Which pages a flush covers; default: those that were mapped.
    pub flush_range: FlushRange,
    /// Whether INVLPG is used; default yes.
    pub invlpg: Invlpg,
    /// What an ending process leaves the CPU on; default: its own address space.
    pub lazy_switch: LazySwitch,
    /// Pages that the background collapse of small pages into large ones looks at with each tick; default 0, which is never
    /// (Linux' `khugepaged`: 4096 every 10 seconds).
    pub collapse_scan_pages: u64,
    /// Entries whose accessed bit reclaim tests and clears with each tick, without flush; default 0.
    pub aging_pages: u64,
    /// Instructions between device interrupts, 0 for none; default 0.
    pub interrupt_instructions: u64,
    /// Where page tables lie; default: among the pages of data.
    pub table_frames: TableFrames,
}

impl Default for GuestConfig {
    fn default() -> Self {
        Self {
            memory_bytes: 4 << 30,
            kpti: false,
            pcid: false,
            guest_page: PageSize::Size4K,
            direct_map_page: PageSize::Size2M,
            tick_instructions: 10_000_000,
            flush_ceiling: 33,
            undeclared: Undeclared::Refuse,
            fault_around_pages: 1,
            page_cache: PageCache::Dropped,
            flush_range: FlushRange::Mapped,
            invlpg: Invlpg::Used,
            lazy_switch: LazySwitch::Off,
            collapse_scan_pages: 0,
            aging_pages: 0,
            interrupt_instructions: 0,
            table_frames: TableFrames::Mixed,
        }
    }
}

impl GuestConfig {
    /// Linux as distributions build it: 16 pages around a file fault, a page cache that keeps, flushes of whole spans, lazy
    /// switches, page tables in blocks of their own. Isolation, PCIDs and large pages stay off: whether a machine has them is a question of its own.
    #[must_use]
    pub fn linux() -> Self {
        Self {
            fault_around_pages: 16,
            page_cache: PageCache::Kept,
            flush_range: FlushRange::Span,
            lazy_switch: LazySwitch::On,
            table_frames: TableFrames::Grouped,
            ..Self::default()
        }
    }
}

fn page_size<S: Serializer>(size: &PageSize, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(size.name())
}
