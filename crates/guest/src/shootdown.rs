//! What a CPU makes others do: drop translations, end threads.
//!
//! A flush of an address space reaches every CPU that has it loaded (`mm_cpumask`): the sender interrupts them, flushes its own
//! TLB meanwhile, and waits until the last of them has flushed. A CPU that idles on a borrowed address space (lazy TLB) is left
//! alone, unless tables were freed: then it goes over to the kernel's own. A CPU that only holds translations under a PCID that
//! is not loaded finds out by the space's generation when it loads it again.
//!
//! Source: Linux 6.6 `arch/x86/mm/tlb.c` (`flush_tlb_mm_range`, `native_flush_tlb_multi`, `tlb_is_not_lazy`, `flush_tlb_func`),
//! `kernel/smp.c` (`smp_call_function_many_cond`: interrupts are sent, the function runs here, then all are waited for),
//! `kernel/signal.c` (`zap_other_threads`, `signal_wake_up`), `kernel/exit.c` (`do_group_exit`, `exit_mm`).

use memvirt_addr::{Acc, AccessKind, Gfn, Gva};
use memvirt_ops::VcpuId;
use memvirt_ops::arch::{Control, VcpuSet};
use memvirt_ops::process::ProcessId;
use memvirt_platform::{Counters, Ledger};

use super::cpu::Cpu;
use super::layout::Site;
use super::memory::Hands;
use super::{Guest, GuestStats, Halted};

/// A point in a CPU's work: how much had been counted there.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mark {
    /// The counters of the ledger that the CPU's batch runs with.
    pub counters: Counters,
    /// How many exits that ledger listed; 0 where it lists none.
    pub exits: usize,
    /// What the guest had counted on this CPU ([`Guest::stats_on`]).
    pub stats: GuestStats,
}

/// Why a CPU interrupts others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Translations of an address space must go: the sender waits until all have dropped them.
    Flush,
    /// The process ends, or executes a program: its threads on other CPUs end first.
    EndThreads,
}

/// One interrupt to other CPUs. All that it stands for has happened when the batch returns; whoever keeps time lets the targets
/// do it when they get to it, and the sender wait for the last.
#[derive(Clone, Debug)]
pub struct Shootdown {
    /// Why.
    pub cause: Cause,
    /// The CPU that sent it.
    pub sender: usize,
    /// The sender's work when the interrupt had been sent (the exit for it is before).
    pub sent: Mark,
    /// The sender's work when it began to wait: it flushes its own TLB between the two.
    pub waits: Mark,
    /// Each CPU that was interrupted, by number, with what it did.
    pub targets: Vec<Target>,
}

/// What an interrupted CPU did.
#[derive(Clone, Debug)]
pub struct Target {
    /// The CPU.
    pub cpu: usize,
    /// Its vCPU.
    pub vcpu: VcpuId,
    /// What the platform counted there, from 0: counters, exits (where the sender's ledger lists them), what served references.
    pub ledger: Ledger,
    /// What the guest did there, from 0: a kernel entry, INVLPGs, CR3 loads.
    pub stats: GuestStats,
}

/// Whether a flush follows the freeing of tables: paging-structure caches may lead to those.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FreedTables {
    Yes,
    No,
}

/// What a flush drops.
#[derive(Debug)]
pub(crate) enum Flush {
    Pages(Vec<Gva>),
    All,
}

impl Guest {
    /// What the last call made other CPUs do, in order; emptied by asking. Every call that runs something begins a new list.
    #[must_use]
    pub fn take_shootdowns(&mut self) -> Vec<Shootdown> {
        core::mem::take(&mut self.shootdowns)
    }

    /// Flushes the current address space here and on the other CPUs that have it loaded.
    pub(crate) fn flush(&mut self, hands: &mut Hands<'_>, what: &Flush, freed: FreedTables) -> Result<(), Halted> {
        let Some(process) = self.current().and_then(|id| self.processes.get_mut(&id)) else { return Ok(()) };
        process.generation += 1;
        let root = process.roots.root;
        hands.stats.flushes_sent += u64::from(process.ran_beside(self.on));
        if freed == FreedTables::Yes {
            let loaded: Vec<usize> =
                (0..).zip(&self.cpus).filter(|(_, cpu)| cpu.loaded == root).map(|(i, _)| i).collect();
            process.ran_on.retain(|cpu| loaded.contains(cpu));
        }
        let targets = self.holders(root, freed);
        hands.stats.flushes += 1;
        if targets.is_empty() {
            return self.flush_here(hands, what);
        }
        let sent = self.notify(hands, &targets)?;
        self.flush_here(hands, what)?;
        self.wait_for(hands, (Cause::Flush, sent), &targets, |guest, hands| guest.flush_there(hands, what))
    }

    /// Flushes an address space whose tables are gone on the other CPUs that idle on it still. `here` is what this CPU does
    /// meanwhile.
    pub(crate) fn flush_borrowers(
        &mut self,
        hands: &mut Hands<'_>,
        gone: Gfn,
        here: impl FnOnce(&mut Self, &mut Hands<'_>) -> Result<(), Halted>,
    ) -> Result<(), Halted> {
        let targets = self.holders(gone, FreedTables::Yes);
        if targets.is_empty() {
            return here(self, hands);
        }
        let sent = self.notify(hands, &targets)?;
        here(self, hands)?;
        self.wait_for(hands, (Cause::Flush, sent), &targets, |guest, hands| guest.flush_there(hands, &Flush::All))
    }

    /// Ends the threads of a process on other CPUs: these idle then, on the address space that they have.
    pub(crate) fn end_threads(&mut self, hands: &mut Hands<'_>, id: ProcessId) -> Result<(), Halted> {
        let targets = self.others(|cpu| cpu.current == Some(id));
        if targets.is_empty() {
            return Ok(());
        }
        let sent = self.notify(hands, &targets)?;
        self.wait_for(hands, (Cause::EndThreads, sent), &targets, |guest, _| {
            let me = guest.me_mut();
            (me.current, me.parent_on_cpu) = (None, false);
            Ok(())
        })
    }

    /// The current address space on this CPU.
    fn flush_here(&mut self, hands: &mut Hands<'_>, what: &Flush) -> Result<(), Halted> {
        let Some(process) = self.current().and_then(|id| self.processes.get(&id)) else { return Ok(()) };
        let (root, space, generation) = (process.roots.root, process.space, process.generation);
        match what {
            Flush::Pages(pages) => {
                self.me_mut().pcids.caught_up(generation);
                pages.iter().try_for_each(|at| self.flush_page(hands, *at))
            }
            Flush::All => self.flush_by_loading(hands, root, Some((space, generation))),
        }
    }

    /// What an interrupted CPU does: one that only borrows the address space gives it up.
    fn flush_there(&mut self, hands: &mut Hands<'_>, what: &Flush) -> Result<(), Halted> {
        match self.current() {
            Some(_) => self.flush_here(hands, what),
            None => self.load_kernel_space(hands),
        }
    }

    /// The other CPUs that a flush of the space under `root` must reach.
    fn holders(&self, root: Gfn, freed: FreedTables) -> Vec<usize> {
        self.others(|cpu| cpu.loaded == root && (cpu.current.is_some() || freed == FreedTables::Yes))
    }

    fn others(&self, which: impl Fn(&Cpu) -> bool) -> Vec<usize> {
        (0..self.cpus.len()).filter(|i| *i != self.on && which(&self.cpus[*i])).collect()
    }

    /// Sends the interrupt; how far the sender has come then.
    fn notify(&self, hands: &mut Hands<'_>, targets: &[usize]) -> Result<Mark, Halted> {
        let vcpus = targets.iter().fold(VcpuSet::EMPTY, |set, cpu| set.with(self.cpus[*cpu].vcpu));
        hands.stats.shootdowns += 1;
        hands.control(Control::Ipi(vcpus))?;
        Ok(hands.mark())
    }

    /// Lets the interrupted CPUs do what they were interrupted for, one after the other.
    fn wait_for(
        &mut self,
        hands: &mut Hands<'_>,
        (cause, sent): (Cause, Mark),
        targets: &[usize],
        act: impl Fn(&mut Self, &mut Hands<'_>) -> Result<(), Halted>,
    ) -> Result<(), Halted> {
        let (sender, waits) = (self.on, hands.mark());
        let mut done = Vec::with_capacity(targets.len());
        for cpu in targets {
            let (vcpu, lists) = (self.cpus[*cpu].vcpu, hands.ledger.exits.is_some());
            let (mut ledger, mut stats) = (Ledger::sums(), GuestStats::default());
            ledger.exits = lists.then(Vec::new);
            let platform = &mut *hands.platform;
            let mut theirs = Hands { platform, ledger: &mut ledger, stats: &mut stats, vm: self.vm, vcpu };
            self.on = *cpu;
            let result = self.interrupted(&mut theirs, &act);
            self.on = sender;
            self.cpus[*cpu].stats += stats;
            done.push(Target { cpu: *cpu, vcpu, ledger, stats });
            result?;
        }
        self.shootdowns.push(Shootdown { cause, sender, sent, waits, targets: done });
        Ok(())
    }

    /// An interrupt by another CPU arrives on this one.
    fn interrupted(
        &mut self,
        hands: &mut Hands<'_>,
        act: impl Fn(&mut Self, &mut Hands<'_>) -> Result<(), Halted>,
    ) -> Result<(), Halted> {
        hands.stats.interrupted += 1;
        hands.stats.kernel_entries += 1;
        hands.control(Control::Interrupt)?;
        match self.current() {
            Some(_) => self.enter(hands, Site::Interrupt)?,
            None => hands.run(&[Acc::supervisor(Site::Interrupt.ip(), AccessKind::Fetch)])?,
        }
        act(self, hands)?;
        self.leave(hands)
    }
}
