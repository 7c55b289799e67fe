use std::sync::LazyLock;

use memvirt_machine::MachineSpec;

use super::*;

/// Measured once for all tests.
static EVIDENCE: LazyLock<Evidence> = LazyLock::new(|| {
    let machine = MachineSpec::load(MachineSpec::DEFAULT).unwrap();
    Evidence::gather(Effort::Quick, &machine, None, &|_| {}).unwrap()
});

#[test]
fn the_page_stands_alone_and_every_link_of_it_resolves() {
    let dir = tempfile::tempdir().unwrap();
    write_full_report(dir.path(), &EVIDENCE, "memvirt report --quick").unwrap();
    let page = std::fs::read_to_string(dir.path().join("index.html")).unwrap();
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

#[test]
fn every_claim_is_measured_and_those_of_structure_hold() {
    use crate::claims::Verdict::{Fails, Holds, HoldsWhen};
    let claims = claims(&EVIDENCE);
    assert_eq!(claims.len(), 17);
    let verdict = |id: &str| claims.iter().find(|claim| claim.id == id).map(|claim| claim.verdict);
    for id in ["references", "tree", "two-stage-fault", "naive", "isolation", "no-exits", "events", "world-switch"] {
        assert_eq!(verdict(id), Some(Holds), "{id}");
    }
    assert_eq!(verdict("user-space"), Some(Fails));
    assert_eq!(verdict("twenty-percent"), Some(HoldsWhen));
}
