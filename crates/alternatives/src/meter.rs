//! What hardware has at hand while it walks: the caches of its CPU, and a [`Meter`] that counts every reference and locked
//! update and shows them to a probe.

use memvirt_addr::{Acc, Gpa, Gva, HostPhys, Hpa, Level};
use memvirt_pagetable::{Attrs, PhysMem};
use memvirt_platform::{CacheHit, Caches, Counters, Cx, Dimension, Partial, Probe, Reference, Regs, Update, WalkRefs};
use memvirt_tlb::{NestedEntry, Perms};

/// Whether the host walk for the data's own address is in the count. The literature reports some designs with it and some
/// without. The walk is made either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DataReference {
    /// It is; the default.
    #[default]
    Counted,
    /// It is not, and a probe does not see it.
    Omitted,
}

/// Counts a walk, shows it to a probe `P`, and keeps what may be kept in the caches `C`.
#[derive(Debug)]
pub struct Meter<'p, P, C = ()> {
    probe: &'p mut P,
    caches: C,
    /// Whether the walk looks into the caches, and whether it has found anything there.
    looks: bool,
    found: bool,
    /// Whether anything was read.
    walked: bool,
    data: DataReference,
    /// The references so far.
    pub refs: WalkRefs,
    /// The locked updates so far.
    pub ad_updates: u64,
    /// Those of them that went to entries of the host.
    pub ad_updates_host: u64,
}

impl<'p, P: Probe> Meter<'p, P> {
    /// A meter of hardware without walk caches, which has counted nothing.
    #[must_use]
    pub fn new(probe: &'p mut P) -> Self {
        Self::with_caches(probe, ())
    }
}

/// Set in the permissions of a cached entry that leads to a guest table named by its guest frame; without, the table is a
/// shadow table, or with [`memvirt_shadow::store::SWITCH`] a guest table named by its host frame.
pub(crate) const GUEST_TABLE: Attrs = Attrs::SOFT_1;

impl<'p, P: Probe, C: Caches> Meter<'p, P, C> {
    /// A meter of hardware with these caches.
    #[must_use]
    pub fn with_caches(probe: &'p mut P, caches: C) -> Self {
        let refs = WalkRefs::default();
        let (looks, data) = (C::ANY, DataReference::Counted);
        Self { probe, caches, looks, found: false, walked: false, data, refs, ad_updates: 0, ad_updates_host: 0 }
    }

    /// The same, counting the data's own translation or not.
    #[must_use]
    pub const fn with_data(mut self, data: DataReference) -> Self {
        self.data = data;
        self
    }

    /// One reference.
    #[inline]
    pub fn reference(&mut self, reference: &Reference) {
        self.walked = true;
        if reference.dimension == Dimension::Host
            && reference.guest_level.is_none()
            && self.data == DataReference::Omitted
        {
            return;
        }
        match reference.dimension {
            Dimension::Guest => self.refs.guest += 1,
            Dimension::Shadow => self.refs.shadow += 1,
            Dimension::Host => self.refs.host += 1,
        }
        self.probe.reference(reference);
    }

    /// One reference to a host entry of `level` that helps to translate `gpa`.
    #[inline]
    pub(crate) fn host(&mut self, serves: Option<Level>, level: Level, entry_at: Hpa, gpa: Gpa, raw: u64) {
        let dimension = Dimension::Host;
        self.reference(&Reference { dimension, guest_level: serves, level, entry_at, gpa, raw });
    }

    /// One locked update.
    pub fn update(&mut self, dimension: Dimension, level: Level, entry_at: Hpa, set: u64) {
        self.ad_updates += 1;
        self.ad_updates_host += u64::from(dimension == Dimension::Host);
        self.probe.update(&Update { dimension, level, entry_at, set });
    }

    /// Enters one hardware walk in the ledger's sums; a translation by registers alone was none.
    pub fn enter(&self, counters: &mut Counters) {
        if self.walked {
            counters.add_walk(self.refs, self.ad_updates, self.ad_updates_host);
        }
    }

    /// The deepest table on the way to `gva` that is known.
    #[inline]
    pub(crate) fn known(&mut self, gva: Gva, shadow: bool) -> Option<(Level, Partial<HostPhys>)> {
        if !self.looks {
            return None;
        }
        let (level, entry) = self.caches.guest(gva)?;
        self.found = true;
        let shadow = shadow && !entry.perms.contains(GUEST_TABLE);
        let dimension = if shadow { Dimension::Shadow } else { Dimension::Guest };
        self.probe.cached(CacheHit::Walk(dimension, level));
        Some((level, entry))
    }

    /// Keeps what an entry of `level` on the way to `gva` leads to.
    #[inline]
    pub(crate) fn keep(&mut self, gva: Gva, level: Level, entry: Partial<HostPhys>) {
        self.caches.keep_guest(gva, level, entry);
    }

    /// The deepest table of the host's tree on the way to `gpa` that is known.
    #[inline]
    pub(crate) fn known_host(&mut self, gpa: Gpa) -> Option<(Level, Partial<HostPhys>)> {
        if !self.looks {
            return None;
        }
        let (level, entry) = self.caches.host(gpa)?;
        self.found = true;
        self.probe.cached(CacheHit::Walk(Dimension::Host, level));
        Some((level, entry))
    }

    /// Keeps what an entry of the host's tree leads to.
    #[inline]
    pub(crate) fn keep_host(&mut self, gpa: Gpa, level: Level, entry: Partial<HostPhys>) {
        self.caches.keep_host(gpa, level, entry);
    }

    /// The host page of `gpa`, where the nested TLB has it and permits `need`.
    #[inline]
    pub(crate) fn page(&mut self, gpa: Gpa, need: Perms) -> Option<NestedEntry> {
        if !self.looks {
            return None;
        }
        let page = self.caches.page(gpa, need)?;
        self.found = true;
        self.probe.cached(CacheHit::NestedTlb);
        Some(page)
    }

    /// Keeps a host page in the nested TLB.
    #[inline]
    pub(crate) fn keep_page(&mut self, page: NestedEntry) {
        self.caches.keep_page(page);
    }

    /// A walk ended in a fault. Where it used the caches they forget what they told, and it is to be made once more, without
    /// them: true. (What AMD documents; see `memvirt_platform::mmu`.)
    pub(crate) fn again(&mut self, gva: Gva, gpa: Option<Gpa>) -> bool {
        if !C::ANY || !self.found || !self.looks {
            return false;
        }
        self.caches.forget_guest(gva);
        if let Some(gpa) = gpa {
            self.caches.forget_host(gpa);
        }
        self.looks = false;
        true
    }
}

/// A walk that any CPU can make, with caches or without.
pub(crate) trait Job {
    /// How it ends.
    type End;

    /// Whether the data's own translation counts.
    fn data(&self) -> DataReference {
        DataReference::Counted
    }

    /// Makes it.
    fn run<P: Probe, C: Caches>(
        self,
        mem: &mut PhysMem<HostPhys>,
        regs: &Regs,
        acc: Acc,
        meter: &mut Meter<'_, P, C>,
    ) -> Self::End;
}

/// Makes a walk on the vCPU's CPU and enters it in the ledger.
#[inline]
pub(crate) fn on_cpu<J: Job>(cx: &mut Cx<'_>, acc: Acc, job: J) -> J::End {
    let vcpu = &cx.vcpus[cx.me.index()];
    let (mem, regs) = (&mut cx.host.mem, &vcpu.regs);
    match cx.cpus[vcpu.cpu].mmu.as_deref_mut() {
        None => {
            let mut nobody = ();
            let mut meter = Meter::new(&mut nobody).with_data(job.data());
            let end = job.run(mem, regs, acc, &mut meter);
            meter.enter(&mut cx.out.counters);
            end
        }
        Some(mmu) => {
            core::hint::cold_path();
            let (caches, listener) = mmu.walk(vcpu.tag(), cx.vm.0);
            let mut meter = Meter::with_caches(listener, caches).with_data(job.data());
            let end = job.run(mem, regs, acc, &mut meter);
            meter.enter(&mut cx.out.counters);
            end
        }
    }
}

/// Makes a walk without caches, shown to `probe`, and counts it nowhere.
pub(crate) fn shown<J: Job, P: Probe>(cx: &mut Cx<'_>, acc: Acc, job: J, probe: &mut P) -> J::End {
    let (regs, data) = (*cx.regs(), job.data());
    job.run(&mut cx.host.mem, &regs, acc, &mut Meter::new(probe).with_data(data))
}
