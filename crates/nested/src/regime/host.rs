//! What the host does by itself: takes memory away, changes the layout, switches between machines.
//!
//! Source: Linux 6.1 `arch/x86/kvm/mmu/tdp_mmu.c` (`kvm_tdp_mmu_unmap_gfn_range`, `kvm_tdp_mmu_zap_invalidated_roots`,
//! `handle_removed_pt`).

use memvirt_addr::{Gfn, Gpa, GuestPhys, GuestVirt, Level, PageSize};
use memvirt_ops::arch::{GfnRange, HostEvent};
use memvirt_pagetable::{Entry, Format, Tree};
use memvirt_platform::{Cx, Host, Work};

use super::Nested;
use crate::stage::SecondStage;

impl<H, G> Nested<H, G>
where
    G: Format<In = GuestVirt, Out = GuestPhys>,
    H: SecondStage,
{
    pub(super) fn host_event(&mut self, cx: &mut Cx<'_>, event: &HostEvent) {
        let mut work = Work::default();
        match *event {
            HostEvent::Unmap(_, range) => self.take_away(cx, range, &mut work),
            HostEvent::Discard(_, range) => {
                self.take_away(cx, range, &mut work);
                // What comes back after large host pages were taken away are large pages of the guest's own.
                if cx.map.page_size() == PageSize::Size4K {
                    self.zero.discard(range, cx.map.frames());
                }
            }
            HostEvent::DirtyLog(_, on) => self.set_logging(cx, on, &mut work),
            HostEvent::DirtyRound(_) => self.dirty_round(cx, &mut work),
            HostEvent::SlotChange(_) => {
                self.next_device_generation(cx, &mut work);
                self.zap_all(cx, &mut work);
            }
            HostEvent::WorldSwitch(_) => self.crossed(cx),
            // There are no shadow pages to limit.
            HostEvent::ShadowPageLimit(..) => {}
        }
        cx.out.counters.work += work;
    }

    /// The notifier: drops every leaf that maps a frame of the range, with one flush if there was any. The host takes whole
    /// host pages.
    fn take_away(&mut self, cx: &mut Cx<'_>, range: GfnRange, work: &mut Work) {
        cx.map.unmap(range);
        let frames = cx.map.page_size().frames();
        let end = range.start.number().saturating_add(range.frames).min(cx.map.frames());
        let first = range.start.align_down(cx.map.page_size());
        if range.frames == 0 || first.number() >= end {
            return;
        }
        let last = Gfn::new(end.next_multiple_of(frames) - 1).base();
        let leaves: Vec<Gpa> =
            Tree::<H, _>::new(&cx.host.mem, self.root).leaves(first.base()..=last).map(|leaf| leaf.at).collect();
        for at in &leaves {
            self.drop_leaf(cx.host, *at, work);
        }
        if !leaves.is_empty() {
            self.request_flush(cx, work);
        }
    }

    /// Drops the leaf that covers `at`, if there is one.
    pub(super) fn drop_leaf(&mut self, host: &mut Host, at: Gpa, work: &mut Work) -> bool {
        let (mut mapper, _) = self.mapper(host);
        let Ok(leaf) = mapper.unmap(at) else { return false };
        self.stats.leaves[leaf.size as usize - 1] -= 1;
        work.entries_cleared += 1;
        true
    }

    /// Unlinks what hangs at the entry of `level` for `at` and frees the tables below.
    pub(super) fn zap(&mut self, host: &mut Host, at: Gpa, level: Level, work: &mut Work) {
        let first = Gpa::new_truncate(at.as_u64() & !(level.entry_bytes() - 1));
        let last = Gpa::new_truncate(first.as_u64() | (level.entry_bytes() - 1));
        let tree = Tree::<H, _>::new(&host.mem, self.root);
        let top = tree.descend(first, level);
        let mut tables = Vec::new();
        for (_, step) in tree.entries(first..=last).filter(|(_, step)| step.level <= level) {
            match step.entry {
                Entry::Table { next, .. } => tables.push(next),
                Entry::Leaf { size, .. } if H::device_generation(step.raw).is_none() => {
                    self.stats.leaves[size as usize - 1] -= 1;
                    work.entries_cleared += 1;
                }
                _ => {}
            }
        }
        host.mem.write(top.entry_at, 0);
        work.entries_cleared += 1;
        work.tables_freed += tables.len() as u64;
        self.tables -= tables.len() as u64;
        for table in tables.into_iter().rev() {
            host.free(table, PageSize::Size4K);
        }
    }

    /// Empties the tree. The vCPUs leave the guest and find a new root (KVM makes no flush request for that).
    pub(super) fn zap_all(&mut self, cx: &mut Cx<'_>, work: &mut Work) {
        let tree = Tree::<H, _>::new(&cx.host.mem, self.root);
        let used: Vec<Gpa> = tree.entries(..).filter(|(_, step)| step.level == H::ROOT).map(|(at, _)| at).collect();
        for at in used {
            self.zap(cx.host, at, H::ROOT, work);
        }
        cx.flush_vm(work);
    }
}
