//! Two-dimensional walks made before they are needed, several at a time: see [`memvirt_platform::foresee`].
//!
//! All accesses go down to the guest's last table before any reads its entry there, and to the nested tables' last one before any
//! reads there: those entries are what has to be waited for, and are fetched meanwhile. The ways to last tables are noted, so
//! that most walks read the two last entries alone ([`memvirt_platform::Notes`]). A walk that would set a bit, fault or exit is
//! left to the careful one of [`crate::walk`].

use core::marker::PhantomData;

use memvirt_addr::{Acc, Gfn, Gpa, GuestPhys, GuestVirt, Hfn, HostPhys, Level, PageSize};
use memvirt_pagetable::{Attrs, Entry as TableEntry, Format, PhysMem};
use memvirt_platform::{AHEAD, Backed, Foresight, Notes, Regs, Tables, WalkRefs, tlb_entry};
use memvirt_tlb::{Entry, Ready, Tag};

use crate::stage::{AdBits, SecondStage, Want};

/// One access on its way through both dimensions.
#[derive(Clone, Copy)]
struct Lane {
    /// Where the last nested entry for `gpa` lies, where those above are known to be plain; else 0, which is no place of one.
    leaf: usize,
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
            leaf: 0,
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
        let (mut guest, mut nested) = found.notes();
        for (lane, acc) in lanes.iter_mut().zip(ahead) {
            self.to_last_table(lane, *acc, &mut guest);
            self.mem.fetch(self.mem.place(lane.table, lane.gpa.as_u64() >> 3));
        }
        for (lane, acc) in lanes.iter_mut().zip(ahead) {
            if lane.reads && lane.page.is_none() {
                self.read_guest(lane, *acc, Level::L1);
            }
            lane.want = H::data(acc.kind());
            lane.begin(self.nested_root, H::covers(lane.gpa));
            if lane.reads {
                lane.leaf = self.last_entry(lane.gpa, &mut nested);
                self.mem.fetch(lane.leaf);
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

    /// Brings a lane to the guest's last table: as it is noted, or by walking.
    #[inline]
    fn to_last_table(&self, lane: &mut Lane, acc: Acc, notes: &mut Notes<'_, 3>) {
        let region = acc.page_bits(21);
        if let Some([table, guest_table, rest]) = notes.get(region) {
            lane.gpa = Gfn::new(guest_table).entry(G::index(acc.gva(), Level::L1));
            (lane.table, lane.translated) = (Hfn::new(table), Some(PageSize::Size4K));
            let [guest_refs, host_refs, _, _, perms @ ..] = rest.to_le_bytes();
            lane.perms = Attrs::from_bits_retain(u32::from_le_bytes(perms));
            (lane.guest_refs, lane.host_refs) = (guest_refs, host_refs);
            return;
        }
        self.down_to_leaf(lane, acc);
        if lane.reads && lane.page.is_none() {
            let refs = u64::from(lane.guest_refs) | u64::from(lane.host_refs) << 8;
            let rest = refs | u64::from(lane.perms.bits()) << 32;
            notes.put(region, [lane.table.number(), lane.gpa.frame().number(), rest]);
        }
    }

    /// Walks the guest's tables of one lane until the entry of its last one can be read.
    #[inline(never)]
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

    /// Where the last nested entry for an address lies, if those above are plain and would only be read; otherwise 0.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "what `PhysMem::place` made")]
    fn last_entry(&self, gpa: Gpa, notes: &mut Notes<'_, 1>) -> usize {
        let region = gpa.as_u64() >> 21;
        let [first] = notes.get(region).unwrap_or_else(|| {
            let first = [self.last_table(gpa)];
            notes.put(region, first);
            first
        });
        if first == 0 { 0 } else { first as usize + H::index(gpa, Level::L1) }
    }

    /// Where the last nested table for an address begins, if those above are plain and would only be read; otherwise 0.
    #[inline(never)]
    fn last_table(&self, gpa: Gpa) -> u64 {
        let (mut table, mut level) = (self.nested_root, H::ROOT);
        let (mask, value) = H::PLAIN_TABLE;
        while let Some(below) = level.below() {
            let raw = self.mem.read(table.entry(H::index(gpa, level)));
            if raw & (mask | self.accessed) != value | self.accessed {
                return 0;
            }
            (table, level) = (Hfn::new((raw & ADDRESS) >> 12), below);
        }
        self.mem.place(table, 0) as u64
    }

    /// Translates the guest-physical address of a lane, if it is not translated yet.
    #[inline]
    fn translate(&self, lane: &mut Lane) {
        if self.by_last_entry(lane) || self.plainly(lane) {
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

    /// Translates the address of a lane whose last entry is known, if that is plain; otherwise changes nothing and returns false.
    #[inline]
    fn by_last_entry(&self, lane: &mut Lane) -> bool {
        if lane.leaf == 0 || !lane.reads {
            return false;
        }
        let raw = self.mem.read_place(lane.leaf);
        let (mask, value) = H::PLAIN_LEAF;
        if raw & (mask | self.accessed) != value | self.accessed {
            return false;
        }
        self.end_plainly(lane, raw);
        true
    }

    /// A lane has come to the plain entry `raw` of a page of 4 KiB.
    #[inline(always)]
    const fn end_plainly(&self, lane: &mut Lane, raw: u64) {
        lane.host_dirty = raw & self.dirty == self.dirty;
        lane.reads = lane.host_dirty || !lane.want.write;
        (lane.table, lane.translated) = (Hfn::new((raw & ADDRESS) >> 12), Some(PageSize::Size4K));
        lane.host_refs += H::ROOT.number();
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
            let Some(below) = level.below() else {
                self.end_plainly(lane, raw);
                return true;
            };
            (table, level) = (Hfn::new((raw & ADDRESS) >> 12), below);
        }
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
