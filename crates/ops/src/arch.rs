//! What a CPU and a hypervisor see: the vocabulary of platforms.
//!
//! Plain accesses travel as slices of [`Acc`](memvirt_addr::Acc); everything else is an [`Event`] by a vCPU or a
//! [`HostEvent`] by the host. A store to a guest page table is an ordinary store *through some virtual alias*: whether it
//! exits is decided by the entry that maps that alias, so no event says "page-table write".

use memvirt_addr::{Gfn, Gpa, Gva, PfCode};

use crate::VmId;

/// The width of a store in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Width {
    /// 1 byte.
    B1 = 1,
    /// 2 bytes.
    B2 = 2,
    /// 4 bytes.
    B4 = 4,
    /// 8 bytes.
    B8 = 8,
}

impl Width {
    /// The width in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self as u64
    }
}

/// What a store instruction does to the bytes at its address, and what kind of instruction it is. Hypervisors treat the
/// kinds differently: KVM emulates instructions that usually write page tables (MOV, locked AND, ...) and unshadows the page
/// for all others (`rep stos`, vector stores).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreOp {
    /// MOV: the low bytes of `value` replace the old ones.
    Mov {
        /// Bytes written; the store must not cross a page.
        width: Width,
        /// The value.
        value: u64,
    },
    /// Locked AND of 8 bytes: clears the bits that are clear in `mask`.
    And {
        /// The mask.
        mask: u64,
    },
    /// Locked OR of 8 bytes: sets the bits of `bits`.
    Or {
        /// The bits.
        bits: u64,
    },
    /// `rep stosq`: `count` 8-byte elements of `value`, upwards, each an access of its own. All must lie in one page.
    RepStos {
        /// The value.
        value: u64,
        /// How many elements, at least 1.
        count: u16,
    },
    /// One 16-byte vector store of zeros (`movups`), within one page.
    Vector,
}

/// The operand of a CR3 load. Source: Intel SDM volume 3, section 4.5 (CR3) and 4.10.4.1 (invalidation).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cr3 {
    /// The root table of the new address space (4 KiB aligned; 32 byte aligned under PAE).
    pub root: Gpa,
    /// The process-context identifier, 0 where PCIDs are off.
    pub pcid: Pcid,
    /// Bit 63 with PCIDs on: cached translations of the PCID are kept.
    pub keep: bool,
}

impl Cr3 {
    /// A load without PCID: flushes.
    #[must_use]
    pub const fn flushing(root: Gpa) -> Self {
        Self { root, pcid: Pcid::ZERO, keep: false }
    }
}

/// A process-context identifier, 12 bits wide: 0 to 4095.
///
/// ```
/// use memvirt_ops::arch::Pcid;
/// assert!(Pcid::try_new(4095).is_some());
/// assert!(Pcid::try_new(4096).is_none());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pcid(u16);

impl Pcid {
    /// PCID 0, the only one while CR4.PCIDE is clear.
    pub const ZERO: Self = Self(0);

    /// The identifier with this number, `None` from 4096 on.
    #[must_use]
    pub const fn try_new(number: u16) -> Option<Self> {
        if number < 4096 { Some(Self(number)) } else { None }
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0
    }
}

/// A write to a control register other than CR3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CrWrite {
    /// CR4.PGE is read, cleared and set again: the full flush, global entries included. Three accesses to CR4.
    TogglePge,
    /// CR0.WP: whether supervisor stores respect read-only pages.
    WriteProtect(bool),
    /// CR4.PCIDE: whether CR3 carries a PCID.
    PcidEnable(bool),
}

/// The kinds of INVPCID. Source: Intel SDM volume 2, INVPCID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Invpcid {
    /// One page of one PCID.
    Address(Pcid, Gva),
    /// All non-global entries of one PCID.
    Single(Pcid),
    /// Everything, global entries included.
    AllGlobal,
    /// Everything but global entries.
    All,
}

/// A set of vCPUs, at most 256.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct VcpuSet([u64; 4]);

impl VcpuSet {
    /// How many vCPUs a set can name.
    pub const CAPACITY: usize = 256;
    /// Nobody.
    pub const EMPTY: Self = Self([0; 4]);

    /// This set and `vcpu`.
    ///
    /// # Panics
    ///
    /// For a vCPU numbered 256 or above; machines are refused before they get that many.
    #[must_use]
    pub const fn with(mut self, vcpu: crate::VcpuId) -> Self {
        self.0[vcpu.index() / 64] |= 1 << (vcpu.index() % 64);
        self
    }

    /// Whether `vcpu` is in the set.
    #[must_use]
    pub const fn contains(self, vcpu: crate::VcpuId) -> bool {
        vcpu.index() < Self::CAPACITY && self.0[vcpu.index() / 64] & (1 << (vcpu.index() % 64)) != 0
    }

    /// How many vCPUs are in the set.
    #[must_use]
    pub const fn len(self) -> u32 {
        self.0[0].count_ones() + self.0[1].count_ones() + self.0[2].count_ones() + self.0[3].count_ones()
    }

    /// Whether nobody is in the set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// An instruction that has nothing to do with paging and leaves the guest under every hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trap {
    /// A hypercall (VMCALL, VMMCALL).
    Hypercall,
    /// Port I/O.
    PortIo,
    /// A read or write of a model-specific register.
    Msr,
    /// CPUID.
    Cpuid,
    /// HLT.
    Halt,
}

/// A privileged operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Control {
    /// INVLPG.
    Invlpg(Gva),
    /// MOV to CR3.
    Cr3(Cr3),
    /// MOV from CR3.
    ReadCr3,
    /// A write to another control register.
    Cr(CrWrite),
    /// INVPCID.
    Invpcid(Invpcid),
    /// An inter-processor interrupt to these vCPUs is sent. Nobody waits; each of them has its own [`Control::Interrupt`].
    Ipi(VcpuSet),
    /// An inter-processor interrupt arrives.
    Interrupt,
    /// An instruction that leaves the guest for reasons other than paging; nothing happens on a bare machine.
    Trap(Trap),
}

/// What a vCPU does besides plain accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A supervisor load of 8 aligned bytes whose value matters.
    Load {
        /// The address.
        gva: Gva,
    },
    /// A supervisor store whose value matters: to page tables, or to data that is read back.
    Store {
        /// The address: some alias of the physical bytes.
        via: Gva,
        /// What is stored, and how.
        op: StoreOp,
        /// The address of the storing instruction. Some hypervisors count repeated stores by it.
        ip: Gva,
    },
    /// A privileged operation.
    Control(Control),
}

impl From<Control> for Event {
    fn from(control: Control) -> Self {
        Self::Control(control)
    }
}

/// A half-open range of guest frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GfnRange {
    /// The first frame.
    pub start: Gfn,
    /// How many frames.
    pub frames: u64,
}

impl GfnRange {
    /// Whether the range holds `gfn`.
    #[must_use]
    pub const fn contains(self, gfn: Gfn) -> bool {
        gfn.number() >= self.start.number() && gfn.number() - self.start.number() < self.frames
    }
}

/// What the host does by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HostEvent {
    /// The host takes frames away (swap, migration, ballooning): all translations to them go; contents are kept and come
    /// back on the next touch.
    Unmap(VmId, GfnRange),
    /// The host takes frames away and forgets what they held (`MADV_DONTNEED`, a balloon): all translations to them go, and
    /// the next touch finds zeros.
    Discard(VmId, GfnRange),
    /// Dirty logging starts (true) or ends (false).
    DirtyLog(VmId, bool),
    /// The host fetches and clears the dirty log; the next store to each page is logged again.
    DirtyRound(VmId),
    /// The memory layout of a virtual machine changes: every cached translation of it is obsolete.
    SlotChange(VmId),
    /// A physical CPU stops running one virtual machine and starts another.
    WorldSwitch(VmId),
    /// The limit on shadow pages changes (`KVM_SET_NR_MMU_PAGES`).
    ShadowPageLimit(VmId, u32),
}

/// A page fault that the guest sees: its own tables forbid the access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GuestFault {
    /// The faulting address, as in CR2.
    pub gva: Gva,
    /// The error code.
    pub code: PfCode,
}
