//! Pages in use, as a shadow that belongs to an address space would see them: the events of policies that protect nothing.

use std::collections::HashMap;

use memvirt_addr::Gfn;

use crate::path::Way;

/// A page that was used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Used {
    pub(crate) frame: Gfn,
    /// Whether stores go through.
    pub(crate) writable: bool,
}

/// Pages by number.
pub(crate) type Pages = HashMap<u64, Used>;

/// What an access to a page costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cost {
    Nothing,
    Fill,
    Upgrade,
}

/// An access that completed.
pub(crate) fn access(pages: &mut Pages, way: &Way) -> Cost {
    let used = Used { frame: way.frame, writable: way.write || way.writable };
    match pages.get_mut(&way.page) {
        None => {
            pages.insert(way.page, used);
            Cost::Fill
        }
        Some(held) if way.write && !held.writable => {
            *held = used;
            Cost::Upgrade
        }
        Some(_) => Cost::Nothing,
    }
}

/// Compares pages with the guest's tables; `now` translates a page as they are. What has changed goes or gets its new
/// permissions.
pub(crate) fn sync(pages: &mut Pages, now: impl Fn(u64) -> Option<Way>) {
    pages.retain(|page, used| agrees(used, now(*page)));
}

/// The same for one page, translated by now to `way`.
pub(crate) fn sync_page(pages: &mut Pages, page: u64, way: Option<Way>) {
    if pages.get_mut(&page).is_some_and(|used| !agrees(used, way)) {
        pages.remove(&page);
    }
}

/// Whether the page is still what it was.
fn agrees(used: &mut Used, now: Option<Way>) -> bool {
    let same = now.filter(|way| way.accessed && way.frame == used.frame);
    used.writable = same.is_some_and(|way| way.writable);
    same.is_some()
}
