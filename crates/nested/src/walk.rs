//! The two-dimensional walk, reference by reference.
//!
//! Every reference to a guest table has a guest-physical address, which the nested tables translate first; so does the
//! address that the guest's leaf finally gives. With `g` guest levels and `h` nested ones, a cold walk makes
//! (g+1)(h+1)-1 references: 24 for 4 and 4. Order of checks and updates (Intel SDM volume 3, section 28.2; AMD APM volume 2,
//! section 15.25.5): for each guest level the table's address is translated, with the permissions that a table reference
//! needs, then the entry is read and checked; at the leaf the guest's own permissions are checked before the nested
//! translation of the data, so a guest fault beats a nested fault on the data, and a nested fault on a table beats any guest
//! fault below it. Guest accessed bits are set on the way down, even where the walk later fails; accessed and dirty bits of
//! the leaf once the access is permitted.

use memvirt_addr::{Acc, AccessKind, Gfn, Gpa, GuestPhys, GuestVirt, Gva, Hfn, HostPhys, Hpa, Level, PageSize, PfCode};
use memvirt_pagetable::{Attrs, Entry, Format, PhysMem};
use memvirt_platform::{Caches, Partial, Regs};
use memvirt_tlb::{NestedEntry, Perms};

use crate::fault::{Misconfig, Violation};
use crate::pml::ModificationLog;
use crate::reference::{CacheHit, Counts, Dimension, Probe, Reference, Update};
use crate::stage::{AdBits, SecondStage, Want};

/// How a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Translated.
    Mapped(Mapped),
    /// The guest's own tables forbid the access.
    GuestFault(PfCode),
    /// EPT violation, nested page fault.
    Violation(Violation),
    /// A nested entry has illegal bits.
    Misconfig(Misconfig),
    /// A nested accessed or dirty bit would have to be set, and the page-modification log has no room. Nothing was set.
    LogFull,
}

/// A translation through both dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// The guest frame that holds the address.
    pub gfn: Gfn,
    /// The host frame that holds it.
    pub frame: Hfn,
    /// The guest's page size.
    pub guest_size: PageSize,
    /// The page size of the nested mapping.
    pub host_size: PageSize,
    /// The permissions of both dimensions, ANDed, and [`Attrs::GLOBAL`] where the guest's leaf is global.
    pub perms: Attrs,
    /// Whether the dirty bits that hardware maintains are set in both dimensions.
    pub dirty: bool,
}

/// A machine's two dimensions: guest tables of format `G` under nested tables of format `H`. `C` are the caches of walks, `()`
/// where there are none.
#[derive(Debug)]
pub struct Walker<'a, G, H, P, C = ()> {
    mem: &'a mut PhysMem<HostPhys>,
    nested_root: Hfn,
    ad: AdBits,
    log: Option<&'a mut ModificationLog>,
    probe: &'a mut P,
    caches: C,
    /// Whether the walk looks into the caches, and whether it has found something there.
    looks: bool,
    found: bool,
    /// What was counted so far.
    pub counts: Counts,
    formats: core::marker::PhantomData<(G, H)>,
}

struct Translated {
    frame: Hfn,
    size: PageSize,
    perms: Attrs,
    dirty: bool,
}

/// A guest entry, where it lies and what the nested tables permit there.
struct GuestEntry<Out: memvirt_addr::Space> {
    entry: Entry<Out>,
    raw: u64,
    gpa: Gpa,
    hpa: Hpa,
    permitted: Attrs,
}

/// The nested entries that one walk read, downwards.
struct Path {
    reads: [(Hpa, u64); 5],
    len: usize,
    /// The level of the first.
    top: Level,
}

impl Path {
    #[inline]
    fn reads(&self) -> &[(Hpa, u64)] {
        &self.reads[..self.len]
    }

    /// The level of the entry at `i`.
    fn level(&self, i: usize) -> Level {
        Level::from_number(self.top.number() - u8::try_from(i).unwrap_or(0)).unwrap_or(Level::L1)
    }
}

impl<'a, G, H, P> Walker<'a, G, H, P>
where
    G: Format<In = GuestVirt, Out = GuestPhys>,
    H: SecondStage,
    P: Probe,
{
    /// A walker over host memory, with the nested root table in frame `nested_root`.
    #[must_use]
    #[inline]
    pub fn new(mem: &'a mut PhysMem<HostPhys>, nested_root: Hfn, ad: AdBits, probe: &'a mut P) -> Self {
        let counts = Counts::default();
        let formats = core::marker::PhantomData;
        Self { mem, nested_root, ad, log: None, probe, caches: (), looks: false, found: false, counts, formats }
    }

    /// The same with caches.
    #[must_use]
    pub fn with_caches<C: Caches>(self, caches: C) -> Walker<'a, G, H, P, C> {
        let Self { mem, nested_root, ad, log, probe, counts, formats, .. } = self;
        Walker { mem, nested_root, ad, log, probe, caches, looks: C::ANY, found: false, counts, formats }
    }
}

impl<'a, G, H, P, C> Walker<'a, G, H, P, C>
where
    G: Format<In = GuestVirt, Out = GuestPhys>,
    H: SecondStage,
    P: Probe,
    C: Caches,
{
    /// The same with a page-modification log, where nested D bits are on.
    #[must_use]
    pub fn with_log(mut self, log: Option<&'a mut ModificationLog>) -> Self {
        self.log = log.filter(|_| self.ad == AdBits::On);
        self
    }

    /// Walks both dimensions for one access, with the registers of the vCPU.
    pub fn walk(&mut self, regs: &Regs, acc: Acc) -> End {
        let root = (G::ROOT, Partial { table: regs.cr3.root.frame(), perms: Attrs::PERMISSIONS });
        self.confirmed(Some(acc.gva()), |walker| walker.descend(regs, acc, root))
    }

    /// The same for a guest whose top-level entries are in registers, `entry` the one for this address: PAE paging on Intel,
    /// where a load of CR3 reads the four PDPTEs ([`Walker::load_registers`]) and no walk reads them again (SDM volume 3,
    /// section 4.4.1). On AMD under nested paging walks do read them (APM volume 2, section 15.25.10): [`Walker::walk`].
    pub fn walk_from_register(&mut self, regs: &Regs, acc: Acc, entry: u64) -> End {
        match (G::decode(entry, G::ROOT), G::ROOT.below()) {
            (Entry::Table { next, attrs }, Some(below)) => {
                let start = (below, Partial { table: next, perms: attrs & Attrs::PERMISSIONS });
                self.confirmed(Some(acc.gva()), |walker| walker.descend(regs, acc, start))
            }
            (Entry::Absent, _) => End::GuestFault(PfCode::of(acc, false)),
            _ => End::GuestFault(PfCode::of(acc, true).with_reserved()),
        }
    }

    /// Reads the first `N` entries of the guest's root table at once, as a load of CR3 under PAE paging does: one nested
    /// translation, for reading whatever the mode of the accessed bits (SDM volume 3, sections 4.4.1 and 28.2.3.2), then the
    /// entries.
    ///
    /// # Errors
    ///
    /// The violation or misconfiguration that the load ends in.
    pub fn load_registers<const N: usize>(&mut self, root: Gpa) -> Result<[u64; N], End> {
        let host = self.nested(root, Some(G::ROOT), H::data(AccessKind::Read))?;
        let mut entries = [0; N];
        for (entry, i) in entries.iter_mut().zip(0..) {
            let at = host.frame.at(root.as_u64()).wrapping_add(8 * i);
            *entry = self.guest_reference(root.wrapping_add(8 * i), at, G::ROOT);
        }
        Ok(entries)
    }

    /// Walks the nested dimension alone: the access of a guest that does not page, to guest-physical address `gpa`.
    pub fn walk_unpaged(&mut self, gpa: Gpa, kind: AccessKind) -> End {
        let everything = Attrs::PERMISSIONS;
        self.confirmed(None, |walker| walker.data(kind, gpa, PageSize::Size1G, everything, true))
    }

    /// Makes a walk; one that used the caches and ends in a fault once more, without.
    #[inline]
    fn confirmed(&mut self, gva: Option<Gva>, mut walk: impl FnMut(&mut Self) -> Result<End, End>) -> End {
        let end = walk(self).unwrap_or_else(|end| end);
        let at = match &end {
            End::Mapped(_) | End::LogFull => return end,
            End::GuestFault(_) => None,
            End::Violation(violation) => Some(violation.gpa),
            End::Misconfig(misconfig) => Some(misconfig.gpa),
        };
        if !C::ANY || !self.found {
            return end;
        }
        if let Some(gva) = gva {
            self.caches.forget_guest(gva);
        }
        if let Some(gpa) = at {
            self.caches.forget_host(gpa);
        }
        self.looks = false;
        walk(self).unwrap_or_else(|end| end)
    }

    /// The deepest guest table that is known, or the one to start from.
    #[inline]
    fn guest_start(&mut self, gva: Gva, root: (Level, Partial<GuestPhys>)) -> (Level, Partial<GuestPhys>) {
        let cached = if self.looks { self.caches.guest(gva) } else { None };
        let Some((level, entry)) = cached else { return root };
        self.found = true;
        self.probe.cached(CacheHit::Walk(Dimension::Guest, level));
        (level.below().unwrap_or(Level::L1), entry)
    }

    fn descend(&mut self, regs: &Regs, acc: Acc, root: (Level, Partial<GuestPhys>)) -> Result<End, End> {
        let (mut level, Partial { mut table, mut perms }) = self.guest_start(acc.gva(), root);
        loop {
            let found = self.read_guest(table.entry(G::index(acc.gva(), level)), level)?;
            match found.entry {
                Entry::Table { next, attrs } => {
                    perms &= attrs;
                    self.set_guest_bits(&found, level, G::accessed_bit(level))?;
                    if G::accessed_bit(level) != 0 {
                        self.caches.keep_guest(acc.gva(), level, Partial { table: next, perms });
                    }
                    table = next;
                    level = level.below().unwrap_or(Level::L1);
                }
                Entry::Leaf { frame, size, attrs } => {
                    perms &= attrs;
                    if !regs.permits(perms, acc) {
                        return Err(End::GuestFault(PfCode::of(acc, true)));
                    }
                    let dirty = if acc.is_write() { G::RAW_DIRTY } else { 0 };
                    let raw = self.set_guest_bits(&found, level, G::RAW_ACCESSED | dirty)?;
                    if attrs.contains(Attrs::GLOBAL) && regs.global_pages {
                        perms |= Attrs::GLOBAL;
                    }
                    let gpa = frame.base().wrapping_add(acc.gva().page_offset(size));
                    return self.data(acc.kind(), gpa, size, perms, raw & G::RAW_DIRTY != 0);
                }
                Entry::Absent => return Err(End::GuestFault(PfCode::of(acc, false))),
                Entry::Reserved => return Err(End::GuestFault(PfCode::of(acc, true).with_reserved())),
            }
        }
    }

    /// The last host walk: for the data's own address.
    fn data(
        &mut self,
        kind: AccessKind,
        gpa: Gpa,
        guest_size: PageSize,
        mut perms: Attrs,
        dirty: bool,
    ) -> Result<End, End> {
        let host = self.nested(gpa, None, H::data(kind))?;
        let writable = host.perms.contains(Attrs::WRITE);
        let executable = host.perms.contains(Attrs::EXEC);
        perms.set(Attrs::WRITE, perms.contains(Attrs::WRITE) && writable);
        perms.set(Attrs::EXEC, perms.contains(Attrs::EXEC) && executable);
        Ok(End::Mapped(Mapped {
            gfn: gpa.frame(),
            frame: host.frame,
            guest_size,
            host_size: host.size,
            perms,
            dirty: dirty && (host.dirty || self.ad == AdBits::Off),
        }))
    }

    fn read_guest(&mut self, gpa: Gpa, level: Level) -> Result<GuestEntry<GuestPhys>, End> {
        let host = self.nested(gpa, Some(level), H::table_read(self.ad))?;
        let hpa = host.frame.at(gpa.as_u64());
        let raw = self.guest_reference(gpa, hpa, level);
        Ok(GuestEntry { entry: G::decode(raw, level), raw, gpa, hpa, permitted: host.perms })
    }

    #[inline]
    fn guest_reference(&mut self, gpa: Gpa, entry_at: Hpa, level: Level) -> u64 {
        let raw = self.mem.read(entry_at);
        self.counts.guest += 1;
        let dimension = Dimension::Guest;
        self.probe.reference(&Reference { dimension, guest_level: Some(level), level, entry_at, gpa, raw });
        raw
    }

    /// Sets bits of a guest entry, one locked update where any is missing. Without nested accessed bits this is the first
    /// write to the table, which the nested tables must permit; with them, reading the entry already counted as one.
    fn set_guest_bits(&mut self, found: &GuestEntry<GuestPhys>, level: Level, bits: u64) -> Result<u64, End> {
        if found.raw & bits != bits {
            let want = H::table_update();
            if !found.permitted.contains(want.perms) {
                let (gpa, had) = (found.gpa, found.permitted);
                return Err(End::Violation(Violation { gpa, want, had, on_data: false }));
            }
            self.counts.ad_updates += 1;
            self.update(Dimension::Guest, level, found.hpa, found.raw, bits);
        }
        Ok(found.raw | bits)
    }

    fn update(&mut self, dimension: Dimension, level: Level, entry_at: Hpa, raw: u64, bits: u64) {
        self.mem.write(entry_at, raw | bits);
        self.probe.update(&Update { dimension, level, entry_at, set: bits & !raw });
    }

    /// Translates one guest-physical address.
    fn nested(&mut self, gpa: Gpa, guest_level: Option<Level>, want: Want) -> Result<Translated, End> {
        let on_data = guest_level.is_none();
        let violation = |had| End::Violation(Violation { gpa, want, had, on_data });
        if !H::covers(gpa) {
            return Err(violation(Attrs::empty()));
        }
        if self.looks
            && let Some(page) = self.caches.page(gpa, needed(want))
        {
            self.found = true;
            self.probe.cached(CacheHit::NestedTlb);
            return Ok(from_page(&page, gpa));
        }
        let (mut level, Partial { mut table, perms: mut had }) = self.host_start(gpa);
        let mut path = Path { reads: [(Hpa::ZERO, 0); 5], len: 0, top: level };
        // Kept once the accessed bits are set.
        let mut tables = [Partial { table, perms: had }; 5];
        loop {
            let entry_at = table.entry(H::index(gpa, level));
            let raw = self.mem.read(entry_at);
            self.counts.host += 1;
            self.probe.reference(&Reference { dimension: Dimension::Host, guest_level, level, entry_at, gpa, raw });
            path.reads[path.len] = (entry_at, raw);
            path.len += 1;
            match H::read(raw, level) {
                Entry::Table { next, attrs } => {
                    had &= attrs;
                    if C::ANY {
                        tables[path.len - 1] = Partial { table: next, perms: had };
                    }
                    table = next;
                    level = level.below().unwrap_or(Level::L1);
                }
                Entry::Leaf { frame, size, attrs } => {
                    had &= attrs;
                    if !had.contains(want.perms) {
                        return Err(violation(had));
                    }
                    let raw = self.set_nested_bits(&path, gpa, want.write)?;
                    let dirty = raw & H::RAW_DIRTY != 0;
                    if C::ANY {
                        self.keep_nested(gpa, &path, &tables, (frame, size, had, dirty));
                    }
                    let frame = frame.offset(gpa.page_offset(size) >> 12);
                    return Ok(Translated { frame, size, perms: had, dirty });
                }
                Entry::Absent => return Err(violation(Attrs::empty())),
                Entry::Reserved => return Err(End::Misconfig(Misconfig { gpa, want, on_data, raw })),
            }
        }
    }

    /// The deepest nested table that is known, or the root.
    #[inline]
    fn host_start(&mut self, gpa: Gpa) -> (Level, Partial<HostPhys>) {
        let cached = if self.looks { self.caches.host(gpa) } else { None };
        let Some((level, entry)) = cached else {
            return (H::ROOT, Partial { table: self.nested_root, perms: Attrs::PERMISSIONS });
        };
        self.found = true;
        self.probe.cached(CacheHit::Walk(Dimension::Host, level));
        (level.below().unwrap_or(Level::L1), entry)
    }

    /// Keeps what a nested walk has found, its accessed bits being set: the tables on the way, and the page. A page that
    /// cannot be read (execute-only, under EPT) is not kept: the nested TLB has no word for it.
    fn keep_nested(
        &mut self,
        gpa: Gpa,
        path: &Path,
        tables: &[Partial<HostPhys>; 5],
        (frame, size, had, dirty): (Hfn, PageSize, Attrs, bool),
    ) {
        for (i, table) in tables.iter().enumerate().take(path.len - 1) {
            self.caches.keep_host(gpa, path.level(i), *table);
        }
        if had.contains(Attrs::READ) {
            let stored = dirty || self.ad == AdBits::Off;
            let perms = perms(had).without(if stored { Perms::NONE } else { Perms::WRITE });
            self.caches.keep_page(NestedEntry { page: gpa.frame(), frame, size, perms });
        }
    }

    /// Sets the accessed bits of a nested path, and the leaf's dirty bit for a write; returns the leaf.
    fn set_nested_bits(&mut self, path: &Path, gpa: Gpa, write: bool) -> Result<u64, End> {
        let last = path.len - 1;
        if self.ad == AdBits::Off {
            return Ok(path.reads[last].1);
        }
        let bits = |i| if write && i == last { H::RAW_ACCESSED | H::RAW_DIRTY } else { H::RAW_ACCESSED };
        if self.log.as_ref().is_some_and(|log| log.is_full())
            && path.reads().iter().enumerate().any(|(i, (_, raw))| raw & bits(i) != bits(i))
        {
            return Err(End::LogFull);
        }
        for (i, (at, raw)) in path.reads().iter().enumerate() {
            let missing = bits(i) & !raw;
            if missing != 0 {
                self.counts.ad_updates += 1;
                self.counts.ad_updates_nested += 1;
                self.update(Dimension::Host, path.level(i), *at, *raw, bits(i));
                if missing & H::RAW_DIRTY != 0
                    && let Some(log) = &mut self.log
                {
                    log.push(self.mem, gpa);
                }
            }
        }
        Ok(path.reads[last].1 | bits(last))
    }
}

/// What an access needs of a cached guest-physical page.
fn needed(want: Want) -> Perms {
    let write = if want.write { Perms::WRITE } else { Perms::NONE };
    perms(want.perms) | write
}

/// Permissions without the one to read, which every cached page gives.
fn perms(attrs: Attrs) -> Perms {
    [(Attrs::WRITE, Perms::WRITE), (Attrs::EXEC, Perms::EXEC), (Attrs::USER, Perms::USER)]
        .into_iter()
        .filter(|(attr, _)| attrs.contains(*attr))
        .fold(Perms::NONE, |sum, (_, perm)| sum | perm)
}

/// A page of the nested TLB as a translation. It lets stores through only where nothing is left to be set, so that such a page
/// counts as dirty, and one that does not as read-only until it is walked again.
fn from_page(page: &NestedEntry, gpa: Gpa) -> Translated {
    let mut attrs = Attrs::READ;
    for (attr, perm) in [(Attrs::WRITE, Perms::WRITE), (Attrs::EXEC, Perms::EXEC), (Attrs::USER, Perms::USER)] {
        attrs.set(attr, page.perms.contains(perm));
    }
    let dirty = page.perms.contains(Perms::WRITE);
    Translated { frame: page.frame_of(gpa), size: page.size, perms: attrs, dirty }
}
