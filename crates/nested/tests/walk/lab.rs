//! A guest whose tables and data lie 512 GiB apart, so that each has nested entries of its own down from level 4.

use core::marker::PhantomData;

use memvirt_addr::{
    Acc, AccessKind, Gfn, Gpa, GuestPhys, GuestVirt, Gva, Hfn, HostPhys, Hpa, Level, PageSize, Privilege,
};
use memvirt_nested::{AdBits, Counts, End, Reference, SecondStage, Walker};
use memvirt_ops::arch::Cr3;
use memvirt_pagetable::{Attrs, Format, FrameAllocator, FramePool, Mapper, PhysMem, TableAttrs, TableMem, Tree};
use memvirt_platform::Regs;

pub(crate) const SIZES: [PageSize; 3] = [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G];
pub(crate) const KINDS: [AccessKind; 3] = [AccessKind::Read, AccessKind::Write, AccessKind::Fetch];

/// Region `i` of guest memory begins here, and its first GiB lies in one GiB of host memory.
const fn region(i: u64) -> u64 {
    i << 39
}

fn host_address(gpa: Gpa) -> Hpa {
    Hpa::new(((gpa.as_u64() >> 39) + 1) << 30 | gpa.page_offset(PageSize::Size1G))
}

/// Guest memory as the guest's kernel sees it.
struct View<'m>(&'m mut PhysMem<HostPhys>);

impl TableMem<GuestPhys> for View<'_> {
    fn read_entry(&self, at: Gpa) -> u64 {
        self.0.read(host_address(at))
    }

    fn write_entry(&mut self, at: Gpa, value: u64) {
        self.0.write(host_address(at), value);
    }
}

/// Each table in the next region, at an offset that gives it other indices than the rest.
#[derive(Debug)]
struct Regions(u64);

impl FrameAllocator<GuestPhys> for Regions {
    fn allocate(&mut self, _: PageSize) -> Option<Gfn> {
        self.0 += 1;
        let i = self.0 - 1;
        Some(Gpa::new(region(i) + (i + 1) * 0x20_3000).frame())
    }

    fn free(&mut self, _: Gfn, _: PageSize) {}

    fn allocated(&self) -> u64 {
        self.0
    }
}

/// One page of a guest, mapped in both dimensions.
pub(crate) struct Lab<G, H> {
    pub(crate) mem: PhysMem<HostPhys>,
    pub(crate) root: Hfn,
    pub(crate) regs: Regs,
    pub(crate) gva: Gva,
    /// The guest-physical address of the guest's entry at each table, root first; the data's last.
    pub(crate) touched: Vec<Gpa>,
    formats: PhantomData<(G, H)>,
}

impl<G: Format<In = GuestVirt, Out = GuestPhys>, H: SecondStage> Lab<G, H> {
    /// `host_sizes` are the host's pages behind each guest table, root first, and behind the data.
    pub(crate) fn new(guest_page: PageSize, host_sizes: &[PageSize]) -> Self {
        let mut mem = PhysMem::new(12 << 18);
        let gva = G::input(0x1234_5678_9ab8);
        let mut regions = Regions(0);
        let mut view = View(&mut mem);
        let mut mapper = Mapper::<G, _>::create(&mut view, &mut regions, TableAttrs::USER).unwrap();
        let guest_root = mapper.root();
        let data = Gpa::new(region(8));
        let attrs = Attrs::RWX | Attrs::USER;
        mapper.map(gva.align_down(guest_page), data.frame(), guest_page, attrs, &mut regions).unwrap();
        let mut touched: Vec<Gpa> =
            memvirt_pagetable::walk::<G, _>(&view, guest_root, gva).steps().map(|step| step.entry_at).collect();
        touched.push(data.wrapping_add(gva.page_offset(guest_page)));
        assert_eq!(touched.len(), host_sizes.len(), "one host page for each table and the data");

        let mut pool = FramePool::new(Hfn::new(10 << 18), 2 << 18);
        let mut nested = Mapper::<H, _>::create(&mut mem, &mut pool, TableAttrs::new(H::TABLE)).unwrap();
        let root = nested.root();
        for (gpa, size) in touched.iter().zip(host_sizes) {
            let frame = host_address(*gpa).align_down(*size).frame();
            nested.map(gpa.align_down(*size), frame, *size, H::LEAF, &mut pool).unwrap();
        }
        let regs = Regs::kernel(Cr3::flushing(guest_root.base()));
        Self { mem, root, regs, gva, touched, formats: PhantomData }
    }

    /// All host pages of one size.
    pub(crate) fn uniform(guest_page: PageSize, host_page: PageSize) -> Self {
        let tables = G::ROOT.number() - guest_page.level().number() + 1;
        Self::new(guest_page, &vec![host_page; usize::from(tables) + 1])
    }

    pub(crate) fn data(&self) -> Gpa {
        *self.touched.last().unwrap()
    }

    pub(crate) fn walk(&mut self, kind: AccessKind, ad: AdBits) -> End {
        self.walk_as(Acc::user(self.gva, kind), ad).0
    }

    pub(crate) fn walk_as(&mut self, acc: Acc, ad: AdBits) -> (End, Counts, Vec<Reference>) {
        let mut seen = Vec::new();
        let mut walker = Walker::<G, H, _>::new(&mut self.mem, self.root, ad, &mut seen);
        let end = walker.walk(&self.regs, acc);
        let counts = walker.counts;
        (end, counts, seen)
    }

    pub(crate) fn acc(&self, kind: AccessKind, privilege: Privilege) -> Acc {
        Acc::new(self.gva, kind, privilege)
    }

    /// Where the nested entry of `level` for `gpa` lies.
    pub(crate) fn nested_entry(&self, gpa: Gpa, level: Level) -> Hpa {
        let step = Tree::<H, _>::new(&self.mem, self.root).descend(gpa, level);
        assert_eq!(step.level, level);
        step.entry_at
    }

    /// The nested entries for `gpa`, root first.
    pub(crate) fn nested_path(&self, gpa: Gpa) -> Vec<Hpa> {
        memvirt_pagetable::walk::<H, _>(&self.mem, self.root, gpa).steps().map(|step| step.entry_at).collect()
    }

    /// Replaces bits of a word of host memory.
    pub(crate) fn change(&mut self, at: Hpa, clear: u64, set: u64) {
        let raw = self.mem.read(at);
        self.mem.write(at, raw & !clear | set);
    }

    /// The guest's entry in its `i`th table, root first, as it lies in host memory.
    pub(crate) fn guest_entry(&self, i: usize) -> Hpa {
        host_address(self.touched[i])
    }
}
