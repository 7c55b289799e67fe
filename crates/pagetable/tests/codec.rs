//! Entry codecs against the manuals' tables, written here a second time and bit by bit: every subset of flags at every
//! level, random frames, and each reserved bit on its own.

use memvirt_addr::{Frame, GuestPhys, GuestVirt, HostPhys, Level, PageSize, Space};
use memvirt_pagetable::{Attrs, Entry, Ept, Format, LongMode, Pae};
use proptest::prelude::*;

/// Where one kind of entry keeps its flags, as the manual lists them, and which combinations it reserves.
struct Kind {
    level: Level,
    leaf: bool,
    /// Bits that every entry of the kind has set.
    fixed: u64,
    /// Flag and bit; a flag that is clear by its bit being set (NX) is in `inverted`.
    flags: Vec<(Attrs, u32)>,
    inverted: Vec<(Attrs, u32)>,
    /// Flags without a bit.
    implied: Attrs,
    legal: fn(Attrs) -> bool,
}

impl Kind {
    fn all(&self) -> Attrs {
        self.flags.iter().chain(&self.inverted).fold(Attrs::empty(), |all, (flag, _)| all | *flag)
    }

    fn raw(&self, attrs: Attrs) -> u64 {
        let set = self.flags.iter().filter(|(flag, _)| attrs.contains(*flag));
        let clear = self.inverted.iter().filter(|(flag, _)| !attrs.contains(*flag));
        set.chain(clear).fold(self.fixed, |raw, (_, bit)| raw | 1 << bit)
    }

    fn entry<Out: Space>(&self, frame: u64, attrs: Attrs) -> Entry<Out> {
        let attrs = attrs | self.implied;
        match self.level.page_size().filter(|_| self.leaf) {
            Some(size) => Entry::Leaf { frame: Frame::new(frame).align_down(size), size, attrs },
            None => Entry::Table { next: Frame::new(frame), attrs },
        }
    }

    fn address<Out: Space>(&self, frame: u64) -> u64 {
        match self.entry::<Out>(frame, Attrs::empty()) {
            Entry::Leaf { frame, .. } | Entry::Table { next: frame, .. } => frame.number() << 12,
            Entry::Absent | Entry::Reserved => 0,
        }
    }
}

/// Intel SDM tables 4-14 to 4-20.
fn x86(level: Level, leaf: bool) -> Kind {
    let mut flags = vec![
        (Attrs::WRITE, 1),
        (Attrs::USER, 2),
        (Attrs::WRITE_THROUGH, 3),
        (Attrs::CACHE_DISABLE, 4),
        (Attrs::ACCESSED, 5),
        (Attrs::SOFT_0, 9),
        (Attrs::SOFT_1, 10),
        (Attrs::SOFT_2, 11),
    ];
    if leaf {
        flags.extend([(Attrs::DIRTY, 6), (Attrs::GLOBAL, 8), (Attrs::PAT, if level == Level::L1 { 7 } else { 12 })]);
    }
    let large = if leaf && level != Level::L1 { 1 << 7 } else { 0 };
    let inverted = vec![(Attrs::EXEC, 63)];
    Kind { level, leaf, fixed: 1 | large, flags, inverted, implied: Attrs::READ, legal: |_| true }
}

/// Intel SDM table 4-8: the PDPTE of PAE paging.
fn pdpte() -> Kind {
    let flags = vec![
        (Attrs::WRITE_THROUGH, 3),
        (Attrs::CACHE_DISABLE, 4),
        (Attrs::SOFT_0, 9),
        (Attrs::SOFT_1, 10),
        (Attrs::SOFT_2, 11),
    ];
    let implied = Attrs::RWX | Attrs::USER;
    Kind { level: Level::L3, leaf: false, fixed: 1, flags, inverted: vec![], implied, legal: |_| true }
}

/// Intel SDM tables 28-1 to 28-7 (29-1 to 29-7 in newer printings).
fn ept(level: Level, leaf: bool) -> Kind {
    let mut flags = vec![
        (Attrs::READ, 0),
        (Attrs::WRITE, 1),
        (Attrs::EXEC, 2),
        (Attrs::ACCESSED, 8),
        (Attrs::USER_EXEC, 10),
        (Attrs::SOFT_0, 11),
        (Attrs::SOFT_1, 52),
        (Attrs::SOFT_2, 53),
    ];
    if leaf {
        flags.extend([
            (Attrs::MEMTYPE_0, 3),
            (Attrs::MEMTYPE_1, 4),
            (Attrs::MEMTYPE_2, 5),
            (Attrs::IGNORE_PAT, 6),
            (Attrs::DIRTY, 9),
            (Attrs::SUPPRESS_VE, 63),
        ]);
    }
    let fixed = if leaf && level != Level::L1 { 1 << 7 } else { 0 };
    Kind { level, leaf, fixed, flags, inverted: vec![], implied: Attrs::empty(), legal: ept_legal }
}

/// Neither absent (no R, W, X) nor misconfigured (W without R, memory type 2, 3 or 7).
fn ept_legal(attrs: Attrs) -> bool {
    let memory_type = [Attrs::MEMTYPE_0, Attrs::MEMTYPE_1, Attrs::MEMTYPE_2].map(|bit| u8::from(attrs.contains(bit)));
    let memory_type = memory_type[0] | memory_type[1] << 1 | memory_type[2] << 2;
    let absent = !attrs.intersects(Attrs::RWX);
    let write_only = attrs.contains(Attrs::WRITE) && !attrs.contains(Attrs::READ);
    !absent && !write_only && !matches!(memory_type, 2 | 3 | 7)
}

fn kinds<F: Format>(kind: fn(Level, bool) -> Kind) -> Vec<Kind> {
    let levels = Level::ALL.into_iter().filter(|level| *level <= F::ROOT);
    let both = levels.flat_map(|level| [(level, true), (level, false)]);
    let valid = both.filter(|(level, leaf)| if *leaf { F::has_leaves(*level) } else { *level != Level::L1 });
    valid.map(|(level, leaf)| kind(level, leaf)).collect()
}

fn pae_kind(level: Level, leaf: bool) -> Kind {
    if level == Level::L3 { pdpte() } else { x86(level, leaf) }
}

/// Every subset of the flags: raw bits as the manual says, both round trips where legal, never a leaf or table where not.
fn every_subset<F: Format>(kind: &Kind) {
    let (all, frame) = (kind.all(), 0xf_3456_789a);
    assert_eq!(F::supports(kind.level, kind.leaf), all | kind.implied, "{:?}", kind.level);
    assert_eq!(F::implied(kind.level, kind.leaf), kind.implied);
    // Enumerates the subsets of a bit set: the next smaller number within it.
    let mut bits = all.bits();
    loop {
        let attrs = Attrs::from_bits_retain(bits);
        let entry = kind.entry::<F::Out>(frame, attrs);
        let raw = kind.raw(attrs) | kind.address::<F::Out>(frame);
        assert_eq!(F::encode(entry, kind.level), raw, "{entry:?}");
        let decoded = F::decode(raw, kind.level);
        if (kind.legal)(attrs) {
            assert_eq!(decoded, entry, "{raw:#x}");
            assert_eq!(F::encode(decoded, kind.level), raw);
        } else {
            assert!(matches!(decoded, Entry::Absent | Entry::Reserved), "{raw:#x}");
        }
        if bits == 0 {
            return;
        }
        bits = (bits - 1) & all.bits();
    }
}

#[test]
fn every_subset_of_flags_round_trips_in_every_format() {
    kinds::<LongMode<4>>(x86).iter().for_each(every_subset::<LongMode<4>>);
    kinds::<LongMode<5>>(x86).iter().for_each(every_subset::<LongMode<5>>);
    kinds::<LongMode<4, GuestPhys, HostPhys>>(x86).iter().for_each(every_subset::<LongMode<4, GuestPhys, HostPhys>>);
    kinds::<Ept<4>>(ept).iter().for_each(every_subset::<Ept<4>>);
    kinds::<Ept<5>>(ept).iter().for_each(every_subset::<Ept<5>>);
    kinds::<Pae>(pae_kind).iter().for_each(every_subset::<Pae>);
    assert_eq!(kinds::<LongMode<5>>(x86).len(), 3 + 4);
    assert_eq!(kinds::<Pae>(pae_kind).len(), 2 + 2);
}

/// Random frames and flags, and random bits: what decodes as present is what encoding gives back, but for bits without a
/// meaning here.
fn random<F: Format>(kinds: &[Kind], which: usize, frame: u64, flags: u32, raw: u64) -> Result<(), TestCaseError> {
    let kind = &kinds[which % kinds.len()];
    let attrs = Attrs::from_bits_truncate(flags) & kind.all();
    let entry = kind.entry::<F::Out>(frame, attrs);
    if (kind.legal)(attrs) {
        prop_assert_eq!(F::decode(F::encode(entry, kind.level), kind.level), entry);
    }
    prop_assert_eq!(F::encode(entry, kind.level), kind.raw(attrs) | kind.address::<F::Out>(frame));
    let decoded = F::decode(raw, kind.level);
    if decoded.is_present() {
        prop_assert_eq!(F::decode(F::encode(decoded, kind.level), kind.level), decoded);
        prop_assert_eq!(F::encode(decoded, kind.level) & !raw, 0, "encoding adds no bit");
    }
    Ok(())
}

proptest! {
    #![proptest_config(memvirt_properties::cases(256))]

    #[test]
    fn random_frames_and_bits_round_trip(which: usize, frame: u64, flags: u32, raw: u64) {
        random::<LongMode<4>>(&kinds::<LongMode<4>>(x86), which, frame, flags, raw)?;
        random::<LongMode<5>>(&kinds::<LongMode<5>>(x86), which, frame, flags, raw)?;
        random::<Ept<4>>(&kinds::<Ept<4>>(ept), which, frame, flags, raw)?;
        random::<Ept<5>>(&kinds::<Ept<5>>(ept), which, frame, flags, raw)?;
        random::<Pae>(&kinds::<Pae>(pae_kind), which, frame, flags, raw & !(0xfff << 52))?;
    }
}

fn assert_reserved<F: Format>(raw: u64, level: Level) {
    assert_eq!(F::decode(raw, level), Entry::Reserved, "{}: {raw:#x} at {level:?}", F::NAME);
}

#[test]
fn x86_reserved_bits() {
    // PS in an entry that holds no leaves.
    assert_reserved::<LongMode<4>>(0x1000 | 0x81, Level::L4);
    assert_reserved::<LongMode<5>>(0x1000 | 0x81, Level::L4);
    assert_reserved::<LongMode<5>>(0x1000 | 0x81, Level::L5);
    // Address bits below a large page's size; bit 12 is PAT.
    for (level, shift) in [(Level::L2, 21), (Level::L3, 30)] {
        assert!(LongMode::<4>::decode(1 << shift | 0x81 | 1 << 12, level).attrs().contains(Attrs::PAT));
        (13..shift).for_each(|bit| assert_reserved::<LongMode<4>>(1 << shift | 0x81 | 1 << bit, level));
    }
    // None of this matters in an entry that is not present.
    assert_eq!(LongMode::<4>::decode(u64::MAX - 1, Level::L4), Entry::Absent);
}

#[test]
fn ept_misconfigurations() {
    let levels = [Level::L1, Level::L2, Level::L3, Level::L4, Level::L5];
    for level in levels {
        let large = if matches!(level, Level::L2 | Level::L3) { 1 << 7 } else { 0 };
        for rwx in [0b010, 0b110] {
            assert_reserved::<Ept<5>>(rwx, level);
            assert_reserved::<Ept<5>>(rwx | large, level);
        }
        assert_eq!(Ept::<5>::decode(!0b111, level), Entry::Absent, "no R, W, X: no misconfiguration");
    }
    for (level, size) in [(Level::L1, PageSize::Size4K), (Level::L2, PageSize::Size2M), (Level::L3, PageSize::Size1G)] {
        let large = if level == Level::L1 { 0 } else { 1 << 7 };
        for memory_type in 0..8 {
            let raw = memory_type << 3 | large | 0b111;
            match memory_type {
                2 | 3 | 7 => assert_reserved::<Ept<4>>(raw, level),
                _ => assert!(matches!(Ept::<4>::decode(raw, level), Entry::Leaf { size: s, .. } if s == size)),
            }
        }
        (12..size.shift()).for_each(|bit| assert_reserved::<Ept<4>>(1 << bit | large | 0b111, level));
    }
    // Bits 6:3 of an entry that points to a table; bit 7 where no leaf may be.
    for level in [Level::L2, Level::L3, Level::L4, Level::L5] {
        (3..7).for_each(|bit| assert_reserved::<Ept<5>>(0x1000 | 1 << bit | 0b111, level));
    }
    assert_reserved::<Ept<4>>(0x1000 | 1 << 7 | 0b111, Level::L4);
    assert_reserved::<Ept<5>>(0x1000 | 1 << 7 | 0b111, Level::L5);
}

#[test]
fn pae_reserved_bits() {
    for bit in [1, 2, 5, 6, 7, 8].into_iter().chain(52..64) {
        assert_reserved::<Pae>(0x1000 | 1 | 1 << bit, Level::L3);
    }
    for level in [Level::L1, Level::L2] {
        (52..63).for_each(|bit| assert_reserved::<Pae>(0x1000 | 1 | 1 << bit, level));
        assert!(!Pae::<GuestVirt, GuestPhys>::decode(0x1000 | 1 | 1 << 63, level).attrs().contains(Attrs::EXEC));
    }
    (13..21).for_each(|bit| assert_reserved::<Pae>(1 << 21 | 0x81 | 1 << bit, Level::L2));
}

#[test]
fn what_a_level_cannot_hold_encodes_to_nothing() {
    let (frame, attrs) = (Frame::new(0x4_0000), Attrs::RWX);
    for size in PageSize::ALL {
        let leaf = Entry::Leaf { frame, size, attrs };
        for level in Level::ALL.into_iter().filter(|level| *level != size.level()) {
            assert_eq!(LongMode::<5>::encode(leaf, level), 0);
        }
        assert_eq!(Pae::<GuestVirt, GuestPhys>::encode(leaf, Level::L3), 0, "PAE has no 1 GiB pages");
    }
    for entry in [Entry::Absent, Entry::Reserved, Entry::Table { next: frame, attrs }] {
        assert_eq!(LongMode::<4>::encode(entry, Level::L1), 0);
        assert_eq!(Pae::<GuestVirt, GuestPhys>::encode(entry, Level::L1), 0);
    }
    let entry = Entry::Table { next: Frame::new(1), attrs };
    assert_eq!(Ept::<4>::encode(entry, Level::L1), 0);
}
