//! Workload files: the built-in ones, the ones of users, and what is said about bad ones.

#![expect(clippy::unwrap_used, reason = "test helpers may stop the test")]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use memvirt_addr::PageSize;
use memvirt_workload::{Figure, GuestSwitches, Invlpg, Like, Spec, Workload, WorkloadError};
use proptest::prelude::*;

const HEAD: &str = "name = \"mine\"\ntitle = \"Mine\"\nabout = \"A test.\"\nsource = \"estimate\"\n";

/// A file whose lines 1 to 4 are the head and whose line 5 opens the generator's table.
fn file(fields: &str) -> String {
    format!("{HEAD}[generator]\n{fields}")
}

fn error(text: &str) -> String {
    Workload::parse("mine.toml", text).unwrap_err().to_string()
}

#[test]
fn every_model_file_is_built_in_under_its_own_name() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let on_disk: BTreeSet<String> =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let built_in: BTreeSet<String> = Workload::builtin().map(|builtin| format!("{}.toml", builtin.name)).collect();
    assert_eq!(on_disk, built_in);
    for builtin in Workload::builtin() {
        let workload = builtin.workload().unwrap();
        assert_eq!(workload.name(), builtin.name);
        assert_eq!(workload, Workload::load(folder.join(format!("{}.toml", builtin.name))).unwrap());
        assert_eq!(fs::read_to_string(folder.join(format!("{}.toml", builtin.name))).unwrap(), builtin.text);
    }
    let kinds: BTreeSet<&str> = Workload::builtin().map(|b| b.workload().unwrap().spec().kind()).collect();
    assert_eq!(kinds, Spec::KINDS.into_iter().collect(), "some kind has no built-in workload");
}

#[test]
fn guest_switches_are_carried_through() {
    let text = file("kind = 'uniform'\nfootprint = '1MiB'\naccesses = 1\nwrite_share = 1\n")
        + "[guest]\nkpti = true\npcid = false\nguest_page = '2M'\ndirect_map_page = '1G'\ntick_instructions = 1_000_000\n\
           like = 'linux'\nfault_around_pages = 8\ninvlpg = 'forgotten'\ncollapse_scan_pages = 512\naging_pages = 7\n\
           interrupt_instructions = 2_000";
    let expected = GuestSwitches {
        kpti: Some(true),
        pcid: Some(false),
        guest_page: Some(PageSize::Size2M),
        direct_map_page: Some(PageSize::Size1G),
        tick_instructions: Some(1_000_000),
        like: Some(Like::Linux),
        fault_around_pages: Some(8),
        invlpg: Some(Invlpg::Forgotten),
        collapse_scan_pages: Some(512),
        aging_pages: Some(7),
        interrupt_instructions: Some(2_000),
    };
    assert_eq!(Workload::parse("mine.toml", &text).unwrap().guest(), expected);
    let none = Workload::parse("mine.toml", text.split_once("[guest]").unwrap().0).unwrap().guest();
    assert_eq!(none, GuestSwitches::default());
}

#[test]
fn a_workload_serializes_to_what_its_file_holds() {
    for builtin in Workload::builtin() {
        let workload = builtin.workload().unwrap();
        let text = toml::to_string(&workload).unwrap();
        assert_eq!(Workload::parse("again.toml", &text).unwrap(), workload, "{text}");
        let json = serde_json::to_value(&workload).unwrap();
        assert_eq!(json["generator"]["kind"], workload.spec().kind());
    }
}

/// A valid file of ten lines; `line` is the last.
fn uniform(line: &str) -> String {
    file(&format!("kind = 'uniform'\nfootprint = '1MiB'\naccesses = 10\nwrite_share = 0.5\n{line}\n"))
}

/// A valid churn file; the mix is on line 10.
fn churn(mix: &str, line: &str) -> String {
    let sizes = "areas = 3\narea = '4KiB'\noperations = 1";
    let rest = "partial_share = 0\ntouches = 1\nwrite_share = 1";
    file(&format!("kind = 'churn'\n{sizes}\nmix = {{ {mix} }}\n{rest}\n{line}\n"))
}

const KINDS: &str = r#""sequential", "uniform", "zipf", "pointer-chase", "touch-and-free", "fork-and-exit", "churn", "residents", "script""#;
const SIZE: &str = r#"expected a size in whole 4 KiB pages, from "4KiB" to "64TiB", such as "64MiB""#;
const COUNT: &str = "expected an integer from 1 to 1_000_000_000_000";
const SHARE: &str = "expected a share from 0.0 to 1.0";

fn refused(cases: &[(String, String)]) {
    for (text, expected) in cases {
        assert_eq!(&error(text), &format!("mine.toml:{expected}"), "{text}");
    }
}

#[test]
fn the_templates_of_these_tests_are_valid() {
    Workload::parse("mine.toml", &uniform("")).unwrap();
    Workload::parse("mine.toml", &churn("mmap = 1, munmap = 1, mprotect = 1, touch = 1", "")).unwrap();
}

#[test]
fn broken_documents_are_refused_with_their_line() {
    refused(&[
        (String::new(), "1: missing field `name`".into()),
        ("x".into(), "1: key with no value, expected `=`".into()),
        ("name = 'a'\nname = 'b'".into(), "2: duplicate key".into()),
        (HEAD.into(), "1: missing field `generator`".into()),
        (format!("{HEAD}generator = 5"), "5: generator: expected a table, opened by a line `[generator]`".into()),
        (format!("{HEAD}[generator]"), format!("5: generator: missing field `kind`, expected one of {KINDS}")),
        (file("kind = 'unifrom'"), format!("6: generator.kind: unknown kind \"unifrom\", expected one of {KINDS}")),
        (file("kind = 7"), format!("6: generator.kind: expected a string, one of {KINDS}")),
        (file("kind = 'uniform'"), "5: generator: missing field `footprint`".into()),
        (
            uniform("[extra]"),
            "10: extra: unknown field `extra`, expected one of `name`, `title`, `about`, `source`, `generator`, `measure`, `guest`".into(),
        ),
        (
            uniform("exponent = 1"),
            "10: generator.exponent: unknown field `exponent`, expected one of `base`, `footprint`, `accesses`, \
             `write_share`, `instructions_per_access`".into(),
        ),
    ]);
    assert!(error(&format!("a = {}", "[".repeat(100_000))).starts_with("mine.toml:1: "), "deep nesting");
}

#[test]
fn texts_must_fit_where_they_are_shown() {
    let text = "expected a text of 1 to 2000 characters without control characters other than line ends";
    let (wide, long) = ("w".repeat(81), "l".repeat(2001));
    refused(&[
        (
            uniform("").replace("\"mine\"", "\"Mine!\""),
            "1: name: invalid value: string \"Mine!\", expected a name of 1 to 64 lower-case letters, digits and `-`"
                .into(),
        ),
        (
            uniform("").replace("Mine", &wide),
            format!("2: title: invalid value: string \"{wide}\", expected one line of 1 to 80 characters"),
        ),
        (uniform("").replace("A test.", &long), format!("3: about: invalid value: string \"{long}\", {text}")),
        (uniform("").replace("estimate", " "), format!("4: source: invalid value: string \" \", {text}")),
    ]);
}

#[test]
fn values_out_of_bounds_are_refused_with_the_bounds() {
    let mut cases = Vec::new();
    for (found, shown) in [
        ("'0B'", "value: string \"0B\""),
        ("'5KiB'", "value: string \"5KiB\""),
        ("'65TiB'", "value: string \"65TiB\""),
        ("'1Mi'", "value: string \"1Mi\""),
        ("1048576", "value: integer `1048576`"),
        ("[1]", "type: sequence"),
    ] {
        cases.push((uniform("").replace("'1MiB'", found), format!("7: generator.footprint: invalid {shown}, {SIZE}")));
    }
    for (found, shown) in [
        ("0", "value: integer `0`"),
        ("-1", "value: integer `-1`"),
        ("1_000_000_000_001", "value: integer `1000000000001`"),
        ("99999999999999999999999", "value: integer `99999999999999999999999`"),
        ("1.5", "value: floating point `1.5`"),
        ("true", "type: boolean `true`"),
        ("1979-05-27", "type: table or date"),
    ] {
        let text = uniform("").replace("accesses = 10", &format!("accesses = {found}"));
        cases.push((text, format!("8: generator.accesses: invalid {shown}, {COUNT}")));
    }
    for (found, shown) in [
        ("1.5", "floating point `1.5`"),
        ("-0.1", "floating point `-0.1`"),
        ("nan", "floating point `NaN`"),
        ("2", "integer `2`"),
        ("'half'", "string \"half\""),
    ] {
        let text = uniform("").replace("0.5", found);
        cases.push((text, format!("9: generator.write_share: invalid value: {shown}, {SHARE}")));
    }
    for found in ["0", "0.0", "-1.5", "nan", "inf", "10.1"] {
        let zipf = uniform(&format!("exponent = {found}")).replace("'uniform'", "'zipf'");
        let message = error(&zipf);
        assert!(message.starts_with("mine.toml:10: generator.exponent: invalid value: "), "{message}");
        assert!(message.ends_with(", expected a number above 0.0 and up to 10.0"), "{message}");
    }
    cases.push((
        uniform("instructions_per_access = 0"),
        "10: generator.instructions_per_access: invalid value: integer `0`, expected an integer from 1 to 1_000_000"
            .into(),
    ));
    cases.push((
        uniform("base = 5"),
        "10: generator.base: invalid value: integer `5`, expected an integer address, a multiple of 4096 from 0x1_0000 to \
         0x7fff_ffff_e000".into(),
    ));
    refused(&cases);
}

#[test]
fn contradictions_between_fields_are_refused_with_a_mend() {
    let kind = |kind: &str, line: &str| uniform(line).replace("'uniform'", &format!("'{kind}'"));
    let fork = "kind = 'fork-and-exit'\nfootprint = '2TiB'\nforks = 1\nchild_write_share = 0\nparent_write_share = 0";
    let zeros = "mmap = 0, munmap = 0, mprotect = 0, touch = 0";
    let ones = "mmap = 1, munmap = 1, mprotect = 1, touch = 1";
    refused(&[
        (
            uniform("base = 0x7fff_ffff_e000"),
            "7: generator.footprint: 1048576 bytes from base 0x7fffffffe000 pass the end of user space; at most 4096 bytes, \
             or a lower base".into(),
        ),
        (
            kind("sequential", "stride = '2MiB'"),
            "10: generator.stride: 2MiB passes over the whole footprint of 1MiB; at most the footprint".into(),
        ),
        (
            kind("zipf", "exponent = 1").replace("1MiB", "1TiB"),
            "7: generator.footprint: 268435456 pages (1TiB) are too many; at most 16777216 (64GiB)".into(),
        ),
        (
            kind("pointer-chase", "node = '24B'"),
            "10: generator.node: 24B does not divide the footprint of 1MiB into two nodes or more; a smaller power of two does"
                .into(),
        ),
        (
            kind("pointer-chase", "node = '8B'").replace("1MiB", "1GiB"),
            "7: generator.footprint: 134217728 nodes are too many; at most 67108864".into(),
        ),
        (
            file("kind = 'touch-and-free'\nfootprint = '1GiB'\niterations = 1_000_000_000\nwrite_share = 1"),
            "8: generator.iterations: the run would make more than 1000000000000 accesses; fewer iterations or a smaller \
             footprint".into(),
        ),
        (file(fork), "7: generator.footprint: 536870912 pages (2TiB) are too many; at most 268435456 (1TiB)".into()),
        (
            file(&fork.replace("2TiB", "4KiB").replace("forks = 1", "forks = 4294967296")),
            "8: generator.forks: 4294967296 forks are too many; at most 4294967295".into(),
        ),
        (churn(zeros, ""), "10: generator.mix: nothing is ever drawn; give some operation a weight above 0".into()),
        (churn("mmap = 1, munmap = 1, mprotect = 1", ""), "10: generator.mix: missing field `touch`".into()),
        (
            churn(&ones.replace("touch = 1", "touch = -4"), ""),
            "10: generator.mix.touch: invalid value: integer `-4`, expected an integer from 0 to 1_000_000".into(),
        ),
        (
            churn(ones, "").replace("4KiB", "1TiB"),
            "7: generator.areas: 805306368 pages in all areas (3TiB) are too many; at most 67108864 (256GiB)".into(),
        ),
    ]);
}

#[test]
fn guest_switches_are_checked() {
    refused(&[
        (
            uniform("[guest]\nguest_page = '1G'"),
            "11: guest.guest_page: invalid value: string \"1G\", expected \"4K\" or \"2M\"".into(),
        ),
        (
            uniform("[guest]\ndirect_map_page = '4k'"),
            "11: guest.direct_map_page: invalid value: string \"4k\", expected \"4K\", \"2M\" or \"1G\"".into(),
        ),
        (
            uniform("[guest]\nfault_around_pages = 12"),
            "11: guest.fault_around_pages: invalid value: integer `12`, expected a power of two from 1 to 512".into(),
        ),
        (
            uniform("[guest]\naging_pages = -1"),
            "11: guest.aging_pages: invalid value: integer `-1`, expected a number of pages from 0 to 1_000_000".into(),
        ),
        (uniform("[guest]\nkpti = 1"), "11: guest.kpti: invalid type: integer `1`, expected a boolean".into()),
        (
            uniform("[guest]\ntick = 1"),
            "11: guest.tick: unknown field `tick`, expected one of `kpti`, `pcid`, `guest_page`, `direct_map_page`, \
             `tick_instructions`, `like`, `fault_around_pages`, `invlpg`, `collapse_scan_pages`, `aging_pages`, \
             `interrupt_instructions`".into(),
        ),
        (
            uniform("[guest]\ntick_instructions = 10"),
            "11: guest.tick_instructions: invalid value: integer `10`, expected 0 (no ticks) or an integer from 1_000 to \
             1_000_000_000_000".into(),
        ),
        (uniform("[guest]\nkpti = true\nkpti = false"), "12: duplicate key".into()),
    ]);
}

#[test]
fn unknown_names_are_answered_with_the_nearest() {
    let WorkloadError::Unknown { name, known } = Workload::find("pointer-chaise").unwrap_err() else { panic!() };
    assert_eq!((name.as_str(), known[0], known.len()), ("pointer-chaise", "pointer-chase", Workload::builtin().len()));
    let message = Workload::find("zip").unwrap_err().to_string();
    assert!(message.starts_with("no workload is called `zip`; the known ones, nearest first: zipf, "), "{message}");
}

#[test]
fn arguments_are_names_or_paths() {
    assert_eq!(Workload::resolve(OsStr::new("zipf")).unwrap().name(), "zipf");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.toml");
    fs::write(&path, file("kind = 'uniform'\nfootprint = '1MiB'\naccesses = 1\nwrite_share = 1")).unwrap();
    assert_eq!(Workload::resolve(path.as_os_str()).unwrap().name(), "mine");
    for missing in ["./zipf", "missing.toml", "missing/zipf"] {
        let error = Workload::resolve(OsStr::new(missing)).unwrap_err();
        assert!(matches!(error, WorkloadError::Read { .. }), "{missing}: {error}");
        assert_eq!(error.to_string(), format!("cannot read workload file {missing}"));
    }
}

#[test]
fn files_that_are_no_workloads_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |bytes: &[u8]| {
        let path = folder.path().join("it.toml");
        fs::write(&path, bytes).unwrap();
        Workload::load(&path).unwrap_err().to_string().replace(&path.display().to_string(), "it.toml")
    };
    assert_eq!(refused(b"\x7fELF\xff\xfe"), "it.toml is not a workload file: it is no UTF-8 text");
    assert_eq!(refused(&vec![b' '; (1 << 20) + 1]), "it.toml is not a workload file: it is larger than 1 MiB");
    assert_eq!(refused(b""), "it.toml:1: missing field `name`");
    assert!(Workload::load(folder.path()).is_err(), "a folder is no file");
}

#[test]
fn scaling_changes_the_length_only() {
    for builtin in Workload::builtin() {
        let whole = builtin.workload().unwrap();
        let tenth = whole.clone().scaled(0.1).unwrap();
        let ratio = tenth.facts().accesses.value() as f64 / whole.facts().accesses.value() as f64;
        // A script's preparations stay, and its iterations may be few.
        let expected = if whole.spec().kind() == "script" { 0.02..1.01 } else { 0.09..0.2 };
        assert!(expected.contains(&ratio), "{}: {ratio}", builtin.name);
        assert_eq!(tenth.facts().footprint_bytes, whole.facts().footprint_bytes);
        assert_eq!(whole.clone().scaled(1.0).unwrap(), whole);
    }
    let gups = Workload::find("gups").unwrap();
    assert_eq!(gups.clone().scaled(1e-12).unwrap().facts().accesses, Figure::Exact(1));
    for factor in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let message = gups.clone().scaled(factor).unwrap_err().to_string();
        assert_eq!(message, format!("cannot scale workload `gups` by {factor}: expected a factor above 0"));
    }
    let message = gups.scaled(1e9).unwrap_err().to_string();
    assert_eq!(message, "cannot scale workload `gups` by 1000000000: the run becomes too long; at most 1000000");
}

proptest! {
    #![proptest_config(memvirt_properties::cases(256))]

    #[test]
    fn no_text_makes_the_parser_panic(text: String) {
        let _ = Workload::parse("any.toml", &text);
    }

    /// Built-in files with some bytes replaced: deeper than arbitrary text ever gets.
    #[test]
    fn no_damage_makes_the_parser_panic(which in 0usize..9, cuts in proptest::collection::vec((0usize..2000, "[\\PC\n]{0,6}"), 1..4)) {
        let mut text = Workload::builtin().nth(which).unwrap().text.to_owned();
        for (at, with) in cuts {
            let mut at = at % text.len();
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            let end = text[at..].char_indices().nth(with.chars().count()).map_or(text.len(), |(i, _)| at + i);
            text.replace_range(at..end, &with);
            if text.is_empty() {
                return Ok(());
            }
        }
        if let Err(error) = Workload::parse("any.toml", &text) {
            prop_assert!(error.to_string().starts_with("any.toml:"));
        }
    }
}
