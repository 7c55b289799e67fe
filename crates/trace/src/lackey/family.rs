//! Who is whose child in a recording of several processes: [`Kin`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use memvirt_ops::process::ProcessId;

use super::calls::Calls;
use crate::calls::Files;

/// The processes of a recording by the numbers that the operating system gave them, shared by the readers of their logs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kin {
    shared: Option<Arc<Shared>>,
}

#[derive(Debug)]
struct Shared {
    processes: BTreeMap<u32, ProcessId>,
    /// What children take over from their parents, from the fork until their logs are opened.
    inherited: Mutex<BTreeMap<ProcessId, Files>>,
}

impl Kin {
    pub(crate) fn new(processes: BTreeMap<u32, ProcessId>) -> Self {
        Self { shared: Some(Arc::new(Shared { processes, inherited: Mutex::default() })) }
    }

    /// Whether this is a recording of several processes.
    pub(crate) fn is_known(&self) -> bool {
        self.shared.is_some()
    }

    /// The number of a process in the stream, where the recording has a log of it.
    pub(crate) fn process(&self, pid: u32) -> Option<ProcessId> {
        self.shared.as_ref()?.processes.get(&pid).copied()
    }

    /// Notes what `child` takes over.
    pub(crate) fn inherit(&self, child: ProcessId, files: &Files) {
        if let Some(shared) = &self.shared {
            shared.inherited.lock().unwrap_or_else(PoisonError::into_inner).insert(child, files.clone());
        }
    }

    /// Calls of which nothing is known.
    pub(crate) fn calls(&self) -> Calls {
        Calls::of_child(self.clone(), Files::default())
    }

    /// The calls of a process at its beginning, with what it took over at its fork.
    pub(crate) fn calls_of(&self, child: ProcessId) -> Calls {
        let shared = self.shared.as_ref();
        let taken =
            shared.and_then(|shared| shared.inherited.lock().unwrap_or_else(PoisonError::into_inner).remove(&child));
        Calls::of_child(self.clone(), taken.unwrap_or_default())
    }
}
