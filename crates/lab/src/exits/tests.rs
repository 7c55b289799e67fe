//! The measured table against the specification's figures, and against what the vendors are known to differ in.

use super::events::all;
use super::*;

/// Every cell that differs: row, regime, exits.
fn differences(table: &ExitTable) -> Vec<(&'static str, &'static str, Option<u64>)> {
    let cells = table.rows.iter().flat_map(|row| row.cells.iter().map(move |cell| (row, cell)));
    cells.filter(|(_, cell)| cell.agrees == Some(false)).map(|(row, cell)| (row.row, cell.regime, cell.exits)).collect()
}

fn exits_of(table: &ExitTable, row: &str) -> Vec<u64> {
    let row = table.rows.iter().find(|found| found.row == row).unwrap();
    row.cells.iter().map(|cell| cell.exits.unwrap()).collect()
}

/// Cells that have a figure to compare with.
const CELLS_SVM: usize = 309;
/// VMX has the page-modification log besides.
const CELLS_VMX: usize = CELLS_SVM + 45;

#[test]
fn three_cells_differ_and_each_is_explained() {
    for (vendor, nested, cells) in [(Vendor::Vmx, "ept", CELLS_VMX), (Vendor::Svm, "npt", CELLS_SVM)] {
        let table = ExitTable::measure(vendor);
        let known = [("6^", "vtlb", Some(1)), ("18'", "invlpg-only", Some(2)), ("26'", nested, Some(5))];
        assert_eq!(differences(&table), known);
        assert_eq!((table.differences, table.unexplained), (3, 0));
        let compared = table.rows.iter().flat_map(|row| &row.cells).filter(|cell| cell.agrees.is_some()).count();
        assert_eq!(compared, cells);
    }
}

#[test]
fn intel_and_amd_differ_in_the_accesses_to_cr4_and_cr0_alone() {
    let (vmx, svm) = (ExitTable::measure(Vendor::Vmx), ExitTable::measure(Vendor::Svm));
    assert_eq!(exits_of(&vmx, "15"), [2, 2, 2, 2, 2, 2, 0, 0, 2, 2, 2]);
    assert_eq!(exits_of(&svm, "15"), [3; 10]);
    assert_eq!((exits_of(&vmx, "17")[6], exits_of(&svm, "17")[6]), (0, 1));
    for (intel, amd) in vmx.rows.iter().zip(&svm.rows).filter(|(row, _)| !["15", "17"].contains(&row.row)) {
        let both = |cell: &&ExitCell| cell.regime != "ept+pml";
        let exits = |row: &ExitRow| row.cells.iter().filter(both).map(|cell| cell.exits).collect::<Vec<_>>();
        assert_eq!(exits(intel), exits(amd), "row {}", intel.row);
    }
}

/// Where the table gives a range: what Linux was recorded to do (spec A18: 4 stores exit before a table is let go; one exit
/// more for the first store to a table), and Xen's prefetch of 31 following entries.
#[test]
fn ranges_hide_no_other_count() {
    let table = ExitTable::measure(Vendor::Svm);
    for (row, exits) in [("11'", 4), ("18", 3), ("19", 3), ("21", 9)] {
        assert_eq!(exits_of(&table, row)[3..5], [exits; 2], "row {row}");
    }
    assert_eq!(exits_of(&table, "8b")[1..3], [1, 0], "a zapped entry is filled, a propagated one is there");
    assert_eq!(exits_of(&table, "2")[8], 2, "Xen fills 32 at once");
}

/// Spec row 26: the page-modification log has 512 entries, and is read at each exit.
#[test]
fn with_the_modification_log_1024_first_stores_exit_twice() {
    let table = ExitTable::measure(Vendor::Vmx);
    let cell = |row, regime| table.rows.iter().find(|found| found.row == row).unwrap().cell(regime).unwrap().exits;
    assert_eq!((cell("26+", "ept"), cell("26+", "ept+pml")), (Some(1024), Some(2)));
    assert_eq!((cell("26", "ept"), cell("26", "ept+pml")), (Some(4), Some(0)));
    assert!(ExitTable::measure(Vendor::Svm).rows.iter().all(|row| row.cell("ept+pml").is_none()), "VMX alone has it");
}

#[test]
fn the_guest_sees_the_same_faults_under_every_regime() {
    for row in &ExitTable::measure(Vendor::Vmx).rows {
        let expected = match row.row {
            "5" | "19" => Some(1),
            "19+" => Some(7),
            _ => Some(0),
        };
        for cell in &row.cells {
            assert_eq!(cell.guest_faults, expected, "row {}, {}", row.row, cell.regime);
        }
    }
}

#[test]
fn a_figure_that_is_not_measured_is_marked_and_not_explained_away() {
    let mut event = *all().find(|event| event.row == "5").unwrap();
    let right = ExitCell::measure(&event, Column::Vtlb, Vendor::Vmx);
    assert_eq!((right.agrees, right.note), (Some(true), None));
    event.figures = all().find(|event| event.row == "1").unwrap().figures;
    let wrong = ExitCell::measure(&event, Column::Vtlb, Vendor::Vmx);
    assert_eq!((wrong.exits, wrong.agrees, wrong.note), (Some(1), Some(false), None));
}

#[test]
fn every_row_of_the_specification_has_an_event() {
    let number = |event: &Event| event.row.trim_end_matches(['+', '^', '\'', 'b']).parse::<u32>().unwrap();
    let mut rows: Vec<_> = all().map(number).collect();
    assert!(rows.is_sorted());
    rows.dedup();
    assert_eq!(rows, (1..=26).collect::<Vec<_>>());
    let mut names: Vec<_> = all().map(|event| event.row).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|two| two[0] != two[1]), "each row has a name of its own");
}

#[test]
fn csv_has_a_line_per_event_and_regime() {
    let table = ExitTable::measure(Vendor::Vmx);
    let csv = table.to_csv();
    assert_eq!(csv.lines().count(), 1 + 11 * table.rows.len());
    assert!(csv.contains("\nvmx,5,guest-visible #PF,1 read of an absent page,kvm-6.1,1,1,1,1,1,true,\n"), "{csv}");
}
