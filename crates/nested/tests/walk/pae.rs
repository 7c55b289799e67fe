//! Guests in PAE mode: AMD's walks read the PDPTE, Intel's find it in a register that the load of CR3 filled.

use memvirt_addr::{Acc, AccessKind, GuestPhys, HostPhys, Level, PageSize, PfCode};
use memvirt_nested::{AdBits, Counts, End, Reference, SecondStage, Walker};
use memvirt_pagetable::{Attrs, Ept, LongMode, Pae};

use crate::lab::{Lab, SIZES};

type Npt = LongMode<4, GuestPhys, HostPhys>;

fn lab<H: SecondStage>(guest_page: PageSize, host_page: PageSize) -> Lab<Pae, H> {
    Lab::uniform(guest_page, host_page)
}

/// The load of CR3, then a walk: how the walk ended, and the references of each.
fn intel(lab: &mut Lab<Pae, Ept<4>>, ad: AdBits) -> (End, Vec<Reference>, Vec<Reference>) {
    let (mut load, mut walk) = (Vec::new(), Vec::new());
    let mut walker = Walker::<Pae, Ept<4>, _>::new(&mut lab.mem, lab.root, ad, &mut load);
    let registers: [u64; 4] = walker.load_registers(lab.regs.cr3.root).unwrap();
    let index = usize::try_from(lab.gva.as_u64() >> 30 & 3).unwrap();
    let mut walker = Walker::<Pae, Ept<4>, _>::new(&mut lab.mem, lab.root, ad, &mut walk);
    let end = walker.walk_from_register(&lab.regs, Acc::user(lab.gva, AccessKind::Read), registers[index]);
    (end, load, walk)
}

/// (g+1)(h+1)-1 with g = 3 on AMD (the PDPTE is read as any entry) and g = 2 on Intel, less one level for each 2 MiB page;
/// pages of 1 GiB do not exist under PAE.
#[test]
fn amd_reads_the_pdpte_and_intel_does_not() {
    for host_page in SIZES {
        let depth = usize::from(5 - host_page.level().number());
        for (guest_page, tables) in [(PageSize::Size4K, 2), (PageSize::Size2M, 1)] {
            let mut amd = lab::<Npt>(guest_page, host_page);
            let (end, counts, seen) = amd.walk_as(Acc::user(amd.gva, AccessKind::Read), AdBits::On);
            assert!(matches!(end, End::Mapped(mapped) if mapped.gfn == amd.data().frame()), "{end:?}");
            assert_eq!(seen.len(), (tables + 2) * (depth + 1) - 1);
            // A PDPTE has no accessed bit.
            assert_eq!(counts.ad_updates - counts.ad_updates_nested, tables as u64);

            let mut guest = lab::<Ept<4>>(guest_page, host_page);
            let (end, load, walk) = intel(&mut guest, AdBits::On);
            assert!(matches!(end, End::Mapped(mapped) if mapped.gfn == guest.data().frame()), "{end:?}");
            assert_eq!(load.len(), depth + 4, "one translation, four entries");
            assert_eq!(walk.len(), (tables + 1) * (depth + 1) - 1);
            assert!(walk.iter().all(|seen| seen.guest_level != Some(Level::L3)));
        }
    }
}

/// SDM volume 3, section 28.2.3.2: the load reads, where references of walks count as writes under accessed bits.
#[test]
fn loading_the_registers_is_a_read_whatever_the_accessed_bits() {
    let mut guest = lab::<Ept<4>>(PageSize::Size4K, PageSize::Size4K);
    let write = 1 << 1;
    let pdpt = guest.nested_entry(guest.touched[0], Level::L1);
    guest.change(pdpt, write, 0);
    let (end, load, _) = intel(&mut guest, AdBits::On);
    assert!(matches!(end, End::Mapped(_)) && load.len() == 8, "{end:?}");
    let directory = guest.nested_entry(guest.touched[1], Level::L1);
    guest.change(directory, write, 0);
    let (end, ..) = intel(&mut guest, AdBits::On);
    assert!(matches!(end, End::Violation(violation) if violation.gpa == guest.touched[1]), "{end:?}");

    let read = 0b111;
    guest.change(pdpt, read, 0);
    let mut nobody = ();
    let mut walker = Walker::<Pae, Ept<4>, _>::new(&mut guest.mem, guest.root, AdBits::On, &mut nobody);
    let refused = walker.load_registers::<4>(guest.regs.cr3.root);
    assert!(matches!(refused, Err(End::Violation(violation)) if !violation.had.contains(Attrs::READ)), "{refused:?}");
}

/// A register without P is a page fault that reads nothing.
#[test]
fn a_register_that_is_not_present_faults_without_a_reference() {
    let mut guest = lab::<Ept<4>>(PageSize::Size4K, PageSize::Size4K);
    let acc = Acc::user(guest.gva, AccessKind::Read);
    let mut nobody = ();
    let mut walker = Walker::<Pae, Ept<4>, _>::new(&mut guest.mem, guest.root, AdBits::On, &mut nobody);
    assert_eq!(walker.walk_from_register(&guest.regs, acc, 0), End::GuestFault(PfCode::of(acc, false)));
    assert_eq!(walker.counts, Counts::default());
}
