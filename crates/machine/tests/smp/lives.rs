//! Random lives: processes and threads of them on four CPUs, at random points between each other's operations.

use memvirt_addr::{AccessKind, Gva, PageSize};
use memvirt_machine::{GuestConfig, HostConfig, Invlpg, RegimeKind};
use memvirt_ops::process::{Backing, FileId, Image, Op, ProcessId, Prot, Segments, Sharing, Transfer};
use rand::prelude::*;
use rand_chacha::ChaCha8Rng;

use super::lab::{BASE, Lab, PAGES, page, range};

pub(crate) const CPUS: u16 = 4;
/// The pages that are touched: at the ends of both regions.
const TOUCHED: [std::ops::Range<u64>; 3] = [0..8, 508..516, 1020..1024];

fn image() -> Image {
    let part = |file, start| Segments {
        file: FileId(file),
        start: Gva::new(start),
        headers: 2,
        text: 9,
        constants: 5,
        data: 3,
        zeros: 2,
    };
    Image {
        program: part(1, BASE + 100 * 4096),
        interpreter: Some(part(2, 0x7000_0000_0000)),
        stack_top: Gva::new(0x7ff0_0000_0000),
        stack_pages: 32,
        argument_pages: 2,
        vdso: Gva::new(0x7000_1000_0000),
    }
}

pub(crate) struct Life {
    pub(crate) lab: Lab,
    rng: ChaCha8Rng,
    /// The next number of a process that nobody has used.
    next: u32,
}

impl Life {
    pub(crate) fn new(regime: RegimeKind, config: GuestConfig, host: HostConfig, seed: u64, physical: usize) -> Self {
        let touched: Vec<u64> = TOUCHED.into_iter().flatten().collect();
        let looked_at: &[u64] = if config.invlpg == Invlpg::Used && regime.is_correct() { &touched } else { &[] };
        let lab = Lab::new(regime, config, host, CPUS, physical).looking_at(looked_at);
        Self { lab, rng: ChaCha8Rng::seed_from_u64(seed), next: 0 }
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of.choose(&mut self.rng).unwrap().clone()
    }

    fn touched_page(&mut self) -> u64 {
        let range = self.pick(&TOUCHED);
        self.rng.random_range(range)
    }

    /// Pages from a touched one on: few, or more than are flushed one by one.
    fn span(&mut self) -> (u64, u64) {
        let start = self.touched_page();
        let pages =
            if self.rng.random_range(0..4) == 0 { self.rng.random_range(30..600) } else { self.rng.random_range(1..6) };
        (start, pages.min(PAGES - start))
    }

    fn prot(&mut self) -> Prot {
        self.pick(&[Prot::RW, Prot::RW, Prot::RW, Prot::R, Prot::RX, Prot::NONE])
    }

    fn mapping(&mut self) -> Op {
        let ((start, pages), prot) = (self.span(), self.prot());
        if self.rng.random_range(0..3) == 0 {
            let (sharing, file) =
                (self.pick(&[Sharing::Private, Sharing::Shared]), FileId(self.rng.random_range(0..2)));
            return Op::MapFile { range: range(start, pages), prot, sharing, file, first_page: start };
        }
        let backing = self.pick(&[
            Backing::AnonymousPrivate,
            Backing::AnonymousPrivate,
            Backing::AnonymousShared,
            Backing::FilePrivate,
        ]);
        Op::Mmap { range: range(start, pages), prot, backing }
    }

    fn new_id(&mut self) -> ProcessId {
        self.next += 1;
        ProcessId(self.next)
    }

    fn operation(&mut self) -> Op {
        let (start, pages) = self.span();
        match self.rng.random_range(0..40) {
            0..10 => self.mapping(),
            10..14 => Op::Munmap { range: range(start, pages) },
            14..19 => Op::Mprotect { range: range(start, pages), prot: self.prot() },
            19..21 => Op::Discard { range: range(start, pages) },
            21..24 => Op::Mremap {
                from: range(start, pages),
                to: {
                    let (to, new) = self.span();
                    range(to, new)
                },
            },
            24..25 => Op::Brk { end: page(PAGES + self.rng.random_range(0..40)) },
            25..29 => Op::Fork { child: self.new_id() },
            29..30 => Op::Vfork { child: self.new_id() },
            30..31 => Op::Exec,
            31..32 => Op::Load { image: image() },
            32..34 => Op::Exit,
            34..35 => Op::Copy {
                number: 0,
                transfer: self.pick(&[Transfer::FromUser, Transfer::ToUser]),
                range: range(start, pages.min(3)),
            },
            35..36 => Op::Interrupt,
            36..37 => Op::Switch { to: ProcessId(self.rng.random_range(0..=self.next)) },
            _ => Op::Switch { to: self.lab.living().choose(&mut self.rng).copied().unwrap_or(ProcessId::FIRST) },
        }
    }

    /// What a CPU that idles does: it takes up a process of its own, or a thread of one that lives.
    fn occupy(&mut self, cpu: usize) {
        let living = self.lab.living();
        match living.choose(&mut self.rng) {
            Some(id) if self.rng.random_range(0..4) != 0 => drop(self.lab.share(cpu, id.number())),
            _ => {
                let id = self.new_id();
                self.lab.spawn(cpu, id.number());
            }
        }
    }

    pub(crate) fn step(&mut self) {
        let cpu = self.rng.random_range(0..usize::from(CPUS));
        if self.lab.guest.current_on(cpu).is_none() {
            self.occupy(cpu);
        }
        match self.rng.random_range(0..20) {
            0..12 => {
                let kind = self.pick(&[AccessKind::Read, AccessKind::Write, AccessKind::Write, AccessKind::Fetch]);
                let number = self.touched_page();
                self.lab.touch(cpu, number, kind);
            }
            12..13 if self.rng.random_range(0..3) == 0 => drop(self.lab.idle(cpu)),
            _ => {
                let op = self.operation();
                self.lab.op(cpu, op);
            }
        }
    }
}

/// The guest of a seed: every combination of isolation, PCIDs, large pages and of what Linux does by itself comes up.
pub(crate) fn config(seed: u64) -> GuestConfig {
    let linux = if seed & 8 == 0 { GuestConfig::default() } else { GuestConfig::linux() };
    let work = if seed & 16 == 0 { (0, 0, 0) } else { (7, 2048, 100) };
    let (tick_instructions, collapse_scan_pages, aging_pages) = work;
    GuestConfig {
        memory_bytes: 64 << 20,
        kpti: seed & 1 != 0,
        pcid: seed & 2 != 0,
        guest_page: if seed & 4 == 0 { PageSize::Size4K } else { PageSize::Size2M },
        tick_instructions,
        collapse_scan_pages,
        aging_pages,
        ..linux
    }
}

/// Lives one life; returns the accesses that a stale translation served, and how many interrupts it took.
fn live(regime: RegimeKind, config: GuestConfig, host: HostConfig, seed: u64, steps: u32) -> (u64, u64) {
    let physical = if seed.is_multiple_of(3) { 2 } else { usize::from(CPUS) };
    let mut life = Life::new(regime, config, host, seed, physical);
    (0..steps).for_each(|_| life.step());
    assert!(life.lab.judged() > 100);
    (life.lab.stale(), life.lab.guest.stats().interrupted)
}

/// `MEMVIRT_SEEDS=1000` for a soak.
pub(crate) fn seeds(some: u64) -> u64 {
    std::env::var("MEMVIRT_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(some)
}

fn nothing_stale(regime: RegimeKind, some: u64) {
    let mut interrupted = 0;
    for seed in 0..seeds(some) {
        let host =
            HostConfig { tags: !seed.is_multiple_of(5), walk_caches: seed.is_multiple_of(2), ..HostConfig::default() };
        let (stale, more) = live(regime, config(seed), host, seed, 300);
        assert_eq!(stale, 0, "{regime}, seed {seed}: accesses through translations that another CPU had taken away");
        interrupted += more;
    }
    assert!(interrupted > 10 * some, "{regime}: threads share their address spaces");
}

#[test]
fn on_the_bare_machine() {
    nothing_stale(RegimeKind::Native, 64);
}

#[test]
fn under_nested_paging() {
    nothing_stale(RegimeKind::NestedEpt, 32);
    nothing_stale(RegimeKind::NestedNpt, 32);
}

#[test]
fn under_shadow_paging() {
    for regime in RegimeKind::ALL.iter().copied().filter(|kind| kind.name().starts_with("shadow:") && kind.is_correct())
    {
        nothing_stale(regime, 32);
    }
}

#[test]
fn under_every_other_regime() {
    let others = |kind: &RegimeKind| !["native", "nested:", "shadow:"].iter().any(|of| kind.name().starts_with(of));
    for regime in RegimeKind::ALL.iter().copied().filter(others) {
        nothing_stale(regime, 8);
    }
}

#[test]
fn the_same_seed_gives_the_same_exits_in_the_same_order() {
    let once = || {
        let mut life = Life::new(RegimeKind::ShadowKvm612, config(11), HostConfig::default(), 11, usize::from(CPUS));
        (0..300).for_each(|_| life.step());
        let stats: Vec<_> = (0..usize::from(CPUS)).map(|cpu| life.lab.guest.stats_on(cpu)).collect();
        (life.lab.exits(), stats)
    };
    let (first, second) = (once(), once());
    assert!(first.0.len() > 1000);
    assert_eq!(first, second);
}
