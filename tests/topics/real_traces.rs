//! A recorded program under native, shadow and nested paging.
#![expect(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use memvirt_machine::{RegimeKind, RunResult};
use memvirt_tests::{data, result_of, trace_guest};
use memvirt_trace::MemoryCalls;

fn run(regime: RegimeKind, check: bool) -> RunResult {
    run_with(MemoryCalls::Ignore, regime, check)
}

fn run_with(calls: MemoryCalls, regime: RegimeKind, check: bool) -> RunResult {
    let trace = memvirt_trace::open(data("lackey/compress-300-lines.lackey.zst")).unwrap();
    result_of(regime, trace_guest(), check, &mut trace.with_memory_calls(calls))
}

#[test]
fn nothing_is_broken_and_the_program_runs_alike_everywhere() {
    let native = run(RegimeKind::Native, true);
    // 519,213 fetches, 124,964 loads, 78,776 stores, 3,434 modifies of two accesses each; some cross a page.
    assert!(native.guest.user_accesses >= 519_213 + 124_964 + 78_776 + 2 * 3_434);
    assert_eq!(native.guest.instructions, 519_213);
    for regime in RegimeKind::ALL.iter().copied().filter(|kind| kind.is_correct()) {
        let result = run(regime, true);
        assert_eq!((result.stale.broken, result.guest), (0, native.guest), "{regime}");
    }
}

#[test]
fn walks_cost_four_references_flat_and_up_to_twenty_four_nested() {
    for (regime, most) in [(RegimeKind::Native, 4), (RegimeKind::ShadowWriteProtect, 4), (RegimeKind::NestedEpt, 24)] {
        let result = run(regime, false);
        assert!(result.walk_refs.total <= most * result.walks, "{regime}");
        assert!(result.refs_per_walk() > most as f64 * 0.85, "{regime}: {}", result.refs_per_walk());
    }
}

#[test]
fn exits_are_those_that_each_mechanism_has() {
    let nested = run(RegimeKind::NestedEpt, false);
    assert_eq!(nested.exits.keys().copied().collect::<Vec<_>>(), ["ept_violation", "total"]);
    let shadow = run(RegimeKind::ShadowWriteProtect, false);
    let kinds: Vec<_> = shadow.exits.keys().copied().collect();
    assert!(["hidden_fault", "reflected_fault", "table_write", "cr3_load"].iter().all(|kind| kinds.contains(kind)));
    assert_eq!(shadow.exits["reflected_fault"], shadow.guest_page_faults);
    // One process whose pages only come into being: nothing to flush one by one, and CR3 is loaded when the process is made
    // current and when its address space is torn down.
    assert!(!kinds.contains(&"invlpg"));
    assert_eq!(shadow.exits["cr3_load"], 2);
}

#[test]
fn memory_calls_that_are_carried_out_unmap_and_flush() {
    let native = run_with(MemoryCalls::Apply, RegimeKind::Native, true);
    assert!(native.guest.invlpgs > 0);
    for regime in RegimeKind::ALL.iter().copied().filter(|kind| kind.is_correct()) {
        let result = run_with(MemoryCalls::Apply, regime, true);
        assert_eq!((result.stale.broken, result.guest), (0, native.guest), "{regime}");
    }
    let shadow = run_with(MemoryCalls::Apply, RegimeKind::ShadowWriteProtect, false);
    assert_eq!(shadow.exits["invlpg"], shadow.guest.invlpgs);
}
