//! The switches of the simulated guest and its hypervisor.

use clap::Args;
use memvirt_addr::PageSize;
use memvirt_lab::Overrides;
use memvirt_machine::{FrameOrder, TableFrames};

use super::values::{OnOff, guest_page, memory, page, tick};

/// Switches of the simulated guest and its hypervisor. Those not given are left to the workload's file, or to the defaults.
#[derive(Debug, Args)]
#[command(next_help_heading = "Switches")]
pub(crate) struct SwitchArgs {
    /// Pages of the guest's processes: 4K or 2M [default: 4K]
    #[arg(long, value_name = "SIZE", value_parser = guest_page)]
    guest_page: Option<PageSize>,
    /// Host pages behind the guest's memory: 4K, 2M or 1G [default: 4K]
    #[arg(long, value_name = "SIZE", value_parser = page)]
    host_page: Option<PageSize>,
    /// Pages of the guest kernel's direct map: 4K, 2M or 1G [default: 2M]
    #[arg(long, value_name = "SIZE", value_parser = page)]
    direct_map_page: Option<PageSize>,
    /// Kernel-page-table isolation: a CR3 load on each kernel entry and exit [default: off]
    #[arg(long, value_enum, value_name = "on|off", hide_possible_values = true)]
    kpti: Option<OnOff>,
    /// Process-context identifiers in the guest [default: off]
    #[arg(long, value_enum, value_name = "on|off", hide_possible_values = true)]
    pcid: Option<OnOff>,
    /// VPID or ASID: translations survive VM exits [default: on]
    #[arg(long, value_enum, value_name = "on|off", hide_possible_values = true)]
    tags: Option<OnOff>,
    /// Accessed and dirty bits in EPT [default: on]
    #[arg(long, value_enum, value_name = "on|off", hide_possible_values = true)]
    ept_ad: Option<OnOff>,
    /// The machine's walk caches and nested TLB [default: off; on with --mode cycles]
    #[arg(long, value_enum, value_name = "on|off", hide_possible_values = true)]
    walk_caches: Option<OnOff>,
    /// In which order the host hands out its frames: contiguous or scattered [default: contiguous]
    #[arg(long, value_name = "ORDER")]
    host_frames: Option<FrameOrder>,
    /// Where the guest's page tables lie: mixed with its data, or grouped in blocks of their own, as Linux does
    /// [default: mixed]
    #[arg(long, value_name = "mixed|grouped")]
    table_frames: Option<TableFrames>,
    /// Guest instructions between timer ticks, 0 for none [default: 10000000]
    #[arg(long, value_name = "INSTRUCTIONS", value_parser = tick)]
    tick: Option<u64>,
    /// Up to how many pages the guest flushes one by one [default: 33]
    #[arg(long, value_name = "PAGES")]
    flush_ceiling: Option<u64>,
    /// The guest's memory, as in 512MiB or 8G [default: twice the footprint, at least 4 GiB]
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    memory: Option<u64>,
}

impl SwitchArgs {
    /// What the user asks for.
    pub(crate) fn overrides(&self) -> Overrides {
        Overrides {
            memory_bytes: self.memory,
            kpti: self.kpti.map(OnOff::is_on),
            pcid: self.pcid.map(OnOff::is_on),
            guest_page: self.guest_page,
            direct_map_page: self.direct_map_page,
            tick_instructions: self.tick,
            flush_ceiling: self.flush_ceiling,
            host_page: self.host_page,
            tags: self.tags.map(OnOff::is_on),
            ept_ad: self.ept_ad.map(OnOff::is_on),
            walk_caches: self.walk_caches.map(OnOff::is_on),
            host_frames: self.host_frames,
            table_frames: self.table_frames,
        }
    }
}
