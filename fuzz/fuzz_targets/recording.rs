//! Recordings of KVM: rows that are numbered through and bounded, or an error with file and line; and the micro scenarios.
#![no_main]

use libfuzzer_sys::fuzz_target;
use memvirt_replay::{Column, Item, Recording, micro};

fuzz_target!(|data: &[u8]| {
    let (mut next, mut announced) = (0, 0);
    for item in Recording::new("fuzz.csv", data) {
        match item {
            Ok(Item::Section(section)) => (next, announced) = (0, section.announced),
            Ok(Item::Row(row)) => {
                assert!(row.idx == next && next < announced);
                assert!(Column::ALL.iter().all(|column| row.counts[*column].unsigned_abs() <= 1 << 32));
                next += 1;
            }
            Err(error) => assert!(error.to_string().contains("fuzz.csv: line "), "{error}"),
        }
    }
    let _ = micro::parse("fuzz.txt", &String::from_utf8_lossy(data));
});
