//! Page faults and flushes of a recorded compiler run, predicted from what an unprivileged user can record of it: areas by
//! strace, addresses by perf. What the kernel's tracepoints counted in a third run is compared with and used for nothing.
#![expect(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use std::path::Path;

use memvirt_lab::faults::{Predicted, Prediction, Verdict, guest, predict};
use memvirt_machine::{Outcome, RegimeKind};
use memvirt_tests::{data, result_of};
use memvirt_trace::{Pair, TraceError};

const BUNDLE: &str = "perf/gcc-compile.kernel-events.tar.zst";
const UNPRIVILEGED: &str = "./gcc.perf-faults-unpriv.txt";

fn prediction() -> Prediction {
    predict(&data(BUNDLE)).unwrap()
}

fn unprivileged(prediction: &Prediction) -> &Predicted {
    prediction.predicted.iter().find(|one| one.addresses == UNPRIVILEGED).unwrap()
}

/// The files of an archive, by their names without folders.
fn members(archive: &Path) -> Vec<(String, Vec<u8>)> {
    const BLOCK: usize = 512;
    let all = zstd::decode_all(std::fs::File::open(archive).unwrap()).unwrap();
    let (mut at, mut members) = (0, Vec::new());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_matches(['\0', ' ']).to_owned();
    while all[at] != 0 {
        let header = &all[at..at + BLOCK];
        let size = usize::from_str_radix(&text(&header[124..136]), 8).unwrap();
        let name = text(&header[..100]).rsplit('/').next().unwrap_or_default().to_owned();
        members.push((name, all[at + BLOCK..at + BLOCK + size].to_vec()));
        at += BLOCK + size.next_multiple_of(BLOCK);
    }
    members
}

/// How far `predicted` is from `recorded`, in percent.
fn off(predicted: u64, recorded: u64) -> f64 {
    100.0 * (predicted as f64 / recorded as f64 - 1.0)
}

#[test]
fn the_texts_are_joined_without_rest() {
    for one in prediction().predicted {
        // Every mapping lies where Linux's rule puts it, in the run of the calls and in that of the faults.
        assert_eq!((one.found.spaces, one.found.mappings, one.found.elsewhere), (3, 85, 0), "{}", one.addresses);
        // What nobody maps: the data that the kernel keeps in front of its page of code, in one of the programs.
        assert!(one.found.unplaced <= 4, "{:?}", one.found);
        assert_eq!((one.guest.faults_refused, one.guest.ignored_ops), (0, 0), "{}", one.addresses);
        assert_eq!((one.guest.forks, one.guest.execs, one.guest.exits), (2, 3, 3), "{}", one.addresses);
        assert_eq!(one.outcome, Outcome::Completed);
        // A load of a page that Linux mapped around another one, or the kernel's own touch, leaves an access without fault.
        assert!(one.faults.total() <= one.found.faults + 2, "{:?}", one.faults);
    }
}

#[test]
fn faults_of_a_compiler_are_predicted_within_five_percent_and_by_kind() {
    let all = prediction();
    let recorded = all.recorded.as_ref().unwrap();
    // grep -c page_fault_user, and by error code: 0x4, 0x14, 0x6, 0x7.
    let of = recorded.faults;
    assert_eq!((of.total(), of.load, of.fetch, of.store, of.protection), (2094, 242, 345, 1376, 131));
    for one in &all.predicted {
        let is = one.faults;
        println!("{}: {is:?}", one.addresses);
        assert!(off(is.total(), of.total()).abs() < 5.0, "{is:?}");
        let kinds = [(is.load, of.load), (is.fetch, of.fetch), (is.store, of.store), (is.protection, of.protection)];
        for (is, of) in kinds {
            assert!(off(is, of).abs() < 5.0, "{}: {is} against {of}", one.addresses);
        }
    }
}

#[test]
fn flushes_of_a_compiler_are_predicted_within_a_quarter_and_by_kind() {
    let all = prediction();
    let recorded = all.recorded.as_ref().unwrap();
    let of = recorded.flushes;
    // grep -c tlb_flush; by reason; and one that the kernel sent to another CPU, on which the assembler had begun.
    assert_eq!((of.total(), of.local, of.task_switch, of.remote), (186, 160, 25, 1));
    assert_eq!(recorded.to_other_programs, 16);
    for one in &all.predicted {
        let is = one.flushes;
        println!("{}: {is:?} {of:?}", one.addresses);
        assert!(off(is.local, of.local).abs() < 5.0, "{is:?}");
        // The schedule is recorded; that a switch to a thread of the kernel loads nothing, and what exec, exit and an address space
        // that was on another CPU do, are the guest's rules.
        assert_eq!((is.task_switch, is.remote), (of.task_switch, of.remote), "{is:?}");
        let schedule = one.schedule.as_ref().unwrap();
        assert_eq!((schedule.switches, schedule.cpus), (43, 2));
        let verdicts: Vec<Verdict> = one.kinds.iter().map(|kind| kind.verdict).collect();
        assert_eq!(verdicts, [Verdict::In; 9], "{:#?}", one.kinds);
    }
}

#[test]
fn which_loads_keep_translations_is_predicted_one_by_one_but_for_other_programs() {
    let all = prediction();
    let (recorded, one) = (all.recorded.as_ref().unwrap(), unprivileged(&all));
    assert_eq!((one.loads.len(), recorded.loads.len()), (25, 25));
    let wrong: Vec<usize> =
        (1..).zip(one.loads.iter().zip(&recorded.loads)).filter(|(_, (is, of))| is != of).map(|(i, _)| i).collect();
    // All three lead to other programs: one to a thread whose address space had been loaded on behalf of another thread, two
    // to programs whose slots were handed on while nobody recorded.
    assert_eq!(wrong, [13, 20, 25], "{:?}", one.loads);
}

#[test]
fn without_a_schedule_switches_stand_where_calls_do() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in members(&data(BUNDLE)) {
        if ["gcc.strace.txt", "gcc.perf-faults-unpriv.txt"].contains(&name.as_str()) {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
    }
    let without = predict(folder.path()).unwrap();
    let [one] = without.predicted.as_slice() else { panic!("{:?}", without.predicted.len()) };
    assert!(without.recorded.is_none() && one.schedule.is_none());
    assert!(one.kinds.iter().all(|kind| kind.verdict == Verdict::NotRecorded), "{:#?}", one.kinds);
    // Two execs after the one that the recording begins in, an exit of each process, and the switches between them.
    assert_eq!((one.flushes.task_switch, one.flushes.remote), (11, 0));
    assert_eq!((one.faults, one.flushes.local), {
        let all = prediction();
        (unprivileged(&all).faults, unprivileged(&all).flushes.local)
    });
}

#[test]
fn what_is_predicted_is_no_tautology() {
    // The same addresses under a guest without fault-around: nothing but what was recorded can fault, so that the count stays,
    // but no store finds its page mapped by a neighbour's fault.
    let pair = Pair::open(data(BUNDLE)).unwrap();
    let with = |guest| result_of(RegimeKind::Native, guest, true, &mut pair.join(UNPRIVILEGED).unwrap());
    let (around, alone) = (with(guest()), with(memvirt_machine::GuestConfig { fault_around_pages: 1, ..guest() }));
    assert_eq!((around.outcome, alone.outcome), (Outcome::Completed, Outcome::Completed));
    assert!(around.guest.faults_by_protection > alone.guest.faults_by_protection + 20, "{:?}", alone.guest);
    assert_eq!(alone.guest.pages_around, 0);
    // Windows four times as wide swallow faults that were recorded.
    let wide = with(memvirt_machine::GuestConfig { fault_around_pages: 64, ..guest() });
    assert!(wide.guest.faults() + 100 < around.guest.faults(), "{} {}", wide.guest.faults(), around.guest.faults());
}

#[test]
fn a_joined_recording_runs_under_every_regime() {
    let pair = Pair::open(data(BUNDLE)).unwrap();
    let native = result_of(RegimeKind::Native, guest(), true, &mut pair.join(UNPRIVILEGED).unwrap());
    for regime in RegimeKind::ALL.iter().copied().filter(|kind| kind.is_correct()) {
        let result = result_of(regime, guest(), true, &mut pair.join(UNPRIVILEGED).unwrap());
        assert_eq!((result.outcome, result.stale.broken), (Outcome::Completed, 0), "{regime}");
        assert_eq!(result.guest.user_accesses, native.guest.user_accesses, "{regime}");
    }
}

#[test]
fn what_is_no_pair_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let said = |result: Result<Pair, TraceError>| result.unwrap_err().to_string();
    write("a.txt", "7 brk(NULL) = 0x1000\n7 exit_group(0) = ?\n");
    assert!(said(Pair::open(folder.path())).contains("no perf text"));
    write("b.txt", "a 7 1.5: page-faults:u: 7f00 7f00\na 8 1.6: page-faults:u: 7f00 7f00\n");
    let pair = Pair::open(folder.path()).unwrap();
    let error = pair.join("b.txt").unwrap_err().to_string();
    assert!(error.contains("1 address spaces in its strace text and 2 in b.txt"), "{error}");
    std::fs::remove_file(folder.path().join("a.txt")).unwrap();
    assert!(said(Pair::open(folder.path())).contains("no strace text"));
}
