//! What goes in: the steps of a vCPU, and the machine on which they are executed.

/// How the MMU lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lock {
    /// By one.
    Exclusive,
    /// By any number who hold it shared.
    Shared,
}

/// Work of one vCPU that asks nothing of others, the lock excepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// Executes for so many cycles in guest mode. It can be interrupted and preempted.
    Guest(u64),
    /// The hypervisor works for it, without the lock.
    Host(u64),
    /// The hypervisor works for it under the lock of its virtual machine.
    Locked {
        /// How the lock is held.
        mode: Lock,
        /// For how long, waits for kicked vCPUs not included.
        cycles: u64,
        /// vCPUs of the same machine that must have left guest mode before the lock is given back.
        kick: Vec<usize>,
    },
}

impl Work {
    /// Work under the lock that kicks nobody.
    #[must_use]
    pub const fn locked(mode: Lock, cycles: u64) -> Self {
        Self::Locked { mode, cycles, kick: Vec::new() }
    }

    /// Whether it begins in guest mode.
    pub(crate) const fn is_guest(&self) -> bool {
        matches!(self, Self::Guest(_))
    }
}

/// One thing that a vCPU does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Works.
    Work(Work),
    /// Interrupts other vCPUs, each of which does the work it is sent, and waits for all of them. vCPUs that do not exist or
    /// whose programs have ended acknowledge at once; nobody interrupts itself.
    Shootdown(Vec<(usize, Vec<Work>)>),
    /// The first half of a shootdown: interrupts the others and goes on, as a kernel does that flushes its own TLB meanwhile.
    Interrupt(Vec<(usize, Vec<Work>)>),
    /// The second half: waits for all that were interrupted.
    Await,
}

impl From<Work> for Step {
    fn from(work: Work) -> Self {
        Self::Work(work)
    }
}

/// Where the steps of all vCPUs come from.
pub trait Program {
    /// Appends what `vcpu` does next; `now` is the time at which it begins. Returns false when there is nothing more, now or
    /// later; what was appended with that answer is not executed.
    ///
    /// A program that goes on but appends nothing is asked again at once; to do so for ever is a program that never ends.
    fn next(&mut self, vcpu: usize, now: u64, steps: &mut Vec<Step>) -> bool;

    /// Called when `vcpu` begins to run on its physical CPU after another vCPU ran there.
    fn world_switch(&mut self, vcpu: usize, now: u64) {
        let _ = (vcpu, now);
    }
}

/// Fixed times, in cycles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latencies {
    /// From sending an interrupt to its arrival at a running vCPU.
    pub interrupt: u64,
    /// What a kick costs the kicked vCPU: exit and entry.
    pub kicked: u64,
    /// From one vCPU to another on the same physical CPU.
    pub world_switch: u64,
    /// From giving the lock back until the next in its queue has it. Who finds it free does not wait for it.
    pub handover: u64,
}

/// How long a vCPU runs before another gets its physical CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice(
    /// Cycles.
    pub u64,
);

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// For each vCPU the virtual machine that it belongs to.
    pub vm_of: Vec<usize>,
    /// For each vCPU the physical CPU that it runs on.
    pub cpu_of: Vec<usize>,
    /// For each physical CPU the time at which it begins with its vCPUs; 0 where nothing is said. Until then they are idle: they
    /// acknowledge interrupts at once, and no time is charged to them.
    pub begin: Vec<u64>,
    /// The fixed times.
    pub latencies: Latencies,
    /// The time slice, where several vCPUs share a physical CPU.
    pub slice: Slice,
}

impl Setup {
    /// One virtual machine of `vcpus`, each on a physical CPU of its own; all latencies are 0.
    #[must_use]
    pub fn alone(vcpus: usize) -> Self {
        Self {
            vm_of: vec![0; vcpus],
            cpu_of: (0..vcpus).collect(),
            begin: Vec::new(),
            latencies: Latencies::default(),
            slice: Slice(u64::MAX),
        }
    }

    /// The number of vCPUs.
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.vm_of.len().min(self.cpu_of.len())
    }
}
