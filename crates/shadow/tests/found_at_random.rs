//! What random operations found, each case as short as it became. Both need a guest that keeps one PCID over two roots, so that
//! stale translations are permitted under a policy that is otherwise always in step.

mod lab;

use lab::steps::{Step, run, world};
use lab::{A, D, Lab, P, PS, SMALL, U, W};
use memvirt_addr::{AccessKind, Privilege};
use memvirt_platform::{Tags, Vendor};
use memvirt_shadow::{OnStore, WriteProtect};

const MAPPED: u64 = P | W | U | A | D;

fn after(vcpus: u16, steps: &[Step]) -> Lab<WriteProtect> {
    let mut lab = world(SMALL, vcpus, Tags::On, |map| WriteProtect::new(map, OnStore::Propagate, Vendor::Vmx));
    for step in steps {
        run(&mut lab, step);
    }
    lab
}

/// The oracle took the INVLPG to have dropped all that was cached within the 2 MiB page that the second root has; the page of
/// 4 KiB that the first root had there need not go (Intel SDM volume 3, sections 4.10.2.3 and 4.10.4.1).
#[test]
fn a_small_page_of_another_root_serves_although_its_neighbour_was_flushed() {
    let path = [1, 0, 0, 0];
    let lab = after(
        1,
        &[
            Step::Pcids(true),
            Step::Store { table: 8, index: 0, raw: 512 << 12 | MAPPED },
            Step::Access { path, kind: AccessKind::Write, privilege: Privilege::User },
            Step::Store { table: 7, index: 0, raw: 512 << 12 | MAPPED | PS },
            Step::Clear { table: 7, index: 0, mask: !A },
            Step::Cr3 { root: 2, pcid: 0, keep: true },
            Step::Invlpg([1, 0, 0, 1]),
            Step::Access { path, kind: AccessKind::Write, privilege: Privilege::Supervisor },
        ],
    );
    lab.sound();
}

/// A store that its cached translation did not permit was carried out by the hypervisor elsewhere, and the translation stayed,
/// although the page fault drops it (Intel SDM volume 3, section 4.10.4.1).
#[test]
fn what_forbade_an_access_is_no_longer_cached_once_it_was_carried_out() {
    let path = [0, 1, 0, 1];
    let lab = after(
        2,
        &[
            Step::Pcids(true),
            Step::Clear { table: 5, index: 1, mask: !W },
            Step::Access { path, kind: AccessKind::Write, privilege: Privilege::User },
            Step::Store { table: 4, index: 1, raw: P | W | U | A | PS },
            Step::Load { path },
            Step::Cr3 { root: 2, pcid: 0, keep: true },
            // To frame 1, the other vCPU's root.
            Step::Access { path, kind: AccessKind::Write, privilege: Privilege::User },
        ],
    );
    lab.sound();
}
