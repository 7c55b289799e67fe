//! [`Entry`] and [`Perms`], and the packed form in which an array keeps them.
//!
//! An array holds two words for an entry: [`Key`], what a lookup compares first, and [`Data`]. The neighbours are `array` (storage) and `tlb` (lookup and fill).

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
    pub const WRITE: Self = Self(2);
    /// May be fetched from.
    pub const EXEC: Self = Self(4);
    /// Reachable from user mode.
    pub const USER: Self = Self(1);
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

    /// What both grant.
    #[must_use]
    #[inline]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
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

    /// Whether all that `acc` needs is granted.
    #[must_use]
    #[inline]
    pub fn permit(self, acc: Acc) -> bool {
        denied_to(acc) & !(u64::from(self.0) << 61) == 0
    }

    /// What `acc` needs.
    #[must_use]
    #[inline]
    pub const fn needed_by(acc: Acc) -> Self {
        let kind = match acc.kind() {
            AccessKind::Read => Self::NONE,
            AccessKind::Write => Self::WRITE,
            AccessKind::Fetch => Self::EXEC,
        };
        match acc.privilege() {
            Privilege::User => kind.with(Self::USER),
            Privilege::Supervisor => kind,
        }
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

    /// The piece of at most `size` that holds `gva`, for machines that do not cache the whole page; the entry itself where
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

/// Page, size and VPID in one word, never 0 in a live entry.
///
/// Bit 0 is set, bits 1 to 16 are the VPID, 17 and 18 the size, 19 to 63 the first 4 KiB page.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Key(pub(crate) u64);

impl Key {
    const PAGE_SHIFT: u32 = 19;

    /// The key without its page: fixed over a run of accesses.
    #[inline]
    pub(crate) const fn context(vpid: u16, size: PageSize) -> u64 {
        1 | (vpid as u64) << 1 | (size as u64) << 17
    }

    /// The page of a key of size `SHIFT` (log2 of its bytes) for the 57-bit address that an access goes to.
    #[inline]
    pub(crate) const fn page_part<const SHIFT: u32>(address: u64) -> u64 {
        (address << (Self::PAGE_SHIFT - 12)) & (u64::MAX << (SHIFT + Self::PAGE_SHIFT - 12))
    }

    /// The key of the page of `size` that holds `page`, a number of 4 KiB pages in its low 45 bits.
    #[inline]
    pub(crate) const fn new(vpid: u16, size: PageSize, page: u64) -> Self {
        Self((page & !(size.frames() - 1)) << Self::PAGE_SHIFT | Self::context(vpid, size))
    }

    /// The page number in units of the size.
    #[inline]
    pub(crate) const fn number(self) -> u64 {
        // The size is 1, 2 or 3 as a number, and each step is 9 bits.
        self.0 >> (Self::PAGE_SHIFT - 9 + 9 * self.size_index())
    }

    /// The size as a number, 1 to 3.
    #[inline]
    pub(crate) const fn size_index(self) -> u32 {
        (self.0 >> 17 & 3) as u32
    }

    /// The same, where the size is known: `SHIFT` is log2 of its bytes.
    #[inline]
    pub(crate) const fn number_of<const SHIFT: u32>(self) -> u64 {
        self.0 >> (Self::PAGE_SHIFT - 12 + SHIFT)
    }

    /// The first 4 KiB page, 45 bits.
    #[inline]
    pub(crate) const fn page(self) -> u64 {
        self.0 >> Self::PAGE_SHIFT
    }

    #[inline]
    pub(crate) const fn vpid(self) -> u16 {
        (self.0 >> 1 & 0xffff) as u16
    }

    #[inline]
    pub(crate) const fn size(self) -> PageSize {
        match self.size_index() {
            1 => PageSize::Size4K,
            2 => PageSize::Size2M,
            _ => PageSize::Size1G,
        }
    }
}

/// Host frame, process tag, guest page size and permissions in one word.
///
/// Bits 0 to 39 are the frame, 40 to 51 the PCID, 52 is set in a global entry, 53 and 54 are the guest's size, and 61 to
/// 63 what is *denied*: user mode, writing, fetching. [`denied_to`] puts what an access needs into the same bits.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Data(pub(crate) u64);

/// The bits of [`Data`] that must be clear for an access: its own top bits, with privilege turned into "user". Going through
/// kind and privilege instead costs ten operations an access; the test below holds the two equal.
#[inline]
pub(crate) fn denied_to(acc: Acc) -> u64 {
    (acc.to_bits() ^ 1 << 61) & Data::DENIED
}

impl Data {
    const FRAME: u64 = (1 << 40) - 1;
    pub(crate) const DENIED: u64 = 7 << 61;
    pub(crate) const GLOBAL: u64 = 1 << 52;

    #[inline]
    fn new(pcid: u16, entry: &Entry) -> Self {
        // The permissions are numbered as these bits stand.
        const { assert!(Perms::USER.0 == 1 && Perms::WRITE.0 == 2 && Perms::EXEC.0 == 4) };
        let denied = u64::from(Perms::ALL.without(entry.perms).0) << 61;
        let frame = entry.frame.align_down(entry.size).number() & Self::FRAME;
        Self(frame | u64::from(pcid) << 40 | u64::from(entry.global) << 52 | (entry.guest_size as u64) << 53 | denied)
    }

    /// The PCID the entry was filled under.
    #[inline]
    pub(crate) const fn pcid(self) -> u16 {
        (self.0 >> 40 & 0xfff) as u16
    }

    #[inline]
    pub(crate) const fn is_global(self) -> bool {
        self.0 >> 52 & 1 != 0
    }

    /// Whether a process sees the entry.
    #[inline]
    pub(crate) const fn visible_to(self, pcid: u16) -> bool {
        self.is_global() || self.pcid() == pcid
    }

    /// 0 where a process sees the entry and may do with it what `denied_to` stands for: [`Data::visible_to`] and the test of the
    /// denied bits in one.
    #[inline(always)]
    pub(crate) const fn refusal(self, pcid: u16, denied_to: u64) -> u64 {
        let tagged = (self.0 >> 52 & 1).wrapping_sub(1) & 0xfff << 40;
        (self.0 ^ (pcid as u64) << 40) & (tagged | denied_to)
    }

    /// The bits in which an entry may differ from the usual one: PCID, globality, the guest's size.
    const STRANGE: u64 = 0xfff << 40 | Self::GLOBAL | 3 << 53;

    /// Those bits of an entry of `pcid` that is not global, for a page that the guest maps with 4 KiB.
    #[inline]
    pub(crate) const fn plain(pcid: u16) -> u64 {
        (pcid as u64) << 40 | (PageSize::Size4K as u64) << 53
    }

    /// 0 where an entry is `plain` and permits what `denied_to` stands for.
    #[inline(always)]
    pub(crate) const fn strangeness(self, plain: u64, denied_to: u64) -> u64 {
        (self.0 ^ plain) & (Self::STRANGE | denied_to)
    }

    /// Whether some process sees both this entry and one with the given PCID and globality.
    #[inline]
    pub(crate) const fn meets(self, pcid: u16, global: bool) -> bool {
        global || self.visible_to(pcid)
    }

    pub(crate) const fn guest_size(self) -> PageSize {
        match (self.0 >> 53) & 3 {
            1 => PageSize::Size4K,
            2 => PageSize::Size2M,
            _ => PageSize::Size1G,
        }
    }

    const fn perms(self) -> Perms {
        Perms((!self.0 >> 61) as u8)
    }
}

/// One slot of an array.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Packed {
    pub(crate) key: Key,
    pub(crate) data: Data,
}

impl Packed {
    /// No entry.
    pub(crate) const NONE: Self = Self { key: Key(0), data: Data(0) };

    #[inline]
    pub(crate) fn new(vpid: u16, pcid: u16, entry: &Entry) -> Self {
        Self { key: Key::new(vpid, entry.size, entry.page.number()), data: Data::new(pcid, entry) }
    }

    pub(crate) fn entry(&self) -> Entry {
        Entry {
            page: Vpn::new(self.key.page()),
            frame: Hfn::new(self.data.0 & Data::FRAME),
            size: self.key.size(),
            guest_size: self.data.guest_size(),
            perms: self.data.perms(),
            global: self.data.is_global(),
        }
    }

    /// The entry of the 4 KiB page of `acc`.
    #[inline(always)]
    pub(crate) fn small((vpid, pcid): (u16, u16), acc: Acc, frame: Hfn, perms: Perms, global: bool) -> Self {
        let key = Key(Key::page_part::<12>(acc.page_bits(0)) | Key::context(vpid, PageSize::Size4K));
        let denied = u64::from(Perms::ALL.without(perms).0) << 61;
        let size = (PageSize::Size4K as u64) << 53;
        let data = frame.number() & Data::FRAME | u64::from(pcid) << 40 | u64::from(global) << 52 | size | denied;
        Self { key, data: Data(data) }
    }

    /// 0 where both others have the size and guest size of this one.
    #[inline(always)]
    pub(crate) const fn strangeness(&self, a: &Self, b: &Self) -> u64 {
        let sizes = (a.key.0 ^ self.key.0) | (b.key.0 ^ self.key.0);
        let guest_sizes = (a.data.0 ^ self.data.0) | (b.data.0 ^ self.data.0);
        sizes & (3 << 17) | guest_sizes & (3 << 53)
    }

    /// Whether size and guest size are those of the other, so that one can take the other's place in the accounts.
    #[inline]
    pub(crate) const fn kin(&self, other: &Self) -> bool {
        (self.key.0 ^ other.key.0) & (3 << 17) | (self.data.0 ^ other.data.0) & (3 << 53) == 0
    }

    #[inline]
    pub(crate) fn fractured(&self) -> bool {
        (self.data.0 >> 53 & 3) as u32 > self.key.size_index()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_is_denied_by_the_bits_of_what_it_needs() {
        for gva in [Gva::new(0), Gva::new_truncate(u64::MAX), Gva::new(0x00ff_ffff_ffff_ffff)] {
            for kind in [AccessKind::Read, AccessKind::Write, AccessKind::Fetch] {
                for privilege in [Privilege::User, Privilege::Supervisor] {
                    let acc = Acc::new(gva, kind, privilege);
                    assert_eq!(denied_to(acc), u64::from(Perms::needed_by(acc).bits()) << 61, "{acc:?}");
                }
            }
        }
    }
}
