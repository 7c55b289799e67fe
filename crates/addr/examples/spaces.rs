//! Three address spaces that do not mix, and how an address falls apart into table indices.

use memvirt_addr::{Acc, AccessKind, Gva, Level, PageSize};

fn main() -> Result<(), memvirt_addr::AddrError> {
    let gva = Gva::try_new(0x7fff_1234_5678)?;
    for level in Level::ALL.into_iter().rev().skip(1) {
        println!("index into the level-{} table: {}", level.number(), gva.index(level));
    }
    println!("page {:?}, offset {:#x}", gva.frame(), gva.page_offset(PageSize::Size4K));
    println!("the 2M page that holds it starts at {:?}", gva.align_down(PageSize::Size2M));

    let store = Acc::user(gva, AccessKind::Write);
    println!("{store:?} takes {} bytes", size_of_val(&store));
    if let Err(error) = Gva::try_new(0x0123_4567_89ab_cdef) {
        println!("{error}");
    }
    Ok(())
}
