//! One access, translated by hand through the guest's tables as they are before it.

use memvirt_addr::{Acc, Gfn, Gpa, GuestPhys};
use memvirt_ops::VmId;
use memvirt_pagetable::{Attrs, Entry, Guest4, Path, TableMem, Walked, walk};
use memvirt_platform::Platform;

/// The guest's memory as its kernel knows it.
pub(crate) struct Peek<'a, P: ?Sized>(pub(crate) &'a P);

impl<P: Platform + ?Sized> TableMem<GuestPhys> for Peek<'_, P> {
    fn read_entry(&self, at: Gpa) -> u64 {
        self.0.peek(VmId::FIRST, at)
    }

    /// Walks only read.
    fn write_entry(&mut self, _: Gpa, _: u64) {}
}

/// Where an access goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    path: Path<Guest4>,
    /// The 4 KiB page, by number.
    pub(crate) page: u64,
    /// The frame that it reaches.
    pub(crate) frame: Gfn,
    pub(crate) write: bool,
    pub(crate) user: bool,
    pub(crate) fetch: bool,
    /// Whether the leaf entry's dirty bit was set before, and stores are permitted.
    pub(crate) writable: bool,
    /// Whether the accessed bits of all entries were set before.
    pub(crate) accessed: bool,
}

impl Way {
    /// `None` where nothing is mapped.
    pub(crate) fn of<P: Platform + ?Sized>(platform: &P, root: Gfn, acc: Acc) -> Option<Self> {
        let path = walk::<Guest4, _>(&Peek(platform), root, acc.gva());
        let Walked::Mapped { .. } = path.end else { return None };
        let leaf = path.leaf()?;
        let Entry::Leaf { attrs, .. } = leaf.entry else { return None };
        Some(Self {
            frame: path.frame_of(acc.gva())?,
            page: acc.gva().as_u64() >> 12,
            write: acc.is_write(),
            user: acc.privilege() == memvirt_addr::Privilege::User,
            fetch: acc.kind() == memvirt_addr::AccessKind::Fetch,
            writable: attrs.contains(Attrs::DIRTY) && path.perms.contains(Attrs::WRITE),
            accessed: path.missing_accessed().next().is_none(),
            path,
        })
    }

    /// Every entry on the way with its level, root first.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (Gpa, u8)> {
        self.path.steps().map(|step| (step.entry_at, step.level.number()))
    }

    /// Every entry above the leaf with the table that it leads to and its own level, root first.
    pub(crate) fn links(&self) -> impl Iterator<Item = (Gpa, Gfn, u8)> {
        self.path.steps().filter_map(|step| match step.entry {
            Entry::Table { next, .. } => Some((step.entry_at, next, step.level.number())),
            _ => None,
        })
    }

    /// The same with what each entry says.
    pub(crate) fn tables(&self) -> impl Iterator<Item = (Gpa, Gfn, u8, Attrs)> {
        self.path.steps().filter_map(|step| match step.entry {
            Entry::Table { next, attrs } => Some((step.entry_at, next, step.level.number(), attrs)),
            _ => None,
        })
    }

    /// What the entry that maps the page said before the access.
    pub(crate) fn leaf_attrs(&self) -> Attrs {
        self.path.leaf().map_or(Attrs::empty(), |step| step.entry.attrs())
    }

    /// What all entries permit together.
    pub(crate) const fn perms(&self) -> Attrs {
        self.path.perms
    }

    /// How many entries a walk reads.
    pub(crate) fn refs(&self) -> u64 {
        u64::from(self.path.refs())
    }

    /// Whether a walk reads a table in `frame`.
    pub(crate) fn leads_through(&self, frame: Gfn) -> bool {
        self.entries().any(|(entry, _)| entry.frame() == frame)
    }

    /// The level of the entry that maps the page.
    pub(crate) fn leaf_level(&self) -> u8 {
        self.path.leaf().map_or(1, |step| step.level.number())
    }

    /// The entry that maps the page.
    pub(crate) fn leaf(&self) -> Gpa {
        self.path.leaf().map_or(Gpa::ZERO, |step| step.entry_at)
    }
}

/// The frames of the tables that a walk for `acc` reads, however it ends.
pub(crate) fn tables<P: Platform + ?Sized>(platform: &P, root: Gfn, acc: Acc) -> impl Iterator<Item = Gfn> {
    let path = walk::<Guest4, _>(&Peek(platform), root, acc.gva());
    let frames: Vec<Gfn> = path.steps().map(|step| step.entry_at.frame()).collect();
    frames.into_iter()
}

/// The last entry that a walk for `acc` reads, with its level.
pub(crate) fn lowest<P: Platform + ?Sized>(platform: &P, root: Gfn, acc: Acc) -> Option<(Gpa, u8)> {
    let path = walk::<Guest4, _>(&Peek(platform), root, acc.gva());
    path.steps().next_back().map(|step| (step.entry_at, step.level.number()))
}
