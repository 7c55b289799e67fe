//! Plans: what is refused, the order of runs, going on after an interruption, the same bytes on any number of threads.

use std::collections::BTreeSet;
use std::fs;
use std::num::NonZeroUsize;

use memvirt_machine::RegimeKind;
use tempfile::TempDir;

use super::*;

const HEAD: &str = "name = \"t\"\ntitle = \"a title\"\nabout = \"a test\"\n[[grid]]\n";

fn plan(grid: &str) -> Plan {
    Plan::parse("t.toml", &format!("{HEAD}{grid}")).unwrap_or_else(|error| panic!("{error}"))
}

fn refused(grid: &str) -> String {
    Plan::parse("t.toml", &format!("{HEAD}{grid}")).unwrap_err().to_string()
}

/// Four runs that take milliseconds.
fn small() -> Plan {
    plan(
        "workload = [\"churn\", \"two-rates\"]\nset.instructions_per_access = 4\nscale = 0.002\nseed = 3\n\
         regime = [\"native\", \"nested\"]",
    )
}

fn carry_out(plan: &Plan, dir: &Path, version: &str, threads: usize) -> PlanDone {
    let threads = NonZeroUsize::new(threads);
    PlanRun { plan, size: Size::Full, dir, version, threads }.run(&|_| {}, &|_| {}).unwrap()
}

#[test]
fn every_plan_file_is_built_in_under_its_name_and_can_be_made() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("plans");
    let files: BTreeSet<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    let built_in: BTreeSet<_> = Plan::builtin().map(|builtin| format!("{}.toml", builtin.name)).collect();
    assert_eq!(files, built_in);
    for builtin in Plan::builtin() {
        let plan = builtin.plan().unwrap();
        assert_eq!(plan.name(), builtin.name);
        assert!(!plan.points(Size::Full).unwrap().is_empty());
    }
    let all = Plan::resolve("regimes".as_ref()).unwrap().points(Size::Quick).unwrap();
    let workloads: BTreeSet<_> = all.iter().filter_map(|point| point.workload.clone()).collect();
    assert_eq!(workloads.len(), memvirt_workload::Workload::builtin().len());
}

#[test]
fn what_is_wrong_is_named_with_its_line_and_what_is_accepted() {
    for (grid, says) in [
        ("wrkload = \"zipf\"", "t.toml:5: grid[0].wrkload: unknown axis; accepted: workload, trace, "),
        (
            "workload = [\n\"zipf\",\n\"zpf\"]",
            "t.toml:7: grid[0].workload: no workload is called `zpf`; the known ones",
        ),
        (
            "workload = \"zipf\"\nregime = \"nestd\"",
            "t.toml:6: grid[0].regime: unknown regime `nestd`; known: native, ",
        ),
        ("workload = \"zipf\"", "t.toml:4: grid[0].regime: missing"),
        ("regime = \"native\"", "t.toml:4: grid[0].workload: missing"),
        ("workload = \"zipf\"\nregime = []", "t.toml:6: grid[0].regime: an empty list"),
        ("workload = \"zipf\"\nregime = \"native\"\nkpti = 3", "t.toml:7: grid[0].kpti: `3`: expected true or false"),
        (
            "workload = \"zipf\"\nregime = \"native\"\nscale = 0",
            "t.toml:7: grid[0].scale: `0`: expected a number above 0",
        ),
        (
            "workload = \"zipf\"\nregime = \"native\"\nguest_page = \"1G\"",
            "grid[0].guest_page: `1G`: expected \"4K\" or \"2M\"",
        ),
        (
            "workload = \"zipf\"\nregime = \"native\"\nmemory = \"1KiB\"",
            "grid[0].memory: `1KiB`: expected 64MiB to 2TiB",
        ),
        (
            "workload = \"zipf\"\nregime = \"native\"\nmachine = \"pdp\"",
            "t.toml:7: grid[0].machine: unknown machine `pdp`; known: ",
        ),
        (
            "workload = \"zipf\"\nregime = \"native\"\nvcpus = 0",
            "t.toml:7: grid[0].vcpus: `0`: expected a number of vCPUs from 1",
        ),
        ("workload = \"zipf\"\nregime = \"native\"\nvcpus = 257", "t.toml:7: grid[0].vcpus: `257`: expected a number"),
        (
            "workload = \"zipf\"\nregime = \"native\"\nvcpus = [1, 2]\nmode = [\"counts\", \"cycles\"]",
            "t.toml:7: grid[0].vcpus: several vCPUs are simulated in mode \"counts\"",
        ),
        ("trace = \"a.mvt\"\nregime = \"native\"\nvcpus = 2", "t.toml:7: grid[0].vcpus: a recording runs on one vCPU"),
        (
            "workload = \"zipf\"\nregime = \"native\"\nsharing = \"thread\"",
            "t.toml:7: grid[0].sharing: `thread`: expected \"tenants\"",
        ),
        (
            "workload = \"zipf\"\nregime = \"native\"\nsteady = \"yes\"",
            "t.toml:7: grid[0].steady: `yes`: expected true, false, or \"declared\"",
        ),
        (
            "workload = \"zipf\"\nregime = \"native\"\nsteady = true\nwarm_up = 5",
            "t.toml:8: grid[0].warm_up: `steady` says itself how long it warms up",
        ),
        ("trace = \"a.mvt\"\nregime = \"native\"\nsteady = true", "grid[0].steady: for grids of workloads only"),
        (
            "workload = \"/etc/w.toml\"\nregime = \"native\"",
            "expected a name, or a path relative to where the plan is run",
        ),
        (
            "workload = \"zipf\"\ntrace = \"a.mvt\"\nregime = \"native\"",
            "t.toml:6: grid[0].trace: a grid has workloads or traces",
        ),
        ("trace = \"a.mvt\"\nregime = \"native\"\nscale = 2", "t.toml:7: grid[0].scale: for grids of workloads only"),
        (
            "workload = \"zipf\"\nregime = \"native\"\nset = { exponent = 11 }",
            "t.toml:7: grid[0].set.exponent: cannot set `exponent`",
        ),
        (
            "workload = \"zipf\"\nregime = \"native\"\nset.body.x = 1",
            "t.toml:7: grid[0].set.body.x: cannot set `body.x`",
        ),
        ("workload = \"zipf\"\nregime = \"native\"\nset = 3", "t.toml:7: grid[0].set: expected a table of fields"),
        ("workload = \"zipf\"\nregime = \"native\"\nseed = [[1]]", "t.toml:7: grid[0].seed: expected a text, a number"),
        ("workload = \"zipf\"\nregime = \"native\"\nquick = { sed = 1 }", "t.toml:7: grid[0].quick.sed: unknown axis"),
        ("workload =", "t.toml:5: "),
        (
            "workload = \"zipf\"\nregime = \"native\"\nseed = -1",
            "t.toml:7: grid[0].seed: `-1`: expected a whole number from 0",
        ),
        (
            "workload = \"zipf\"\nregime = \"native\"\nseed = 99999999999999999999",
            "t.toml:7: grid[0].seed: `99999999999999999999`: expected a whole number up to 9223372036854775807",
        ),
        (
            "workload = \"zipf\"\nregime = \"native\"\nscale = inf",
            "t.toml:7: grid[0].scale: `inf`: expected a number above 0 that is finite",
        ),
        (
            "workload = \"zipf\"\nregime = \"native\"\nset.exponent = nan",
            "t.toml:7: grid[0].set.exponent: cannot set `exponent`",
        ),
        (
            "workload = \"zipf\"\nregime = \"native\"\nscale = [\n1,\n1.0]",
            "t.toml:9: grid[0].scale: `1` is there already; leave it out here",
        ),
        (
            "workload = \"zipf\"\nregime = \"native\"\nkpti = [\"on\", true]",
            "t.toml:7: grid[0].kpti: `true` is there already",
        ),
        (
            "workload = \"zipf\"\nregime = \"native\"\nkpti = [\"on\", \"of\"]",
            "t.toml:7: grid[0].kpti: `of`: expected true or false (or \"on\" or \"off\")",
        ),
        (
            "workload = [\n\"zipf\",\n\"all\"]\nregime = \"native\"",
            "t.toml:7: grid[0].workload: `zipf` is there already",
        ),
        (
            "workload = \"zipf\"\nregime = \"native\"\nset.exponent = [1, 2, 1]",
            "t.toml:7: grid[0].set.exponent: `1` is there already",
        ),
        (
            "trace = [\"Cargo.toml\", \"no-such.mvt\"]\nregime = \"native\"",
            "t.toml:5: grid[0].trace: `no-such.mvt`: there is no such recording; a path is relative to",
        ),
    ] {
        let error = refused(grid);
        assert!(error.contains(says) && !error.contains('\n'), "{grid}\n  said: {error}\n  expected: {says}");
    }
    for (text, says) in [
        ("", "t.toml:1: name: missing"),
        ("name = \"T\"\n", "t.toml:1: name: expected 1 to 64 lower-case letters"),
        ("name = \"t\"\ntitle = \"t\"\nabout = \"a\"\n", "grid: missing"),
        ("name = \"t\"\ngrids = 1\n", "t.toml:2: grids: unknown field; accepted: name, title, about, [[grid]]"),
        ("name = \"t\"\ntitle = 1\n", "t.toml:2: title: expected a text"),
        ("name = \"t\"\ntitle = \"t\"\nabout = \"a\"\ngrid = 3\n", "t.toml:4: grid: expected tables"),
    ] {
        let error = Plan::parse("t.toml", text).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let seeds: Vec<_> = (0..400).map(|n| n.to_string()).collect();
    let seeds = seeds.join(",");
    let many = format!("workload = \"zipf\"\nregime = \"native\"\nseed = [{seeds}]\nwarm_up = [{seeds}]");
    assert!(refused(&many).contains("more than 100000 combinations"));
    let seeds: Vec<_> = (0..60_000).map(|n| n.to_string()).collect();
    let many = format!("workload = \"zipf\"\nregime = [\"native\", \"nested\"]\nseed = [{}]", seeds.join(","));
    assert!(refused(&many).contains("t.toml:7: grid[0].seed: more than 100000 combinations in a grid, 60000 values"));
    assert!(matches!(small().points(Size::Quick), Err(PlanError::NoQuick { .. })));
}

#[test]
fn the_last_axis_changes_fastest_and_what_grids_share_stands_once() {
    let two = plan(
        "regime = [\"nested\", \"native\"]\nseed = [1, 0]\nworkload = \"zipf\"\nquick = { seed = 7 }\n\
         [[grid]]\nworkload = \"zipf\"\nregime = \"native\"\nseed = [0, 5]",
    );
    let of = |size| -> Vec<_> { two.points(size).unwrap().iter().map(|point| (point.seed, point.regime)).collect() };
    let (native, nested) = (RegimeKind::Native, RegimeKind::NestedEpt);
    assert_eq!(of(Size::Full), [(1, nested), (1, native), (0, nested), (0, native), (5, native)]);
    assert_eq!(of(Size::Quick), [(7, nested), (7, native), (0, native), (5, native)]);
    let elsewhere = two.with_axis("machine", &["zen4"]).unwrap();
    assert!(elsewhere.points(Size::Full).unwrap().iter().all(|point| point.machine == "zen4"));
    assert!(two.with_axis("machine", &["pdp"]).is_err() && two.with_axis("machin", &["zen4"]).is_err());
}

#[test]
fn a_table_has_a_column_for_all_that_any_regime_counts() {
    let names: Vec<_> = RegimeKind::ALL.iter().map(|regime| format!("\"{regime}\"")).collect();
    let all = plan(&format!(
        "workload = \"fork-and-exit\"\nscale = 0.001\nset.footprint = \"64KiB\"\nmode = [\"counts\", \"cycles\"]\nregime = [{}]",
        names.join(", ")
    ));
    let dir = TempDir::new().unwrap();
    let PlanDone { table, .. } = carry_out(&all, dir.path(), "1", 2);
    assert_eq!(table.rows.len(), 2 * RegimeKind::ALL.len());
    let columns: BTreeSet<_> = table.columns.iter().collect();
    assert_eq!(columns.len(), table.columns.len(), "no column twice");
    for column in [
        "set.footprint",
        "switches.host_page",
        "switches.vcpus",
        "walk_caches.nested_tlb.hits",
        "nested_virt.l0_exits",
        "smp.end",
        "guest.flushes_sent",
        "guest.space_switches_kept",
    ] {
        assert!(table.column(column).is_some(), "{column}");
    }
    let filled = |column: &str, row: &Row| !table.cell(row, column).unwrap().is_empty();
    for row in &table.rows {
        let nested_virt = table.cell(row, "regime").unwrap().starts_with("nested-virt");
        let cycles = table.cell(row, "mode").unwrap() == "cycles";
        assert_eq!(filled("nested_virt.l0_exits", row), nested_virt);
        assert_eq!(filled("walk_caches.nested_tlb.hits", row), cycles);
        for column in ["accesses", "walks", "exits.total", "cycles.total", "guest.table_stores", "work.entries_set"] {
            assert!(table.number(row, column).is_some(), "{column}");
        }
    }
}

#[test]
fn the_same_bytes_on_one_and_on_two_threads() {
    let (one, two) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (first, second) = (carry_out(&small(), one.path(), "1", 1), carry_out(&small(), two.path(), "1", 2));
    let bytes = |done: &PlanDone| fs::read(&done.path).unwrap();
    assert_eq!(bytes(&first), bytes(&second));
    assert_eq!(Table::load(&first.path).unwrap(), first.table, "what is written is read back");
    let commands: Vec<_> = first.table.rows.iter().map(|row| row.cells[0].clone()).collect();
    let planned: Vec<_> = small().points(Size::Full).unwrap().iter().map(Point::command).collect();
    assert_eq!(commands, planned);
}

/// A journal as an interruption leaves it: so many whole rows, and then half a row.
fn interrupted(done: &PlanDone, rows: usize) -> String {
    let text = done.table.to_csv();
    let lines: Vec<_> = text.split_inclusive('\n').collect();
    let half = &lines[rows + 1];
    // Cut within the last cell: all cells are there, the last one is wrong.
    lines[..=rows].concat() + &half[..half.len() - 2]
}

#[test]
fn an_interrupted_plan_goes_on_and_drops_a_half_written_line() {
    let dir = TempDir::new().unwrap();
    let whole = carry_out(&small(), dir.path(), "1", 2);
    let (path, journal) = (whole.path.clone(), whole.path.with_extension("csv.part"));
    let expected = fs::read(&path).unwrap();
    assert!(!journal.exists());
    for rows in 0..4 {
        fs::remove_file(&path).unwrap();
        fs::write(&journal, interrupted(&whole, rows.min(3))).unwrap();
        let done = carry_out(&small(), dir.path(), "1", 2);
        assert_eq!((done.kept, done.ran), (rows, 4 - rows));
        assert_eq!(fs::read(&path).unwrap(), expected);
        assert!(!journal.exists());
    }
    let again = carry_out(&small(), dir.path(), "1", 1);
    assert_eq!((again.kept, again.ran), (4, 0));
    assert_eq!(fs::read(&path).unwrap(), expected);
}

#[test]
fn a_file_that_is_no_table_of_a_plan_is_left_alone() {
    let dir = TempDir::new().unwrap();
    let first = carry_out(&small(), dir.path(), "1", 2);
    for foreign in [&b"somebody else's data,1,2\n"[..], b"no line", &[0xff, 0xfe, 0x00]] {
        fs::write(&first.path, foreign).unwrap();
        let run =
            PlanRun { plan: &small(), size: Size::Full, dir: dir.path(), version: "1", threads: NonZeroUsize::new(2) };
        assert!(matches!(run.run(&|_| {}, &|_| {}), Err(PlanError::Foreign { .. })));
        assert_eq!(fs::read(&first.path).unwrap(), foreign);
    }
}

#[test]
fn rows_of_another_program_or_of_other_inputs_are_made_again() {
    let dir = TempDir::new().unwrap();
    let first = carry_out(&small(), dir.path(), "1", 2);
    assert_eq!(carry_out(&small(), dir.path(), "2", 2).ran, 4);
    assert_eq!(carry_out(&small(), dir.path(), "1", 2).ran, 4);
    // The same command, another workload file behind it.
    let text = fs::read_to_string(&first.path).unwrap();
    let column = first.table.column("inputs").unwrap();
    let digest = &first.table.rows[0].cells[column];
    fs::write(&first.path, text.replace(digest.as_str(), "0000000000000000")).unwrap();
    let same = first.table.rows.iter().filter(|row| row.cells[column] == *digest).count();
    assert!(same < 4, "runs of the other workload have other inputs");
    assert_eq!(carry_out(&small(), dir.path(), "1", 2).ran, same);
    // A plan that varies another field has other columns.
    let other = plan("workload = \"churn\"\nset.touches = 8\nscale = 0.002\nregime = \"native\"");
    assert_eq!(carry_out(&other, dir.path(), "1", 2).kept, 0);
}

#[test]
fn a_trace_that_is_none_stops_the_plan_by_name_and_keeps_what_was_done() {
    let both = plan(
        "workload = \"churn\"\nscale = 0.001\nregime = \"native\"\n[[grid]]\ntrace = \"Cargo.toml\"\nregime = \"native\"",
    );
    let dir = TempDir::new().unwrap();
    let run = PlanRun { plan: &both, size: Size::Full, dir: dir.path(), version: "1", threads: NonZeroUsize::new(1) };
    let error = run.run(&|_| {}, &|_| {}).unwrap_err().to_string();
    assert!(error.starts_with("memvirt run --regime native --trace Cargo.toml "), "{error}");
    let part = Table::load(&run.path().with_extension("csv.part")).unwrap();
    assert_eq!(part.rows.len(), 1);
}

#[test]
fn declared_is_steady_where_the_file_of_the_workload_says_so() {
    let plan = plan("workload = [\"fork\", \"gups\"]\nregime = \"native\"\nsteady = [\"declared\", false]");
    let points = plan.points(Size::Full).unwrap();
    // Of `fork` both say the same, and what two say stands once.
    let of: Vec<_> = points.iter().map(|point| (point.workload.clone().unwrap(), point.steady)).collect();
    assert_eq!(of, [("fork".to_owned(), false), ("gups".to_owned(), true), ("gups".to_owned(), false)]);
    assert!(points[1].command().ends_with(" --steady"), "{}", points[1].command());
    let warm = |point: &Point| point.experiment().unwrap().measure.warm_up_accesses;
    assert!(warm(&points[1]) > 1 << 20 && warm(&points[2]) == 0, "every page of 4 GiB is stored to first");
}

#[test]
fn several_vcpus_make_rows_of_the_same_columns_whose_parts_add_up() {
    let grid = "workload = \"churn\"\nscale = 0.004\nvcpus = [1, 3]\nsharing = [\"tenants\", \"threads\"]\ncheck = true\n\
                regime = [\"native\", \"shadow:kvm\", \"nested\"]";
    let dir = TempDir::new().unwrap();
    let table = carry_out(&plan(grid), dir.path(), "1", 2).table;
    // With one vCPU there is nothing to share.
    assert_eq!(table.rows.len(), 3 + 2 * 3);
    for row in &table.rows {
        let number = |column: &str| table.number(row, column).unwrap_or_else(|| panic!("{column}"));
        let vcpus = number("switches.vcpus");
        let parts: f64 =
            ["base", "translation", "exits", "waiting"].map(|part| number(&format!("cycles.{part}"))).iter().sum();
        assert!((parts - number("cycles.total")).abs() < 0.5, "{}", row.cells[0]);
        assert_eq!(table.cell(row, "stale.broken").unwrap(), "0");
        assert!(number("table_bytes.peak") >= number("table_bytes.total"));
        let several = vcpus > 1.5;
        assert_eq!(several, !table.cell(row, "smp.end").unwrap().is_empty());
        assert_eq!(several, row.cells[0].contains(" --vcpus 3"));
        if several {
            assert!(number("guest.user_accesses") > 2.9 * 3_000.0 && number("smp.end") * 3.0 >= number("cycles.total"));
        }
    }
    let sent: f64 = table.rows.iter().filter_map(|row| table.number(row, "smp.shootdowns")).sum();
    assert!(sent > 0.0, "threads of one process interrupt each other");
}

#[test]
fn the_expected_time_tells_seconds_from_minutes() {
    let seconds =
        |grid: &str| -> f64 { plan(grid).points(Size::Full).unwrap().iter().map(Point::expected_seconds).sum() };
    let all = Plan::resolve("regimes".as_ref()).unwrap().points(Size::Full).unwrap();
    let regimes: f64 = all.iter().map(Point::expected_seconds).sum();
    assert!((5.0..60.0).contains(&regimes), "15 s when it was measured: {regimes}");
    let one = seconds("workload = \"uniform\"\nregime = \"native\"");
    let longer = seconds("workload = \"uniform\"\nregime = \"native\"\nscale = 10");
    assert!(longer > 7.0 * one && longer < 10.0 * one);
    assert!(seconds("workload = \"uniform\"\nregime = \"native\"\nvcpus = 8") > 8.0 * one);
}
