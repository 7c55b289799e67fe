//! Two-dimensional walks made before they are needed, several at a time: see [`memvirt_platform::foresee`].
//!
//! All accesses go down to the guest's last table before any reads its entry there, and to the nested tables' last one before any
//! reads there: those entries are what has to be waited for, and are fetched meanwhile. A walk that would set a bit, fault or exit is left to the careful one of [`crate::walk`].

use core::marker::PhantomData;

use memvirt_addr::{Acc, Gpa, GuestPhys, GuestVirt, Hfn, HostPhys, Level, PageSize};
use memvirt_pagetable::{Attrs, Entry as TableEntry, Format, PhysMem};
use memvirt_platform::{AHEAD, Backed, Foresight, Regs, Tables, WalkRefs, tlb_entry};
use memvirt_tlb::{Entry, Ready, Tag};

use crate::stage::{AdBits, SecondStage, Want};

/// One access on its way through both dimensions.
#[derive(Clone, Copy)]
struct Lane {
    /// Still on its way, and has only read so far.
    reads: bool,
    /// Where the guest's walk ended: the size of its page.
    page: Option<PageSize>,
    /// The guest-physical address being translated; then the data's.
    gpa: Gpa,
    /// The nested table to be read next; once `translated`, the frame that holds `gpa`.
    table: Hfn,
    translated: Option<PageSize>,
    /// What the translation is for.
    want: Want,
    /// What its nested entries permit.
    had: Attrs,
    /// What the guest's entries permit.
    perms: Attrs,
    guest_dirty: bool,
    host_dirty: bool,
    guest_refs: u8,
    host_refs: u8,
}

impl Lane {
    /// Begins a translation.
    #[inline]
    const fn begin(&mut self, nested_root: Hfn, covered: bool) {
        self.reads &= covered;
        (self.table, self.translated, self.had) = (nested_root, None, Attrs::PERMISSIONS);
    }
}

/// What the walks read from.
pub(crate) struct Ahead<'a, G, H> {
    mem: &'a PhysMem<HostPhys>,
    nested_root: Hfn,
    ad: AdBits,
    regs: &'a Regs,
    /// The accessed bit of nested entries, and the dirty bit of leaves, where hardware maintains them; else 0.
    accessed: u64,
    dirty: u64,
    formats: PhantomData<(G, H)>,
}

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

impl<'a, G, H> Ahead<'a, G, H>
where
    G: Format<In = GuestVirt, Out = GuestPhys>,
    H: SecondStage,
{
    pub(crate) const fn new(mem: &'a PhysMem<HostPhys>, nested_root: Hfn, ad: AdBits, regs: &'a Regs) -> Self {
        let (accessed, dirty) = match ad {
            AdBits::On => (H::RAW_ACCESSED, H::RAW_DIRTY),
            AdBits::Off => (0, 0),
        };
        Self { mem, nested_root, ad, regs, accessed, dirty, formats: PhantomData }
    }

    /// Walks for all of `ahead`.
    pub(crate) fn walk(&self, tag: Tag, ahead: &[Acc], found: &mut Foresight) {
        let ahead = &ahead[..ahead.len().min(AHEAD)];
        if ahead.len() == 1 {
            self.side_by_side::<1>(tag, ahead, found);
        } else {
            self.side_by_side::<AHEAD>(tag, ahead, found);
        }
    }

    /// The walks of at most `N` accesses.
    fn side_by_side<const N: usize>(&self, tag: Tag, ahead: &[Acc], found: &mut Foresight) {
        let start = Lane {
            reads: true,
            page: None,
            gpa: self.regs.cr3.root.frame().base(),
            table: self.nested_root,
            translated: None,
            want: H::table_read(self.ad),
            had: Attrs::PERMISSIONS,
            perms: Attrs::PERMISSIONS,
            guest_dirty: false,
            host_dirty: false,
            guest_refs: 0,
            host_refs: 0,
        };
        let mut lanes = [start; N];
        let lanes = &mut lanes[..ahead.len().min(N)];
        for (lane, acc) in lanes.iter_mut().zip(ahead) {
            self.down_to_leaf(lane, *acc);
            self.mem.fetch(self.mem.place(lane.table, lane.gpa.as_u64() >> 3));
        }
        for (lane, acc) in lanes.iter_mut().zip(ahead) {
            if lane.reads && lane.page.is_none() {
                self.read_guest(lane, *acc, Level::L1);
            }
            lane.want = H::data(acc.kind());
            lane.begin(self.nested_root, H::covers(lane.gpa));
            if N > 1 {
                self.fetch_leaf(lane);
            }
        }
        for lane in &mut *lanes {
            self.translate(lane);
        }
        for (i, (lane, acc)) in lanes.iter().zip(ahead).enumerate() {
            if let Some((entry, refs)) = self.result(lane, *acc) {
                found.tell(i, Ready::new(tag, &entry), refs);
            }
        }
    }

    /// Walks the guest's tables of one lane until the entry of its last one can be read.
    #[inline]
    fn down_to_leaf(&self, lane: &mut Lane, acc: Acc) {
        let mut level = G::ROOT;
        loop {
            lane.gpa = lane.gpa.frame().entry(G::index(acc.gva(), level));
            lane.begin(self.nested_root, H::covers(lane.gpa));
            self.translate(lane);
            let Some(below) = level.below().filter(|_| lane.reads) else { return };
            self.read_guest(lane, acc, level);
            if lane.page.is_some() || !lane.reads {
                return;
            }
            level = below;
        }
    }

    /// Fetches the nested leaf of a lane's address, where the entries above are plain.
    #[inline]
    fn fetch_leaf(&self, lane: &Lane) {
        let (mut table, mut level) = (self.nested_root, H::ROOT);
        while let (Some(below), true) = (level.below(), lane.reads) {
            let raw = self.mem.read(table.entry(H::index(lane.gpa, level)));
            if raw & H::PLAIN_TABLE.0 != H::PLAIN_TABLE.1 {
                return;
            }
            (table, level) = (Hfn::new((raw & ADDRESS) >> 12), below);
        }
        let leaf = table.entry(H::index(lane.gpa, Level::L1));
        self.mem.fetch(self.mem.place(table, leaf.as_u64() >> 3));
    }

    /// Translates the guest-physical address of a lane, if it is not translated yet.
    #[inline]
    fn translate(&self, lane: &mut Lane) {
        if self.plainly(lane) {
            return;
        }
        core::hint::cold_path();
        let mut level = H::ROOT;
        loop {
            if lane.reads && lane.translated.is_none() {
                self.read_nested(lane, level);
            }
            let Some(below) = level.below() else { break };
            level = below;
        }
    }

    /// Translates the address of a lane, if all entries on the way are plain and lead to a page of 4 KiB; otherwise changes
    /// nothing and returns false.
    #[inline]
    fn plainly(&self, lane: &mut Lane) -> bool {
        if !lane.reads || lane.translated.is_some() {
            return true;
        }
        let (table_bits, leaf_bits) = (H::PLAIN_TABLE, H::PLAIN_LEAF);
        let (mut table, mut level) = (self.nested_root, H::ROOT);
        loop {
            let raw = self.mem.read(table.entry(H::index(lane.gpa, level)));
            let (mask, value) = if level == Level::L1 { leaf_bits } else { table_bits };
            if raw & (mask | self.accessed) != value | self.accessed {
                return false;
            }
            table = Hfn::new((raw & ADDRESS) >> 12);
            let Some(below) = level.below() else {
                lane.host_dirty = raw & self.dirty == self.dirty;
                break;
            };
            level = below;
        }
        lane.reads = lane.host_dirty || !lane.want.write;
        (lane.table, lane.translated) = (table, Some(PageSize::Size4K));
        lane.host_refs += H::ROOT.number();
        true
    }

    /// One reference to a nested table.
    #[inline(always)]
    fn read_nested(&self, lane: &mut Lane, level: Level) {
        let raw = self.mem.read(lane.table.entry(H::index(lane.gpa, level)));
        lane.host_refs += 1;
        lane.reads = raw & self.accessed == self.accessed;
        let (mask, value) = if level == Level::L1 { H::PLAIN_LEAF } else { H::PLAIN_TABLE };
        if raw & mask == value {
            lane.table = Hfn::new((raw & ADDRESS) >> 12);
            if level == Level::L1 {
                lane.host_dirty = raw & self.dirty == self.dirty;
                lane.reads &= lane.host_dirty || !lane.want.write;
                lane.translated = Some(PageSize::Size4K);
            }
            return;
        }
        match H::read(raw, level) {
            TableEntry::Table { next, attrs } => {
                lane.had &= attrs;
                lane.table = next;
            }
            TableEntry::Leaf { frame, size, attrs } => {
                lane.had &= attrs;
                lane.host_dirty = raw & self.dirty == self.dirty;
                lane.reads &= lane.had.contains(lane.want.perms) && (lane.host_dirty || !lane.want.write);
                lane.table = frame.offset(lane.gpa.page_offset(size) >> 12);
                lane.translated = Some(size);
            }
            TableEntry::Absent | TableEntry::Reserved => lane.reads = false,
        }
    }

    /// One reference to a guest table.
    #[inline]
    fn read_guest(&self, lane: &mut Lane, acc: Acc, level: Level) {
        let raw = self.mem.read(lane.table.at(lane.gpa.as_u64()));
        lane.guest_refs += 1;
        match G::decode(raw, level) {
            TableEntry::Table { next, attrs } => {
                let accessed = G::accessed_bit(level);
                lane.reads = raw & accessed == accessed;
                lane.perms &= attrs;
                lane.gpa = next.base();
            }
            TableEntry::Leaf { frame, size, attrs } => {
                lane.perms &= attrs;
                lane.guest_dirty = raw & G::RAW_DIRTY != 0;
                let bits = G::RAW_ACCESSED | if acc.is_write() { G::RAW_DIRTY } else { 0 };
                lane.reads = raw & bits == bits && self.regs.permits(lane.perms, acc);
                lane.perms.set(Attrs::GLOBAL, attrs.contains(Attrs::GLOBAL) && self.regs.global_pages);
                lane.gpa = frame.base().wrapping_add(acc.gva().page_offset(size));
                lane.page = Some(size);
            }
            TableEntry::Absent | TableEntry::Reserved => lane.reads = false,
        }
    }

    #[inline]
    fn result(&self, lane: &Lane, acc: Acc) -> Option<(Entry, WalkRefs)> {
        let (Some(guest_size), Some(size), true) = (lane.page, lane.translated, lane.reads) else { return None };
        let mut perms = lane.perms;
        for both in [Attrs::WRITE, Attrs::EXEC] {
            perms.set(both, perms.contains(both) && lane.had.contains(both));
        }
        let entry =
            tlb_entry(acc, Backed { frame: lane.table, size }, guest_size, perms, lane.guest_dirty && lane.host_dirty);
        let refs = WalkRefs { guest: lane.guest_refs.into(), host: lane.host_refs.into(), shadow: 0 };
        Some((entry, refs))
    }
}
