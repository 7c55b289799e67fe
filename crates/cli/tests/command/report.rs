//! `--out`: the report.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::{memvirt, memvirt_in};

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { all.extend(files(&path)) } else { all.push(path) }
    }
    all.sort();
    all
}

fn write(folder: &Path, out: &str, threads: &str) {
    let args = ["compare", "--workload", "churn", "--scale", "0.01", "--out", out, "--threads", threads];
    let ran = memvirt_in(folder, args);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(ran.stdout.ends_with(&format!("report: {out}/index.html\n")), "{}", ran.stdout);
}

#[test]
fn the_report_is_the_same_bytes_on_one_and_two_threads() {
    let folder = TempDir::new().unwrap();
    write(folder.path(), "one", "1");
    write(folder.path(), "two", "2");
    let (one, two) = (files(&folder.path().join("one")), files(&folder.path().join("two")));
    assert_eq!(one.len(), 15, "{one:?}");
    for (a, b) in one.iter().zip(&two) {
        assert_eq!(a.file_name(), b.file_name());
        assert_eq!(fs::read(a).unwrap(), fs::read(b).unwrap(), "{}", a.display());
    }
}

#[test]
fn the_page_needs_nothing_but_itself_and_its_links_resolve() {
    let folder = TempDir::new().unwrap();
    write(folder.path(), "deep/report", "2");
    let root = folder.path().join("deep/report");
    let page = fs::read_to_string(root.join("index.html")).unwrap();
    for part in ["src=", "http://", "https://", "@import", "url(", "<script"] {
        let found = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!found.contains(part), "{part}");
    }
    assert_eq!(page.matches("<svg ").count(), 8, "four figures, each drawn wide and narrow");
    assert!(page.contains("prefers-color-scheme:dark") && page.contains("@media print"));
    let links: Vec<_> = page.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    assert_eq!(links.len(), 22, "a table of contents of eight, four figures in three forms each, two files of results");
    for link in links {
        match link.strip_prefix('#') {
            Some(id) => assert!(page.contains(&format!("id=\"{id}\"")), "{link}"),
            None => assert!(root.join(link).is_file(), "{link}"),
        }
    }
    assert_eq!(page.matches("<figure").count(), page.matches("</figure>").count());
    assert!(!page.contains(folder.path().to_str().unwrap()));
}

#[test]
fn the_data_of_a_figure_is_the_data_of_the_results() {
    let folder = TempDir::new().unwrap();
    write(folder.path(), "report", "1");
    let root = folder.path().join("report");
    let json: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(root.join("comparison.json")).unwrap()).unwrap();
    let exits = fs::read_to_string(root.join("figures/exits.csv")).unwrap();
    let totals: Vec<u64> =
        exits.lines().skip(1).map(|line| line.rsplit(',').next().unwrap().parse().unwrap()).collect();
    let expected: Vec<u64> =
        json["results"].as_array().unwrap().iter().map(|r| r["exits"]["total"].as_u64().unwrap()).collect();
    assert_eq!(totals, expected);
    assert!(totals[1] > totals[2] && totals[0] == 0);
}

#[test]
fn only_the_report_s_own_files_are_overwritten() {
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join("report")).unwrap();
    fs::write(folder.path().join("report/notes.txt"), "mine").unwrap();
    fs::write(folder.path().join("report/index.html"), "old").unwrap();
    write(folder.path(), "report", "1");
    assert_eq!(fs::read_to_string(folder.path().join("report/notes.txt")).unwrap(), "mine");
    assert_ne!(fs::read_to_string(folder.path().join("report/index.html")).unwrap(), "old");
}

#[test]
fn the_manual_and_the_help_count_as_many_workloads_as_the_report_runs() {
    let number = memvirt_lab::claims::WORKLOADS.len();
    let help = memvirt("report --help").stdout;
    assert!(help.contains(&format!("Runs {number} workloads under six regimes")), "{help}");
    let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/report.md");
    let page = fs::read_to_string(page).unwrap();
    assert!(
        page.contains(&format!("* {number} workloads under native")) && page.contains(&format!("The same {number} "))
    );
}
