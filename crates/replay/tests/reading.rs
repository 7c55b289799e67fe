//! Reading recordings: what is right, and what is said about what is wrong.

#![expect(clippy::unwrap_used, reason = "test helpers")]

use std::path::{Path, PathBuf};

use memvirt_replay::{Column, Item, Recording, RecordingError, Sequence, Tolerance, Under, Watch, micro, replay};
use memvirt_shadow::kvm::Kernel;
use proptest::prelude::*;

const HEADER: &str = "idx,op,a,b,exits,pf_taken,pf_fixed,pf_emulate,pf_spurious,pf_guest,tlb_flush,invlpg,\
                      mmu_shadow_zapped,mmu_pte_write,mmu_pde_zapped,mmu_flooded,mmu_cache_miss,mmu_unsync,pages_4k,\
                      remote_req,guest_pf,ec,cr2,rdval";
const SECTION: &str = "## FUZZ seed=7 n=2";
const ROW: &str = "0,INVLPG,800020c000,0,1,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0,0,0,0,0";
/// The same as the next row.
const NEXT: &str = "1,INVLPG,800020c000,0,1,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0,0,0,0,0";

fn read(text: &str) -> (usize, Option<RecordingError>) {
    let mut good = 0;
    for item in Recording::new("file.csv", text.as_bytes()) {
        match item {
            Ok(_) => good += 1,
            Err(error) => return (good, Some(error)),
        }
    }
    (good, None)
}

fn refused(line: &str) -> String {
    let text = format!("{SECTION}\n{HEADER}\n{ROW}\n{line}\n{ROW}\n");
    let (good, error) = read(&text);
    assert_eq!(good, 2, "everything before it is delivered");
    error.expect("the line is wrong").to_string()
}

#[test]
fn sections_and_rows_are_read_with_and_without_header_and_carriage_returns() {
    for text in [
        format!("{SECTION}\n{HEADER}\n{ROW}\n"),
        format!("{SECTION}\r\n{HEADER}\r\n{ROW}\r\n"),
        format!("{SECTION}\n{ROW}"),
        format!("\n{SECTION}\n\n{ROW}\n\n"),
        format!("\u{feff}{SECTION}\n{ROW}\n"),
    ] {
        let items: Vec<_> = Recording::new("x", text.as_bytes()).map(Result::unwrap).collect();
        let [Item::Section(section), Item::Row(row)] = items[..] else { panic!("{items:?}") };
        assert_eq!((section.sequence, section.seed, section.announced), (Sequence::Fuzz, 7, 2));
        assert_eq!((row.idx, row.op.to_string().as_str()), (0, "INVLPG 800020c000 0"));
        assert_eq!((row.counts[Column::Exits], row.counts[Column::Invlpg], row.counts[Column::PfTaken]), (1, 1, 0));
    }
}

#[test]
fn a_wrong_line_is_named_by_file_line_and_column() {
    let cases = [
        (ROW.replacen(",1,", ",one,", 1), "column 5 (exits, character 23): expected a decimal number, found `one`"),
        (ROW.replacen(",1,", ",+1,", 1), "column 5 (exits, character 23): expected a decimal number, found `+1`"),
        (
            NEXT.replacen(",1,", ",-1,", 1),
            "column 5 (exits, character 23): expected a number from 0 to 4294967296, found `-1`",
        ),
        (
            NEXT.replacen(",1,", ",9223372036854775807,", 1),
            "column 5 (exits, character 23): expected a number from 0 to 4294967296, found `9223372036854775807`",
        ),
        (
            "1,PGE,0,0,1,0,0,0,0,0,0,0,0,0,0,0,0,-99999999999999999999,0,0,0,0,0,0".to_owned(),
            "column 18 (mmu_unsync, character 37): expected a number from -4294967296 to 4294967296",
        ),
        (ROW.to_owned(), "column 1 (idx, character 1): expected row 1 of the section: rows are missing, doubled"),
        (NEXT.replacen('1', "7", 1), "column 1 (idx, character 1): expected row 1 of the section"),
        (
            NEXT.replace("INVLPG,800020c000", "RD,800000000000"),
            "column 3 (a, character 6): expected a canonical virtual",
        ),
        (ROW.replace("INVLPG", "INVLP"), "column 2 (op, character 3): expected one of RD, WR, "),
        (
            ROW.replace("800020c000", "8000g"),
            "column 3 (a, character 10): expected a hexadecimal number, found `8000g`",
        ),
        (ROW.replace("800020c000", "-8"), "column 3 (a, character 10): expected a hexadecimal number, found `-8`"),
        (
            ROW.replace("800020c000", "8000000000000000"),
            "column 3 (a, character 10): expected a canonical virtual address",
        ),
        (
            ROW.replace("INVLPG,800020c000", "CR3,10008"),
            "column 3 (a, character 7): expected the address of a root table",
        ),
        (
            ROW.replace("INVLPG,800020c000", "WR,8000000ffc"),
            "expected the virtual address of a store that does not cross",
        ),
        (ROW.replace("INVLPG,800020c000", "RD,8000000004"), "expected a virtual address that is a multiple of 8"),
        (ROW.trim_end_matches(",0").to_owned(), "expected 24 columns; this line ends after"),
        (format!("{ROW},5"), "column 25: expected the end of the line after 24 columns, found `5`"),
        (String::from("1,PGE"), "column 3 (a, character 6): expected 24 columns; this line ends after 2, found ``"),
        (String::from("## FUZZ3 seed=1 n=2"), "column 1: expected `## FUZZ seed=S n=N` or `## FUZZ2 seed=S n=N`"),
        (
            HEADER.replace("pf_fixed", "pf_broken"),
            "column 7 (pf_fixed, character 27): expected the column name `pf_fixed`",
        ),
        (
            String::from("\u{fffd}\u{7}"),
            "column 1 (idx, character 1): expected a decimal count, found `\u{fffd}\\u{7}`",
        ),
    ];
    for (line, expected) in cases {
        let message = refused(&line);
        assert!(message.starts_with("file.csv: line 4, ") && message.contains(expected), "{line}: {message}");
    }
}

#[test]
fn a_row_before_the_first_section_is_refused_and_an_empty_file_said_so() {
    let (good, error) = read(&format!("{ROW}\n"));
    assert_eq!(good, 0);
    assert!(
        error
            .unwrap()
            .to_string()
            .contains("line 1, column 1: expected `## FUZZ seed=S n=N` before the first operation")
    );
    let empty = replay(Recording::new("e", "".as_bytes()), Under::Native, Tolerance::Strict, Watch::On);
    assert!(!empty.passed() && empty.error.unwrap().contains("holds no recorded operation"));
}

#[test]
fn a_line_without_end_is_refused_and_not_read_to_its_end() {
    use std::io::{BufReader, Read, repeat};

    let endless = format!("{SECTION}\n{HEADER}\n{ROW}\n");
    let endless = BufReader::new(endless.as_bytes().chain(repeat(b'x')));
    let items: Vec<_> = Recording::new("file.csv", endless).collect();
    assert_eq!(items.len(), 3, "what stands before it is delivered");
    let error = items[2].as_ref().unwrap_err().to_string();
    assert!(error.starts_with("file.csv: line 4, column 1: expected a line of at most 64 KiB, found `xxx"), "{error}");
}

#[test]
fn what_stands_before_a_wrong_line_is_still_reported() {
    let text = format!("{SECTION}\n{ROW}\n{NEXT}\nrubbish\n{ROW}\n");
    let report =
        replay(Recording::new("f", text.as_bytes()), Under::KvmShadow(Kernel::V6_1), Tolerance::Strict, Watch::On);
    assert_eq!((report.rows, report.mismatching_rows, report.passed()), (2, 0, false), "{report}");
    assert!(report.error.unwrap().starts_with("f: line 4, column 1 (idx, character 1)"));
}

/// What a replay says is wrong with a recording, and how many rows it replayed.
fn replayed(text: &str) -> (u64, Option<String>) {
    let under = Under::KvmShadow(Kernel::V6_1);
    let report = replay(Recording::new("f", text.as_bytes()), under, Tolerance::Strict, Watch::Off);
    assert_eq!(report.mismatching_rows, 0, "{report}");
    (report.rows, report.error)
}

#[test]
fn a_section_has_as_many_rows_as_it_announces() {
    assert_eq!(replayed(&format!("{SECTION}\n{ROW}\n{NEXT}\n")), (2, None));
    let (rows, error) = replayed(&format!("{SECTION}\n{ROW}\n{NEXT}\n{}\n", NEXT.replacen('1', "2", 1)));
    let announced =
        "f: line 4, column 1 (idx, character 1): expected a new section or the end: line 1 announces 2 rows";
    assert_eq!((rows, error.unwrap().starts_with(announced)), (2, true));
    // A section that is cut off does not keep those after it from being replayed.
    let short = "f: the section of line 1 announces 2 rows and has 1: the recording is cut off";
    for (text, all) in [
        (format!("{SECTION}\n{ROW}\n"), 1),
        (format!("{SECTION}\n{ROW}\n{SECTION}\n{ROW}\n{NEXT}\n"), 3),
        (format!("{SECTION}\n{ROW}\n{SECTION}\n{ROW}\n"), 2),
    ] {
        let (rows, error) = replayed(&text);
        assert_eq!(rows, all);
        assert!(error.as_ref().is_some_and(|error| error.starts_with(short)), "{error:?}");
    }
    let huge = format!("## FUZZ seed=1 n={0}\n{ROW}\n## FUZZ seed=2 n={0}\n{ROW}\n", u64::MAX);
    assert!(replayed(&huge).1.unwrap().contains(&u64::MAX.to_string()));
}

#[test]
fn rows_within_the_tolerance_are_told_from_mismatching_ones() {
    let off_by_one = ROW.replacen(",1,0,0,0,0,0,0,1,", ",1,0,0,0,0,0,1,1,", 1);
    let replayed = |tolerance| {
        let text = format!("{SECTION}\n{off_by_one}\n{NEXT}\n");
        replay(Recording::new("f", text.as_bytes()), Under::KvmShadow(Kernel::V6_1), tolerance, Watch::Off)
    };
    let report = replayed(Tolerance::Flushes);
    assert_eq!((report.mismatching_rows, report.tolerated_rows), (0, 1));
    let text = report.to_string();
    assert!(text.contains("mismatching rows: 0\nfurther rows that differ, but only in flushes"), "{text}");
    assert!(replayed(Tolerance::Strict).to_string().contains("mismatching rows: 1\n  tlb_flush: 1"));
}

#[test]
fn files_that_cannot_be_read_give_one_error() {
    assert!(matches!(Recording::open(Path::new("no such file")), Err(RecordingError::Open { .. })));
    assert!(matches!(Recording::open(Path::new(env!("CARGO_MANIFEST_DIR"))), Err(RecordingError::Directory { .. })));
    let packed = zstd::encode_all(format!("{SECTION}\n{}", format!("{ROW}\n").repeat(5000)).as_bytes(), 3).unwrap();
    let cut = &packed[..packed.len() / 2];
    let input = std::io::BufReader::new(zstd::Decoder::new(cut).unwrap());
    let last = Recording::new("cut.zst", input).last().unwrap();
    assert!(matches!(last, Err(RecordingError::Read { .. })), "{last:?}");
}

proptest! {
    #![proptest_config(memvirt_properties::cases(256))]

    #[test]
    fn no_input_panics(text in "(## FUZZ2? seed=[0-9]{1,3} n=1\n)?([0-9]{1,2},(RD|PGE|CR3|WRW|XX),[0-9a-f]{0,17},[0-9a-f]{0,3}(,-?[0-9]{1,3}){18,22}\n){0,4}.{0,20}") {
        let items = Recording::new("fuzz", text.as_bytes()).count();
        prop_assert!(items <= text.lines().count());
    }

    #[test]
    fn no_bytes_panic(bytes: Vec<u8>) {
        let _ = Recording::new("fuzz", &bytes[..]).count();
        let _ = micro::parse("fuzz", &String::from_utf8_lossy(&bytes));
    }
}

/// The first bytes decide, not the name.
#[test]
fn compression_is_found_in_the_bytes() {
    let folder = std::env::temp_dir().join(format!("memvirt-reading-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let text = format!("{SECTION}\n{ROW}\n");
    let packed = zstd::encode_all(text.as_bytes(), 3).unwrap();
    for (name, bytes) in [("plain.zst", text.as_bytes()), ("packed.csv", &packed[..])] {
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        let items: Vec<_> = Recording::open(&path).unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(items.len(), 2, "{name}");
    }
    for (first, found) in [(&b"\x1f\x8b\x08"[..], "gzip"), (b"\xfd7zXZ\0", "xz")] {
        let path = folder.join("other.csv");
        std::fs::write(&path, first).unwrap();
        let error = Recording::open(&path).err().map(|error| error.to_string()).unwrap();
        assert!(error.contains(found) && error.contains("zstd"), "{error}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

fn micro_file(name: &str) -> Vec<micro::Group> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/kvm").join(name);
    let text = zstd::decode_all(std::fs::File::open(path).unwrap()).unwrap();
    micro::parse(name, &String::from_utf8(text).unwrap()).unwrap()
}

#[test]
fn micro_recordings_are_read_whole() {
    for name in ["micro-linux61-shadow.txt.zst", "micro-linux612-shadow.txt.zst", "micro-linux61-nested.txt.zst"] {
        let groups = micro_file(name);
        let lines = groups.iter().filter(|group| group.name != "T16").map(|group| group.lines.len()).sum::<usize>();
        assert_eq!(lines, 200, "{name}");
    }
    let groups = micro_file("micro-linux61-shadow.txt.zst");
    let names: Vec<_> = groups.iter().map(|group| group.name.as_str()).collect();
    assert_eq!(names[..8], ["T1", "T1b", "T1c", "T1d", "T2", "T3", "T4", "T4b"]);
    let first = &groups[0].lines[0];
    assert_eq!(first.label, "read page0 (new PDPT/PD/PT shadow)");
    assert_eq!((first.exits(1), first.counter("mmu_cache_miss"), first.counter("pf_guest")), (1, 3, 0));
    assert_eq!(groups[1].lines[0].notes, ["gPTE0=400023 gPTE63=43f023"]);
    let discard = groups.iter().find(|group| group.name == "T11").and_then(|group| group.lines.get(1)).unwrap();
    assert_eq!((discard.exits(0), discard.counter("pages_4k")), (0, -8));
}
