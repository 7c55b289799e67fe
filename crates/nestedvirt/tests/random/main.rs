//! Random L2s under random acts of L1 and L0: every translation is what the three owners' tables come to, every table says what
//! its owner's map says, and no frame has two owners.
#![expect(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod ops;

use memvirt_addr::{Acc, AccessKind, Gfn, Gpa, Gva, Hfn, L1fn, Level, PageSize};
use memvirt_nestedvirt::{Arrangement, Audit, Config, EptOnEpt, Guest, Nesting, ShadowOnEpt};
use memvirt_ops::arch::{Control, Cr3, Event, GfnRange, HostEvent, StoreOp, Width};
use memvirt_ops::{VcpuId, VmId};
use memvirt_oracle::Checked;
use memvirt_pagetable::{Attrs, Entry, Format};
use memvirt_platform::{Engine, Horizon, Host, Ledger, MemoryMap, Platform, Regime, Stop, Tags, VmSpec};
use memvirt_tlb::Geometry;
use ops::{Link, Op, config, ops};
use proptest::prelude::*;

const VM: VmId = VmId::FIRST;
const V: VcpuId = VcpuId::FIRST;
const FRAMES: u64 = 2048;
/// The roots of two address spaces.
const ROOTS: [u64; 2] = [1, 2];
/// Three leaf tables that both may link.
const LEAVES: [u64; 3] = [20, 21, 22];
/// Tables of the direct map and of the way to the leaf tables.
const DIRECT: u64 = 4;
const WAY: [u64; 2] = [10, 15];
/// The first frame for data.
const DATA: u64 = 100;
/// Pages that the processes use below each link.
const PAGES: u64 = 6;

/// Where things lie for tables of `N` levels.
struct Lab<P, const N: u8> {
    platform: P,
    out: Ledger,
    root: usize,
}

const fn region(levels: u8) -> u64 {
    1 << (12 + 9 * (levels as u32 - 1))
}

impl<P: Platform, const N: u8> Lab<P, N> {
    fn new(platform: P) -> Self {
        let mut lab = Self { platform, out: Ledger::sums(), root: 0 };
        lab.poke_way(&ROOTS, 1, DIRECT, 0x23);
        for (way, root) in WAY.into_iter().zip(ROOTS) {
            lab.poke_way(&[root], 8, way, 0x27);
        }
        for index in 0..512 {
            let leaf = if N == 2 { DIRECT } else { DIRECT + u64::from(N) - 2 };
            lab.poke(leaf, index, index << 12 | 0x63);
        }
        for root in 0..2 {
            for slot in 0..2u8 {
                let at = Self::link_at(root, slot.into());
                lab.poke(at.frame().number(), (at.as_u64() & 0xfff) / 8, LEAVES[root + usize::from(slot)] << 12 | 0x27);
            }
        }
        for (i, table) in (0..).zip(LEAVES) {
            for index in 0..PAGES {
                lab.poke(table, index, (DATA + i * PAGES + index) << 12 | if index % 2 == 0 { 0x67 } else { 0x07 });
            }
        }
        lab.control(Control::Cr3(Cr3::flushing(Gfn::new(ROOTS[0]).base())));
        lab
    }

    /// Tables from entry `slot` of the roots down to level 1, or for the processes to level 2.
    fn poke_way(&mut self, roots: &[u64], slot: u64, first: u64, flags: u64) {
        let last = if flags & 4 == 0 { 1 } else { 2 };
        if N > last {
            for root in roots {
                self.poke(*root, slot, first << 12 | flags);
            }
        }
        for i in 0..u64::from((N - 1).saturating_sub(last)) {
            self.poke(first + i, 0, (first + i + 1) << 12 | flags);
        }
    }

    fn poke(&mut self, table: u64, index: u64, raw: u64) {
        self.platform.poke(VM, Gfn::new(table).at(index * 8), raw);
    }

    /// Where the entry of level 2 for half `slot` of the processes' pages lies.
    fn link_at(root: usize, slot: u64) -> Gpa {
        if N == 2 {
            Gfn::new(ROOTS[root]).at((8 + slot) * 8)
        } else {
            Gfn::new(WAY[root] + u64::from(N) - 3).at(slot * 8)
        }
    }

    fn page(page: Gva) -> Gva {
        page.wrapping_add(8 * region(N))
    }

    fn control(&mut self, control: Control) {
        self.platform.event(V, &control.into(), &mut self.out).unwrap();
    }

    fn store(&mut self, at: Gpa, op: StoreOp) {
        let via = Gva::new(region(N) + at.as_u64());
        self.platform.event(V, &Event::Store { via, op, ip: Gva::ZERO }, &mut self.out).unwrap();
    }

    fn set(&mut self, at: Gpa, value: u64) {
        self.store(at, StoreOp::Mov { width: Width::B8, value });
    }

    fn flush(&mut self) {
        self.control(Control::Cr3(Cr3::flushing(Gfn::new(ROOTS[self.root]).base())));
    }

    fn touch(&mut self, gva: Gva, write: bool) -> Stop {
        let kind = if write { AccessKind::Write } else { AccessKind::Read };
        self.platform.accesses(V, &[Acc::user(gva, kind)], Horizon::Open, &mut self.out).1
    }

    /// The walk of L2's tables: the frame, what all levels permit, and the raw leaf.
    fn walk(&self, gva: Gva) -> Option<(Gfn, Attrs, u64)> {
        let (mut table, mut perms) = (Gfn::new(ROOTS[self.root]), Attrs::PERMISSIONS);
        for level in (1..=N).rev() {
            let level = Level::from_number(level).unwrap();
            let raw = self.platform.peek(VM, table.entry(Guest::<N>::index(gva, level)));
            match Guest::<N>::decode(raw, level) {
                Entry::Table { next, attrs } => {
                    perms &= attrs;
                    table = next;
                }
                Entry::Leaf { frame, size, attrs } => {
                    return Some((frame.offset(gva.page_offset(size) >> 12), perms & attrs, raw));
                }
                Entry::Absent | Entry::Reserved => return None,
            }
        }
        None
    }

    /// Carries out what both kinds of tests have in common; `disciplined` guests flush after each change. False for the rest.
    fn kernel(&mut self, op: &Op, disciplined: bool) -> bool {
        match *op {
            Op::Leaf { table, index, frame, flags } => {
                self.set(Gfn::new(LEAVES[table]).at(index * 8), frame << 12 | flags)
            }
            Op::Link { root, slot, to } => {
                let value = match to {
                    Link::Nothing => 0,
                    Link::Table(table) => LEAVES[table] << 12 | 0x27,
                    Link::Large(n) => n << 21 | 0xe7,
                };
                self.set(Self::link_at(root, slot), value);
            }
            Op::Protect { table, index } => {
                self.store(Gfn::new(LEAVES[table]).at(index * 8), StoreOp::And { mask: !2 })
            }
            Op::Clear { table } => {
                self.store(Gfn::new(LEAVES[table]).base(), StoreOp::RepStos { value: 0, count: 512 })
            }
            Op::Switch { root } => self.root = root,
            Op::Control(Control::Invlpg(page)) => {
                self.control(Control::Invlpg(Self::page(page)));
                return true;
            }
            Op::Control(control) => {
                self.control(control);
                return true;
            }
            _ => return false,
        }
        if disciplined || matches!(op, Op::Switch { .. }) {
            self.flush();
        }
        true
    }
}

impl<R: Regime + Nesting + Audit, const N: u8> Lab<Engine<R>, N> {
    fn engine(regime: impl FnOnce(&mut Host, &MemoryMap) -> R) -> Self {
        let mut host = Host::new(1 << 14);
        let map = MemoryMap::new(FRAMES, PageSize::Size4K);
        let regime = regime(&mut host, &map);
        Self::new(Engine::new(host, 1, &Geometry::default(), Tags::On, vec![(VmSpec { map, vcpus: 1 }, regime)]))
    }

    /// L0's map of L1's map of a frame of L2, where all of it is resident.
    fn composed(&self, gfn: Gfn) -> Option<Hfn> {
        let regime = self.platform.regime(VM);
        let frame = regime.l1().frame_of(gfn).filter(|_| regime.l1().is_resident(gfn))?;
        regime.l0().frame_of(frame).filter(|_| regime.l0().is_resident(frame))
    }

    fn check_touch(&mut self, page: Gva, write: bool) -> Result<(), TestCaseError> {
        let gva = Self::page(page);
        let before = self.walk(gva);
        let allowed =
            before.is_some_and(|(_, perms, _)| perms.contains(Attrs::USER) && (!write || perms.contains(Attrs::WRITE)));
        let stop = self.touch(gva, write);
        prop_assert_eq!(stop == Stop::Done, allowed, "{:?} for {:?}", stop, before);
        let (Some((gfn, ..)), Some((_, _, raw)), true) = (before, self.walk(gva), allowed) else { return Ok(()) };
        if let Some(reached) = self.platform.reached(V, gva) {
            prop_assert_eq!(Some(reached.frame), self.composed(gfn), "L2's {:?}", gfn);
            prop_assert_eq!(Some(reached.frame), self.platform.backing(VM, gfn));
            prop_assert!(!reached.writable || raw & 0x42 == 0x42, "writable while clean or read-only: {:#x}", raw);
            let wanted = if write { 0x60 } else { 0x20 };
            prop_assert_eq!(raw & wanted, wanted, "accessed and dirty");
        }
        Ok(())
    }

    fn apply(&mut self, op: &Op) -> Result<(), TestCaseError> {
        if self.kernel(op, true) {
            return Ok(());
        }
        match *op {
            Op::Touch { page, write } => self.check_touch(page, write)?,
            Op::Value { page, value } => {
                let Some((gfn, ..)) =
                    self.walk(Self::page(page)).filter(|(gfn, ..)| gfn.number() >= DATA && gfn.number() < 512)
                else {
                    return Ok(());
                };
                self.set(gfn.base(), value);
                let loaded = self.platform.event(V, &Event::Load { gva: Self::page(page) }, &mut self.out).unwrap();
                prop_assert_eq!((loaded, self.platform.peek(VM, gfn.base())), (Some(value), value));
            }
            Op::TakeL1 { frame, frames, discard } => {
                let range = GfnRange { start: Gfn::new(if discard { frame + DATA } else { frame }), frames };
                let event = if discard { HostEvent::Discard(VM, range) } else { HostEvent::Unmap(VM, range) };
                self.platform.host(&event, &mut self.out);
                let resident = (0..frames).any(|i| self.platform.regime(VM).l1().is_resident(range.start.offset(i)));
                prop_assert!(!resident);
            }
            Op::TakeL0 { nth, frames } => {
                let given: Vec<L1fn> = self.platform.regime(VM).l0().given().map(|(frame, _)| frame).collect();
                let taken: Vec<L1fn> = given.into_iter().cycle().skip(nth % 97).take(frames).collect();
                self.platform.intervene(V, &mut self.out, |regime, cx| regime.take_from_l1(cx, &taken));
                let regime = self.platform.regime(VM);
                for frame in taken {
                    prop_assert!(!regime.l0().is_resident(frame));
                    let backing = regime.l1().guest_of(frame).and_then(|gfn| self.platform.backing(VM, gfn));
                    prop_assert_eq!(backing, None, "L0 took {:?}", frame);
                }
            }
            Op::Slots => self.platform.host(&HostEvent::SlotChange(VM), &mut self.out),
            _ => {}
        }
        Ok(())
    }

    fn run(mut self, ops: &[Op]) -> Result<(), TestCaseError> {
        for (i, op) in ops.iter().enumerate() {
            self.apply(op)?;
            if i % 8 == 0 || i + 1 == ops.len() {
                let wrong = self.platform.regime(VM).audit(self.platform.machine(), self.platform.map(VM));
                prop_assert!(wrong.is_empty(), "after {:?}: {:?}", op, wrong);
                let world = self.platform.regime(VM).world();
                prop_assert_eq!(world.running(), memvirt_nestedvirt::Who::L2);
                let sums = (world.counts.world_switches(), world.counts.l0_exits());
                prop_assert_eq!((self.out.counters.world_switches, self.out.counters.l0_exits), sums);
            }
        }
        Ok(())
    }
}

/// Two machines of L1 on one host, each with an L2: three owners each, and no frame that any two of them share.
#[test]
fn two_nests_share_no_frame() {
    let mut host = Host::new(1 << 14);
    let map = || MemoryMap::new(FRAMES, PageSize::Size4K);
    let mut nest = || (VmSpec { map: map(), vcpus: 1 }, EptOnEpt::<4>::new(&mut host, &map(), Config::KVM).unwrap());
    let nests = vec![nest(), nest()];
    let mut engine = Engine::new(host, 1, &Geometry::default(), Tags::On, nests);
    let mut out = Ledger::sums();
    for vm in [0, 1] {
        for table in 1..4u64 {
            engine.poke(VmId(vm), Gpa::new(table << 12), (table + 1) << 12 | 0x27);
        }
        for page in 0..64 {
            engine.poke(VmId(vm), Gfn::new(4).at(page * 8), (page + 8) << 12 | 0x67);
        }
        engine.event(VcpuId(vm), &Control::Cr3(Cr3::flushing(Gpa::new(0x1000))).into(), &mut out).unwrap();
    }
    for page in 0..64 {
        for vm in [0, 1] {
            let run = [Acc::user(Gva::new(page << 12), AccessKind::Write)];
            assert_eq!(engine.accesses(VcpuId(vm), &run, Horizon::Open, &mut out), (1, Stop::Done));
        }
    }
    let owners = |vm| engine.regime(VmId(vm)).owners(engine.machine());
    let all: Vec<Hfn> = owners(0).into_iter().chain(owners(1)).map(|(frame, _)| frame).collect();
    let distinct: std::collections::BTreeSet<Hfn> = all.iter().copied().collect();
    assert_eq!(distinct.len(), all.len());
    assert_eq!(all.len() as u64, engine.machine().allocated(), "and every frame in use has an owner");
    for owner in ["L0", "L1", "L2"] {
        assert!(owners(1).iter().any(|(_, whose)| *whose == owner), "{owner}");
    }
}

fn run<const N: u8>(arrangement: Arrangement, config: Config, ops: &[Op]) -> Result<(), TestCaseError> {
    match arrangement {
        Arrangement::EptOnEpt => {
            Lab::<_, N>::engine(|host, map| EptOnEpt::<N>::new(host, map, config).unwrap()).run(ops)
        }
        shadow => Lab::<_, N>::engine(|host, map| ShadowOnEpt::<N>::new(host, map, shadow, config).unwrap()).run(ops),
    }
}

/// A guest that flushes when it likes: whatever it is given must be what some hardware could have given.
fn run_sloppy<R: Regime + Nesting + Audit>(
    ops: &[Op],
    regime: impl FnOnce(&mut Host, &MemoryMap) -> R,
) -> Result<(), TestCaseError> {
    let mut host = Host::new(1 << 14);
    let map = MemoryMap::new(FRAMES, PageSize::Size4K);
    let regime = regime(&mut host, &map);
    let engine = Engine::new(host, 1, &Geometry::default(), Tags::On, vec![(VmSpec { map, vcpus: 1 }, regime)]);
    let mut lab = Lab::<_, 4>::new(Checked::single(engine));
    for op in ops {
        // Stores to the tables in use by plain accesses would leave the oracle without the value.
        if matches!(op, Op::Leaf { frame, .. } if *frame < DATA) || matches!(op, Op::Link { to: Link::Large(_), .. }) {
            continue;
        }
        if lab.kernel(op, false) {
            continue;
        }
        match *op {
            Op::Touch { page, write } => _ = lab.touch(Lab::<Engine<R>, 4>::page(page), write),
            Op::TakeL1 { frame, frames, .. } => {
                let range = GfnRange { start: Gfn::new(frame), frames };
                lab.platform.host(&HostEvent::Unmap(VM, range), &mut lab.out);
            }
            Op::Slots => lab.platform.host(&HostEvent::SlotChange(VM), &mut lab.out),
            _ => {}
        }
    }
    prop_assert_eq!(lab.platform.tally().violations(), 0, "{:?}", lab.platform.violations());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..memvirt_properties::cases(192) })]

    #[test]
    fn translations_are_the_composition_of_three_tables(
        which in 0..3usize, levels in 2..=5u8, config in config(), ops in ops(),
    ) {
        let arrangement = Arrangement::ALL[which];
        match levels {
            2 => run::<2>(arrangement, config, &ops)?,
            3 => run::<3>(arrangement, config, &ops)?,
            4 => run::<4>(arrangement, config, &ops)?,
            _ => run::<5>(arrangement, config, &ops)?,
        }
    }

    #[test]
    fn the_oracle_finds_nothing_broken_where_flushes_are_forgotten(which in 0..3usize, config in config(), ops in ops()) {
        match Arrangement::ALL[which] {
            Arrangement::EptOnEpt => run_sloppy(&ops, |host, map| EptOnEpt::<4>::new(host, map, config).unwrap())?,
            shadow => run_sloppy(&ops, |host, map| ShadowOnEpt::<4>::new(host, map, shadow, config).unwrap())?,
        }
    }
}
