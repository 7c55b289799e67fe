//! Every reference of a cold two-dimensional walk: 24 of them.

use memvirt_addr::{Acc, AccessKind, Gpa, Gva, Hfn, Hpa, PageSize};
use memvirt_nested::{AdBits, End, Reference, Walker};
use memvirt_ops::arch::Cr3;
use memvirt_pagetable::map::TableAttrs;
use memvirt_pagetable::{Attrs, Ept4, FramePool, Guest4, Mapper, PhysMem};
use memvirt_platform::Regs;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut host = PhysMem::new(64);
    let mut pool = FramePool::new(Hfn::new(32), 32);
    let mut ept = Mapper::<Ept4, _>::create(&mut host, &mut pool, TableAttrs::EPT).ok_or("no frame")?;
    let root = ept.root();
    for frame in 0..8 {
        let attrs = Attrs::RWX | Attrs::WRITE_BACK;
        ept.map(Gpa::new(frame << 12), Hfn::new(frame + 8), PageSize::Size4K, attrs, &mut pool)?;
    }
    for table in 1u64..5 {
        host.write(Hpa::new((table + 8) << 12), ((table + 1) << 12) | 0x27); // guest frame n lies in host frame n + 8
    }
    let mut seen: Vec<Reference> = Vec::new();
    let regs = Regs::kernel(Cr3::flushing(Gpa::new(0x1000)));
    let mut walker = Walker::<Guest4, Ept4, _>::new(&mut host, root, AdBits::On, &mut seen);
    if let End::Mapped(page) = walker.walk(&regs, Acc::user(Gva::new(0), AccessKind::Read)) {
        println!("guest frame {:?} lies in host frame {:?}", page.gfn, page.frame);
    }
    for (i, reference) in seen.iter().enumerate() {
        println!("{:2} {:?} level {:?} at {:?}", i + 1, reference.dimension, reference.level, reference.entry_at);
    }
    Ok(())
}
