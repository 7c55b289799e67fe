//! Whatever the parameters: streams are legal, and hold what their facts say.

#![expect(clippy::unwrap_used, reason = "test helpers may stop the test")]

mod support;

use memvirt_workload::spec::{
    Churn, ForkAndExit, Mix, PointerChase, Residents, Sequential, TouchAndFree, Uniform, Zipf,
};
use memvirt_workload::units::{Areas, Base, Count, Exponent, Footprint, InstructionsPerAccess, Share, Stride, Weight};
use memvirt_workload::{Facts, Figure, Generator, Spec, Workload};
use proptest::prelude::*;
use support::{Tally, replay};

fn footprint(pages: u64) -> impl Strategy<Value = Footprint> {
    (1..=pages).prop_map(|pages| Footprint::try_new(pages << 12).unwrap())
}

fn count(most: u64) -> impl Strategy<Value = Count> {
    (1..=most).prop_map(|n| Count::try_new(n).unwrap())
}

fn share() -> impl Strategy<Value = Share> {
    prop_oneof![Just(0.0), Just(1.0), 0.0..=1.0].prop_map(|share| Share::try_new(share).unwrap())
}

fn base() -> impl Strategy<Value = Base> {
    prop_oneof![Just(Base::default()), (16u64..1 << 34).prop_map(|page| Base::try_new(page << 12).unwrap())]
}

fn per_access() -> impl Strategy<Value = InstructionsPerAccess> {
    (1u32..50).prop_map(|n| InstructionsPerAccess::try_new(n).unwrap())
}

fn weight() -> impl Strategy<Value = Weight> {
    (0u32..5).prop_map(|n| Weight::try_new(n).unwrap())
}

fn steady() -> impl Strategy<Value = Spec> {
    let exponent = (0.01..10.0).prop_map(|s| Exponent::try_new(s).unwrap());
    let words = (1u64..2000).prop_map(|words| Stride::try_new(words * 8).unwrap());
    let all = (base(), footprint(300), count(20_000), share(), per_access(), exponent, words, 0..4);
    all.prop_map(
        |(base, footprint, accesses, write_share, instructions_per_access, exponent, words, kind)| match kind {
            0 => {
                let stride = words.min(Stride::try_new(footprint.bytes()).unwrap());
                Spec::Sequential(Sequential { base, footprint, accesses, stride, write_share, instructions_per_access })
            }
            1 => Spec::Uniform(Uniform { base, footprint, accesses, write_share, instructions_per_access }),
            2 => Spec::Zipf(Zipf { base, footprint, accesses, exponent, write_share, instructions_per_access }),
            _ => {
                let node = Stride::try_new(64 << (words.bytes() % 6)).unwrap();
                Spec::PointerChase(PointerChase {
                    base,
                    footprint,
                    node,
                    accesses,
                    write_share,
                    instructions_per_access,
                })
            }
        },
    )
}

fn paging() -> impl Strategy<Value = Spec> {
    let touch = (base(), footprint(9000), count(3), share(), per_access()).prop_map(
        |(base, footprint, iterations, write_share, instructions_per_access)| {
            Spec::TouchAndFree(TouchAndFree { base, footprint, iterations, write_share, instructions_per_access })
        },
    );
    let fork = (base(), footprint(5000), count(4), share(), share(), per_access()).prop_map(
        |(base, footprint, forks, child_write_share, parent_write_share, instructions_per_access)| {
            Spec::ForkAndExit(ForkAndExit {
                base,
                footprint,
                forks,
                child_write_share,
                parent_write_share,
                instructions_per_access,
            })
        },
    );
    prop_oneof![touch, fork]
}

fn residents() -> impl Strategy<Value = Spec> {
    let processes = (1u32..6).prop_map(|n| Areas::try_new(n).unwrap());
    let all = (base(), footprint(300), processes, share(), count(4), per_access());
    all.prop_map(|(base, footprint, processes, touched, rounds, instructions_per_access)| {
        Spec::Residents(Residents { base, footprint, processes, touched, rounds, instructions_per_access })
    })
}

fn churn() -> impl Strategy<Value = Spec> {
    let mix = (weight(), weight(), weight(), weight())
        .prop_map(|(mmap, munmap, mprotect, touch)| Mix { mmap, munmap, mprotect, touch })
        .prop_filter("something is drawn", |mix| mix.total() > 0);
    let areas = (1u32..6).prop_map(|n| Areas::try_new(n).unwrap());
    let all = (base(), areas, footprint(20), count(300), mix, share(), count(5000), share(), per_access());
    all.prop_map(
        |(base, areas, area, operations, mix, partial_share, touches, write_share, instructions_per_access)| {
            Spec::Churn(Churn {
                base,
                areas,
                area,
                operations,
                mix,
                partial_share,
                touches,
                write_share,
                instructions_per_access,
            })
        },
    )
}

/// Whether an observed count fits its figure; expected ones within six standard deviations of a binomial count.
fn fits(figure: Figure, unit: u64, observed: u64) -> bool {
    match figure {
        Figure::Exact(exact) => observed == exact,
        Figure::About(about) => {
            let (about, observed) = ((about / unit) as f64, (observed / unit) as f64);
            (observed - about).abs() <= 6.0 * (about.sqrt() + 1.0)
        }
    }
}

fn agrees(tally: &Tally, facts: &Facts, spec: &Spec) {
    let touches = if let Spec::Churn(churn) = spec { churn.touches.get() } else { 1 };
    assert!(fits(facts.accesses, touches, tally.accesses), "{tally:?} {facts:?}");
    match spec {
        Spec::Script(_) => assert_eq!(tally.instructions, facts.instructions.value()),
        _ => assert_eq!(tally.instructions, tally.accesses * u64::from(spec.instructions_per_access().get())),
    }
    assert!(fits(facts.munmaps, 1, tally.munmaps), "{tally:?} {facts:?}");
    assert!(fits(facts.mprotects, 1, tally.mprotects), "{tally:?} {facts:?}");
    assert_eq!(tally.forks, facts.forks);
    match spec {
        Spec::Script(_) => {
            assert_eq!((tally.execs, tally.calls), (facts.execs, facts.calls));
            // Workers live on, and a turn may fall on the process that runs already.
            assert!(tally.exits <= facts.forks && tally.switches <= facts.switches, "{tally:?} {facts:?}");
        }
        Spec::Residents(_) => {
            assert_eq!((tally.refused, tally.exits, tally.switches), (0, 0, facts.switches), "residents stay");
        }
        _ => assert_eq!((tally.refused, tally.exits, tally.switches), (0, facts.forks, facts.switches)),
    }
    match spec {
        Spec::Churn(churn) => {
            let touched = tally.accesses / touches;
            let before = tally.mmaps + tally.munmaps + tally.mprotects + touched;
            assert!(before >= u64::from(churn.areas.get()) + churn.operations.get(), "{tally:?} {facts:?}");
        }
        _ => assert!(fits(facts.mmaps, 1, tally.mmaps)),
    }
}

proptest! {
    #![proptest_config(memvirt_properties::cases(150))]

    #[test]
    fn steady_streams_are_legal_and_complete(spec in steady(), seed: u64) {
        prop_assume!(spec.check().is_ok());
        agrees(&replay(Generator::new(&spec, seed).unwrap()), &spec.facts(), &spec);
    }

    #[test]
    fn paging_streams_are_legal_and_complete(spec in paging(), seed: u64) {
        agrees(&replay(Generator::new(&spec, seed).unwrap()), &spec.facts(), &spec);
    }

    #[test]
    fn streams_of_residents_are_legal_and_complete(spec in residents(), seed: u64) {
        agrees(&replay(Generator::new(&spec, seed).unwrap()), &spec.facts(), &spec);
    }

    #[test]
    fn churn_streams_are_legal_and_complete(spec in churn(), seed: u64) {
        agrees(&replay(Generator::new(&spec, seed).unwrap()), &spec.facts(), &spec);
    }
}

#[test]
fn built_in_workloads_are_legal_and_hold_what_they_announce() {
    for builtin in Workload::builtin() {
        let workload = builtin.workload().unwrap();
        let tally = replay(workload.generator(1));
        agrees(&tally, &workload.facts(), workload.spec());
        assert_eq!(tally.refused > 0, builtin.name == "protection-fault", "{}: {tally:?}", builtin.name);
        assert!(
            (1_000_000..=5_000_000).contains(&tally.accesses)
                || (10_000..=500_000).contains(&(tally.stores + tally.munmaps + tally.mprotects))
                || (8_000..=500_000).contains(&(tally.accesses + tally.calls)),
            "{} is no run of about a second: {tally:?}",
            builtin.name,
        );
    }
}

#[test]
fn a_fork_stores_to_so_many_pages_of_each_side() {
    let workload = Workload::find("fork-and-exit").unwrap();
    let Spec::ForkAndExit(spec) = workload.spec() else { panic!("another kind") };
    let tally = replay(workload.generator(7));
    let (forks, pages) = (spec.forks.get(), spec.footprint.pages());
    assert_eq!(spec.child_pages(), 102, "5 % of 2048 pages");
    assert_eq!(tally.stores_of_first, pages + forks * spec.parent_pages());
    assert_eq!(tally.stores - tally.stores_of_first, forks * spec.child_pages());
}
