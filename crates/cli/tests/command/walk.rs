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
        ("--guest none --host 5 --host-page 2M", 4),
        ("--guest pae", 14),
        ("--guest pae --nested-format npt", 19),
        ("--guest pae --host none", 2),
        ("--guest pae --regime shadow", 2),
        ("--regime flat", 9),
        ("--regime agile:0", 4),
        ("--regime agile:1", 8),
        ("--regime agile:2", 12),
        ("--regime agile:3", 16),
        ("--regime agile:4", 20),
        ("--regime direct-segment", 4),
        ("--regime direct-segment --guest-page 2M", 3),
        ("--regime direct-segment:guest", 4),
        ("--regime direct-segment:guest --host-page 1G", 2),
        ("--regime direct-segment:dual", 0),
        ("--regime register-walk", 3),
        ("--regime register-walk --guest-page 2M --host-page 2M", 3),
        ("--address 0x7F00_1234_5678", 24),
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
        ("--guest none --regime shadow", "--host 4"),
        ("--guest none --regime nested --host none", "--host 4"),
        ("--regime flat --host 4", "leave --host out"),
        ("--regime flat --guest pae", "--guest 4"),
        ("--regime agile:2 --guest 5", "leave --guest and --host out"),
        ("--regime agile:2 --host none", "leave --guest and --host out"),
        ("--guest pae --guest-page 1G", "--guest-page 4K or 2M"),
        ("--guest pae --address 0x100000000", "0xffffffff"),
        ("--address 0xaa7f1234567abc", "canonical"),
        ("--caches warm --machine pdp-11", "skylake-sp"),
        ("--regime native --host-page 2M", "leave --host-page out"),
        ("--host none --host-page 4K", "leave --host-page out"),
        ("--regime native --nested-format npt", "leave it out"),
        ("--regime shadow --nested-format ept", "leave it out"),
        ("--guest none --guest-page 2M", "leave --guest-page out"),
        ("--regime direct-segment --host-page 2M", "leave --host-page out"),
        ("--regime direct-segment:dual --host 4", "leave --host out"),
        ("--regime direct-segment:guest --guest 5", "leave --guest out"),
        ("--regime register-walk --guest pae", "leave --guest and --host out"),
        ("--regime register-walk --host 5", "leave --guest and --host out"),
    ] {
        let ran = memvirt(&format!("walk {args}"));
        assert!(ran.only_error().contains(mend), "{args}: {}", ran.stderr);
    }
    for (address, mend) in [
        ("7f0012345678", "0x missing: addresses are hexadecimal; write 0x7f0012345678"),
        ("4096", "0x missing"),
        ("0x", "as in 0x7f0012345678"),
        ("0x+1", "as in 0x7f0012345678"),
        ("here", "as in 0x7f0012345678"),
    ] {
        let ran = memvirt(&format!("walk --address {address}"));
        assert!(ran.status == 2 && ran.stderr.contains(mend), "{address}: {}", ran.stderr);
    }
    for bad in ["agile", "agile:", "agile:5", "agile:-1", "radix"] {
        let ran = memvirt(&format!("walk --regime {bad}"));
        assert!(ran.status == 2 && ran.stderr.contains("flat, agile:0 to agile:4"), "{bad}: {}", ran.stderr);
    }
}

/// Skylake-SP has no nested TLB in its file: a guest PTE and two nested leaves are left. The P-core has one, which knows the two
/// pages. Native: the PTE alone.
#[test]
fn walk_caches_are_the_machine_s() {
    for (args, total) in [
        ("--caches warm", 3),
        ("--caches warm --machine p-core", 1),
        ("--caches warm --host none", 1),
        ("--caches warm --regime shadow", 1),
        ("--caches warm --regime flat", 3),
        ("--caches warm --regime agile:1", 2),
        ("--caches cold --host none", 4),
        ("--caches cold", 12),
        ("--caches cold --machine p-core", 12),
        ("--caches off --machine p-core", 24),
        ("--caches warm --guest none --machine p-core", 0),
    ] {
        let walk = memvirt(&format!("walk {args} --format json")).json();
        assert_eq!(walk["total"], total, "{args}");
        let table = memvirt(&format!("walk {args}")).stdout;
        assert!(table.ends_with(&format!("total: {total} references\n")), "{table}");
        let machine = if args.contains("p-core") { "p-core" } else { "skylake-sp" };
        let named = (!args.contains("off")).then_some(machine);
        assert_eq!(walk["machine"].as_str(), named, "{args}");
        assert_eq!(table.contains(&format!("those of {machine}")), named.is_some(), "{table}");
        let hits = walk["cache_hits"].as_array().unwrap();
        assert_eq!(hits.is_empty(), args.contains("off") || args.contains("cold --host none"), "{args}");
        assert_eq!(table.matches("known to the cache: ").count(), hits.len(), "{table}");
    }
}

#[test]
fn the_load_of_cr3_under_pae_is_counted_apart() {
    let walk = memvirt("walk --guest pae --format json").json();
    assert_eq!((&walk["total"], &walk["at_cr3_load"]), (&14.into(), &8.into()));
    assert!(memvirt("walk --guest pae").stdout.contains("8 references, not counted here"));
}

/// Well-formed as far as tags go: each is closed in order, and attributes are quoted.
#[test]
fn pictures_are_documents() {
    for args in [
        "",
        "--guest 5 --host 5",
        "--host none",
        "--regime agile:2",
        "--regime flat",
        "--regime direct-segment:dual",
        "--regime register-walk --guest-page 2M",
        "--caches warm",
    ] {
        let ran = memvirt(&format!("walk {args} --format svg"));
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        assert!(ran.stdout.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\""), "{}", ran.stdout);
        let mut open = Vec::new();
        for tag in ran.stdout.split('<').skip(1) {
            let (inside, text) = tag.split_once('>').unwrap();
            assert!(inside.matches('"').count() % 2 == 0 && !text.contains('>'), "{tag}");
            if let Some(name) = inside.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name), "{args}");
            } else if !inside.ends_with('/') {
                open.push(inside.split_whitespace().next().unwrap());
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }
}
