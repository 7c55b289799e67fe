//! The models that are built in: they are sound, they say what the crate's closed forms say, and those that claim to predict take
//! nothing from the run that they predict.
#![expect(clippy::unwrap_used, reason = "a test: a model that cannot be had is a failure")]
#![expect(clippy::cast_precision_loss, reason = "small numbers")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use memvirt_costmodel::lang::{Origin, Prior, ValueKind};
use memvirt_costmodel::mva::{Lock, Shootdown};
use memvirt_costmodel::usl::Usl;
use memvirt_costmodel::{Model, footprint};

fn close(a: f64, b: f64, share: f64) -> bool {
    (a - b).abs() <= share * b.abs().max(1e-9)
}

/// One output of a built-in model.
fn output(model: &str, output: &str, point: &[(&str, f64)]) -> f64 {
    let model = Model::find(model).unwrap();
    let at = model.outputs().position(|value| value.name == output).unwrap();
    model.at(point).unwrap_or_else(|error| panic!("{error}"))[at]
}

#[test]
fn every_file_of_the_folder_is_built_in_under_its_own_name() {
    let folder = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("models")).unwrap();
    let files = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let files: BTreeSet<_> = files.filter_map(|name| name.strip_suffix(".model").map(str::to_owned)).collect();
    let names: Vec<_> = Model::builtin().map(|builtin| builtin.name).collect();
    assert!(names.is_sorted());
    assert_eq!(names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>(), files);
    for builtin in Model::builtin() {
        let model = builtin.model().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(model.name(), builtin.name);
        let back = Model::parse("back", &model.text()).unwrap();
        assert_eq!(back.text(), model.text());
        assert!(model.latex().starts_with("% ") && !model.latex().contains("NaN"));
    }
}

#[test]
fn every_input_and_parameter_is_used() {
    for builtin in Model::builtin() {
        let model = builtin.model().unwrap();
        let formulas: String = model.values().iter().map(|value| value.formula.text() + " ").collect();
        let words: BTreeSet<&str> = formulas.split(|c: char| !(c.is_alphanumeric() || c == '_')).collect();
        let inputs = model.inputs().iter().map(|input| &input.name);
        let lets = model.values().iter().filter(|value| value.kind == ValueKind::Let).map(|value| &value.name);
        for name in inputs.chain(model.params().iter().map(|param| &param.name)).chain(lets) {
            assert!(words.contains(name.as_str()), "{}: {name} is used nowhere", builtin.name);
        }
    }
}

#[test]
fn models_of_traps_take_nothing_but_events_of_the_native_run() {
    let traps: Vec<_> = Model::builtin().filter(|builtin| builtin.name.starts_with("traps-")).collect();
    assert!(traps.len() >= 6);
    for builtin in traps {
        let model = builtin.model().unwrap();
        assert!(model.inputs().iter().all(|input| input.origin == Origin::Native), "{}", builtin.name);
        assert!(model.outputs().any(|value| value.name == "exits" && value.unit.unit.to_string() == "exits"));
        // Each coefficient has a prediction by mechanism, a citation, and freedom to be fitted unless it is a switch.
        for param in model.params() {
            assert!(!param.doc.is_empty() && (param.prior == Prior::Fixed || param.range.most > param.value));
        }
    }
}

#[test]
fn only_the_models_of_the_literature_take_counters_of_the_run_itself() {
    for builtin in Model::builtin() {
        assert_eq!(builtin.model().unwrap().is_identity(), builtin.name.starts_with("lit-"), "{}", builtin.name);
    }
}

#[test]
fn cold_walks_have_the_published_lengths() {
    let refs = |guest: (f64, f64), host: (f64, f64)| {
        let (guest_levels, guest_leaf) = guest;
        let (host_levels, host_leaf) = host;
        output(
            "walk-cold",
            "refs",
            &[
                ("guest_levels", guest_levels),
                ("guest_leaf", guest_leaf),
                ("host_levels", host_levels),
                ("host_leaf", host_leaf),
            ],
        )
    };
    let table = [[24.0, 19.0, 14.0], [19.0, 15.0, 11.0], [14.0, 11.0, 8.0]];
    for (guest, row) in [1.0, 2.0, 3.0].iter().zip(table) {
        for (host, expected) in [1.0, 2.0, 3.0].iter().zip(row) {
            assert!(close(refs((4.0, *guest), (4.0, *host)), expected, 1e-12));
        }
    }
    for (guest, host, expected) in
        [(5.0, 5.0, 35.0), (5.0, 4.0, 29.0), (4.0, 0.0, 4.0), (0.0, 4.0, 4.0), (4.0, 1.0, 9.0)]
    {
        assert!(close(refs((guest, 1.0), (host, 1.0)), expected, 1e-12), "{guest} {host}");
    }
}

/// Sums with no term and tables above the root once gave 0 and -1.
#[test]
fn inputs_that_do_not_go_together_are_refused() {
    type Case<'a> = (&'a str, &'a [(&'a str, f64)], &'a str);
    let impossible: [Case<'_>; 8] = [
        (
            "walk-cold",
            &[("guest_levels", 1.0), ("guest_leaf", 3.0), ("host_levels", 4.0), ("host_leaf", 1.0)],
            "walk-cold requires guest_levels == 0 or guest_leaf <= guest_levels, but guest_levels = 1, guest_leaf = 3: the level that \
             maps a page is one of the tables' levels",
        ),
        (
            "footprint-dense",
            &[("area", 1.0), ("leaf", 3.0), ("depth", 2.0), ("address_bits", 48.0)],
            "footprint-dense requires leaf <= depth, but leaf = 3, depth = 2: the level that maps a page is one of the tables' levels",
        ),
        (
            "footprint-dense",
            &[("area", 1025.0), ("leaf", 1.0), ("depth", 2.0), ("address_bits", 48.0)],
            "footprint-dense requires area <= 512^depth * 4096 [bytes], but area = 1025 MiB, depth = 2: tables of this depth map no more",
        ),
        (
            "footprint-sparse",
            &[("area", 8.0), ("touched", 9.0), ("depth", 4.0)],
            "footprint-sparse requires touched <= area, but touched = 9 pages, area = 8 pages: no more distinct pages can be touched than there are",
        ),
        (
            "footprint-nested",
            &[("touched", 2.0), ("host_leaf", 1.0), ("depth", 4.0), ("guest_memory", 1.0)],
            "footprint-nested requires touched <= guest_memory, but touched = 2 MiB, guest_memory = 1 MiB: a guest touches no more memory than \
             it has",
        ),
        (
            "footprint-nested",
            &[("touched", 524_289.0), ("host_leaf", 1.0), ("depth", 3.0), ("guest_memory", 600_000.0)],
            "footprint-nested requires touched <= 512^depth * 4096 [bytes], but touched = 524289 MiB, depth = 3: one tree of this depth \
             maps no more",
        ),
        (
            "footprint-dense",
            &[("area", 4097.0), ("leaf", 1.0), ("depth", 4.0), ("address_bits", 32.0)],
            "footprint-dense requires area <= 2^address_bits * 1 [byte], but area = 4097 MiB, address_bits = 32: addresses of so many \
             bits reach no further",
        ),
        (
            "textbook-5-14",
            &[("native_refs", 4.0), ("nested_refs", 3.0)],
            "textbook-5-14 requires nested_refs >= native_refs, but nested_refs = 3 references/misses, native_refs = 4 references/misses: \
             a walk in two dimensions reads what a walk in one does, and more",
        ),
    ];
    for (name, point, words) in impossible {
        assert_eq!(Model::find(name).unwrap().at(point).unwrap_err().to_string(), words);
    }
}

/// What `walk-warm` requires of walks: nobody saves the read of the leaf entry.
#[test]
fn a_walk_saves_no_more_reads_than_it_makes_but_for_the_last() {
    let model = Model::find("walk-warm").unwrap();
    let refused = |guest: f64, host: f64, skips: [f64; 3], host_skip: f64| {
        let point = [("guest_levels", guest), ("host_levels", host), ("frame_hits", 0.0), ("data_hits", 0.0)];
        let skips = [("skip1", skips[0]), ("skip2", skips[1]), ("skip3", skips[2]), ("host_skip", host_skip)];
        model.at(&[&point[..], &skips].concat()).err().map(|error| error.to_string())
    };
    for (levels, skips, name) in
        [(1.0, [0.5, 0.0, 0.0], "skip1"), (2.0, [0.1, 0.5, 0.0], "skip2"), (3.0, [0.1, 0.1, 0.5], "skip3")]
    {
        let said = refused(levels, 0.0, skips, 0.0).unwrap();
        let more = format!(
            "walk-warm requires {name} == 0 or guest_levels > {levels}, but {name} = 0.5, guest_levels = {levels}"
        );
        assert!(said.starts_with(&more), "{said}");
        assert_eq!(refused(levels + 1.0, 0.0, skips, 0.0), None);
    }
    assert!(
        refused(4.0, 4.0, [0.0; 3], 4.0)
            .unwrap()
            .contains("host_skip < host_levels, but host_levels = 4, host_skip = 4")
    );
    assert_eq!(refused(4.0, 4.0, [0.0; 3], 3.0), None);
    assert_eq!(refused(4.0, 0.0, [0.0; 3], 3.0), None);
}

/// A floor of one cycle outside the lock once took a hundredth off the speedup of one vCPU.
#[test]
fn vcpus_that_do_nothing_but_hold_the_lock_hold_it_always() {
    for vcpus in [1.0, 2.0, 256.0] {
        let point = [("vcpus", vcpus), ("think", 0.0), ("hold", 100.0), ("shootdowns", 0.0)];
        for (name, expected) in [("utilization", 1.0), ("speedup", 1.0), ("waiting", (vcpus - 1.0) * 100.0)] {
            assert!(close(output("scaling-lock", name, &point), expected, 1e-12), "{vcpus} {name}");
        }
        // Next to nothing outside the lock is next to the same.
        let point = [("vcpus", vcpus), ("think", 1e-9), ("hold", 100.0), ("shootdowns", 0.0)];
        assert!(close(output("scaling-lock", "speedup", &point), 1.0, 1e-9), "{vcpus}");
    }
    let half =
        Model::find("scaling-lock").unwrap().at(&[("vcpus", 1.5), ("think", 0.0), ("hold", 1.0), ("shootdowns", 0.0)]);
    assert!(half.unwrap_err().to_string().contains("vcpus = 1.5 lies outside the whole numbers 1..256"));
}

#[test]
fn a_warm_walk_without_hits_is_cold_and_with_all_hits_is_one_reference() {
    let names = ["skip1", "skip2", "skip3", "host_skip", "frame_hits", "data_hits"];
    let refs = |values: [f64; 6]| {
        let mut point: Vec<(&str, f64)> = names.into_iter().zip(values).collect();
        point.extend([("guest_levels", 4.0), ("host_levels", 4.0)]);
        output("walk-warm", "refs", &point)
    };
    assert!(close(refs([0.0; 6]), 24.0, 1e-12));
    assert!(close(refs([0.0, 0.0, 1.0, 0.0, 1.0, 1.0]), 1.0, 1e-12));
    assert!(close(refs([0.0, 0.0, 1.0, 3.0, 0.0, 0.0]), 3.0, 1e-12));
}

#[test]
fn a_demand_zero_page_costs_what_the_table_of_the_specification_says() {
    // Row 19 without the first use of the table's own alias: fault, store, retry.
    let common = [("faults", 1.0), ("invlpgs", 0.0), ("cr3_loads", 0.0)];
    let exits = |model: &str, own: &[(&str, f64)]| output(model, "exits", &[&common[..], own].concat());
    let write_protect = [
        ("upgrades", 0.0),
        ("leaf_stores", 1.0),
        ("upper_stores", 0.0),
        ("fills", 1.0),
        ("spared", 1.0),
        ("stray_stores", 0.0),
    ];
    assert!(close(exits("traps-write-protect", &write_protect), 3.0, 1e-12));
    let propagating = [&write_protect[..], &[("propagates", 1.0)]].concat();
    assert!(close(exits("traps-write-protect", &propagating), 2.0, 1e-12));
    assert!(close(exits("traps-vtlb", &[("stores", 1.0), ("epoch_fills", 1.0), ("epoch_upgrades", 0.0)]), 2.0, 1e-12));
    let lazy = [("root_upgrades", 0.0), ("leaf_stores", 1.0), ("upper_stores", 0.0), ("root_fills", 1.0)];
    assert!(close(exits("traps-lazy-fill", &lazy), 2.0, 1e-12));
    assert!(close(
        exits("traps-invlpg-only", &[("stores", 1.0), ("root_fills", 1.0), ("root_upgrades", 0.0)]),
        2.0,
        1e-12
    ));
    let kvm = [("drift_upgrades", 0.0), ("table_epochs", 1.0), ("drift_fills", 1.0), ("noticed_stores", 0.0)];
    assert!(close(exits("traps-kvm", &kvm), 3.0, 1e-12), "2 (+1 per table and epoch)");
    let nested = [("faults", 1.0), ("stores", 1.0), ("invlpgs", 1.0), ("cr3_loads", 1.0), ("frames", 1.0)];
    assert!(close(output("traps-nested", "exits", &nested), 1.0, 1e-12), "0 (+1 first backing)");
}

#[test]
fn the_lock_in_the_file_is_the_lock_of_the_analysis() {
    let shootdown = Shootdown { rate: 0.02, send: 1500.0, send_each: 500.0, receive: 2500.0, locked: false };
    for vcpus in [1usize, 2, 7, 64, 256] {
        let lock = Lock { shootdown, ..Lock::exclusive(20_000.0, 400.0) };
        let point = [("vcpus", vcpus as f64), ("think", 20_000.0), ("hold", 400.0), ("shootdowns", 0.02)];
        let expected = lock.expected(vcpus);
        assert!(close(output("scaling-lock", "throughput", &point), expected.throughput, 1e-9), "{vcpus}");
        assert!(close(output("scaling-lock", "utilization", &point), expected.utilization, 1e-9), "{vcpus}");
        assert!((output("scaling-lock", "waiting", &point) - expected.waiting).abs() < 1e-3, "{vcpus}");
    }
}

#[test]
fn the_law_in_the_file_is_the_law() {
    let law = Usl { one: 2.0, contention: 0.1, coherency: 0.01 };
    let point = [("vcpus", 12.0), ("one", 2.0), ("contention", 0.1), ("coherency", 0.01)];
    assert!(close(output("scaling-usl", "throughput", &point), law.throughput(12.0), 1e-12));
    assert!(close(output("scaling-usl", "peak", &point), law.peak(), 1e-12));
}

#[test]
fn footprints_in_the_files_are_those_of_the_closed_forms() {
    let dense = |area: f64, leaf: f64| {
        output("footprint-dense", "tables", &[("area", area), ("leaf", leaf), ("depth", 4.0), ("address_bits", 48.0)])
    };
    for mib in [1u64, 2, 3, 1024, 5000, 600_000] {
        let counted: u64 = (1..=4).map(|level| footprint::dense(&[(0, mib * 256)], level)).sum();
        assert!(close(dense(mib as f64, 1.0), counted as f64, 1e-12), "{mib}");
    }
    assert!(close(dense(1024.0, 2.0), 3.0, 1e-12));
    // The exercise: a linear table of a 48-bit space takes 2^36 entries of 8 bytes.
    let linear = [("area", 1.0), ("leaf", 1.0), ("depth", 4.0), ("address_bits", 48.0)];
    assert!(close(output("footprint-dense", "linear", &linear), 8.0 * 2f64.powi(36), 1e-12));
    for (area, touched) in
        [(1u64 << 20, 1000u64), (1 << 18, 1), (1 << 18, 262_144), (1 << 27, 50_000), (1 << 20, 0), (512, 512)]
    {
        let expected: f64 = (1..=4).map(|level| footprint::sparse(0, area, touched, level)).sum();
        let point = [("area", area as f64), ("touched", touched as f64), ("depth", 4.0)];
        // Logarithms of factorials of 134 million cancel to five digits or more.
        assert!(close(output("footprint-sparse", "tables", &point), expected, 1e-5), "{area} {touched}");
    }
}

#[test]
fn a_guest_of_1_gib_has_the_records_that_were_measured() {
    // 2.0 MiB of reverse map and 0.5 MiB of write tracking for 1 GiB.
    let point = [("processes", 1.0), ("tables_each", 0.0), ("direct", 0.0), ("guest_memory", 1024.0), ("aliases", 0.0)];
    let records = output("footprint-shadow", "records", &point);
    let expected = 8.0 * (262_144.0 + 512.0 + 1.0) + 4.0 * 513.0 + 2.0 * 262_144.0 + 32_768.0;
    assert!(close(records, expected, 1e-12), "{records}");
    // One shadow per process, one nested tree for all: more processes cost nested paging nothing.
    let nested = [("touched", 1024.0), ("host_leaf", 1.0), ("depth", 4.0), ("guest_memory", 1024.0)];
    assert!(close(output("footprint-nested", "tables", &nested), 512.0 + 3.0, 1e-12));
}

#[test]
fn on_the_line_both_regimes_cost_the_same() {
    let rates = [("base", 1.0), ("misses", 0.003)];
    let line = output("break-even", "line", &[&rates[..], &[("update_rate", 0.0)]].concat());
    let benefit = |rate: f64| output("break-even", "benefit", &[&rates[..], &[("update_rate", rate)]].concat());
    assert!(benefit(line).abs() < 1e-12 && benefit(2.0 * line) > 0.0 && benefit(line / 2.0) < 0.0);
}

#[test]
fn the_parts_of_run_time_add_up() {
    let point = [
        ("base", 1e6),
        ("walks", 1000.0),
        ("l2_hits", 5000.0),
        ("guest_refs", 4.0),
        ("host_refs", 20.0),
        ("exits", 10.0),
        ("waiting", 77.0),
    ];
    let expected = 1e6 + 5000.0 * 7.0 + 1000.0 * (4.0 * 14.0 + 20.0 * 4.0) + 10.0 * 4150.0 + 77.0;
    assert!(close(output("time-parts", "total", &point), expected, 1e-12));
}

#[test]
fn a_name_that_is_not_there_is_answered_with_those_that_are() {
    let error = Model::find("walk-hot").unwrap_err().to_string();
    assert!(error.contains("walk-cold") && error.contains("`walk-hot`"), "{error}");
    assert!(Model::resolve("no/such.model").unwrap_err().to_string().contains("cannot read model file no/such.model"));
    assert!(
        Model::resolve("/dev/zero").unwrap_err().to_string().contains("it is a device: copy"),
        "a file without end ends"
    );
}

#[test]
fn every_input_of_a_built_in_model_has_bounds_and_levels_are_whole() {
    for builtin in Model::builtin() {
        for input in builtin.model().unwrap().inputs() {
            let (name, range) = (&input.name, input.range);
            assert!(range.least.is_finite(), "{}: {name} has no lower bound", builtin.name);
            assert!(!range.contains(-1.0) && !range.contains(f64::NAN), "{}: {name}", builtin.name);
            let depth = ["levels", "leaf", "depth"].iter().any(|word| name.ends_with(word));
            assert!(!depth || range.whole && range.most <= 5.0, "{}: {name} within {range}", builtin.name);
        }
    }
}
