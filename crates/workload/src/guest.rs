//! What a workload file asks of the guest operating system: the `[guest]` table.

use memvirt_addr::PageSize;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::field::{Field, FieldVisitor};

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
