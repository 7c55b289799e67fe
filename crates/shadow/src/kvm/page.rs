//! Shadow pages, and the three ways to find them: by guest frame, by age, by the host frame of their table.
//!
//! A page stands for one guest table (or for a region of a large guest page) under one [`Role`]. Its entries lie in host
//! memory, where hardware walks them; what KVM keeps beside them is here. Source: spec A2; `struct kvm_mmu_page`, the hash of
//! 4096 buckets and the list `active_mmu_pages` in `arch/x86/kvm/mmu`.

use core::fmt;

use memvirt_addr::{Hfn, HostPhys, Hpa};
use memvirt_pagetable::{FewWords, PhysMem};

use super::lists::{Head, SpteRef};
use super::role::{Access, Role};
use super::spte::Spte;

/// The number of a shadow page.
pub(crate) type PageId = u32;
/// No page.
pub(crate) const NONE: PageId = u32::MAX;

/// For each entry of an indirect page: the guest frame that it maps and the access that the guest granted. KVM keeps a table of
/// 512; where few were ever set, this keeps those.
#[derive(Debug)]
enum Translations {
    Few(Box<FewWords>),
    All(Box<[u64; 512]>),
}

impl Translations {
    fn get(&self, index: usize) -> u64 {
        match self {
            Self::Few(few) => few.get(index),
            Self::All(all) => all[index],
        }
    }

    fn set(&mut self, index: usize, value: u64) {
        match self {
            Self::Few(few) => {
                if !few.set(index, value) {
                    let mut all = Box::new(few.all());
                    all[index] = value;
                    *self = Self::All(all);
                }
            }
            Self::All(all) => all[index] = value,
        }
    }
}

/// What KVM knows of one shadow page.
pub(crate) struct Page {
    pub(crate) gfn: u64,
    pub(crate) role: Role,
    /// Where the entries are.
    pub(crate) table: Hfn,
    /// Kept by direct pages too, unused, for whom the slot serves next.
    translations: Option<Translations>,
    /// How many times a vCPU holds it as current or previous root.
    pub(crate) root_count: u32,
    pub(crate) unsync: bool,
    /// How many bits are set in `unsync_bits`.
    pub(crate) unsync_children: u32,
    /// Entries below which something may be out of sync. A bit is cleared only by a walk that passes it.
    pub(crate) unsync_bits: [u64; 8],
    pub(crate) parents: Head,
    pub(crate) write_flooding: u32,
    pub(crate) generation: u8,
    next_in_bucket: PageId,
    newer: PageId,
    older: PageId,
    listed: bool,
    live: bool,
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unsync = if self.unsync { " unsync" } else { "" };
        let Self { gfn, role, table, root_count, unsync_children, .. } = self;
        write!(f, "page of {gfn:#x} ({role:?}) in {table:?},{unsync} {unsync_children} marks, held {root_count} times")
    }
}

impl Page {
    /// Whether the page stands for a guest table.
    pub(crate) const fn has_gptes(&self) -> bool {
        !self.role.is_direct()
    }

    pub(crate) const fn level(&self) -> u8 {
        self.role.level()
    }

    pub(crate) fn entry_at(&self, index: usize) -> Hpa {
        self.table.entry(index)
    }

    /// The guest frame that entry `index` maps.
    pub(crate) fn gfn_of(&self, index: usize) -> u64 {
        match &self.translations {
            Some(translations) if self.has_gptes() => translations.get(index) >> 12,
            _ => self.gfn + ((index as u64) << (9 * (self.level() - 1))),
        }
    }

    /// The access that the guest granted through entry `index`.
    pub(crate) fn access_of(&self, index: usize) -> Access {
        match &self.translations {
            Some(translations) if self.has_gptes() => Access((translations.get(index) & 7) as u8),
            _ => self.role.access(),
        }
    }

    pub(crate) fn set_translation(&mut self, index: usize, gfn: u64, access: Access) {
        if self.has_gptes()
            && let Some(translations) = &mut self.translations
        {
            translations.set(index, gfn << 12 | u64::from(access.0));
        }
    }

    pub(crate) const fn unsync_bit(&self, index: usize) -> bool {
        self.unsync_bits[index / 64] >> (index % 64) & 1 != 0
    }

    pub(crate) const fn set_unsync_bit(&mut self, index: usize) {
        self.unsync_bits[index / 64] |= 1 << (index % 64);
    }

    pub(crate) const fn clear_unsync_bit(&mut self, index: usize) {
        self.unsync_bits[index / 64] &= !(1 << (index % 64));
        self.unsync_children -= 1;
    }

    /// The first entry from `from` on whose unsync bit is set.
    pub(crate) fn next_unsync(&self, from: usize) -> Option<usize> {
        let mut word = from / 64;
        let mut bits = *self.unsync_bits.get(word)? & (u64::MAX << (from % 64));
        while bits == 0 {
            word += 1;
            bits = *self.unsync_bits.get(word)?;
        }
        Some(word * 64 + bits.trailing_zeros() as usize)
    }
}

const BUCKET_BITS: u32 = 12;

/// All shadow pages of a virtual machine.
#[derive(Debug)]
pub(crate) struct Pages {
    slots: Vec<Page>,
    free: Vec<PageId>,
    buckets: Box<[PageId]>,
    newest: PageId,
    oldest: PageId,
    by_frame: FrameIndex,
    /// Pages in use: those that count against the limit.
    pub(crate) used: u64,
    /// Pages that stand for guest tables and are valid.
    pub(crate) indirect: u64,
    /// Pages whose table exists, obsolete roots included, and those of them that keep translations.
    pub(crate) tables: u64,
    pub(crate) with_translations: u64,
}

impl core::ops::Index<PageId> for Pages {
    type Output = Page;
    fn index(&self, id: PageId) -> &Page {
        &self.slots[id as usize]
    }
}

impl core::ops::IndexMut<PageId> for Pages {
    fn index_mut(&mut self, id: PageId) -> &mut Page {
        &mut self.slots[id as usize]
    }
}

impl Pages {
    pub(crate) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            buckets: vec![NONE; 1 << BUCKET_BITS].into_boxed_slice(),
            newest: NONE,
            oldest: NONE,
            by_frame: FrameIndex::default(),
            used: 0,
            indirect: 0,
            tables: 0,
            with_translations: 0,
        }
    }

    /// The bucket of a guest frame (`hash_64`).
    fn bucket(gfn: u64) -> usize {
        (gfn.wrapping_mul(0x61c8_8646_80b5_83eb) >> (64 - BUCKET_BITS)) as usize
    }

    /// The first page of the bucket that holds the pages of `gfn`, newest first; others may share the bucket.
    pub(crate) fn first_in_bucket(&self, gfn: u64) -> PageId {
        self.buckets[Self::bucket(gfn)]
    }

    pub(crate) fn next_in_bucket(&self, id: PageId) -> PageId {
        self[id].next_in_bucket
    }

    /// The page that was made longest ago.
    pub(crate) const fn oldest(&self) -> PageId {
        self.oldest
    }

    /// The page made next after `id`.
    pub(crate) fn newer(&self, id: PageId) -> PageId {
        self[id].newer
    }

    /// Makes a page over an empty table.
    pub(crate) fn create(&mut self, gfn: u64, role: Role, table: Hfn, generation: u8) -> PageId {
        let id = self.free.pop().unwrap_or_else(|| self.add_slot());
        let bucket = Self::bucket(gfn);
        let (next_in_bucket, older) = (self.buckets[bucket], self.newest);
        let page = &mut self[id];
        let mut translations = page.translations.take();
        if !role.is_direct() {
            translations.get_or_insert_with(|| Translations::Few(Box::default()));
        }
        *page = Page {
            gfn,
            role,
            table,
            translations,
            generation,
            next_in_bucket,
            older,
            listed: true,
            live: true,
            ..Page::vacant()
        };
        self.buckets[bucket] = id;
        match older {
            NONE => self.oldest = id,
            older => self[older].newer = id,
        }
        self.newest = id;
        self.by_frame.set(table, id);
        self.used += 1;
        self.tables += 1;
        self.with_translations += u64::from(!role.is_direct());
        id
    }

    fn add_slot(&mut self) -> PageId {
        self.slots.push(Page::vacant());
        PageId::try_from(self.slots.len() - 1).unwrap_or(NONE)
    }

    /// Takes a page off the list of pages by age.
    pub(crate) fn unlist(&mut self, id: PageId) {
        if !self[id].listed {
            return;
        }
        let (newer, older) = (self[id].newer, self[id].older);
        match newer {
            NONE => self.newest = older,
            newer => self[newer].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self[older].newer = newer,
        }
        let page = &mut self[id];
        (page.newer, page.older, page.listed) = (NONE, NONE, false);
    }

    /// Ends the life of an unlisted page; returns the frame of its table.
    pub(crate) fn remove(&mut self, id: PageId) -> Hfn {
        let (gfn, table, next) = (self[id].gfn, self[id].table, self[id].next_in_bucket);
        let bucket = Self::bucket(gfn);
        if self.buckets[bucket] == id {
            self.buckets[bucket] = next;
        } else {
            let mut at = self.buckets[bucket];
            while self[at].next_in_bucket != id {
                at = self[at].next_in_bucket;
            }
            self[at].next_in_bucket = next;
        }
        self.by_frame.set(table, NONE);
        self.tables -= 1;
        self.with_translations -= u64::from(self[id].has_gptes());
        self[id].live = false;
        self.free.push(id);
        table
    }

    /// The page whose table lies in `frame`.
    pub(crate) fn of_table(&self, frame: Hfn) -> PageId {
        self.by_frame.get(frame)
    }

    /// The host address of an entry.
    pub(crate) fn at(&self, entry: SpteRef) -> Hpa {
        self[entry.page()].entry_at(entry.index())
    }

    pub(crate) fn read(&self, mem: &PhysMem<HostPhys>, entry: SpteRef) -> Spte {
        Spte(mem.read(self.at(entry)))
    }

    /// The indices of the entries of a page that are not zero now.
    pub(crate) fn occupied(&self, mem: &PhysMem<HostPhys>, id: PageId) -> Occupied {
        let mut bits = [0; 8];
        for (bits, words) in bits.iter_mut().zip(mem.words(self[id].table).chunks_exact(64)) {
            for (i, word) in words.iter().enumerate() {
                *bits |= u64::from(*word != 0) << i;
            }
        }
        Occupied { bits, word: 0 }
    }

    /// All pages that exist, for inspection.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (PageId, &Page)> {
        (0..).zip(&self.slots).filter(|(_, page)| page.live)
    }
}

/// Indices of entries, found once: entries may change while these are gone through.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Occupied {
    bits: [u64; 8],
    word: usize,
}

impl Iterator for Occupied {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        while *self.bits.get(self.word)? == 0 {
            self.word += 1;
        }
        let bit = self.bits[self.word].trailing_zeros();
        self.bits[self.word] &= self.bits[self.word] - 1;
        Some(self.word * 64 + bit as usize)
    }
}

impl Page {
    const fn vacant() -> Self {
        Self {
            gfn: 0,
            role: Role::NONE,
            table: Hfn::new(0),
            translations: None,
            root_count: 0,
            unsync: false,
            unsync_children: 0,
            unsync_bits: [0; 8],
            parents: Head::EMPTY,
            write_flooding: 0,
            generation: 0,
            next_in_bucket: NONE,
            newer: NONE,
            older: NONE,
            listed: false,
            live: false,
        }
    }
}

/// From the frame of a table to its page, as `page_private` is in the kernel. Grows with the frames in use.
#[derive(Debug, Default)]
struct FrameIndex(Vec<Option<Box<[PageId; 1024]>>>);

impl FrameIndex {
    fn get(&self, frame: Hfn) -> PageId {
        let number = frame.as_index();
        match self.0.get(number / 1024) {
            Some(Some(chunk)) => chunk[number % 1024],
            _ => NONE,
        }
    }

    fn set(&mut self, frame: Hfn, id: PageId) {
        let number = frame.as_index();
        if self.0.len() <= number / 1024 {
            self.0.resize_with(number / 1024 + 1, || None);
        }
        self.0[number / 1024].get_or_insert_with(|| Box::new([NONE; 1024]))[number % 1024] = id;
    }
}
