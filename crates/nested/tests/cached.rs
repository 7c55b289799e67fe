//! Two machines that are alike but for their walk caches do the same: every translation and fault, every accessed and dirty bit
//! in either dimension, for any caches and any stream of accesses and changes of the tables, where those are flushed that the
//! architecture demands (Intel SDM volume 3, sections 4.10.4.2 and 28.3.3.4), and no others.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use core::cell::Cell;
use core::marker::PhantomData;

use memvirt_addr::{
    Acc, AccessKind, Gfn, Gpa, GuestPhys, GuestVirt, Gva, Hfn, HostPhys, Hpa, Level, PageSize, Privilege,
};
use memvirt_nested::{AdBits, End, SecondStage, Walker};
use memvirt_ops::arch::Cr3;
use memvirt_pagetable::{
    Attrs, Ept, Format, FramePool, LongMode, Mapper, PhysMem, TableAttrs, TableMem, walk as walk_one,
};
use memvirt_platform::{Backed, Cpu, Mmu, MmuGeometry, Regs, tlb_entry};
use memvirt_testkit::caches::any_caches;
use memvirt_tlb::{Geometry, KeepGlobal, Tag};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

const VPID: u16 = 1;
const ROOT: u16 = 1;
const GIB: u64 = 1 << 30;
/// Guest memory of 2 GiB lies at 2 GiB of the host; behind it the nested tables.
const HOST_BASE: u64 = 2 * GIB;
const NESTED_TABLES: u64 = (4 * GIB) >> 12;
const TABLES: u64 = 96;

/// Guest-physical pages that data lies in; tables lie in the first frames.
const DATA: [u64; 4] = [0x40_0000, 0x60_0000, 0x60_5000, GIB];
const GUEST_PAGES: usize = 32;
const NESTED_PAGES: usize = 16;

#[derive(Clone, Copy, Debug)]
enum Step {
    Access(usize, AccessKind, Privilege),
    Map(usize, PageSize, usize, Attrs),
    Unmap(usize),
    /// Changes the writable or user bit of the entry of a level, and flushes where that takes something away.
    Guest(usize, Level, Attrs, bool),
    /// Clears the accessed and dirty bits of the entry of a level.
    GuestAge(usize, Level),
    Process(usize),
    Pge,
    HostMap(usize, PageSize),
    HostUnmap(usize),
    Host(usize, Level, Attrs, bool),
    HostAge(usize, Level),
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![4 => Just(AccessKind::Read), 4 => Just(AccessKind::Write), 1 => Just(AccessKind::Fetch)];
    let privilege = prop_oneof![4 => Just(Privilege::User), 1 => Just(Privilege::Supervisor)];
    let size = || prop_oneof![4 => Just(PageSize::Size4K), 2 => Just(PageSize::Size2M), 1 => Just(PageSize::Size1G)];
    let level = || prop::sample::select(Level::ALL.to_vec());
    let all = Attrs::RWX | Attrs::USER;
    let attrs =
        prop_oneof![4 => Just(all), 1 => Just(all - Attrs::WRITE), 1 => Just((all - Attrs::EXEC) | Attrs::GLOBAL)];
    let bit = || prop_oneof![Just(Attrs::WRITE), Just(Attrs::EXEC), Just(Attrs::USER)];
    let (guest, nested) = (|| 0..GUEST_PAGES, || 0..NESTED_PAGES);
    prop_oneof![
        60 => (guest(), kind, privilege).prop_map(|(page, kind, privilege)| Step::Access(page, kind, privilege)),
        8 => (guest(), size(), 0..DATA.len(), attrs).prop_map(|(page, size, data, attrs)| Step::Map(page, size, data, attrs)),
        2 => guest().prop_map(Step::Unmap),
        5 => (guest(), level(), bit(), any::<bool>()).prop_map(|(page, level, bit, on)| Step::Guest(page, level, bit, on)),
        3 => (guest(), level()).prop_map(|(page, level)| Step::GuestAge(page, level)),
        6 => (0..2usize).prop_map(Step::Process),
        1 => Just(Step::Pge),
        8 => (nested(), size()).prop_map(|(page, size)| Step::HostMap(page, size)),
        2 => nested().prop_map(Step::HostUnmap),
        5 => (nested(), level(), bit(), any::<bool>()).prop_map(|(page, level, bit, on)| Step::Host(page, level, bit, on)),
        3 => (nested(), level()).prop_map(|(page, level)| Step::HostAge(page, level)),
    ]
}

/// Addresses that share upper levels in every way.
fn gva(page: usize) -> Gva {
    let bit = |i: usize| (page >> i & 1) as u64;
    Gva::new(bit(4) << 48 | bit(3) << 39 | bit(2) << 30 | bit(1) << 21 | bit(0) << 12)
}

/// What of guest-physical memory the host maps and takes away: table frames one by one, and the pages of data.
fn gpa(page: usize) -> Gpa {
    Gpa::new(if page < DATA.len() { DATA[page] } else { ((page - DATA.len()) as u64) << 12 })
}

/// Guest-physical memory, as the guest's kernel reaches it.
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

/// One of the two machines.
struct World<G, H> {
    mem: PhysMem<HostPhys>,
    guest_pool: FramePool<GuestPhys>,
    nested_pool: FramePool<HostPhys>,
    roots: [Gfn; 2],
    nested_root: Hfn,
    process: usize,
    ad: AdBits,
    cpu: Cpu,
    formats: PhantomData<(G, H)>,
}

impl<G: Format<In = GuestVirt, Out = GuestPhys>, H: SecondStage> World<G, H> {
    fn new(ad: AdBits, caches: Option<&MmuGeometry>) -> Self {
        let mut mem = PhysMem::new(NESTED_TABLES + 512);
        let mut guest_pool = FramePool::new(Gfn::new(1), TABLES);
        let mut nested_pool = FramePool::new(Hfn::new(NESTED_TABLES), 512);
        let mut view = View(&mut mem);
        let roots = [0, 1].map(|process| {
            let mut mapper = Mapper::<G, _>::create(&mut view, &mut guest_pool, TableAttrs::USER).unwrap();
            for page in 0..GUEST_PAGES {
                let data = Gpa::new(DATA[(page + process) % DATA.len()]).frame();
                let attrs = Attrs::RWX | Attrs::USER;
                let _ = mapper.map(gva(page), data, PageSize::Size4K, attrs, &mut guest_pool);
            }
            mapper.root()
        });
        let mut nested = Mapper::<H, _>::create(&mut mem, &mut nested_pool, TableAttrs::new(H::TABLE)).unwrap();
        let nested_root = nested.root();
        nested.map(Gpa::ZERO, behind(Gpa::ZERO).frame(), PageSize::Size2M, H::LEAF, &mut nested_pool).unwrap();
        let mut cpu = Cpu::new(&Geometry::default());
        cpu.mmu = caches.map(|geometry| Box::new(Mmu::new(geometry)));
        Self { mem, guest_pool, nested_pool, roots, nested_root, process: 0, ad, cpu, formats: PhantomData }
    }

    fn tag(&self) -> Tag {
        Tag::new(VPID, u16::try_from(self.process).unwrap())
    }

    fn access(&mut self, acc: Acc) -> (Result<memvirt_tlb::Entry, End>, u64) {
        let regs = Regs::kernel(Cr3::flushing(self.roots[self.process].base()));
        let (tag, mem) = (self.tag(), &mut self.mem);
        let (end, counts) = match self.cpu.mmu.as_deref_mut() {
            None => {
                let mut unseen = ();
                let mut walker = Walker::<G, H, _>::new(mem, self.nested_root, self.ad, &mut unseen);
                (walker.walk(&regs, acc), walker.counts)
            }
            Some(mmu) => {
                let (caches, probe) = mmu.walk(tag, ROOT);
                let mut walker = Walker::<G, H, _>::new(mem, self.nested_root, self.ad, probe).with_caches(caches);
                (walker.walk(&regs, acc), walker.counts)
            }
        };
        let done = match end {
            End::Mapped(found) => {
                let backed = Backed { frame: found.frame, size: found.host_size };
                Ok(tlb_entry(acc, backed, found.guest_size, found.perms, found.dirty))
            }
            End::GuestFault(_) => {
                self.cpu.page_fault(tag, acc.gva());
                Err(end)
            }
            End::Violation(violation) => {
                let linear = violation.on_data.then_some((tag, acc.gva()));
                self.cpu.violation(ROOT, violation.gpa, linear);
                Err(end)
            }
            End::Misconfig(_) | End::LogFull => Err(end),
        };
        (done, counts.guest + counts.host)
    }

    /// What a hypervisor does about a violation: maps what is not there, permits what is forbidden. Neither needs a flush.
    fn heal(&mut self, at: Gpa) {
        let mut mapper = Mapper::<H, _>::new(&mut self.mem, self.nested_root, TableAttrs::new(H::TABLE));
        let at = at.frame().base();
        let _ = mapper.map(at, behind(at).frame(), PageSize::Size4K, H::LEAF, &mut self.nested_pool);
        let path = walk_one::<H, _>(&self.mem, self.nested_root, at);
        let steps: Vec<_> = path.steps().map(|step| (step.entry_at, step.level)).collect();
        for (at, level) in steps {
            self.change::<H>(at, level, |attrs| attrs | Attrs::RWX | Attrs::USER);
        }
    }

    /// Where the entry of `level` on the way to `at` lies, if the tables reach so far.
    fn guest_entry(&mut self, page: usize, level: Level) -> Option<Gpa> {
        let path = walk_one::<G, _>(&View(&mut self.mem), self.roots[self.process], gva(page));
        path.steps().find(|step| step.level == level).map(|step| step.entry_at)
    }

    fn host_entry(&self, page: usize, level: Level) -> Option<Hpa> {
        let path = walk_one::<H, _>(&self.mem, self.nested_root, gpa(page));
        path.steps().find(|step| step.level == level).map(|step| step.entry_at)
    }

    /// Changes a present entry; whether that took a permission, or an accessed or dirty bit, away.
    fn change<F: Format>(&mut self, at: Hpa, level: Level, change: impl FnOnce(Attrs) -> Attrs) -> bool {
        let old = F::decode(self.mem.read(at), level);
        if !old.is_present() {
            return false;
        }
        let new = old.map_attrs(change);
        self.mem.write(at, F::encode(new, level));
        !new.attrs().contains(old.attrs())
    }

    fn invlpg(&mut self, page: usize) {
        let tag = self.tag();
        self.cpu.flush_page(tag, gva(page));
    }

    fn apply(&mut self, step: Step) {
        let root = self.roots[self.process];
        match step {
            Step::Access(..) => {}
            Step::Map(page, size, data, attrs) => {
                let mut view = View(&mut self.mem);
                let mut mapper = Mapper::<G, _>::new(&mut view, root, TableAttrs::USER);
                let frame = Gpa::new(DATA[data]).frame().align_down(size);
                let _ = mapper.map(gva(page).align_down(size), frame, size, attrs, &mut self.guest_pool);
            }
            Step::Unmap(page) => {
                let mut view = View(&mut self.mem);
                let _ = Mapper::<G, _>::new(&mut view, root, TableAttrs::USER).unmap(gva(page));
                self.invlpg(page);
            }
            Step::Guest(page, level, bit, on) => {
                if let Some(at) = self.guest_entry(page, level)
                    && self.change::<G>(behind(at), level, |attrs| if on { attrs | bit } else { attrs - bit })
                {
                    self.invlpg(page);
                }
            }
            Step::GuestAge(page, level) => {
                if let Some(at) = self.guest_entry(page, level)
                    && self.change::<G>(behind(at), level, |attrs| attrs - Attrs::ACCESSED - Attrs::DIRTY)
                {
                    self.invlpg(page);
                }
            }
            Step::Process(process) => self.process = process,
            Step::Pge => self.cpu.flush_vpid(VPID, KeepGlobal::No),
            Step::HostMap(page, size) => {
                let at = gpa(page).align_down(size);
                let mut mapper = Mapper::<H, _>::new(&mut self.mem, self.nested_root, TableAttrs::new(H::TABLE));
                let _ = mapper.map(at, behind(at).frame(), size, H::LEAF, &mut self.nested_pool);
            }
            Step::HostUnmap(page) => {
                let mut mapper = Mapper::<H, _>::new(&mut self.mem, self.nested_root, TableAttrs::new(H::TABLE));
                let _ = mapper.unmap(gpa(page));
                self.cpu.flush_root(VPID, ROOT);
            }
            Step::Host(page, level, bit, on) => {
                if let Some(at) = self.host_entry(page, level)
                    && self.change::<H>(at, level, |attrs| if on { attrs | bit } else { attrs - bit })
                {
                    self.cpu.flush_root(VPID, ROOT);
                }
            }
            Step::HostAge(page, level) => {
                if let Some(at) = self.host_entry(page, level)
                    && self.change::<H>(at, level, |attrs| attrs - Attrs::ACCESSED - Attrs::DIRTY)
                {
                    self.cpu.flush_root(VPID, ROOT);
                }
            }
        }
    }

    /// All tables of both dimensions.
    fn tables(&self) -> impl Iterator<Item = [u64; 512]> {
        let guest = (0..=TABLES).map(|gfn| behind(Gfn::new(gfn).base()).frame());
        let nested = (0..512).map(|i| Hfn::new(NESTED_TABLES + i));
        guest.chain(nested).map(|frame| *self.mem.words(frame))
    }
}

/// Whether the results are the same. What the tables have come to permit since an entry was cached, without a flush, hardware
/// need not see before an access asks for it.
fn agree(with: Result<memvirt_tlb::Entry, End>, without: Result<memvirt_tlb::Entry, End>) -> bool {
    match (with, without) {
        (Ok(one), Ok(other)) => {
            other.perms.contains(one.perms) && one == memvirt_tlb::Entry { perms: one.perms, ..other }
        }
        (one, other) => one == other,
    }
}

fn alike<G: Format<In = GuestVirt, Out = GuestPhys>, H: SecondStage>(ad: AdBits) {
    let config = Config { failure_persistence: None, max_shrink_iters: 500, ..memvirt_properties::cases(60) };
    let (hits, saved) = (Cell::new(0), Cell::new(0));
    let result =
        TestRunner::new(config).run(&(any_caches(), prop::collection::vec(step(), 1..250)), |(caches, steps)| {
            let (mut with, mut without) = (World::<G, H>::new(ad, Some(&caches)), World::<G, H>::new(ad, None));
            for step in steps {
                with.apply(step);
                without.apply(step);
                let Step::Access(page, kind, privilege) = step else { continue };
                let acc = Acc::new(gva(page), kind, privilege);
                for _ in 0..12 {
                    let ((one, refs), (other, all)) = (with.access(acc), without.access(acc));
                    prop_assert!(agree(one, other), "{:?}: with {:?}, without {:?}", acc, one, other);
                    let Err(End::Violation(violation)) = one else {
                        saved.set(saved.get() + all.saturating_sub(refs));
                        break;
                    };
                    with.heal(violation.gpa);
                    without.heal(violation.gpa);
                }
                // What a walk without caches would set, one with caches has set.
                prop_assert!(with.tables().eq(without.tables()), "the tables differ after {:?}", acc);
            }
            let counts = with.cpu.mmu.as_ref().unwrap().counts();
            let found = [counts.guest.hits.iter().sum(), counts.host.hits.iter().sum::<u64>(), counts.nested.hits];
            hits.set(hits.get() + u64::from(found.into_iter().all(|hits: u64| hits > 0)));
            Ok(())
        });
    if let Err(failure) = result {
        panic!("{failure}");
    }
    assert!(hits.get() > 10, "only {} runs hit in every cache", hits.get());
    assert!(saved.get() > 10_000, "only {} references saved", saved.get());
}

#[test]
fn with_caches_and_without_4_by_4_is_alike() {
    alike::<LongMode<4>, Ept<4>>(AdBits::On);
    alike::<LongMode<4>, LongMode<4, GuestPhys, HostPhys>>(AdBits::On);
}

#[test]
fn with_caches_and_without_5_by_5_is_alike() {
    alike::<LongMode<5>, Ept<5>>(AdBits::On);
    alike::<LongMode<5>, LongMode<5, GuestPhys, HostPhys>>(AdBits::On);
}

#[test]
fn with_caches_and_without_nested_accessed_bits_is_alike() {
    alike::<LongMode<4>, Ept<4>>(AdBits::Off);
    alike::<LongMode<5>, Ept<4>>(AdBits::Off);
}
