//! Every built-in workload under every regime: nothing broken, the same guest everywhere, counts that follow from mechanism.
#![expect(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use memvirt_addr::{Acc, AccessKind, Gva};
use memvirt_lab::{Input, Overrides};
use memvirt_machine::{GuestConfig, Invlpg, Outcome, RegimeKind, RunResult};
use memvirt_ops::process::{Backing, Batch, Op, ProcessId, Prot, Range, Source};
use memvirt_tests::result_of;
use memvirt_workload::script::Script;
use memvirt_workload::units::Count;
use memvirt_workload::{Generator, Spec, Workload};

/// The accesses of a workload that the oracle can watch, beside those of a script's preparations.
const ACCESSES: u64 = 15_000;

/// A workload, cut off so that the oracle can watch it.
struct Cut {
    generator: Generator,
    left: u64,
}

impl Cut {
    fn of(name: &str) -> Self {
        Self::after(name, ACCESSES)
    }

    /// So many accesses of a workload, a third of them of a script beside its preparations.
    fn after(name: &str, accesses: u64) -> Self {
        let workload = Workload::find(name).unwrap();
        let (spec, generator) = (workload.spec(), workload.generator(7));
        let left = if spec.kind() == "script" { preparations(spec) + accesses / 3 } else { accesses };
        Self { generator, left }
    }
}

impl Source for Cut {
    type Error = std::convert::Infallible;

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, Self::Error> {
        let more = self.left > 0 && self.generator.next_batch(batch)?;
        if !more {
            batch.clear();
        }
        // Operations count as well, for scripts that do little else.
        self.left = self.left.saturating_sub(batch.run.len() as u64 + 1);
        Ok(more)
    }
}

/// Accesses before a script's body.
fn preparations(spec: &Spec) -> u64 {
    let accesses = |iterations| match spec.clone() {
        Spec::Script(script) => {
            let iterations = Count::try_new(iterations).unwrap();
            Spec::Script(Script { iterations, ..script }).facts().accesses.value()
        }
        _ => 0,
    };
    2 * accesses(1) - accesses(2)
}

fn run(name: &str, regime: RegimeKind, guest: GuestConfig, check: bool) -> RunResult {
    result_of(regime, guest, check, &mut Cut::of(name))
}

/// The guest that a workload's file asks for.
fn guest_of(name: &str) -> GuestConfig {
    Overrides::default().guest(&Input::Workload(Box::new(Workload::find(name).unwrap())))
}

fn every_regime_agrees(name: &str, guest: GuestConfig) {
    every_regime_agrees_after(name, guest, ACCESSES);
}

fn every_regime_agrees_after(name: &str, guest: GuestConfig, accesses: u64) {
    let run = |name, regime, guest, check| result_of(regime, guest, check, &mut Cut::after(name, accesses));
    let native = run(name, RegimeKind::Native, guest, true);
    assert_eq!(native.outcome, Outcome::Completed);
    assert_eq!(native.total_exits(), 0, "{name}: a bare machine has nobody to exit to");
    for regime in RegimeKind::ALL.iter().copied().filter(|kind| kind.is_correct()) {
        let result = run(name, regime, guest, true);
        // A regime that asks something of the guest is held against a bare machine whose guest does that too.
        let asked = regime.asks_of(guest);
        let native = if asked == guest { &native } else { &run(name, RegimeKind::Native, asked, true) };
        assert_eq!(result.outcome, Outcome::Completed, "{name} under {regime}");
        assert!(result.stale.checked);
        assert_eq!(result.stale.broken, 0, "{name} under {regime}");
        assert_eq!(result.guest, native.guest, "{name} under {regime}: the guest must not notice the regime");
        assert_eq!(result.guest_page_faults, native.guest_page_faults, "{name} under {regime}");
        assert_eq!(result.accesses, native.accesses, "{name} under {regime}");
        assert_eq!(result.table_bytes.guest, native.table_bytes.guest, "{name} under {regime}");
    }
}

#[test]
fn every_workload_runs_alike_under_every_regime() {
    for workload in Workload::builtin() {
        if workload.name != "gups" {
            every_regime_agrees(workload.name, guest_of(workload.name));
        }
    }
}

#[test]
fn isolation_and_process_tags_change_nothing_that_a_guest_sees() {
    for (kpti, pcid) in [(true, false), (false, true), (true, true)] {
        for name in ["fork-and-exit", "churn"] {
            every_regime_agrees(name, GuestConfig { kpti, pcid, ..GuestConfig::default() });
        }
    }
}

#[test]
fn what_a_guest_does_by_itself_changes_nothing_either() {
    let busy = GuestConfig {
        tick_instructions: 5_000,
        interrupt_instructions: 3_000,
        collapse_scan_pages: 4096,
        aging_pages: 64,
        memory_bytes: 1 << 30,
        ..GuestConfig::linux()
    };
    for name in ["churn", "forkwait"] {
        every_regime_agrees_after(name, busy, 3_000);
        let result = run(name, RegimeKind::Native, busy, false);
        assert!(result.guest.ticks > 0 && result.guest.interrupts > 0 && result.guest.entries_aged > 0, "{name}");
    }
}

/// A process that maps, stores, unmaps, lets another process run, and maps and stores at the same place again.
struct Again(u32);

impl Source for Again {
    type Error = std::convert::Infallible;

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, Self::Error> {
        let range = Range { start: Gva::new(0x4000_0000), bytes: 4 << 12 };
        let child = ProcessId(1);
        batch.clear();
        batch.then = match self.0 {
            0 => Some(Op::Fork { child }),
            1 | 6 => Some(Op::Mmap { range, prot: Prot::RW, backing: Backing::AnonymousPrivate }),
            3 => Some(Op::Munmap { range }),
            4 => Some(Op::Switch { to: child }),
            5 => Some(Op::Switch { to: ProcessId::FIRST }),
            _ => None,
        };
        if batch.then.is_none() {
            let page = |page: u64| Acc::user(range.start.wrapping_add(page << 12), AccessKind::Write);
            batch.run.extend((0..4).map(page));
        }
        self.0 += 1;
        Ok(self.0 <= 8)
    }
}

#[test]
fn the_naive_policy_is_caught_where_a_guest_forgets_invlpg() {
    let machine = memvirt_machine::MachineSpec::load(memvirt_machine::MachineSpec::DEFAULT).unwrap();
    let broken = |regime, invlpg| {
        let setup = memvirt_machine::Setup {
            regime,
            guest: GuestConfig { invlpg, ..GuestConfig::default() },
            host: memvirt_machine::HostConfig::default(),
            machine: machine.clone(),
            measure: memvirt_machine::Measure::default(),
            check: true,
        };
        memvirt_machine::run(&setup, &mut Again(0), &mut |_| {}).unwrap().result.stale.broken
    };
    // The two CR3 loads in between are all the flush that hardware needs, and all that a correct policy needs.
    assert_eq!(broken(RegimeKind::ShadowInvlpgOnly, Invlpg::Used), 0);
    assert!(broken(RegimeKind::ShadowInvlpgOnly, Invlpg::Forgotten) > 0);
    for regime in RegimeKind::ALL.iter().copied().filter(|kind| kind.is_correct()) {
        assert_eq!(broken(regime, Invlpg::Forgotten), 0, "{regime}");
    }
}

#[test]
fn large_guest_pages_run_alike_too() {
    for name in ["fork-and-exit", "churn", "uniform"] {
        every_regime_agrees(name, GuestConfig { guest_page: memvirt_addr::PageSize::Size2M, ..GuestConfig::default() });
    }
}

#[test]
fn nested_paging_exits_for_violations_only_and_once_for_each_frame() {
    for name in ["touch-and-free", "fork-and-exit", "churn"] {
        let result = run(name, RegimeKind::NestedEpt, GuestConfig::default(), false);
        let violations = result.exits["ept_violation"];
        assert_eq!(result.total_exits(), violations);
        // One entry was set for each violation, and none twice: no frame is mapped a second time.
        assert_eq!(result.work.entries_set, violations);
        assert_eq!(result.work.entries_cleared, 0);
    }
}

/// The order of published row W15 (flat nested table against the two-dimensional walk), from the mechanism: the same exits, and
/// walks of 9 references at most.
#[test]
fn a_flat_nested_table_exits_as_the_tree_does_and_walks_less() {
    for name in ["touch-and-free", "fork-and-exit", "churn"] {
        let [flat, tree] =
            [RegimeKind::Flat, RegimeKind::NestedEpt].map(|regime| run(name, regime, GuestConfig::default(), false));
        assert_eq!(flat.exits, tree.exits, "{name}");
        assert_eq!(flat.walks, tree.walks, "{name}");
        assert!(flat.walk_refs.total <= 9 * flat.walks && 2 * flat.walk_refs.total < tree.walk_refs.total, "{name}");
        assert!(flat.cycles.total < tree.cycles.total, "{name}");
    }
}

#[test]
fn a_trapped_store_is_a_store_that_the_guest_made() {
    for name in ["touch-and-free", "fork-and-exit", "churn"] {
        let result = run(name, RegimeKind::ShadowWriteProtect, GuestConfig::default(), false);
        assert!(result.exits["table_write"] <= result.guest.table_stores);
        assert_eq!(result.exits["reflected_fault"], result.guest_page_faults);
        assert_eq!(result.exits["cr3_load"], result.guest.cr3_loads);
        assert_eq!(result.exits.get("invlpg").copied().unwrap_or(0), result.guest.invlpgs);
    }
}

#[test]
fn isolation_costs_two_cr3_loads_for_each_kernel_entry() {
    let plain = run("touch-and-free", RegimeKind::Native, GuestConfig::default(), false);
    let isolated = GuestConfig { kpti: true, ..GuestConfig::default() };
    let with = run("touch-and-free", RegimeKind::ShadowWriteProtect, isolated, false);
    assert_eq!(with.guest.kernel_entries, plain.guest.kernel_entries);
    // The first entry, which makes the first process, has no user side to come from.
    assert_eq!(with.guest.cr3_loads, plain.guest.cr3_loads + 2 * plain.guest.kernel_entries - 1);
    assert_eq!(with.exits["cr3_load"], with.guest.cr3_loads);
}

#[test]
fn the_same_seed_gives_the_same_result() {
    for regime in RegimeKind::ALL.iter().copied().filter(|kind| kind.is_correct()) {
        let once = run("churn", regime, GuestConfig::default(), false);
        assert_eq!(once, run("churn", regime, GuestConfig::default(), false));
    }
}

#[test]
fn a_guest_without_memory_ends_in_words_not_in_a_panic() {
    let workload = Workload::find("uniform").unwrap();
    let guest = GuestConfig { memory_bytes: 64 << 20, ..GuestConfig::default() };
    for regime in RegimeKind::ALL.iter().copied().filter(|kind| kind.is_correct()) {
        let result = result_of(regime, guest, false, &mut workload.generator(1));
        assert_eq!(result.outcome, Outcome::GuestOutOfMemory, "{regime}");
        assert!(result.accesses > 0, "what was run before counts");
    }
}

#[test]
fn the_naive_policy_is_caught_where_a_guest_flushes_by_cr3() {
    // Fork write-protects the parent's pages and flushes by loading CR3: copy on write breaks under the naive policy.
    let workload = Workload::find("fork-and-exit").unwrap().scaled(0.05).unwrap();
    let machine = memvirt_machine::MachineSpec::load(memvirt_machine::MachineSpec::DEFAULT).unwrap();
    let setup = memvirt_machine::Setup {
        regime: RegimeKind::ShadowInvlpgOnly,
        guest: GuestConfig::default(),
        host: memvirt_machine::HostConfig::default(),
        machine,
        measure: memvirt_machine::Measure::default(),
        check: true,
    };
    let finished = memvirt_machine::run(&setup, &mut workload.generator(7), &mut |_| {}).unwrap();
    assert!(finished.result.stale.broken > 0);
    assert!(!finished.violations.is_empty(), "the first ones are named");
}
