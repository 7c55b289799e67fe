//! A process touches more pages than the first level holds, then the guest switches processes.
//!
//! `cargo run -p memvirt-tlb --example tour`

use memvirt_addr::{Acc, AccessKind, Gva, Hfn, PageSize};
use memvirt_tlb::{Entry, Geometry, KeepGlobal, Perms, Tag, Tlb};

/// Runs over the accesses; for each miss, walks (here: an identity mapping) and fills.
fn run(tlb: &mut Tlb, tag: Tag, accesses: &[Acc]) {
    let mut at = tlb.hits(tag, accesses);
    while let Some(missed) = accesses.get(at) {
        let page = missed.gva().frame();
        tlb.fill(tag, Entry::new(page, Hfn::new(page.number()), PageSize::Size4K, Perms::ALL));
        at += 1 + tlb.hits(tag, &accesses[at + 1..]);
    }
}

fn main() {
    let mut tlb = Tlb::new(&Geometry::default());
    let (editor, shell) = (Tag::new(1, 1), Tag::new(1, 2));
    let touched: Vec<Acc> = (0..256).map(|page| Acc::user(Gva::new(page << 12), AccessKind::Write)).collect();

    run(&mut tlb, editor, &touched);
    println!("cold:             {:?}", tlb.take_stats());
    run(&mut tlb, editor, &touched);
    println!("again:            {:?}", tlb.take_stats());
    run(&mut tlb, shell, &touched);
    run(&mut tlb, editor, &touched);
    println!("with PCIDs:       {:?}", tlb.take_stats());
    tlb.flush_tag(editor, KeepGlobal::Yes);
    run(&mut tlb, editor, &touched);
    println!("after CR3 loaded: {:?}", tlb.take_stats());
}
