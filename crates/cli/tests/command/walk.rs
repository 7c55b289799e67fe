//! `memvirt walk`: the matrix of Bhargava et al. (ASPLOS 2008), by walking.

use crate::memvirt;

#[test]
fn totals_are_the_published_ones() {
    for (args, total) in [
        ("", 24),
        ("--guest-page 2M", 19),
        ("--host-page 2M", 19),
        ("--guest-page 1G", 14),
        ("--guest-page 2M --host-page 2M", 15),
        ("--guest-page 2M --host-page 1G", 11),
        ("--guest-page 1G --host-page 1G", 8),
        ("--guest 5", 29),
        ("--host 5", 29),
        ("--guest 5 --host 5", 35),
        ("--guest 5 --host 5 --nested-format npt", 35),
        ("--guest none", 4),
        ("--host none", 4),
        ("--host none --guest 5", 5),
        ("--regime shadow", 4),
        ("--regime shadow --guest-page 2M --host-page 4K", 4),
        ("--regime shadow --guest-page 2M --host-page 2M", 3),
    ] {
        let ran = memvirt(&format!("walk --caches off {args} --format json"));
        assert_eq!(ran.status, 0, "{args}: {}", ran.stderr);
        let walk = ran.json();
        assert_eq!(walk["total"], total, "{args}");
        let references = walk["references"].as_array().unwrap();
        assert_eq!(references.len(), total, "{args}");
        for (i, reference) in references.iter().enumerate() {
            assert_eq!(reference["step"], i + 1);
            for field in ["dimension", "level", "table", "index", "address", "entry"] {
                assert!(!reference[field].is_null(), "{args}: {field}");
            }
        }
        let table = memvirt(&format!("walk {args}"));
        assert!(table.stdout.ends_with(&format!("total: {total} references\n")), "{}", table.stdout);
        let steps = table.stdout.lines().filter(|line| line.trim_start().starts_with(|c: char| c.is_ascii_digit()));
        assert_eq!(steps.filter(|line| !line.contains("lies at")).count(), total);
    }
}

#[test]
fn each_reference_reads_what_the_one_before_points_to() {
    let walk = memvirt("walk --host none --format json").json();
    let mut table: Option<String> = None;
    for reference in walk["references"].as_array().unwrap() {
        let address = u64::from_str_radix(&reference["address"].as_str().unwrap()[2..], 16).unwrap();
        assert_eq!(address & 0xfff, reference["index"].as_u64().unwrap() * 8);
        if let Some(table) = table {
            assert_eq!(format!("table at {:#x}", address & !0xfff), table);
        }
        table = Some(reference["says"].as_str().unwrap().to_owned());
    }
    assert!(table.unwrap().starts_with("4K page at"));
}

#[test]
fn impossible_walks_are_refused_with_the_mend() {
    for (args, mend) in [
        ("--regime nested --host none", "--host 4"),
        ("--regime native --host 4", "--host none"),
        ("--guest none --host none", "--host 4"),
        ("--address 0xaa7f1234567abc", "canonical"),
    ] {
        let ran = memvirt(&format!("walk {args}"));
        assert!(ran.only_error().contains(mend), "{args}: {}", ran.stderr);
    }
}
