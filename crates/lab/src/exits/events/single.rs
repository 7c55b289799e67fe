//! Rows 1 to 17: single accesses, stores to tables, privileged operations.

use memvirt_addr::Gfn;
use memvirt_ops::arch::{Control, Cr3, CrWrite, Invpcid, Pcid};
use memvirt_replay::golden::{A, D};

use super::{Event, Note, between, exactly, exits, shadow};
use crate::exits::guest::{DATA, Guest, OTHER_ROOT, PD, PDPT, PT, ROOT, UNUSED, USUAL, entry, page};
use crate::exits::measure::Column;

/// The cells of a row that says 1 for shadow paging and 0 for nested.
const ONE: [&str; 5] = ["1", "1", "1", "1", "0"];
const STORE: [&str; 5] = ["0", "1", "1 first per table per sync epoch, then 0", "0", "0"];
const LEAF_FREED: [&str; 5] = ["0", "1/store until unshadow", "0 if unsync else 1", "0", "0"];
const UPPER_FREED: [&str; 5] = ["0", "1/store until unshadow", "2 (rep stos/SSE); <=4 (mov)", "0", "0"];
const LOAD_CR3: [&str; 5] =
    ["1", "1", "1 (+1 link fault per PML4 slot on a new root)", "1 + refill of touched set", "0"];
const TOGGLE: [&str; 5] = ["2", "2", "2 (SVM 3 with the read)", "2 + refill", "0 (SVM 3)"];
const CR0_WP: [&str; 5] = ["1", "1", "1 + rebuild under new role", "1 + refill", "0 (SVM 1)"];

const TOGGLE_PGE: Control = Control::Cr(CrWrite::TogglePge);

/// Four user pages in one aligned group are in use.
fn four_pages(g: &mut Guest) {
    g.boot_pages(0..4, DATA, USUAL);
    g.read_pages(0..4);
}

fn map_new(g: &mut Guest) {
    g.read(page(100));
    g.set(PT, 100, entry(DATA + 100, USUAL));
}

pub(super) static EVENTS: &[Event] = &[
    Event::new("1", "access, mapping cached", "1 read", ["0"; 5], |g| g.read(page(0))).figures(shadow(0, 0)),
    Event::new(
        "2",
        "first access, gPTE A=1",
        "64 reads of 64 pages, A=1, D=1",
        ["1", "1", "1 per aligned group of 8", "1", "0; +1 per unbacked frame"],
        |g| g.read_pages(64..128),
    )
    .after(|g| g.boot_pages(64..128, DATA + 64, USUAL))
    .figures(exits(64, 64, 64, 8, 64, 0)),
    Event::new(
        "2'",
        "first access, frame not backed yet",
        "4 reads of 4 pages, 8 apart",
        ["1", "1", "1 per aligned group of 8", "1", "0; +1 per unbacked frame"],
        |g| (0..4).for_each(|n| g.read(page(64 + 8 * n))),
    )
    .after(|g| (0..4).for_each(|n| g.boot(PT, 64 + 8 * n, entry(UNUSED + n, USUAL))))
    .figures(shadow(4, 4)),
    Event::new("3", "first access, A=0", "64 reads of 64 pages", ["1", "1", "1 each", "1", "0"], |g| {
        g.read_pages(64..128);
    })
    .after(|g| g.boot_pages(64..128, DATA + 64, USUAL & !A & !D))
    .figures(shadow(64, 0)),
    Event::new("4", "first write after read with D=0", "8 stores to 8 pages", ONE, |g| g.write_pages(64..72))
        .after(|g| {
            g.boot_pages(64..72, DATA + 64, USUAL & !D);
            g.read_pages(64..72);
        })
        .figures(shadow(8, 0)),
    Event::new("5", "guest-visible #PF", "1 read of an absent page", ONE, |g| g.read(page(100))).figures(shadow(1, 0)),
    Event::new("6", "leaf PTE store, np->present, table shadowed", "the first store to the table", STORE, |g| {
        g.set(PT, 100, entry(DATA + 100, USUAL));
    })
    .figures(exits(0, 1, 1, 1, 0, 0)),
    Event::new("6+", "... the next stores", "31 stores more", STORE, |g| {
        (101..132).for_each(|i| g.set(PT, i, entry(DATA + i, USUAL)));
    })
    .after(|g| g.set(PT, 100, entry(DATA + 100, USUAL)))
    .figures(exits(0, 31, 31, 0, 0, 0)),
    Event::new("6^", "... the first store after a CR3 load", "1 store", STORE, |g| {
        g.set(PT, 101, entry(DATA + 101, USUAL));
    })
    .after(|g| {
        g.set(PT, 100, entry(DATA + 100, USUAL));
        g.cr3(ROOT);
    })
    .figures(exits(0, 1, 1, 1, 0, 0))
    .notes(&[Note {
        columns: &[Column::Vtlb],
        text: "nothing is write-protected; the CR3 load has emptied the tables, and the mapping through which the kernel stores \
               is refilled (row 12)",
    }]),
    Event::new("6b", "... retry of the faulted access", "1 read", ["1", "z1/e0", "1", "1", "0"], |g| {
        g.read(page(100));
    })
    .after(map_new)
    .figures(exits(1, 1, 0, 1, 1, 0)),
    Event::new(
        "7",
        "leaf PTE store present->other",
        "the first store to the table",
        ["0", "1", "as 6", "0", "0"],
        |g| g.set(PT, 0, entry(DATA + 100, USUAL)),
    )
    .figures(exits(0, 1, 1, 1, 0, 0)),
    Event::new("8", "INVLPG", "1 INVLPG", ONE, |g| g.invlpg(page(0))).figures(shadow(1, 0)),
    Event::new(
        "8b",
        "... next access to that va, gfn changed",
        "1 read",
        ["1", "0-1", "<=6.3: 0; >=6.4: 1 if gfn changed else 0", "1", "0"],
        |g| g.read(page(0)),
    )
    .after(|g| {
        g.set(PT, 0, entry(DATA + 100, USUAL));
        g.invlpg(page(0));
    })
    .figures(exits(1, 0, 0, 0, 1, 0).write_protect(between(0, 1)).kvm_6_12(exactly(1))),
    Event::new(
        "8b'",
        "... next access to that va, entry unchanged",
        "1 read, the table unsync",
        ["1", "0-1", "<=6.3: 0; >=6.4: 1 if gfn changed else 0", "1", "0"],
        |g| g.read(page(0)),
    )
    .after(|g| {
        g.set(PT, 100, entry(DATA + 100, USUAL));
        g.invlpg(page(0));
    })
    .figures(exits(1, 0, 0, 0, 1, 0).write_protect(between(0, 1))),
    Event::new(
        "9",
        "PDE/PDPTE/PML4E store (table shadowed)",
        "1 store to each of 3 tables",
        ["0", "1", "1 emulated", "0", "0"],
        |g| [PD, PDPT, ROOT].into_iter().for_each(|table| g.set(table, 7, entry(0xabc, 0))),
    )
    .figures(exits(0, 3, 3, 3, 0, 0)),
    Event::new(
        "9+",
        "... 8 in a row without use",
        "8 stores to one table of level 2",
        ["0", "1", "3rd in a row zaps; 4th 1; then 0", "0", "0"],
        |g| (8..16).for_each(|i| g.set(PD, i, entry(0xabc, 0))),
    )
    .figures(exits(0, 8, 8, 4, 0, 0)),
    Event::new("10", "freed leaf table overwritten as data, unsync", "512 plain stores", LEAF_FREED, |g| g.fill(PT))
        .after(|g| {
            g.set(PT, 0, 0);
            g.set(PD, 0, 0);
        })
        .figures(exits(0, 0, 0, 0, 0, 0).write_protect(between(1, 512))),
    Event::new("10'", "freed leaf table overwritten as data, in sync", "512 plain stores", LEAF_FREED, |g| g.fill(PT))
        .after(|g| g.set(PD, 0, 0))
        .figures(exits(0, 0, 0, 1, 0, 0).write_protect(between(1, 512))),
    Event::new("11", "freed upper table cleared", "rep stosq over the page", UPPER_FREED, |g| g.clear(PD))
        .after(|g| g.set(PDPT, 0, 0))
        .figures(exits(0, 0, 0, 2, 0, 0).write_protect(between(1, 512))),
    Event::new("11'", "freed upper table overwritten", "512 plain stores", UPPER_FREED, |g| g.fill(PD))
        .after(|g| g.set(PDPT, 0, 0))
        .figures(exits(0, 0, 0, 0, 0, 0).write_protect(between(1, 512)).kvm(between(1, 4))),
    Event::new("12", "MOV to CR3", "the same root", LOAD_CR3, |g| g.cr3(ROOT)).figures(shadow(1, 0)),
    Event::new("12+", "... touched set again", "4 reads of 4 pages", LOAD_CR3, |g| g.read_pages(0..4))
        .after(|g| {
            four_pages(g);
            g.cr3(ROOT);
        })
        .figures(exits(0, 0, 0, 0, 4, 0)),
    Event::new("12^", "... under a new root", "4 reads of 4 pages in one PML4 slot", LOAD_CR3, |g| g.read_pages(0..4))
        .after(|g| {
            four_pages(g);
            g.cr3(OTHER_ROOT);
        })
        .figures(exits(0, 0, 0, 1, 4, 0).naive(None).write_protect(None)),
    Event::new(
        "13",
        "MOV to CR3, PCID NOFLUSH",
        "the same root and PCID",
        ["1", "1", "1, no sync if root among 4 cached", "1 (+refill)", "0"],
        |g| {
            let pcid = Pcid::try_new(1).unwrap_or_default();
            g.control(Control::Cr3(Cr3 { root: Gfn::new(ROOT).base(), pcid, keep: true }));
        },
    )
    .after(|g| {
        g.control(Control::Cr(CrWrite::PcidEnable(true)));
        let pcid = Pcid::try_new(1).unwrap_or_default();
        g.control(Control::Cr3(Cr3 { root: Gfn::new(ROOT).base(), pcid, keep: false }));
    })
    .figures(shadow(1, 0)),
    Event::new("14", "MOV from CR3", "CR3 is read", ["1", "1", "1 (SVM npt=0: 1)", "1", "0"], |g| {
        g.control(Control::ReadCr3);
    })
    .figures(shadow(1, 0)),
    Event::new("15", "CR4.PGE toggle (2 writes)", "read, clear, set", TOGGLE, |g| {
        g.control(TOGGLE_PGE);
    })
    .figures(shadow(2, 0).svm_more(1).nested_svm(exactly(3))),
    Event::new("15+", "... touched set again", "4 reads of 4 pages", TOGGLE, |g| g.read_pages(0..4))
        .after(|g| {
            four_pages(g);
            g.control(TOGGLE_PGE);
        })
        .figures(exits(0, 0, 0, 0, 4, 0)),
    Event::new("16", "INVPCID", "all contexts", ONE, |g| g.control(Control::Invpcid(Invpcid::All)))
        .figures(shadow(1, 0)),
    Event::new("17", "CR0.WP write", "1 write", CR0_WP, |g| g.control(Control::Cr(CrWrite::WriteProtect(false))))
        .figures(shadow(1, 0).nested_svm(exactly(1))),
    Event::new("17+", "... touched set again", "4 reads of 4 pages in one aligned group", CR0_WP, |g| {
        g.read_pages(0..4);
    })
    .after(|g| {
        four_pages(g);
        g.control(Control::Cr(CrWrite::WriteProtect(false)));
    })
    .figures(exits(0, 0, 0, 1, 4, 0).naive(None).write_protect(None)),
];
