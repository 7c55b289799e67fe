//! Random operations of one and two vCPUs on random tables, the oracle beside them: no alternative hands out a translation
//! that no hardware could have, raises a fault without cause or loses an accessed or dirty bit; books stay sound.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use memvirt_addr::{Gfn, Gva};
use memvirt_alternatives::{Agile, DirectSegment, Flat, GuestSegment, Mode, Policy, RegisterWalk, Switching};
use memvirt_ops::arch::GfnRange;
use memvirt_pagetable::Attrs;
use memvirt_platform::{Host, MemoryMap, Tags};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use support::lab::steps::{Step, memory, run, step, world_with_host};
use support::lab::{Audited, Lab};

fn play<R: Audited>(lab: &mut Lab<R>, steps: &[Step]) {
    for (i, step) in steps.iter().enumerate() {
        run(lab, step);
        if i % 8 == 0 {
            lab.audit();
        }
    }
    lab.audit();
}

fn always_sound<R: Audited>(regime: impl Fn(&mut Host, &mut MemoryMap) -> R) {
    let config = Config { failure_persistence: None, max_shrink_iters: 400, ..memvirt_properties::cases(120) };
    let input = (memory(), 1..3u16, any::<bool>(), prop::collection::vec(step(), 1..250));
    let result = TestRunner::new(config).run(&input, |(memory, vcpus, tagged, steps)| {
        let tags = if tagged { Tags::On } else { Tags::Off };
        let mut lab = world_with_host(memory, vcpus, tags, &regime);
        play(&mut lab, &steps);
        prop_assert_eq!(lab.tally().violations(), 0, "{:#?}", lab.checked.violations());
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
}

#[test]
fn a_flat_nested_table_is_sound() {
    always_sound(|host, map| Flat::new(host, map).unwrap());
}

/// The kernel's direct map, which the random guest never changes.
const KERNEL: GuestSegment = GuestSegment {
    base: Gva::new(support::lab::DIRECT_MAP),
    pages: 2048,
    to: Gfn::new(0),
    perms: Attrs::READ.union(Attrs::WRITE),
};

#[test]
fn direct_segments_are_sound() {
    for mode in [Mode::Vmm, Mode::Guest(KERNEL), Mode::Dual(KERNEL)] {
        always_sound(|host, map| DirectSegment::new(host, map, mode).unwrap());
    }
}

/// The random guest's leaf tables lie in no arena, so that registers name tables of larger pages only.
#[test]
fn registers_are_sound_under_a_guest_that_keeps_no_arrays() {
    let nowhere = GfnRange { start: Gfn::new(0), frames: 0 };
    always_sound(|host, map| RegisterWalk::new(host, map, nowhere).unwrap().with_registers(4));
}

fn agile(switching: Switching) -> impl Fn(&mut Host, &mut MemoryMap) -> Agile {
    move |host, map| Agile::new(host, map, switching).unwrap()
}

#[test]
fn agile_paging_with_fixed_levels_is_sound() {
    for lowest in 0..=4 {
        always_sound(agile(Switching::Levels(lowest)));
    }
}

#[test]
fn agile_paging_that_follows_the_guests_stores_is_sound() {
    for (threshold, interval) in [(1, 8), (2, 16), (2, 64)] {
        always_sound(agile(Switching::Activity(Policy { threshold, interval })));
    }
}
