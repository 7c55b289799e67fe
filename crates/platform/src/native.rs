//! The bare machine: hardware walks the operating system's own tables, nobody traps.
//!
//! The baseline of every comparison. "Guest" tables are the operating system's tables here, and its memory map is the
//! identity. Accessed bits are set on each level as the walk goes, even where it ends in a fault; accessed and dirty bits of
//! the leaf are set once the access is permitted. (Hardware may do either; this is the order of QEMU, on which the KVM
//! recordings that memvirt is checked against were made.)

use memvirt_addr::{Acc, Gfn, Gpa, Level, PageSize, PfCode};
use memvirt_ops::arch::{Control, GuestFault, HostEvent};
use memvirt_pagetable::{Attrs, Entry, Format, Guest4, TableMem};

use crate::cpu::Regs;
use crate::cx::{Cx, tlb_entry};
use crate::engine::{AHEAD, Outcome, Regime, Request};
use crate::host::{Backed, GuestMem, read_guest};
use crate::ledger::Counters;
use crate::seam::{Refusal, TableBytes};

/// The bare machine.
#[derive(Debug, Default)]
pub struct Native;

impl Regime for Native {
    #[inline]
    fn miss(&mut self, cx: &mut Cx<'_>, request: &Request<'_>) -> Outcome {
        let (regs, acc) = (&cx.vcpus[cx.me.index()].regs, request.acc);
        let mut guest = GuestMem { host: cx.host, map: cx.map };
        match hardware_walk(&mut guest, regs, acc, &mut cx.out.counters) {
            Ok(Leaf { gfn, size, perms, dirty }) => match cx.map.lookup(gfn) {
                Some(backed) => Outcome::Filled(tlb_entry(acc, Backed { size, ..backed }, size, perms, dirty)),
                None => Outcome::Emulated,
            },
            Err(code) => Outcome::Fault(GuestFault { gva: acc.gva(), code }),
        }
    }

    fn look_ahead(&self, cx: &Cx<'_>, ahead: &[Acc]) {
        let root = cx.regs().cr3.root.frame();
        let mut tables = [root; AHEAD];
        // All accesses level by level, so that the reads of one level do not wait for each other.
        for level in [Level::L4, Level::L3, Level::L2, Level::L1] {
            for (table, acc) in tables.iter_mut().zip(ahead) {
                let raw = read_guest(cx.host, cx.map, table.entry(Guest4::index(acc.gva(), level)));
                *table = match Guest4::decode(raw, level) {
                    Entry::Table { next, .. } | Entry::Leaf { frame: next, .. } => next,
                    Entry::Absent | Entry::Reserved => root,
                };
            }
        }
        // Looked at, or the compiler would leave the last reads out.
        core::hint::black_box(&tables);
    }

    fn control(&mut self, cx: &mut Cx<'_>, control: &Control) -> Result<(), Refusal> {
        cx.execute(control);
        Ok(())
    }

    fn host(&mut self, _: &mut Cx<'_>, _: &HostEvent) {}

    fn table_bytes(&self) -> TableBytes {
        TableBytes::default()
    }
}

/// The end of a successful walk of the operating system's tables.
struct Leaf {
    gfn: Gfn,
    size: PageSize,
    perms: Attrs,
    dirty: bool,
}

#[inline]
fn hardware_walk(guest: &mut GuestMem<'_>, regs: &Regs, acc: Acc, counters: &mut Counters) -> Result<Leaf, PfCode> {
    counters.walks += 1;
    let mut perms = Attrs::PERMISSIONS;
    let mut table = regs.cr3.root.frame();
    let mut level = Guest4::ROOT;
    loop {
        let at = table.entry(Guest4::index(acc.gva(), level));
        let raw = guest.read(at);
        counters.refs.guest += 1;
        match Guest4::decode(raw, level) {
            Entry::Table { next, attrs } => {
                perms &= attrs;
                set_bits(guest, at, raw, Guest4::RAW_ACCESSED, counters);
                table = next;
                level = level.below().unwrap_or(Level::L1);
            }
            Entry::Leaf { frame, size, attrs } => {
                perms &= attrs;
                if !regs.permits(perms, acc) {
                    return Err(PfCode::of(acc, true));
                }
                let dirty = if acc.is_write() { Guest4::RAW_DIRTY } else { 0 };
                let raw = set_bits(guest, at, raw, Guest4::RAW_ACCESSED | dirty, counters);
                if attrs.contains(Attrs::GLOBAL) && regs.global_pages {
                    perms |= Attrs::GLOBAL;
                }
                let gfn = frame.offset(acc.gva().page_offset(size) >> 12);
                return Ok(Leaf { gfn, size, perms, dirty: raw & Guest4::RAW_DIRTY != 0 });
            }
            Entry::Absent => return Err(PfCode::of(acc, false)),
            Entry::Reserved => return Err(PfCode::of(acc, true).with_reserved()),
        }
    }
}

/// Sets `bits` in an entry as hardware does, with one locked update where any is missing; returns the entry.
#[inline]
fn set_bits(guest: &mut GuestMem<'_>, at: Gpa, raw: u64, bits: u64, counters: &mut Counters) -> u64 {
    if raw & bits != bits {
        core::hint::cold_path();
        counters.ad_updates += 1;
        guest.write_entry(at, raw | bits);
    }
    raw | bits
}
