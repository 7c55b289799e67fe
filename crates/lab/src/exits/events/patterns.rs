//! Rows 18 to 26: what kernels do with several operations, devices, and what the host does.

use memvirt_ops::arch::{Control, HostEvent, VcpuSet};
use memvirt_ops::{VcpuId, VmId};
use memvirt_replay::golden::{A, D, W};

use super::{Event, Note, between, exactly, exits, shadow};
use crate::exits::guest::{DATA, DEVICE, Guest, PD, PDPT, PT, PT_2, ROOT, USUAL, entry, page};
use crate::exits::measure::Column;

const CLEARED: [&str; 5] = ["flush(1) only, A/D lost", "1+flush+1", "unsync(0/1)+flush(1)+1", "flush+1", "0"];
const DEMAND: [&str; 5] = ["2", "z3/e2", "2 (+1/table/epoch)", "2", "0 (+1 first backing)"];
const MMIO: [&str; 5] = ["1", "1", "1", "1", "1 (misconfig; first: violation)"];
const DIRTY: [&str; 5] = ["1", "1", "1", "1", "1 (pf_fast); PML: 1 per 512"];

/// The second vCPU.
const TARGET: VcpuId = VcpuId(1);

/// The kernel clears A and D of page 0.
fn clear_ad(g: &mut Guest) {
    g.set(PT, 0, entry(DATA, USUAL & !A & !D));
}

/// A page on demand: the fault, the entry, the store again.
fn demand(g: &mut Guest, n: u64) {
    g.write(page(n));
    g.set(PT, n, entry(DATA + n, USUAL));
    g.write(page(n));
}

/// Eight pages in each of two leaf tables are in use.
fn two_tables(g: &mut Guest) {
    g.boot_pages(0..8, DATA, USUAL);
    g.boot_pages(512..520, DATA + 8, USUAL);
    g.read_pages(0..8);
    g.read_pages(512..520);
}

fn device(g: &mut Guest) {
    g.boot(PT, 200, entry(DEVICE, USUAL));
}

/// Five pages are in use, and dirty logging starts. Whoever then stores to the fifth makes the table frames writable again.
fn log_dirty(g: &mut Guest) {
    g.boot_pages(0..5, DATA, USUAL);
    g.write_pages(0..5);
    g.host(&HostEvent::DirtyLog(VmId::FIRST, true));
}

pub(super) static EVENTS: &[Event] = &[
    Event::new("18", "guest clears A/D, flushes, touches again", "store, CR3 load, store to the page", CLEARED, |g| {
        clear_ad(g);
        g.cr3(ROOT);
        g.write(page(0));
    })
    .figures(exits(1, 3, 3, 0, 2, 0).kvm(between(2, 3))),
    Event::new("18'", "... flushed by INVLPG", "store, INVLPG, store to the page", CLEARED, |g| {
        clear_ad(g);
        g.invlpg(page(0));
        g.write(page(0));
    })
    .figures(exits(1, 3, 3, 0, 2, 0).kvm(between(2, 3)))
    .notes(&[Note {
        columns: &[Column::InvlpgOnly],
        text: "the table's figure holds for flushes by CR3; INVLPG is the one flush that the naive policy obeys, so the \
               access faults, and A and D are set again",
    }]),
    Event::new("19", "demand-zero page (5+6+6b)", "the first page in a table", DEMAND, |g| demand(g, 100))
        .figures(exits(2, 3, 2, 0, 2, 0).kvm(between(2, 3))),
    Event::new("19+", "... the next pages", "7 pages more in the same table", DEMAND, |g| {
        (101..108).for_each(|n| demand(g, n));
    })
    .after(|g| demand(g, 100))
    .figures(exits(14, 21, 14, 14, 14, 0)),
    Event::new(
        "20",
        "fork: N PTE stores in L leaf tables + flush",
        "16 stores in 2 tables, CR3 load",
        ["1 (broken COW)", "N+1", "L+1", "1+refill", "0"],
        |g| {
            (0..8).for_each(|i| g.set(PT, i, entry(DATA + i, USUAL & !W)));
            (0..8).for_each(|i| g.set(PT_2, i, entry(DATA + 8 + i, USUAL & !W)));
            g.cr3(ROOT);
        },
    )
    .after(two_tables)
    .figures(exits(1, 17, 17, 3, 1, 0)),
    Event::new(
        "21",
        "munmap N pages, INVLPG each",
        "8 stores, 8 INVLPGs",
        ["N", "2N", "N (+1/table)", "N", "0"],
        |g| {
            (0..8).for_each(|i| g.set(PT, i, 0));
            (0..8).for_each(|i| g.invlpg(page(i)));
        },
    )
    .after(two_tables)
    .figures(exits(8, 16, 16, 0, 8, 0).kvm(between(8, 9))),
    Event::new(
        "22",
        "exit: tear down u upper entries",
        "PDE, PDPTE, PML4E cleared",
        ["0", "u", "u emulated (<=3 per table before zap)", "0", "0"],
        |g| {
            g.set(PD, 0, 0);
            g.set(PDPT, 0, 0);
            g.set(ROOT, 1, 0);
        },
    )
    .figures(exits(0, 3, 3, 3, 0, 0)),
    Event::new(
        "23",
        "remote shootdown, per target",
        "interrupt to one vCPU, INVLPG there",
        ["1 + IPI exit(s)", "same", "same", "same", "IPI exit(s) only"],
        |g| {
            g.on(VcpuId::FIRST);
            g.control(Control::Ipi(VcpuSet::EMPTY.with(TARGET)));
            g.on(TARGET);
            g.invlpg(page(0));
        },
    )
    .after(|g| {
        g.on(TARGET);
        g.cr3(ROOT);
        g.read(page(0));
    })
    .vcpus(2)
    .figures(shadow(2, 1)),
    Event::new("24", "MMIO access, first", "1 read", MMIO, |g| g.read(page(200))).after(device).figures(shadow(1, 1)),
    Event::new("24+", "... the next", "3 reads", MMIO, |g| (0..3).for_each(|_| g.read(page(200))))
        .after(|g| {
            device(g);
            g.read(page(200));
        })
        .figures(shadow(3, 3)),
    Event::new(
        "25",
        "host unmapped the frame, next access",
        "4 reads of 4 pages",
        ["1", "1", "1 per page", "1", "1"],
        |g| g.read_pages(0..4),
    )
    .after(|g| {
        g.boot_pages(0..4, DATA, USUAL);
        g.read_pages(0..4);
        g.unmap(DATA, 4);
    })
    .figures(shadow(4, 4)),
    Event::new("26", "dirty logging, first write per 4K page", "8 stores to 4 pages", DIRTY, |g| {
        g.write_pages(0..4);
        g.write_pages(0..4);
    })
    .after(|g| {
        log_dirty(g);
        g.write(page(4));
    })
    .figures(shadow(4, 4).nested_pml(exactly(0))),
    Event::new("26+", "... of many pages", "1024 stores to 1024 pages", DIRTY, |g| g.write_pages(0..1024))
        .after(|g| {
            g.boot_pages(0..1024, DATA, USUAL);
            g.write_pages(0..1024);
            g.host(&HostEvent::DirtyLog(VmId::FIRST, true));
            // The walks dirty the table frames before the count begins.
            g.read(page(0));
            g.read(page(1023));
        })
        .figures(shadow(1024, 1024).nested_pml(exactly(2))),
    Event::new("26^", "... in the next round", "8 stores to 4 pages", DIRTY, |g| {
        g.write_pages(0..4);
        g.write_pages(0..4);
    })
    .after(|g| {
        log_dirty(g);
        g.write_pages(0..5);
        g.host(&HostEvent::DirtyRound(VmId::FIRST));
        g.write(page(4));
    })
    .figures(shadow(4, 4).nested_pml(exactly(0))),
    Event::new("26'", "... the first in the whole machine", "1 store, no page walked since logging began", DIRTY, |g| {
        g.write(page(0));
    })
    .after(log_dirty)
    .figures(shadow(1, 0).nested(exactly(1)).nested_pml(exactly(0)))
    .notes(&[Note {
        columns: &[Column::Nested],
        text: "the walk of the guest's four tables counts as a store to each of their frames, which are logged too (KVM \
               over NPT recorded 16 pages of data and 7 of tables)",
    }]),
];
