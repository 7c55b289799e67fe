//! Published measurements beside their predictions. `cargo test -p memvirt-tests --test published -- --nocapture` prints them.

use memvirt_lab::published::{Row, pvm};

fn print(rows: &[Row]) {
    println!(
        "{:7} {:20} {:>9} {:>9} {:>9} {:>6} {:>6} {:>7}  {:>7} {:>7} {:>7} {:>7} {:>7} {:>7} {:>7} {:>6}",
        "id",
        "what",
        "EPT us",
        "shadow",
        "predicted",
        "ratio",
        "pred.",
        "diff %",
        "entries",
        "CR3",
        "faults",
        "stores",
        "hidden",
        "trapped",
        "exits",
        "EPT"
    );
    for row in rows {
        let e = &row.events;
        println!(
            "{:7} {:20} {:9.2} {:9.2} {:9.2} {:6.2} {:6.2} {:7.1}  {:7.2} {:7.2} {:7.2} {:7.1} {:7.2} {:7.2} {:7.2} {:6.2}  {:?} {}",
            row.id,
            row.what,
            row.nested_us,
            row.shadow_us,
            row.predicted_us,
            row.ratio(),
            row.predicted_ratio(),
            row.difference_percent(),
            e.kernel_entries,
            e.cr3_loads,
            e.faults,
            e.table_stores,
            e.hidden_faults,
            e.table_writes,
            e.exits,
            e.exits_nested,
            row.check,
            if row.holds() { "holds" } else { "differs" }
        );
    }
}

#[test]
fn pvm_rows() {
    let rows = pvm().unwrap();
    print(&rows);
    let find = |id: &str| rows.iter().find(|row| row.id == id).unwrap();
    assert!(find("P1 off").holds(), "without isolation a system call costs the same everywhere");
    assert!((find("P1 on").events.cr3_loads - 2.0).abs() < 1e-9, "two CR3 loads a call");
    for row in &rows {
        assert!(row.holds(), "{row:?}: {:.1} %, allowed {:?}", row.difference_percent(), row.check);
    }
    // Fork and exec are low by the same price for each exit on which KVM's MMU works, though their mixes of events differ: what is
    // missing is the price of that work, which no input row gives, and it is not fitted.
    let (fork, exec) = (find("P7").missing_per_mmu_exit(), find("P8").missing_per_mmu_exit());
    println!("missing for each exit that the MMU works on: {fork:.0} cycles (fork), {exec:.0} cycles (exec)");
    assert!((fork / exec - 1.0).abs() < 0.10, "{fork} {exec}");
}
