//! Random operations on every policy, the oracle beside it: whatever the guest does, flushing or not, no correct policy hands
//! out a translation that no hardware could have, loses an accessed or dirty bit, or reflects a fault without cause; and its
//! structures stay sound. The naive policy is caught.

mod lab;

use lab::steps::{Step, gva, memory, run, step, world};
use lab::{Audited, Lab};
use memvirt_addr::{Acc, Gva};
use memvirt_platform::{MemoryMap, Tags, Vendor};
use memvirt_shadow::*;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..250)
}

const fn tags(on: bool) -> Tags {
    if on { Tags::On } else { Tags::Off }
}

/// Runs `steps`; structures are looked at after every eighth.
fn play<R: Audited>(lab: &mut Lab<R>, steps: &[Step]) {
    for (i, step) in steps.iter().enumerate() {
        run(lab, step);
        if i % 8 == 0 {
            lab.audit();
        }
    }
    lab.audit();
}

fn always_sound<R: Audited>(policy: impl Fn(&MemoryMap) -> R) {
    let config = Config { failure_persistence: None, max_shrink_iters: 400, ..memvirt_properties::cases(200) };
    let result =
        TestRunner::new(config).run(&(memory(), 1..3u16, any::<bool>(), steps()), |(memory, vcpus, tagged, steps)| {
            let mut lab = world(memory, vcpus, tags(tagged), &policy);
            play(&mut lab, &steps);
            prop_assert_eq!(lab.tally().violations(), 0, "{:#?}", lab.checked.violations());
            Ok(())
        });
    if let Err(failure) = result {
        panic!("{failure}");
    }
}

#[test]
fn write_protect_with_zapping_is_sound() {
    always_sound(|map| WriteProtect::new(map, OnStore::Zap, Vendor::Vmx));
}

#[test]
fn write_protect_with_propagation_is_sound() {
    always_sound(|map| WriteProtect::new(map, OnStore::Propagate, Vendor::Vmx));
}

#[test]
fn lazy_fill_is_sound() {
    always_sound(|map| LazyFill::new(map, Vendor::Vmx));
}

#[test]
fn vtlb_is_sound() {
    always_sound(|map| Vtlb::new(map, Vendor::Vmx));
}

#[test]
fn xen_is_sound() {
    always_sound(|map| Xen::new(map, 2, Vendor::Vmx));
}

#[test]
fn vbox_is_sound() {
    always_sound(|map| Vbox::new(map, Vendor::Vmx));
}

#[test]
fn the_naive_policy_keeps_sound_books_of_wrong_translations() {
    let config = Config { failure_persistence: None, max_shrink_iters: 400, ..memvirt_properties::cases(100) };
    let broken = std::cell::Cell::new(0);
    let result = TestRunner::new(config).run(&(memory(), steps()), |(memory, steps)| {
        let mut lab = world(memory, 1, Tags::On, |map| InvlpgOnly::new(map, Vendor::Vmx));
        play(&mut lab, &steps);
        assert_eq!(lab.tally().unjustified, 0, "it walks the guest's tables before it reflects a fault");
        broken.set(broken.get() + u64::from(lab.tally().broken > 0));
        Ok(())
    });
    assert!(result.is_ok(), "{result:?}");
    assert!(broken.get() > 10, "only {} runs show broken translations", broken.get());
}

proptest! {
    #![proptest_config(Config { failure_persistence: None, max_shrink_iters: 400, ..memvirt_properties::cases(200) })]

    /// Write-protect is stronger than the architecture asks: it follows the guest's tables without any flush.
    #[test]
    fn write_protect_is_exact_at_every_moment(
        memory in memory(),
        propagate: bool,
        tagged: bool,
        steps in steps(),
    ) {
        let on_store = if propagate { OnStore::Propagate } else { OnStore::Zap };
        let mut lab = world(memory, 1, tags(tagged), |map| WriteProtect::new(map, on_store, Vendor::Vmx));
        for step in &steps {
            match step {
                Step::Access { path, kind, privilege } => {
                    lab.exact(Acc::new(Gva::new(gva(*path)), *kind, *privilege));
                }
                // PCIDs keep translations in the TLB on purpose.
                Step::Pcids(_) => {}
                step => run(&mut lab, step),
            }
        }
    }
}
