//! What hardware keeps between walks beside the TLB: paging-structure caches of both dimensions and the nested TLB.
//!
//! A CPU has an [`Mmu`] only where these are modelled; without, walkers run with `()` for [`Caches`], and nothing of this is
//! compiled into them. Invalidation goes through the methods of [`Cpu`](crate::Cpu) alone, so that TLB and walk caches are
//! never flushed apart.
//!
//! **What may be cached** (Intel SDM volume 3, sections 4.10.3 and 28.3.2): entries that point to a table, present, free of
//! reserved bits, and with the accessed bit set where the format has one. So a walk that starts at a cached entry has no
//! accessed bit to set above it.
//!
//! **Tags.** The guest dimension (linear and combined mappings) goes by VPID and PCID as the TLB does; the host dimension and
//! the nested TLB (guest-physical mappings) by EPT root alone: all VPIDs share them, and no guest operation drops them.
//!
//! **Faults.** A walk that used a cached entry and ends in a fault is repeated from the root before the fault counts: tables
//! may be made more permissive without a flush. This is what AMD documents (APM volume 2, section 5.5.3, "use of cached
//! entries when reporting a page fault exception"); Intel's manual allows it too, or one spurious fault (sections 4.10.4.3 and
//! 28.3.3.4). The references of both walks count.

use memvirt_addr::{Frame, Gpa, GuestPhys, GuestVirt, Gva, Level, Space};
use memvirt_pagetable::Attrs;
use memvirt_tlb::{NestedEntry, NestedStats, NestedTlb, Perms, Shape, Tag, WalkCache, WalkGeometry, WalkStats};

use crate::probe::{CacheHit, Probe, Reference, Update};
use crate::timed::Heard;

/// The shapes of a CPU's walk caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MmuGeometry {
    /// Paging-structure caches over guest-virtual addresses: of the guest's tables, of shadow tables, or of the operating
    /// system's on the bare machine.
    pub guest: WalkGeometry,
    /// Paging-structure caches over guest-physical addresses: of the nested tables.
    pub host: WalkGeometry,
    /// The nested TLB, where there is one.
    pub nested_tlb: Option<Shape>,
}

/// What a paging-structure cache says: where the next table lies, and what the entries down to it permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partial<S: Space> {
    /// The frame of the next table.
    pub table: Frame<S>,
    /// The permissions of all entries from the root down to it, ANDed.
    pub perms: Attrs,
}

/// A [`Partial`] as it is stored: the guest dimension holds tables of guest-physical memory (the guest's) or of the machine's
/// (shadow tables), and one regime only asks for its own kind.
#[derive(Clone, Copy, Debug)]
struct Stored {
    table: u64,
    perms: Attrs,
}

impl Stored {
    fn as_partial<S: Space>(self) -> Partial<S> {
        Partial { table: Frame::new(self.table), perms: self.perms }
    }
}

impl<S: Space> From<Partial<S>> for Stored {
    fn from(partial: Partial<S>) -> Self {
        Self { table: partial.table.number(), perms: partial.perms }
    }
}

/// What drops cached translations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Invalidation {
    /// INVLPG: the page, and all paging-structure entries of the PCID.
    Page,
    /// INVPCID or INVVPID of one address: the page, and the paging-structure entries on the way to it.
    Address,
    /// A CR3 load, INVPCID of one PCID.
    Context,
    /// CR4.PGE toggled, INVPCID of all, INVVPID: everything of a VPID but its guest-physical mappings.
    Vpid,
    /// INVEPT of a root, or a new ASID: guest-physical mappings and all that were made through them.
    GuestPhysical,
    /// A world switch, entry or exit without tags.
    Untagged,
    /// A page fault: what was used for its address.
    PageFault,
    /// An EPT violation or nested page fault: what was used for its guest-physical address.
    Violation,
}

impl Invalidation {
    /// Every kind, in the order of tables and files.
    pub const ALL: [Self; 8] = [
        Self::Page,
        Self::Address,
        Self::Context,
        Self::Vpid,
        Self::GuestPhysical,
        Self::Untagged,
        Self::PageFault,
        Self::Violation,
    ];

    /// The stable key in results.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::Page => "page",
            Self::Address => "address",
            Self::Context => "context",
            Self::Vpid => "vpid",
            Self::GuestPhysical => "guest_physical",
            Self::Untagged => "untagged",
            Self::PageFault => "page_fault",
            Self::Violation => "violation",
        }
    }
}

/// What walk caches counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MmuCounts {
    /// The guest dimension's paging-structure caches.
    pub guest: WalkStats,
    /// The host dimension's.
    pub host: WalkStats,
    /// The nested TLB.
    pub nested: NestedStats,
    /// Invalidations by [`Invalidation`]; each concerns the caches above that it reaches.
    pub invalidations: [u64; Invalidation::ALL.len()],
}

impl core::ops::AddAssign for MmuCounts {
    fn add_assign(&mut self, other: Self) {
        for (sum, walk) in [(&mut self.guest, other.guest), (&mut self.host, other.host)] {
            sum.hits.iter_mut().zip(walk.hits).for_each(|(sum, hits)| *sum += hits);
            sum.misses += walk.misses;
            sum.evictions += walk.evictions;
            sum.flushes += walk.flushes;
            sum.flushed_entries += walk.flushed_entries;
        }
        self.nested.hits += other.nested.hits;
        self.nested.misses += other.nested.misses;
        self.nested.evictions += other.nested.evictions;
        self.nested.flushes += other.nested.flushes;
        self.nested.flushed_entries += other.nested.flushed_entries;
        self.invalidations.iter_mut().zip(other.invalidations).for_each(|(sum, n)| *sum += n);
    }
}

/// Who listens to the walks of a CPU, if anybody.
#[derive(Default)]
pub enum Listener {
    /// Nobody.
    #[default]
    Nobody,
    /// The mode `cycles`, which asks after each walk what was heard.
    Clock(Box<Heard>),
    /// Somebody else, told as it happens.
    Other(Box<dyn Probe + Send>),
}

impl Probe for Listener {
    #[inline]
    fn reference(&mut self, reference: &Reference) {
        match self {
            Self::Nobody => {}
            Self::Clock(heard) => heard.reference(reference),
            Self::Other(probe) => probe.reference(reference),
        }
    }

    #[inline]
    fn update(&mut self, update: &Update) {
        if let Self::Other(probe) = self {
            probe.update(update);
        }
    }

    #[inline]
    fn cached(&mut self, hit: CacheHit) {
        match self {
            Self::Nobody => {}
            Self::Clock(heard) => heard.cached(hit),
            Self::Other(probe) => probe.cached(hit),
        }
    }
}

/// The walk caches of one CPU, and who listens to its walks.
pub struct Mmu {
    guest: WalkCache<GuestVirt, Stored>,
    host: WalkCache<GuestPhys, Stored>,
    nested: Option<NestedTlb>,
    invalidations: [u64; Invalidation::ALL.len()],
    /// Told of every walk of this CPU.
    pub listener: Listener,
}

impl core::fmt::Debug for Mmu {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Mmu").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

impl Mmu {
    /// Empty caches of this shape.
    #[must_use]
    pub fn new(geometry: &MmuGeometry) -> Self {
        Self {
            guest: WalkCache::new(&geometry.guest),
            host: WalkCache::new(&geometry.host),
            nested: geometry.nested_tlb.map(NestedTlb::new),
            invalidations: Default::default(),
            listener: Listener::Nobody,
        }
    }

    /// The caches as a walk for `tag` under the nested tables numbered `root` sees them, and the listener.
    pub fn walk(&mut self, tag: Tag, root: u16) -> (Cached<'_>, &mut Listener) {
        let Self { guest, host, nested, listener, .. } = self;
        (Cached { guest, host, nested: nested.as_mut(), tag, root }, listener)
    }

    /// The counts since they were last taken.
    #[must_use]
    pub fn counts(&self) -> MmuCounts {
        MmuCounts {
            guest: self.guest.stats(),
            host: self.host.stats(),
            nested: self.nested.as_ref().map(NestedTlb::stats).unwrap_or_default(),
            invalidations: self.invalidations,
        }
    }

    pub(crate) fn take_counts(&mut self) -> MmuCounts {
        MmuCounts {
            guest: self.guest.take_stats(),
            host: self.host.take_stats(),
            nested: self.nested.as_mut().map(NestedTlb::take_stats).unwrap_or_default(),
            invalidations: core::mem::take(&mut self.invalidations),
        }
    }

    const fn note(&mut self, what: Invalidation) {
        self.invalidations[what as usize] += 1;
    }

    /// Drops the guest dimension's entries of one tag.
    pub(crate) fn drop_tag(&mut self, tag: Tag, why: Invalidation) {
        self.note(why);
        self.guest.flush_tag(tag);
    }

    /// Drops the guest dimension's entries on the way to one address.
    pub(crate) fn drop_path(&mut self, tag: Tag, gva: Gva, why: Invalidation) {
        self.note(why);
        self.guest.flush_page(tag, gva);
    }

    /// Drops the guest dimension's entries of one VPID.
    pub(crate) fn drop_vpid(&mut self, vpid: u16) {
        self.note(Invalidation::Vpid);
        self.guest.flush_vpid(vpid);
    }

    /// Drops the guest dimension.
    pub(crate) fn drop_guest(&mut self) {
        self.note(Invalidation::Untagged);
        self.guest.flush_all();
    }

    /// Drops the host dimension of one root.
    pub(crate) fn drop_root(&mut self, root: u16) {
        self.note(Invalidation::GuestPhysical);
        self.host.flush_vpid(root);
        if let Some(nested) = &mut self.nested {
            nested.flush_root(root);
        }
    }

    /// Drops the host dimension's entries on the way to one guest-physical address, and the guest's on the way to a linear one.
    pub(crate) fn drop_gpa(&mut self, root: u16, gpa: Gpa, linear: Option<(Tag, Gva)>) {
        self.note(Invalidation::Violation);
        if let Some((tag, gva)) = linear {
            self.guest.flush_page(tag, gva);
        }
        self.host.flush_page(Tag::new(root, 0), gpa);
        if let Some(nested) = &mut self.nested {
            nested.flush_page(root, gpa);
        }
    }
}

/// What a walk finds in the caches, and leaves there. `()` has none.
pub trait Caches {
    /// Whether there may be anything at all; a constant, so that walkers without caches carry no code for them.
    const ANY: bool;

    /// The deepest entry on the way to `gva`, with its level: the walk goes on one level below.
    fn guest<S: Space>(&mut self, gva: Gva) -> Option<(Level, Partial<S>)>;

    /// Keeps the entry of `level` on the way to `gva`.
    fn keep_guest<S: Space>(&mut self, gva: Gva, level: Level, entry: Partial<S>);

    /// Forgets what is on the way to `gva`.
    fn forget_guest(&mut self, gva: Gva);

    /// The deepest entry of the nested tables on the way to `gpa`, with its level.
    fn host<S: Space>(&mut self, gpa: Gpa) -> Option<(Level, Partial<S>)>;

    /// Keeps the nested entry of `level` on the way to `gpa`.
    fn keep_host<S: Space>(&mut self, gpa: Gpa, level: Level, entry: Partial<S>);

    /// The guest-physical page that holds `gpa`, where it permits `need`.
    fn page(&mut self, gpa: Gpa, need: Perms) -> Option<NestedEntry>;

    /// Keeps a guest-physical page.
    fn keep_page(&mut self, entry: NestedEntry);

    /// Forgets what is on the way to `gpa`, and the page that holds it.
    fn forget_host(&mut self, gpa: Gpa);
}

impl Caches for () {
    const ANY: bool = false;

    #[inline]
    fn guest<S: Space>(&mut self, _: Gva) -> Option<(Level, Partial<S>)> {
        None
    }

    #[inline]
    fn keep_guest<S: Space>(&mut self, _: Gva, _: Level, _: Partial<S>) {}

    #[inline]
    fn forget_guest(&mut self, _: Gva) {}

    #[inline]
    fn host<S: Space>(&mut self, _: Gpa) -> Option<(Level, Partial<S>)> {
        None
    }

    #[inline]
    fn keep_host<S: Space>(&mut self, _: Gpa, _: Level, _: Partial<S>) {}

    #[inline]
    fn page(&mut self, _: Gpa, _: Perms) -> Option<NestedEntry> {
        None
    }

    #[inline]
    fn keep_page(&mut self, _: NestedEntry) {}

    #[inline]
    fn forget_host(&mut self, _: Gpa) {}
}

/// The caches of a CPU for one tag and one root of nested tables.
#[derive(Debug)]
pub struct Cached<'a> {
    guest: &'a mut WalkCache<GuestVirt, Stored>,
    host: &'a mut WalkCache<GuestPhys, Stored>,
    nested: Option<&'a mut NestedTlb>,
    tag: Tag,
    root: u16,
}

impl Cached<'_> {
    const fn root_tag(&self) -> Tag {
        Tag::new(self.root, 0)
    }
}

impl Caches for Cached<'_> {
    const ANY: bool = true;

    fn guest<S: Space>(&mut self, gva: Gva) -> Option<(Level, Partial<S>)> {
        self.guest.lookup(self.tag, gva).map(|(level, entry)| (level, entry.as_partial()))
    }

    fn keep_guest<S: Space>(&mut self, gva: Gva, level: Level, entry: Partial<S>) {
        self.guest.fill(self.tag, gva, level, entry.into());
    }

    fn forget_guest(&mut self, gva: Gva) {
        self.guest.flush_page(self.tag, gva);
    }

    fn host<S: Space>(&mut self, gpa: Gpa) -> Option<(Level, Partial<S>)> {
        self.host.lookup(self.root_tag(), gpa).map(|(level, entry)| (level, entry.as_partial()))
    }

    fn keep_host<S: Space>(&mut self, gpa: Gpa, level: Level, entry: Partial<S>) {
        self.host.fill(self.root_tag(), gpa, level, entry.into());
    }

    fn page(&mut self, gpa: Gpa, need: Perms) -> Option<NestedEntry> {
        self.nested.as_mut()?.lookup(self.root, gpa, need)
    }

    fn keep_page(&mut self, entry: NestedEntry) {
        if let Some(nested) = &mut self.nested {
            nested.fill(self.root, entry);
        }
    }

    fn forget_host(&mut self, gpa: Gpa) {
        self.host.flush_page(self.root_tag(), gpa);
        if let Some(nested) = &mut self.nested {
            nested.flush_page(self.root, gpa);
        }
    }
}
