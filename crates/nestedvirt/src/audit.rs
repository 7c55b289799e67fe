//! [`Audit`]: what must hold of the tables of all three, whatever happened. Slow: for tests.

use std::collections::BTreeMap;

use memvirt_addr::{Hfn, Hpa, L1fn, L1pa};
use memvirt_pagetable::{Attrs, PhysMem, TableMem, Tree};
use memvirt_platform::{Host, MemoryMap};

use crate::ept_on_ept::EptOnEpt;
use crate::format::{Ept12, Merged02, Shadow12};
use crate::l0::L0;
use crate::shadow_on_ept::ShadowOnEpt;
use crate::stack::Stack;

/// Checks a regime's tables against the maps of both hypervisors.
pub trait Audit {
    /// What is wrong; empty where nothing is.
    fn audit(&self, host: &Host, map: &MemoryMap) -> Vec<String>;

    /// Every host frame in use and whose it is: `L2`, `L1` (its tables) or `L0` (its tables).
    fn owners(&self, host: &Host) -> Vec<(Hfn, &'static str)>;
}

/// L1's memory as its bytes lie in the host: for reading tables without anybody's leave.
struct L1View<'a> {
    l0: &'a L0,
    mem: &'a PhysMem<memvirt_addr::HostPhys>,
}

impl TableMem<memvirt_addr::L1Phys> for L1View<'_> {
    fn read_entry(&self, at: L1pa) -> u64 {
        self.l0.address(at).map_or(0, |hpa: Hpa| self.mem.read(hpa))
    }

    fn write_entry(&mut self, _: L1pa, _: u64) {}
}

fn view<'a>(stack: &'a Stack, host: &'a Host) -> L1View<'a> {
    L1View { l0: &stack.l0, mem: &host.mem }
}

/// EPT01 maps exactly what L0 has given, writable unless guarded; every frame has one owner.
fn audit_l0(stack: &Stack, host: &Host, owners: &[(Hfn, &'static str)], found: &mut Vec<String>) {
    for leaf in stack.l0.tree(host).leaves(..) {
        let frame = leaf.at.frame();
        if stack.l0.frame_of(frame) != Some(leaf.frame) || !stack.l0.is_resident(frame) {
            found.push(format!("EPT01 maps {frame:?} to {:?}, L0's map does not", leaf.frame));
        }
        if leaf.attrs.contains(Attrs::WRITE) == stack.l0.is_guarded(frame) {
            found.push(format!(
                "EPT01 on stores to {frame:?}: {:?}, guarded: {}",
                leaf.attrs,
                stack.l0.is_guarded(frame)
            ));
        }
    }
    let mut seen = BTreeMap::new();
    for (frame, owner) in owners {
        if let Some(other) = seen.insert(*frame, *owner) {
            found.push(format!("{frame:?} has two owners: {other} and {owner}"));
        }
    }
}

fn given<'a>(stack: &'a Stack) -> impl Iterator<Item = (Hfn, &'static str)> + 'a {
    stack.l0.given().map(|(l1, frame)| (frame, if stack.l1.is_heap(l1) { "L1" } else { "L2" }))
}

impl<const N: u8> Audit for EptOnEpt<N> {
    fn audit(&self, host: &Host, map: &MemoryMap) -> Vec<String> {
        let (mut found, stack) = (Vec::new(), &self.stack);
        audit_l0(stack, host, &self.owners(host), &mut found);
        let l1 = view(stack, host);
        let ept12 = Tree::<Ept12<N>, _>::new(&l1, self.root12());
        for leaf in ept12.leaves(..) {
            let gfn = leaf.at.frame();
            if stack.l1.frame_of(gfn) != Some(leaf.frame) || !stack.l1.is_resident(gfn) {
                found.push(format!("EPT12 maps {gfn:?} to {:?}, L1's map does not", leaf.frame));
            }
        }
        let Some(root02) = self.root02() else { return found };
        for leaf in Tree::<Merged02<N>, _>::new(&host.mem, root02).leaves(..) {
            let gfn = leaf.at.frame();
            let l1fn = ept12.translate(leaf.at).map(|(at, ..)| at.frame());
            let composed = l1fn.filter(|frame| stack.l0.is_resident(*frame)).and_then(|frame| stack.l0.frame_of(frame));
            if composed != Some(leaf.frame) || map.lookup(gfn).map(|backed| backed.frame) != composed {
                found.push(format!("EPT02 maps {gfn:?} to {:?}; EPT12 and L0's map give {composed:?}", leaf.frame));
            }
        }
        found.extend(
            self.ept02
                .followed()
                .filter(|table| !stack.l0.is_guarded(*table))
                .map(|table| format!("{table:?} is not guarded")),
        );
        found
    }

    fn owners(&self, host: &Host) -> Vec<(Hfn, &'static str)> {
        let l0 = self.stack.l0.table_frames(host).chain(self.ept02.frames());
        given(&self.stack).chain(l0.map(|frame| (frame, "L0"))).collect()
    }
}

impl<const N: u8> ShadowOnEpt<N> {
    /// Holds SPT12 under a root against L2's own tables and L1's map.
    fn audit_root(&self, l1: &L1View<'_>, root: L1fn, found: &mut Vec<String>) {
        for leaf in Tree::<Shadow12<N>, _>::new(l1, root).leaves(..) {
            let Some(gfn) = self.stack.l1.guest_of(leaf.frame) else {
                found.push(format!("SPT12 maps {:?} to {:?}, which is not L2's memory", leaf.at, leaf.frame));
                continue;
            };
            if self.stack.l1.frame_of(gfn) != Some(leaf.frame) || !self.stack.l1.is_resident(gfn) {
                found.push(format!("SPT12 maps {:?} to {:?}, L1's map does not", leaf.at, leaf.frame));
            }
            if leaf.attrs.contains(Attrs::WRITE) && self.spt.is_followed(gfn) {
                found.push(format!("L2's table in {gfn:?} can be stored to"));
            }
        }
    }
}

impl<const N: u8> Audit for ShadowOnEpt<N> {
    fn audit(&self, host: &Host, _: &MemoryMap) -> Vec<String> {
        let (mut found, stack) = (Vec::new(), &self.stack);
        audit_l0(stack, host, &self.owners(host), &mut found);
        let l1 = view(stack, host);
        for root in (0..).map_while(|vcpu| self.shadow_root(vcpu)) {
            self.audit_root(&l1, root, &mut found);
        }
        found.extend(
            self.spt.frames().filter(|frame| !stack.l1.is_heap(*frame)).map(|frame| format!("SPT12 lies in {frame:?}")),
        );
        found
    }

    fn owners(&self, host: &Host) -> Vec<(Hfn, &'static str)> {
        let l0 = self.stack.l0.table_frames(host);
        given(&self.stack).chain(l0.map(|frame| (frame, "L0"))).collect()
    }
}
