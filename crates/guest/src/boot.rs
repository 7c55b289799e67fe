//! Before the guest runs: the kernel's own tables, written by the boot loader.

use std::collections::BTreeMap;

use memvirt_addr::{Gfn, Gpa, Gva, PageSize};
use memvirt_ops::arch::{Control, Cr3, CrWrite, Event};
use memvirt_ops::process::ProcessId;
use memvirt_ops::{VcpuId, VmId};
use memvirt_pagetable::map::TableAttrs;
use memvirt_pagetable::{Attrs, Guest4, Mapper};
use memvirt_platform::{Ledger, Platform};

use super::cpu::{Cpu, Pcids};
use super::frames::Frames;
use super::layout::{DIRECT_MAP, ENTRY_AREA, ENTRY_FRAMES, KERNEL_IMAGE, KERNEL_TEXT, MIN_FRAMES, POOL_START};
use super::memory::BootMem;
use super::objects::Objects;
use super::stats::GuestStats;
use super::tick::Clock;
use super::{Guest, GuestConfig, Halted};

/// The root slot of the entry area.
pub(crate) const ENTRY_SLOT: usize = ((ENTRY_AREA >> 39) & 511) as usize;

/// A frame of zeros that all untouched anonymous memory shows, within the kernel's image.
const ZERO_PAGE: Gfn = Gfn::new((ENTRY_FRAMES >> 12) - 1);

impl Guest {
    /// Boots a guest of one CPU on a platform whose virtual machine `vm` has at least `config.memory_bytes` of memory, and makes
    /// the first process current. The kernel's own start is not counted; making the first process is.
    ///
    /// # Errors
    ///
    /// [`Halted::GuestOutOfMemory`] for less than 64 MiB.
    pub fn boot(
        config: GuestConfig,
        vm: VmId,
        vcpu: VcpuId,
        platform: &mut dyn Platform,
        ledger: &mut Ledger,
    ) -> Result<Self, Halted> {
        Self::boot_on(config, vm, &[vcpu], platform, ledger)
    }

    /// As [`Guest::boot`], with one CPU on each of `vcpus`; the first process runs on the first of them, and the others idle
    /// until [`Guest::spawn_on`], [`Guest::share_on`] or a switch to a process.
    ///
    /// # Errors
    ///
    /// [`Halted::GuestOutOfMemory`] for less than 64 MiB.
    ///
    /// # Panics
    ///
    /// Without any vCPU.
    pub fn boot_on(
        config: GuestConfig,
        vm: VmId,
        vcpus: &[VcpuId],
        platform: &mut dyn Platform,
        ledger: &mut Ledger,
    ) -> Result<Self, Halted> {
        assert!(!vcpus.is_empty(), "a guest has at least one CPU");
        let total = config.memory_bytes / PageSize::Size4K.bytes();
        if total < MIN_FRAMES {
            return Err(Halted::GuestOutOfMemory);
        }
        let mut frames = Frames::new(POOL_START, total, config.table_frames, config.leaf_arena());
        let kernel_root = kernel_tables(&config, total, &mut frames, &mut BootMem { platform, vm })
            .ok_or(Halted::GuestOutOfMemory)?;
        let mut uncounted = Ledger::sums();
        let start = [Control::Cr3(Cr3::flushing(kernel_root.base())), Control::Cr(CrWrite::PcidEnable(true))];
        for vcpu in vcpus {
            for control in &start[..1 + usize::from(config.pcid)] {
                platform
                    .event(*vcpu, &Event::Control(*control), &mut uncounted)
                    .map_err(|_| Halted::HostOutOfMemory)?;
            }
        }
        let idle = |vcpu: &VcpuId| Cpu {
            vcpu: *vcpu,
            current: None,
            loaded: kernel_root,
            parent_on_cpu: false,
            pcids: Pcids::default(),
            clock: Clock::new(&config),
            stats: GuestStats::default(),
        };
        let mut guest = Self {
            config,
            vm,
            cpus: vcpus.iter().map(idle).collect(),
            on: 0,
            frames,
            objects: Objects::default(),
            processes: BTreeMap::new(),
            lent: BTreeMap::new(),
            kernel_root,
            zero_page: ZERO_PAGE,
            doomed: Vec::new(),
            next_space: 0,
            shootdowns: Vec::new(),
            populated_end: 0,
        };
        guest.first_process(platform, ledger)?;
        Ok(guest)
    }

    fn first_process(&mut self, platform: &mut dyn Platform, ledger: &mut Ledger) -> Result<(), Halted> {
        let process = self.with_hands(platform, ledger, |guest, hands| guest.new_process(hands))?;
        self.processes.insert(ProcessId::FIRST, process);
        self.switch(ProcessId::FIRST, platform, ledger)
    }
}

/// The kernel's half: direct map, text, entry area. Its leaves are global unless the kernel hides from user mode.
fn kernel_tables(config: &GuestConfig, total: u64, frames: &mut Frames, mem: &mut BootMem<'_>) -> Option<Gfn> {
    let global = if config.kpti { Attrs::empty() } else { Attrs::GLOBAL };
    let data = Attrs::READ | Attrs::WRITE | Attrs::ACCESSED | Attrs::DIRTY | global;
    let text = Attrs::READ | Attrs::EXEC | Attrs::ACCESSED | Attrs::DIRTY | global;
    let tables = TableAttrs::SUPERVISOR.with(Attrs::ACCESSED);
    let mut map = Mapper::<Guest4, _>::create(mem, frames, tables)?;

    let mut at = 0;
    while at < total * PageSize::Size4K.bytes() {
        let left = total * PageSize::Size4K.bytes() - at;
        let size = PageSize::ALL
            .into_iter()
            .rev()
            .find(|size| *size <= config.direct_map_page && at % size.bytes() == 0 && size.bytes() <= left)?;
        map.map(Gva::new_truncate(DIRECT_MAP + at), Gpa::new_truncate(at).frame(), size, data, frames).ok()?;
        at += size.bytes();
    }
    for offset in (0..KERNEL_IMAGE.1).step_by(2 << 20) {
        let frame = Gpa::new_truncate(KERNEL_IMAGE.0 + offset).frame();
        map.map(Gva::new_truncate(KERNEL_TEXT + offset), frame, PageSize::Size2M, text, frames).ok()?;
    }
    let entry = Gpa::new_truncate(ENTRY_FRAMES).frame();
    map.map(Gva::new_truncate(ENTRY_AREA), entry, PageSize::Size4K, text | Attrs::GLOBAL, frames).ok()?;
    let stack = Gva::new_truncate(ENTRY_AREA + 4096);
    map.map(stack, entry.offset(1), PageSize::Size4K, data | Attrs::GLOBAL, frames).ok()?;
    Some(map.root())
}
