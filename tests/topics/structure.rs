//! The shape of the project, held by its own metadata: which crate may know which, what each crate inherits, and that no file
//! of the tests lies outside all of them.
#![expect(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};

/// For each crate, the crates of this project that it may depend on (tests and benches excepted). A crate that is not
/// listed is not allowed to exist.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("memvirt-addr", &[]),
    ("memvirt-ops", &["memvirt-addr"]),
    ("memvirt-pagetable", &["memvirt-addr"]),
    ("memvirt-tlb", &["memvirt-addr"]),
    ("memvirt-cache", &["memvirt-addr"]),
    ("memvirt-platform", &["memvirt-addr", "memvirt-cache", "memvirt-ops", "memvirt-pagetable", "memvirt-tlb"]),
    ("memvirt-nested", &["memvirt-addr", "memvirt-ops", "memvirt-pagetable", "memvirt-platform", "memvirt-tlb"]),
    ("memvirt-shadow", &["memvirt-addr", "memvirt-ops", "memvirt-pagetable", "memvirt-platform", "memvirt-tlb"]),
    ("memvirt-nestedvirt", &["memvirt-addr", "memvirt-ops", "memvirt-pagetable", "memvirt-platform", "memvirt-tlb"]),
    (
        "memvirt-alternatives",
        &[
            "memvirt-addr",
            "memvirt-nested",
            "memvirt-ops",
            "memvirt-pagetable",
            "memvirt-platform",
            "memvirt-shadow",
            "memvirt-tlb",
        ],
    ),
    ("memvirt-properties", &[]),
    ("memvirt-testkit", &["memvirt-addr", "memvirt-ops", "memvirt-platform", "memvirt-tlb"]),
    ("memvirt-oracle", &["memvirt-addr", "memvirt-ops", "memvirt-pagetable", "memvirt-platform"]),
    (
        "memvirt-replay",
        &[
            "memvirt-addr",
            "memvirt-nested",
            "memvirt-ops",
            "memvirt-oracle",
            "memvirt-pagetable",
            "memvirt-platform",
            "memvirt-shadow",
            "memvirt-tlb",
        ],
    ),
    ("memvirt-textfile", &[]),
    ("memvirt-costmodel", &["memvirt-textfile"]),
    ("memvirt-census", &["memvirt-addr", "memvirt-ops", "memvirt-pagetable", "memvirt-platform"]),
    ("memvirt-timeline", &[]),
    ("memvirt-guest", &["memvirt-addr", "memvirt-ops", "memvirt-pagetable", "memvirt-platform"]),
    ("memvirt-workload", &["memvirt-addr", "memvirt-ops", "memvirt-textfile"]),
    ("memvirt-mvt", &["memvirt-addr", "memvirt-ops"]),
    ("memvirt-trace", &["memvirt-addr", "memvirt-mvt", "memvirt-ops"]),
    (
        "memvirt-machine",
        &[
            "memvirt-addr",
            "memvirt-alternatives",
            "memvirt-cache",
            "memvirt-guest",
            "memvirt-nested",
            "memvirt-nestedvirt",
            "memvirt-ops",
            "memvirt-oracle",
            "memvirt-pagetable",
            "memvirt-platform",
            "memvirt-shadow",
            "memvirt-textfile",
            "memvirt-tlb",
        ],
    ),
    (
        "memvirt-smp",
        &["memvirt-addr", "memvirt-guest", "memvirt-machine", "memvirt-ops", "memvirt-platform", "memvirt-timeline"],
    ),
    (
        "memvirt-lab",
        &[
            "memvirt-addr",
            "memvirt-alternatives",
            "memvirt-cache",
            "memvirt-census",
            "memvirt-costmodel",
            "memvirt-machine",
            "memvirt-nested",
            "memvirt-nestedvirt",
            "memvirt-ops",
            "memvirt-pagetable",
            "memvirt-platform",
            "memvirt-replay",
            "memvirt-shadow",
            "memvirt-smp",
            "memvirt-textfile",
            "memvirt-timeline",
            "memvirt-tlb",
            "memvirt-trace",
            "memvirt-workload",
        ],
    ),
];

/// What only the command and the report may pull in.
const COMMAND_ONLY: &[&str] = &["anyhow", "clap", "comfy-table", "indicatif", "plotters"];

fn metadata() -> Metadata {
    MetadataCommand::new().manifest_path(memvirt_tests::root().join("Cargo.toml")).exec().unwrap()
}

fn crates(metadata: &Metadata) -> Vec<&Package> {
    metadata.workspace_packages().into_iter().filter(|package| package.name.as_str() != "memvirt-tests").collect()
}

fn normal_dependencies(package: &Package) -> BTreeSet<&str> {
    let normal = package.dependencies.iter().filter(|dependency| dependency.kind == DependencyKind::Normal);
    normal.map(|dependency| dependency.name.as_str()).collect()
}

#[test]
fn dependencies_point_one_way() {
    let metadata = metadata();
    let allowed: BTreeMap<_, _> = MAY_KNOW.iter().copied().collect();
    for package in crates(&metadata).into_iter().filter(|package| package.name.as_str() != "memvirt") {
        let may = allowed.get(package.name.as_str());
        let may = may.unwrap_or_else(|| panic!("{} has no place in the layers yet: add it to MAY_KNOW", package.name));
        for dependency in normal_dependencies(package).into_iter().filter(|name| name.starts_with("memvirt")) {
            assert!(may.contains(&dependency), "{} must not depend on {dependency}", package.name);
        }
    }
}

#[test]
fn layers_have_no_cycle() {
    let order: BTreeMap<_, _> = MAY_KNOW.iter().enumerate().map(|(i, (name, _))| (*name, i)).collect();
    for (name, below) in MAY_KNOW {
        assert!(below.iter().all(|lower| order[lower] < order[name]), "{name} knows something above it");
    }
}

#[test]
fn libraries_pull_in_nothing_of_the_command() {
    let metadata = metadata();
    let resolve = metadata.resolve.as_ref().unwrap();
    let nodes: BTreeMap<_, _> = resolve.nodes.iter().map(|node| (&node.id, node)).collect();
    let names: BTreeMap<_, _> = metadata.packages.iter().map(|package| (&package.id, package.name.as_str())).collect();
    for package in crates(&metadata) {
        if ["memvirt", "memvirt-lab"].contains(&package.name.as_str()) {
            continue;
        }
        let (mut seen, mut open) = (BTreeSet::new(), vec![&package.id]);
        while let Some(id) = open.pop() {
            let normal = nodes[id]
                .deps
                .iter()
                .filter(|dep| dep.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal));
            open.extend(normal.map(|dep| &dep.pkg).filter(|id| seen.insert(*id)));
        }
        for name in seen.iter().map(|id| names[id]) {
            assert!(!COMMAND_ONLY.contains(&name), "{} pulls in {name}", package.name);
        }
    }
}

#[test]
fn every_crate_inherits_lints_and_forbids_unsafe_code() {
    for package in crates(&metadata()) {
        let manifest = fs::read_to_string(&package.manifest_path).unwrap();
        assert!(manifest.contains("[lints]\nworkspace = true"), "{} skips the shared lints", package.name);
        for target in package.targets.iter().filter(|target| target.is_lib() || target.is_bin()) {
            let source = fs::read_to_string(&target.src_path).unwrap();
            assert!(source.contains("#![forbid(unsafe_code)]"), "{} does not forbid unsafe code", target.src_path);
        }
        let example = package.targets.iter().filter(|target| target.is_example());
        let published = package.publish.as_ref().is_none_or(|registries| !registries.is_empty());
        if published && package.targets.iter().any(cargo_metadata::Target::is_lib) {
            let short = example.map(|target| fs::read_to_string(&target.src_path).unwrap().lines().count()).min();
            assert!(short.is_some_and(|lines| lines <= 40), "{} has no example of at most 40 lines", package.name);
        }
    }
}

#[test]
fn every_test_file_is_reached_by_a_target() {
    let metadata = metadata();
    let tests =
        metadata.workspace_packages().into_iter().find(|package| package.name.as_str() == "memvirt-tests").unwrap();
    let targets: BTreeSet<_> = tests.targets.iter().map(|target| target.src_path.clone().into_std_path_buf()).collect();
    let mut sources = Vec::new();
    rust_files(&memvirt_tests::root().join("tests").canonicalize().unwrap(), &mut sources);
    for source in &sources {
        let reached = targets.iter().any(|target| target.canonicalize().unwrap() == *source);
        assert!(reached, "{} is reached by no test target", source.display());
    }
    assert!(sources.len() >= 4, "the search itself works");
}

fn rust_files(dir: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}
