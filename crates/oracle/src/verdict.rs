//! What the oracle says.

use core::fmt;

use memvirt_addr::{Acc, Hfn, PfCode};
use memvirt_ops::VcpuId;

/// The judgement of one translation that was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// The tables give it now.
    Fresh,
    /// The tables gave it, level by level, at instants since the last flush that covers it: stale, and permitted.
    Allowed,
    /// No hardware could have used it.
    Broken,
}

/// The judgement of a page fault that the guest saw. Faults follow the current tables: removing a fault's cause needs no
/// flush (Intel SDM volume 3, section 4.10.4.3), and a hypervisor must not inject from a stale shadow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultVerdict {
    /// The current tables raise exactly this fault.
    Justified,
    /// They do not.
    Unjustified {
        /// The fault that they raise; `None` where they permit the access.
        expected: Option<PfCode>,
    },
}

/// Which page faults that the guest saw end the staleness of their page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FaultRule {
    /// All of them, as hardware does. Source: Intel SDM volume 3, section 4.10.4.1.
    #[default]
    Architecture,
    /// Those with P set and RSVD clear, as KVM does (`kvm_inject_emulated_page_fault`, which takes it that no translation can
    /// be cached otherwise). One can: a read-only leaf of an unsynchronized table whose entry the guest has since cleared
    /// serves reads even after a store through it has raised a fault with P clear.
    Kvm,
}

impl FaultRule {
    pub(crate) const fn covers(self, code: PfCode) -> bool {
        match self {
            Self::Architecture => true,
            Self::Kvm => code.has(PfCode::PRESENT) && !code.has(PfCode::RESERVED),
        }
    }
}

/// The judgement of the accessed and dirty bits after a completed access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BitsVerdict {
    /// All are set that the access sets.
    Set,
    /// One is clear, because it was cleared while a translation may have been cached that had it set.
    Excused,
    /// An accessed bit is clear and nothing excuses it.
    AccessedLost,
    /// The dirty bit is clear after a store and nothing excuses it.
    DirtyLost,
}

/// What was seen of a completed access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Seen {
    /// The host frame reached, where that can be told.
    pub frame: Option<Hfn>,
    /// Whether hardware would now let a store through without a walk.
    pub writable: bool,
}

/// What was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wrong {
    /// A completed access whose frame or permission no hardware could have used.
    Translation {
        /// The frame reached, where it is known.
        reached: Option<Hfn>,
        /// The frame that the tables give, where they permit the access.
        expected: Option<Hfn>,
    },
    /// A load returned what stands at no place that the address may mean.
    Value {
        /// What it returned.
        got: u64,
        /// What the current tables lead to, where they permit the load.
        expected: Option<u64>,
    },
    /// A store did not change any place that the address may mean.
    Store,
    /// A completed access left an accessed or dirty bit clear.
    Bits(BitsVerdict),
    /// The guest saw a fault that its tables do not justify.
    Fault {
        /// The error code.
        code: PfCode,
        /// The code that the tables justify; `None` where they permit the access.
        expected: Option<PfCode>,
    },
}

/// One violation, with the access it happened at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Violation {
    /// The vCPU.
    pub vcpu: VcpuId,
    /// The access.
    pub acc: Acc,
    /// What was wrong.
    pub wrong: Wrong,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vcpu, acc, wrong } = self;
        write!(f, "vCPU {}: {acc:?}: ", vcpu.0)?;
        match wrong {
            Wrong::Translation { reached: Some(reached), expected: Some(expected) } if reached == expected => {
                write!(f, "holds host frame {reached} writable, which the tables have not been since the last flush")
            }
            Wrong::Translation { reached: Some(reached), expected: Some(expected) } => {
                write!(
                    f,
                    "reached host frame {reached}, the tables give {expected} and gave no other since the last flush"
                )
            }
            Wrong::Translation { reached, expected: None } => {
                write!(f, "completed")?;
                reached.map_or(Ok(()), |frame| write!(f, " in host frame {frame}"))?;
                write!(f, ", which the tables have not permitted since the last flush")
            }
            Wrong::Translation { reached: None, expected: Some(expected) } => {
                write!(f, "completed elsewhere than in host frame {expected}")
            }
            Wrong::Value { got, expected: Some(expected) } => write!(f, "read {got:#x}, expected {expected:#x}"),
            Wrong::Value { got, expected: None } => write!(f, "read {got:#x}, expected a page fault"),
            Wrong::Store => write!(f, "the store arrived at no place that the address may mean"),
            Wrong::Bits(BitsVerdict::DirtyLost) => write!(f, "the dirty bit stayed clear after a store"),
            Wrong::Bits(_) => write!(f, "an accessed bit stayed clear"),
            Wrong::Fault { code, expected: Some(expected) } => {
                write!(f, "page fault with code {:#x}, the tables justify {:#x}", code.bits(), expected.bits())
            }
            Wrong::Fault { code, expected: None } => {
                write!(f, "page fault with code {:#x}, the tables permit the access", code.bits())
            }
        }
    }
}

/// How many judgements fell out how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Tally {
    /// Completed accesses whose translation the tables give now.
    pub fresh: u64,
    /// Completed accesses through a stale translation that the architecture permits.
    pub allowed: u64,
    /// Completed accesses that no hardware could have performed so: a wrong frame, permission, value, or a lost accessed or
    /// dirty bit.
    pub broken: u64,
    /// Page faults that the guest saw and its tables justify.
    pub faults: u64,
    /// Page faults that the guest saw without cause.
    pub unjustified: u64,
}

impl Tally {
    /// Accesses and faults judged.
    #[must_use]
    pub const fn judged(&self) -> u64 {
        self.fresh + self.allowed + self.broken + self.faults + self.unjustified
    }

    /// Everything that no correct machine shows.
    #[must_use]
    pub const fn violations(&self) -> u64 {
        self.broken + self.unjustified
    }

    pub(crate) fn access(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Fresh => self.fresh += 1,
            Verdict::Allowed => self.allowed += 1,
            Verdict::Broken => self.broken += 1,
        }
    }
}
