//! The whole report: every claim is measured, the page stands alone, and a browser draws it without a complaint.
//!
//! The browser is Chromium without a window. A frame of the width under test holds the page; a script beside it looks into the frame
//! and leaves its findings in its own document, which the browser prints. Where there is no Chromium the test says so and is
//! skipped; with `MEMVIRT_BROWSER=required` in the environment it fails.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use memvirt_lab::claims::Verdict::{Fails, Holds, HoldsWhen};
use memvirt_lab::claims::{Effort, Evidence, claims};
use memvirt_lab::published::{Agreement, Use};
use memvirt_lab::report::{CHANGED_BY_CUTS, write_full_report};
use memvirt_machine::MachineSpec;

/// Measured once for all tests.
static EVIDENCE: LazyLock<Evidence> = LazyLock::new(|| {
    let machine = MachineSpec::load(MachineSpec::DEFAULT).unwrap();
    Evidence::gather(Effort::Quick, &machine, NonZeroUsize::new(2), &|_| {}).unwrap()
});

fn written() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    write_full_report(dir.path(), &EVIDENCE).unwrap();
    let page = std::fs::read_to_string(dir.path().join("index.html")).unwrap();
    (dir, page)
}

#[test]
fn every_claim_is_measured_and_those_of_structure_hold() {
    let claims = claims(&EVIDENCE);
    assert_eq!(claims.len(), 19);
    let verdict = |id: &str| claims.iter().find(|claim| claim.id == id).map(|claim| claim.verdict);
    for id in [
        "references",
        "tree",
        "two-stage-fault",
        "naive",
        "isolation",
        "no-exits",
        "events",
        "world-switch",
        "footprint",
    ] {
        assert_eq!(verdict(id), Some(Holds), "{id}");
    }
    for id in ["user-space", "twenty-percent"] {
        assert_eq!(verdict(id), Some(Fails), "{id}");
    }
    for id in ["same-structure", "context-switch"] {
        assert_eq!(verdict(id), Some(HoldsWhen), "{id}");
    }
}

#[test]
fn a_claim_that_holds_under_a_condition_states_it_on_a_line_of_its_own() {
    let (_dir, page) = written();
    for claim in claims(&EVIDENCE) {
        match (claim.verdict, claim.condition()) {
            (HoldsWhen, Some(condition)) => {
                assert!(condition.starts_with("When ") && condition.ends_with('.'), "{}: {condition}", claim.id);
                assert!(
                    condition.contains(|c: char| c.is_ascii_digit()) || condition.contains("shadow:"),
                    "{condition}"
                );
                assert!(claim.measured.starts_with(&format!("{condition}\n")) && !claim.figures().is_empty());
                let begin: String = condition.split('`').next().unwrap().chars().take(40).collect();
                assert!(page.contains(&format!("<p class=\"when\">{begin}")), "{begin}");
            }
            (HoldsWhen, None) => panic!("{}: no condition", claim.id),
            (_, condition) => assert_eq!(condition, None, "{}", claim.id),
        }
    }
}

/// The text of a figure on the page.
fn block<'a>(page: &'a str, id: &str) -> &'a str {
    let from = page.find(&format!("<figure id=\"{id}\">")).unwrap_or_else(|| panic!("no figure {id}"));
    page[from..].split("</figure>").next().unwrap()
}

#[test]
fn a_figure_of_many_runs_names_the_command_of_each() {
    let (_dir, page) = written();
    let fair = &EVIDENCE.fair;
    let plain = ["cycles", "references", "exits", "stores", "footprint"].map(|id| (id, &EVIDENCE.plain));
    let timed = [("benefit", &fair.plain), ("benefit-kpti", &fair.kpti), ("benefit-large", &fair.large)];
    let accounts = [("cycles-timed", &fair.plain), ("walk-levels", &fair.plain), ("phase-plane", &fair.plain)];
    for (id, comparisons) in plain.into_iter().chain(timed).chain(accounts) {
        let listed =
            block(&page, id).split("<details class=\"runs\">").nth(1).unwrap().split("</details>").next().unwrap();
        for one in comparisons {
            assert!(listed.contains(&format!("<code>{}</code>", one.command)), "{id}: {}", one.command);
        }
    }
    assert!(block(&page, "phase-plane").contains("memvirt phase --quick --machine skylake-sp"));
    for scaled in &EVIDENCE.many.scaling {
        assert!(block(&page, "scaling-benefit").contains(&format!("<code>{}</code>", scaled.table.command)));
    }
    for id in ["fits-exits", "fits-residuals", "fits-time", "fits-mosaics"] {
        let made = "Made by <code>memvirt model fit --quick --machine skylake-sp --out DIR</code>";
        assert!(block(&page, id).contains(made), "{id}");
    }
}

#[test]
fn the_page_of_the_fits_alone_names_the_command_that_makes_it() {
    let dir = tempfile::tempdir().unwrap();
    memvirt_lab::report::write_fits(dir.path(), &EVIDENCE.fits).unwrap();
    let page = std::fs::read_to_string(dir.path().join("index.html")).unwrap();
    assert!(page.contains("<pre><code>memvirt model fit --quick --machine skylake-sp --out DIR</code></pre>"));
}

/// The rows of a figure's data: cells by column. Cells hold no quotes but around them.
fn data(dir: &Path, id: &str) -> Vec<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(dir.join(format!("figures/{id}.csv"))).unwrap();
    let cells = |line: &str| -> Vec<String> {
        let parts = line.split('"').enumerate();
        let joined: String =
            parts.map(|(i, part)| if i % 2 == 1 { part.to_owned() } else { part.replace(',', "\t") }).collect();
        joined.split('\t').map(str::to_owned).collect()
    };
    let header = cells(text.lines().next().unwrap());
    text.lines().skip(1).map(|line| header.iter().cloned().zip(cells(line)).collect()).collect()
}

fn number(row: &BTreeMap<String, String>, column: &str) -> f64 {
    let cell = row.get(column).unwrap_or_else(|| panic!("no {column} in {row:?}"));
    cell.trim_end_matches(" %").parse().unwrap_or_else(|_| panic!("{column}: {cell}"))
}

#[test]
fn a_workload_s_dot_in_the_plane_lies_on_the_side_of_its_bar() {
    let (dir, _) = written();
    let (bars, dots) = (data(dir.path(), "benefit"), data(dir.path(), "phase-plane"));
    assert_eq!(dots.iter().filter(|dot| dot["known"] == "true").count(), bars.len());
    for bar in &bars {
        let dot = dots.iter().find(|dot| dot["workload"] == bar["workload"]).unwrap();
        assert_eq!(dot["command"], bar["command"]);
        let percent = 100.0 * (number(dot, "ln_shadow_over_nested").exp() - 1.0);
        assert!((percent - number(bar, "benefit_percent")).abs() < 0.051, "{dot:?} beside {bar:?}");
    }
    assert!(dots.iter().any(|dot| dot["known"] == "false" && dot["workload"] == "two-rates"));
}

#[test]
fn a_command_in_the_data_is_the_command_that_was_run() {
    let (dir, _) = written();
    for row in data(dir.path(), "benefit") {
        assert_eq!(row["command"], EVIDENCE.fair.plain_of(&row["workload"]).unwrap().command);
        assert!(row["command"].contains("--regimes native,"));
    }
}

#[test]
fn every_column_of_figures_names_its_unit() {
    const NAMES: [&str; 12] = [
        "workload",
        "regime",
        "guest",
        "layout",
        "tables",
        "measured",
        "command",
        "known",
        "assumptions",
        "shadow",
        "nested",
        "machine",
    ];
    const UNITS: [&str; 12] = [
        "cycles",
        "exits",
        "bytes",
        "walks",
        "accesses",
        "percent",
        "share",
        "instructions",
        "native",
        "per_walk",
        "nested",
        "table_store",
    ];
    const COUNTS: [&str; 3] = ["vcpus", "processes", "accesses"];
    let (dir, _) = written();
    for (path, text) in files(&dir.path().join("figures")) {
        if path.extension().is_some_and(|kind| kind == "csv") {
            let text = String::from_utf8(text).unwrap();
            for column in text.lines().next().unwrap().split(',') {
                let unit = UNITS.iter().any(|unit| column.ends_with(&format!("_{unit}")));
                assert!(unit || NAMES.contains(&column) || COUNTS.contains(&column), "{}: {column}", path.display());
            }
        }
    }
}

#[test]
fn captions_say_how_runs_were_made() {
    let (_dir, page) = written();
    for id in ["benefit", "cycles-timed"] {
        let words = block(&page, id);
        assert!(words.contains("mode cycles, walk caches on") && words.contains("after a warm-up of"), "{id}");
    }
    assert!(block(&page, "exits").contains("mode counts, walk caches off"));
    let one = &EVIDENCE.many.scaling[0].table;
    assert_eq!(one.workload, "forkwait");
    assert!(block(&page, "scaling-forks-throughput").contains("mode counts, walk caches off"));
    // The same workload twice, with what differs.
    let section = page.split("<section id=\"scaling\">").nth(1).unwrap().split("</section>").next().unwrap();
    for words in ["Benefit by workload", "Many vCPUs, on one", "warm-up accesses"] {
        assert!(section.contains(words), "{words}");
    }
}

#[test]
fn no_model_of_vcpus_is_judged_by_the_run_that_it_is_fed() {
    let several: usize =
        EVIDENCE.many.scaling.iter().map(|one| one.table.points.iter().filter(|point| point.vcpus > 1).count()).sum();
    let rows = EVIDENCE.fits.errors();
    let judged: usize = rows.iter().filter(|row| row.quantity == "vCPUs").map(|row| row.runs).sum();
    assert!(several > 0 && judged == several);
    let (_dir, page) = written();
    assert!(!page.contains("it is off by at most 0 %"));
    for scaled in &EVIDENCE.many.scaling {
        let caption = block(&page, &format!("scaling-{}-errors", scaled.id));
        let points = scaled.table.points.iter().filter(|point| point.vcpus > 1).count();
        let named: usize = caption
            .match_indices(" % at the ")
            .map(|(at, _)| caption[at + 10..].split(' ').next().unwrap().parse::<usize>().unwrap())
            .sum();
        assert_eq!(named, points, "{}", scaled.id);
    }
}

/// Which way a benefit in percent goes: shadow paging wins, nested paging by up to a fifth, or by more.
fn side(percent: f64) -> u8 {
    match percent {
        p if p < -0.05 => 0,
        p if p <= 20.0 => 1,
        _ => 2,
    }
}

#[test]
fn the_quick_page_says_what_its_cuts_change_and_the_full_report_says_the_same() {
    let (dir, page) = written();
    let head = page.split("</header>").next().unwrap();
    assert!(
        head.contains("The runs of this page are cut")
            && head.contains("<code>memvirt report --machine skylake-sp</code>")
    );
    for one in CHANGED_BY_CUTS {
        assert!(head.contains(one.id) && head.contains(one.quick) && head.contains(one.full), "{one:?}");
    }
    let full = Path::new(env!("CARGO_MANIFEST_DIR")).join("../reports");
    let in_part =
        |part: &str| -> Vec<&str> { CHANGED_BY_CUTS.iter().filter(|one| one.part == part).map(|one| one.id).collect() };
    // By place, not by name: the committed report may be older than the names of its columns.
    let committed = std::fs::read_to_string(full.join("figures/benefit.csv")).unwrap();
    let committed: BTreeMap<&str, f64> = committed
        .lines()
        .skip(1)
        .map(|line| {
            let mut cells = line.split(',');
            let name = cells.next().unwrap();
            (name, cells.next().unwrap().trim_end_matches(" %").parse().unwrap())
        })
        .collect();
    let mut moved = Vec::new();
    for row in data(dir.path(), "benefit") {
        let name = row["workload"].clone();
        if side(number(&row, "benefit_percent")) != side(committed[name.as_str()]) {
            moved.push(name);
        }
    }
    moved.sort();
    let mut said = in_part("benefit");
    said.sort_unstable();
    assert_eq!(moved, said);
    // Whether the benefit of `churn`, as threads, is larger on the most vCPUs than on one.
    let grows = |text: &str| {
        let rows = text.lines().filter(|line| line.starts_with("unmapping,"));
        let all: Vec<f64> = rows.map(|line| line.rsplit(',').next().unwrap().parse().unwrap()).collect();
        all[all.len() - 1] > all[0]
    };
    let read = |dir: &Path| std::fs::read_to_string(dir.join("figures/scaling-benefit.csv")).unwrap();
    assert_eq!((grows(&read(dir.path())), grows(&read(&full)), in_part("scaling")), (false, true, vec!["churn"]));
    let claims = std::fs::read_to_string(full.join("claims.json")).unwrap();
    let fails = |id: &str| {
        claims
            .split(&format!("\"id\": \"{id}\""))
            .nth(1)
            .unwrap()
            .split("\"verdict\": \"")
            .nth(1)
            .unwrap()
            .starts_with("fails")
    };
    for id in in_part("claims") {
        assert!(fails(id), "{id}");
    }
}

#[test]
fn every_published_figure_has_its_row_and_is_met() {
    let rows = EVIDENCE.published_rows();
    let ids: Vec<_> = rows.iter().map(|row| row.id.as_str()).collect();
    let wanted = [
        "S1.1", "S1.21", "P1 off", "P1 on", "P2", "P3", "P4", "P5", "P6", "P7", "P8", "P9", "P10", "P11", "P12", "P20",
        "K8", "K10", "K11", "K12", "K13", "K15", "K16", "K19", "K24", "W9", "W10", "W15", "F2", "F4", "S4.1", "S4.6",
        "S5.1", "S6.1", "S7.1",
    ];
    for id in wanted {
        assert!(ids.contains(&id), "{id}");
    }
    for row in &rows {
        assert_ne!(row.agreement, Agreement::Missed, "{row:?}");
        assert!(!row.command.is_empty() && !row.why.is_empty() && !row.measured.is_empty(), "{row:?}");
        let judges = !matches!(row.usage, Use::Input | Use::NotReread);
        assert!(judges || row.agreement == Agreement::Shown, "inputs confirm nothing: {row:?}");
    }
}

#[test]
fn steady_programs_are_won_by_shadow_paging_and_processes_by_nested_paging() {
    let benefit = |name: &str| {
        let one = EVIDENCE.fair.plain_of(name).unwrap();
        one.benefits().find(|benefit| benefit.shadow.regime.name() == "shadow:kvm").unwrap().value()
    };
    for name in ["gups", "xsbench", "pointer-chase", "zipf", "graph", "hash-join"] {
        assert!((-0.5..-0.01).contains(&benefit(name)), "{name}: {}", benefit(name));
        let shadow =
            EVIDENCE.fair.plain_of(name).unwrap().results.iter().find(|run| run.regime.name() == "shadow:kvm").unwrap();
        assert_eq!(shadow.guest_page_faults, 0, "{name} is loaded before it is measured");
    }
    assert!(benefit("compute").abs() < 0.01);
    for name in ["fork", "exec", "forkwait", "touch-and-free", "churn"] {
        assert!(benefit(name) > 1.0, "{name}: {}", benefit(name));
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

/// Every file below a folder, by its path.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    found
}

#[test]
fn the_same_bytes_on_one_thread_and_on_two() {
    let machine = MachineSpec::load(MachineSpec::DEFAULT).unwrap();
    let alone = Evidence::gather(Effort::Quick, &machine, NonZeroUsize::new(1), &|_| {}).unwrap();
    let (dir, _) = written();
    let other = tempfile::tempdir().unwrap();
    write_full_report(other.path(), &alone).unwrap();
    let (two, one) = (files(dir.path()), files(other.path()));
    let names = |files: &BTreeMap<PathBuf, Vec<u8>>, of: &Path| -> Vec<PathBuf> {
        files.keys().map(|path| path.strip_prefix(of).unwrap().to_owned()).collect()
    };
    assert_eq!(names(&two, dir.path()), names(&one, other.path()));
    for ((path, left), right) in two.iter().zip(one.values()) {
        assert!(left == right, "{} differs", path.display());
    }
}

#[test]
fn every_figure_stands_beside_the_page_as_svg_png_and_data() {
    let (dir, page) = written();
    let figures: Vec<&str> = page.split("<figure id=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(figures.len() >= 25, "{figures:?}");
    let all = files(dir.path());
    let read = |id: &str, kind: &str| all[&dir.path().join(format!("figures/{id}.{kind}"))].as_slice();
    for id in figures {
        let (svg, png, csv) = (read(id, "svg"), read(id, "png"), read(id, "csv"));
        assert!(svg.starts_with(b"<svg") && svg.ends_with(b"</svg>\n"), "{id}");
        assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n", "{id}");
        let side = |at: usize| u32::from_be_bytes([png[at], png[at + 1], png[at + 2], png[at + 3]]);
        assert!(side(16) == 1800 && side(20) > 200, "{id}: {} by {}", side(16), side(20));
        let lines = csv.iter().filter(|byte| **byte == b'\n').count();
        assert!(lines >= 2, "{id}: no data");
    }
    let bytes: usize = all.values().map(Vec::len).sum();
    assert!(bytes < 20 << 20, "{bytes}");
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
      return box.width > 100 && box.height > 60 && svg.querySelectorAll("rect,circle,path,line,polyline").length > 3;
    });
    if (drawn.length !== 1) { found("figure " + figure.id + " is drawn " + drawn.length + " times"); }
  });
  function cells(kind) { return page.querySelectorAll("#walker .cell" + kind).length; }
  function press(step) { page.querySelector("#walker [data-step=" + step + "]").click(); }
  if (cells("") !== 24 || cells(".later") !== 0) { found("the walk has " + cells("") + " cells"); }
  press("first"); press("next"); press("next"); press("back");
  if (cells(".later") !== 22 || cells(".now") !== 1) { found("after two steps " + cells(".later") + " are left"); }
  function key(name) {
    page.querySelector("#walker [data-step=next]").dispatchEvent(new inner.KeyboardEvent("keydown", { key: name, bubbles: true }));
  }
  key("ArrowRight"); key("ArrowRight"); key("ArrowLeft");
  if (cells(".later") !== 21) { found("the keys left " + cells(".later")); }
  function choose(name, value) {
    var select = page.querySelector("#walker select[name=" + name + "]");
    select.value = value; select.dispatchEvent(new inner.Event("change"));
    if (page.querySelector("#walker select[name=" + name + "]").value !== value) { found("no walk with " + name + " " + value); }
  }
  choose("regime", "native");
  if (cells("") !== 4) { found("a native walk has " + cells("") + " cells"); }
  choose("host", "0");
  // (guest levels + 1) (nested levels + 1) - 1 with 4 KiB pages, and one level less for each step in size.
  var less = { "4K": 0, "2M": 1, "1G": 2 };
  [4, 5].forEach(function (guest) {
    [4, 5].forEach(function (host) {
      ["4K", "2M", "1G"].forEach(function (guestPage) {
        ["4K", "2M", "1G"].forEach(function (hostPage) {
          choose("regime", "nested"); choose("guest", String(guest)); choose("host", String(host));
          choose("guest_page", guestPage); choose("host_page", hostPage);
          var g = guest - less[guestPage], h = host - less[hostPage];
          if (cells("") !== (g + 1) * (h + 1) - 1) { found([guest, host, guestPage, hostPage, cells("")].join(" ")); }
        });
      });
    });
  });
  choose("guest", "0"); choose("host_page", "4K");
  if (cells("") !== Number(page.querySelector("#walker select[name=host]").value)) { found("unpaged: " + cells("")); }
  var form = page.getElementById("exercise");
  function output(name) { return form.elements[name].textContent; }
  form.querySelectorAll("output").forEach(function (one) {
    if (one.textContent !== one.dataset.rust) { found(one.name + ": the script says " + one.textContent + ", the model " + one.dataset.rust); }
  });
  form.elements.tlb_misses.value = "2";
  form.elements.tlb_misses.dispatchEvent(new inner.Event("input", { bubbles: true }));
  if (output("nested") !== "1.40000" || output("shadow") !== "1.03000") { found("recomputed: " + output("nested")); }
  form.querySelector("[data-set=own]").click();
  if (output("nested") === "1.40000") { found("memvirt's figures change nothing"); }
  form.querySelector("[data-set=given]").click();
  if (output("nested") !== form.elements.nested.dataset.rust) { found("the exercise's figures do not come back"); }
  if (page.documentElement.scrollWidth > inner.innerWidth) { found("wider than the window at the end"); }
  if (inner.getComputedStyle(page.body).backgroundColor !== "BACKGROUND") { found("background " + inner.getComputedStyle(page.body).backgroundColor); }
  inner.errors.forEach(found);
  found("done");
});
</script>
"##;

/// Collects what goes wrong in the page from its first line on.
const WATCH: &str = "<head><script>window.errors=[];window.onerror=function(m){errors.push(String(m))};\
                     [\"error\",\"warn\",\"log\"].forEach(function(k){console[k]=function(m){errors.push(k+\": \"+m)}})</script>";

/// How the reader's screen is.
#[derive(Clone, Copy)]
enum Screen {
    Light,
    Dark,
}

impl Screen {
    /// Chromium's setting, and the page's background.
    const fn of(self) -> (&'static str, &'static str) {
        match self {
            Self::Light => ("--blink-settings=preferredColorScheme=1", "rgb(255, 255, 255)"),
            Self::Dark => ("--blink-settings=preferredColorScheme=0", "rgb(17, 22, 28)"),
        }
    }
}

fn findings(browser: &Path, dir: &Path, page: &str, width: u32, screen: Screen) -> String {
    std::fs::write(dir.join("index.html"), page.replacen("<head>", WATCH, 1)).unwrap();
    let probe = dir.join(format!("probe-{width}.html"));
    std::fs::write(&probe, PROBE.replace("WIDTH", &width.to_string()).replace("BACKGROUND", screen.of().1)).unwrap();
    let run = Command::new(browser)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--allow-file-access-from-files",
        ])
        .arg(screen.of().0)
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
    for (width, screen) in [(360, Screen::Dark), (1440, Screen::Light)] {
        assert_eq!(findings(&browser, dir.path(), &page, width, screen), "done", "at {width} pixels");
    }
    let paper = dir.path().join("paper.pdf");
    let printed = Command::new(&browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=20000"])
        .arg(format!("--user-data-dir={}", dir.path().join("profile").display()))
        .arg(format!("--print-to-pdf={}", paper.display()))
        .arg(format!("file://{}", dir.path().join("index.html").display()))
        .output()
        .unwrap();
    assert!(printed.status.success());
    assert!(std::fs::metadata(&paper).is_ok_and(|file| file.len() > 100_000), "the page prints");
}
