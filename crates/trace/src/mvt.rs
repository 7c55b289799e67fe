//! memvirt's own traces as streams of processes.
//!
//! A damaged file gives everything that can be read: a stream that breaks off ends there and the others go on; what was
//! wrong is said at the end. Where the file is known to be damaged from the start, processes whose fork is lost run as those do
//! that nobody forks.

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

use memvirt_mvt::{Damage, Mvt, MvtError, ProcessReader};
use memvirt_ops::process::{Batch, Op, ProcessId, Source};

use crate::error::TraceError;
use crate::interleave::Family;

/// The note that names the processes nobody forks.
pub(crate) const ROOTS: &str = "roots";

/// The damage that streams met first in the file.
type Broken = Arc<Mutex<Option<Damage>>>;

/// The processes of a file.
pub(crate) struct MvtFamily {
    pub(crate) mvt: Mvt<File>,
    broken: Broken,
    /// Processes whose fork is lost.
    strays: Vec<ProcessId>,
}

/// One process of a file.
pub(crate) struct MvtStream {
    reader: ProcessReader<File>,
    broken: Broken,
}

impl MvtFamily {
    pub(crate) fn new(mvt: Mvt<File>) -> Self {
        let strays = if mvt.damage().is_some() { strays(&mvt) } else { Vec::new() };
        Self { mvt, broken: Broken::default(), strays }
    }

    /// The stream of the first process, which is all of a file with a recorded order.
    pub(crate) fn first(&self) -> MvtStream {
        self.open(ProcessId::FIRST)
    }

    fn open(&self, process: ProcessId) -> MvtStream {
        MvtStream { reader: self.mvt.process(process), broken: Arc::clone(&self.broken) }
    }

    /// What is wrong with the file, as far as anybody knows by now.
    pub(crate) fn damage(&self) -> Option<TraceError> {
        let met = self.broken.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let damage = met.into_iter().chain(self.mvt.damage().cloned()).min_by_key(|damage| damage.offset)?;
        Some(MvtError::Damaged { name: self.mvt.name().to_owned(), damage }.into())
    }
}

/// The processes of a damaged file that no intact part forks.
fn strays(mvt: &Mvt<File>) -> Vec<ProcessId> {
    let all = mvt.processes();
    let mut forked = BTreeSet::from([ProcessId::FIRST]);
    for process in &all {
        let (mut stream, mut batch) = (mvt.process(*process), Batch::default());
        while stream.next_batch(&mut batch).unwrap_or(false) {
            if let Some(Op::Fork { child } | Op::Vfork { child }) = batch.then {
                forked.insert(child);
            }
        }
    }
    all.into_iter().filter(|process| !forked.contains(process)).collect()
}

impl Family for MvtFamily {
    type Stream = MvtStream;
    type Error = TraceError;

    fn roots(&self) -> Vec<ProcessId> {
        let noted = self.mvt.header().note(ROOTS).unwrap_or_default();
        let mut roots = vec![ProcessId::FIRST];
        roots.extend(noted.split(',').filter_map(|number| number.parse().ok()).filter(|n| *n > 0).map(ProcessId));
        let strays: Vec<_> = self.strays.iter().copied().filter(|stray| !roots.contains(stray)).collect();
        roots.extend(strays);
        roots
    }

    fn processes(&self) -> u64 {
        self.mvt.processes().len() as u64
    }

    fn stream(&mut self, process: ProcessId) -> Result<MvtStream, TraceError> {
        Ok(self.open(process))
    }
}

impl Source for MvtStream {
    type Error = TraceError;

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, TraceError> {
        match self.reader.next_batch(batch) {
            Err(MvtError::Damaged { damage, .. }) => {
                batch.clear();
                let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
                if broken.as_ref().is_none_or(|first| damage.offset < first.offset) {
                    *broken = Some(damage);
                }
                Ok(false)
            }
            other => Ok(other?),
        }
    }
}
