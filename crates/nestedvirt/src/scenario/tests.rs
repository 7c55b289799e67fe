use super::*;
use crate::config::{Flushes, Linking, OnStore};
use crate::world::{Cause, StepKind, Who};

fn sums(spec: &Spec) -> (u64, u64) {
    let counts = one_fault(spec).unwrap().counts;
    (counts.world_switches(), counts.l0_exits())
}

/// Huang et al., SOSP 2023, section 2.2 and 3.3.2: the only place in this crate where their closed forms stand.
fn published(arrangement: Arrangement, n: u64) -> (u64, u64) {
    match arrangement {
        Arrangement::ShadowOnEpt => (4 * n + 8, 2 * n + 4),
        Arrangement::EptOnEpt => (2 * n + 6, n + 3),
        Arrangement::Pvm => (2 * n + 4, 0),
    }
}

#[test]
fn one_fault_costs_what_was_published() {
    for arrangement in Arrangement::ALL {
        for levels in 2..=5 {
            let counted = sums(&Spec::published(arrangement, levels));
            assert_eq!(counted, published(arrangement, levels.into()), "{} with {levels} levels", arrangement.name());
        }
    }
}

/// Where the published switches come from: the parts that the paper sums up to its totals.
#[test]
fn each_part_of_the_sum_has_its_cause() {
    for levels in 2..=5u8 {
        let n = u64::from(levels);
        let shadow = one_fault(&Spec::published(Arrangement::ShadowOnEpt, levels)).unwrap().counts;
        // The fault itself, n protected stores and the fault on the missing shadow: each is reflected by L0, each ends in VMRESUME.
        assert_eq!(shadow.l0_exits_for(Cause::PageFault), n + 2);
        assert_eq!(shadow.l0_exits_for(Cause::VmEntry), n + 2);
        let merged = one_fault(&Spec::published(Arrangement::EptOnEpt, levels)).unwrap().counts;
        assert_eq!(merged.l0_exits_for(Cause::PageFault), 0, "L2 handles its own page faults");
        assert_eq!(merged.l0_exits_for(Cause::EptViolation), 2);
        assert_eq!(merged.l0_exits_for(Cause::ProtectedStore), n);
        assert_eq!(merged.l0_exits_for(Cause::VmEntry), 1);
        let pvm = one_fault(&Spec::published(Arrangement::Pvm, levels)).unwrap().counts;
        assert_eq!((pvm.switches(Who::L2, Who::L1), pvm.switches(Who::L1, Who::L2)), (n + 2, n + 2));
    }
}

#[test]
fn steps_tell_what_the_sums_count() {
    for arrangement in Arrangement::ALL {
        let fault = one_fault(&Spec::published(arrangement, 4)).unwrap();
        let mut running = Who::L2;
        let mut switches = 0;
        for step in &fault.steps {
            assert_eq!(step.who, running, "{step:?}");
            if let StepKind::Switch { to, .. } = step.kind {
                switches += 1;
                running = to;
            }
        }
        assert_eq!((switches, running), (fault.counts.world_switches(), Who::L2));
    }
}

/// A table that was just linked is not yet in use, so KVM does not follow it: of the n stores only the root's traps.
#[test]
fn followed_on_use_only_the_first_store_traps() {
    for levels in 2..=5 {
        let lazy = Config { linking: Linking::Lazy, ..Config::PUBLISHED };
        let counted = Arrangement::ALL.map(|a| sums(&Spec { config: lazy, ..Spec::published(a, levels) }));
        assert_eq!(
            counted,
            [
                published(Arrangement::ShadowOnEpt, 1),
                published(Arrangement::EptOnEpt, 1),
                published(Arrangement::Pvm, 1)
            ]
        );
    }
}

/// The leaf is filled in with the trapped store: the fault on the missing entry does not come.
#[test]
fn propagating_the_leaf_saves_the_second_phase() {
    for arrangement in Arrangement::ALL {
        let config = Config { on_store: OnStore::Propagate, ..Config::PUBLISHED };
        let (switches, exits) = published(arrangement, 4);
        let saved = match arrangement {
            Arrangement::ShadowOnEpt => (4, 2),
            Arrangement::EptOnEpt => (2, 1),
            Arrangement::Pvm => (2, 0),
        };
        let counted = sums(&Spec { config, ..Spec::published(arrangement, 4) });
        assert_eq!(counted, (switches - saved.0, exits - saved.1), "{}", arrangement.name());
    }
}

/// L1 protects n - 1 tables that the kernel could store to through its direct map: with a VPID it flushes for each.
#[test]
fn invvpid_is_an_exit_more_for_each_new_table() {
    let config = Config { flushes: Flushes::Instruction, ..Config::PUBLISHED };
    for levels in 2..=5u8 {
        let new = u64::from(levels) - 1;
        let (switches, exits) = published(Arrangement::ShadowOnEpt, levels.into());
        let spec = |arrangement| Spec { config, ..Spec::published(arrangement, levels) };
        let counted = one_fault(&spec(Arrangement::ShadowOnEpt)).unwrap().counts;
        assert_eq!((counted.world_switches(), counted.l0_exits()), (switches + 2 * new, exits + new));
        assert_eq!(counted.l0_exits_for(Cause::Invalidate), new);
        for other in [Arrangement::EptOnEpt, Arrangement::Pvm] {
            assert_eq!(sums(&spec(other)), published(other, levels.into()), "{}", other.name());
        }
    }
}

/// L0 has not given L1 the frame for the data, nor those that become tables: each is one exit of whoever touches it first.
#[test]
fn a_cold_ept01_costs_an_exit_for_each_frame_that_l1_takes() {
    for arrangement in Arrangement::ALL {
        let cold = Spec { ept01: Nested01State::Cold, ..Spec::published(arrangement, 4) };
        let (switches, exits) = published(arrangement, 4);
        // The data's frame, and n - 1 tables of SPT12 or EPT12.
        let frames = 4;
        let counts = one_fault(&cold).unwrap().counts;
        assert_eq!(
            (counts.world_switches(), counts.l0_exits()),
            (switches + 2 * frames, exits + frames),
            "{}",
            arrangement.name()
        );
    }
}

#[test]
fn a_cold_walk_is_two_dimensional_whoever_owns_the_tables() {
    for levels in 2..=5u8 {
        let (n, four) = (u64::from(levels), 4);
        let walk = |arrangement| one_fault(&Spec::published(arrangement, levels)).unwrap().walk;
        assert_eq!(walk(Arrangement::EptOnEpt).total(), (n + 1) * (n + 1) - 1, "L2's tables under EPT02, as deep");
        assert_eq!(walk(Arrangement::EptOnEpt).guest, n);
        for shadow in [Arrangement::ShadowOnEpt, Arrangement::Pvm] {
            assert_eq!(walk(shadow).total(), (n + 1) * (four + 1) - 1, "SPT12 under EPT01");
            assert_eq!(walk(shadow).shadow, n);
        }
    }
    assert_eq!(Arrangement::ALL.map(|a| one_fault(&Spec::published(a, 4)).unwrap().walk.total()), [24, 24, 24]);
}

/// World switches and L0 exits of the other events with 4 levels. A round from L2 to L1 and back is 4 and 2 through L0, 2 and 0
/// by PVM's switcher; one to L0 and back is 2 and 1.
#[test]
fn other_events_are_multiplied_too() {
    let rounds = |through_l0: u64| (4 * through_l0, 2 * through_l0);
    let expected = [
        // One entry to fill: fault, one protected store, the fill. EPT-on-EPT: one store to EPT12.
        (Happening::NeighbourFault, [rounds(3), (2 + 2 + 2 + 2, 4), (6, 0)]),
        (Happening::Cr3Load, [rounds(1), (0, 0), (2, 0)]),
        (Happening::Invlpg, [rounds(1), (0, 0), (2, 0)]),
        (Happening::Hypercall, [rounds(1), rounds(1), (2, 0)]),
        // 64 protected stores and the CR3 load; with EPT, L2's tables are its own.
        (Happening::Fork64, [rounds(65), (0, 0), (130, 0)]),
        // The interrupt that lets L1 run and the way back, then the touch. EPT-on-EPT: the store that clears the leaf and
        // INVEPT, and for the touch a violation, the store that sets the leaf, VMRESUME, the fill of EPT02. PVM: the
        // interrupt goes through L0 (L2, L0, L1), the way back does not.
        (Happening::L1Swap, [rounds(2), (4 + 2 + 2 + 2 + 2 + 2 + 2, 8), (3 + 2, 1)]),
        // The interrupt and the violation are L0's own affair.
        (Happening::L0Swap, [(4, 2), (4, 2), (4, 2)]),
    ];
    for (what, figures) in expected {
        let counted = Arrangement::ALL.map(|arrangement| {
            let counts = happening(&Spec::published(arrangement, 4), what).unwrap();
            (counts.world_switches(), counts.l0_exits())
        });
        assert_eq!(counted, figures, "{}", what.key());
    }
}

/// With a VPID for L2 each flush that L1 does for it is an INVVPID, which exits.
#[test]
fn flushes_by_instruction_exit_once_more() {
    let spec = |arrangement| Spec { config: Config::KVM, ..Spec::published(arrangement, 4) };
    for what in [Happening::Cr3Load, Happening::Invlpg] {
        let counted = Arrangement::ALL.map(|arrangement| {
            let counts = happening(&spec(arrangement), what).unwrap();
            (counts.world_switches(), counts.l0_exits())
        });
        assert_eq!(counted, [(6, 3), (0, 0), (2, 0)], "{}", what.key());
    }
}
