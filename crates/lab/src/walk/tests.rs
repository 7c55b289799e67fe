//! The published matrix, by walking; PAE; walk caches; the picture.

use super::*;
use memvirt_addr::PageSize::{self, Size1G, Size2M, Size4K};
use memvirt_platform::MmuGeometry;
use memvirt_tlb::{Shape, WalkGeometry};

use GuestPaging::{Five, Four, Pae as PaePaging};

fn walked(tables: Tables, guest_page: PageSize, host_page: PageSize, caches: CacheState) -> RecordedWalk {
    record_walk(&WalkSpec { tables, guest_page, host_page, address: None, caches }).unwrap()
}

fn nested(guest: impl Into<Option<GuestPaging>>, host: HostLevels, format: NestedFormat) -> Tables {
    Tables::Nested { guest: guest.into(), host, format }
}

fn total(guest: GuestPaging, host: HostLevels, guest_page: PageSize, host_page: PageSize) -> usize {
    let walk = |format| walked(nested(guest, host, format), guest_page, host_page, CacheState::Off);
    let (ept, npt) = (walk(NestedFormat::Ept), walk(NestedFormat::Npt));
    assert_eq!(ept.total, npt.total);
    assert!(ept.host_physical.ends_with("abc"), "{}", ept.host_physical);
    ept.total
}

/// Bhargava et al. (ASPLOS 2008) and its arithmetic for other depths and page sizes.
#[test]
fn cold_walks_make_the_published_numbers_of_references() {
    let (four, five) = (HostLevels::Four, HostLevels::Five);
    let expected = [
        (Four, four, Size4K, Size4K, 24),
        (Four, four, Size2M, Size4K, 19),
        (Four, four, Size4K, Size2M, 19),
        (Four, four, Size1G, Size4K, 14),
        (Four, four, Size4K, Size1G, 14),
        (Four, four, Size2M, Size2M, 15),
        (Four, four, Size2M, Size1G, 11),
        (Four, four, Size1G, Size2M, 11),
        (Four, four, Size1G, Size1G, 8),
        (Five, four, Size4K, Size4K, 29),
        (Four, five, Size4K, Size4K, 29),
        (Five, five, Size4K, Size4K, 35),
    ];
    for (guest, host, guest_page, host_page, refs) in expected {
        assert_eq!(total(guest, host, guest_page, host_page), refs, "{guest:?} {host:?} {guest_page} {host_page}");
    }
}

#[test]
fn one_dimension_reads_one_entry_a_level() {
    let one = |tables, guest_page, host_page| walked(tables, guest_page, host_page, CacheState::Off).total;
    for (paging, guest_page, refs) in [(Four, Size4K, 4), (Four, Size2M, 3), (Four, Size1G, 2), (Five, Size4K, 5)] {
        assert_eq!(one(Tables::Native(paging), guest_page, Size4K), refs);
    }
    assert_eq!(one(Tables::Shadow(Four), Size2M, Size2M), 3);
    assert_eq!(one(Tables::Shadow(Four), Size2M, Size4K), 4, "the smaller page decides");
    assert_eq!(one(nested(None, HostLevels::Four, NestedFormat::Ept), Size4K, Size4K), 4);
    assert_eq!(one(nested(None, HostLevels::Five, NestedFormat::Npt), Size4K, Size2M), 4);
}

#[test]
fn guest_and_nested_references_alternate_as_the_hardware_does() {
    let tables = nested(Four, HostLevels::Four, NestedFormat::Ept);
    let spec = WalkSpec { address: Some(0x40_0000), ..spec(tables) };
    let walk = record_walk(&spec).unwrap();
    let order: String = walk.references.iter().map(|r| if r.dimension == "guest" { 'g' } else { 'n' }).collect();
    assert_eq!(order, "nnnngnnnngnnnngnnnngnnnn");
    assert_eq!(walk.references[4].serves, "guest PML4E");
    assert_eq!(walk.references[23].serves, "data");
}

fn spec(tables: Tables) -> WalkSpec {
    WalkSpec { tables, guest_page: Size4K, host_page: Size4K, address: None, caches: CacheState::Off }
}

#[test]
fn an_address_out_of_reach_is_refused_with_its_mend() {
    let refused = |tables, address| {
        let spec = WalkSpec { address: Some(address), ..spec(tables) };
        record_walk(&spec).unwrap_err().to_string()
    };
    let message = refused(Tables::Native(Four), 0x00aa_7f12_3456_7abc);
    assert!(message.contains("canonical with 4 levels") && message.contains("bit 47"), "{message}");
    let message = refused(Tables::Native(PaePaging), 0x1_0000_0000);
    assert!(message.contains("32 bits") && message.contains("0xffffffff"), "{message}");
}

/// SDM volume 3, section 4.4.1: PDPTEs are registers, so a walk reads the page directory and the page table. Under EPT the load
/// reads 4 nested entries and 4 PDPTEs; (2+1)(4+1)-1 = 14 are left to the walk. Under NPT (3+1)(4+1)-1 = 19.
#[test]
fn pae_walks_read_two_levels_and_amd_s_three() {
    let walk = |tables, page| walked(tables, page, Size4K, CacheState::Off);
    let native = walk(Tables::Native(PaePaging), Size4K);
    assert_eq!((native.total, native.at_cr3_load, native.guest_levels), (2, 4, 2));
    assert_eq!(walk(Tables::Native(PaePaging), Size2M).total, 1);
    assert_eq!(walk(Tables::Shadow(PaePaging), Size4K).total, 2);
    let ept = walk(nested(PaePaging, HostLevels::Four, NestedFormat::Ept), Size4K);
    assert_eq!((ept.total, ept.at_cr3_load, ept.guest_levels), (14, 8, 2));
    assert_eq!(ept.references[4].serves, "guest PDE");
    let npt = walk(nested(PaePaging, HostLevels::Four, NestedFormat::Npt), Size4K);
    assert_eq!((npt.total, npt.at_cr3_load, npt.guest_levels), (19, 0, 3));
    assert_eq!(npt.references[4].serves, "guest PDPTE");
    assert_eq!(walk(nested(PaePaging, HostLevels::Five, NestedFormat::Ept), Size2M).total, 11);

    let spec = WalkSpec { guest_page: Size1G, ..spec(Tables::Native(PaePaging)) };
    let message = record_walk(&spec).unwrap_err().to_string();
    assert!(message.contains("no pages of 1G") && message.contains("--guest-page 4K or 2M"), "{message}");
}

/// Gandhi, Hill and Swift (ISCA 2016): 4 + 4k references with the k lowest levels nested. Ahn, Jin and Huh (ISCA 2012): 4 guest
/// references, each after one to the flat table, and one more for the data.
#[test]
fn alternatives_make_the_published_numbers_of_references() {
    for nested in 0..=4 {
        let walk = walked(Tables::Agile(nested), Size4K, Size4K, CacheState::Off);
        assert_eq!(walk.total, 4 + 4 * usize::from(nested));
        assert_eq!(walk.references.len(), walk.total);
        let shadow = walk.references.iter().filter(|reference| reference.dimension == "shadow").count();
        assert_eq!(shadow, 4 - usize::from(nested));
        if let Some(last) = walk.references.iter().rfind(|reference| reference.dimension == "shadow") {
            assert_eq!(last.says.starts_with("guest table at "), nested > 0, "{}", last.says);
        }
    }
    let walk = walked(Tables::Flat(Four), Size4K, Size4K, CacheState::Off);
    assert_eq!(walk.total, 9);
    let order: String = walk.references.iter().map(|r| if r.dimension == "guest" { 'g' } else { 'n' }).collect();
    assert_eq!(order, "ngngngngn");
    assert!(
        walk.references[0].table == "flat"
            && walk.references[0].address.ends_with(&format!("{:x}", (8 * walk.references[0].index) & 0xfff))
    );
    assert_eq!(walked(Tables::Flat(Five), Size2M, Size4K, CacheState::Off).total, 9);
}

/// Gandhi, Basu, Hill and Swift (MICRO 2014): a segment of the host leaves the guest's 4 references, one of the guest the 4 nested
/// ones of the data, both none. Zhang et al. (ASPLOS 2024): the guest's leaf, and the host's for its address and the data's.
#[test]
fn segments_and_registers_leave_what_they_do_not_name() {
    let order = |tables, guest_page, host_page| -> String {
        let walk = walked(tables, guest_page, host_page, CacheState::Off);
        assert!(walk.host_physical.ends_with("abc"), "{}", walk.host_physical);
        walk.references.iter().map(|r| if r.dimension == "guest" { 'g' } else { 'n' }).collect()
    };
    let segments = Tables::DirectSegment;
    assert_eq!(order(segments(Segments::Vmm), Size4K, Size4K), "gggg");
    assert_eq!(order(segments(Segments::Vmm), Size2M, Size4K), "ggg");
    assert_eq!(order(segments(Segments::Guest), Size4K, Size4K), "nnnn");
    assert_eq!(order(segments(Segments::Guest), Size4K, Size2M), "nnn");
    assert_eq!(order(segments(Segments::Dual), Size4K, Size4K), "");
    for (guest_page, serves) in [(Size4K, "guest PTE"), (Size2M, "guest PDE"), (Size1G, "guest PDPTE")] {
        assert_eq!(order(Tables::Register, guest_page, Size4K), "ngn");
        let walk = walked(Tables::Register, guest_page, Size2M, CacheState::Off);
        let read: Vec<_> = walk.references.iter().map(|reference| reference.serves.as_str()).collect();
        assert_eq!((read[0], read[2], walk.references[0].level), (serves, "data", 1));
    }
    // A nested TLB knows both pages; without one there is nothing to save.
    let warm = |nested_tlb| walked(Tables::Register, Size4K, Size4K, CacheState::Warm(machine(nested_tlb))).total;
    assert_eq!((warm(None), warm(Some(16))), (3, 1));
}

#[test]
fn alternatives_that_do_not_exist_are_refused() {
    let refused = |tables| record_walk(&spec(tables)).unwrap_err().to_string();
    assert!(refused(Tables::Agile(5)).contains("agile:0 to agile:4"));
    assert!(refused(Tables::Flat(PaePaging)).contains("--guest 4"));
}

/// Caches of 2, 4 and 32 entries for the three upper levels of each dimension, as the machine of the published figures.
fn machine(nested_tlb: Option<u32>) -> MmuGeometry {
    let shape = |entries| Shape::new(entries, entries).unwrap();
    let levels = WalkGeometry::NONE
        .with(memvirt_addr::Level::L4, shape(2))
        .with(memvirt_addr::Level::L3, shape(4))
        .with(memvirt_addr::Level::L2, shape(32));
    MmuGeometry { guest: levels, host: levels, nested_tlb: nested_tlb.map(shape) }
}

/// What a warm walk reads: with its page directory entry cached, one guest entry; that entry's address and the data's each take
/// one nested entry, or none where the nested TLB holds their pages.
#[test]
fn warm_caches_leave_the_lowest_entries() {
    let two = nested(Four, HostLevels::Four, NestedFormat::Ept);
    let warm = |tables, nested_tlb| walked(tables, Size4K, Size4K, CacheState::Warm(machine(nested_tlb)));
    for tables in [Tables::Native(Four), Tables::Shadow(Four)] {
        let walk = warm(tables, None);
        assert_eq!((walk.total, walk.cache_hits.len(), walk.updates), (1, 1, 0));
        assert!(walk.cache_hits[0].cache.ends_with(" PDE") && walk.cache_hits[0].serves == "PTE");
    }
    let walk = warm(two, None);
    let read: Vec<_> = walk.references.iter().map(|r| (r.dimension, r.serves.as_str(), r.level)).collect();
    assert_eq!(read, [("nested", "guest PTE", 1), ("guest", "guest PTE", 1), ("nested", "data", 1)]);
    let walk = warm(two, Some(16));
    assert_eq!(walk.total, 1);
    let hits: Vec<_> = walk.cache_hits.iter().map(|hit| (hit.cache.as_str(), hit.serves.as_str())).collect();
    assert_eq!(hits, [("guest PDE", "guest PTE"), ("nested TLB", "guest PTE"), ("nested TLB", "data")]);
    assert_eq!(warm(nested(None, HostLevels::Four, NestedFormat::Ept), None).total, 1);
    assert_eq!(warm(nested(None, HostLevels::Four, NestedFormat::Ept), Some(16)).total, 0);
}

/// Flat: the page directory entry is known, so the guest's PTE is read and its address and the data's take one flat entry each.
/// Agile with no level nested is shadow paging; else the guest's PTE, its table's nested leaf (save with one level nested, where
/// the shadow entry names the table itself) and the data's.
#[test]
fn warm_caches_serve_the_alternatives_too() {
    let warm = |tables, nested_tlb| walked(tables, Size4K, Size4K, CacheState::Warm(machine(nested_tlb))).total;
    assert_eq!(warm(Tables::Flat(Four), None), 3);
    assert_eq!(warm(Tables::Agile(0), None), 1);
    assert_eq!(warm(Tables::Agile(1), None), 2);
    assert_eq!([2, 3, 4].map(|nested| warm(Tables::Agile(nested), None)), [3; 3]);
    assert_eq!([0, 1, 2, 3, 4].map(|nested| warm(Tables::Agile(nested), Some(16))), [1; 5]);
}

/// Empty caches save nothing in one dimension. In two, the guest's tables lie in one 2 MiB of guest memory here: after the first
/// of five host walks (4 references) each of the other tables takes the nested leaf alone. The data's page lies there too:
/// 4 + 4 + 4 x 1 = 12.
#[test]
fn a_cold_walk_profits_from_what_it_found_itself() {
    let cold = |tables| walked(tables, Size4K, Size4K, CacheState::Cold(machine(None)));
    assert_eq!(cold(Tables::Native(Four)).total, 4);
    let walk = cold(nested(Four, HostLevels::Four, NestedFormat::Ept));
    assert_eq!((walk.total, walk.cache_hits.len()), (12, 4));
    assert!(walk.cache_hits.iter().all(|hit| hit.cache == "nested PDE"));
    assert_eq!(walk.cache_hits[0].before_step, 6);
}

/// Every step stands in the picture once, and tags close.
#[test]
fn the_picture_numbers_every_step() {
    for (walk, circles) in [
        (walked(nested(Four, HostLevels::Four, NestedFormat::Ept), Size4K, Size4K, CacheState::Off), 24),
        (walked(nested(Five, HostLevels::Five, NestedFormat::Npt), Size4K, Size4K, CacheState::Off), 35),
        (walked(nested(Four, HostLevels::Four, NestedFormat::Ept), Size2M, Size1G, CacheState::Off), 11),
        (walked(nested(PaePaging, HostLevels::Four, NestedFormat::Ept), Size4K, Size4K, CacheState::Off), 14),
        (walked(nested(None, HostLevels::Four, NestedFormat::Ept), Size4K, Size4K, CacheState::Off), 4),
        (walked(Tables::Native(Five), Size4K, Size4K, CacheState::Off), 5),
        (walked(Tables::Flat(Four), Size4K, Size4K, CacheState::Off), 9),
        (walked(Tables::Agile(0), Size4K, Size4K, CacheState::Off), 4),
        (walked(Tables::Agile(2), Size4K, Size4K, CacheState::Off), 12),
        (walked(Tables::Agile(4), Size4K, Size4K, CacheState::Off), 20),
        (walked(Tables::DirectSegment(Segments::Vmm), Size2M, Size4K, CacheState::Off), 3),
        (walked(Tables::DirectSegment(Segments::Guest), Size4K, Size4K, CacheState::Off), 4),
        (walked(Tables::DirectSegment(Segments::Dual), Size4K, Size4K, CacheState::Off), 0),
        (walked(Tables::Register, Size4K, Size4K, CacheState::Off), 3),
        (walked(Tables::Register, Size1G, Size2M, CacheState::Off), 3),
        (walked(Tables::Shadow(Four), Size2M, Size4K, CacheState::Off), 4),
        (walked(Tables::Shadow(Four), Size2M, Size2M, CacheState::Off), 3),
        (
            walked(nested(Four, HostLevels::Four, NestedFormat::Ept), Size4K, Size4K, CacheState::Warm(machine(None))),
            24,
        ),
    ] {
        let svg = svg::draw(&walk);
        for step in 1..=walk.total {
            assert_eq!(svg.matches(&format!("class=\"n\">{step}</text>")).count(), 1, "{step}: {svg}");
        }
        assert_eq!(svg.matches("r=\"20\"").count(), circles, "{}", walk.total);
        assert_eq!(svg.matches("r=\"20\" class=\"saved\"").count(), circles - walk.total);
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    }
}
