//! Rows against the model, and against what can be known of them.

use memvirt_addr::PageSize;
use memvirt_workload::{Spec, Workload};

use super::*;

const MIB: u64 = 1 << 20;
const KVM: [RegimeKind; 2] = [RegimeKind::ShadowKvm61, RegimeKind::ShadowKvm612];

fn plan(regimes: &[RegimeKind], processes: &[u32], footprint: u64, usage: Use) -> FootprintPlan {
    FootprintPlan {
        workload: Workload::find("footprint").unwrap(),
        regimes: regimes.to_vec(),
        processes: processes.to_vec(),
        footprint: Some(footprint),
        usage: Some(usage),
        rounds: Some(2),
        shadow_page_limit: None,
        overrides: Overrides::default(),
        machine: MachineSpec::load(std::ffi::OsStr::new(MachineSpec::DEFAULT)).unwrap(),
        seed: 0,
        threads: None,
        command: String::new(),
    }
}

fn on_pages(plan: FootprintPlan, guest: PageSize, host: PageSize) -> FootprintTable {
    let overrides = Overrides { guest_page: Some(guest), host_page: Some(host), ..plan.overrides };
    FootprintPlan { overrides, ..plan }.run().unwrap()
}

const PAGES: [PageSize; 2] = [PageSize::Size4K, PageSize::Size2M];

#[test]
fn dense_use_is_predicted_to_the_byte() {
    let regimes = [RegimeKind::Native, RegimeKind::NestedEpt, KVM[0], KVM[1]];
    for (processes, bytes) in [(&[1, 2, 20][..], MIB), (&[1, 3], 64 * MIB)] {
        for (guest, host) in PAGES.into_iter().flat_map(|guest| PAGES.map(|host| (guest, host))) {
            for row in on_pages(plan(&regimes, processes, bytes, Use::Dense), guest, host).rows {
                let what = format!("{} x {} of {bytes}, {guest} on {host}", row.regime, row.processes);
                assert_eq!(Some(row.measured.end), row.predicted, "{what}");
            }
        }
    }
}

#[test]
fn random_use_is_predicted_within_two_percent() {
    let regimes = [RegimeKind::Native, RegimeKind::NestedEpt, KVM[0]];
    for (share, bytes) in [(0.001, 256 * MIB), (0.02, 64 * MIB), (0.5, 64 * MIB)] {
        for (guest, host) in PAGES.into_iter().flat_map(|guest| PAGES.map(|host| (guest, host))) {
            for row in on_pages(plan(&regimes, &[1, 8], bytes, Use::Sparse(share)), guest, host).rows {
                let (measured, predicted) = (row.measured.end, row.predicted.unwrap());
                let parts = [
                    (measured.total(), predicted.total()),
                    (measured.virtualization(), predicted.virtualization()),
                    (measured.guest, predicted.guest),
                ];
                for (measured, predicted) in parts {
                    assert!(
                        relative(predicted, measured).abs() <= 0.02,
                        "{} x {} of {bytes} * {share}, {guest} on {host}: {:?} {:?}",
                        row.regime,
                        row.processes,
                        row.measured.end,
                        row.predicted
                    );
                }
            }
        }
    }
}

#[test]
fn every_table_belongs_to_somebody() {
    for regime in [KVM[0], RegimeKind::ShadowWriteProtect, RegimeKind::ShadowLazyFill] {
        let table = plan(&[regime], &[3], 4 * MIB, Use::Dense).run().unwrap();
        let (row, frames) = (&table.rows[0], table.guest.memory_bytes / 4096);
        let Owners { processes, kernel, shadow_shared, shadow_unowned } = &row.measured.owners;
        // A root, a table of each other level but the lowest, and two of that.
        assert!(processes.len() == 3 && processes.iter().all(|process| process.guest == 5 * 4096), "{processes:?}");
        let bytes = row.measured.peak.bytes;
        assert_eq!(kernel + processes.iter().map(|process| process.guest).sum::<u64>(), bytes.guest);
        let owned = processes.iter().map(|process| process.shadow).sum::<u64>() + shadow_shared + shadow_unowned;
        let slot = 2 * frames + 4 * (frames / 512 + frames / 512 / 512) + (32 << 10);
        assert_eq!(owned, bytes.shadow + bytes.records - slot, "{regime}");
        assert!(processes.iter().all(|process| process.shadow >= 5 * 4096), "{regime}: {processes:?}");
        // The kernel's shadow pages serve all, and a process has those of its own tables; but for trees that are kept for each root.
        let own = processes.iter().all(|process| process.shadow == 5 * (4096 + 4096 + 184));
        let trees = regime == RegimeKind::ShadowLazyFill;
        assert!(trees || own, "{regime}: {processes:?}");
        assert_eq!(*shadow_shared == 0, trees, "{regime}");
    }
}

#[test]
fn a_limit_brings_refaults_and_holds() {
    let run = |limit| {
        let plan = FootprintPlan { shadow_page_limit: limit, ..plan(&[KVM[0]], &[4], 64 * MIB, Use::Sparse(0.02)) };
        plan.run().unwrap().rows.remove(0)
    };
    let [none, wide, narrow] = [None, Some(120), Some(64)].map(run);
    assert_eq!(none.refaults, Some(0));
    assert!(wide.refaults > Some(100) && narrow.refaults > wide.refaults, "{:?} {:?}", wide.refaults, narrow.refaults);
    for (row, limit) in [(&wide, 120), (&narrow, 64)] {
        let most = row.measured.series.iter().map(|sample| sample.bytes.shadow / 4096).max();
        assert!(most <= Some(limit + 4), "{most:?} of {limit}");
        assert_eq!(row.measured.guest_faults, none.measured.guest_faults, "the guest notices nothing");
    }
}

/// Whole processes go while their tables are out of sync, pages one by one when they come round again.
#[test]
fn what_a_limit_leaves_is_predicted_within_two_percent() {
    let uses = [(Use::Sparse(0.02), 1), (Use::Sparse(0.02), 2), (Use::Dense, 1)];
    for ((usage, rounds), limit) in uses.into_iter().flat_map(|usage| [80, 120, 200, 300].map(|limit| (usage, limit))) {
        let plan = FootprintPlan {
            rounds: Some(rounds),
            shadow_page_limit: Some(limit),
            ..plan(&[KVM[0]], &[12], 64 * MIB, usage)
        };
        let row = plan.run().unwrap().rows.remove(0);
        let (end, said) = (row.measured.end, row.predicted.unwrap());
        for (measured, predicted) in [(end.total(), said.total()), (end.virtualization(), said.virtualization())] {
            let error = relative(predicted, measured);
            assert!(error.abs() <= 0.02, "{usage:?} {rounds} {limit}: {error} {end:?} {said:?}");
        }
        if rounds == 1 {
            // To the page, but for a few.
            let pages = |bytes: Bytes| bytes.shadow / 4096;
            assert!(pages(end).abs_diff(pages(said)) <= 2, "{usage:?} {limit}: {end:?} {said:?}");
        }
    }
}

#[test]
fn a_series_ends_at_the_end_and_the_peak_is_its_largest() {
    let mut plan = plan(&[KVM[0], RegimeKind::NestedEpt], &[2], 16 * MIB, Use::Dense);
    plan.workload = Workload::find("fork-and-exit").unwrap();
    (plan.usage, plan.footprint) = (None, None);
    for row in plan.run().unwrap().rows {
        let Measured { series, end, peak, owners, .. } = row.measured;
        assert!(
            (SAMPLES / 2..=SAMPLES + 1).contains(&series.len()) && series.is_sorted_by_key(|sample| sample.accesses)
        );
        assert_eq!(series.last().map(|sample| sample.bytes), Some(end));
        assert!(
            series.iter().all(|sample| sample.bytes.total() <= peak.bytes.total()) && peak.bytes.total() > end.total()
        );
        let guest: u64 = owners.processes.iter().map(|process| process.guest).sum();
        assert_eq!(guest + owners.kernel, peak.bytes.guest, "the owners are those of the peak");
        assert_eq!(row.predicted, None);
    }
}

#[test]
fn threads_change_nothing() {
    let run = |threads| {
        let regimes = [RegimeKind::Native, RegimeKind::NestedEpt, KVM[0]];
        let plan = FootprintPlan { threads, ..plan(&regimes, &[1, 4], 2 * MIB, Use::Sparse(0.3)) };
        serde_json::to_string(&plan.run().unwrap()).unwrap()
    };
    assert_eq!(run(NonZeroUsize::new(1)), run(NonZeroUsize::new(3)));
}

#[test]
fn numbers_that_no_workload_has_are_refused() {
    for (processes, bytes) in [(0, MIB), (1, 100), (1, 1 << 50)] {
        let error = plan(&[RegimeKind::Native], &[processes], bytes, Use::Dense).run().unwrap_err().to_string();
        let field = if processes == 0 { "processes: expected" } else { "footprint: expected" };
        assert!(error.starts_with(field), "{error}");
    }
    assert!(matches!(Workload::find("footprint").unwrap().spec(), Spec::Residents(_)));
}

#[test]
fn instances_of_any_workload_live_beside_each_other() {
    let workload = Workload::find("zipf").unwrap().scaled(0.001).unwrap();
    let dense = plan(&[RegimeKind::NestedEpt, KVM[0]], &[1, 3], 4 * MIB, Use::Dense);
    let table = FootprintPlan { workload, usage: None, ..dense }.run().unwrap();
    assert_eq!(table.footprint_bytes, 4 * MIB);
    for rows in table.rows.chunks(2) {
        let [one, three] = rows else { panic!("two rows of each regime") };
        let each = |row: &Row| -> Vec<u64> { row.measured.owners.processes.iter().map(|of| of.guest).collect() };
        let regime = one.regime;
        // A root, and tables of three levels for 4 MiB that begin at a multiple of 2 MiB.
        assert_eq!((each(one), each(three)), (vec![5 * 4096], vec![5 * 4096; 3]), "{regime}");
        assert_eq!(one.measured.outcome, Outcome::Completed);
        let accesses = |row: &Row| row.measured.peak.accesses.max(row.measured.series.last().unwrap().accesses);
        assert_eq!(accesses(three), 3 * accesses(one), "{regime}");
        assert!(three.measured.data_frames > 2 * one.measured.data_frames, "{regime}: memory of their own");
        let shadow = |row: &Row| row.measured.end.shadow;
        assert!(regime == RegimeKind::NestedEpt || shadow(three) >= shadow(one) + 2 * 5 * 4096, "{regime}");
    }
}

#[test]
fn how_densely_memory_is_used_is_for_residents_and_says_so() {
    let mut plan = plan(&[RegimeKind::Native], &[2], 4 * MIB, Use::Dense);
    plan.workload = Workload::find("zipf").unwrap();
    let error = plan.run().unwrap_err().to_string();
    assert!(
        error.contains("`zipf` uses its memory as its file says") && error.contains("such as footprint"),
        "{error}"
    );
}

#[test]
fn more_than_a_guest_can_have_is_refused_before_it_runs() {
    let error = plan(&[RegimeKind::Native], &[1024], 64 << 30, Use::Dense).run().unwrap_err().to_string();
    assert!(error.contains("need about 64") && error.contains("at most 2 TiB"), "{error}");
    assert!(error.contains("--sparse"), "{error}");
}
