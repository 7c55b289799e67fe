//! A named scenario: lines of operations, each compared with the counters that KVM printed for it.

use memvirt_addr::PageSize;
use memvirt_nested::NestedStats;
use memvirt_ops::arch::HostEvent;

use crate::machine::{Machine, Op, PD_A, PT_A, dm, f, rd};

/// A scenario on its way through the recorded lines.
///
/// A recorded line is `label : counter=delta ...`; a counter that is not named did not move. A line that begins with `->` says
/// which page faults the guest saw during the operation above; without one it saw none.
pub(crate) struct Scenario {
    pub(crate) machine: Machine,
    lines: std::iter::Peekable<std::str::Lines<'static>>,
}

impl Scenario {
    /// A fresh virtual machine, warmed as the recorded ones were.
    fn new(host_pages: PageSize, recorded: &'static str) -> Self {
        let mut machine = Machine::new(host_pages);
        for at in (0x200_0000..0x200_2000).step_by(8) {
            machine.set(at, 0x0101_0101_0101_0101);
        }
        machine.boot();
        for warm in [PT_A, PD_A, f(0)] {
            machine.run(rd(dm(warm)));
        }
        Self { machine, lines: recorded.trim().lines().peekable() }
    }

    fn compare(&mut self, exits: u64, before: &NestedStats) {
        let line = self.lines.next().expect("a recorded line");
        let (label, recorded) = line.split_once(" :").unwrap_or((line, ""));
        let deltas = self.machine.stats().values().zip(before.values());
        let deltas = deltas.map(|((name, now), (_, then))| (name, signed(now) - signed(then)));
        // The recorder subtracted one marker from every line.
        let exits = ("exits", signed(self.machine.exits() - exits) - 1);
        let mut moved: Vec<String> = deltas
            .chain([exits])
            .filter(|(_, delta)| *delta != 0)
            .map(|(name, delta)| format!("{name}={delta}"))
            .collect();
        moved.sort_unstable();
        let mut recorded: Vec<&str> = recorded.split_whitespace().collect();
        recorded.sort_unstable();
        assert_eq!(moved, recorded, "line `{}`", label.trim());
        self.machine.check();
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
    pub(crate) fn line(&mut self, ops: &[Op]) {
        self.machine.faults.clear();
        let (exits, before) = (self.machine.exits(), self.machine.stats());
        ops.iter().for_each(|op| self.machine.run(*op));
        self.compare(exits, &before);
        // The recorder noted no faults for lines of many operations.
        if ops.len() == 1 {
            self.compare_faults();
        }
    }

    /// Several lines of one operation each.
    pub(crate) fn lines(&mut self, ops: &[Op]) {
        ops.iter().for_each(|op| self.line(&[*op]));
    }

    /// A line of the host's.
    pub(crate) fn host_line(&mut self, event: HostEvent) {
        self.machine.faults.clear();
        let (exits, before) = (self.machine.exits(), self.machine.stats());
        self.machine.host(event);
        self.compare(exits, &before);
    }

    pub(crate) fn set(&mut self, at: u64, value: u64) {
        self.machine.set(at, value);
    }
}

fn signed(counter: u64) -> i64 {
    i64::try_from(counter).unwrap()
}

/// Runs a scenario; no recorded line may be left over.
pub(crate) fn scenario_over(host_pages: PageSize, recorded: &'static str, script: impl Fn(&mut Scenario)) {
    let mut scenario = Scenario::new(host_pages, recorded);
    script(&mut scenario);
    assert_eq!(scenario.lines.next(), None);
}

/// The same over 4 KiB host pages.
pub(crate) fn scenario(recorded: &'static str, script: impl Fn(&mut Scenario)) {
    scenario_over(PageSize::Size4K, recorded, script);
}
