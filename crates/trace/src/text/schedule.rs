//! Who ran when on which CPU, by `sched:sched_switch`: kept beside the stream of events, for replays that follow it.
//!
//! Programs outside of the recording appear by number only. Whether such a task is a thread of the kernel, which has no address
//! space, follows from what only the kernel's own threads show: an idle wait (`TASK_IDLE`, state `I`), the priority 0 of the
//! class that stops CPUs, one of the highest nice levels with a number that was given out before any program ran (numbers below
//! `RESERVED_PIDS` are given once), or its name, where names were not replaced. Sources: Linux `include/linux/sched.h`,
//! `kernel/sched/stop_task.c`, `kernel/workqueue.c` (`HIGHPRI_NICE_LEVEL`), `kernel/pid.c`.

use std::collections::BTreeSet;

use memvirt_ops::process::ProcessId;

/// Switches that are kept at most; a longer recording is not replayed by its schedule.
const MAX_SWITCHES: usize = 1 << 20;
/// Numbers below are given out once (`RESERVED_PIDS`).
const RESERVED_PIDS: u32 = 300;
/// The priority of nice level -20 in the scheduler's events.
const HIGHEST_NICE: u64 = 100;
/// How names of the kernel's own threads begin.
const KERNEL_NAMES: [&[u8]; 13] = [
    b"swapper/",
    b"kworker/",
    b"ksoftirqd/",
    b"migration/",
    b"rcu_",
    b"kswapd",
    b"kcompactd",
    b"khugepaged",
    b"kthreadd",
    b"cpuhp/",
    b"jbd2/",
    b"irq/",
    b"idle_inject/",
];

/// One side of a switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// A process of the recording.
    Own(ProcessId),
    /// A task outside of it, by its number.
    Other(u32),
}

/// A switch between two tasks, of which one at least is the recording's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Switched {
    /// The CPU, as recorded.
    pub(crate) cpu: u32,
    pub(crate) from: Side,
    pub(crate) to: Side,
    /// How many accesses and operations of the stream came before it.
    pub(crate) position: u64,
}

/// All switches of a recording.
#[derive(Clone, Debug, Default)]
pub(crate) struct Schedule {
    switches: Vec<Switched>,
    kernel: BTreeSet<u32>,
    is_cut: bool,
    loads: Vec<bool>,
    first_cpu: Option<u32>,
}

impl Schedule {
    pub(crate) fn push(&mut self, switched: Switched) {
        if self.switches.len() < MAX_SWITCHES {
            self.switches.push(switched);
        } else {
            self.is_cut = true;
        }
    }

    /// Notes where something happened; the first tells where the recording's first process ran.
    pub(crate) fn at(&mut self, cpu: Option<u32>) {
        self.first_cpu = self.first_cpu.or(cpu);
    }

    /// The CPU on which the first process began.
    pub(crate) const fn first_cpu(&self) -> Option<u32> {
        self.first_cpu
    }

    /// Notes a load of an address space, traced as a flush: whether it kept the translations.
    pub(crate) fn load(&mut self, kept: bool) {
        if self.loads.len() < MAX_SWITCHES {
            self.loads.push(kept);
        }
    }

    /// The loads of address spaces, in order: whether each kept the translations.
    pub(crate) fn loads(&self) -> &[bool] {
        &self.loads
    }

    /// Looks at a task outside of the recording: whether it is one of the kernel's threads.
    pub(crate) fn look(&mut self, pid: u32, comm: &[u8], priority: Option<u64>, idles: bool) {
        let early = pid < RESERVED_PIDS && priority == Some(HIGHEST_NICE);
        let named = KERNEL_NAMES.iter().any(|name| comm.starts_with(name));
        if (pid == 0 || idles || priority == Some(0) || early || named) && self.kernel.len() < MAX_SWITCHES {
            self.kernel.insert(pid);
        }
    }

    /// The switches, in order; none where there were too many of them.
    pub(crate) fn switches(&self) -> &[Switched] {
        if self.is_cut { &[] } else { &self.switches }
    }

    /// Whether a task outside of the recording is the kernel's own thread.
    pub(crate) fn is_kernel(&self, pid: u32) -> bool {
        self.kernel.contains(&pid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_of_the_kernel_are_told_by_what_only_they_show() {
        let mut schedule = Schedule::default();
        schedule.look(15, b"other", Some(120), true);
        schedule.look(21, b"other", Some(0), false);
        schedule.look(58, b"other", Some(100), false);
        schedule.look(700, b"kworker/u8:3", Some(120), false);
        schedule.look(0, b"swapper/1", Some(120), false);
        for (pid, comm, priority) in [(2266, &b"other"[..], 120), (2267, b"audio", 100), (44, b"other", 120)] {
            schedule.look(pid, comm, Some(priority), false);
        }
        let kernel: Vec<u32> = (0..3000).filter(|pid| schedule.is_kernel(*pid)).collect();
        assert_eq!(kernel, [0, 15, 21, 58, 700]);
    }
}
