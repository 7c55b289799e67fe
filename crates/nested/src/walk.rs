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

use memvirt_addr::{Acc, Gfn, Gpa, GuestPhys, GuestVirt, Hfn, HostPhys, Hpa, Level, PageSize, PfCode};
use memvirt_pagetable::{Attrs, Entry, Format, PhysMem};
use memvirt_platform::Regs;

use crate::stage::{AdBits, SecondStage, Want};

/// Which tables a reference read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dimension {
    /// The guest's tables.
    Guest,
    /// The nested tables.
    Host,
}

/// One memory reference of a two-dimensional walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Which tables were read.
    pub dimension: Dimension,
    /// The guest level that this reference serves: of the entry itself, or of the table whose address a host walk
    /// translates. `None` for the walk that translates the data's address.
    pub guest_level: Option<Level>,
    /// The level of the entry.
    pub level: Level,
    /// Where the entry lies in host memory.
    pub entry_at: Hpa,
    /// The guest-physical address: of the guest's entry, or the one being translated.
    pub gpa: Gpa,
    /// The raw bits read.
    pub raw: u64,
}

/// Sees every reference of a walk. `()` sees nothing and costs nothing.
pub trait Probe {
    /// Called once for each reference, in order.
    fn reference(&mut self, reference: &Reference);
}

impl Probe for () {
    #[inline]
    fn reference(&mut self, _: &Reference) {}
}

impl Probe for Vec<Reference> {
    fn reference(&mut self, reference: &Reference) {
        self.push(*reference);
    }
}

/// What a walk counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// References to guest entries.
    pub guest: u64,
    /// References to nested entries.
    pub host: u64,
    /// Accessed and dirty bits set, in guest and nested entries.
    pub ad_updates: u64,
}

/// Why the nested tables stopped a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The guest-physical address that was being translated.
    pub gpa: Gpa,
    /// What the access asked for.
    pub want: Want,
    /// The permissions of all nested entries met, ANDed; empty where one was absent. Bits 3 to 5 of the qualification.
    pub had: Attrs,
    /// Whether the address was the data's own (bit 8 of the qualification), not a guest table's.
    pub on_data: bool,
}

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
    Misconfig {
        /// The guest-physical address that was being translated.
        gpa: Gpa,
        /// Whether the address was the data's own.
        on_data: bool,
    },
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

/// A guest entry and where it lies.
struct GuestEntry<Out: memvirt_addr::Space> {
    entry: Entry<Out>,
    raw: u64,
    gpa: Gpa,
    hpa: Hpa,
}

impl<'a, G, H, P> Walker<'a, G, H, P>
where
    G: Format<In = GuestVirt, Out = GuestPhys>,
    H: SecondStage,
    P: Probe,
{
    /// A walker over host memory, with the nested root table in frame `nested_root`.
    #[must_use]
    pub fn new(mem: &'a mut PhysMem<HostPhys>, nested_root: Hfn, ad: AdBits, probe: &'a mut P) -> Self {
        Self { mem, nested_root, ad, probe, counts: Counts::default(), formats: core::marker::PhantomData }
    }

    /// Walks both dimensions for one access, with the registers of the vCPU.
    ///
    /// # Errors
    ///
    /// Never: every way to end is an [`End`].
    pub fn walk(&mut self, regs: &Regs, acc: Acc) -> End {
        self.descend(regs, acc).unwrap_or_else(|end| end)
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
                    self.set_guest_bits(&found, level, G::RAW_ACCESSED)?;
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
                    return self.data(acc, gpa, size, perms, raw & G::RAW_DIRTY != 0);
                }
                Entry::Absent => return Err(End::GuestFault(PfCode::of(acc, false))),
                Entry::Reserved => return Err(End::GuestFault(PfCode::of(acc, true).with_reserved())),
            }
        }
    }

    /// The last host walk: for the data's own address.
    fn data(&mut self, acc: Acc, gpa: Gpa, guest_size: PageSize, perms: Attrs, dirty: bool) -> Result<End, End> {
        let host = self.nested(gpa, None, H::data(acc.kind()))?;
        let writable = host.perms.contains(Attrs::WRITE);
        let executable = host.perms.contains(Attrs::EXEC);
        let mut perms = perms;
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
        Ok(GuestEntry { entry: G::decode(raw, level), raw, gpa, hpa })
    }

    /// Sets bits of a guest entry, one locked update where any is missing. Without nested accessed bits this is a write of
    /// its own, which the nested tables must permit; the entry's translation is at hand, so no reference is made for it.
    fn set_guest_bits(&mut self, found: &GuestEntry<GuestPhys>, level: Level, bits: u64) -> Result<u64, End> {
        if found.raw & bits != bits {
            if self.ad == AdBits::Off {
                let (counts, perms) = (self.counts, self.nested(found.gpa, Some(level), H::table_update()));
                self.counts = counts;
                perms?;
            }
            self.counts.ad_updates += 1;
            self.mem.write(found.hpa, found.raw | bits);
        }
        Ok(found.raw | bits)
    }

    /// Translates one guest-physical address.
    fn nested(&mut self, gpa: Gpa, guest_level: Option<Level>, want: Want) -> Result<Translated, End> {
        let on_data = guest_level.is_none();
        let mut had = Attrs::PERMISSIONS;
        let mut table = self.nested_root;
        let mut level = H::ROOT;
        let mut path = [(Hpa::ZERO, 0u64); 5];
        let mut depth = 0;
        loop {
            let entry_at = table.entry(H::index(gpa, level));
            let raw = self.mem.read(entry_at);
            self.counts.host += 1;
            self.probe.reference(&Reference { dimension: Dimension::Host, guest_level, level, entry_at, gpa, raw });
            path[depth] = (entry_at, raw);
            depth += 1;
            match H::decode(raw, level) {
                Entry::Table { next, attrs } => {
                    had &= attrs;
                    table = next;
                    level = level.below().unwrap_or(Level::L1);
                }
                Entry::Leaf { frame, size, attrs } => {
                    had &= attrs;
                    if !had.contains(want.perms) {
                        return Err(End::Violation(Violation { gpa, want, had, on_data }));
                    }
                    let raw = self.set_nested_bits(&path[..depth], want.write);
                    let frame = frame.offset(gpa.page_offset(size) >> 12);
                    return Ok(Translated { frame, size, perms: had, dirty: raw & H::RAW_DIRTY != 0 });
                }
                Entry::Absent => {
                    return Err(End::Violation(Violation { gpa, want, had: Attrs::empty(), on_data }));
                }
                Entry::Reserved => return Err(End::Misconfig { gpa, on_data }),
            }
        }
    }

    /// Sets the accessed bits of a nested path, and the leaf's dirty bit for a write; returns the leaf.
    fn set_nested_bits(&mut self, path: &[(Hpa, u64)], write: bool) -> u64 {
        let mut leaf = 0;
        for (i, (at, raw)) in path.iter().enumerate() {
            let is_leaf = i + 1 == path.len();
            let dirty = if write && is_leaf { H::RAW_DIRTY } else { 0 };
            let bits = if self.ad == AdBits::On { H::RAW_ACCESSED | dirty } else { 0 };
            if raw & bits != bits {
                self.counts.ad_updates += 1;
                self.mem.write(*at, raw | bits);
            }
            leaf = raw | bits;
        }
        leaf
    }
}
