//! Switches of a run: defaults, what the workload's file asks for, what the user asks for; the later beats the earlier.

use memvirt_addr::PageSize;
use memvirt_machine::{FrameOrder, GuestConfig, HostConfig, Invlpg, Mode, TableFrames, Undeclared};
use memvirt_workload::Like;

use crate::input::Input;

/// What the user asks for; `None` leaves a switch to the workload's file or to its default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// The guest's memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Kernel-page-table isolation.
    pub kpti: Option<bool>,
    /// Process-context identifiers.
    pub pcid: Option<bool>,
    /// Pages of processes.
    pub guest_page: Option<PageSize>,
    /// Pages of the kernel's direct map.
    pub direct_map_page: Option<PageSize>,
    /// Instructions between timer ticks; 0 for none.
    pub tick_instructions: Option<u64>,
    /// Up to how many pages are flushed one by one.
    pub flush_ceiling: Option<u64>,
    /// Host pages behind the guest's memory.
    pub host_page: Option<PageSize>,
    /// VPID or ASID.
    pub tags: Option<bool>,
    /// Accessed and dirty bits in EPT.
    pub ept_ad: Option<bool>,
    /// Walk caches; on in the mode `cycles` where nothing is asked for.
    pub walk_caches: Option<bool>,
    /// In which order the host hands out frames.
    pub host_frames: Option<FrameOrder>,
    /// Where the guest's page tables lie.
    pub table_frames: Option<TableFrames>,
}

/// The least and the most guest memory that can be asked for, in bytes: 64 MiB and 2 TiB.
pub const MEMORY_BYTES: std::ops::RangeInclusive<u64> = (64 << 20)..=(2 << 40);

impl Overrides {
    /// The flags of the command line that ask for the same.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        let page = |page: PageSize| page.name().to_owned();
        let on = |switch| if switch { "on" } else { "off" }.to_owned();
        let flags = [
            ("--guest-page", self.guest_page.map(page)),
            ("--host-page", self.host_page.map(page)),
            ("--direct-map-page", self.direct_map_page.map(page)),
            ("--kpti", self.kpti.map(on)),
            ("--pcid", self.pcid.map(on)),
            ("--tags", self.tags.map(on)),
            ("--ept-ad", self.ept_ad.map(on)),
            ("--walk-caches", self.walk_caches.map(on)),
            ("--host-frames", self.host_frames.map(|order| order.to_string())),
            ("--table-frames", self.table_frames.map(|tables| tables.to_string())),
            ("--tick", self.tick_instructions.map(|n| n.to_string())),
            ("--flush-ceiling", self.flush_ceiling.map(|n| n.to_string())),
            ("--memory", self.memory_bytes.map(|n| n.to_string())),
        ];
        flags.into_iter().filter_map(|(flag, value)| value.map(|value| [flag.to_owned(), value])).flatten().collect()
    }

    /// The guest's switches for `input`.
    #[must_use]
    pub fn guest(&self, input: &Input) -> GuestConfig {
        let asked = input.guest();
        let mut guest = match asked.like {
            Some(Like::Linux) => GuestConfig::linux(),
            Some(Like::Plain) | None => GuestConfig::default(),
        };
        guest.memory_bytes = self.memory_bytes.unwrap_or_else(|| roomy(guest.memory_bytes, input.footprint_bytes()));
        set(&mut guest.kpti, self.kpti.or(asked.kpti));
        set(&mut guest.pcid, self.pcid.or(asked.pcid));
        set(&mut guest.guest_page, self.guest_page.or(asked.guest_page));
        set(&mut guest.direct_map_page, self.direct_map_page.or(asked.direct_map_page));
        set(&mut guest.tick_instructions, self.tick_instructions.or(asked.tick_instructions));
        set(&mut guest.flush_ceiling, self.flush_ceiling);
        set(&mut guest.table_frames, self.table_frames);
        set(&mut guest.fault_around_pages, asked.fault_around_pages);
        set(&mut guest.collapse_scan_pages, asked.collapse_scan_pages);
        set(&mut guest.aging_pages, asked.aging_pages);
        set(&mut guest.interrupt_instructions, asked.interrupt_instructions);
        if asked.invlpg == Some(memvirt_workload::Invlpg::Forgotten) {
            guest.invlpg = Invlpg::Forgotten;
        }
        guest.undeclared = match input {
            Input::Workload(_) => Undeclared::Refuse,
            Input::Trace(..) => Undeclared::Adopt,
        };
        guest
    }

    /// The hypervisor's switches, and those of the hardware.
    #[must_use]
    pub fn host(&self, mode: Mode) -> HostConfig {
        let mut host = HostConfig { walk_caches: mode == Mode::Cycles, ..HostConfig::default() };
        set(&mut host.host_page, self.host_page);
        set(&mut host.tags, self.tags);
        set(&mut host.ept_ad, self.ept_ad);
        set(&mut host.walk_caches, self.walk_caches);
        set(&mut host.host_frames, self.host_frames);
        host
    }
}

fn set<T>(switch: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *switch = value;
    }
}

/// Twice the footprint in whole GiB, for tables and copies; at least the default.
fn roomy(default: u64, footprint: u64) -> u64 {
    let twice = footprint.saturating_mul(2).min(*MEMORY_BYTES.end());
    default.max(twice.next_multiple_of(1 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;
    use memvirt_workload::Workload;

    fn workload(footprint: &str, guest: &str) -> Input {
        let text = format!(
            "name = \"w\"\ntitle = \"t\"\nabout = \"a\"\nsource = \"estimate\"\n[generator]\nkind = \"uniform\"\n\
             footprint = \"{footprint}\"\naccesses = 10\nwrite_share = 0.5\n[guest]\n{guest}"
        );
        Input::Workload(Box::new(Workload::parse("w.toml", &text).unwrap()))
    }

    #[test]
    fn the_command_line_beats_the_file_and_the_file_beats_the_default() {
        let input = workload("1MiB", "kpti = true\ntick_instructions = 5000\n");
        let guest = Overrides::default().guest(&input);
        assert_eq!((guest.kpti, guest.pcid, guest.tick_instructions), (true, false, 5000));
        let asked = Overrides { kpti: Some(false), pcid: Some(true), ..Overrides::default() };
        let guest = asked.guest(&input);
        assert_eq!((guest.kpti, guest.pcid, guest.tick_instructions), (false, true, 5000));
    }

    #[test]
    fn memory_follows_the_footprint() {
        let memory = |footprint| Overrides::default().guest(&workload(footprint, "")).memory_bytes >> 30;
        assert_eq!((memory("1MiB"), memory("3GiB"), memory("64TiB")), (4, 6, 2048));
        let asked = Overrides { memory_bytes: Some(1 << 30), ..Overrides::default() };
        assert_eq!(asked.guest(&workload("3GiB", "")).memory_bytes, 1 << 30);
    }
}
