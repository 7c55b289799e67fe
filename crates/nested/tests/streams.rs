//! Streams of walks with all caches warm: what a walk costs on average, and the hit rate of every cache. Each count equals that of
//! a model written apart, which knows lists of numbers and no tables' contents.

#![expect(clippy::unwrap_used, clippy::cast_precision_loss, reason = "a test may panic; ratios")]

use memvirt_addr::{Acc, AccessKind, Gfn, Gpa, GuestPhys, Gva, Hfn, HostPhys, Hpa, Level, PageSize};
use memvirt_nested::{AdBits, Counts, End, SecondStage, Walker};
use memvirt_ops::arch::{Control, Cr3, Event};
use memvirt_ops::{VcpuId, VmId};
use memvirt_pagetable::{Attrs, Ept4, FramePool, Guest4, Mapper, PhysMem, TableAttrs, TableMem, walk as walk_one};
use memvirt_platform::{Engine, Horizon, Host, Ledger, MemoryMap, Mmu, MmuCounts, MmuGeometry, Native, Platform, Regs};
use memvirt_platform::{Tags, VmSpec};
use memvirt_testkit::caches::skylake;
use memvirt_tlb::{ArrayGeometry, Geometry, Shape, Sizes, Tag, WalkGeometry};
use rand::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_distr::Zipf;

/// Pages of the guest: 128 MiB, under 64 tables.
const PAGES: u64 = 1 << 15;
const FIRST: u64 = 0x7f00_0000_0000;
const DATA: u64 = 1 << 16;
const HOST_BASE: u64 = 1 << 30;

fn gva(page: u64) -> Gva {
    Gva::new(FIRST + (page << 12))
}

fn sequential() -> Vec<u64> {
    (0..PAGES).collect()
}

fn zipf() -> Vec<u64> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut pages: Vec<u64> = (0..PAGES).collect();
    pages.shuffle(&mut rng);
    let ranks = Zipf::new(PAGES as f64, 0.99).unwrap();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank from 1 to PAGES")]
    (0..40_000).map(|_| pages[rng.sample(ranks) as usize - 1]).collect()
}

fn random() -> Vec<u64> {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    (0..40_000).map(|_| rng.random_range(0..PAGES)).collect()
}

/// A set-associative cache of numbers with true LRU: in each set the latest use first.
struct Lru {
    sets: Vec<Vec<u64>>,
    ways: usize,
}

impl Lru {
    fn new(shape: Option<Shape>) -> Self {
        let (entries, ways) = shape.map_or((0, 0), |shape| (shape.entries() as usize, shape.ways() as usize));
        Self { sets: vec![Vec::new(); entries.checked_div(ways).unwrap_or(0)], ways }
    }

    fn use_of(&mut self, number: u64) -> bool {
        let sets = self.sets.len() as u64;
        let Some(set) = (number.checked_rem(sets)).and_then(|i| self.sets.get_mut(usize::try_from(i).unwrap())) else {
            return false;
        };
        let found = set.iter().position(|held| *held == number).map(|at| set.remove(at));
        set.splice(0..0, found);
        found.is_some()
    }

    fn put(&mut self, number: u64) {
        if !self.use_of(number) && !self.sets.is_empty() {
            let at = usize::try_from(number % self.sets.len() as u64).unwrap();
            self.sets[at].insert(0, number);
            self.sets[at].truncate(self.ways);
        }
    }
}

/// Entries of levels 2, 3 and 4 over one kind of address.
struct Upper {
    levels: [Lru; 3],
    hits: [u64; 4],
    misses: u64,
}

impl Upper {
    fn new(geometry: &WalkGeometry) -> Self {
        let levels = [Level::L2, Level::L3, Level::L4].map(|level| Lru::new(geometry.shape(level)));
        Self { levels, hits: [0; 4], misses: 0 }
    }

    /// How many levels are left to be read.
    fn left(&mut self, address: u64) -> usize {
        for (i, cache) in self.levels.iter_mut().enumerate() {
            if cache.use_of(address >> (21 + 9 * i)) {
                self.hits[i] += 1;
                return i + 1;
            }
        }
        self.misses += 1;
        4
    }

    fn read(&mut self, address: u64, level: usize) {
        if let Some(cache) = level.checked_sub(2).map(|i| &mut self.levels[i]) {
            cache.put(address >> (12 + 9 * (level - 1)));
        }
    }
}

/// What walks over 4 KiB pages cost, by the rules.
struct Model {
    guest: Upper,
    host: Upper,
    pages: Lru,
    has_pages: bool,
    page_hits: u64,
    page_misses: u64,
    refs: [u64; 2],
}

impl Model {
    fn new(geometry: &MmuGeometry) -> Self {
        Self {
            guest: Upper::new(&geometry.guest),
            host: Upper::new(&geometry.host),
            pages: Lru::new(geometry.nested_tlb),
            has_pages: geometry.nested_tlb.is_some(),
            page_hits: 0,
            page_misses: 0,
            refs: [0; 2],
        }
    }

    fn translate(&mut self, gpa: u64) {
        if self.pages.use_of(gpa >> 12) {
            self.page_hits += 1;
            return;
        }
        self.page_misses += u64::from(self.has_pages);
        for level in (1..=self.host.left(gpa)).rev() {
            self.refs[1] += 1;
            self.host.read(gpa, level);
        }
        self.pages.put(gpa >> 12);
    }

    /// `path` are the addresses of the guest's entries, level 1 first; `data` that of the data. `nested` tells whether they
    /// need a translation.
    fn walk(&mut self, at: u64, path: &[u64], data: u64, nested: bool) {
        for level in (1..=self.guest.left(at)).rev() {
            if nested {
                self.translate(path[level - 1]);
            }
            self.refs[0] += 1;
            self.guest.read(at, level);
        }
        if nested {
            self.translate(data);
        }
    }

    fn agrees(&self, counts: &MmuCounts, refs: [u64; 2]) {
        assert_eq!(self.refs, refs);
        assert_eq!((self.guest.hits, self.guest.misses), (counts.guest.hits, counts.guest.misses));
        assert_eq!((self.host.hits, self.host.misses), (counts.host.hits, counts.host.misses));
        assert_eq!((self.page_hits, self.page_misses), (counts.nested.hits, counts.nested.misses));
    }
}

struct View<'m>(&'m mut PhysMem<HostPhys>);

fn behind(at: Gpa) -> Hpa {
    Hpa::new(at.as_u64() + HOST_BASE)
}

impl TableMem<GuestPhys> for View<'_> {
    fn read_entry(&self, at: Gpa) -> u64 {
        self.0.read(behind(at))
    }

    fn write_entry(&mut self, at: Gpa, value: u64) {
        self.0.write(behind(at), value);
    }
}

/// Walks in two dimensions for the pages of `stream`: references a walk, and what the caches counted.
fn nested(stream: &[u64], geometry: &MmuGeometry) -> (f64, MmuCounts) {
    let mut mem = PhysMem::new(1 << 20);
    let mut guest_pool = FramePool::new(Gfn::new(1), 1024);
    let mut view = View(&mut mem);
    let mut mapper = Mapper::<Guest4, _>::create(&mut view, &mut guest_pool, TableAttrs::USER).unwrap();
    for page in 0..PAGES {
        let (attrs, size) = (Attrs::RWX | Attrs::USER, PageSize::Size4K);
        mapper.map(gva(page), Gfn::new(DATA + page), size, attrs, &mut guest_pool).unwrap();
    }
    let guest_root = mapper.root();
    let mut pool = FramePool::new(Hfn::new(1), 1 << 12);
    let mut tables = Mapper::<Ept4, _>::create(&mut mem, &mut pool, TableAttrs::new(Ept4::TABLE)).unwrap();
    let root = tables.root();
    for gfn in (1..1024).chain(DATA..DATA + PAGES).map(Gfn::new) {
        tables.map(gfn.base(), behind(gfn.base()).frame(), PageSize::Size4K, Ept4::LEAF, &mut pool).unwrap();
    }
    let (mut mmu, mut model) = (Mmu::new(geometry), Model::new(geometry));
    let regs = Regs::kernel(Cr3::flushing(guest_root.base()));
    let mut sum = Counts::default();
    for page in stream {
        let (caches, probe) = mmu.walk(Tag::new(1, 0), 1);
        let mut walker = Walker::<Guest4, Ept4, _>::new(&mut mem, root, AdBits::On, probe).with_caches(caches);
        let end = walker.walk(&regs, Acc::user(gva(*page), AccessKind::Read));
        assert!(matches!(end, End::Mapped(_)));
        sum.guest += walker.counts.guest;
        sum.host += walker.counts.host;
        let steps = walk_one::<Guest4, _>(&View(&mut mem), guest_root, gva(*page));
        let path: Vec<u64> = steps.steps().rev().map(|step| step.entry_at.as_u64()).collect();
        model.walk(gva(*page).as_u64() & ((1 << 57) - 1), &path, (DATA + page) << 12, true);
    }
    let counts = mmu.counts();
    model.agrees(&counts, [sum.guest, sum.host]);
    ((sum.guest + sum.host) as f64 / stream.len() as f64, counts)
}

/// The same on the bare machine, behind a TLB of one entry.
fn native(stream: &[u64], geometry: &MmuGeometry) -> (f64, MmuCounts) {
    let tlb = Geometry::new(&[ArrayGeometry::full(Sizes::ALL, 1)], &[]).unwrap();
    let vm = VmSpec { map: MemoryMap::identity(1 << 18), vcpus: 1 };
    let mut engine = Engine::new(Host::new(1 << 18), 1, &tlb, Tags::On, vec![(vm, Native)]).with_walk_caches(geometry);
    let mut mem = PhysMem::<GuestPhys>::new(1 << 18);
    let mut pool = FramePool::new(Gfn::new(1), 1024);
    let mut mapper = Mapper::<Guest4, _>::create(&mut mem, &mut pool, TableAttrs::USER).unwrap();
    for page in 0..PAGES {
        let (attrs, size) = (Attrs::RWX | Attrs::USER, PageSize::Size4K);
        mapper.map(gva(page), Gfn::new(DATA + page), size, attrs, &mut pool).unwrap();
    }
    let root = mapper.root();
    for at in (1..1024u64).flat_map(|gfn| (0..512).map(move |i| Gfn::new(gfn).entry(i))) {
        engine.poke(VmId::FIRST, at, mem.read(at));
    }
    let (cpu, mut out, mut model) = (VcpuId::FIRST, Ledger::sums(), Model::new(geometry));
    engine.event(cpu, &Event::Control(Control::Cr3(Cr3::flushing(root.base()))), &mut out).unwrap();
    let mut last = None;
    for page in stream.iter().filter(|page| last.replace(**page) != Some(**page)) {
        engine.accesses(cpu, &[Acc::user(gva(*page), AccessKind::Read)], Horizon::Open, &mut out);
        model.walk(gva(*page).as_u64() & ((1 << 57) - 1), &[], 0, false);
    }
    model.agrees(&out.counters.caches, [out.counters.refs.guest, 0]);
    (out.counters.refs.total() as f64 / out.counters.walks as f64, out.counters.caches)
}

fn near(value: f64, expected: f64) {
    assert!((value - expected).abs() < 0.001, "{value} is not about {expected}");
}

/// Page after page: 511 of 512 walks find the PDE and read the PTE alone; the next one finds the PDPTE and reads PDE and PTE. So a
/// walk makes 1 + 1/512 references, and 5/32768 more for the upper levels of the very first and what 128 MiB crosses.
#[test]
fn sequential_pages_cost_one_reference_on_the_bare_machine() {
    let (mean, counts) = native(&sequential(), &skylake());
    near(mean, 1.0 + 1.0 / 512.0);
    assert_eq!(counts.guest.hits, [PAGES - PAGES / 512, PAGES / 512 - 1, 0, 0]);
}

/// The guest's PDE is found, its PTE's table is a page of the nested TLB: one reference reads the PTE. The data's page is new to
/// the nested TLB, the nested PDE above it is found: one reference reads the nested PTE. Every 512 pages come four more: the guest's
/// PDE, whose table has left the nested TLB long ago (its nested PTE), the new table's nested PTE, the next nested PDE over the
/// data. So 2 + 4/512.
#[test]
fn sequential_pages_cost_two_references_with_a_nested_tlb() {
    let (mean, counts) = nested(&sequential(), &skylake());
    near(mean, 2.0 + 4.0 / 512.0);
    assert!(counts.nested.hits >= PAGES - PAGES / 512 && counts.nested.hits < PAGES + PAGES / 512);
}

/// Without one, the address of the PTE needs its nested PTE each time too: 3. Every 512 pages come three more, for the new table's
/// nested PTE is now one of those.
#[test]
fn sequential_pages_cost_three_references_without_a_nested_tlb() {
    let (mean, _) = nested(&sequential(), &MmuGeometry { nested_tlb: None, ..skylake() });
    near(mean, 3.0 + 3.0 / 512.0);
}

/// 64 PDEs compete for 32 places: at random half of the walks find theirs, the others the PDPTE, so that a walk on the bare
/// machine makes 1.5 references; Zipf's popular pages lie anywhere and are only a little kinder.
#[test]
fn random_pages_find_half_of_64_entries_in_a_cache_of_32() {
    let (mean, counts) = native(&random(), &skylake());
    let share = counts.guest.hits[0] as f64 / (counts.guest.hits.iter().sum::<u64>() + counts.guest.misses) as f64;
    assert!((share - 0.5).abs() < 0.01 && (mean - 1.5).abs() < 0.01, "{share}, {mean}");
    let (popular, _) = native(&zipf(), &skylake());
    assert!(popular < mean, "{popular}");
}

/// With fewer than all caches each stream still equals the model in every count; with all of them it is cheaper than with any
/// fewer, and never cheaper than the two references of the guest's leaf and the data's.
#[test]
fn every_cache_saves_references() {
    for stream in [sequential(), zipf(), random()] {
        let all = skylake();
        let (best, _) = nested(&stream, &all);
        assert!(best >= 1.0);
        for fewer in [
            MmuGeometry { guest: WalkGeometry::NONE, ..all },
            MmuGeometry { host: WalkGeometry::NONE, ..all },
            MmuGeometry { nested_tlb: None, ..all },
        ] {
            assert!(nested(&stream, &fewer).0 > best);
        }
        let (none, counts) = nested(&stream, &MmuGeometry::default());
        near(none, 24.0);
        assert_eq!((counts.guest.misses, counts.host.misses), (stream.len() as u64, 5 * stream.len() as u64));
    }
}
