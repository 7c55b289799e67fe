//! Machine files: TLB and cache geometry, latencies and exit costs, each with its source.
//!
//! A machine file prices what the simulator counts. Every figure is written `{ value = N, source = "..." }`; a figure that
//! nobody measured says `estimate` in its source. What is wrong with a file is said with line, field and what is accepted.

mod caches;
mod error;
mod figures;
mod number;
mod place;
mod smp;
mod tlb;
mod walk_caches;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use memvirt_cache::CacheHierarchy;
use memvirt_platform::MmuGeometry;
use memvirt_textfile::TextError;
use memvirt_tlb::Geometry;
use serde::{Deserialize, Serialize};

pub use caches::{CacheShape, Caches};
pub use error::MachineError;
pub use figures::{BaseCosts, ExitCosts, Figure, Listed, TranslationCosts, WorkCosts, is_estimate};
pub use smp::{Delivery, InterruptsName, SmpCosts, SmpTimes};
pub use tlb::{GigabyteName, InclusionName, ReplacementName, TlbArray, TlbShape};
pub use walk_caches::{NestedTlbArray, WalkCacheArray, WalkCacheLevel, WalkCaches};

use place::Problem;

/// A machine: geometry and prices.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MachineSpec {
    /// The name, equal to the file's.
    #[serde(deserialize_with = "number::label")]
    pub name: String,
    /// One line for tables and plots.
    #[serde(deserialize_with = "number::label")]
    pub title: String,
    /// What the machine stands for.
    #[serde(deserialize_with = "number::label")]
    pub about: String,
    /// Its TLB.
    pub tlb: TlbShape,
    /// Its walk caches. Without them every walk starts at the root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub walk_caches: Option<WalkCaches>,
    /// Its cache hierarchy, which the mode `cycles` needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caches: Option<Caches>,
    /// The guest's own work.
    pub base: BaseCosts,
    /// Translation.
    pub translation: TranslationCosts,
    /// Exits.
    pub exits: ExitCosts,
    /// The hypervisor's work.
    pub work: WorkCosts,
    /// What several vCPUs cost each other; estimates where it is not said ([`MachineSpec::smp_times`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smp: Option<SmpCosts>,
    /// The file that it was loaded from.
    #[serde(skip)]
    path: Option<PathBuf>,
}

/// The machine files that are built in: name and text.
const BUILTIN: &[(&str, &str)] = &[
    ("nehalem", include_str!("../../models/nehalem.toml")),
    ("haswell", include_str!("../../models/haswell.toml")),
    ("skylake-sp", include_str!("../../models/skylake-sp.toml")),
    ("p-core", include_str!("../../models/p-core.toml")),
    ("zen2", include_str!("../../models/zen2.toml")),
    ("zen4", include_str!("../../models/zen4.toml")),
    ("paper-2024", include_str!("../../models/paper-2024.toml")),
    ("pvm-8269cy", include_str!("../../models/pvm-8269cy.toml")),
];

impl MachineSpec {
    /// The machine that is used where none is named.
    pub const DEFAULT: &'static str = "skylake-sp";

    /// The largest machine file that is read, in bytes.
    pub const MAX_FILE_BYTES: u64 = memvirt_textfile::MAX_BYTES;

    /// The machines that are built in.
    ///
    /// # Errors
    ///
    /// Never in a released version: a test parses each file.
    pub fn builtin() -> Result<Vec<Self>, MachineError> {
        BUILTIN.iter().map(|(name, text)| Self::parse(name, text)).collect()
    }

    /// A built-in machine by name, or a machine file by path.
    ///
    /// # Errors
    ///
    /// [`MachineError`].
    pub fn load(name_or_path: impl AsRef<OsStr>) -> Result<Self, MachineError> {
        let asked = name_or_path.as_ref();
        if let Some((name, text)) = BUILTIN.iter().find(|(name, _)| *name == asked) {
            return Self::parse(name, text);
        }
        let path = Path::new(asked);
        if path.extension().is_none() && path.components().count() < 2 && !path.exists() {
            let known: Vec<_> = BUILTIN.iter().map(|(name, _)| *name).collect();
            return Err(MachineError::Unknown { name: path.display().to_string(), known: known.join(", ") });
        }
        let spec = Self::parse(&path.display().to_string(), &Self::read(path)?)?;
        Ok(Self { path: Some(path.to_owned()), ..spec })
    }

    /// The file that it was [loaded](Self::load) from; `None` for one that is built in.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The text of the file.
    fn read(path: &Path) -> Result<String, MachineError> {
        memvirt_textfile::read(path).map_err(|error| match error {
            TextError::Read(source) => MachineError::Read { path: path.to_owned(), source },
            other => MachineError::NotAMachine { path: path.to_owned(), reason: other.to_string() },
        })
    }

    /// A machine from the text of a file.
    ///
    /// # Errors
    ///
    /// [`MachineError`], naming `file`, line and field.
    pub fn parse(file: &str, text: &str) -> Result<Self, MachineError> {
        let spec: Self = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            MachineError::Field {
                file: file.to_owned(),
                line: place::line_at(text, at),
                field: number::shortened(&place::field_at(text, at).unwrap_or_default()),
                message: number::shortened(error.message()),
            }
        })?;
        spec.check().map_err(|problem| problem.within(file, place::line_of(text, &problem.field)))?;
        Ok(spec)
    }

    fn check(&self) -> Result<(), Problem> {
        self.tlb.geometry()?;
        if let Some(caches) = &self.walk_caches {
            caches.geometry()?;
        }
        self.caches.as_ref().map_or(Ok(()), |caches| caches.hierarchy().map(drop))
    }

    /// The TLB's geometry.
    ///
    /// # Errors
    ///
    /// [`MachineError`]; a spec made by [`MachineSpec::parse`] has none.
    pub fn geometry(&self) -> Result<Geometry, MachineError> {
        self.tlb.geometry().map_err(|problem| problem.within(&self.name, 1))
    }

    /// The walk caches of both dimensions, and the nested TLB; none of them where the file has no `[walk_caches]`.
    ///
    /// # Errors
    ///
    /// [`MachineError`]; a spec made by [`MachineSpec::parse`] has none.
    pub fn mmu_geometry(&self) -> Result<MmuGeometry, MachineError> {
        let geometry = self.walk_caches.as_ref().map_or(Ok(MmuGeometry::default()), WalkCaches::geometry);
        geometry.map_err(|problem| problem.within(&self.name, 1))
    }

    /// The cache hierarchy, which the mode `cycles` needs; `None` where the file has no `[caches]`.
    ///
    /// # Errors
    ///
    /// [`MachineError`]; a spec made by [`MachineSpec::parse`] has none.
    pub fn cache_hierarchy(&self) -> Result<Option<CacheHierarchy>, MachineError> {
        let hierarchy = self.caches.as_ref().map(Caches::hierarchy).transpose();
        hierarchy.map_err(|problem| problem.within(&self.name, 1))
    }

    /// Every figure, with section, name and unit.
    pub fn figures(&self) -> impl Iterator<Item = Listed<'_>> {
        let walk_caches = self.walk_caches.iter().flat_map(WalkCaches::listed);
        let caches = self.caches.iter().flat_map(Caches::listed);
        let prices = self.base.listed().chain(self.translation.listed()).chain(self.exits.listed());
        let smp = self.smp.iter().flat_map(SmpCosts::listed);
        walk_caches.chain(caches).chain(prices).chain(self.work.listed()).chain(smp)
    }
}

impl Problem {
    fn within(&self, file: &str, line: usize) -> MachineError {
        let Self { field, reason } = self.clone();
        MachineError::Field { file: file.to_owned(), line, field, message: reason }
    }
}

#[cfg(test)]
mod tests;
