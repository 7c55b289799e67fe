//! What a workload file asks of the guest operating system: the `[guest]` table.

use memvirt_addr::PageSize;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::field::{Field, FieldVisitor};

/// Which guest the other switches start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Like {
    /// The plainest guest: no fault-around, file pages dropped with their last mapping, flushes of what was mapped.
    Plain,
    /// Linux as distributions build it.
    Linux,
}

/// Whether the guest flushes single pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Invlpg {
    /// It does.
    Used,
    /// It never does: a bug that shows which regimes rely on INVLPG.
    Forgotten,
}

/// The switches of the `[guest]` table. Each is left to the machine where the file does not name it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestSwitches {
    /// Kernel-page-table isolation: two roots for each process and a CR3 load on each kernel entry and exit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kpti: Option<bool>,
    /// Whether the guest tags its address spaces with process-context identifiers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pcid: Option<bool>,
    /// The pages that back the areas of processes: `"4K"` or `"2M"`.
    #[serde(default, deserialize_with = "area_page", serialize_with = "page_name")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_page: Option<PageSize>,
    /// The pages in which the guest's kernel maps all its memory for itself: `"4K"`, `"2M"` or `"1G"`.
    #[serde(default, deserialize_with = "direct_map_page", serialize_with = "page_name")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_map_page: Option<PageSize>,
    /// Guest instructions from one timer tick to the next, 1000 to 10^12; 0 for a guest without ticks.
    #[serde(default, deserialize_with = "tick", skip_serializing_if = "Option::is_none")]
    pub tick_instructions: Option<u64>,
    /// Which guest the other switches start from: `"plain"` (the default) or `"linux"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub like: Option<Like>,
    /// Pages mapped around a fault on a file, a power of two from 1 (none) to 512.
    #[serde(default, deserialize_with = "around", skip_serializing_if = "Option::is_none")]
    pub fault_around_pages: Option<u64>,
    /// Whether single pages are flushed: `"used"` or `"forgotten"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invlpg: Option<Invlpg>,
    /// Pages that the background collapse of small pages into large ones looks at with each tick; whole 2 MiB ranges.
    #[serde(default, deserialize_with = "pages", skip_serializing_if = "Option::is_none")]
    pub collapse_scan_pages: Option<u64>,
    /// Entries whose accessed bit reclaim tests and clears with each tick.
    #[serde(default, deserialize_with = "pages", skip_serializing_if = "Option::is_none")]
    pub aging_pages: Option<u64>,
    /// Guest instructions between device interrupts, 1000 to 10^12; 0 for none.
    #[serde(default, deserialize_with = "tick", skip_serializing_if = "Option::is_none")]
    pub interrupt_instructions: Option<u64>,
}

struct AreaPage(PageSize);

impl Field for AreaPage {
    const EXPECTED: &'static str = "\"4K\" or \"2M\"";

    fn from_text(value: &str) -> Option<Self> {
        [PageSize::Size4K, PageSize::Size2M].into_iter().find(|size| size.name() == value).map(Self)
    }
}

struct DirectMapPage(PageSize);

impl Field for DirectMapPage {
    const EXPECTED: &'static str = "\"4K\", \"2M\" or \"1G\"";

    fn from_text(value: &str) -> Option<Self> {
        PageSize::ALL.into_iter().find(|size| size.name() == value).map(Self)
    }
}

struct Tick(u64);

impl Field for Tick {
    const EXPECTED: &'static str = "0 (no ticks) or an integer from 1_000 to 1_000_000_000_000";

    fn from_integer(value: i64) -> Option<Self> {
        let value = u64::try_from(value).ok()?;
        (value == 0 || (1_000..=1_000_000_000_000).contains(&value)).then_some(Self(value))
    }
}

struct Around(u64);

impl Field for Around {
    const EXPECTED: &'static str = "a power of two from 1 to 512";

    fn from_integer(value: i64) -> Option<Self> {
        let value = u64::try_from(value).ok()?;
        (value.is_power_of_two() && value <= 512).then_some(Self(value))
    }
}

struct Pages(u64);

impl Field for Pages {
    const EXPECTED: &'static str = "a number of pages from 0 to 1_000_000";

    fn from_integer(value: i64) -> Option<Self> {
        u64::try_from(value).ok().filter(|value| *value <= 1_000_000).map(Self)
    }
}

fn around<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    deserializer.deserialize_any(FieldVisitor::<Around>::new()).map(|around| Some(around.0))
}

fn pages<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    deserializer.deserialize_any(FieldVisitor::<Pages>::new()).map(|pages| Some(pages.0))
}

fn area_page<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PageSize>, D::Error> {
    deserializer.deserialize_any(FieldVisitor::<AreaPage>::new()).map(|page| Some(page.0))
}

fn direct_map_page<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PageSize>, D::Error> {
    deserializer.deserialize_any(FieldVisitor::<DirectMapPage>::new()).map(|page| Some(page.0))
}

fn tick<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    deserializer.deserialize_any(FieldVisitor::<Tick>::new()).map(|tick| Some(tick.0))
}

#[expect(clippy::ref_option, reason = "the signature that serde calls")]
fn page_name<S: Serializer>(page: &Option<PageSize>, serializer: S) -> Result<S::Ok, S::Error> {
    page.map(PageSize::name).serialize(serializer)
}
