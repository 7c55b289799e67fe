//! The hypervisor's own reading and writing of guest memory after an exit: its walk of the guest's tables, and stores that it
//! carries out. As in `memvirt_shadow`, after KVM (`paging_tmpl.h`, `detect_write_misaligned`).

use memvirt_addr::{Acc, Gfn, Hpa, PageSize, Privilege};
use memvirt_ops::arch::StoreOp;
use memvirt_pagetable::{Attrs, Entry, Format, Guest4, Path, TableMem, Walked, walk};
use memvirt_platform::{Cx, Regs, Request, Work, store_element};

/// A page that the guest's tables lead to and permit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page {
    pub(super) gfn: Gfn,
    pub(super) size: PageSize,
    /// The leaf's own attributes, as they are once the access is done.
    pub(super) attrs: Attrs,
}

/// Walks the guest's tables under the current CR3.
pub(super) fn read_path(cx: &mut Cx<'_>, acc: Acc, work: &mut Work) -> Path<Guest4> {
    let root = cx.regs().cr3.root.frame();
    let path = walk::<Guest4, _>(&cx.guest(), root, acc.gva());
    work.guest_entries_read += u64::from(path.refs());
    path
}

/// The page that a walk ended at, where the guest's tables permit the access.
pub(super) fn page(regs: &Regs, path: &Path<Guest4>, acc: Acc) -> Option<Page> {
    let (Walked::Mapped { size, .. }, Some(leaf), Some(gfn)) = (path.end, path.leaf(), path.frame_of(acc.gva())) else {
        return None;
    };
    let used = if acc.is_write() { Attrs::ACCESSED | Attrs::DIRTY } else { Attrs::ACCESSED };
    regs.permits(path.perms, acc).then(|| Page { gfn, size, attrs: leaf.entry.attrs() | used })
}

/// Sets accessed bits in the first `depth` entries of a path, and the dirty bit in its leaf for a store; tells `stored` whose
/// tables that changed.
pub(super) fn mark_used(cx: &mut Cx<'_>, path: &Path<Guest4>, depth: usize, acc: Acc, mut stored: impl FnMut(Gfn)) {
    let mut guest = cx.guest();
    for step in path.steps().take(depth) {
        let leaf = matches!(step.entry, Entry::Leaf { .. });
        let bits = Guest4::RAW_ACCESSED | if leaf && acc.is_write() { Guest4::RAW_DIRTY } else { 0 };
        if step.raw & bits != bits {
            guest.write_entry(step.entry_at, step.raw | bits);
            stored(step.entry_at.frame());
        }
    }
}

/// Whether a walk read a table in `gfn`.
pub(super) fn leads_through(path: &Path<Guest4>, gfn: Gfn) -> bool {
    path.steps().any(|step| step.entry_at.frame() == gfn)
}

/// Whether a store is one that kernels do not change page tables with: made in user mode, by `rep stos` or a vector store.
pub(super) fn is_data(request: &Request<'_>) -> bool {
    let kind = matches!(request.store, Some(StoreOp::RepStos { .. } | StoreOp::Vector));
    kind || request.acc.privilege() == Privilege::User
}

/// The 8-byte words of its page that one element of a store touches, first and last; none for a plain access.
fn words(request: &Request<'_>) -> Option<(usize, usize, u64)> {
    let bytes = match request.store? {
        StoreOp::Mov { width, .. } => width.bytes(),
        StoreOp::And { .. } | StoreOp::Or { .. } | StoreOp::RepStos { .. } => 8,
        StoreOp::Vector => 16,
    };
    let start = request.acc.gva().as_u64() & 0xfff;
    let word = |offset: u64| Gfn::new(offset >> 3).as_index().min(511);
    Some((word(start), word(start + bytes - 1), bytes))
}

/// Whether a store is not one of a whole entry: it crosses one, or is narrower than 4 bytes and not of flags.
pub(super) fn misaligned(request: &Request<'_>) -> bool {
    words(request).is_some_and(|(first, last, bytes)| {
        let flags = bytes == 1 && request.acc.gva().as_u64() & 7 == 0;
        !flags && (first != last || bytes < 4)
    })
}

/// Carries out one element of a store to `gfn`; the indices of the words that it changed. `None` where the host has no frame
/// left.
pub(super) fn emulate(cx: &mut Cx<'_>, request: &Request<'_>, gfn: Gfn, work: &mut Work) -> Option<Vec<usize>> {
    work.instructions_emulated += 1;
    let backed = cx.back(gfn, work)?;
    let (Some(op), Some((first, last, _))) = (request.store, words(request)) else { return Some(Vec::new()) };
    let read = |cx: &Cx<'_>| -> Vec<u64> { (first..=last).map(|i| cx.host.mem.read(backed.frame.entry(i))).collect() };
    let before = read(cx);
    let at: Hpa = backed.frame.at(request.acc.gva().as_u64());
    store_element(&mut cx.host.mem, at, op);
    let after = read(cx);
    Some((first..=last).filter(|i| before[i - first] != after[i - first]).collect())
}
