//! What every policy does with an access that missed the TLB, written once.
//!
//! 1. Hardware walks the shadow tables. Where they give the translation, that is all.
//! 2. Otherwise the access exits, and the hypervisor walks the guest's tables. If they forbid the access the guest gets its
//!    page fault (a *true* fault).
//! 3. If not, guest A and D are set, an access to a device is carried out, and the policy repairs its tables (a *hidden*
//!    fault) or carries out a store to a table that it protects.

use memvirt_addr::{Acc, Gfn, Hpa};
use memvirt_ops::arch::{GuestFault, StoreOp, VcpuSet};
use memvirt_pagetable::{Attrs, Guest4, Path};
use memvirt_platform::{Cx, ExitReason, Foresight, Horizon, LockMode, Outcome, Request, Work, store_element};

use crate::guest::{self, GuestPage};
use crate::hardware::HardwareWalk;
use crate::store::{PageId, ShadowStore};

/// The parts in which policies differ.
pub(crate) trait Policy {
    /// The shadow pages.
    fn store(&self) -> &ShadowStore;

    /// The table that hardware starts from; `None` while the vCPU has none.
    fn root(&self, cx: &Cx<'_>) -> Option<PageId>;

    /// Gives the vCPU a root. `None` where the host has no frame left; a policy may leave a vCPU whose CR3 leads nowhere
    /// without one.
    fn make_root(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> Option<()>;

    /// The guest gets a page fault: what was cached for the address goes, as on hardware.
    fn reflected(&mut self, cx: &mut Cx<'_>, request: &Request<'_>, path: &Path<Guest4>, work: &mut Work) -> VcpuSet;

    /// The guest's tables allow the access to a page of memory; its A and D bits are set. Counts the exit.
    fn repair(&mut self, cx: &mut Cx<'_>, request: &Request<'_>, page: &GuestPage, work: Work) -> Outcome;
}

/// Serves one access.
pub(crate) fn serve<P: Policy>(policy: &mut P, cx: &mut Cx<'_>, request: &Request<'_>) -> Outcome {
    let regs = *cx.regs();
    let mut work = Work::default();
    if policy.root(cx).is_none() && cx.map.contains(regs.cr3.root.frame()) {
        if cx.horizon == Horizon::NextExit {
            return Outcome::Horizon;
        }
        if policy.make_root(cx, &mut work).is_none() {
            return Outcome::OutOfMemory;
        }
    }
    let hardware = match policy.root(cx).map(|root| policy.store().page(root).frame) {
        Some(root) => HardwareWalk::perform(cx, root, request.acc),
        None => HardwareWalk::nowhere(),
    };
    if hardware.found.is_none() && cx.horizon == Horizon::NextExit {
        return Outcome::Horizon;
    }
    hardware.count(&mut cx.out.counters);
    match hardware.found {
        Some(entry) => Outcome::Filled(entry),
        None => exited(policy, cx, request, work),
    }
}

/// What [`Regime::foresee`](memvirt_platform::Regime::foresee) answers.
pub(crate) fn foresee<P: Policy>(policy: &P, cx: &Cx<'_>, ahead: &[Acc], found: &mut Foresight) {
    if let Some(root) = policy.root(cx) {
        HardwareWalk::foresee(cx, policy.store().page(root).frame, ahead, found);
    }
}

fn exited<P: Policy>(policy: &mut P, cx: &mut Cx<'_>, request: &Request<'_>, mut work: Work) -> Outcome {
    let acc = request.acc;
    let path = guest::read_path(cx, acc.gva(), &mut work);
    match guest::translate(cx, &path, acc) {
        Err(code) => {
            let kick = policy.reflected(cx, request, &path, &mut work);
            cx.exit(ExitReason::ReflectedFault, work, lock_for(&work), kick);
            Outcome::Fault(GuestFault { gva: acc.gva(), code })
        }
        Ok(mut page) => {
            page.mark_used(cx, acc);
            if cx.map.contains(page.gfn) {
                return policy.repair(cx, request, &page, work);
            }
            work.instructions_emulated += 1;
            cx.exit(ExitReason::Mmio, work, lock_for(&work), VcpuSet::EMPTY);
            Outcome::Emulated
        }
    }
}

/// The lock, where more was done than to walk the guest's tables and to carry out an instruction.
fn lock_for(work: &Work) -> Option<LockMode> {
    let Work { guest_entries_read, instructions_emulated, .. } = *work;
    let apart = Work { guest_entries_read, instructions_emulated, ..Work::default() };
    (*work != apart).then_some(LockMode::Exclusive)
}

/// Whether the guest stores to a page that its tables make read-only, which CR0.WP = 0 allows it. Shadow tables run under
/// WP = 1, so such stores are carried out one by one, as Xen does (`sh_page_fault`, "emulate_wp"); KVM instead makes the page
/// writable for the supervisor alone until the user touches it.
pub(crate) fn beats_write_protection(request: &Request<'_>, page: &GuestPage) -> bool {
    request.acc.is_write() && !page.perms().contains(Attrs::WRITE)
}

/// The 8-byte words of a page that one element of a store touches, first and last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Touched {
    /// The first index.
    pub(crate) first: usize,
    /// The last index.
    pub(crate) last: usize,
    /// Whether the store is no store of a whole entry: it crosses one, or is narrower than 4 bytes (a single byte at the
    /// start of an entry is taken for a change of flags). Source: KVM, `detect_write_misaligned`.
    pub(crate) misaligned: bool,
}

impl Touched {
    /// What a request touches; `None` for a plain access, of which only the address is known.
    pub(crate) fn by(request: &Request<'_>) -> Option<Self> {
        let bytes = match request.store? {
            StoreOp::Mov { width, .. } => width.bytes(),
            StoreOp::And { .. } | StoreOp::Or { .. } | StoreOp::RepStos { .. } => 8,
            StoreOp::Vector => 16,
        };
        let (offset, first) = (request.acc.gva().as_u64() & 7, Gfn::new((request.acc.gva().as_u64() & 0xfff) >> 3));
        let last = Gfn::new(((request.acc.gva().as_u64() & 0xfff) + bytes - 1) >> 3);
        let flags = bytes == 1 && offset == 0;
        let (first, last) = (first.as_index(), last.as_index().min(511));
        Some(Self { first, last, misaligned: !flags && (first != last || bytes < 4) })
    }
}

/// Whether the instruction is one that kernels change page tables with (KVM's emulator flag `PageTable`): MOV, locked AND and
/// OR, but neither `rep stos` nor vector stores.
pub(crate) const fn writes_tables(request: &Request<'_>) -> bool {
    !matches!(request.store, Some(StoreOp::RepStos { .. } | StoreOp::Vector))
}

/// Carries out one element of the store in guest memory. Returns the indices and new values of the words that it changed;
/// `None` where the host has no frame left.
pub(crate) fn emulate(
    cx: &mut Cx<'_>,
    request: &Request<'_>,
    gfn: Gfn,
    work: &mut Work,
) -> Option<impl Iterator<Item = (usize, u64)> + use<>> {
    work.instructions_emulated += 1;
    let backed = cx.back(gfn, work)?;
    let word = |cx: &Cx<'_>, index: usize| cx.host.mem.read(backed.frame.entry(index));
    let mut changed = [None; 3];
    if let (Some(op), Some(touched)) = (request.store, Touched::by(request)) {
        let before = [0, 1, 2].map(|i| word(cx, touched.first + i));
        let at: Hpa = backed.frame.at(request.acc.gva().as_u64());
        store_element(&mut cx.host.mem, at, op);
        for index in touched.first..=touched.last {
            let new = word(cx, index);
            changed[index - touched.first] = (before[index - touched.first] != new).then_some((index, new));
        }
    }
    Some(changed.into_iter().flatten())
}

/// Carries out a store that CR0.WP = 0 allows.
pub(crate) fn store_despite_protection(
    cx: &mut Cx<'_>,
    request: &Request<'_>,
    page: &GuestPage,
    mut work: Work,
) -> Outcome {
    match emulate(cx, request, page.gfn, &mut work) {
        Some(_) => emulated(cx, ExitReason::HiddenFault, work, VcpuSet::EMPTY),
        None => Outcome::OutOfMemory,
    }
}

/// Counts a store that was carried out.
pub(crate) fn emulated(cx: &mut Cx<'_>, reason: ExitReason, work: Work, kick: VcpuSet) -> Outcome {
    cx.exit(reason, work, Some(LockMode::Exclusive), kick);
    Outcome::Emulated
}
