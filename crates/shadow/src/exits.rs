//! Which privileged operations exit under shadow paging, and how often.
//!
//! The hypervisor must see whatever changes or invalidates the address space: CR3 loads, INVLPG, INVPCID, writes to the paging
//! bits of CR0 and CR4. SVM hardware also exits when CR4 is read, so a toggle of CR4.PGE is three exits there and two under
//! VMX. Source: KVM's `vmx_exec_control`, `set_cr4_guest_host_mask`, `init_vmcb`; measured on SVM.

use memvirt_ops::arch::{Control, CrWrite, VcpuSet};
use memvirt_platform::{Cx, ExitReason, Vendor, Work};

/// The reason for which `control` exits, and how many exits it makes.
pub(crate) fn exits_of(control: &Control, vendor: Vendor) -> (ExitReason, u32) {
    match control {
        Control::Invlpg(_) => (ExitReason::Invlpg, 1),
        Control::Cr3(_) => (ExitReason::Cr3Load, 1),
        Control::Cr(CrWrite::TogglePge) => (ExitReason::CrAccess, if vendor == Vendor::Svm { 3 } else { 2 }),
        Control::Cr(_) | Control::ReadCr3 => (ExitReason::CrAccess, 1),
        Control::Invpcid(_) => (ExitReason::Invpcid, 1),
        Control::Ipi(_) | Control::Interrupt => (ExitReason::Ipi, 1),
        Control::Trap(trap) => ((*trap).into(), 1),
    }
}

/// Counts the exits of `control` but the last, which carries the handler's work and is the caller's.
pub(crate) fn leading_exits(cx: &mut Cx<'_>, control: &Control, vendor: Vendor) -> ExitReason {
    let (reason, count) = exits_of(control, vendor);
    for _ in 1..count {
        cx.exit(reason, Work::default(), None, VcpuSet::EMPTY);
    }
    reason
}
