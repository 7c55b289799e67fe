//! The guest carries out a replay: what it did for the program of the recording, told apart from what it did for others.

use std::collections::BTreeMap;

use memvirt_machine::{
    Bench, Guest, GuestConfig, GuestStats, Halted, HostConfig, MachineSpec, Measure, Outcome, RegimeKind, Setup, Shape,
    assemble,
};
use memvirt_ops::process::{Op, ProcessId};
use memvirt_ops::{VcpuId, VmId};
use memvirt_platform::Ledger;
use memvirt_trace::{Party, Replay, Step, Turn};

use super::Load;
use crate::error::LabError;

/// Numbers of processes from here on are programs outside of the recording.
const FOREIGN: u32 = 1 << 30;
/// CPUs beyond so many are not simulated; the guest's limit.
const MAX_CPUS: usize = 256;

/// What a replay came to.
#[derive(Debug)]
pub(super) struct Played {
    pub(super) outcome: Outcome,
    /// What the guest did while processes of the recording were on the CPU.
    pub(super) own: GuestStats,
    /// The address spaces loaded then.
    pub(super) loads: Vec<Load>,
    /// Interrupts for flushes that CPUs got while those were on them.
    pub(super) interrupted: u64,
}

/// Plays a replay on a machine without virtualization.
pub(super) fn play(replay: Replay, config: GuestConfig) -> Result<Played, LabError> {
    let machine = MachineSpec::load(MachineSpec::DEFAULT)?;
    let (regime, host, measure) = (RegimeKind::Native, HostConfig::default(), Measure::default());
    let setup = Setup { regime, guest: regime.asks_of(config), host, machine, measure, check: false };
    let vcpus: Vec<VcpuId> = (0u16..).take(replay.cpus.clamp(1, MAX_CPUS)).map(VcpuId).collect();
    let count = u16::try_from(vcpus.len()).unwrap_or(1);
    let failed = |outcome| Played { outcome, own: GuestStats::default(), loads: Vec::new(), interrupted: 0 };
    let Some(mut bench) = assemble(&setup, Shape { cpus: vcpus.len(), vms: 1, vcpus: count })? else {
        return Ok(failed(Outcome::HostOutOfMemory));
    };
    let mut ledger = Ledger::sums();
    let guest = match Guest::boot_on(setup.guest, VmId::FIRST, &vcpus, bench.platform(), &mut ledger) {
        Ok(guest) => guest,
        Err(halted) => return Ok(failed(halted.into())),
    };
    let mut player = Player::new(guest, bench, ledger);
    let outcome = match replay.steps.into_iter().try_for_each(|step| player.step(step)) {
        Ok(()) => Outcome::Completed,
        Err(halted) => halted.into(),
    };
    let all = player.guest.stats();
    let own = GuestStats { peak_data_frames: all.peak_data_frames, ignored_ops: all.ignored_ops, ..player.own };
    Ok(Played { outcome, own, loads: player.loads, interrupted: player.interrupted })
}

/// What of a switch belongs to whoever leaves the CPU.
fn switched(did: GuestStats) -> GuestStats {
    let GuestStats { switches, space_switches, space_switches_kept, cr3_loads, full_flushes, kernel_entries, .. } = did;
    let none = GuestStats::default();
    GuestStats { switches, space_switches, space_switches_kept, cr3_loads, full_flushes, kernel_entries, ..none }
}

struct Player {
    guest: Guest,
    bench: Bench,
    ledger: Ledger,
    own: GuestStats,
    loads: Vec<Load>,
    interrupted: u64,
    /// Who has each CPU.
    has: Vec<Party>,
    /// Programs outside of the recording, by the number of their task.
    foreign: BTreeMap<u32, ProcessId>,
    /// Whether the first program has been executed: recordings begin in the middle of that.
    has_begun: bool,
}

impl Player {
    fn new(guest: Guest, bench: Bench, ledger: Ledger) -> Self {
        let mut has = vec![Party::Kernel; guest.cpus()];
        has[0] = Party::Own(ProcessId::FIRST);
        let (own, loads, foreign) = (GuestStats::default(), Vec::new(), BTreeMap::new());
        Self { guest, bench, ledger, own, loads, interrupted: 0, has, foreign, has_begun: false }
    }

    fn step(&mut self, step: Step) -> Result<(), Halted> {
        let (Step::Run { cpu, .. } | Step::Turn(Turn { cpu, .. })) = step;
        let cpu = cpu % self.has.len();
        let before = self.guest.stats_on(cpu);
        let result = match step {
            Step::Run { ref batch, .. } => self.guest.batch_on(cpu, batch, self.bench.platform(), &mut self.ledger),
            Step::Turn(turn) => self.turn(cpu, turn.to),
        };
        let mut did = self.guest.stats_on(cpu) - before;
        if let Step::Turn(_) = step {
            // A program outside of the recording was there before: making its address space is nobody's work.
            did = switched(did);
        }
        if let Step::Run { batch, .. } = &step
            && matches!(batch.then, Some(Op::Load { .. } | Op::Exec))
            && !std::mem::replace(&mut self.has_begun, true)
        {
            // `perf record` enables its events within exec, after the new address space is loaded (`exec_mmap`, then
            // `perf_event_exec`, in `fs/exec.c` `begin_new_exec`).
            did.space_switches = 0;
            did.space_switches_kept = 0;
        }
        let interrupted = self.guest.take_shootdowns().into_iter().flat_map(|shootdown| shootdown.targets);
        self.interrupted += interrupted.filter(|target| matches!(self.has[target.cpu], Party::Own(_))).count() as u64;
        // The kernel switches address spaces on behalf of whoever leaves.
        if matches!(self.has[cpu], Party::Own(_)) {
            self.own += did;
            // One step loads one address space at most.
            let load = Load::of(did.space_switches_kept > 0);
            self.loads.extend((did.space_switches > 0).then_some(load));
        }
        if let Step::Turn(turn) = step {
            self.has[cpu] = turn.to;
        }
        result
    }

    fn turn(&mut self, cpu: usize, to: Party) -> Result<(), Halted> {
        let platform = self.bench.platform();
        let ledger = &mut self.ledger;
        match to {
            Party::Own(process) => self.guest.share_on(cpu, process, platform, ledger),
            Party::Kernel => self.guest.idle_on(cpu, platform, ledger),
            Party::Foreign(task) => match self.foreign.get(&task) {
                Some(process) => self.guest.share_on(cpu, *process, platform, ledger),
                None => {
                    let number = u32::try_from(self.foreign.len()).unwrap_or(u32::MAX - FOREIGN);
                    let process = ProcessId(FOREIGN + number);
                    self.foreign.insert(task, process);
                    self.guest.spawn_on(cpu, process, platform, ledger)
                }
            },
        }
    }
}
