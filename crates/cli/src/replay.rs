//! `memvirt replay`: a recording of real KVM on any platform.

use memvirt_replay::{Recording, Report, Tolerance, Watch};

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
    Ok(verdict(&report))
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
