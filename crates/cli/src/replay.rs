//! `memvirt replay`: a recording of real KVM on any platform.

use memvirt_replay::{Recording, Report, Tolerance, Under, Watch};
use memvirt_shadow::kvm::Kernel;

use crate::args::{ReplayArgs, TreeFormat};
use crate::failure::{Status, warn};
use crate::output::print;

pub(crate) fn replay(args: &ReplayArgs) -> anyhow::Result<Status> {
    let under = args.platform.with_kernel(args.kernel);
    let tolerance = if args.strict { Tolerance::Strict } else { under.tolerance() };
    let watch = if args.no_oracle { Watch::Off } else { Watch::On };
    let report = memvirt_replay::replay(Recording::open(&args.file)?, under, tolerance, watch);
    print(&match args.format {
        TreeFormat::Json => serde_json::to_string_pretty(&report)? + "\n",
        TreeFormat::Table => report.to_string(),
    })?;
    if report.kernel.is_some() && report.mismatching_rows > 0 {
        other_kvm(args, &report);
    }
    Ok(verdict(&report))
}

/// A recording of another kernel, or of nested paging, looks like a wrong model; whether it is one is found by replaying it as
/// such.
fn other_kvm(args: &ReplayArgs, report: &Report) {
    let under = args.platform.with_kernel(args.kernel);
    let better = |other: &Under| {
        let recording = Recording::open(&args.file).ok()?;
        let replayed = memvirt_replay::replay(recording, *other, other.tolerance(), Watch::Off);
        let better = replayed.mismatching_rows < report.mismatching_rows && replayed.rows == report.rows;
        better.then_some((replayed.mismatching_rows, *other))
    };
    let mut best: Option<(u64, Under)> = None;
    for found in others(under).iter().filter_map(better) {
        best = Some(best.filter(|(differ, _)| *differ <= found.0).unwrap_or(found));
        if found.0 == 0 {
            break;
        }
    }
    if let Some((differ, other)) = best {
        let platform =
            if other.name() == under.name() { String::new() } else { format!(" --platform {}", other.name()) };
        let kernel = other.kernel().filter(|kernel| Some(*kernel) != under.kernel());
        let kernel = kernel.map(|kernel| format!(" --kernel {}", kernel.name())).unwrap_or_default();
        let rows = report.rows;
        warn(&format!("hint: on {other}, {differ} of {rows} rows differ; try{platform}{kernel}"));
    }
}

/// What else of KVM a recording may be of. Both kernels count alike under nested paging.
fn others(under: Under) -> Vec<Under> {
    let (old, new) = (Kernel::V6_1, Kernel::V6_12);
    match under {
        Under::KvmShadow(kernel) => {
            vec![Under::KvmShadow(if kernel == old { new } else { old }), Under::KvmNested(kernel)]
        }
        Under::KvmNested(_) => vec![Under::KvmShadow(old), Under::KvmShadow(new)],
        _ => Vec::new(),
    }
}

fn verdict(report: &Report) -> Status {
    match &report.error {
        Some(error) => {
            warn(&format!("error: {error}"));
            Status::BadInput
        }
        None if report.passed() => Status::Fine,
        None => Status::CheckFailed,
    }
}
