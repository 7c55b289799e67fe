//! A workload: a generator's parameters with a name, a story, where its rates come from, and what it asks of the guest.

use std::ffi::OsStr;
use std::path::Path;

use memvirt_textfile::TextError;
use serde::Serialize;

use crate::builtin::{self, Builtin};
use crate::error::WorkloadError;
use crate::facts::Facts;
use crate::generator::Generator;
use crate::guest::GuestSwitches;
use crate::measured::{Measured, Steady, loading_accesses};
use crate::parse;
use crate::spec::Spec;

/// A checked workload. Serializes to what its file holds.
///
/// ```
/// use memvirt_workload::Workload;
///
/// let text = r#"
///     name = "small"
///     title = "A small uniform stream"
///     about = "Loads from a mebibyte."
///     source = "estimate"
///     [generator]
///     kind = "uniform"
///     footprint = "1MiB"
///     accesses = 1_000
///     write_share = 0.0
/// "#;
/// let small = Workload::parse("small.toml", text)?;
/// assert_eq!(small.facts().accesses.value(), 1000);
///
/// // Wrong fields are named with their line.
/// let error = Workload::parse("small.toml", &text.replace("1MiB", "1Mi")).unwrap_err();
/// assert!(error.to_string().starts_with("small.toml:8: generator.footprint: "));
/// # Ok::<(), memvirt_workload::WorkloadError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Workload {
    name: String,
    title: String,
    about: String,
    source: String,
    #[serde(skip_serializing_if = "Measured::is_default")]
    measure: Measured,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    loaded: bool,
    generator: Spec,
    guest: GuestSwitches,
}

impl Workload {
    /// Bytes of the largest workload file that is read; they have a few hundred.
    pub const MAX_FILE_BYTES: u64 = memvirt_textfile::MAX_BYTES;

    /// The workloads that are built in, in the order of their names.
    pub fn builtin() -> impl ExactSizeIterator<Item = &'static Builtin> {
        builtin::ALL.iter()
    }

    /// The built-in workload of this name.
    ///
    /// # Errors
    ///
    /// [`WorkloadError::Unknown`], with the names that there are.
    pub fn find(name: &str) -> Result<Self, WorkloadError> {
        builtin::find(name)?.workload()
    }

    /// The workload file at a path.
    ///
    /// # Errors
    ///
    /// Where the file cannot be read, is no text, or holds no valid workload.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, WorkloadError> {
        let path = path.as_ref();
        let text = memvirt_textfile::read(path).map_err(|error| match error {
            TextError::Read(source) => WorkloadError::Read { path: path.to_owned(), source },
            other => WorkloadError::NotAWorkload { path: path.to_owned(), reason: other.to_string() },
        })?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// What a user names on a command line: a path where the argument has a separator or ends in `.toml`, a built-in
    /// workload otherwise.
    ///
    /// # Errors
    ///
    /// Those of [`load`](Self::load) and [`find`](Self::find).
    pub fn resolve(argument: &OsStr) -> Result<Self, WorkloadError> {
        let path = Path::new(argument);
        let is_path =
            path.components().count() > 1 || path.is_absolute() || path.extension().is_some_and(|e| e == "toml");
        if is_path { Self::load(path) } else { Self::find(&argument.to_string_lossy()) }
    }

    /// Reads the text of a workload file. `file` stands for it in errors.
    ///
    /// # Errors
    ///
    /// [`WorkloadError::Invalid`] with line, field and what is accepted.
    pub fn parse(file: &str, text: &str) -> Result<Self, WorkloadError> {
        parse::parse(file, text).map(Self::of)
    }

    pub(crate) fn of(parse::Parts { header, spec }: parse::Parts) -> Self {
        Self {
            name: header.name.0,
            title: header.title.0,
            about: header.about.0,
            source: header.source.0,
            measure: header.measure,
            loaded: false,
            generator: spec,
            guest: header.guest,
        }
    }

    /// The key: lower-case letters, digits and `-`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// One line for tables and legends.
    #[must_use]
    pub fn title(&self) -> &str {
        &self.title
    }

    /// What the workload stands for.
    #[must_use]
    pub fn about(&self) -> &str {
        &self.about
    }

    /// Where its rates come from; `estimate` where nobody measured them.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The generator's parameters.
    #[must_use]
    pub const fn spec(&self) -> &Spec {
        &self.generator
    }

    /// What the workload asks of the guest.
    #[must_use]
    pub const fn guest(&self) -> GuestSwitches {
        self.guest
    }

    /// Figures for listings, without running anything.
    #[must_use]
    pub fn facts(&self) -> Facts {
        let facts = self.generator.facts();
        if self.loaded { facts.with_loading(loading_accesses(&self.generator), &self.generator) } else { facts }
    }

    /// From when on those who use the workload as a benchmark measure it.
    #[must_use]
    pub const fn measured(&self) -> Measured {
        self.measure
    }

    /// The workload with its loading, and its warm-up: see [`Steady`].
    #[must_use]
    pub fn steady(self) -> Steady {
        Steady::of(self)
    }

    /// Whether the workload first stores to every page of what it maps.
    #[must_use]
    pub const fn is_loaded(&self) -> bool {
        self.loaded
    }

    pub(crate) const fn mark_loaded(&mut self) {
        self.loaded = true;
    }

    /// The stream of the workload. The same seed gives the same stream.
    #[must_use]
    pub fn generator(&self, seed: u64) -> Generator {
        if self.loaded {
            Generator::loading(&self.generator, seed)
        } else {
            Generator::of_checked(&self.generator, seed)
        }
    }

    /// The same workload with its accesses, iterations, forks or operations multiplied by `factor` (rounded, at least 1).
    /// Footprints and rates stay.
    ///
    /// # Errors
    ///
    /// [`WorkloadError::Scale`] for a factor that is not above 0, or that makes the run too long.
    pub fn scaled(mut self, factor: f64) -> Result<Self, WorkloadError> {
        match self.generator.scaled(factor) {
            Ok(spec) => {
                self.generator = spec;
                Ok(self)
            }
            Err(reason) => Err(WorkloadError::Scale { name: self.name, factor, reason }),
        }
    }

    /// The same workload over an area of another size (for [`Spec::Churn`]: each of its areas), in bytes.
    ///
    /// # Errors
    ///
    /// [`WorkloadError::Footprint`] for a size that is no whole number of pages, or too large or small for the generator.
    pub fn with_footprint(mut self, bytes: u64) -> Result<Self, WorkloadError> {
        match self.generator.with_footprint(bytes) {
            Ok(spec) => {
                self.generator = spec;
                Ok(self)
            }
            Err(reason) => Err(WorkloadError::Footprint { name: self.name, bytes, reason }),
        }
    }
}
