//! The plans that are built into the program. `plans/` in this crate is a link to the repository's `models/plans`.

use super::{Plan, PlanError};

/// A plan file that is built in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Builtin {
    /// The plan's name and the stem of its file.
    pub name: &'static str,
    /// The file's text.
    pub text: &'static str,
}

impl Builtin {
    /// The plan in the file.
    ///
    /// # Errors
    ///
    /// None in practice: a test reads every file that is built in.
    pub fn plan(&self) -> Result<Plan, PlanError> {
        Plan::parse(&format!("models/plans/{}.toml", self.name), self.text)
    }
}

macro_rules! embed {
    ($($name:literal),+ $(,)?) => {
        &[$(Builtin { name: $name, text: include_str!(concat!("../../plans/", $name, ".toml")) }),+]
    };
}

/// All of them, in the order of their names.
pub(super) static ALL: &[Builtin] = embed!["pages", "phase", "regimes", "smoke", "vcpus"];
