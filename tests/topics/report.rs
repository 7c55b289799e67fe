//! The whole report: every claim is measured, the page stands alone, and a browser draws it without a complaint.
//!
//! The browser is Chromium without a window. A frame of the width under test holds the page; a script beside it looks into the frame
//! and leaves its findings in its own document, which the browser prints. Where there is no Chromium the test says so and is
//! skipped; with `MEMVIRT_BROWSER=required` in the environment it fails.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use memvirt_lab::claims::Verdict::{Fails, Holds, HoldsWhen};
use memvirt_lab::claims::{Effort, Evidence, claims};
use memvirt_lab::report::write_full_report;
use memvirt_machine::MachineSpec;

/// Measured once for all tests.
static EVIDENCE: LazyLock<Evidence> = LazyLock::new(|| {
    let machine = MachineSpec::load(MachineSpec::DEFAULT).unwrap();
    Evidence::gather(Effort::Quick, &machine, None, &|_| {}).unwrap()
});

fn written() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    write_full_report(dir.path(), &EVIDENCE, "memvirt report --quick").unwrap();
    let page = std::fs::read_to_string(dir.path().join("index.html")).unwrap();
    (dir, page)
}

#[test]
fn every_claim_is_measured_and_those_of_structure_hold() {
    let claims = claims(&EVIDENCE);
    assert_eq!(claims.len(), 17);
    let verdict = |id: &str| claims.iter().find(|claim| claim.id == id).map(|claim| claim.verdict);
    for id in ["references", "tree", "two-stage-fault", "naive", "isolation", "no-exits", "events", "world-switch"] {
        assert_eq!(verdict(id), Some(Holds), "{id}");
    }
    assert_eq!(verdict("user-space"), Some(Fails));
    for id in ["twenty-percent", "same-structure", "context-switch"] {
        assert_eq!(verdict(id), Some(HoldsWhen), "{id}");
    }
}

#[test]
fn the_page_stands_alone_and_every_link_of_it_resolves() {
    let (dir, page) = written();
    let names = "http://www.w3.org/2000/svg";
    assert_eq!(page.matches("http://").count(), page.matches(names).count());
    assert!(!page.contains("https://") && !page.contains(" src="));
    for link in page.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next()) {
        match link.strip_prefix('#') {
            Some(id) => assert!(page.contains(&format!("id=\"{id}\"")), "{link} leads nowhere"),
            None => assert!(dir.path().join(link).is_file(), "{link} is no file"),
        }
    }
    for claim in claims(&EVIDENCE) {
        assert!(page.contains(&format!("id=\"claim-{}\"", claim.id)) && !claim.command.is_empty(), "{}", claim.id);
    }
}

fn chromium() -> Option<PathBuf> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).flat_map(|dir| names.map(|name| dir.join(name))).find(|file| file.is_file())
}

/// Looks into a frame that holds the page, and leaves one finding a line in the document's `pre`.
const PROBE: &str = r##"<!DOCTYPE html><meta charset="utf-8"><pre id="findings"></pre>
<iframe id="frame" src="index.html" style="width:WIDTHpx;height:900px;border:0"></iframe>
<script>
function found(text) { document.getElementById("findings").append(text + "\n"); }
document.getElementById("frame").addEventListener("load", function () {
  var inner = document.getElementById("frame").contentWindow, page = inner.document;
  if (page.documentElement.scrollWidth > inner.innerWidth) { found("wider than the window: " + page.documentElement.scrollWidth); }
  page.querySelectorAll("figure").forEach(function (figure) {
    var drawn = Array.from(figure.querySelectorAll("svg")).filter(function (svg) {
      var box = svg.getBoundingClientRect();
      return box.width > 100 && box.height > 60 && svg.querySelectorAll("rect,circle,path,line").length > 3;
    });
    if (drawn.length !== 1) { found("figure " + figure.id + " is drawn " + drawn.length + " times"); }
  });
  function cells(kind) { return page.querySelectorAll("#walker .cell" + kind).length; }
  function press(step) { page.querySelector("#walker [data-step=" + step + "]").click(); }
  if (cells("") !== 24 || cells(".later") !== 0) { found("the walk has " + cells("") + " cells"); }
  press("first"); press("next"); press("next"); press("back");
  if (cells(".later") !== 22 || cells(".now") !== 1) { found("after two steps " + cells(".later") + " are left"); }
  var regime = page.querySelector("#walker select[name=regime]");
  regime.value = "native"; regime.dispatchEvent(new inner.Event("change"));
  if (cells("") !== 4) { found("a native walk has " + cells("") + " cells"); }
  inner.errors.forEach(found);
  found("done");
});
</script>
"##;

/// Collects what goes wrong in the page from its first line on.
const WATCH: &str = "<head><script>window.errors=[];window.onerror=function(m){errors.push(String(m))};\
                     [\"error\",\"warn\",\"log\"].forEach(function(k){console[k]=function(m){errors.push(k+\": \"+m)}})</script>";

fn findings(browser: &Path, dir: &Path, page: &str, width: u32) -> String {
    std::fs::write(dir.join("index.html"), page.replacen("<head>", WATCH, 1)).unwrap();
    let probe = dir.join(format!("probe-{width}.html"));
    std::fs::write(&probe, PROBE.replace("WIDTH", &width.to_string())).unwrap();
    let run = Command::new(browser)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--allow-file-access-from-files",
        ])
        .args(["--window-size=1600,1000", "--virtual-time-budget=20000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", dir.join("profile").display()))
        .arg(format!("file://{}", probe.display()))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&run.stdout).into_owned();
    let from = text.find("<pre id=\"findings\">").map_or(0, |at| at + 19);
    text[from..].split("</pre>").next().unwrap_or_default().trim().to_owned()
}

#[test]
fn a_browser_draws_every_figure_steps_through_the_walk_and_finds_nothing_to_complain_of() {
    let Some(browser) = chromium() else {
        let required = std::env::var("MEMVIRT_BROWSER").is_ok_and(|value| value == "required");
        assert!(!required, "no Chromium in PATH");
        eprintln!("SKIPPED: no Chromium in PATH");
        return;
    };
    let (dir, page) = written();
    for width in [360, 1440] {
        assert_eq!(findings(&browser, dir.path(), &page, width), "done", "at {width} pixels");
    }
}
