//! The workload files that are built into the program, so that it finds them from any folder.
//!
//! `models/` in this crate is a link to the repository's `models/workloads`; a packaged crate holds copies.

use crate::error::WorkloadError;
use crate::workload::Workload;

/// A workload file that is built in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Builtin {
    /// The name of the workload and the stem of its file.
    pub name: &'static str,
    /// The file's text.
    pub text: &'static str,
}

impl Builtin {
    /// The workload in the file.
    ///
    /// # Errors
    ///
    /// None in practice: a test reads every file that is built in.
    pub fn workload(&self) -> Result<Workload, WorkloadError> {
        Workload::parse(&format!("models/workloads/{}.toml", self.name), self.text)
    }
}

macro_rules! embed {
    ($($name:literal),+ $(,)?) => {
        &[$(Builtin { name: $name, text: include_str!(concat!("../models/", $name, ".toml")) }),+]
    };
}

/// All of them, in the order of their names.
pub(crate) static ALL: &[Builtin] = embed![
    "b-tree",
    "boot",
    "churn",
    "compute",
    "context-switch-16",
    "context-switch-2",
    "context-switch-96",
    "database",
    "exec",
    "footprint",
    "fork",
    "fork-and-exit",
    "forkwait",
    "graph",
    "gups",
    "hash-join",
    "hot",
    "jvm",
    "kernel-build",
    "key-value",
    "null-io",
    "null-syscall",
    "page-fault",
    "pointer-chase",
    "protection-fault",
    "sequential",
    "sh",
    "signal",
    "stream",
    "touch-and-free",
    "two-rates",
    "uniform",
    "web-server",
    "xsbench",
    "zipf",
];

pub(crate) fn find(name: &str) -> Result<&'static Builtin, WorkloadError> {
    ALL.iter().find(|builtin| builtin.name == name).ok_or_else(|| {
        let mut known: Vec<_> = ALL.iter().map(|builtin| builtin.name).collect();
        known.sort_by_cached_key(|known| distance(known, name));
        WorkloadError::Unknown { name: name.to_owned(), known }
    })
}

/// How many characters must be inserted, removed or replaced to turn one name into the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    // Nobody misspells a name at great length; the rest would only cost time.
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::distance;

    #[test]
    fn distances_count_edits() {
        for (a, b, expected) in
            [("", "", 0), ("zipf", "", 4), ("", "ab", 2), ("kitten", "sitting", 3), ("gups", "gup", 1)]
        {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }
}
