//! Seven ways in which a hypervisor that reacts to INVLPG only goes wrong (spec: the naive policy and how it fails). In each
//! the naive policy hands out a translation (or loses an accessed or dirty bit) that no hardware could have; every correct
//! policy does not. The guest does nothing but what the architecture demands of it.

mod lab;

use lab::*;
use memvirt_addr::{Acc, AccessKind, Gva, PageSize};
use memvirt_ops::VcpuId;
use memvirt_ops::arch::{Control, CrWrite};
use memvirt_platform::{MemoryMap, Vendor};
use memvirt_shadow::*;

/// Two address spaces with roots 1 and 2 and a direct map; user memory at [`USER`], one table of each level, in both.
const USER: u64 = 0x80_0000_0000;
const LEAF: u64 = P | W | U | A | D;
const UPPER: u64 = P | W | U | A;

struct Guest<R> {
    lab: Lab<R>,
    /// The leaf tables of the two.
    pt: [u64; 2],
    pd: [u64; 2],
}

fn guest<R: Audited>(vcpus: u16, memory: Memory, regime: impl FnOnce(&MemoryMap) -> R) -> Guest<R> {
    let mut lab = Lab::new(memory, vcpus, regime);
    lab.boot_direct_map(1);
    let direct = lab.peek(1, index_of(DIRECT_MAP, 4));
    lab.boot(2, index_of(DIRECT_MAP, 4), direct);
    for root in [1, 2] {
        for page in 0..8 {
            let frame = 16 * root + page;
            lab.boot_map(root, USER + (page << 12), PageSize::Size4K, frame << 12 | LEAF, UPPER);
        }
    }
    let pt = [1, 2].map(|root| lab.table(root, USER, 1));
    let pd = [1, 2].map(|root| lab.table(root, USER, 2));
    lab.cr3(1);
    Guest { lab, pt, pd }
}

/// Runs a scenario on every policy: broken under the naive one, sound under all others.
macro_rules! scenario {
    ($(#[$doc:meta])* $name:ident, $vcpus:expr, $memory:expr, $body:expr) => {
        $(#[$doc])*
        #[test]
        fn $name() {
            fn play<R: Audited>(name: &str, broken: bool, regime: impl FnOnce(&MemoryMap) -> R) {
                let mut guest = guest($vcpus, $memory, regime);
                let body: fn(&mut Guest<R>) = $body;
                body(&mut guest);
                guest.lab.audit();
                let tally = guest.lab.tally();
                let violations = guest.lab.checked.violations();
                assert_eq!(tally.broken > 0, broken, "{name}: {tally:?} {violations:#?}");
                assert_eq!(tally.unjustified, 0, "{name}: {violations:#?}");
            }
            let vendor = Vendor::Vmx;
            play("invlpg-only", true, |map| InvlpgOnly::new(map, vendor));
            play("write-protect, zap", false, |map| WriteProtect::new(map, OnStore::Zap, vendor));
            play("write-protect, propagate", false, |map| WriteProtect::new(map, OnStore::Propagate, vendor));
            play("lazy-fill", false, |map| LazyFill::new(map, vendor));
            play("vtlb", false, |map| Vtlb::new(map, vendor));
            play("vbox", false, |map| Vbox::new(map, vendor));
            play("xen", false, |map| Xen::new(map, $vcpus, vendor));
        }
    };
}

scenario!(
    /// Fork write-protects a page and flushes by reloading CR3: the parent's next store must fault. Through the stale entry it
    /// goes to the frame that it shares with the child.
    way_1_a_cr3_load_is_the_flush,
    1,
    SMALL,
    |g| {
        g.lab.write(USER).unwrap();
        g.lab.set(g.pt[0], 0, 16 << 12 | P | U | A | D);
        g.lab.cr3(1);
        _ = g.lab.write(USER);
    }
);

scenario!(
    /// The same with the other full flush, a toggle of CR4.PGE.
    way_1_a_pge_toggle_is_the_flush,
    1,
    SMALL,
    |g| {
        g.lab.read(USER).unwrap();
        g.lab.set(g.pt[0], 0, 30 << 12 | LEAF);
        g.lab.control(Control::Cr(CrWrite::TogglePge));
        g.lab.read(USER).unwrap();
    }
);

scenario!(
    /// A page of another address space is moved while that is not loaded: its next CR3 load reads the new entry.
    way_2_tables_edited_while_another_root_is_loaded,
    1,
    SMALL,
    |g| {
        g.lab.read(USER).unwrap();
        g.lab.cr3(2);
        g.lab.set(g.pt[0], 0, 30 << 12 | LEAF);
        g.lab.cr3(1);
        g.lab.read(USER).unwrap();
    }
);

scenario!(
    /// Both address spaces share a leaf table (as all share the kernel's): after the INVLPG in one, the other is switched to
    /// and must see the new entry as well.
    way_3_one_table_in_two_address_spaces,
    1,
    SMALL,
    |g| {
        g.lab.set(g.pd[1], 0, g.pt[0] << 12 | UPPER);
        g.lab.cr3(2);
        g.lab.read(USER).unwrap();
        g.lab.cr3(1);
        g.lab.read(USER).unwrap();
        g.lab.set(g.pt[0], 0, 30 << 12 | LEAF);
        g.lab.invlpg(USER);
        g.lab.read(USER).unwrap();
        g.lab.cr3(2);
        g.lab.read(USER).unwrap();
    }
);

scenario!(
    /// A large page moves; one INVLPG anywhere in it invalidates all of it, in however many pieces it is cached (Intel SDM volume
    /// 3, section 4.10.4.1). The host has small pages, so the shadow holds it in pieces, of which the naive policy removes one.
    way_4_one_invlpg_for_a_large_page,
    1,
    SMALL,
    |g| {
        let large = USER + (2 << 20);
        g.lab.set(g.pd[0], 1, 1 << 21 | LEAF | PS);
        g.lab.read(large).unwrap();
        g.lab.read(large + 0x5000).unwrap();
        g.lab.set(g.pd[0], 1, 2 << 21 | LEAF | PS);
        g.lab.invlpg(large);
        g.lab.read(large + 0x5000).unwrap();
    }
);

scenario!(
    /// A directory entry is cleared (in a batch, flushed by CR3), then leads to another table, which needs no flush at all: from
    /// absent to present. The naive policy still has the old table's translations below it.
    way_4_a_directory_entry_from_absent_to_present,
    1,
    SMALL,
    |g| {
        g.lab.read(USER).unwrap();
        g.lab.set(g.pd[0], 0, 0);
        g.lab.cr3(1);
        g.lab.set(g.pd[0], 0, g.pt[1] << 12 | UPPER);
        g.lab.read(USER).unwrap();
    }
);

scenario!(
    /// A process exits and its root frame becomes data, then the root of a new process with other tables: the shadow found
    /// under the same frame must not be the old one's.
    way_5_a_table_frame_used_anew,
    1,
    SMALL,
    |g| {
        g.lab.cr3(2);
        g.lab.read(USER).unwrap();
        g.lab.cr3(1);
        for index in 0..4 {
            g.lab.set(2, index, 0xdead_beef_0000);
        }
        let shared = g.lab.peek(1, 1);
        g.lab.set(2, 0, 0);
        g.lab.set(2, 1, shared);
        g.lab.cr3(2);
        g.lab.read(USER).unwrap();
    }
);

scenario!(
    /// The guest's reclaim clears an accessed bit and flushes by CR3: the next access must set it again.
    way_6_the_accessed_bit_is_set_again,
    1,
    SMALL,
    |g| {
        g.lab.read(USER).unwrap();
        g.lab.set(g.pt[0], 0, 16 << 12 | LEAF & !A);
        g.lab.cr3(1);
        g.lab.read(USER).unwrap();
    }
);

scenario!(
    /// The guest writes a page back, clears its dirty bit and flushes by CR3: the next store must set it again, or its data
    /// are lost when the page is evicted.
    way_6_the_dirty_bit_is_set_again,
    1,
    SMALL,
    |g| {
        g.lab.write(USER).unwrap();
        g.lab.set(g.pt[0], 0, 16 << 12 | LEAF & !D);
        g.lab.cr3(1);
        g.lab.write(USER).unwrap();
    }
);

scenario!(
    /// Two vCPUs; the second flushes (as the target of a shootdown that asks for everything) by reloading its CR3. The shadow
    /// that both use still has the old entry.
    way_7_the_flush_of_another_vcpu,
    2,
    SMALL,
    |g| {
        let (second, page) = (VcpuId(1), Acc::user(Gva::new(USER), AccessKind::Read));
        let cr3 = Control::Cr3(memvirt_ops::arch::Cr3::flushing(memvirt_addr::Gfn::new(1).base()));
        g.lab.control_on(second, cr3);
        g.lab.access_on(second, page).unwrap();
        g.lab.set(g.pt[0], 0, 30 << 12 | LEAF);
        g.lab.control_on(second, cr3);
        g.lab.access_on(second, page).unwrap();
    }
);

/// What the naive policy can do: where the architecture asks for no flush, or for INVLPG of a small page in the address space
/// in use, it is right.
#[test]
fn the_naive_policy_is_right_where_invlpg_is_all_that_is_needed() {
    let mut g = guest(1, SMALL, |map| InvlpgOnly::new(map, Vendor::Vmx));
    // From absent to present, from read-only to writable, from supervisor to user, from no-execute to execute: no flush.
    let next = USER + 0x9000;
    g.lab.read(next).unwrap_err();
    g.lab.set(g.pt[0], 9, 30 << 12 | P | A | D | NX);
    g.lab.load(next).unwrap();
    g.lab.read(next).unwrap_err();
    g.lab.set(g.pt[0], 9, 30 << 12 | P | U | A | D | NX);
    g.lab.read(next).unwrap();
    g.lab.write(next).unwrap_err();
    g.lab.set(g.pt[0], 9, 30 << 12 | LEAF | NX);
    g.lab.write(next).unwrap();
    g.lab.access(Acc::user(Gva::new(next), AccessKind::Fetch)).unwrap_err();
    g.lab.set(g.pt[0], 9, 30 << 12 | LEAF);
    g.lab.access(Acc::user(Gva::new(next), AccessKind::Fetch)).unwrap();
    // Another frame, with INVLPG.
    g.lab.set(g.pt[0], 9, 31 << 12 | LEAF);
    g.lab.invlpg(next);
    g.lab.write(next).unwrap();
    g.lab.sound();
}
