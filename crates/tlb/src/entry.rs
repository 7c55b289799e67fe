//! [`Entry`] and [`Perms`], and the packed form in which an array keeps them.
//!
//! An array holds three words for an entry: [`Key`] (what a lookup compares first), [`Meta`] (process tag, permissions)
//! and the host frame. The neighbours are `array` (storage) and `tlb` (lookup and fill).

use memvirt_addr::{Acc, AccessKind, Gva, Hfn, PageSize, Privilege, Vpn};

/// What a cached translation permits.
///
/// Reading in supervisor mode needs no bit.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Perms(u8);

impl Perms {
    /// Supervisor reads only.
    pub const NONE: Self = Self(0);
    /// May be stored to right now: write permission, and the dirty bit already set, in every table concerned.
    pub const WRITE: Self = Self(1);
    /// May be fetched from.
    pub const EXEC: Self = Self(2);
    /// Reachable from user mode.
    pub const USER: Self = Self(4);
    /// Everything.
    pub const ALL: Self = Self(7);

    /// The permissions with these bits; others are dropped.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & Self::ALL.0)
    }

    /// The bits.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// These and those.
    #[must_use]
    #[inline]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These without those.
    #[must_use]
    #[inline]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of `other` is granted.
    #[must_use]
    #[inline]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// What `acc` needs.
    #[must_use]
    #[inline]
    pub const fn needed_by(acc: Acc) -> Self {
        // The kinds are numbered so that their numbers are the bits: read 0, write 1, fetch 2.
        const { assert!(AccessKind::Write as u8 == 1 && AccessKind::Fetch as u8 == 2) };
        const { assert!(Privilege::User as u8 == 0 && Privilege::Supervisor as u8 == 1) };
        Self(acc.kind() as u8 | ((acc.privilege() as u8 ^ 1) << 2))
    }
}

impl core::ops::BitOr for Perms {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        self.with(other)
    }
}

impl core::fmt::Debug for Perms {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        for (bit, letter) in [(Self::WRITE, "w"), (Self::EXEC, "x"), (Self::USER, "u")] {
            f.write_str(if self.contains(bit) { letter } else { "-" })?;
        }
        Ok(())
    }
}

/// One cached translation: where a guest-virtual page lies in host memory, and what may be done there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// The first 4 KiB page of the cached page. A page that is not aligned to `size` stands for the one that holds it.
    pub page: Vpn,
    /// The first 4 KiB host frame of the cached page; aligned down to `size` likewise.
    pub frame: Hfn,
    /// The size that is cached: the smaller of the guest's page and the host's.
    pub size: PageSize,
    /// The size of the guest's page, at least `size`. Larger: the entry is *fractured*, one of many pieces.
    pub guest_size: PageSize,
    /// What is permitted.
    pub perms: Perms,
    /// Visible to every PCID of the VPID (the G bit of the guest's leaf entry, with CR4.PGE set).
    pub global: bool,
}

impl Entry {
    /// A translation that is neither global nor fractured.
    #[must_use]
    pub const fn new(page: Vpn, frame: Hfn, size: PageSize, perms: Perms) -> Self {
        Self { page, frame, size, guest_size: size, perms, global: false }
    }

    /// The same, global.
    #[must_use]
    pub const fn with_global(self) -> Self {
        Self { global: true, ..self }
    }

    /// The same, as a piece of a guest page of `guest_size` (or of its own size, where that is larger).
    #[must_use]
    pub fn with_guest_size(self, guest_size: PageSize) -> Self {
        Self { guest_size: guest_size.max(self.size), ..self }
    }

    /// Whether the guest's page is larger than what is cached.
    #[must_use]
    pub fn fractured(&self) -> bool {
        self.guest_size > self.size
    }

    /// Whether the cached page holds `gva`.
    #[must_use]
    pub fn covers(&self, gva: Gva) -> bool {
        gva.frame().align_down(self.size) == self.page.align_down(self.size)
    }

    /// Where `gva` lies, given that the entry covers it.
    #[must_use]
    pub fn frame_of(&self, gva: Gva) -> Hfn {
        self.frame.align_down(self.size).offset(gva.frame().number() & (self.size.frames() - 1))
    }

    /// The piece of `size` that holds `gva`, for machines that do not cache the whole page; the entry itself where
    /// `size` is not smaller.
    #[must_use]
    pub fn narrowed(self, gva: Gva, size: PageSize) -> Self {
        if size >= self.size {
            return self;
        }
        let frame = self.frame_of(gva).align_down(size);
        Self { page: gva.frame().align_down(size), frame, size, ..self }
    }
}

/// Page number, size and VPID in one word, never 0: the first compare of a lookup.
///
/// Bit 0 is set, bits 1 to 16 are the VPID, 17 and 18 the size, 19 to 63 the page number in units of the size.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key(pub(crate) u64);

impl Key {
    pub(crate) const PAGE_SHIFT: u32 = 19;
    const VPID_BITS: u64 = 0xffff << 1;

    /// The key without its page number: fixed over a run of accesses.
    #[inline]
    pub(crate) const fn context(vpid: u16, size: PageSize) -> u64 {
        1 | (vpid as u64) << 1 | (size as u64) << 17
    }

    /// The key of the page of `size` that holds `page`, a number of 4 KiB pages in its low 45 bits.
    #[inline]
    pub(crate) const fn new(vpid: u16, size: PageSize, page: u64) -> Self {
        let number = (page & ((1 << 45) - 1)) >> (size.shift() - 12);
        Self(number << Self::PAGE_SHIFT | Self::context(vpid, size))
    }

    /// The page number in units of the size.
    #[inline]
    pub(crate) const fn number(self) -> u64 {
        self.0 >> Self::PAGE_SHIFT
    }

    /// The first 4 KiB page, 45 bits.
    pub(crate) const fn page(self) -> u64 {
        self.number() << (self.size().shift() - 12)
    }

    pub(crate) const fn vpid(self) -> u16 {
        ((self.0 & Self::VPID_BITS) >> 1) as u16
    }

    #[inline]
    pub(crate) const fn size(self) -> PageSize {
        match (self.0 >> 17) & 3 {
            1 => PageSize::Size4K,
            2 => PageSize::Size2M,
            _ => PageSize::Size1G,
        }
    }
}

/// Process tag, permissions and guest page size in one word.
///
/// Bits 0 to 11 are the PCID, 12 to 14 the permissions, 16 and 17 the guest's size, 20 to 31 the mask under which PCIDs
/// are compared: all ones, or 0 in a global entry. So one expression without a branch serves both.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meta(pub(crate) u32);

impl Meta {
    const PERMS_SHIFT: u32 = 12;

    pub(crate) const fn new(pcid: u16, entry: &Entry) -> Self {
        let mask = if entry.global { 0 } else { 0xfff };
        Self(pcid as u32 | (entry.perms.0 as u32) << Self::PERMS_SHIFT | (entry.guest_size as u32) << 16 | mask << 20)
    }

    /// Whether a process sees the entry.
    #[inline]
    pub(crate) const fn visible_to(self, pcid: u16) -> bool {
        (self.0 ^ pcid as u32) & (self.0 >> 20) == 0
    }

    /// Whether a process sees the entry and the entry permits what is needed.
    #[inline]
    pub(crate) const fn permits(self, pcid: u16, need: Perms) -> bool {
        let need = (need.0 as u32) << Self::PERMS_SHIFT;
        (self.0 ^ (pcid as u32 | need)) & ((self.0 >> 20) | need) == 0
    }

    /// Whether some process sees both this entry and one with the given PCID and globality.
    pub(crate) const fn meets(self, pcid: u16, global: bool) -> bool {
        global || self.visible_to(pcid)
    }

    /// The PCID the entry was filled under.
    pub(crate) const fn pcid(self) -> u16 {
        (self.0 & 0xfff) as u16
    }

    pub(crate) const fn is_global(self) -> bool {
        self.0 >> 20 == 0
    }

    #[expect(clippy::cast_possible_truncation, reason = "the bits wanted are the low ones")]
    pub(crate) const fn perms(self) -> Perms {
        Perms::from_bits((self.0 >> Self::PERMS_SHIFT) as u8)
    }

    pub(crate) const fn guest_size(self) -> PageSize {
        match (self.0 >> 16) & 3 {
            1 => PageSize::Size4K,
            2 => PageSize::Size2M,
            _ => PageSize::Size1G,
        }
    }
}

/// The three words of one array slot.
#[derive(Clone, Copy)]
pub(crate) struct Packed {
    pub(crate) key: Key,
    pub(crate) meta: Meta,
    pub(crate) frame: u64,
}

impl Packed {
    pub(crate) fn new(vpid: u16, pcid: u16, entry: &Entry) -> Self {
        Self {
            key: Key::new(vpid, entry.size, entry.page.number()),
            meta: Meta::new(pcid, entry),
            frame: entry.frame.align_down(entry.size).number(),
        }
    }

    pub(crate) fn entry(&self) -> Entry {
        Entry {
            page: Vpn::new(self.key.page()),
            frame: Hfn::new(self.frame),
            size: self.key.size(),
            guest_size: self.meta.guest_size(),
            perms: self.meta.perms(),
            global: self.meta.is_global(),
        }
    }

    pub(crate) fn fractured(&self) -> bool {
        self.meta.guest_size() > self.key.size()
    }
}
