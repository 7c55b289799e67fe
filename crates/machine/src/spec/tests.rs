//! Machine files: the built-in ones are sound, mistakes are named.

use memvirt_platform::Interrupts;

use super::*;

/// The default machine's file.
fn default_file() -> &'static str {
    BUILTIN.iter().find(|(name, _)| *name == MachineSpec::DEFAULT).unwrap().1
}

/// What is said about the default machine's file with one thing replaced.
fn said(from: &str, to: &str) -> String {
    assert!(default_file().contains(from), "{from}");
    MachineSpec::parse("m.toml", &default_file().replacen(from, to, 1)).unwrap_err().to_string()
}

/// The line on which something stands in the default machine's file.
fn line(needle: &str) -> String {
    format!("m.toml: line {}: ", place::line_at(default_file(), default_file().find(needle).unwrap()))
}

#[test]
fn every_built_in_machine_is_sound_and_named_after_its_file() {
    for ((name, _), spec) in BUILTIN.iter().zip(MachineSpec::builtin().unwrap()) {
        assert_eq!(spec.name, *name);
        assert!(spec.caches.is_some() && spec.walk_caches.is_some(), "{name}");
    }
}

#[test]
fn unknown_fields_are_named_with_line_and_the_accepted_ones() {
    let message = said("kernel_entry", "kernel_enter");
    assert!(message.contains(&(line("kernel_entry") + "base.kernel_enter: unknown field `kernel_enter`")), "{message}");
    assert!(message.contains("`kernel_entry`"), "{message}");
    let message = said("line_bytes", "line_byte");
    assert!(message.contains(&(line("line_bytes") + "caches.line_byte: unknown field")), "{message}");
    let message = said("[walk_caches]", "[walk_cache]");
    assert!(message.contains("walk_cache: unknown field") && message.contains("`walk_caches`"), "{message}");
}

#[test]
fn missing_fields_and_sections_are_named() {
    assert!(said("latency = { value = 1,", "latenc = { value = 1,").contains("walk_caches.latenc"));
    let (before, after) = default_file().split_once("[base]").unwrap();
    let (_, after) = after.split_once("[translation]").unwrap();
    let message = MachineSpec::parse("m.toml", &format!("{before}[translation]{after}")).unwrap_err().to_string();
    assert!(message.contains("missing field `base`"), "{message}");
}

#[test]
fn numbers_out_of_range_are_named_with_line_field_and_range() {
    for (from, to, field, range) in [
        ("entries = 64, ways = 4", "entries = -64, ways = 4", "tlb.l1[0].entries", "from 0 to 65536"),
        ("entries = 64, ways = 4", "entries = 64, ways = 0", "tlb.l1[0].ways", "from 1 to 65536"),
        ("entries = 64, ways = 4", "entries = 64, ways = 5", "tlb.l1[0].ways", "must divide"),
        ("entries = 1536", "entries = 1560", "tlb.l2[0].ways", "power of two"),
        ("entries = 64, ways", "entries = 4096, ways", "tlb.l1[0].entries", "at most 1024"),
        ("\"PDPTE\", entries = 4", "\"PDPTE\", entries = 6", "walk_caches.guest[1].ways", "power of two"),
        ("\"PDPTE\"", "\"PDPE\"", "walk_caches.guest[1].level", "`PML5E`, `PML4E`, `PDPTE`, `PDE`"),
        ("\"PDPTE\"", "\"PML4E\"", "walk_caches.guest[1].level", "one for each of PML5E"),
        ("line_bytes = 64", "line_bytes = 48", "caches.line_bytes", "a power of two from 8 to 4096"),
        ("line_bytes = 64", "line_bytes = 4", "caches.line_bytes", "from 8 to 4096"),
        ("ways = 11", "ways = 12", "caches.llc.ways", "must divide the size"),
        ("value = 54", "value = 5.4", "caches.llc.latency.value", "from 0 to 1000000000"),
        (
            "kernel_entry = { value = 150",
            "kernel_entry = { value = 2000000000",
            "base.kernel_entry.value",
            "1000000000",
        ),
        ("\"4K\"", "\"5K\"", "tlb.l1[0].pages[0]", "accepted: 4K, 2M, 1G"),
        ("[\"4K\"]", "[]", "tlb.l1[0].pages", "4K, 2M, 1G"),
        ("[\"4K\"]", "[\"4K\", \"2M\", \"4K\"]", "tlb.l1[0].pages[2]", "each size once"),
        ("walkers = { value = 2", "walkers = { value = 0", "walk_caches.walkers.value", "accepted: 1 to 64"),
        ("walkers = { value = 2", "walkers = { value = 65", "walk_caches.walkers.value", "accepted: 1 to 64"),
        ("[\"2M\"]", "[\"4K\"]", "tlb.l1", "two arrays"),
    ] {
        let message = said(from, to);
        assert!(message.contains(&format!("{field}: ")), "{field}: {message}");
        assert!(message.contains(range), "{field}: {message}");
        if field != "tlb.l1" {
            assert!(message.contains(&line(from)), "{field}: {message}");
        }
    }
}

#[test]
fn a_machine_has_a_name_that_can_be_shown() {
    for (to, wrong) in
        [("\"\"", "it is empty"), ("\" \"", "it is empty"), ("\"a\\u001bb\"", "control character \\u{1b}")]
    {
        let message = said("\"skylake-sp\"", to);
        assert!(message.contains(&(line("\"skylake-sp\"") + "name: ")) && message.contains(wrong), "{message}");
    }
    let message = said("title = \"Intel", "title = \"\\nIntel");
    assert!(message.contains("title: ") && message.contains("control character \\n"), "{message}");
}

#[test]
fn an_error_is_a_line_however_long_what_it_quotes() {
    let digits = "9".repeat(5000);
    for (from, to, field) in [
        ("entries = 64", format!("entries = {digits}"), "entries"),
        ("entries = 64", format!("entries = 0.{digits}"), "tlb.l1[0].entries"),
        ("entries = 64", format!("entries = \"{digits}\""), "tlb.l1[0].entries"),
        ("\"4K\"", format!("\"{digits}\""), "tlb.l1[0].pages[0]"),
        ("kernel_entry", digits.clone(), "base.999"),
    ] {
        let message = said(from, &to);
        assert!(message.len() < 700 && message.contains(field), "{field}: {} bytes: {message}", message.len());
        assert!(!message.contains('\n'), "{message}");
    }
}

#[test]
fn a_figure_without_a_source_is_refused() {
    let message = said("\"SagePTE artifact (2024): LLC 54 cycles\"", "\" \"");
    assert!(message.contains("caches.llc.latency.source: ") && message.contains("estimate"), "{message}");
}

#[test]
fn text_that_is_no_toml_is_refused_with_its_line() {
    let message = said("[base]", "[base");
    assert!(message.contains(&line("[base]")), "{message}");
}

/// The names that are shown are those that are read.
#[test]
fn choices_are_shown_by_their_names_in_files() {
    let with = |field: &str, name: &str| {
        let text = default_file().replacen("[tlb]\n", &format!("[tlb]\n{field} = \"{name}\"\n"), 1);
        MachineSpec::parse("m.toml", &text).unwrap().tlb
    };
    for name in ["lru", "random", "fifo"] {
        assert_eq!(with("replacement", name).replacement.name(), name);
    }
    for name in ["whole", "split"] {
        assert_eq!(with("gigabyte_pages", name).gigabyte_pages.name(), name);
    }
    for name in ["non-inclusive", "inclusive"] {
        assert_eq!(with("inclusion", name).inclusion.name(), name);
    }
}

#[test]
fn replacement_and_split_pages_reach_the_geometry() {
    let text = default_file().replacen("[tlb]\n", "[tlb]\nreplacement = \"fifo\"\ngigabyte_pages = \"split\"\n", 1);
    let geometry = MachineSpec::parse("m.toml", &text).unwrap().geometry().unwrap();
    let plain = MachineSpec::parse("m.toml", default_file()).unwrap().geometry().unwrap();
    let expected = plain.with_gigabyte_pages(memvirt_tlb::GigabytePages::Split);
    let fifo = memvirt_tlb::Replacement::Fifo;
    let expected = expected.with_replacement(memvirt_tlb::CacheLevel::L1, fifo).unwrap();
    assert_eq!(geometry, expected.with_replacement(memvirt_tlb::CacheLevel::L2, fifo).unwrap());
    let tree = default_file().replacen("[tlb]\n", "[tlb]\nreplacement = \"tree-plru\"\n", 1);
    let message = MachineSpec::parse("m.toml", &tree).unwrap_err().to_string();
    assert!(message.contains("tlb.l2[0].ways: tree replacement over 12 ways"), "{message}");
    let other = default_file().replacen("[tlb]\n", "[tlb]\nreplacement = \"clock\"\n", 1);
    let message = MachineSpec::parse("m.toml", &other).unwrap_err().to_string();
    assert!(message.contains("tlb.replacement: ") && message.contains("`tree-plru`"), "{message}");
}

/// The hierarchy that the figures of 2024 were simulated with, written apart in the crate of the caches.
#[test]
fn the_paper_s_machine_has_the_paper_s_caches() {
    let spec = MachineSpec::load("paper-2024").unwrap();
    assert_eq!(spec.cache_hierarchy().unwrap(), Some(CacheHierarchy::example()));
}

#[test]
fn walk_caches_have_the_shapes_of_the_file() {
    use memvirt_addr::Level::{L2, L3, L4, L5};

    let geometry = MachineSpec::load("p-core").unwrap().mmu_geometry().unwrap();
    let shape = |entries| Some(memvirt_tlb::Shape::new(entries, 4).unwrap());
    for dimension in [geometry.guest, geometry.host] {
        assert_eq!([L2, L3, L4, L5].map(|level| dimension.shape(level)), [shape(32), shape(32), shape(32), None]);
    }
    assert_eq!(geometry.nested_tlb, shape(64));
    assert_eq!(MachineSpec::load("paper-2024").unwrap().mmu_geometry().unwrap().nested_tlb, None);
}

#[test]
fn a_file_without_walk_caches_has_none() {
    let (before, after) = default_file().split_once("[walk_caches]").unwrap();
    let (_, after) = after.split_once("[base]").unwrap();
    let spec = MachineSpec::parse("m.toml", &format!("{before}[base]{after}")).unwrap();
    assert_eq!(spec.mmu_geometry().unwrap(), MmuGeometry::default());
    assert_eq!(spec.cache_hierarchy().unwrap(), None);
}

#[test]
fn names_and_paths_that_are_not_there_are_told_apart() {
    assert!(MachineSpec::load("pdp-11").unwrap_err().to_string().contains("known: "));
    let directory = MachineSpec::load("./src").unwrap_err().to_string();
    assert_eq!(directory, "./src is not a machine file: it is a directory");
    assert!(MachineSpec::load("no/such.toml").unwrap_err().to_string().contains("no/such.toml"));
}

#[test]
#[cfg(unix)]
fn a_file_without_end_is_refused() {
    let message = MachineSpec::load("/dev/zero").unwrap_err().to_string();
    assert_eq!(
        message,
        "/dev/zero is not a machine file: it is a device: copy what is wanted of it into a file, and name that"
    );
}

#[test]
#[cfg(unix)]
fn a_path_that_is_no_text_is_a_path_all_the_same() {
    use std::os::unix::ffi::OsStrExt as _;

    let folder = std::env::temp_dir().join(format!("memvirt-machine-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(OsStr::from_bytes(b"mine-\xff.toml"));
    std::fs::write(&path, default_file()).unwrap();
    let loaded = MachineSpec::load(&path);
    std::fs::remove_dir_all(&folder).unwrap();
    let loaded = loaded.unwrap();
    assert_eq!(loaded.path(), Some(path.as_path()));
    assert_eq!(MachineSpec { path: None, ..loaded }, MachineSpec::parse("x", default_file()).unwrap());
}

#[test]
fn what_vcpus_cost_each_other_stands_in_the_file_or_is_made_of_the_exits() {
    let file = MachineSpec::load(MachineSpec::DEFAULT).unwrap();
    let smp = file.smp.clone().unwrap();
    let times = file.smp_times();
    assert_eq!((times.interrupts, times.kicked), (smp.interrupts.by.into(), u64::from(smp.kicked.value)));
    let (before, _) = default_file().split_once("[smp]").unwrap();
    let plain = MachineSpec::parse("m.toml", before).unwrap();
    assert_eq!(plain.smp, None);
    let made = plain.smp_times();
    assert_eq!((made.interrupts, made.kicked, made.world_switch), (Interrupts::Exiting, 1150 + 200, 2 * 1150 + 1200));
    for name in ["exiting", "posted", "virtualized"] {
        let text = default_file().replacen("by = \"posted\"", &format!("by = \"{name}\""), 1);
        assert_eq!(MachineSpec::parse("m.toml", &text).unwrap().smp.unwrap().interrupts.by.name(), name);
    }
    let message = said("lock_handover", "lock_handovers");
    assert!(message.contains(&(line("lock_handover") + "smp.lock_handovers: unknown field")), "{message}");
    let message = said("by = \"posted\"", "by = \"pigeon\"");
    assert!(message.contains("smp.interrupts.by: ") && message.contains("`virtualized`"), "{message}");
    assert!(said("kicked = { value = 1350", "kicked = { value = -1").contains("smp.kicked.value: "));
}
