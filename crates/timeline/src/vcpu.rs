//! One vCPU: what it has to do, what it is doing, and since when.

use std::collections::VecDeque;

use crate::account::Account;
use crate::step::{Lock, Step, Work};

/// What a vCPU is doing. Every state but `Off`, `WaitLock` and `WaitAcks` ends at a time that is known when it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Doing {
    /// Nothing: between two steps, or without a physical CPU.
    Off,
    /// Executes in guest mode, until then.
    Guest(u64),
    /// In the hypervisor, without the lock.
    Host,
    /// Spins for the lock, for this work.
    WaitLock(Lock, u64, Vec<usize>),
    /// Has the lock, whose line is on its way; then holds it for so long and kicks these.
    Handover(u64, Vec<usize>),
    /// Holds the lock; kicks these when it is done.
    Held(Vec<usize>),
    /// Holds the lock until the kicked vCPUs have left guest mode.
    KickWait,
    /// Out of guest mode, because it was kicked.
    Kicked,
    /// Spins in guest mode until its shootdown is acknowledged.
    WaitAcks,
    /// Its program has not begun yet, or it has ended.
    Done,
}

/// An interrupt: who waits for its end, and what is to be done.
#[derive(Debug)]
pub(crate) struct Interrupt {
    pub(crate) from: usize,
    pub(crate) work: VecDeque<Work>,
}

#[derive(Debug)]
pub(crate) struct Vcpu {
    pub(crate) vm: usize,
    pub(crate) cpu: usize,
    pub(crate) doing: Doing,
    /// When it began to do so; of a vCPU without a physical CPU: when it lost it.
    pub(crate) since: u64,
    /// Distinguishes the end of what it is doing from ends that an interruption made void.
    pub(crate) epoch: u64,
    /// The program's next steps.
    pub(crate) steps: VecDeque<Step>,
    /// The interrupt that is being served.
    pub(crate) handler: Option<Interrupt>,
    /// Those that have arrived.
    pub(crate) pending: VecDeque<Interrupt>,
    /// Whether the program waits for its shootdown, and how many have yet to acknowledge it.
    pub(crate) waits: bool,
    pub(crate) acks_left: usize,
    /// Whether it has its physical CPU.
    pub(crate) runs: bool,
    pub(crate) account: Account,
}

impl Vcpu {
    pub(crate) fn new(vm: usize, cpu: usize) -> Self {
        Self {
            vm,
            cpu,
            doing: Doing::Off,
            since: 0,
            epoch: 0,
            steps: VecDeque::new(),
            handler: None,
            pending: VecDeque::new(),
            waits: false,
            acks_left: 0,
            runs: false,
            account: Account::default(),
        }
    }

    /// The next thing to do: of the interrupt that is being served, else of the program.
    pub(crate) fn next(&mut self) -> Option<Step> {
        match &mut self.handler {
            Some(interrupt) => interrupt.work.pop_front().map(Step::Work),
            None => self.steps.pop_front(),
        }
    }

    /// Whether it is in guest mode now.
    pub(crate) const fn in_guest(&self) -> bool {
        self.runs && matches!(self.doing, Doing::Guest(_) | Doing::WaitAcks)
    }

    /// Whether an interrupt or another vCPU may take over now, between two steps: in guest mode, with interrupts open.
    pub(crate) fn is_open(&self) -> bool {
        let hypervisor = matches!(self.steps.front(), Some(Step::Work(work)) if !work.is_guest());
        self.handler.is_none() && (self.waits || !hypervisor)
    }

    /// Enters what it did since `since` into its account.
    pub(crate) fn charge(&mut self, now: u64) {
        let spent = now - self.since;
        let account = &mut self.account;
        match self.doing {
            Doing::Guest(_) => account.guest += spent,
            Doing::Host => account.host += spent,
            Doing::WaitLock(..) | Doing::Handover(..) => account.lock_wait += spent,
            Doing::Held(_) => account.locked += spent,
            Doing::KickWait => account.kick_wait += spent,
            Doing::Kicked => account.kicked += spent,
            Doing::WaitAcks => account.shootdown_wait += spent,
            Doing::Off if !self.runs => account.preempted += spent,
            Doing::Off | Doing::Done => {}
        }
        self.since = now;
    }

    /// Begins to do something.
    pub(crate) fn begin(&mut self, doing: Doing, now: u64) {
        self.charge(now);
        self.doing = doing;
        self.epoch += 1;
    }

    /// Stops in guest mode; what is left of its work there is done later.
    pub(crate) fn suspend(&mut self, now: u64) {
        if let Doing::Guest(until) = self.doing
            && until > now
        {
            let left = Work::Guest(until - now);
            match &mut self.handler {
                Some(interrupt) => interrupt.work.push_front(left),
                None => self.steps.push_front(Step::Work(left)),
            }
        }
        self.begin(Doing::Off, now);
    }
}
