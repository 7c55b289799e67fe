//! Xen's pool of shadow pages, and what the host does by itself.

use memvirt_ops::arch::HostEvent;
use memvirt_platform::{Cx, Work};

use crate::store::{Change, Slot};

use super::Xen;

/// How many pages the pool has at least for each vCPU. Source: `shadow_min_acceptable_pages`.
pub(super) const LEAST: u64 = 128;

/// How many pages a fault may need.
const NEEDED: u64 = 8;

impl Xen {
    /// Makes pages free where the pool is exhausted: first the shadows of top-level tables that no vCPU runs on, least recently
    /// loaded first; then the mappings under those in use. Source: `_shadow_prealloc`.
    pub(super) fn make_room(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> Change {
        let mut change = Change::Kept;
        let mut at = 0;
        while self.graph.store.used() + NEEDED > self.graph.store.limit() {
            let Some(root) = self.pinned.get(at).copied() else { break };
            if self.graph.store.page(root).is_pinned() {
                at += 1;
                continue;
            }
            self.pinned.remove(at);
            change = change.or(self.graph.store.zap(cx.host, root, work));
            change = change.or(self.reap(cx, work));
        }
        for root in self.pinned.clone() {
            while self.graph.store.used() + NEEDED > self.graph.store.limit() {
                let Some(index) = self.graph.store.page(root).next_present(0) else { break };
                change = change.or(self.graph.store.clear(cx.host, Slot::new(root, index), work));
                change = change.or(self.reap(cx, work));
            }
        }
        change
    }

    /// Drops all shadows. Source: `shadow_blow_tables`.
    fn blow_tables(&mut self, cx: &mut Cx<'_>, work: &mut Work) {
        let _ = self.graph.store.zap_all(cx.host, work);
        let _ = self.reap(cx, work);
    }

    pub(super) fn host_event(&mut self, cx: &mut Cx<'_>, event: &HostEvent) {
        let mut work = Work::default();
        match *event {
            HostEvent::DirtyLog(_, on) => {
                self.graph.logging = on;
                self.blow_tables(cx, &mut work);
            }
            HostEvent::DirtyRound(_) | HostEvent::SlotChange(_) => self.blow_tables(cx, &mut work),
            HostEvent::ShadowPageLimit(_, pages) => {
                self.graph.store.set_limit(u64::from(pages).max(LEAST * u64::from(self.vcpus)));
                let _ = self.make_room(cx, &mut work);
            }
            HostEvent::Unmap(..) | HostEvent::Discard(..) => {
                self.graph.host(cx, event);
                self.forget_freed();
            }
            HostEvent::WorldSwitch(_) => return,
        }
        // Entries that INVLPG removed may live on in the TLBs of other vCPUs.
        cx.flush_vm(&mut work);
        cx.out.counters.work += work;
    }
}
