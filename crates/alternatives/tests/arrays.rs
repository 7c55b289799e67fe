//! A guest that lays out its leaf tables as register-based walks ask: two processes, each with a block of leaf tables, whose
//! entries come and go; tables too. The oracle watches, and walks are counted.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use memvirt_addr::{Acc, AccessKind, Gfn, Gva, PageSize, Privilege};
use memvirt_alternatives::{DataReference, RegisterWalk};
use memvirt_ops::arch::{Control, Cr3, CrWrite, GfnRange, Pcid};
use memvirt_platform::Tags;
use proptest::prelude::*;
use support::lab::{A, D, Lab, Memory, P, SMALL, U, W, index_of};

/// Roots, tables of level 3 and 2, and blocks of the two processes.
const ROOTS: [u64; 2] = [1, 2];
const L3: [u64; 2] = [3, 4];
const L2: [u64; 2] = [5, 6];
const BLOCKS: [u64; 2] = [1024, 1536];
const ARENA: GfnRange = GfnRange { start: Gfn::new(1024), frames: 1024 };
const DATA: u64 = 16;
const TABLE: u64 = P | W | U | A | D;
/// Leaf tables that a process has, pages in each.
const TABLES: usize = 4;
const PAGES: usize = 3;

fn page(table: usize, page: usize) -> u64 {
    (table as u64) << 21 | (page as u64) << 12
}

/// A guest that runs its first process.
fn guest(registers: usize) -> Lab<RegisterWalk> {
    let memory = Memory { frames: 4096, ..SMALL };
    let mut lab = Lab::with_host(memory, 1, Tags::On, |host, map| {
        RegisterWalk::new(host, map, ARENA).unwrap().with_registers(registers)
    });
    lab.boot_direct_map(ROOTS[0]);
    let direct = lab.peek(ROOTS[0], index_of(support::lab::DIRECT_MAP, 4));
    lab.boot(ROOTS[1], index_of(support::lab::DIRECT_MAP, 4), direct);
    for process in 0..2 {
        lab.boot(ROOTS[process], 0, L3[process] << 12 | TABLE);
        lab.boot(L3[process], 0, L2[process] << 12 | TABLE);
        for table in 0..TABLES {
            lab.boot(L2[process], table, (BLOCKS[process] + table as u64) << 12 | TABLE);
            for page in 0..PAGES {
                lab.boot(BLOCKS[process] + table as u64, page, (DATA + (table * PAGES + page) as u64) << 12 | TABLE);
            }
        }
    }
    lab.cr3(ROOTS[0]);
    lab
}

/// References of a walk for `gva`, which the TLB does not hold.
fn references(lab: &mut Lab<RegisterWalk>, gva: u64) -> u64 {
    let (walks, before) = (lab.out.counters.walks, lab.out.counters.refs.total());
    lab.read(gva).unwrap();
    assert_eq!(lab.out.counters.walks - walks, 1);
    lab.out.counters.refs.total() - before
}

#[test]
fn one_full_walk_loads_a_register_for_a_gibibyte() {
    let mut lab = guest(RegisterWalk::REGISTERS);
    // First touches exit and start again; after that everything is mapped.
    for table in 0..TABLES {
        (0..PAGES).for_each(|i| lab.read(page(table, i)).unwrap());
    }
    lab.cr3(ROOTS[0]);
    assert_eq!(references(&mut lab, page(0, 0)), 24, "the registers are empty after a CR3 load");
    for table in 0..TABLES {
        let first = usize::from(table == 0);
        (first..PAGES).for_each(|i| assert_eq!(references(&mut lab, page(table, i)), 3, "table {table}, page {i}"));
    }
    lab.invlpg(page(1, 1));
    assert_eq!(references(&mut lab, page(1, 1)), 24, "INVLPG drops the array of its region");
    lab.sound();
}

#[test]
fn the_datas_own_reference_can_be_left_out_of_the_count() {
    let memory = Memory { frames: 4096, ..SMALL };
    let counts = [DataReference::Counted, DataReference::Omitted].map(|data| {
        let mut lab = Lab::with_host(memory, 1, Tags::On, |host, map| {
            RegisterWalk::new(host, map, ARENA).unwrap().with_data_reference(data)
        });
        lab.boot_direct_map(ROOTS[0]);
        lab.boot(ROOTS[0], 0, L3[0] << 12 | TABLE);
        lab.boot(L3[0], 0, L2[0] << 12 | TABLE);
        lab.boot(L2[0], 0, BLOCKS[0] << 12 | TABLE);
        (0..2).for_each(|i| lab.boot(BLOCKS[0], i, (DATA + i as u64) << 12 | TABLE));
        lab.cr3(ROOTS[0]);
        (0..2).for_each(|i| lab.read(page(0, i)).unwrap());
        lab.cr3(ROOTS[0]);
        [0, 1].map(|i| references(&mut lab, page(0, i)))
    });
    assert_eq!(counts, [[24, 3], [20, 2]]);
}

#[derive(Clone, Debug)]
enum Step {
    /// The guest changes a leaf entry of one process.
    Set {
        process: usize,
        table: usize,
        page: usize,
        raw: u64,
    },
    /// It takes a leaf table away, empty, with the flush that this needs.
    Drop {
        process: usize,
        table: usize,
    },
    /// It links the table again.
    Link {
        process: usize,
        table: usize,
    },
    Access {
        table: usize,
        page: usize,
        kind: AccessKind,
        privilege: Privilege,
    },
    Invlpg {
        table: usize,
        page: usize,
    },
    Run {
        process: usize,
        keep: bool,
    },
    Pge,
    Pcids(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let flags =
        prop_oneof![6 => Just(TABLE), 2 => Just(P | U | A), 2 => Just(P | W | U), 3 => Just(0), 1 => Just(P | W)];
    let raw = (DATA..DATA + 16, flags).prop_map(|(gfn, flags)| gfn << 12 | flags);
    let kind = prop_oneof![4 => Just(AccessKind::Read), 4 => Just(AccessKind::Write), 1 => Just(AccessKind::Fetch)];
    let privilege = prop_oneof![3 => Just(Privilege::User), 1 => Just(Privilege::Supervisor)];
    let place = || (0..TABLES, 0..PAGES);
    prop_oneof![
        12 => (0..2usize, place(), raw)
            .prop_map(|(process, (table, page), raw)| Step::Set { process, table, page, raw }),
        2 => (0..2usize, 0..TABLES).prop_map(|(process, table)| Step::Drop { process, table }),
        2 => (0..2usize, 0..TABLES).prop_map(|(process, table)| Step::Link { process, table }),
        30 => (place(), kind, privilege)
            .prop_map(|((table, page), kind, privilege)| Step::Access { table, page, kind, privilege }),
        5 => place().prop_map(|(table, page)| Step::Invlpg { table, page }),
        4 => (0..2usize, any::<bool>()).prop_map(|(process, keep)| Step::Run { process, keep }),
        1 => Just(Step::Pge),
        1 => any::<bool>().prop_map(Step::Pcids),
    ]
}

fn run(lab: &mut Lab<RegisterWalk>, step: &Step) {
    match *step {
        Step::Set { process, table, page, raw } => {
            if lab.peek(L2[process], table) & P != 0 {
                lab.set(BLOCKS[process] + table as u64, page, raw);
            }
        }
        Step::Drop { process, table } => {
            (0..PAGES).for_each(|page| lab.set(BLOCKS[process] + table as u64, page, 0));
            lab.set(L2[process], table, 0);
            lab.control(Control::Cr(CrWrite::TogglePge));
        }
        Step::Link { process, table } => {
            lab.set(L2[process], table, (BLOCKS[process] + table as u64) << 12 | TABLE);
        }
        Step::Access { table, page: i, kind, privilege } => {
            _ = lab.access(Acc::new(Gva::new(page(table, i)), kind, privilege));
        }
        Step::Invlpg { table, page: i } => lab.invlpg(page(table, i)),
        Step::Run { process, keep } => {
            let pcid = Pcid::try_new(u16::try_from(process).unwrap()).unwrap();
            lab.control(Control::Cr3(Cr3 { root: Gfn::new(ROOTS[process]).base(), pcid, keep }));
        }
        Step::Pge => lab.control(Control::Cr(CrWrite::TogglePge)),
        Step::Pcids(on) => lab.control(Control::Cr(CrWrite::PcidEnable(on))),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..memvirt_properties::cases(200) })]

    #[test]
    fn registers_are_sound_under_a_guest_that_keeps_arrays(
        registers in 1..4usize,
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut lab = guest(registers);
        assert_eq!(lab.memory.host_page, PageSize::Size4K);
        for step in &steps {
            run(&mut lab, step);
        }
        prop_assert_eq!(lab.tally().violations(), 0, "{:#?}", lab.checked.violations());
    }
}
