//! Two virtual machines on one CPU: what a world switch costs, with tags and without, and whose frames each machine reaches.
//!
//! Both machines have the same small tables at the same guest addresses: guest frames 1 to 4 hold them, and entry `i` of the leaf
//! table maps page `i` to guest frame `64 + i`.

use std::collections::BTreeSet;

use memvirt_addr::{Acc, AccessKind, Gfn, Gpa, Gva, PageSize};
use memvirt_nested::{AdBits, Nested};
use memvirt_ops::arch::{Control, Cr3, HostEvent};
use memvirt_ops::{VcpuId, VmId};
use memvirt_pagetable::Ept4;
use memvirt_platform::{Engine, Horizon, Host, Ledger, MemoryMap, Platform, Regime, Tags, Vendor, VmSpec};
use memvirt_shadow::kvm::{Kernel, Kvm, KvmConfig};
use memvirt_tlb::Geometry;
use serde::Serialize;

const FRAMES: u64 = 2048;
const LEAF: u64 = 4;
const FIRST: u64 = 64;
/// Pages that each machine touches in its turn.
const PAGES: u64 = 48;
const TURNS: u64 = 100;

/// What one world switch costs in TLB misses, with tags and without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WorldSwitches {
    /// World switches counted, after one turn of each machine.
    pub switches: u64,
    /// Pages that a machine touches between two of them.
    pub pages: u64,
    /// TLB misses with VPIDs.
    pub misses_tagged: u64,
    /// TLB misses without.
    pub misses_untagged: u64,
}

impl WorldSwitches {
    pub(crate) fn measure() -> Self {
        let misses = |tags| {
            let mut pair = Pair::new(tags, |host, _| nested(host));
            (0..2).for_each(|vm| pair.turn(vm));
            let before = pair.out.counters.misses;
            for turn in 0..TURNS {
                pair.turn(u16::from(turn % 2 == 1));
            }
            pair.out.counters.misses - before
        };
        Self { switches: TURNS, pages: PAGES, misses_tagged: misses(Tags::On), misses_untagged: misses(Tags::Off) }
    }

    /// Misses that each switch costs without tags, with tags.
    #[must_use]
    pub fn per_switch(&self) -> (f64, f64) {
        let each = |misses| crate::text::fraction(misses, self.switches);
        (each(self.misses_untagged), each(self.misses_tagged))
    }
}

/// Whose frames two machines with the same tables reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Isolation {
    /// The regime.
    pub regime: &'static str,
    /// Host frames that back guest memory, of both machines.
    pub frames: u64,
    /// Host frames that back memory of both.
    pub shared: u64,
    /// Present entries of guest tables.
    pub entries: u64,
    /// Those of them that name the host frame where the page lies.
    pub telling: u64,
    /// Entries of leaf tables that lead user mode to a frame with a page table in it.
    pub exposing: u64,
}

impl Isolation {
    pub(crate) fn measure() -> [Self; 2] {
        let kvm = |_: &mut Host, _: &MemoryMap| Some(Kvm::new(KvmConfig::new(Kernel::V6_1, Vendor::Vmx)));
        [
            Self::of("nested", Pair::new(Tags::On, |host, _| nested(host))),
            Self::of("shadow:kvm", Pair::new(Tags::On, kvm)),
        ]
    }

    fn of<R: Regime>(regime: &'static str, mut pair: Pair<R>) -> Self {
        (0..2).for_each(|vm| pair.turn(vm));
        let owned = |vm: u16| -> BTreeSet<_> {
            let pages = pair.engine.map(VmId(vm)).host_pages();
            pages.flat_map(|(frame, size)| (0..size.frames()).map(move |i| frame.offset(i))).collect()
        };
        let (first, second) = (owned(0), owned(1));
        let (mut entries, mut telling, mut exposing) = (0, 0, 0);
        for vm in [VmId(0), VmId(1)] {
            for table in 1..=LEAF {
                for index in 0..512 {
                    let entry = pair.engine.peek(vm, Gfn::new(table).entry(index));
                    let named = (entry & 0x000f_ffff_ffff_f000) >> 12;
                    if entry & 1 == 1 {
                        entries += 1;
                        exposing += u64::from(table == LEAF && entry & 4 != 0 && (1..=LEAF).contains(&named));
                        let backing = pair.engine.backing(vm, Gfn::new(named));
                        telling += u64::from(backing.is_some_and(|frame| frame.number() == named));
                    }
                }
            }
        }
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        Self {
            regime,
            frames: count(first.len() + second.len()),
            shared: count(first.intersection(&second).count()),
            entries,
            telling,
            exposing,
        }
    }
}

fn nested(host: &mut Host) -> Option<Nested<Ept4>> {
    Nested::new(host, AdBits::On, Vendor::Vmx)
}

struct Pair<R> {
    engine: Engine<R>,
    out: Ledger,
}

impl<R: Regime> Pair<R> {
    fn new(tags: Tags, make: impl Fn(&mut Host, &MemoryMap) -> Option<R>) -> Self {
        let mut host = Host::new(8 * FRAMES);
        // The host keeps its first frames, so that no frame of a guest has the number of the one behind it by chance.
        for _ in 0..FRAMES {
            host.allocate(PageSize::Size4K);
        }
        let mut vms = Vec::new();
        for _ in 0..2 {
            let map = MemoryMap::new(FRAMES, PageSize::Size4K);
            vms.extend(make(&mut host, &map).map(|regime| (VmSpec { map, vcpus: 1 }, regime)));
        }
        let mut pair = Self { engine: Engine::new(host, 1, &Geometry::default(), tags, vms), out: Ledger::sums() };
        (0..2).for_each(|vm| pair.boot(vm));
        pair
    }

    fn boot(&mut self, vm: u16) {
        for table in 1..LEAF {
            self.engine.poke(VmId(vm), Gpa::new(table << 12), ((table + 1) << 12) | 0x27);
        }
        for (index, page) in (0..PAGES).enumerate() {
            self.engine.poke(VmId(vm), Gfn::new(LEAF).entry(index), ((page + FIRST) << 12) | 0x67);
        }
        let load = Control::Cr3(Cr3::flushing(Gfn::new(1).base()));
        // A root within the machine's memory is never refused.
        let _ = self.engine.event(VcpuId(vm), &load.into(), &mut self.out);
    }

    /// The machine gets the CPU and touches its pages.
    fn turn(&mut self, vm: u16) {
        self.engine.host(&HostEvent::WorldSwitch(VmId(vm)), &mut self.out);
        let run: Vec<_> = (0..PAGES).map(|page| Acc::user(Gva::new_truncate(page << 12), AccessKind::Write)).collect();
        self.engine.accesses(VcpuId(vm), &run, Horizon::Open, &mut self.out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_tags_every_page_misses_after_a_switch_and_with_them_none() {
        let measured = WorldSwitches::measure();
        assert_eq!((measured.misses_tagged, measured.misses_untagged), (0, TURNS * PAGES));
    }

    #[test]
    fn two_machines_with_equal_tables_share_no_frame() {
        for isolation in Isolation::measure() {
            assert_eq!((isolation.shared, isolation.telling, isolation.exposing), (0, 0, 0), "{isolation:?}");
            assert!(isolation.frames >= 2 * PAGES && isolation.entries == 2 * (PAGES + LEAF - 1), "{isolation:?}");
        }
    }
}
