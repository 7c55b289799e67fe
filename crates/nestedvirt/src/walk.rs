//! Two walks: the hardware's, through two dimensions, and a hypervisor's own, entry by entry.
//!
//! The two-dimensional one takes any first dimension (L2's tables, or SPT12) and any second (EPT02, or EPT01): with `g` and `h`
//! levels a cold walk makes (g+1)(h+1)-1 references, whatever the tables stand for. Nested accessed and dirty bits are off, so a
//! reference to a table of the first dimension is a read save where an accessed or dirty bit of it has to be set (Intel SDM
//! volume 3, section 28.2.4). Order of checks as in `memvirt_nested::walk`.

use memvirt_addr::{Acc, AccessKind, Addr, Frame, Gpa, GuestVirt, Hfn, HostPhys, Hpa, Level, PageSize, PfCode, Space};
use memvirt_pagetable::{Attrs, Entry, Format, PhysMem, Step, Walked as Ended, walk};
use memvirt_platform::{Backed, Cx, Dimension, Probe, Reference, Regs, Update, tlb_entry};

/// How a hardware walk ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End<M: Space> {
    /// Translated: what goes into the TLB.
    Mapped(memvirt_tlb::Entry),
    /// The first dimension forbids the access: a page fault.
    Fault(PfCode),
    /// The second dimension does.
    Violation(Violation<M>),
}

/// An EPT violation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Violation<M: Space> {
    /// The address that could not be translated.
    pub(crate) at: Addr<M>,
    /// Whether it is the data's own, rather than a table's.
    pub(crate) on_data: bool,
    /// Whether it was to be stored to.
    pub(crate) write: bool,
}

/// One hardware walk; nothing of it is counted yet.
#[derive(Debug)]
pub(crate) struct Hardware<M: Space> {
    pub(crate) end: End<M>,
    /// References to the first dimension's tables.
    pub(crate) first: u64,
    /// References to the second's.
    pub(crate) second: u64,
    /// Accessed and dirty bits set, one locked update each.
    pub(crate) ad_updates: u64,
}

struct Walker<'a, P> {
    mem: &'a mut PhysMem<HostPhys>,
    nested_root: Hfn,
    /// What the first dimension's tables are.
    tables: Dimension,
    probe: &'a mut P,
    first: u64,
    second: u64,
    ad_updates: u64,
}

struct Second {
    frame: Hfn,
    size: PageSize,
    perms: Attrs,
}

impl<M: Space> Hardware<M> {
    /// Walks the tables of format `F` under `root`, themselves under the nested tables of format `S`, on the CPU of `cx` and
    /// without its walk caches. An entry of the first dimension is told to the probe as one of `tables`.
    pub(crate) fn walk<F, S>(
        cx: &mut Cx<'_>,
        tables: Dimension,
        (root, nested_root): (Frame<M>, Hfn),
        regs: &Regs,
        acc: Acc,
    ) -> Self
    where
        F: Format<In = GuestVirt, Out = M>,
        S: Format<In = M, Out = HostPhys>,
    {
        let vcpu = &cx.vcpus[cx.me.index()];
        let (mem, roots) = (&mut cx.host.mem, (root, nested_root));
        match cx.cpus[vcpu.cpu].mmu.as_deref_mut() {
            None => Self::probed::<F, S, ()>(mem, tables, &mut (), roots, regs, acc),
            Some(mmu) => {
                let (_, probe) = mmu.walk(vcpu.tag(), cx.vm.0);
                Self::probed::<F, S, _>(mem, tables, probe, roots, regs, acc)
            }
        }
    }

    fn probed<F, S, P>(
        mem: &mut PhysMem<HostPhys>,
        tables: Dimension,
        probe: &mut P,
        (root, nested_root): (Frame<M>, Hfn),
        regs: &Regs,
        acc: Acc,
    ) -> Self
    where
        F: Format<In = GuestVirt, Out = M>,
        S: Format<In = M, Out = HostPhys>,
        P: Probe,
    {
        let mut walker = Walker { mem, nested_root, tables, probe, first: 0, second: 0, ad_updates: 0 };
        let end = walker.descend::<M, F, S>(root, regs, acc).unwrap_or_else(|end| end);
        Self { end, first: walker.first, second: walker.second, ad_updates: walker.ad_updates }
    }
}

impl<P: Probe> Walker<'_, P> {
    fn descend<M, F, S>(&mut self, root: Frame<M>, regs: &Regs, acc: Acc) -> Result<End<M>, End<M>>
    where
        M: Space,
        F: Format<In = GuestVirt, Out = M>,
        S: Format<In = M, Out = HostPhys>,
    {
        let (mut table, mut level, mut perms) = (root, F::ROOT, Attrs::PERMISSIONS);
        loop {
            let at = table.entry(F::index(acc.gva(), level));
            let found = self.translate::<M, S>(at, AccessKind::Read, Some(level))?;
            let hpa = found.frame.at(at.as_u64());
            let raw = self.mem.read(hpa);
            self.first += 1;
            self.tell(self.tables, Some(level), (level, hpa), at.as_u64(), raw);
            let set = |walker: &mut Self, bits: u64| {
                if raw & bits != bits {
                    if !found.perms.contains(Attrs::WRITE) {
                        return Err(End::Violation(Violation { at, on_data: false, write: true }));
                    }
                    walker.ad_updates += 1;
                    walker.mem.write(hpa, raw | bits);
                    let dimension = walker.tables;
                    walker.probe.update(&Update { dimension, level, entry_at: hpa, set: bits & !raw });
                }
                Ok(raw | bits)
            };
            match F::decode(raw, level) {
                Entry::Table { next, attrs } => {
                    perms &= attrs;
                    set(self, F::accessed_bit(level))?;
                    table = next;
                    level = level.below().unwrap_or(Level::L1);
                }
                Entry::Leaf { frame, size, attrs } => {
                    perms &= attrs;
                    if !regs.permits(perms, acc) {
                        return Err(End::Fault(PfCode::of(acc, true)));
                    }
                    let dirty = if acc.is_write() { F::RAW_DIRTY } else { 0 };
                    let raw = set(self, F::RAW_ACCESSED | dirty)?;
                    perms.set(Attrs::GLOBAL, attrs.contains(Attrs::GLOBAL) && regs.global_pages);
                    let data = frame.base().wrapping_add(acc.gva().page_offset(size));
                    let second = self.translate::<M, S>(data, acc.kind(), None)?;
                    for one in [Attrs::WRITE, Attrs::EXEC] {
                        perms.set(one, perms.contains(one) && second.perms.contains(one));
                    }
                    let backed = Backed { frame: second.frame, size: second.size };
                    return Ok(End::Mapped(tlb_entry(acc, backed, size, perms, raw & F::RAW_DIRTY != 0)));
                }
                Entry::Absent => return Err(End::Fault(PfCode::of(acc, false))),
                Entry::Reserved => return Err(End::Fault(PfCode::of(acc, true).with_reserved())),
            }
        }
    }

    /// Tells the probe. What lies between the dimensions goes by the name of guest-physical addresses there.
    fn tell(
        &mut self,
        dimension: Dimension,
        guest_level: Option<Level>,
        (level, entry_at): (Level, Hpa),
        at: u64,
        raw: u64,
    ) {
        let gpa = Gpa::new_truncate(at);
        self.probe.reference(&Reference { dimension, guest_level, level, entry_at, gpa, raw });
    }

    fn translate<M, S>(&mut self, at: Addr<M>, kind: AccessKind, serves: Option<Level>) -> Result<Second, End<M>>
    where
        M: Space,
        S: Format<In = M, Out = HostPhys>,
    {
        let wants = match kind {
            AccessKind::Read => Attrs::READ,
            AccessKind::Write => Attrs::WRITE,
            AccessKind::Fetch => Attrs::EXEC,
        };
        let violation = End::Violation(Violation { at, on_data: serves.is_none(), write: kind == AccessKind::Write });
        if !S::covers(at) {
            return Err(violation);
        }
        let path = walk::<S, _>(&*self.mem, self.nested_root, at);
        self.second += u64::from(path.refs());
        for step in path.steps() {
            self.tell(Dimension::Host, serves, (step.level, step.entry_at), at.as_u64(), step.raw);
        }
        match (path.end, path.frame_of(at)) {
            (Ended::Mapped { size, .. }, Some(frame)) if path.perms.contains(wants) => {
                Ok(Second { frame, size, perms: path.perms })
            }
            _ => Err(violation),
        }
    }
}

/// A hypervisor's walk of somebody's tables, root first.
#[derive(Clone, Debug)]
pub(crate) struct Path<F: Format> {
    /// Every entry read.
    pub(crate) steps: Vec<Step<F>>,
    /// The permissions of all present entries, ANDed.
    pub(crate) perms: Attrs,
}

impl<F: Format> Path<F> {
    /// Walks for `at` under `root`; `read` reads one entry. `None` where `read` gives nothing.
    pub(crate) fn read(
        root: Frame<F::Out>,
        at: Addr<F::In>,
        mut read: impl FnMut(Addr<F::Out>) -> Option<u64>,
    ) -> Option<Self> {
        let mut path = Self { steps: Vec::with_capacity(5), perms: Attrs::PERMISSIONS };
        let (mut table, mut level) = (root, F::ROOT);
        loop {
            let entry_at = table.entry(F::index(at, level));
            let raw = read(entry_at)?;
            let entry = F::decode(raw, level);
            path.steps.push(Step { level, entry_at, raw, entry });
            if entry.is_present() {
                path.perms &= entry.attrs();
            }
            match (entry, level.below()) {
                (Entry::Table { next, .. }, Some(below)) => (table, level) = (next, below),
                _ => return Some(path),
            }
        }
    }

    /// The last entry read.
    pub(crate) fn last(&self) -> Option<&Step<F>> {
        self.steps.last()
    }

    /// The frame of `at`, the size of its page and the leaf's own attributes, where there is a leaf.
    pub(crate) fn leaf(&self, at: Addr<F::In>) -> Option<(Frame<F::Out>, PageSize, Attrs)> {
        match self.last()?.entry {
            Entry::Leaf { frame, size, attrs } => Some((frame.offset(at.page_offset(size) >> 12), size, attrs)),
            _ => None,
        }
    }

    /// Whether the walk read a table in `frame`.
    pub(crate) fn leads_through(&self, frame: Frame<F::Out>) -> bool {
        self.steps.iter().any(|step| step.entry_at.frame() == frame)
    }
}
