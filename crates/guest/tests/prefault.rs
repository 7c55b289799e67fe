//! Memory mapped ahead is the memory that touching it makes; where tables lie is a switch.

use memvirt_addr::{Acc, AccessKind, Gfn, Gpa, Gva, Level, PageSize};
use memvirt_guest::{Guest, GuestConfig, TableFrames};
use memvirt_ops::process::{Backing, Batch, Op, Prot, Range};
use memvirt_ops::{VcpuId, VmId};
use memvirt_pagetable::{Guest4, Tree};
use memvirt_platform::{Engine, Host, Ledger, MemoryMap, Native, Platform, Tags, VmSpec};
use memvirt_tlb::Geometry;

const FRAMES: u64 = (128 << 20) / 4096;
const AREA: Range = Range { start: Gva::new(0x10_0000_0000), bytes: 24 << 20 };
/// Accessed and dirty bits, which hardware sets.
const HARDWARE: u64 = 1 << 5 | 1 << 6;

struct World {
    machine: Engine<Native>,
    guest: Guest,
    ledger: Ledger,
}

fn world(config: GuestConfig) -> World {
    let vm = VmSpec { map: MemoryMap::identity(FRAMES), vcpus: 1 };
    let mut machine = Engine::new(Host::new(FRAMES), 1, &Geometry::default(), Tags::On, vec![(vm, Native)]);
    let mut ledger = Ledger::sums();
    let config = GuestConfig { memory_bytes: FRAMES * 4096, ..config };
    let guest = Guest::boot(config, VmId::FIRST, VcpuId::FIRST, &mut machine, &mut ledger).expect("boots");
    let mut world = World { machine, guest, ledger };
    let mmap = Op::Mmap { range: AREA, prot: Prot::RW, backing: Backing::AnonymousPrivate };
    world.run(Batch { then: Some(mmap), ..Batch::default() });
    world
}

impl World {
    fn run(&mut self, batch: Batch) {
        self.guest.batch(&batch, &mut self.machine, &mut self.ledger).expect("memory suffices");
    }

    fn store_to_each_page(&mut self) {
        let page = |i| Acc::user(AREA.start.wrapping_add(i * 4096), AccessKind::Write);
        self.run(Batch { run: (0..AREA.bytes / 4096).map(page).collect(), ..Batch::default() });
    }

    /// Every word of memory that is not 0, hardware's bits left out.
    fn memory(&self) -> Vec<(Gpa, u64)> {
        let words = (0..FRAMES * 512).map(|word| Gpa::new(word * 8));
        words.map(|at| (at, self.machine.peek(VmId::FIRST, at) & !HARDWARE)).filter(|(_, word)| *word != 0).collect()
    }

    fn root(&self) -> Gfn {
        self.machine.regs(VcpuId::FIRST).cr3.root.frame()
    }
}

fn configs() -> impl Iterator<Item = GuestConfig> {
    let plain = GuestConfig::default();
    let grouped = GuestConfig { table_frames: TableFrames::Grouped, ..plain };
    let large = GuestConfig { guest_page: PageSize::Size2M, ..plain };
    let isolated = GuestConfig { kpti: true, ..grouped };
    [plain, grouped, large, isolated].into_iter()
}

#[test]
fn prefault_leaves_what_stores_to_each_page_leave_and_counts_nothing() {
    for config in configs() {
        let (mut touched, mut ahead) = (world(config), world(config));
        touched.store_to_each_page();
        let before = (ahead.guest.stats(), ahead.ledger.counters);
        ahead.guest.prefault(AREA, &mut ahead.machine).expect("memory suffices");
        let after = (ahead.guest.stats(), ahead.ledger.counters);
        assert_eq!(after.0.peak_data_frames, touched.guest.stats().peak_data_frames);
        assert_eq!(memvirt_guest::GuestStats { peak_data_frames: before.0.peak_data_frames, ..after.0 }, before.0);
        assert_eq!(after.1, before.1);
        assert_eq!(ahead.guest.table_bytes(), touched.guest.table_bytes());
        assert_eq!(ahead.memory(), touched.memory(), "{config:?}");

        // Nothing is left to fault on.
        ahead.store_to_each_page();
        assert_eq!(ahead.ledger.counters.guest_page_faults, 0, "{config:?}");
        assert!(touched.ledger.counters.guest_page_faults > 0);
    }
}

#[test]
fn prefault_maps_only_what_lacks() {
    let mut world = world(GuestConfig::default());
    world.store_to_each_page();
    let memory = world.memory();
    world.guest.prefault(AREA, &mut world.machine).expect("memory suffices");
    assert_eq!(world.memory(), memory);
}

#[test]
fn prefault_maps_the_range_and_nothing_else() {
    let (mut whole, mut halves) = (world(GuestConfig::default()), world(GuestConfig::default()));
    whole.guest.prefault(AREA, &mut whole.machine).expect("memory suffices");
    let half = Range { bytes: AREA.bytes / 2, ..AREA };
    halves.guest.prefault(half, &mut halves.machine).expect("memory suffices");
    let mapped = |world: &World| {
        let guest = Memory(&world.machine);
        let user = AREA.start..=AREA.start.wrapping_add(AREA.bytes - 1);
        Tree::<Guest4, _>::new(&guest, world.root()).leaves(user).count() as u64
    };
    assert_eq!(mapped(&halves), half.bytes / 4096);
    let rest = Range { start: half.start.wrapping_add(half.bytes), ..half };
    halves.guest.prefault(rest, &mut halves.machine).expect("memory suffices");
    assert_eq!(mapped(&halves), AREA.bytes / 4096);
    assert_eq!(halves.memory(), whole.memory());
}

#[test]
fn grouped_tables_share_no_block_with_data() {
    for (tables, mixed) in [(TableFrames::Mixed, true), (TableFrames::Grouped, false)] {
        let mut world = world(GuestConfig { table_frames: tables, ..GuestConfig::default() });
        world.store_to_each_page();
        let guest = Memory(&world.machine);
        let tree = Tree::<Guest4, _>::new(&guest, world.root());
        let block = |frame: Gfn| frame.align_down(PageSize::Size2M);
        let user = AREA.start..=AREA.start.wrapping_add(AREA.bytes - 1);
        let data: Vec<_> = tree.leaves(user).map(|leaf| block(leaf.frame)).collect();
        let leaf_tables: Vec<_> =
            tree.tables().filter(|(_, level)| *level == Level::L1).map(|(frame, _)| block(frame)).collect();
        assert!(leaf_tables.len() as u64 >= AREA.bytes >> 21);
        assert_eq!(leaf_tables.iter().any(|table| data.contains(table)), mixed, "{tables}");
    }
}

/// Guest memory, for reading tables.
struct Memory<'a>(&'a Engine<Native>);

impl memvirt_pagetable::TableMem<memvirt_addr::GuestPhys> for Memory<'_> {
    fn read_entry(&self, at: Gpa) -> u64 {
        self.0.peek(VmId::FIRST, at)
    }

    fn write_entry(&mut self, _: Gpa, _: u64) {
        unreachable!("tables are read only here");
    }
}

#[test]
fn counting_starts_again() {
    let mut world = world(GuestConfig::default());
    world.store_to_each_page();
    assert!(world.guest.stats().user_accesses > 0);
    world.guest.restart_stats();
    assert_eq!(world.guest.stats().user_accesses, 0);
}
