use super::*;

#[test]
fn every_published_figure_is_counted() {
    let table = NestedVirtTable::measure(&Arrangement::ALL, 2..=5).unwrap();
    assert_eq!(table.faults.len(), 12);
    assert_eq!(table.differences, 0);
    for row in &table.faults {
        assert_eq!(row.switches.values().sum::<u64>(), row.world_switches);
        assert_eq!(row.exits.values().sum::<u64>(), row.l0_exits);
        assert_eq!(row.steps.iter().filter(|step| step.to.is_some()).count() as u64, row.world_switches);
    }
}

#[test]
fn what_the_published_counts_presuppose_changes_them() {
    let table = NestedVirtTable::measure(&Arrangement::ALL, 4..=4).unwrap();
    let of = |variant: &str, arrangement: Arrangement| {
        let row =
            table.variants.iter().find(|row| row.variant == variant && row.arrangement == arrangement.name()).unwrap();
        (row.world_switches, row.l0_exits)
    };
    for arrangement in Arrangement::ALL {
        let one = Published::of(arrangement, 1);
        assert_eq!(of("lazy", arrangement), (one.world_switches, one.l0_exits), "{}", arrangement.name());
        let four = Published::of(arrangement, 4);
        assert_eq!(of("cold", arrangement), (four.world_switches + 8, four.l0_exits + 4), "{}", arrangement.name());
    }
    assert_eq!(of("invvpid", Arrangement::ShadowOnEpt), (24 + 6, 12 + 3));
    assert_eq!(of("invvpid", Arrangement::Pvm), (12, 0), "PVM's L1 executes the instruction itself");
}

#[test]
fn csv_has_a_line_for_each_row_and_as_many_cells_as_its_header() {
    let table = NestedVirtTable::measure(&[Arrangement::Pvm], 2..=3).unwrap();
    let csv = table.to_csv();
    assert_eq!(csv.lines().count(), 1 + 2 * (1 + VARIANTS.len() + Happening::ALL.len()));
    assert!(csv.starts_with("what,arrangement,levels,"));
    assert!(csv.contains("\nfault,pvm,2,8,0,8,0,true,14\n"), "{csv}");
    for line in csv.lines().filter(|line| !line.contains('"')) {
        assert_eq!(line.matches(',').count(), 8, "{line}");
    }
}
