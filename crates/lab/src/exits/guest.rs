//! The guest whose events are counted: memory, tables written by hand, and a kernel that reaches every table through its direct
//! map. It does what an event names and nothing else, no code of its own and no markers, so that every exit is the event's.
//!
//! Neighbours: [`events`](super::events) says what it does, [`measure`](super::measure) under which regime. The guest that
//! executes recordings is `memvirt_replay::Guest`; it also fetches code and takes commands.

use memvirt_addr::{Acc, AccessKind, Gfn, Gva, PageSize};
use memvirt_ops::arch::{Control, Cr3, Event, GfnRange, HostEvent, StoreOp, Width};
use memvirt_ops::{VcpuId, VmId};
use memvirt_platform::{Horizon, Ledger, Platform, Stop};
use memvirt_replay::counters::exits;
use memvirt_replay::golden::{A, D, DM, P, TV, U, W, alias};

/// The flags of a table entry and of a page of data.
pub(crate) const USUAL: u64 = P | W | U | A | D;
/// Guest memory in frames: 8 MiB.
pub(crate) const FRAMES: u64 = 2048;
/// The root table that is current at the start, and a second one.
pub(crate) const ROOT: u64 = 1;
pub(crate) const OTHER_ROOT: u64 = 2;
/// The tables of the user's pages, from level 3 down to level 1; all are in use at the start.
pub(crate) const PDPT: u64 = 3;
pub(crate) const PD: u64 = 4;
pub(crate) const PT: u64 = 5;
/// A second leaf table, linked but not in use at the start.
pub(crate) const PT_2: u64 = 6;
/// The first frame of data.
pub(crate) const DATA: u64 = 64;
/// The frames that the kernel's direct map has reached before an event: below this one.
const USED: u64 = 384;
/// A frame that nothing has reached.
pub(crate) const UNUSED: u64 = 1024;
/// A frame beyond memory.
pub(crate) const DEVICE: u64 = 2 * FRAMES;
/// Where tables of the direct map come from.
const TABLE_POOL: u64 = 16;
/// The instruction that stores to tables.
const STORE: Gva = Gva::new(0x5000);

/// A guest on some platform.
pub(crate) struct Guest {
    platform: Box<dyn Platform>,
    ledger: Ledger,
    /// The vCPU that acts.
    cpu: VcpuId,
    next_table: u64,
    faults: u64,
}

/// The `n`th page of the user.
pub(crate) const fn page(n: u64) -> u64 {
    TV + (n << 12)
}

/// An entry that leads to `gfn`.
pub(crate) const fn entry(gfn: u64, flags: u64) -> u64 {
    gfn << 12 | flags
}

/// Index of an address in a table of `level`.
const fn index(gva: u64, level: u32) -> u64 {
    (gva >> (12 + 9 * (level - 1))) & 511
}

impl Guest {
    /// A guest of which one user page, the direct map and all tables are in use.
    pub(crate) fn new(platform: Box<dyn Platform>) -> Self {
        let mut guest =
            Self { platform, ledger: Ledger::sums(), cpu: VcpuId::FIRST, next_table: TABLE_POOL, faults: 0 };
        for gfn in 0..FRAMES {
            guest.boot_direct_map(gfn);
        }
        for (table, at, next) in [
            (ROOT, index(TV, 4), PDPT),
            (PDPT, index(TV, 3), PD),
            (PD, index(TV, 2), PT),
            (PD, index(TV, 2) + 1, PT_2),
            (OTHER_ROOT, index(TV, 4), PDPT),
        ] {
            guest.boot(table, at, entry(next, USUAL));
        }
        guest.boot(PT, 0, entry(DATA, USUAL));
        let direct = guest.peek(ROOT, index(DM, 4));
        guest.boot(OTHER_ROOT, index(DM, 4), direct);
        guest.cr3(ROOT);
        guest.read(page(0));
        for gfn in 0..USED {
            guest.load(gfn);
        }
        guest.read(page(0));
        guest
    }

    fn boot_direct_map(&mut self, gfn: u64) {
        let gva = DM.wrapping_add(gfn << 12);
        let mut table = ROOT;
        for level in [4, 3, 2] {
            let at = index(gva, level);
            if self.peek(table, at) & P == 0 {
                self.boot(table, at, entry(self.next_table, P | W | A));
                self.next_table += 1;
            }
            table = self.peek(table, at) >> 12;
        }
        self.boot(table, index(gva, 1), entry(gfn, P | W | A | D));
    }

    /// Writes an entry that the guest's kernel wrote long ago, before the table's entry was first used.
    pub(crate) fn boot(&mut self, table: u64, index: u64, raw: u64) {
        self.platform.poke(VmId::FIRST, Gfn::new(table).base().wrapping_add(8 * index), raw);
    }

    /// Maps user pages before their first use, to frames from `gfn` on.
    pub(crate) fn boot_pages(&mut self, pages: core::ops::Range<u64>, gfn: u64, flags: u64) {
        for (n, page) in (0..).zip(pages) {
            let table = if page < 512 { PT } else { PT_2 };
            self.boot(table, page % 512, entry(gfn + n, flags));
        }
    }

    pub(crate) fn peek(&self, table: u64, index: u64) -> u64 {
        self.platform.peek(VmId::FIRST, Gfn::new(table).base().wrapping_add(8 * index))
    }

    /// The exits so far.
    pub(crate) fn exits(&self) -> u64 {
        exits(&self.ledger)
    }

    /// The page faults that the guest saw so far.
    pub(crate) const fn faults(&self) -> u64 {
        self.faults
    }

    /// Another vCPU goes on.
    pub(crate) const fn on(&mut self, cpu: VcpuId) {
        self.cpu = cpu;
    }

    pub(crate) fn read(&mut self, gva: u64) {
        self.access(gva, AccessKind::Read);
    }

    pub(crate) fn write(&mut self, gva: u64) {
        self.access(gva, AccessKind::Write);
    }

    /// Reads each of the user's `pages`.
    pub(crate) fn read_pages(&mut self, pages: core::ops::Range<u64>) {
        pages.for_each(|n| self.read(page(n)));
    }

    /// Stores to each of the user's `pages`.
    pub(crate) fn write_pages(&mut self, pages: core::ops::Range<u64>) {
        pages.for_each(|n| self.write(page(n)));
    }

    fn access(&mut self, gva: u64, kind: AccessKind) {
        let run = [Acc::user(Gva::new_truncate(gva), kind)];
        let (_, stop) = self.platform.accesses(self.cpu, &run, Horizon::Open, &mut self.ledger);
        self.faults += u64::from(stop != Stop::Done);
    }

    fn event(&mut self, event: &Event) {
        let done = self.platform.event(self.cpu, event, &mut self.ledger);
        self.faults += u64::from(done.is_err());
    }

    /// The kernel loads from a frame through its direct map.
    fn load(&mut self, gfn: u64) {
        self.event(&Event::Load { gva: alias(gfn << 12) });
    }

    fn store(&mut self, table: u64, index: u64, op: StoreOp) {
        self.event(&Event::Store { via: alias((table << 12) + 8 * index), op, ip: STORE });
    }

    /// The kernel stores an entry through its direct map.
    pub(crate) fn set(&mut self, table: u64, index: u64, raw: u64) {
        self.store(table, index, StoreOp::Mov { width: Width::B8, value: raw });
    }

    /// The kernel clears a whole table with `rep stosq`.
    pub(crate) fn clear(&mut self, table: u64) {
        self.store(table, 0, StoreOp::RepStos { value: 0, count: 512 });
    }

    /// The kernel fills a whole table with data, by 512 plain stores.
    pub(crate) fn fill(&mut self, table: u64) {
        (0..512).for_each(|index| self.set(table, index, 0x1234_5678));
    }

    pub(crate) fn control(&mut self, control: Control) {
        self.event(&control.into());
    }

    pub(crate) fn cr3(&mut self, root: u64) {
        self.control(Control::Cr3(Cr3::flushing(Gfn::new(root).base())));
    }

    pub(crate) fn invlpg(&mut self, gva: u64) {
        self.control(Control::Invlpg(Gva::new_truncate(gva)));
    }

    pub(crate) fn host(&mut self, event: &HostEvent) {
        self.platform.host(event, &mut self.ledger);
    }

    /// The host takes `frames` frames away; their contents come back.
    pub(crate) fn unmap(&mut self, gfn: u64, frames: u64) {
        self.host(&HostEvent::Unmap(VmId::FIRST, GfnRange { start: Gfn::new(gfn), frames }));
    }
}

/// The size of the host pages behind the guest's memory.
pub(crate) const HOST_PAGE: PageSize = PageSize::Size4K;
