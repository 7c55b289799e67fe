//! The model files that are built into the program, so that it finds them from any folder.
//!
//! `models/` in this crate is a link to the repository's `models/cost`; a packaged crate holds copies.

use super::error::ModelError;
use super::model::Model;
use super::words::short;

/// A model file that is built in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Builtin {
    /// The name of the model and the stem of its file.
    pub name: &'static str,
    /// The file's text.
    pub text: &'static str,
}

impl Builtin {
    /// The model in the file.
    ///
    /// # Errors
    ///
    /// None in practice: a test reads every file that is built in.
    pub fn model(&self) -> Result<Model, ModelError> {
        Model::parse(&format!("models/cost/{}.model", self.name), self.text)
    }
}

macro_rules! embed {
    ($($name:literal),* $(,)?) => {
        &[$(Builtin { name: $name, text: include_str!(concat!("../../models/", $name, ".model")) }),*]
    };
}

/// All of them, in the order of their names.
pub(crate) static ALL: &[Builtin] = embed![
    "break-even",
    "footprint-dense",
    "footprint-nested",
    "footprint-shadow",
    "footprint-sparse",
    "lit-alam",
    "lit-basu",
    "lit-mosmodel",
    "lit-pham",
    "lit-yaniv",
    "scaling-lock",
    "scaling-usl",
    "textbook-5-14",
    "time-parts",
    "traps-invlpg-only",
    "traps-kvm",
    "traps-lazy-fill",
    "traps-nested",
    "traps-vbox",
    "traps-vtlb",
    "traps-write-protect",
    "traps-xen",
    "walk-cold",
    "walk-warm",
];

pub(crate) fn find(name: &str) -> Result<&'static Builtin, ModelError> {
    ALL.iter().find(|builtin| builtin.name == name).ok_or_else(|| ModelError::Unknown {
        name: short(name),
        known: ALL.iter().map(|builtin| builtin.name).collect(),
    })
}
