//! What can go wrong around an experiment; what happens *in* one is a result.

use std::io;
use std::path::PathBuf;

use memvirt_machine::MachineError;
use memvirt_trace::TraceError;

/// An experiment that cannot be run, or whose report cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    /// The trace cannot be read at all.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The machine cannot be built.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A workload cannot be used.
    #[error(transparent)]
    Workload(#[from] memvirt_workload::WorkloadError),
    /// The parameters of a workload contradict each other.
    #[error("workload: {0}")]
    Parameters(#[from] memvirt_workload::SpecError),
    /// No regime was asked for.
    #[error("no regime to run; name at least one, as in `native,shadow:write-protect,nested`")]
    NoRegime,
    /// The threads cannot be started.
    #[error("cannot start {threads} threads: {reason}; fewer may do")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// What the operating system said.
        reason: String,
    },
    /// A file of the report cannot be written.
    #[error("cannot write the report: {}: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A figure cannot be drawn.
    #[error("cannot draw figure `{figure}`: {reason}")]
    Draw {
        /// The figure.
        figure: String,
        /// What the plotting library said.
        reason: String,
    },
    /// A result cannot be turned into JSON.
    #[error("cannot serialize the results: {0}")]
    Serialize(#[from] serde_json::Error),
    /// A footprint was asked for that no workload has.
    #[error("{0}")]
    Footprint(String),
    /// A walk was asked for that no machine makes.
    #[error("{0}")]
    Walk(String),
    /// A scaling run was asked for that cannot be made.
    #[error("{0}")]
    Scale(String),
    /// A cost model cannot be evaluated.
    #[error("cost model: {0}")]
    Model(String),
    /// A plan cannot be carried out.
    #[error(transparent)]
    Plan(#[from] Box<crate::plan::PlanError>),
}
