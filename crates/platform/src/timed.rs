//! The mode `cycles`: every access is followed to the cache line, of its tables and of its data.
//!
//! What is charged, and where it is entered ([`Account`]):
//!
//! * Each table reference of a hardware walk, to the level of the cache hierarchy that holds its line, by dimension, guest level
//!   and level of the entry. Each hit in a paging-structure cache or in the nested TLB. A walk that ends in a fault or an exit is
//!   charged like any other. Accessed and dirty bits are counted by [`Counters`](crate::Counters); their line was read just before.
//! * After the walk, the line of the data at its host-physical address, by a program's accesses and by those events of the
//!   guest's kernel that load and store (page-table entries through its direct map; each element of a `rep stos`). Loads, stores
//!   and fetches are alike: one first level for all.
//! * **Not** charged here, and without effect on the lines: what the exit handlers of a hypervisor read and store (priced by
//!   [`Work`](crate::Work)), accesses that a hypervisor carries out itself, clearing and copying of pages by the guest's kernel
//!   and its other instructions (priced by what they do), a boot loader's stores.
//!
//! **Several walkers.** With one walker, walks follow one another and each reference counts. With `W` walkers the hardware works
//! on several misses at a time. The model: a walk that ends in a translation opens a group; a later walk that also ends in a
//! translation joins it, where the group has fewer than `W` walks and the access is at most [`WINDOW`] accesses after the one that
//! opened it; otherwise it opens the next group. An exit, a fault, an event, or the end of a run closes a group. The program waits
//! for the longest walk of a group (the earliest of equals); its references are entered in [`Account::walks`], those of the
//! others in [`Account::overlapped`]. Lines are referenced in program order all the same.
//!
//! Nothing of this is touched in the mode `counts`: one branch for each run of accesses, one for each miss.

use core::num::NonZeroU32;

use memvirt_addr::{Acc, Gva, Hpa, Level};
use memvirt_cache::{CacheHierarchy, CoreCaches, Purpose, Served, SharedCache};
use memvirt_ops::VcpuId;

use crate::account::{Account, Cells, ServedBy, purpose_of};
use crate::engine::{Done, Engine, Regime, Request};
use crate::ledger::Ledger;
use crate::mmu::{Listener, Mmu, MmuGeometry};
use crate::probe::{CacheHit, Dimension, Probe, Reference};
use crate::seam::{Horizon, Stop};

/// How many accesses ahead of the oldest unfinished walk another may begin. Estimate: a reorder buffer of 224 instructions
/// (Skylake; Intel optimization reference manual) at seven instructions an access.
pub const WINDOW: usize = 32;

/// What the mode `cycles` needs to know of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimingSpec {
    /// The caches. Their latencies decide which walk of an overlapping group is the longest, nothing else.
    pub caches: CacheHierarchy,
    /// A hit in a paging-structure cache or the nested TLB, in cycles.
    pub walk_cache_cycles: u32,
    /// How many walks the hardware makes at a time; 1 by default.
    pub walkers: NonZeroU32,
}

impl TimingSpec {
    /// Cycles of a reference, or of what saved it.
    #[must_use]
    #[inline]
    pub const fn latency_cycles(&self, served: ServedBy) -> u32 {
        match served {
            ServedBy::WalkCache | ServedBy::NestedTlb => self.walk_cache_cycles,
            ServedBy::L1 => self.caches.latency_cycles(Served::L1),
            ServedBy::L2 => self.caches.latency_cycles(Served::L2),
            ServedBy::Llc => self.caches.latency_cycles(Served::Llc),
            ServedBy::Dram => self.caches.latency_cycles(Served::Dram),
        }
    }
}

/// One thing that a walk did, as it was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Item {
    Reference(Purpose, Hpa),
    Cached(CacheHit),
}

/// What the walks of a CPU did since somebody last looked: the [`Probe`] of the mode `cycles`.
#[derive(Debug, Default)]
pub struct Heard(Vec<Item>);

impl Probe for Heard {
    #[inline]
    fn reference(&mut self, reference: &Reference) {
        self.0.push(Item::Reference(purpose_of(reference), reference.entry_at));
    }

    #[inline]
    fn cached(&mut self, hit: CacheHit) {
        self.0.push(Item::Cached(hit));
    }
}

/// Where a hit in a cache of walks is entered: what it saved is told by what the walk does next.
fn purpose_of_hit(hit: CacheHit, next: Option<&Item>) -> (Purpose, ServedBy) {
    let next = match next {
        Some(Item::Reference(purpose, _)) => Some(*purpose),
        Some(Item::Cached(_)) | None => None,
    };
    match hit {
        CacheHit::Walk(Dimension::Guest, level) => (Purpose::guest(level), ServedBy::WalkCache),
        CacheHit::Walk(Dimension::Shadow, level) => (Purpose::shadow(level), ServedBy::WalkCache),
        CacheHit::Walk(Dimension::Host, level) => {
            let serves = if let Some(Purpose::Nested { serves, .. }) = next { serves } else { None };
            (Purpose::nested(serves, level), ServedBy::WalkCache)
        }
        CacheHit::NestedTlb => {
            let serves = if let Some(Purpose::Guest { level }) = next { Some(level) } else { None };
            (Purpose::nested(serves, Level::L1), ServedBy::NestedTlb)
        }
    }
}

/// Whether a walk may overlap with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overlap {
    /// It ended in a translation.
    May,
    /// It ended in a fault or an exit.
    No,
}

type Met = (Purpose, ServedBy);

/// Walks that overlap: the longest so far.
#[derive(Debug, Default)]
struct Group {
    walks: u32,
    first: usize,
    longest: Vec<Met>,
    longest_cycles: u64,
}

impl Group {
    fn close(&mut self, account: &mut Account) {
        enter(&mut account.walks, &mut self.longest);
        self.walks = 0;
        self.longest_cycles = 0;
    }
}

fn enter(cells: &mut Cells, met: &mut Vec<Met>) {
    for (purpose, served) in met.drain(..) {
        cells.count(purpose, served);
    }
}

#[derive(Debug)]
struct Core {
    caches: CoreCaches,
    group: Group,
    met: Vec<Met>,
}

/// The caches of all CPUs, and what is under way in them.
#[derive(Debug)]
pub(crate) struct Timing {
    spec: TimingSpec,
    cores: Vec<Core>,
    shared: SharedCache,
}

impl Timing {
    fn new(spec: TimingSpec, cpus: usize) -> Self {
        let core = || Core { caches: CoreCaches::new(&spec.caches), group: Group::default(), met: Vec::new() };
        Self { spec, cores: (0..cpus).map(|_| core()).collect(), shared: SharedCache::new(&spec.caches) }
    }

    /// Charges what was heard of one walk of a CPU, for the access at index `at` of its run.
    pub(crate) fn walked(&mut self, cpu: usize, heard: &mut Heard, at: usize, overlap: Overlap, out: &mut Ledger) {
        let core = &mut self.cores[cpu];
        let mut cycles = 0;
        for (i, item) in heard.0.iter().enumerate() {
            let (purpose, served) = match *item {
                Item::Reference(purpose, at) => (purpose, core.caches.access(&mut self.shared, at, purpose).into()),
                Item::Cached(hit) => purpose_of_hit(hit, heard.0.get(i + 1)),
            };
            cycles += u64::from(self.spec.latency_cycles(served));
            core.met.push((purpose, served));
        }
        heard.0.clear();
        let account = out.account();
        if overlap == Overlap::No || self.spec.walkers.get() == 1 {
            core.group.close(account);
            enter(&mut account.walks, &mut core.met);
            return;
        }
        let group = &mut core.group;
        if group.walks == self.spec.walkers.get() || (group.walks > 0 && at - group.first > WINDOW) {
            group.close(account);
        }
        if group.walks == 0 {
            group.first = at;
        }
        group.walks += 1;
        if cycles > group.longest_cycles {
            core::mem::swap(&mut group.longest, &mut core.met);
            group.longest_cycles = cycles;
        }
        enter(&mut account.overlapped, &mut core.met);
    }

    /// Charges one reference to data.
    #[inline]
    pub(crate) fn data(&mut self, cpu: usize, at: Hpa, out: &mut Ledger) {
        let served = self.cores[cpu].caches.access(&mut self.shared, at, Purpose::Data);
        out.account().data.count(Purpose::Data, served.into());
    }

    /// Waits for the walks under way.
    pub(crate) fn settle(&mut self, cpu: usize, out: &mut Ledger) {
        self.cores[cpu].group.close(out.account());
    }
}

impl<R: Regime> Engine<R> {
    /// The same in the mode `cycles`: with caches for lines of tables and data, private levels for each CPU and one last level
    /// for all. What they served is entered in [`Ledger::served`].
    #[must_use]
    pub fn with_timing(mut self, spec: TimingSpec) -> Self {
        self.timing = Some(Box::new(Timing::new(spec, self.cpus.len())));
        for cpu in &mut self.cpus {
            let mmu = cpu.mmu.get_or_insert_with(|| Box::new(Mmu::new(&MmuGeometry::default())));
            mmu.listener = Listener::Clock(Box::default());
        }
        self
    }

    /// [`Platform::accesses`](crate::Platform::accesses) in the mode `cycles`: one by one, each followed to its line.
    pub(crate) fn timed_accesses(
        &mut self,
        v: VcpuId,
        run: &[Acc],
        horizon: Horizon,
        out: &mut Ledger,
    ) -> (usize, Stop) {
        let vcpu = &self.vcpus[v.index()];
        let (cpu, tag) = (vcpu.cpu, vcpu.tag());
        let mut stop = Stop::Done;
        let mut done = 0;
        for acc in run {
            let served = match self.cpus[cpu].tlb.lookup(tag, *acc) {
                Some(entry) => Ok(Done::Through(entry)),
                None => {
                    let request = Request { acc: *acc, store: None, ip: Gva::ZERO, element: 0 };
                    self.serve(v, &request, done, horizon, out)
                }
            };
            match served {
                Ok(Done::Through(entry)) => {
                    let gva = acc.gva();
                    self.touch(cpu, entry.frame_of(gva).at(gva.as_u64()), out);
                }
                Ok(Done::Emulated | Done::EmulatedAll) => {}
                Err(why) => {
                    stop = why;
                    break;
                }
            }
            done += 1;
        }
        self.settle(cpu, out);
        (done, stop)
    }

    /// Charges what a CPU's last walk did, where time is kept.
    #[inline]
    pub(crate) fn walked(&mut self, cpu: usize, at: usize, overlap: Overlap, out: &mut Ledger) {
        if let Some(timing) = &mut self.timing {
            core::hint::cold_path();
            if let Some(Listener::Clock(heard)) = self.cpus[cpu].mmu.as_mut().map(|mmu| &mut mmu.listener) {
                timing.walked(cpu, heard, at, overlap, out);
            }
        }
    }

    /// Charges a reference of a CPU to data, where time is kept.
    #[inline]
    pub(crate) fn touch(&mut self, cpu: usize, at: Hpa, out: &mut Ledger) {
        if let Some(timing) = &mut self.timing {
            timing.data(cpu, at, out);
        }
    }

    /// Waits for the walks under way on a CPU, where time is kept.
    #[inline]
    pub(crate) fn settle(&mut self, cpu: usize, out: &mut Ledger) {
        if let Some(timing) = &mut self.timing {
            timing.settle(cpu, out);
        }
    }
}
