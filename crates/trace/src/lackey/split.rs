//! One access line as accesses that each lie in one 4 KiB page.

use memvirt_addr::{Acc, AccessKind, Gva, PageSize};

use super::access::{Access, Kind};

/// What a kind of line does, in order: a modify loads and then stores.
const fn kinds(kind: Kind) -> &'static [AccessKind] {
    match kind {
        Kind::Fetch => &[AccessKind::Fetch],
        Kind::Load => &[AccessKind::Read],
        Kind::Store => &[AccessKind::Write],
        Kind::Modify => &[AccessKind::Read, AccessKind::Write],
    }
}

/// Pages that `access` touches, at least 1, and the accesses that it becomes; `None` where a byte of it has no canonical
/// address.
pub(super) fn shape(access: Access) -> Option<(u64, usize)> {
    let first = Gva::try_new(access.address).ok()?;
    let last = first.checked_add(u64::from(access.bytes) - 1)?;
    let pages = (last.as_u64() >> PageSize::Size4K.shift()) - (first.as_u64() >> PageSize::Size4K.shift()) + 1;
    let count = usize::try_from(pages).ok()? * kinds(access.kind).len();
    Some((pages, count))
}

/// Appends `access`, which touches `pages` pages, to a run.
pub(super) fn append(access: Access, pages: u64, run: &mut Vec<Acc>) {
    let first = Gva::new_truncate(access.address);
    for &kind in kinds(access.kind) {
        run.push(Acc::user(first, kind));
        let following = (1..pages).map(|page| first.frame().offset(page).base());
        run.extend(following.map(|gva| Acc::user(gva, kind)));
    }
}
