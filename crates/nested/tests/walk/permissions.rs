//! Nested permissions, exhaustively: ANDed over the levels as EPT and as NPT do, then with the guest's.

use std::collections::BTreeSet;

use memvirt_addr::{AccessKind, GuestPhys, HostPhys, PageSize, PfCode, Privilege};
use memvirt_nested::{AdBits, End, Violation};
use memvirt_pagetable::{Attrs, Ept4, Guest4, LongMode, Npt4};

use crate::lab::{KINDS, Lab};

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const NX: u64 = 1 << 63;

/// What the report of a fault must hold, or nothing where the access is allowed.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Allowed,
    Violation(u64),
    Misconfigured,
}

fn of(end: &End, report: impl Fn(&Violation) -> u64) -> Outcome {
    match end {
        End::Mapped(_) => Outcome::Allowed,
        End::Violation(found) => Outcome::Violation(report(found)),
        End::Misconfig(_) => Outcome::Misconfigured,
        other => panic!("{other:?}"),
    }
}

/// The bit of an access in an EPT entry, and in the low bits of the qualification.
const fn ept_bit(kind: AccessKind) -> u64 {
    match kind {
        AccessKind::Read => 1,
        AccessKind::Write => 2,
        AccessKind::Fetch => 4,
    }
}

/// Section 28.2.3 of the manual, word for word: entries in order, each absent, illegal or good; privileges last.
fn ept(entries: [u64; 4], kind: AccessKind) -> Outcome {
    let access = ept_bit(kind);
    let mut granted = 7;
    for rwx in entries {
        match rwx {
            0 => return Outcome::Violation(access | 0x180),
            2 | 6 => return Outcome::Misconfigured,
            _ => granted &= rwx,
        }
    }
    if granted & access == 0 { Outcome::Violation(access | granted << 3 | 0x180) } else { Outcome::Allowed }
}

#[test]
fn every_combination_of_ept_permissions() {
    for ad in [AdBits::On, AdBits::Off] {
        let mut lab = Lab::<Guest4, Ept4>::uniform(PageSize::Size4K, PageSize::Size4K);
        let path = lab.nested_path(lab.data());
        for combination in 0..8u64.pow(4) {
            let entries = [0, 3, 6, 9].map(|shift| combination >> shift & 7);
            path.iter().zip(entries).for_each(|(at, rwx)| lab.change(*at, 7, rwx));
            for kind in KINDS {
                let end = lab.walk(kind, ad);
                assert_eq!(of(&end, Violation::qualification), ept(entries, kind), "{entries:?} {kind:?} {ad:?}");
                if let End::Mapped(mapped) = end {
                    let all = entries.iter().fold(7, |all, rwx| all & rwx);
                    assert_eq!(mapped.perms.contains(Attrs::WRITE), all & 2 != 0);
                    assert_eq!(mapped.perms.contains(Attrs::EXEC), all & 4 != 0);
                }
            }
        }
    }
}

/// Ordinary page-table entries, every access one of user mode (AMD APM volume 2, section 15.25.5).
fn npt(entries: [u64; 4], kind: AccessKind) -> Outcome {
    let (write, fetch) = (kind == AccessKind::Write, kind == AccessKind::Fetch);
    let code = u64::from(write) << 1 | 4 | u64::from(fetch) << 4 | 1 << 32;
    if entries.iter().any(|entry| entry & P == 0) {
        return Outcome::Violation(code);
    }
    let all = |bit| entries.iter().all(|entry| entry & bit != 0);
    let executable = entries.iter().all(|entry| entry & NX == 0);
    if all(U) && (!write || all(W)) && (!fetch || executable) { Outcome::Allowed } else { Outcome::Violation(code | 1) }
}

#[test]
fn every_combination_of_npt_permissions() {
    let mut lab = Lab::<Guest4, Npt4>::uniform(PageSize::Size4K, PageSize::Size4K);
    let path = lab.nested_path(lab.data());
    for combination in 0..16u64.pow(4) {
        let entries = [0, 4, 8, 12].map(|shift| {
            let bits = combination >> shift & 15;
            (bits & 7) | ((bits >> 3) * NX)
        });
        path.iter().zip(entries).for_each(|(at, bits)| lab.change(*at, P | W | U | NX, bits));
        for kind in KINDS {
            let end = lab.walk(kind, AdBits::On);
            assert_eq!(of(&end, Violation::error_code), npt(entries, kind), "{entries:x?} {kind:?}");
        }
    }
}

/// Section 4.6 of the manual: what the guest's own tables permit.
fn guest(upper: u64, leaf: u64, kind: AccessKind, privilege: Privilege, write_protect: bool) -> bool {
    let both = |bit| upper & leaf & bit != 0;
    let user = privilege == Privilege::User;
    let allowed = match kind {
        AccessKind::Read => true,
        AccessKind::Write => both(W) || (!user && !write_protect),
        AccessKind::Fetch => upper & NX == 0 && leaf & NX == 0,
    };
    allowed && (!user || both(U))
}

fn guest_and_nested<H: memvirt_nested::SecondStage>(allowed: impl Fn(u64, AccessKind) -> Option<bool>, mask: u64) {
    let mut lab = Lab::<Guest4, H>::uniform(PageSize::Size4K, PageSize::Size4K);
    let (upper_at, leaf_at) = (lab.guest_entry(1), lab.guest_entry(3));
    let nested_at = *lab.nested_path(lab.data()).last().unwrap();
    let bits = [0, W, U, U | W, NX, NX | W, NX | U, NX | U | W];
    let nested_bits: BTreeSet<u64> = (0..16u64).map(|i| ((i & 7) | ((i >> 3) * NX)) & mask).collect();
    for (nested, upper, leaf) in combinations(&nested_bits, &bits) {
        lab.change(nested_at, mask, nested);
        lab.change(upper_at, W | U | NX, upper);
        lab.change(leaf_at, W | U | NX, leaf);
        for (kind, privilege, write_protect) in accesses() {
            lab.regs.write_protect = write_protect;
            let end = lab.walk_as(lab.acc(kind, privilege), AdBits::On).0;
            let what = format!("nested {nested:x} guest {upper:x} {leaf:x} {kind:?} {privilege:?} WP {write_protect}");
            if !guest(upper, leaf, kind, privilege, write_protect) {
                let code = PfCode::of(lab.acc(kind, privilege), true);
                assert_eq!(end, End::GuestFault(code), "the guest's fault comes first: {what}");
                continue;
            }
            match (allowed(nested, kind), end) {
                (Some(true), End::Mapped(mapped)) => {
                    let writable = upper & leaf & W != 0 && allowed(nested, AccessKind::Write) == Some(true);
                    assert_eq!(mapped.perms.contains(Attrs::WRITE), writable, "{what}");
                    assert_eq!(mapped.perms.contains(Attrs::USER), upper & leaf & U != 0, "{what}");
                }
                (Some(false), End::Violation(found)) => assert!(found.on_data, "{what}"),
                (None, End::Misconfig(found)) => assert!(found.on_data, "{what}"),
                (expected, end) => panic!("{what}: expected {expected:?}, got {end:?}"),
            }
        }
    }
}

fn combinations(nested: &BTreeSet<u64>, bits: &[u64]) -> Vec<(u64, u64, u64)> {
    nested.iter().flat_map(|n| bits.iter().flat_map(move |u| bits.iter().map(move |l| (*n, *u, *l)))).collect()
}

fn accesses() -> impl Iterator<Item = (AccessKind, Privilege, bool)> {
    KINDS.into_iter().flat_map(|kind| {
        [Privilege::User, Privilege::Supervisor]
            .into_iter()
            .flat_map(move |privilege| [true, false].map(|write_protect| (kind, privilege, write_protect)))
    })
}

#[test]
fn guest_permissions_are_anded_with_ept() {
    guest_and_nested::<Ept4>(
        |rwx, kind| match rwx {
            2 | 6 => None,
            _ => Some(rwx & ept_bit(kind) != 0),
        },
        7,
    );
}

#[test]
fn guest_permissions_are_anded_with_npt() {
    guest_and_nested::<LongMode<4, GuestPhys, HostPhys>>(
        |bits, kind| {
            let denied = match kind {
                AccessKind::Read => false,
                AccessKind::Write => bits & W == 0,
                AccessKind::Fetch => bits & NX != 0,
            };
            Some(bits & P != 0 && bits & U != 0 && !denied)
        },
        P | W | U | NX,
    );
}
