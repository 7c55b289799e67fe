//! The switches of nested virtualization, each with its default.

/// Who keeps which tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Arrangement {
    /// L1 shadows L2's tables (SPT12); hardware walks SPT12 under EPT01. Every exit of L2 goes through L0.
    ShadowOnEpt,
    /// L1 keeps nested tables (EPT12), which L0 merges with EPT01 into EPT02; hardware walks L2's tables under EPT02.
    EptOnEpt,
    /// PVM: L1 shadows L2's tables and runs L2 without privilege; a switcher changes between L2 and L1 without L0.
    Pvm,
}

impl Arrangement {
    /// Every arrangement.
    pub const ALL: [Self; 3] = [Self::ShadowOnEpt, Self::EptOnEpt, Self::Pvm];

    /// The name on the command line and in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ShadowOnEpt => "shadow-on-ept",
            Self::EptOnEpt => "ept-on-ept",
            Self::Pvm => "pvm",
        }
    }
}

/// When a hypervisor that follows somebody's tables starts to follow a table that was just linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Linking {
    /// With the store that links it, and all that is reachable from it: every table below a root that is followed is
    /// write-protected. What the published counts take for granted.
    Eager,
    /// When a fault first fills a translation through it, as KVM does: stores to tables that are not yet in use do not trap.
    Lazy,
}

/// What a trapped store does to the entry that followed the old value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnStore {
    /// The entry goes; the next access through it faults. What the published counts take for granted.
    Zap,
    /// Leaves are made to say what the stored entry says.
    Propagate,
}

/// How L1 gets L2's obsolete translations out of the TLB where L0 stands between. (PVM's hypervisor executes the
/// instruction itself, which EPT lets it.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flushes {
    /// L1 gives L2 no VPID: each entry of L2 flushes, and no instruction is needed. What the published counts take for granted.
    EachEntry,
    /// By INVVPID, which exits to L0. INVEPT always does.
    Instruction,
}

/// All switches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// When tables are followed; default [`Linking::Lazy`].
    pub linking: Linking,
    /// What a trapped store does; default [`OnStore::Zap`].
    pub on_store: OnStore,
    /// How L1 flushes; default [`Flushes::Instruction`].
    pub flushes: Flushes,
}

impl Config {
    /// What KVM does in both hypervisors.
    pub const KVM: Self = Self { linking: Linking::Lazy, on_store: OnStore::Zap, flushes: Flushes::Instruction };
    /// Under which conditions the published counts hold (Huang et al., SOSP 2023, section 2.2: the worst case).
    pub const PUBLISHED: Self = Self { linking: Linking::Eager, on_store: OnStore::Zap, flushes: Flushes::EachEntry };
}

impl Default for Config {
    fn default() -> Self {
        Self::KVM
    }
}
