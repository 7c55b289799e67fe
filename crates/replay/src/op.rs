//! The operations of a recording.

use core::fmt;

use memvirt_addr::{Gpa, Gva};
use memvirt_ops::arch::{Control, Cr3, CrWrite, StoreOp, Width};

/// What the guest does in one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OpKind {
    /// `RD`: loads 8 bytes, and stores what it got.
    Read(Gva),
    /// `WR`, `PTE`, `PDE`, `PDPTE`, `PML4E`, `CLRA`, `WRB`, `WRW`: one store.
    Store(Gva, StoreOp),
    /// `INVLPG`, `CR3`, `PGE`: one privileged operation.
    Control(Control),
}

/// One operation, as it was written and what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GuestOp {
    /// What it does.
    pub kind: OpKind,
    /// Its name.
    pub name: &'static str,
    /// The first operand as it stands in the recording.
    pub a: u64,
    /// The second operand.
    pub b: u64,
}

/// Why the operands of an operation are refused: which of them (0 the name, 1 `a`, 2 `b`), and what was expected.
pub(crate) type Refused = (usize, &'static str);

const NAMES: [&str; 11] = ["RD", "WR", "PTE", "PDE", "PDPTE", "PML4E", "CLRA", "WRB", "WRW", "INVLPG", "CR3"];

impl GuestOp {
    /// The operation called `name`.
    pub(crate) fn new(name: &str, a: u64, b: u64) -> Result<Self, Refused> {
        if name == "PGE" {
            let kind = OpKind::Control(Control::Cr(CrWrite::TogglePge));
            return Ok(Self { kind, name: "PGE", a, b });
        }
        let name = NAMES
            .into_iter()
            .find(|known| *known == name)
            .ok_or((0, "one of RD, WR, PTE, PDE, PDPTE, PML4E, CLRA, WRB, WRW, INVLPG, CR3, PGE"))?;
        if name == "CR3" {
            let root = Gpa::try_new(a).ok().filter(|root| root.as_u64() & 0xfff == 0);
            let root = root.ok_or((1, "the address of a root table, a multiple of 1000 below 10000000000000"))?;
            return Ok(Self { kind: OpKind::Control(Control::Cr3(Cr3::flushing(root))), name, a, b });
        }
        // The recorded machine walks four levels: bits 63 to 47 are alike.
        let canonical = matches!(a >> 47, 0 | 0x1_ffff);
        let at = Gva::try_new(a).ok().filter(|_| canonical);
        let at = at.ok_or((1, "a canonical virtual address of 48 bits"))?;
        let kind = match name {
            "INVLPG" => OpKind::Control(Control::Invlpg(at)),
            "RD" if a & 7 == 0 => OpKind::Read(at),
            "RD" => return Err((1, "a virtual address that is a multiple of 8")),
            _ => OpKind::Store(at, store(name, a, b)?),
        };
        Ok(Self { kind, name, a, b })
    }
}

fn store(name: &str, a: u64, b: u64) -> Result<StoreOp, Refused> {
    let width = match name {
        "CLRA" if a & 7 == 0 => return Ok(StoreOp::And { mask: b }),
        "CLRA" => return Err((1, "a virtual address that is a multiple of 8")),
        "WRB" => Width::B1,
        "WRW" => Width::B2,
        _ => Width::B8,
    };
    if (a & 0xfff) + width.bytes() > 0x1000 {
        return Err((1, "the virtual address of a store that does not cross a page"));
    }
    Ok(StoreOp::Mov { width, value: b })
}

impl fmt::Display for GuestOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:x} {:x}", self.name, self.a, self.b)
    }
}
