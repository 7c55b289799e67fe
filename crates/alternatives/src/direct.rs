//! [`DirectSegment`]: base, limit and offset instead of tables, in one dimension or both.
//!
//! | mode | guest dimension | host dimension | references, 4 levels |
//! |---|---|---|---|
//! | VMM direct | the guest's tables | segment | 4 |
//! | guest direct | segment | tree | 4 |
//! | dual direct | segment | segment | 0 |
//!
//! What lies outside a segment is walked as usual; outside the guest's a dual-direct machine is a VMM-direct one. The host's
//! segment is the hypervisor's affair ([`Segment`]). The guest's asks for a guest kernel that lays a range of an address space out contiguously
//! and loads the registers; what it must not do is to unmap or protect a page within. Hardware looks at the registers beside
//! the first TLB level; here after a miss, so translations by segments take TLB entries, of the largest page that fits.
//! Source: Basu et al., ISCA 2013; Gandhi et al., MICRO 2014.

use memvirt_addr::{Acc, Gfn, Gva, HostPhys, PageSize};
use memvirt_nested::{Mapped, SecondStage};
use memvirt_ops::arch::{Control, HostEvent};
use memvirt_pagetable::{Attrs, Ept4, Guest4, PhysMem};
use memvirt_platform::{Caches, Cx, Host, MemoryMap, Outcome, Probe, Refusal, Regime, Regs, Request, TableBytes};

use crate::dirty::DirtyLog;
use crate::hypervisor::{self, Hypervisor};
use crate::meter::{Job, Meter, on_cpu, shown};
use crate::segment::Segment;
use crate::stage::{HostTables, Stage};
use crate::walk::{End, walk_cached};

/// What a guest kernel loads into its segment registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestSegment {
    /// The first page.
    pub base: Gva,
    /// How many 4 KiB pages.
    pub pages: u64,
    /// The guest frame of the first page.
    pub to: Gfn,
    /// What the segment permits.
    pub perms: Attrs,
}

impl GuestSegment {
    /// The guest frame and the largest page that both sides agree on; `None` outside, and where the access is not permitted:
    /// then the guest's tables decide.
    fn translate(&self, regs: &Regs, acc: Acc) -> Option<(Gfn, PageSize)> {
        let page = acc.gva().as_u64().wrapping_sub(self.base.as_u64()) >> 12;
        if page >= self.pages || !regs.permits(self.perms, acc) {
            return None;
        }
        let gfn = self.to.offset(page);
        let fits = |size: &PageSize| {
            let before = acc.gva().frame().number() - acc.gva().frame().align_down(*size).number();
            let alike = gfn.number() - gfn.align_down(*size).number() == before;
            alike && before <= page && page - before + size.frames() <= self.pages
        };
        let size = [PageSize::Size1G, PageSize::Size2M].into_iter().find(fits).unwrap_or(PageSize::Size4K);
        Some((gfn, size))
    }
}

/// Which dimensions have a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The host's.
    Vmm,
    /// The guest's.
    Guest(GuestSegment),
    /// Both.
    Dual(GuestSegment),
}

/// Direct segments for one virtual machine.
#[derive(Debug)]
pub struct DirectSegment {
    hypervisor: Hypervisor<Segment>,
    guest: Option<GuestSegment>,
}

impl DirectSegment {
    /// A machine with the memory of `map`, which is taken from the host at once where the host has a segment. `None` where the
    /// host has no frame left.
    pub fn new(host: &mut Host, map: &mut MemoryMap, mode: Mode) -> Option<Self> {
        let (stage, guest) = match mode {
            Mode::Vmm => (Segment::reserve(host, map)?, None),
            Mode::Guest(guest) => (Segment::empty(host)?, Some(guest)),
            Mode::Dual(guest) => (Segment::reserve(host, map)?, Some(guest)),
        };
        Some(Self { hypervisor: Hypervisor::new(stage), guest })
    }

    /// The host's side.
    #[must_use]
    pub const fn segment(&self) -> &Segment {
        &self.hypervisor.stage
    }

    /// The log of dirtied pages.
    #[must_use]
    pub const fn log(&self) -> &DirtyLog {
        &self.hypervisor.log
    }

    /// One hardware translation without walk caches, shown to `probe` and counted nowhere.
    pub fn show<P: Probe>(&self, cx: &mut Cx<'_>, request: &Request<'_>, probe: &mut P) -> End {
        shown(cx, request.acc, self.job(), probe)
    }

    const fn job(&self) -> Direct<'_> {
        Direct { stage: &self.hypervisor.stage, guest: self.guest.as_ref() }
    }
}

/// One translation.
struct Direct<'a> {
    stage: &'a Segment,
    guest: Option<&'a GuestSegment>,
}

impl Job for Direct<'_> {
    type End = End;

    fn run<P: Probe, C: Caches>(
        self,
        mem: &mut PhysMem<HostPhys>,
        regs: &Regs,
        acc: Acc,
        meter: &mut Meter<'_, P, C>,
    ) -> End {
        let Some((gfn, guest_size)) = self.guest.and_then(|guest| guest.translate(regs, acc)) else {
            return walk_cached::<Guest4, _, _, _>(mem, self.stage, regs, acc, meter);
        };
        let gpa = gfn.at(acc.gva().as_u64());
        let guest_perms = self.guest.map_or(Attrs::empty(), |guest| guest.perms);
        match self.stage.translate(mem, gpa, None, Ept4::data(acc.kind()), meter) {
            Ok(host) => {
                let mut perms = guest_perms & Attrs::PERMISSIONS;
                perms.set(Attrs::WRITE, perms.contains(Attrs::WRITE) && host.perms.contains(Attrs::WRITE));
                let (frame, host_size, dirty) = (host.frame, host.size, host.dirty);
                End::Mapped(Mapped { gfn, frame, guest_size, host_size, perms, dirty })
            }
            Err(violation) => End::Violation(violation),
        }
    }
}

impl Regime for DirectSegment {
    fn miss(&mut self, cx: &mut Cx<'_>, request: &Request<'_>) -> Outcome {
        let end = on_cpu(cx, request.acc, self.job());
        self.hypervisor.ended(cx, request, end)
    }

    fn control(&mut self, cx: &mut Cx<'_>, control: &Control) -> Result<(), Refusal> {
        hypervisor::control(cx, control);
        Ok(())
    }

    fn host(&mut self, cx: &mut Cx<'_>, event: &HostEvent) {
        self.hypervisor.host(cx, event);
    }

    fn table_bytes(&self) -> TableBytes {
        TableBytes { nested: self.hypervisor.stage.bytes(), ..TableBytes::default() }
    }
}
