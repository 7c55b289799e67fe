//! What comes out: where the time of every vCPU went, and how every lock was used.

/// Where the cycles of one vCPU went, from its beginning to the end of its program. The parts add up to [`Account::span`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// In guest mode, its own steps and those that others sent.
    pub guest: u64,
    /// In the hypervisor, without the lock.
    pub host: u64,
    /// Under the lock, waits for kicked vCPUs not included.
    pub locked: u64,
    /// Waiting for the lock, and for its line to arrive.
    pub lock_wait: u64,
    /// Holding the lock and waiting for kicked vCPUs to leave guest mode.
    pub kick_wait: u64,
    /// Waiting for others to acknowledge a shootdown.
    pub shootdown_wait: u64,
    /// Out of the guest because somebody kicked it.
    pub kicked: u64,
    /// While another vCPU had its physical CPU, or was being switched to.
    pub preempted: u64,
    /// When its physical CPU began with its vCPUs.
    pub begin: u64,
    /// When its program ended.
    pub end: u64,
    /// How often it was kicked.
    pub kicks: u64,
    /// Shootdowns sent and waited for.
    pub shootdowns: u64,
    /// Shootdowns of others that it served.
    pub served: u64,
    /// How often it began to run after another vCPU on its physical CPU.
    pub world_switches: u64,
}

impl Account {
    /// From its beginning to its end.
    #[must_use]
    pub const fn span(&self) -> u64 {
        self.end - self.begin
    }

    /// All parts together: equal to [`Account::span`].
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.guest
            + self.host
            + self.locked
            + self.lock_wait
            + self.kick_wait
            + self.shootdown_wait
            + self.kicked
            + self.preempted
    }

    /// All kinds of waiting together: for the lock, for kicked vCPUs, for shootdowns.
    #[must_use]
    pub const fn waiting(&self) -> u64 {
        self.lock_wait + self.kick_wait + self.shootdown_wait
    }
}

/// How the lock of one virtual machine was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LockAccount {
    /// How often it was taken.
    pub acquisitions: u64,
    /// How often the taker had to wait.
    pub contended: u64,
    /// Cycles for which it was held exclusively.
    pub exclusive: u64,
    /// Cycles for which it was held shared, by whatever number.
    pub shared: u64,
    /// Cycles waited for it, by all vCPUs together.
    pub waited: u64,
    /// The most vCPUs that waited at a time.
    pub longest_queue: usize,
}

impl LockAccount {
    /// The share of the time up to `end` for which anybody held it.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people and models")]
    pub fn utilization(&self, end: u64) -> f64 {
        if end == 0 { 0.0 } else { (self.exclusive + self.shared) as f64 / end as f64 }
    }
}

/// One virtual machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmAccount {
    /// Its lock.
    pub lock: LockAccount,
}

/// The result of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    /// When the last vCPU ended.
    pub end: u64,
    /// The vCPUs.
    pub vcpus: Vec<Account>,
    /// The virtual machines.
    pub vms: Vec<VmAccount>,
}
