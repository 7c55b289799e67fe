//! One rule of the guest after the other, by what it counts. Expected numbers are derived in each test.
#![expect(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use memvirt_addr::{Acc, AccessKind, Gva, PageSize};
use memvirt_guest::{FlushRange, Guest, GuestConfig, GuestStats, Halted, Invlpg, PageCache};
use memvirt_ops::process::{Backing, Batch, FileId, Op, ProcessId, Prot, Range, Sharing};
use memvirt_ops::{VcpuId, VmId};
use memvirt_platform::{Engine, Host, Ledger, MemoryMap, Native, Tags, VmSpec};

/// The first page that the tests use: the start of a leaf table.
const BASE: u64 = 0x4_0000;

struct Lab {
    cpu: Engine<Native>,
    ledger: Ledger,
    guest: Guest,
}

impl Lab {
    fn new(config: GuestConfig) -> Self {
        let frames = config.memory_bytes / 4096;
        let vm = VmSpec { map: MemoryMap::identity(frames), vcpus: 1 };
        let mut cpu = Engine::new(Host::new(frames), 1, &Default::default(), Tags::On, vec![(vm, Native)]);
        let mut ledger = Ledger::sums();
        let guest = Guest::boot(config, VmId::FIRST, VcpuId::FIRST, &mut cpu, &mut ledger).unwrap();
        Self { cpu, ledger, guest }
    }

    fn try_batch(&mut self, batch: &Batch) -> Result<(), Halted> {
        self.guest.batch(batch, &mut self.cpu, &mut self.ledger)
    }

    fn op(&mut self, op: Op) -> GuestStats {
        self.difference(&Batch { then: Some(op), ..Batch::default() })
    }

    fn touch(&mut self, pages: impl IntoIterator<Item = u64>, kind: AccessKind) -> GuestStats {
        let run = pages.into_iter().map(|page| Acc::user(Gva::new((BASE + page) << 12), kind)).collect();
        self.difference(&Batch { run, instructions: 1, then: None })
    }

    /// What a batch adds to the counts that the tests look at.
    fn difference(&mut self, batch: &Batch) -> GuestStats {
        let before = self.guest.stats();
        self.try_batch(batch).unwrap();
        let after = self.guest.stats();
        GuestStats {
            faults_fresh: after.faults_fresh - before.faults_fresh,
            faults_copy: after.faults_copy - before.faults_copy,
            faults_reuse: after.faults_reuse - before.faults_reuse,
            faults_file: after.faults_file - before.faults_file,
            faults_refused: after.faults_refused - before.faults_refused,
            pages_around: after.pages_around - before.pages_around,
            pages_moved: after.pages_moved - before.pages_moved,
            pages_copied: after.pages_copied - before.pages_copied,
            table_stores: after.table_stores - before.table_stores,
            invlpgs: after.invlpgs - before.invlpgs,
            cr3_loads: after.cr3_loads - before.cr3_loads,
            collapses: after.collapses - before.collapses,
            entries_aged: after.entries_aged - before.entries_aged,
            ..GuestStats::default()
        }
    }

    fn map(&mut self, first: u64, pages: u64) {
        self.op(Op::Mmap { range: range(first, pages), prot: Prot::RW, backing: Backing::AnonymousPrivate });
    }

    fn map_file(&mut self, first: u64, pages: u64, sharing: Sharing) {
        let (prot, file) = (Prot::RW, FileId(7));
        self.op(Op::MapFile { range: range(first, pages), prot, sharing, file, first_page: 0 });
    }
}

fn range(first: u64, pages: u64) -> Range {
    Range { start: Gva::new((BASE + first) << 12), bytes: pages << 12 }
}

fn small() -> GuestConfig {
    GuestConfig { memory_bytes: 64 << 20, ..GuestConfig::default() }
}

#[test]
fn a_fault_on_a_cached_file_maps_its_aligned_window() {
    let kept = GuestConfig { fault_around_pages: 16, page_cache: PageCache::Kept, ..small() };
    let mut lab = Lab::new(kept);
    lab.map_file(5, 40, Sharing::Private);
    // Page 20 lies in the window 16..32; page 6 in 0..16, which begins with the area at 5 and is 16 long from there.
    let first = lab.touch([20], AccessKind::Read);
    assert_eq!((first.faults_file, first.pages_around), (1, 15));
    assert_eq!(lab.touch(16..32, AccessKind::Read).faults_file, 0);
    let edge = lab.touch([6], AccessKind::Read);
    assert_eq!((edge.faults_file, edge.pages_around), (1, 10), "5 to 15; 16 to 20 are mapped already");
    // A store copies its own page, mapped around or not.
    let store = lab.touch([21, 40], AccessKind::Write);
    assert_eq!((store.faults_copy, store.pages_around), (2, 0));
    // Without a cache that keeps, nothing lies around that nobody mapped.
    let mut bare = Lab::new(GuestConfig { fault_around_pages: 16, ..small() });
    bare.map_file(0, 40, Sharing::Private);
    assert_eq!(bare.touch([20], AccessKind::Read).pages_around, 0);
}

#[test]
fn a_flush_covers_what_was_mapped_or_the_whole_span() {
    for (flush_range, invlpgs, loads) in [(FlushRange::Mapped, 3, 0), (FlushRange::Span, 11, 0)] {
        let mut lab = Lab::new(GuestConfig { flush_range, ..small() });
        lab.map(0, 64);
        lab.touch([0, 4, 10], AccessKind::Write);
        let unmapped = lab.op(Op::Munmap { range: range(0, 64) });
        assert_eq!((unmapped.invlpgs, unmapped.cr3_loads), (invlpgs, loads), "{flush_range:?}");
        // 33 pages apart: 34 of them, above the ceiling.
        lab.map(0, 64);
        lab.touch([0, 33], AccessKind::Write);
        let unmapped = lab.op(Op::Munmap { range: range(0, 64) });
        let expected = if flush_range == FlushRange::Span { (0, 1) } else { (2, 0) };
        assert_eq!((unmapped.invlpgs, unmapped.cr3_loads), expected, "{flush_range:?}");
    }
    let mut lab = Lab::new(GuestConfig { invlpg: Invlpg::Forgotten, ..small() });
    lab.map(0, 4);
    lab.touch(0..4, AccessKind::Write);
    assert_eq!(lab.op(Op::Munmap { range: range(0, 4) }).invlpgs, 0);
}

#[test]
fn fork_copies_private_areas_only_and_the_last_owner_keeps_its_page() {
    let mut lab = Lab::new(GuestConfig { page_cache: PageCache::Kept, ..small() });
    lab.map(0, 8);
    lab.map_file(16, 8, Sharing::Shared);
    lab.touch(0..8, AccessKind::Write);
    lab.touch(16..24, AccessKind::Write);
    let forked = lab.op(Op::Fork { child: ProcessId(1) });
    // 2 entries of the kernel's half (direct map and text; entry area makes 3), 8 write protections, 8 copies, 3 tables linked.
    assert_eq!(forked.table_stores, 3 + 8 + 8 + 3);
    lab.op(Op::Switch { to: ProcessId(1) });
    let child = lab.touch([0, 1, 16], AccessKind::Write);
    assert_eq!((child.faults_copy, child.faults_file), (2, 1), "shared memory is not copied, but faulted in anew");
    lab.op(Op::Exit);
    lab.op(Op::Switch { to: ProcessId(0) });
    let parent = lab.touch(0..8, AccessKind::Write);
    assert_eq!((parent.faults_copy, parent.faults_reuse), (0, 8), "the parent owns every page alone again");
}

#[test]
fn mremap_moves_entries_and_brk_moves_the_end_of_the_heap() {
    let mut lab = Lab::new(small());
    lab.map(0, 8);
    lab.touch(0..8, AccessKind::Write);
    let moved = lab.op(Op::Mremap { from: range(0, 8), to: range(1024, 16) });
    // Clear and store for each page, two directory entries: the new table is linked, the old one unlinked.
    assert_eq!((moved.pages_moved, moved.table_stores, moved.invlpgs), (8, 8 + 8 + 2, 8));
    assert_eq!(lab.touch(1024..1032, AccessKind::Write).faults_fresh, 0);
    assert_eq!(lab.touch(1032..1040, AccessKind::Write).faults_fresh, 8, "the area grew");
    assert_eq!(lab.touch([0], AccessKind::Write).faults_refused, 1);
    let end = |page| Op::Brk { end: Gva::new((BASE + page) << 12) };
    lab.op(end(2048));
    lab.op(end(2060));
    assert_eq!(lab.touch(2048..2060, AccessKind::Write).faults_fresh, 12);
    lab.op(end(2050));
    assert_eq!(lab.touch([2049, 2050], AccessKind::Write).faults_refused, 1);
}

#[test]
fn small_pages_collapse_into_a_large_one_and_age() {
    let busy = GuestConfig { collapse_scan_pages: 512, tick_instructions: 1, ..small() };
    let mut lab = Lab::new(busy);
    lab.map(0, 512);
    // The touch itself passes an instruction, and with it a tick: the kernel finds 10 pages and makes 512 of them.
    let touched = lab.touch(0..10, AccessKind::Write);
    assert_eq!((touched.collapses, touched.pages_copied), (1, 10));
    assert_eq!(lab.touch(0..512, AccessKind::Write).faults_fresh, 0);
    let mut lab = Lab::new(GuestConfig { aging_pages: 4, tick_instructions: 1, ..small() });
    lab.map(0, 16);
    assert_eq!(lab.touch(0..10, AccessKind::Write).entries_aged, 4);
    assert_eq!(lab.touch([0], AccessKind::Read).entries_aged, 4, "the next four");
}

#[test]
fn large_pages_are_split_where_a_part_of_them_goes() {
    let mut lab = Lab::new(GuestConfig { guest_page: PageSize::Size2M, ..small() });
    lab.map(0, 512);
    assert_eq!(lab.touch([0, 511], AccessKind::Write).faults_fresh, 1);
    lab.op(Op::Munmap { range: range(100, 1) });
    assert_eq!(lab.guest.stats().splits, 1);
    assert_eq!(lab.touch([99, 101], AccessKind::Write).faults_fresh, 0);
}

#[test]
fn memory_that_runs_short_takes_unmapped_file_pages_before_the_guest_ends() {
    let mut lab = Lab::new(GuestConfig { page_cache: PageCache::Kept, ..small() });
    let pages = (64 << 20) / 4096 - 8192 - 200;
    lab.map_file(0, pages, Sharing::Shared);
    lab.touch(0..pages, AccessKind::Read);
    lab.op(Op::Munmap { range: range(0, pages) });
    lab.map(0, 2000);
    lab.touch(0..2000, AccessKind::Write);
    assert!(lab.guest.stats().pages_evicted >= 1700, "{}", lab.guest.stats().pages_evicted);
    lab.map(0, 1 << 20);
    let all = (0..1 << 20).map(|page| Acc::user(Gva::new((BASE + page) << 12), AccessKind::Write)).collect();
    let ended = lab.try_batch(&Batch { run: all, instructions: 1, then: None });
    assert_eq!(ended, Err(Halted::GuestOutOfMemory));
}
