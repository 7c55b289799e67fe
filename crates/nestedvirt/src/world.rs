//! Who runs, and what it costs to change that: the events that are counted, one by one.
//!
//! One CPU runs one of three owners at a time. A *world switch* is one change of who runs; an *L0 exit* is one entry into L0,
//! from whomever. The hardware knows no way from L2 to L1 or back: under EPT both directions lead through L0 (Intel SDM
//! volume 3, section 25; Ben-Yehuda et al., *The Turtles Project*, OSDI 2010). PVM's switcher is code in L1's memory that both
//! sides map, so it is no fourth owner.

use core::fmt;

use memvirt_platform::Counters;

/// Who runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Who {
    /// The hypervisor of the machine.
    L0,
    /// The hypervisor in L0's virtual machine.
    L1,
    /// L1's guest: its processes and its kernel.
    L2,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::L0 => "L0",
            Self::L1 => "L1",
            Self::L2 => "L2",
        })
    }
}

macro_rules! causes {
    ($($(#[$doc:meta])* $name:ident = $key:literal,)*) => {
        /// Why somebody stopped running.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Cause {
            $($(#[$doc])* $name,)*
        }

        impl Cause {
            /// Every cause, in the order of tables and files.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The stable key in results.
            #[must_use]
            pub const fn key(self) -> &'static str {
                match self {
                    $(Self::$name => $key,)*
                }
            }
        }
    };
}

causes! {
    /// A page fault of L2 that L1 has asked to see.
    PageFault = "page_fault",
    /// The nested tables that hardware walks have no entry that permits the access.
    EptViolation = "ept_violation",
    /// L1 stored to an EPT12 table, which L0 has write-protected.
    ProtectedStore = "protected_store",
    /// L1 resumes L2 (VMRESUME): the instruction exits.
    VmEntry = "vm_entry",
    /// L1 invalidates translations (INVEPT, INVVPID): the instruction exits.
    Invalidate = "invalidate",
    /// A privileged operation of L2 that L1 has asked to see.
    Privileged = "privileged",
    /// An access of L2 to an address that is not memory.
    Device = "device",
    /// Somebody outside wants something done: an interrupt.
    Interrupt = "interrupt",
}

impl Cause {
    /// How many causes there are.
    pub const COUNT: usize = Self::ALL.len();
}

/// The sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    switches: [[u64; 3]; 3],
    exits: [u64; Cause::COUNT],
}

impl Counts {
    /// How often the CPU went from running `from` to running `to`.
    #[must_use]
    pub const fn switches(&self, from: Who, to: Who) -> u64 {
        self.switches[from as usize][to as usize]
    }

    /// All world switches.
    #[must_use]
    pub fn world_switches(&self) -> u64 {
        self.switches.iter().flatten().sum()
    }

    /// How often L0 was entered for `cause`.
    #[must_use]
    pub const fn l0_exits_for(&self, cause: Cause) -> u64 {
        self.exits[cause as usize]
    }

    /// How often L0 was entered.
    #[must_use]
    pub fn l0_exits(&self) -> u64 {
        self.exits.iter().sum()
    }

    /// What was counted since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut counts = *self;
        for (row, old) in counts.switches.iter_mut().zip(&before.switches) {
            row.iter_mut().zip(old).for_each(|(n, old)| *n -= old);
        }
        counts.exits.iter_mut().zip(&before.exits).for_each(|(n, old)| *n -= old);
        counts
    }
}

/// What a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepKind {
    /// A world switch.
    Switch {
        /// Who runs from then on.
        to: Who,
        /// Why.
        cause: Cause,
    },
    /// Something that whoever runs does.
    Act,
}

/// One thing that happened, for those who want to read along.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Who ran.
    pub who: Who,
    /// What it is.
    pub kind: StepKind,
    /// What happened, in words.
    pub what: String,
}

/// The CPU: who runs on it, what was counted, and on request every step.
#[derive(Debug)]
pub struct World {
    running: Who,
    /// The sums.
    pub counts: Counts,
    /// World switches and L0 exits that no ledger knows of yet.
    unpublished: (u64, u64),
    steps: Option<Vec<Step>>,
}

impl Default for World {
    /// L2 runs, nothing was counted, steps are not kept.
    fn default() -> Self {
        Self { running: Who::L2, counts: Counts::default(), unpublished: (0, 0), steps: None }
    }
}

impl World {
    /// Who runs.
    #[must_use]
    pub const fn running(&self) -> Who {
        self.running
    }

    /// Starts to keep steps, or forgets those kept so far.
    pub fn record(&mut self) {
        self.steps = Some(Vec::new());
    }

    /// The steps since [`World::record`].
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        self.steps.as_deref().unwrap_or_default()
    }

    /// Something that whoever runs does of its own will, for those who read along: it changes nothing.
    pub fn note(&mut self, what: &str) {
        self.act(|| what.to_owned());
    }

    /// The CPU goes over to `to`. Nothing where it runs already: whoever calls a part that may be reached from several sides
    /// need not know from which.
    pub(crate) fn switch(&mut self, to: Who, cause: Cause, what: &str) {
        let from = self.running;
        if from == to {
            return;
        }
        self.counts.switches[from as usize][to as usize] += 1;
        self.unpublished.0 += 1;
        if to == Who::L0 {
            self.unpublished.1 += 1;
            self.counts.exits[cause as usize] += 1;
        }
        self.running = to;
        if let Some(steps) = &mut self.steps {
            steps.push(Step { who: from, kind: StepKind::Switch { to, cause }, what: what.to_owned() });
        }
    }

    /// Enters in a ledger's sums what came since the last time.
    #[inline]
    pub(crate) fn publish(&mut self, counters: &mut Counters) {
        let (switches, exits) = core::mem::take(&mut self.unpublished);
        counters.world_switches += switches;
        counters.l0_exits += exits;
    }

    /// Whoever runs does something. The words are made only where somebody reads along.
    pub(crate) fn act(&mut self, what: impl FnOnce() -> String) {
        let who = self.running;
        if let Some(steps) = &mut self.steps {
            steps.push(Step { who, kind: StepKind::Act, what: what() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_of_who_runs_counts_once_and_only_entries_of_l0_are_exits() {
        let mut world = World::default();
        world.record();
        world.switch(Who::L0, Cause::PageFault, "");
        world.switch(Who::L0, Cause::PageFault, "already there");
        world.switch(Who::L1, Cause::PageFault, "");
        world.switch(Who::L2, Cause::VmEntry, "");
        assert_eq!((world.counts.world_switches(), world.counts.l0_exits()), (3, 1));
        assert_eq!(world.counts.switches(Who::L1, Who::L2), 1);
        assert_eq!(world.counts.l0_exits_for(Cause::PageFault), 1);
        assert_eq!(world.steps().len(), 3);
        let before = world.counts;
        world.switch(Who::L1, Cause::PageFault, "");
        let since = world.counts.since(&before);
        assert_eq!((since.world_switches(), since.l0_exits(), since.switches(Who::L2, Who::L1)), (1, 0, 1));
    }
}
