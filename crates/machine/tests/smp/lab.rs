//! A guest on several vCPUs, watched by the oracle and by a look at every TLB after each batch.

use memvirt_addr::{Acc, AccessKind, Gfn, Gpa, Gva, Hfn};
use memvirt_guest::{Guest, GuestConfig, Halted, Shootdown};
use memvirt_machine::{Bench, HostConfig, MachineSpec, Measure, RegimeKind, Setup, Shape, assemble};
use memvirt_ops::arch::{Control, Event, GfnRange, HostEvent};
use memvirt_ops::process::{Batch, Op, ProcessId, Range};
use memvirt_ops::{VcpuId, VmId};
use memvirt_pagetable::{Attrs, Entry, Format, Guest4};
use memvirt_platform::{Attribution, Exit, Horizon, Ledger, Platform, Reached, Refusal, Stop, TableBytes};

/// Where the pages of a test lie: two regions of 2 MiB.
pub(crate) const BASE: u64 = 0x4000_0000;
/// How many they are.
pub(crate) const PAGES: u64 = 1024;

pub(crate) const fn page(number: u64) -> Gva {
    Gva::new_truncate(BASE + number * 4096)
}

pub(crate) const fn range(start: u64, pages: u64) -> Range {
    Range { start: page(start), bytes: pages * 4096 }
}

/// A guest, the machine that it runs on, and a ledger for each CPU.
pub(crate) struct Lab {
    pub(crate) bench: Bench,
    pub(crate) guest: Guest,
    pub(crate) ledgers: Vec<Ledger>,
    /// The pages that are looked at after each batch.
    looked_at: Vec<u64>,
    /// The exits of CPUs while they were interrupted.
    interrupted: Vec<(VcpuId, Exit)>,
    /// CPUs do nothing of what others ask of them.
    pub(crate) deaf: bool,
}

/// A platform on which only one vCPU can flush.
struct Deaf<'a> {
    below: &'a mut dyn Platform,
    speaks: VcpuId,
}

impl Platform for Deaf<'_> {
    fn accesses(&mut self, v: VcpuId, run: &[Acc], horizon: Horizon, out: &mut Ledger) -> (usize, Stop) {
        self.below.accesses(v, run, horizon, out)
    }

    fn event(&mut self, v: VcpuId, event: &Event, out: &mut Ledger) -> Result<Option<u64>, Refusal> {
        match event {
            Event::Control(Control::Invlpg(_) | Control::Cr3(_)) if v != self.speaks => Ok(None),
            _ => self.below.event(v, event, out),
        }
    }

    fn host(&mut self, event: &HostEvent, out: &mut Ledger) {
        self.below.host(event, out);
    }

    fn world_switch(&mut self, v: VcpuId, out: &mut Ledger) {
        self.below.world_switch(v, out);
    }

    fn populate(&mut self, vm: VmId, range: GfnRange, out: &mut Ledger) {
        self.below.populate(vm, range, out);
    }

    fn attribution(&self, vm: VmId) -> Option<Attribution> {
        self.below.attribution(vm)
    }

    fn peek(&self, vm: VmId, at: Gpa) -> u64 {
        self.below.peek(vm, at)
    }

    fn poke(&mut self, vm: VmId, at: Gpa, value: u64) {
        self.below.poke(vm, at, value);
    }

    fn backing(&self, vm: VmId, gfn: Gfn) -> Option<Hfn> {
        self.below.backing(vm, gfn)
    }

    fn reached(&self, v: VcpuId, gva: Gva) -> Option<Reached> {
        self.below.reached(v, gva)
    }

    fn table_bytes(&self) -> TableBytes {
        self.below.table_bytes()
    }
}

impl Lab {
    pub(crate) fn new(regime: RegimeKind, config: GuestConfig, host: HostConfig, cpus: u16, physical: usize) -> Self {
        let guest = regime.asks_of(config);
        let machine = MachineSpec::load(MachineSpec::DEFAULT).unwrap();
        let setup = Setup { regime, guest, host, machine, measure: Measure::default(), check: true };
        let shape = Shape { cpus: physical, vms: 1, vcpus: cpus };
        let mut bench = assemble(&setup, shape).unwrap().unwrap();
        let mut ledgers: Vec<Ledger> = (0..cpus).map(|_| Ledger::listing()).collect();
        let vcpus: Vec<VcpuId> = (0..cpus).map(VcpuId).collect();
        let booted = Guest::boot_on(guest, VmId::FIRST, &vcpus, bench.platform(), &mut ledgers[0]);
        Self { guest: booted.unwrap(), bench, ledgers, looked_at: Vec::new(), interrupted: Vec::new(), deaf: false }
    }

    pub(crate) fn looking_at(mut self, pages: &[u64]) -> Self {
        self.looked_at = pages.to_vec();
        self
    }

    fn call(
        &mut self,
        cpu: usize,
        act: impl FnOnce(&mut Guest, &mut dyn Platform, &mut Ledger) -> Result<(), Halted>,
    ) -> Vec<Shootdown> {
        let (platform, ledger) = (self.bench.platform(), &mut self.ledgers[cpu]);
        let done = if self.deaf {
            let speaks = self.guest.vcpu_of(cpu);
            act(&mut self.guest, &mut Deaf { below: platform, speaks }, ledger)
        } else {
            act(&mut self.guest, platform, ledger)
        };
        done.unwrap();
        let shootdowns = self.guest.take_shootdowns();
        for target in shootdowns.iter().flat_map(|shootdown| &shootdown.targets) {
            let exits = target.ledger.exits.iter().flatten();
            self.interrupted.extend(exits.map(|exit| (target.vcpu, *exit)));
        }
        self.look();
        shootdowns
    }

    pub(crate) fn batch(&mut self, cpu: usize, batch: &Batch) -> Vec<Shootdown> {
        self.call(cpu, |guest, platform, ledger| guest.batch_on(cpu, batch, platform, ledger))
    }

    pub(crate) fn op(&mut self, cpu: usize, op: Op) -> Vec<Shootdown> {
        self.batch(cpu, &Batch { instructions: 1, then: Some(op), ..Batch::default() })
    }

    pub(crate) fn touch(&mut self, cpu: usize, number: u64, kind: AccessKind) -> Vec<Shootdown> {
        self.batch(cpu, &Batch { run: vec![Acc::user(page(number), kind)], instructions: 1, then: None })
    }

    pub(crate) fn spawn(&mut self, cpu: usize, id: u32) -> Vec<Shootdown> {
        self.call(cpu, |guest, platform, ledger| guest.spawn_on(cpu, ProcessId(id), platform, ledger))
    }

    pub(crate) fn share(&mut self, cpu: usize, id: u32) -> Vec<Shootdown> {
        self.call(cpu, |guest, platform, ledger| guest.share_on(cpu, ProcessId(id), platform, ledger))
    }

    pub(crate) fn idle(&mut self, cpu: usize) -> Vec<Shootdown> {
        self.call(cpu, |guest, platform, ledger| guest.idle_on(cpu, platform, ledger))
    }

    /// All exits so far, by vCPU, those of interrupted ones last.
    pub(crate) fn exits(&self) -> Vec<(VcpuId, Exit)> {
        let own = (0u16..).zip(&self.ledgers);
        let own = own.flat_map(|(cpu, ledger)| ledger.exits.iter().flatten().map(move |exit| (VcpuId(cpu), *exit)));
        own.chain(self.interrupted.iter().copied()).collect()
    }

    /// The processes that live.
    pub(crate) fn living(&mut self) -> Vec<ProcessId> {
        self.guest.tables_by_process(self.bench.platform()).iter().map(|tables| tables.process).collect()
    }

    /// No CPU holds a translation for the process that it runs which that process' tables do not give now: between batches no
    /// flush is outstanding.
    fn look(&mut self) {
        let Self { bench, guest, looked_at, .. } = self;
        let platform = &*bench.platform();
        let roots = guest.tables_by_process(platform);
        for cpu in 0..guest.cpus() {
            let Some(id) = guest.current_on(cpu) else { continue };
            let root = roots.iter().find(|tables| tables.process == id).unwrap().root;
            for number in looked_at.iter() {
                let Some(held) = platform.reached(guest.vcpu_of(cpu), page(*number)) else { continue };
                let now = translate(platform, root.number(), page(*number));
                let Some((gfn, attrs)) = now else {
                    panic!("CPU {cpu} reaches {:?} where {id:?} has no page {number}", held.frame)
                };
                let frame = platform.backing(VmId::FIRST, Gfn::new(gfn));
                assert_eq!(Some(held.frame), frame, "CPU {cpu}, {id:?}, page {number}");
                assert!(
                    !held.writable || attrs.contains(Attrs::WRITE),
                    "CPU {cpu}, {id:?}, page {number} is read-only"
                );
            }
        }
    }

    /// Accesses served by a translation that the tables did not give any more. Panics where the oracle found what no hardware
    /// could do.
    pub(crate) fn stale(&self) -> u64 {
        let (tally, violations) = self.bench.tally().unwrap();
        assert_eq!((tally.broken, tally.unjustified, violations), (0, 0, vec![]), "{tally:?}");
        tally.allowed
    }

    /// Accesses that the oracle judged.
    pub(crate) fn judged(&self) -> u64 {
        self.bench.tally().unwrap().0.fresh
    }
}

/// Where a process' tables lead, and what they permit at the leaf.
fn translate(platform: &dyn Platform, root: u64, gva: Gva) -> Option<(u64, Attrs)> {
    let (mut table, mut level) = (Gfn::new(root), Guest4::ROOT);
    loop {
        match Guest4::decode(platform.peek(VmId::FIRST, table.entry(Guest4::index(gva, level))), level) {
            Entry::Table { next, .. } => (table, level) = (next, level.below()?),
            Entry::Leaf { frame, size, attrs } => return Some((frame.number() + (gva.page_offset(size) >> 12), attrs)),
            Entry::Absent | Entry::Reserved => return None,
        }
    }
}
