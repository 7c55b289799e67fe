//! A named scenario: lines of operations, each compared with the counters that KVM printed for it.

use memvirt_addr::PageSize;
use memvirt_ops::arch::HostEvent;
use memvirt_platform::{Tags, Vendor};
use memvirt_shadow::kvm::{Kernel, KvmConfig, KvmStats};

use crate::machine::{Machine, Op, PD_A, PT_A, dm, f, rd};

/// A scenario on its way through the recorded lines.
///
/// A recorded line is `label : counter=delta ...`; a counter that is not named did not move. A line that begins with `6.12`
/// replaces the counters before it on that kernel.
pub(crate) struct Scenario {
    pub(crate) machine: Machine,
    kernel: Kernel,
    lines: std::iter::Peekable<std::str::Lines<'static>>,
}

impl Scenario {
    /// A fresh virtual machine, warmed as the recorded ones were.
    pub(crate) fn new(kernel: Kernel, host_pages: PageSize, recorded: &'static str) -> Self {
        let mut machine = Machine::new(KvmConfig::new(kernel, Vendor::Svm), host_pages, 1, Tags::Off);
        for at in (0x200_0000..0x200_2000).step_by(8) {
            machine.set(at, 0x0101_0101_0101_0101);
        }
        machine.boot();
        for warm in [PT_A, PD_A, f(0)] {
            machine.run(rd(dm(warm)));
        }
        Self { machine, kernel, lines: recorded.trim().lines().peekable() }
    }

    fn next_line(&mut self) -> (&'static str, &'static str) {
        let split = |line: &'static str| line.split_once(" :").unwrap_or((line, ""));
        let (label, mut counters) = split(self.lines.next().expect("a recorded line"));
        if let Some(newer) = self.lines.next_if(|line| line.trim_start().starts_with("6.12 :"))
            && self.kernel == Kernel::V6_12
        {
            counters = split(newer).1;
        }
        (label, counters.trim())
    }

    fn compare(&mut self, before: &KvmStats) {
        let (label, recorded) = self.next_line();
        let mut moved = String::new();
        for ((name, now), (_, then)) in self.machine.stats().values().zip(before.values()) {
            let delta = i64::try_from(now).unwrap() - i64::try_from(then).unwrap();
            // The recorder subtracted one marker from every line.
            let printed = if name == "exits" { delta - 1 } else { delta };
            if printed != 0 {
                moved += &format!(" {name}={printed}");
            }
        }
        assert_eq!(sorted(&moved), sorted(recorded), "Linux {}, line `{label}`", self.kernel.name());
        self.machine.check();
    }

    /// Runs operations; compares what they moved with the next recorded line.
    pub(crate) fn line(&mut self, ops: &[Op]) {
        self.machine.faults.clear();
        let before = self.machine.stats();
        ops.iter().for_each(|op| self.machine.run(*op));
        self.compare(&before);
    }

    /// Several lines of one operation each.
    pub(crate) fn lines(&mut self, ops: &[Op]) {
        ops.iter().for_each(|op| self.line(&[*op]));
    }

    /// A line of the host's.
    pub(crate) fn host_line(&mut self, event: HostEvent) {
        let before = self.machine.stats();
        self.machine.host(event);
        self.compare(&before);
    }

    /// What the guest saw during the last line: page faults, last error code, last address.
    pub(crate) fn saw(&self, faults: usize, code: u32, address: u64) {
        let last = self.machine.faults.last().map(|fault| (fault.code.bits(), fault.gva.as_u64()));
        assert_eq!((self.machine.faults.len(), last), (faults, Some((code, address))));
    }

    pub(crate) fn set(&mut self, at: u64, value: u64) {
        self.machine.set(at, value);
    }

    /// No recorded line may be left over.
    pub(crate) fn end(mut self) {
        assert_eq!(self.lines.next(), None);
    }
}

fn sorted(counters: &str) -> Vec<&str> {
    // What the recorder did not read.
    const UNREAD: [&str; 4] = ["mmu_recycled", "max_mmu_page_hash_collisions", "remote_tlb_flush=", "pf_fast"];
    let mut list: Vec<_> =
        counters.split_whitespace().filter(|c| !UNREAD.iter().any(|unread| c.starts_with(unread))).collect();
    list.sort_unstable();
    list
}

/// Runs a scenario on both kernels.
pub(crate) fn on_both_kernels(host_pages: PageSize, recorded: &'static str, script: impl Fn(&mut Scenario)) {
    for kernel in [Kernel::V6_1, Kernel::V6_12] {
        let mut scenario = Scenario::new(kernel, host_pages, recorded);
        script(&mut scenario);
        scenario.end();
    }
}

/// The same over 4 KiB host pages.
pub(crate) fn scenario(recorded: &'static str, script: impl Fn(&mut Scenario)) {
    on_both_kernels(PageSize::Size4K, recorded, script);
}
