//! `memvirt walk`: what is walked, through which caches, how it is shown.

use std::ffi::OsString;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use memvirt_addr::PageSize;
use memvirt_lab::walk::Segments;
use memvirt_machine::MachineSpec;

use super::values::page;

#[derive(Debug, Args)]
#[command(after_help = "\
PAE: the four PDPTEs are registers that a load of CR3 fills, so walks read two levels and the load is counted apart; under NPT
there are no such registers, and walks read three.

Examples:
  memvirt walk                                     4 guest levels on 4 nested ones: 24 references
  memvirt walk --guest-page 2M --host-page 2M      15
  memvirt walk --guest 5 --host 5                  35
  memvirt walk --host none                         a machine without virtualization: 4
  memvirt walk --regime shadow --guest-page 2M --host-page 4K   what shadow tables make of it
  memvirt walk --regime agile:1                    shadow tables above, the lowest level nested: 8
  memvirt walk --regime register-walk              registers name the leaf tables of both dimensions: 3
  memvirt walk --caches warm --machine p-core      what walk caches and a nested TLB leave
  memvirt walk --format svg > walk.svg             the numbered grid of two-dimensional walks")]
pub(crate) struct WalkArgs {
    /// Levels of the guest's tables, or PAE; none: the guest does not page
    #[arg(long, value_enum, default_value_t = Guest::Four)]
    pub(crate) guest: Guest,
    /// Levels of the nested tables; none: no second dimension [default: 4 with --regime nested, else none]
    #[arg(long, value_enum)]
    pub(crate) host: Option<HostDepth>,
    /// The guest's page: 4K, 2M or 1G [default: 4K]
    #[arg(long, value_name = "SIZE", value_parser = page)]
    pub(crate) guest_page: Option<PageSize>,
    /// The host's page: 4K, 2M or 1G [default: 4K]
    #[arg(long, value_name = "SIZE", value_parser = page)]
    pub(crate) host_page: Option<PageSize>,
    /// What the hardware walks: native, shadow, nested, flat, agile:K with the K lowest levels nested (0 to 4), direct-segment (of
    /// the host; with :guest or :dual of the guest or both), or register-walk [default: nested, native with --host none]
    #[arg(long)]
    pub(crate) regime: Option<WalkRegime>,
    /// The format of the nested tables: Intel's or AMD's [default: ept]
    #[arg(long, value_enum)]
    pub(crate) nested_format: Option<Nested>,
    /// The guest-virtual address to walk for, as in 0x7f0012345678 [default: one with another index at every level]
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub(crate) address: Option<u64>,
    /// Walk caches and nested TLB of the machine. off: none; cold: empty at first; warm: the same walk made before
    #[arg(long, value_enum, default_value_t = Caches::Off)]
    pub(crate) caches: Caches,
    /// The machine whose caches they are: a built-in one, or a machine file
    #[arg(long, value_name = "NAME|FILE", default_value = MachineSpec::DEFAULT)]
    pub(crate) machine: OsString,
    /// How to print
    #[arg(long, value_enum, default_value_t = WalkFormat::Table)]
    pub(crate) format: WalkFormat,
}

/// How the guest pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Guest {
    /// Four levels
    #[value(name = "4")]
    Four,
    /// Five levels
    #[value(name = "5")]
    Five,
    /// PAE, 32-bit addresses
    Pae,
    /// Not at all
    None,
}

/// Levels of nested tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum HostDepth {
    /// No second dimension
    None,
    /// Four
    #[value(name = "4")]
    Four,
    /// Five
    #[value(name = "5")]
    Five,
}

/// What the hardware walks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WalkRegime {
    /// The guest's tables alone.
    Native,
    /// Shadow tables.
    Shadow,
    /// Both dimensions.
    Nested,
    /// The guest's tables and one array.
    Flat,
    /// Shadow tables above, this many levels nested below.
    Agile(u8),
    /// Segments by registers.
    DirectSegment(Segments),
    /// Leaf tables by registers.
    Register,
}

impl FromStr for WalkRegime {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = "accepted: native, shadow, nested, flat, agile:0 to agile:4, direct-segment (also :guest, :dual), \
                     register-walk";
        Ok(match text {
            "native" => Self::Native,
            "shadow" => Self::Shadow,
            "nested" => Self::Nested,
            "flat" => Self::Flat,
            "direct-segment" | "direct-segment:vmm" => Self::DirectSegment(Segments::Vmm),
            "direct-segment:guest" => Self::DirectSegment(Segments::Guest),
            "direct-segment:dual" => Self::DirectSegment(Segments::Dual),
            "register-walk" => Self::Register,
            _ => {
                let nested = text.strip_prefix("agile:").and_then(|levels| levels.parse().ok());
                Self::Agile(nested.filter(|levels| *levels <= 4).ok_or(known)?)
            }
        })
    }
}

/// The format of nested tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Nested {
    /// Intel EPT
    Ept,
    /// AMD NPT
    Npt,
}

/// Walk caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Caches {
    /// None: every reference goes to memory
    Off,
    /// Empty at first
    Cold,
    /// Filled by the same walk made before
    Warm,
}

/// How a walk is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WalkFormat {
    /// For people
    Table,
    /// For programs
    Json,
    /// A picture
    Svg,
}

fn address(text: &str) -> Result<u64, String> {
    let expected = "expected a hexadecimal address, as in 0x7f0012345678";
    let number = |digits: &str| {
        // `from_str_radix` would take a sign.
        let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'_');
        u64::from_str_radix(&digits.replace('_', ""), 16).ok().filter(|_| plain)
    };
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => number(digits).ok_or_else(|| expected.to_owned()),
        None if number(text).is_some() => Err(format!("0x missing: addresses are hexadecimal; write 0x{text}")),
        None => Err(expected.to_owned()),
    }
}
