//! memvirt's own traces as streams of processes.

use std::fs::File;

use memvirt_mvt::{Mvt, ProcessReader};
use memvirt_ops::process::{Batch, ProcessId, Source};

use crate::error::TraceError;
use crate::interleave::Family;

/// The note that names the processes nobody forks.
pub(crate) const ROOTS: &str = "roots";

/// The processes of a file.
pub(crate) struct MvtFamily {
    pub(crate) mvt: Mvt<File>,
}

/// One process of a file.
pub(crate) struct MvtStream(ProcessReader<File>);

impl MvtFamily {
    /// The stream of the first process, which is all of a file with a recorded order.
    pub(crate) fn first(&self) -> MvtStream {
        MvtStream(self.mvt.process(ProcessId::FIRST))
    }
}

impl Family for MvtFamily {
    type Stream = MvtStream;
    type Error = TraceError;

    fn roots(&self) -> Vec<ProcessId> {
        let noted = self.mvt.header().note(ROOTS).unwrap_or_default();
        let mut roots = vec![ProcessId::FIRST];
        roots.extend(noted.split(',').filter_map(|number| number.parse().ok()).filter(|n| *n > 0).map(ProcessId));
        roots
    }

    fn processes(&self) -> u64 {
        self.mvt.processes().len() as u64
    }

    fn stream(&mut self, process: ProcessId) -> Result<MvtStream, TraceError> {
        Ok(MvtStream(self.mvt.process(process)))
    }
}

impl Source for MvtStream {
    type Error = TraceError;

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, TraceError> {
        Ok(self.0.next_batch(batch)?)
    }
}
