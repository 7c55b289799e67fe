//! A process maps a gigabyte, writes to one page of it and exits: what its tables hold at each step.

use memvirt_addr::{Gfn, GuestPhys, Gva, PageSize};
use memvirt_pagetable::{Attrs, FrameAllocator, FramePool, Guest4, Mapper, PhysMem, TableAttrs, Teardown};

fn show(step: &str, mapper: &Mapper<'_, Guest4, PhysMem<GuestPhys>>) {
    let count = mapper.count();
    println!("{step:<28} {:>6} table bytes, leaves 4K/2M/1G {:?}", count.table_bytes(), count.leaves);
}

fn main() -> Result<(), Box<dyn core::error::Error>> {
    let mut mem = PhysMem::new(1 << 20);
    let mut pool = FramePool::new(Gfn::new(1), 1 << 20);
    let mut mapper =
        Mapper::<Guest4, _>::create(&mut mem, &mut pool, TableAttrs::USER).ok_or("no frame for the root")?;
    let heap = Gva::new(0x7f00_4000_0000);
    let read_only = Attrs::READ | Attrs::USER;

    let frame = pool.allocate(PageSize::Size1G).ok_or("no gigabyte left")?;
    mapper.map(heap, frame, PageSize::Size1G, read_only, &mut pool)?;
    show("one 1G page", &mapper);

    let touched = heap.wrapping_add(0x1234_5678);
    mapper.split(touched, PageSize::Size4K, &mut pool)?;
    mapper.protect(touched, |attrs| attrs | Attrs::WRITE | Attrs::DIRTY)?;
    show("split to write to one 4K page", &mapper);
    println!("{touched} -> {:?}", mapper.translate(touched));

    let mut pages = 0;
    let freed = mapper.free_tree(&mut pool, 256..512, Teardown::ClearEntries, |_| pages += 1);
    pool.free(frame, PageSize::Size1G);
    show("exit", &mapper);
    println!("{pages} pages unmapped, {freed} tables freed, {} frame held: the root", pool.allocated());
    Ok(())
}
