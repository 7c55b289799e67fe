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

use memvirt_addr::{Acc, AccessKind, Gfn, Gpa, GuestPhys, GuestVirt, Hfn, HostPhys, Hpa, Level, PageSize, PfCode};
use memvirt_pagetable::{Attrs, Entry, Format, PhysMem};
use memvirt_platform::Regs;

use crate::fault::{Misconfig, Violation};
use crate::pml::ModificationLog;
use crate::reference::{Counts, Dimension, Probe, Reference, Update};
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

/// A machine's two dimensions: guest tables of format `G` under nested tables of format `H`.
#[derive(Debug)]
pub struct Walker<'a, G, H, P> {
    mem: &'a mut PhysMem<HostPhys>,
    nested_root: Hfn,
    ad: AdBits,
    log: Option<&'a mut ModificationLog>,
    probe: &'a mut P,
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

/// The nested entries of one walk, root first.
type Path = [(Hpa, u64); 5];

impl<'a, G, H, P> Walker<'a, G, H, P>
where
    G: Format<In = GuestVirt, Out = GuestPhys>,
    H: SecondStage,
    P: Probe,
{
    /// A walker over host memory, with the nested root table in frame `nested_root`.
    #[must_use]
    pub fn new(mem: &'a mut PhysMem<HostPhys>, nested_root: Hfn, ad: AdBits, probe: &'a mut P) -> Self {
        let counts = Counts::default();
        Self { mem, nested_root, ad, log: None, probe, counts, formats: core::marker::PhantomData }
    }

    /// The same with a page-modification log, where nested D bits are on.
    #[must_use]
    pub fn with_log(mut self, log: Option<&'a mut ModificationLog>) -> Self {
        self.log = log.filter(|_| self.ad == AdBits::On);
        self
    }

    /// Walks both dimensions for one access, with the registers of the vCPU.
    pub fn walk(&mut self, regs: &Regs, acc: Acc) -> End {
        self.descend(regs, acc).unwrap_or_else(|end| end)
    }

    /// Walks the nested dimension alone: the access of a guest that does not page, to guest-physical address `gpa`.
    pub fn walk_unpaged(&mut self, gpa: Gpa, kind: AccessKind) -> End {
        let everything = Attrs::PERMISSIONS;
        self.data(kind, gpa, PageSize::Size1G, everything, true).unwrap_or_else(|end| end)
    }

    fn descend(&mut self, regs: &Regs, acc: Acc) -> Result<End, End> {
        let mut perms = Attrs::PERMISSIONS;
        let mut table = regs.cr3.root.frame();
        let mut level = G::ROOT;
        loop {
            let found = self.read_guest(table.entry(G::index(acc.gva(), level)), level)?;
            match found.entry {
                Entry::Table { next, attrs } => {
                    perms &= attrs;
                    self.set_guest_bits(&found, level, G::accessed_bit(level))?;
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
        let raw = self.mem.read(hpa);
        self.counts.guest += 1;
        let reference =
            Reference { dimension: Dimension::Guest, guest_level: Some(level), level, entry_at: hpa, gpa, raw };
        self.probe.reference(&reference);
        Ok(GuestEntry { entry: G::decode(raw, level), raw, gpa, hpa, permitted: host.perms })
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
        let mut had = Attrs::PERMISSIONS;
        let mut table = self.nested_root;
        let mut level = H::ROOT;
        let mut path: Path = [(Hpa::ZERO, 0); 5];
        let mut depth = 0;
        loop {
            let entry_at = table.entry(H::index(gpa, level));
            let raw = self.mem.read(entry_at);
            self.counts.host += 1;
            self.probe.reference(&Reference { dimension: Dimension::Host, guest_level, level, entry_at, gpa, raw });
            path[depth] = (entry_at, raw);
            depth += 1;
            match H::read(raw, level) {
                Entry::Table { next, attrs } => {
                    had &= attrs;
                    table = next;
                    level = level.below().unwrap_or(Level::L1);
                }
                Entry::Leaf { frame, size, attrs } => {
                    had &= attrs;
                    if !had.contains(want.perms) {
                        return Err(violation(had));
                    }
                    let raw = self.set_nested_bits(&path[..depth], gpa, want.write)?;
                    let frame = frame.offset(gpa.page_offset(size) >> 12);
                    return Ok(Translated { frame, size, perms: had, dirty: raw & H::RAW_DIRTY != 0 });
                }
                Entry::Absent => return Err(violation(Attrs::empty())),
                Entry::Reserved => return Err(End::Misconfig(Misconfig { gpa, want, on_data, raw })),
            }
        }
    }

    /// Sets the accessed bits of a nested path, and the leaf's dirty bit for a write; returns the leaf.
    fn set_nested_bits(&mut self, path: &[(Hpa, u64)], gpa: Gpa, write: bool) -> Result<u64, End> {
        let last = path.len() - 1;
        if self.ad == AdBits::Off {
            return Ok(path[last].1);
        }
        let bits = |i| if write && i == last { H::RAW_ACCESSED | H::RAW_DIRTY } else { H::RAW_ACCESSED };
        if self.log.as_ref().is_some_and(|log| log.is_full())
            && path.iter().enumerate().any(|(i, (_, raw))| raw & bits(i) != bits(i))
        {
            return Err(End::LogFull);
        }
        for (i, (at, raw)) in path.iter().enumerate() {
            let missing = bits(i) & !raw;
            if missing != 0 {
                self.counts.ad_updates += 1;
                self.counts.ad_updates_nested += 1;
                let level = Level::from_number(H::ROOT.number() - u8::try_from(i).unwrap_or(0)).unwrap_or(Level::L1);
                self.update(Dimension::Host, level, *at, *raw, bits(i));
                if missing & H::RAW_DIRTY != 0
                    && let Some(log) = &mut self.log
                {
                    log.push(self.mem, gpa);
                }
            }
        }
        Ok(path[last].1 | bits(last))
    }
}
