//! What was counted, as steps in simulated time: guest work, exits with and without the MMU lock, interrupts to other vCPUs.
//!
//! Every cycle that `memvirt_machine::price` charges stands in exactly one step. Of a guest's own work INVLPG, CR3 loads and
//! stores to tables stand where they happened, a process' instructions evenly over its accesses, and the rest of the kernel's
//! work (entries, handlers, pages cleared) evenly over its accesses.

use memvirt_machine::{GuestStats, MachineSpec, exit_price, guest_cycles};
use memvirt_ops::VcpuId;
use memvirt_platform::{Counters, Exit, ExitReason, LockMode};
use memvirt_timeline::{Lock, Step, Work};

use crate::demand::Demand;
use crate::recorder::{Kind, Segment};

/// What a batch cost the guest besides translation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Base {
    /// The process' instructions.
    pub(crate) process: u64,
    /// The kernel.
    pub(crate) kernel: u64,
}

/// What the guest did without translation and a process' instructions; `exits` by reason are those of the same time.
pub(crate) fn kernel_cycles(spec: &MachineSpec, stats: &GuestStats, exits: [u64; ExitReason::COUNT]) -> u64 {
    let counters = Counters { exits, ..Counters::default() };
    guest_cycles(spec, &counters, &GuestStats { instructions: 0, ..*stats }).base
}

/// Makes steps.
pub(crate) struct Steps<'a> {
    pub(crate) spec: &'a MachineSpec,
    /// How many vCPUs there are in all.
    pub(crate) vcpus: usize,
    pub(crate) out: &'a mut Vec<Step>,
    pub(crate) demand: &'a mut Demand,
    /// Guest work that no step holds yet.
    pub(crate) guest: u64,
}

impl Steps<'_> {
    /// The steps of one batch. `interrupts` are the works of the vCPUs that were interrupted, for each interrupt sent.
    pub(crate) fn batch(
        &mut self,
        segments: &[Segment],
        exits: &[Exit],
        base: Base,
        interrupts: impl IntoIterator<Item = Vec<(usize, Vec<Work>)>>,
    ) {
        let mut interrupts = interrupts.into_iter();
        let mut shares = Shares::of(self.spec, segments, exits, base);
        let mut awaited = true;
        for segment in segments {
            if segment.kind == Kind::Waits {
                self.wait(&mut awaited);
                continue;
            }
            let cycles = segment.translation + shares.take(self.spec, segment, exits);
            let own = exits.get(segment.exits.0..segment.exits.1).unwrap_or_default();
            self.spread(cycles, own, segment);
            if segment.kind == Kind::Sent {
                self.wait(&mut awaited);
                if let Some(targets) = interrupts.next().filter(|targets| !targets.is_empty()) {
                    self.flush();
                    self.out.push(Step::Interrupt(targets));
                    awaited = false;
                }
            }
        }
        self.guest += shares.left();
        self.wait(&mut awaited);
        self.flush();
    }

    /// The work of a vCPU that was interrupted.
    pub(crate) fn handler(&mut self, cycles: u64, exits: &[Exit]) -> Vec<Work> {
        let begin = self.out.len();
        let whole = Segment { kind: Kind::Kernel, done: 1, translation: 0, exits: (0, exits.len()) };
        self.spread(cycles, exits, &whole);
        self.flush();
        let works = self.out.drain(begin..);
        works.filter_map(|step| if let Step::Work(work) = step { Some(work) } else { None }).collect()
    }

    /// Guest work with exits in between: at the access that exited, evenly where nothing is known.
    fn spread(&mut self, cycles: u64, exits: &[Exit], segment: &Segment) {
        let mut spent = 0;
        let n = exits.len() as u64;
        for (i, exit) in (1u64..).zip(exits) {
            let upto = match segment.kind {
                Kind::User if segment.done > 0 => portion(cycles, (exit.at as u64).min(segment.done), segment.done),
                _ => portion(cycles, i, n + 1),
            };
            self.guest += upto.saturating_sub(spent);
            spent = spent.max(upto);
            self.exit(exit);
        }
        self.guest += cycles - spent;
    }

    fn exit(&mut self, exit: &Exit) {
        self.flush();
        let price = exit_price(self.spec, exit);
        self.out.push(Work::Host(price.unlocked).into());
        // An interrupt that the guest sends is no kick of the hypervisor's: the shootdown that it is part of is a step.
        let kicks = exit.reason != ExitReason::Ipi && !exit.kick.is_empty();
        let mode = match (exit.lock, kicks) {
            (Some(LockMode::Shared), _) => Lock::Shared,
            (Some(LockMode::Exclusive), _) | (None, true) => Lock::Exclusive,
            (None, false) => return,
        };
        let kick = if kicks { self.named(exit) } else { Vec::new() };
        self.demand.lock(mode, price.locked, exit.work.remote_flushes);
        self.out.push(Work::Locked { mode, cycles: price.locked, kick }.into());
    }

    fn named(&self, exit: &Exit) -> Vec<usize> {
        let all = (0u16..).take(self.vcpus).map(VcpuId);
        all.filter(|vcpu| exit.kick.contains(*vcpu)).map(VcpuId::index).collect()
    }

    fn wait(&mut self, awaited: &mut bool) {
        if !std::mem::replace(awaited, true) {
            self.flush();
            self.out.push(Step::Await);
        }
    }

    fn flush(&mut self) {
        let cycles = std::mem::take(&mut self.guest);
        if cycles > 0 {
            self.out.push(Work::Guest(cycles).into());
        }
    }
}

/// How a batch's base is divided among its segments.
struct Shares {
    process: u64,
    accesses: u64,
    known: u64,
    rest: u64,
    places: u64,
    /// Accesses of the process, and places of the kernel's work, that have had their share.
    served: (u64, u64),
}

impl Shares {
    fn of(spec: &MachineSpec, segments: &[Segment], exits: &[Exit], base: Base) -> Self {
        let known: u64 = segments.iter().map(|segment| known(spec, segment, exits)).sum();
        let accesses = segments.iter().filter(|s| s.kind == Kind::User).map(|s| s.done).sum();
        let places = segments.iter().filter(|s| s.kind == Kind::Kernel).count() as u64;
        let known = known.min(base.kernel);
        Self { process: base.process, accesses, known, rest: base.kernel - known, places, served: (0, 0) }
    }

    fn take(&mut self, spec: &MachineSpec, segment: &Segment, exits: &[Exit]) -> u64 {
        match segment.kind {
            Kind::User => {
                let before = self.served.0;
                self.served.0 += segment.done;
                portion(self.process, self.served.0, self.accesses) - portion(self.process, before, self.accesses)
            }
            Kind::Kernel => {
                let before = self.served.1;
                self.served.1 += 1;
                portion(self.rest, self.served.1, self.places) - portion(self.rest, before, self.places)
            }
            _ => {
                let cost = known(spec, segment, exits).min(self.known);
                self.known -= cost;
                cost
            }
        }
    }

    /// What found no place: instructions without accesses, a kernel that accessed nothing.
    const fn left(&self) -> u64 {
        let process = if self.accesses == 0 { self.process } else { 0 };
        let rest = if self.places == 0 { self.rest } else { 0 };
        process + rest + self.known
    }
}

/// The price of a segment that is one thing with a price of its own, unless it exited: then it was paid for as an exit.
fn known(spec: &MachineSpec, segment: &Segment, exits: &[Exit]) -> u64 {
    let exited = |reason| exits[segment.exits.0..segment.exits.1].iter().any(|exit| exit.reason == reason);
    match segment.kind {
        Kind::Invlpg if !exited(ExitReason::Invlpg) => spec.base.invlpg.times(1),
        Kind::Cr3 if !exited(ExitReason::Cr3Load) => spec.base.cr3_load.times(1),
        Kind::TableStore => spec.base.table_store.times(1),
        _ => 0,
    }
}

/// `part` of `whole` equal parts of `cycles`, all of them together exactly `cycles`.
fn portion(cycles: u64, part: u64, whole: u64) -> u64 {
    if whole == 0 {
        return 0;
    }
    u64::try_from(u128::from(cycles) * u128::from(part) / u128::from(whole)).unwrap_or(cycles)
}
