//! A named scenario: lines of operations, each compared with the counters that KVM printed for it.

use core::iter::Peekable;
use core::str::Lines;

use memvirt_ops::arch::HostEvent;
use memvirt_platform::Regime;

use crate::machine::Machine;
use crate::op::{Op, PD_A, PT_A, dm, f, rd};

/// How the scenarios of a regime were recorded.
pub trait Recorded {
    /// The regime.
    type Regime: Regime;

    /// Its counters by the names of the recording.
    fn counters(regime: &Self::Regime) -> Vec<(&'static str, u64)>;

    /// Whether the recording tells page faults: a line that begins with `->` after the operation's.
    const FAULTS: bool;

    /// Counters that the recording names and that nobody counts here.
    const UNREAD: &'static [&'static str];

    /// The name of the kernel, where lines that begin with it replace the line above.
    fn kernel(regime: &Self::Regime) -> &'static str;

    /// Panics where the tables are not what they have to be.
    fn check(machine: &Machine<Self::Regime>);
}

/// A scenario on its way through the recorded lines.
///
/// A recorded line is `label : counter=delta ...`; a counter that is not named did not move.
#[derive(Debug)]
pub struct Scenario<R: Recorded> {
    /// The machine.
    pub machine: Machine<R::Regime>,
    lines: Peekable<Lines<'static>>,
}

impl<R: Recorded> Scenario<R> {
    /// Boots and warms a fresh machine as the recorded ones were.
    #[must_use]
    pub fn new(mut machine: Machine<R::Regime>, recorded: &'static str) -> Self {
        for at in (0x200_0000..0x200_2000).step_by(8) {
            machine.set(at, 0x0101_0101_0101_0101);
        }
        machine.boot();
        for warm in [PT_A, PD_A, f(0)] {
            machine.run(rd(dm(warm)));
        }
        Self { machine, lines: recorded.trim().lines().peekable() }
    }

    fn next_line(&mut self) -> (&'static str, &'static str) {
        let split = |line: &'static str| line.split_once(" :").unwrap_or((line, ""));
        let line = self.lines.next();
        assert!(line.is_some(), "a recorded line is missing");
        let (label, mut counters) = split(line.unwrap_or_default());
        // `6.12 : ...` replaces the counters before it on that kernel.
        if let Some(newer) = self.lines.next_if(|line| line.trim_start().starts_with("6.12 :"))
            && R::kernel(self.machine.regime()) == "6.12"
        {
            counters = split(newer).1;
        }
        (label.trim(), counters.trim())
    }

    fn now(&self) -> Vec<(&'static str, u64)> {
        let mut all = R::counters(self.machine.regime());
        all.retain(|(name, _)| *name != "exits");
        all.push(("exits", self.machine.exits()));
        all
    }

    fn compare(&mut self, before: &[(&'static str, u64)]) {
        let (label, recorded) = self.next_line();
        let deltas = self.now().into_iter().zip(before).map(|((name, now), (_, then))| {
            // The recorder subtracted one marker from every line.
            let marker = i64::from(name == "exits");
            (name, now.wrapping_sub(*then).cast_signed() - marker)
        });
        let mut moved: Vec<String> =
            deltas.filter(|(_, delta)| *delta != 0).map(|(name, delta)| format!("{name}={delta}")).collect();
        let read = |counter: &&str| !R::UNREAD.iter().any(|unread| counter.starts_with(unread));
        moved.retain(|counter| read(&counter.as_str()));
        moved.sort_unstable();
        let mut recorded: Vec<&str> = recorded.split_whitespace().filter(read).collect();
        recorded.sort_unstable();
        assert_eq!(moved, recorded, "Linux {}, line `{label}`", R::kernel(self.machine.regime()));
        R::check(&self.machine);
    }

    fn compare_faults(&mut self) {
        let recorded = self.lines.next_if(|line| line.trim_start().starts_with("->")).map(str::trim);
        let faults = &self.machine.faults;
        let seen = faults.last().map(|last| {
            format!("-> guest #PF x{} ec={:x} cr2={:x}", faults.len(), last.code.bits(), last.gva.as_u64())
        });
        assert_eq!(seen.as_deref(), recorded);
    }

    /// Runs operations; compares what they moved with the next recorded line.
    ///
    /// # Panics
    ///
    /// Where they differ.
    pub fn line(&mut self, ops: &[Op]) {
        self.machine.faults.clear();
        let before = self.now();
        ops.iter().for_each(|op| self.machine.run(*op));
        self.compare(&before);
        // The recorder noted no faults for lines of many operations.
        if R::FAULTS && ops.len() == 1 {
            self.compare_faults();
        }
    }

    /// Several lines of one operation each.
    pub fn lines(&mut self, ops: &[Op]) {
        ops.iter().for_each(|op| self.line(&[*op]));
    }

    /// A line of the host's.
    pub fn host_line(&mut self, event: HostEvent) {
        self.machine.faults.clear();
        let before = self.now();
        self.machine.host(event);
        self.compare(&before);
    }

    /// What the guest saw during the last line: page faults, last error code, last address.
    ///
    /// # Panics
    ///
    /// Where it saw something else.
    pub fn saw(&self, faults: usize, code: u32, address: u64) {
        let last = self.machine.faults.last().map(|fault| (fault.code.bits(), fault.gva.as_u64()));
        assert_eq!((self.machine.faults.len(), last), (faults, Some((code, address))));
    }

    /// Writes guest memory.
    pub fn set(&mut self, at: u64, value: u64) {
        self.machine.set(at, value);
    }

    /// No recorded line may be left over.
    ///
    /// # Panics
    ///
    /// Where one is.
    pub fn end(mut self) {
        assert_eq!(self.lines.next(), None);
    }
}
