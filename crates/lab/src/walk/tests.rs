//! The published matrix, by walking.

use super::*;
use PageSize::{Size1G, Size2M, Size4K};

fn total(guest: Levels, host: Levels, guest_page: PageSize, host_page: PageSize) -> usize {
    let walk = |format| {
        let tables = Tables::Nested { guest: Some(guest), host, format };
        cold_walk(&WalkSpec { tables, guest_page, host_page, address: None }).unwrap()
    };
    let (ept, npt) = (walk(NestedFormat::Ept), walk(NestedFormat::Npt));
    assert_eq!(ept.total, npt.total);
    assert!(ept.host_physical.ends_with("abc"), "{}", ept.host_physical);
    ept.total
}

/// Bhargava et al. (ASPLOS 2008) and its arithmetic for other depths and page sizes.
#[test]
fn cold_walks_make_the_published_numbers_of_references() {
    use Levels::{Five, Four};
    let expected = [
        (Four, Four, Size4K, Size4K, 24),
        (Four, Four, Size2M, Size4K, 19),
        (Four, Four, Size4K, Size2M, 19),
        (Four, Four, Size1G, Size4K, 14),
        (Four, Four, Size2M, Size2M, 15),
        (Four, Four, Size2M, Size1G, 11),
        (Four, Four, Size1G, Size1G, 8),
        (Five, Four, Size4K, Size4K, 29),
        (Four, Five, Size4K, Size4K, 29),
        (Five, Five, Size4K, Size4K, 35),
    ];
    for (guest, host, guest_page, host_page, refs) in expected {
        assert_eq!(total(guest, host, guest_page, host_page), refs, "{guest:?} {host:?} {guest_page} {host_page}");
    }
}

#[test]
fn one_dimension_reads_one_entry_a_level() {
    let one = |tables, guest_page, host_page| {
        cold_walk(&WalkSpec { tables, guest_page, host_page, address: None }).unwrap().total
    };
    assert_eq!(one(Tables::Native(Levels::Four), Size4K, Size4K), 4);
    assert_eq!(one(Tables::Native(Levels::Five), Size2M, Size4K), 4);
    assert_eq!(one(Tables::Shadow(Levels::Four), Size2M, Size2M), 3);
    assert_eq!(one(Tables::Shadow(Levels::Four), Size2M, Size4K), 4, "the smaller page decides");
    let real_mode = Tables::Nested { guest: None, host: Levels::Four, format: NestedFormat::Ept };
    assert_eq!(one(real_mode, Size4K, Size4K), 4);
}

#[test]
fn guest_and_nested_references_alternate_as_the_hardware_does() {
    let tables = Tables::Nested { guest: Some(Levels::Four), host: Levels::Four, format: NestedFormat::Ept };
    let walk =
        cold_walk(&WalkSpec { tables, guest_page: Size4K, host_page: Size4K, address: Some(0x40_0000) }).unwrap();
    let order: String = walk.references.iter().map(|r| if r.dimension == "guest" { 'g' } else { 'n' }).collect();
    assert_eq!(order, "nnnngnnnngnnnngnnnngnnnn");
    assert_eq!(walk.references[4].serves, "guest PML4E");
    assert_eq!(walk.references[23].serves, "data");
}

#[test]
fn an_address_out_of_reach_is_refused_with_its_mend() {
    let tables = Tables::Native(Levels::Four);
    let spec = WalkSpec { tables, guest_page: Size4K, host_page: Size4K, address: Some(0x00aa_7f12_3456_7abc) };
    let message = cold_walk(&spec).unwrap_err().to_string();
    assert!(message.contains("canonical with 4 levels") && message.contains("bit 47"), "{message}");
}
