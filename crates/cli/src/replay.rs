//! `memvirt replay`: a recording of real KVM on any platform.

use memvirt_replay::{Recording, Report, Tolerance, Watch};
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
        other_kernel(args, &report);
    }
    Ok(verdict(&report))
}

/// A recording of another kernel looks like a wrong model; whether it is one is found by replaying it as such.
fn other_kernel(args: &ReplayArgs, report: &Report) {
    let kernel = match args.kernel {
        Kernel::V6_1 => Kernel::V6_12,
        Kernel::V6_12 => Kernel::V6_1,
    };
    let under = args.platform.with_kernel(kernel);
    let Ok(recording) = Recording::open(&args.file) else { return };
    let other = memvirt_replay::replay(recording, under, under.tolerance(), Watch::Off);
    if other.mismatching_rows < report.mismatching_rows && other.rows == report.rows {
        let (name, rows, differ) = (kernel.name(), other.rows, other.mismatching_rows);
        warn(&format!("hint: as Linux {name}, {differ} of {rows} rows differ; try --kernel {name}"));
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
