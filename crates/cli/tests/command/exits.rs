//! `memvirt exits`.

use super::memvirt;

fn cell(table: &serde_json::Value, row: &str, regime: &str) -> serde_json::Value {
    let rows = table["rows"].as_array().unwrap();
    let cells = rows.iter().find(|found| found["row"] == row).unwrap()["cells"].as_array().unwrap();
    cells.iter().find(|found| found["regime"] == regime).unwrap().clone()
}

#[test]
fn the_toggle_of_cr4_pge_is_what_the_hardware_makes_of_it() {
    for (virt, nested, exits) in [("vmx", "ept", [2, 0]), ("svm", "npt", [3, 3])] {
        let ran = memvirt(&format!("exits --virt {virt} --format json"));
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "every difference is explained");
        let table = ran.json();
        assert_eq!(
            (&table["schema"], &table["virt"], &table["tags"]),
            (&"memvirt/exits/1".into(), &virt.into(), &"off".into())
        );
        for (regime, exits) in ["kvm-6.1", nested].into_iter().zip(exits) {
            let cell = cell(&table, "15", regime);
            assert_eq!((&cell["exits"], &cell["agrees"]), (&exits.into(), &true.into()), "{virt}, {regime}");
        }
        assert_eq!(cell(&table, "2", "xen")["specified"], serde_json::Value::Null);
    }
}

#[test]
fn differences_are_marked_and_explained() {
    let ran = memvirt("exits");
    assert_eq!(ran.status, 0);
    assert!(ran.stdout.contains("!=2 (1)") && ran.stdout.contains("!= row 18', invlpg-only"), "{}", ran.stdout);
    assert!(ran.stdout.ends_with("3 differ, 0 of them unexplained\n"), "{}", ran.stdout);
    assert!(ran.stdout.contains("on vmx, tags off"), "{}", ran.stdout);
}

#[test]
fn csv_has_one_width() {
    let ran = memvirt("exits --format csv --virt svm");
    assert!(ran.stdout.starts_with("virt,row,event,done,regime,exits,guest_faults,specified,least,most,agrees,note\n"));
    assert!(ran.stdout.contains("\nsvm,16,INVPCID,all contexts,npt,0,0,0,0,0,true,\n"), "{}", ran.stdout);
}
