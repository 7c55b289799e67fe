//! How many references a cold walk makes, in which order, and which bits it sets.

use memvirt_addr::{AccessKind, Gpa, GuestPhys, GuestVirt, Hfn, HostPhys, Level, PageSize, Privilege};
use memvirt_nested::{AdBits, Counts, Dimension, End, SecondStage, Walker};
use memvirt_pagetable::{Ept, Format, LongMode};

use crate::lab::{Lab, SIZES};

type Npt<const N: u8> = LongMode<N, GuestPhys, HostPhys>;

/// Nested references of one translation: a level less for 2 MiB pages, two for 1 GiB.
fn depth<H: Format>(size: PageSize) -> usize {
    usize::from(H::ROOT.number() - size.level().number()) + 1
}

/// What a walk must read: (who, which guest level it serves, level), from the structure alone.
fn expected<G: Format, H: Format>(guest_page: PageSize, host: &[PageSize]) -> Vec<(Dimension, Option<Level>, Level)> {
    let mut list = Vec::new();
    let nested = |serves, size: PageSize, list: &mut Vec<_>| {
        let levels = (size.level().number()..=H::ROOT.number()).rev();
        list.extend(levels.map(|level| (Dimension::Host, serves, Level::from_number(level).unwrap())));
    };
    let levels = (guest_page.level().number()..=G::ROOT.number()).rev().map(|level| Level::from_number(level).unwrap());
    for (level, size) in levels.zip(host) {
        nested(Some(level), *size, &mut list);
        list.push((Dimension::Guest, Some(level), level));
    }
    nested(None, *host.last().unwrap(), &mut list);
    list
}

/// Walks cold and once more; how many references that was.
fn references<G, H>(guest_page: PageSize, host: &[PageSize], ad: AdBits) -> usize
where
    G: Format<In = GuestVirt, Out = GuestPhys>,
    H: SecondStage,
{
    let mut lab = Lab::<G, H>::new(guest_page, host);
    let acc = lab.acc(AccessKind::Read, Privilege::User);
    let (end, counts, seen) = lab.walk_as(acc, ad);
    let End::Mapped(mapped) = end else { panic!("{end:?}") };
    assert_eq!((mapped.gfn, mapped.guest_size), (lab.data().frame(), guest_page));
    assert_eq!(mapped.host_size, *host.last().unwrap());
    let order: Vec<_> = seen.iter().map(|seen| (seen.dimension, seen.guest_level, seen.level)).collect();
    assert_eq!(order, expected::<G, H>(guest_page, host));
    assert_eq!(counts.guest + counts.host, seen.len() as u64);

    // Each guest entry's A bit is set once. With nested A/D bits, so is A of each nested entry read and D of each leaf that
    // maps a table: entries that two translations share (level 5 here) count once.
    let guest_levels = host.len() as u64 - 1;
    let shared = if H::ROOT == Level::L5 { guest_levels } else { 0 };
    let nested = if ad == AdBits::On { counts.host - shared } else { 0 };
    assert_eq!((counts.ad_updates - counts.ad_updates_nested, counts.ad_updates_nested), (guest_levels, nested));

    let (again, warm, _) = lab.walk_as(acc, ad);
    assert_eq!((again, warm), (end, Counts { ad_updates: 0, ad_updates_nested: 0, ..counts }));
    seen.len()
}

fn all_sizes<G, H>() -> [[usize; 3]; 3]
where
    G: Format<In = GuestVirt, Out = GuestPhys>,
    H: SecondStage,
{
    SIZES.map(|guest_page| {
        let tables = usize::from(G::ROOT.number() - guest_page.level().number()) + 1;
        SIZES.map(|host_page| {
            let host = vec![host_page; tables + 1];
            let count = references::<G, H>(guest_page, &host, AdBits::On);
            if H::AD_OPTIONAL {
                assert_eq!(references::<G, H>(guest_page, &host, AdBits::Off), count);
            }
            // The general form, (g+1)(h+1)-1 with large pages taken off.
            assert_eq!(count, (tables + 1) * (depth::<H>(host_page) + 1) - 1);
            count
        })
    })
}

#[test]
fn four_levels_on_four_make_24_references_and_fewer_with_large_pages() {
    let published = [[24, 19, 14], [19, 15, 11], [14, 11, 8]];
    assert_eq!(all_sizes::<LongMode<4>, Ept<4>>(), published);
    assert_eq!(all_sizes::<LongMode<4>, Npt<4>>(), published);
}

#[test]
fn four_levels_on_five() {
    let counts = [[29, 24, 19], [23, 19, 15], [17, 14, 11]];
    assert_eq!(all_sizes::<LongMode<4>, Ept<5>>(), counts);
    assert_eq!(all_sizes::<LongMode<4>, Npt<5>>(), counts);
}

#[test]
fn five_levels_on_four_make_29() {
    let counts = [[29, 23, 17], [24, 19, 14], [19, 15, 11]];
    assert_eq!(all_sizes::<LongMode<5>, Ept<4>>(), counts);
    assert_eq!(all_sizes::<LongMode<5>, Npt<4>>(), counts);
}

#[test]
fn five_levels_on_five_make_35() {
    let counts = [[35, 29, 23], [29, 24, 19], [23, 19, 15]];
    assert_eq!(all_sizes::<LongMode<5>, Ept<5>>(), counts);
    assert_eq!(all_sizes::<LongMode<5>, Npt<5>>(), counts);
}

/// Every combination of host pages behind the tables and the data: sum of (n_i + 1) over the tables, and n of the data.
fn mixed<G, H>(guest_page: PageSize)
where
    G: Format<In = GuestVirt, Out = GuestPhys>,
    H: SecondStage,
{
    let pages = usize::from(G::ROOT.number() - guest_page.level().number()) + 2;
    for combination in 0..3usize.pow(u32::try_from(pages).unwrap()) {
        let host: Vec<_> = (0..pages).map(|i| SIZES[combination / 3usize.pow(u32::try_from(i).unwrap()) % 3]).collect();
        let tables: usize = host[..pages - 1].iter().map(|size| depth::<H>(*size) + 1).sum();
        let sum = tables + depth::<H>(host[pages - 1]);
        assert_eq!(references::<G, H>(guest_page, &host, AdBits::On), sum, "{host:?}");
    }
}

#[test]
fn mixed_host_pages_within_one_walk_add_up() {
    mixed::<LongMode<4>, Ept<4>>(PageSize::Size4K);
    mixed::<LongMode<4>, Npt<4>>(PageSize::Size2M);
    mixed::<LongMode<5>, Ept<5>>(PageSize::Size4K);
    mixed::<LongMode<4>, Ept<5>>(PageSize::Size1G);
}

#[test]
fn without_paging_only_the_nested_dimension_is_walked() {
    fn unpaged<H: SecondStage>() -> [u64; 3] {
        SIZES.map(|size| {
            let mut lab = Lab::<LongMode<4>, H>::uniform(PageSize::Size4K, size);
            let (data, root) = (lab.data(), lab.root);
            let mut unseen = ();
            let mut walker = Walker::<LongMode<4>, H, _>::new(&mut lab.mem, root, AdBits::On, &mut unseen);
            let end = walker.walk_unpaged(data, AccessKind::Write);
            assert!(matches!(end, End::Mapped(mapped) if mapped.host_size == size && mapped.dirty), "{end:?}");
            walker.counts.guest + walker.counts.host
        })
    }
    assert_eq!(unpaged::<Ept<4>>(), [4, 3, 2]);
    assert_eq!(unpaged::<Npt<5>>(), [5, 4, 3]);
}

#[test]
fn a_guest_physical_address_wider_than_the_tables_is_a_violation_and_no_alias() {
    let mut lab = Lab::<LongMode<4>, Ept<4>>::uniform(PageSize::Size4K, PageSize::Size4K);
    let mut unseen = ();
    let root: Hfn = lab.root;
    let low = lab.data();
    let mut walker = Walker::<LongMode<4>, Ept<4>, _>::new(&mut lab.mem, root, AdBits::On, &mut unseen);
    let wide = Gpa::new(low.as_u64() | 1 << 48);
    assert!(matches!(walker.walk_unpaged(wide, AccessKind::Read), End::Violation(found) if found.gpa == wide));
    assert_eq!(walker.counts.host, 0);
}
