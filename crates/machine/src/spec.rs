//! Machine files: TLB geometry, latencies and exit costs, each with its source.
//!
//! A machine file prices what the simulator counts. Every figure is written `{ value = N, source = "..." }`; a figure that
//! nobody measured says `estimate` in its source.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use memvirt_addr::PageSize;
use memvirt_tlb::{ArrayGeometry, Geometry, GeometryError, Sizes};
use serde::{Deserialize, Serialize};

/// A number and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// The number; the field says in which unit.
    pub value: u32,
    /// Manual, paper or measurement; `estimate` where there is none.
    pub source: String,
}

impl Figure {
    /// The price of `count` things.
    #[must_use]
    pub fn times(&self, count: u64) -> u64 {
        u64::from(self.value) * count
    }

    /// Whether nobody measured it.
    #[must_use]
    pub fn is_estimate(&self) -> bool {
        self.source.starts_with("estimate")
    }
}

macro_rules! figures {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: Figure,)*
        }

        impl $name {
            /// Every figure with its name.
            pub fn figures(&self) -> impl Iterator<Item = (&'static str, &Figure)> {
                [$((stringify!($field), &self.$field),)*].into_iter()
            }
        }
    };
}

figures! {
    /// What the guest's own work costs, in cycles (where the name does not say otherwise).
    BaseCosts {
        /// Cycles of 1000 instructions, accesses to data in caches included.
        per_1000_instructions,
        /// Entry into the guest's kernel and return.
        kernel_entry,
        /// The page-fault handler beside what it does to pages and tables.
        fault_handler,
        /// A system call's own work.
        syscall,
        /// A context switch beside the CR3 load.
        context_switch,
        /// Clearing one 4 KiB page.
        clear_page,
        /// Copying one 4 KiB page.
        copy_page,
        /// One store to a page table.
        table_store,
        /// INVLPG that does not exit.
        invlpg,
        /// A CR3 load that does not exit.
        cr3_load,
    }
}

figures! {
    /// What translation costs, in cycles.
    TranslationCosts {
        /// A hit in the second TLB level, beyond a hit in the first.
        l2_tlb_hit,
        /// A walk's reference to a guest table.
        guest_reference,
        /// A walk's reference to a shadow table.
        shadow_reference,
        /// A walk's reference to a nested table.
        host_reference,
        /// Setting an accessed or dirty bit.
        ad_update,
    }
}

figures! {
    /// What leaving the guest costs, in cycles: the round trip alone, and the handler's fixed part by kind.
    ExitCosts {
        /// Exit and entry.
        round_trip,
        /// Handler of a hidden fault, beside its work units.
        hidden_fault,
        /// Handler of a reflected fault.
        reflected_fault,
        /// Handler of a trapped table store.
        table_write,
        /// Handler of INVLPG and INVPCID.
        invlpg,
        /// Handler of a CR3 load.
        cr3_load,
        /// Handler of an access to CR0 or CR4.
        cr_access,
        /// Handler of an EPT violation.
        ept_violation,
        /// Handler of a device access, EPT misconfigurations included.
        mmio,
        /// Handler of everything else.
        other,
    }
}

figures! {
    /// What the units of a handler's work cost, in cycles.
    WorkCosts {
        /// An entry of a shadow or nested table written.
        entries_set,
        /// An entry removed or restricted.
        entries_cleared,
        /// An entry compared during a sync.
        entries_synced,
        /// An entry of a guest table read.
        guest_entries_read,
        /// A table allocated and cleared.
        tables_allocated,
        /// A table freed.
        tables_freed,
        /// A host frame allocated and zeroed.
        frames_backed,
        /// A reverse-map entry visited.
        rmap_visited,
        /// An instruction emulated.
        instructions_emulated,
        /// A flush on all vCPUs.
        remote_flushes,
    }
}

/// One TLB array.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TlbArray {
    /// The page sizes it holds: `"4K"`, `"2M"`, `"1G"`.
    pub pages: Vec<String>,
    /// Its entries.
    pub entries: u32,
    /// Entries of a set.
    pub ways: u32,
}

/// The shape of a machine's TLB.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TlbShape {
    /// Where the shape comes from.
    pub source: String,
    /// The arrays of the first level.
    pub l1: Vec<TlbArray>,
    /// The arrays of the second level.
    pub l2: Vec<TlbArray>,
}

/// A machine: geometry and prices.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MachineSpec {
    /// The name, equal to the file's.
    pub name: String,
    /// One line for tables and plots.
    pub title: String,
    /// What the machine stands for.
    pub about: String,
    /// Its TLB.
    pub tlb: TlbShape,
    /// The guest's own work.
    pub base: BaseCosts,
    /// Translation.
    pub translation: TranslationCosts,
    /// Exits.
    pub exits: ExitCosts,
    /// The hypervisor's work.
    pub work: WorkCosts,
}

/// A machine file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// It cannot be read.
    #[error("cannot read machine file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no text, or far too long for a machine file.
    #[error("{} is not a machine file: {reason}", path.display())]
    NotAMachine {
        /// The file.
        path: PathBuf,
        /// What is wrong with it as a whole.
        reason: &'static str,
    },
    /// It is not what a machine file must be; the message names line, field and the accepted ones.
    #[error("machine file {file}: {message}")]
    Parse {
        /// The file.
        file: String,
        /// What is wrong.
        message: String,
    },
    /// A TLB array has a page size that does not exist.
    #[error("machine file {file}: [tlb] {level}: unknown page size `{found}`; accepted: 4K, 2M, 1G")]
    PageSize {
        /// The file.
        file: String,
        /// `l1` or `l2`.
        level: &'static str,
        /// What was found.
        found: String,
    },
    /// The TLB's shape is impossible.
    #[error("machine file {file}: [tlb]: {source}")]
    Tlb {
        /// The file.
        file: String,
        /// What is wrong.
        source: GeometryError,
    },
    /// There is no machine of this name.
    #[error("unknown machine `{name}`; known: {known}; or give the path of a machine file")]
    Unknown {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
}

/// The machine files that are built in: name and text.
const BUILTIN: &[(&str, &str)] = &[("skylake-sp", include_str!("../models/skylake-sp.toml"))];

impl MachineSpec {
    /// The machine that is used where none is named.
    pub const DEFAULT: &'static str = "skylake-sp";

    /// The largest machine file that is read, in bytes.
    pub const MAX_FILE_BYTES: u64 = 1 << 20;

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
    pub fn load(name_or_path: &str) -> Result<Self, MachineError> {
        if let Some((name, text)) = BUILTIN.iter().find(|(name, _)| *name == name_or_path) {
            return Self::parse(name, text);
        }
        let path = Path::new(name_or_path);
        if path.extension().is_none() && !path.exists() {
            let known: Vec<_> = BUILTIN.iter().map(|(name, _)| *name).collect();
            return Err(MachineError::Unknown { name: name_or_path.to_owned(), known: known.join(", ") });
        }
        Self::parse(name_or_path, &Self::read(path)?)
    }

    /// The text of the file, which is never read beyond its limit: a device or a wrong file may have no end.
    fn read(path: &Path) -> Result<String, MachineError> {
        let not_a_machine = |reason| MachineError::NotAMachine { path: path.to_owned(), reason };
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(Self::MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
            .map_err(|source| MachineError::Read { path: path.to_owned(), source })?;
        if bytes.len() as u64 > Self::MAX_FILE_BYTES {
            return Err(not_a_machine("it is larger than 1 MiB"));
        }
        String::from_utf8(bytes).map_err(|_| not_a_machine("it is no UTF-8 text"))
    }

    /// A machine from the text of a file.
    ///
    /// # Errors
    ///
    /// [`MachineError`], naming `file`, line and field.
    pub fn parse(file: &str, text: &str) -> Result<Self, MachineError> {
        let spec: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            MachineError::Parse { file: file.to_owned(), message: format!("line {line}: {}", error.message()) }
        })?;
        spec.geometry_of(file)?;
        Ok(spec)
    }

    /// The TLB's geometry.
    ///
    /// # Errors
    ///
    /// [`MachineError`]; a spec made by [`MachineSpec::parse`] has none.
    pub fn geometry(&self) -> Result<Geometry, MachineError> {
        self.geometry_of(&self.name)
    }

    fn geometry_of(&self, file: &str) -> Result<Geometry, MachineError> {
        let l1 = arrays(file, "l1", &self.tlb.l1)?;
        let l2 = arrays(file, "l2", &self.tlb.l2)?;
        Geometry::new(&l1, &l2).map_err(|source| MachineError::Tlb { file: file.to_owned(), source })
    }

    /// Every figure, as `section`, `name`, figure.
    pub fn figures(&self) -> impl Iterator<Item = (&'static str, &'static str, &Figure)> {
        let base = self.base.figures().map(|(name, figure)| ("base", name, figure));
        let translation = self.translation.figures().map(|(name, figure)| ("translation", name, figure));
        let exits = self.exits.figures().map(|(name, figure)| ("exits", name, figure));
        let work = self.work.figures().map(|(name, figure)| ("work", name, figure));
        base.chain(translation).chain(exits).chain(work)
    }
}

fn arrays(file: &str, level: &'static str, shapes: &[TlbArray]) -> Result<Vec<ArrayGeometry>, MachineError> {
    let array = |shape: &TlbArray| {
        let mut sizes: Option<Sizes> = None;
        for page in &shape.pages {
            let size: PageSize = page.parse().map_err(|_| MachineError::PageSize {
                file: file.to_owned(),
                level,
                found: page.clone(),
            })?;
            sizes = Some(sizes.map_or(Sizes::only(size), |sizes| sizes.with(size)));
        }
        let sizes =
            sizes.ok_or_else(|| MachineError::PageSize { file: file.to_owned(), level, found: String::new() })?;
        Ok(ArrayGeometry::new(sizes, shape.entries, shape.ways))
    };
    shapes.iter().map(array).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_machine_is_sound_and_named_after_its_file() {
        for ((name, _), spec) in BUILTIN.iter().zip(MachineSpec::builtin().unwrap()) {
            assert_eq!(spec.name, *name);
            assert!(spec.figures().all(|(_, _, figure)| !figure.source.trim().is_empty()));
        }
    }

    #[test]
    fn mistakes_are_named_with_line_and_field() {
        let text = BUILTIN[0].1;
        let unknown = text.replace("kernel_entry", "kernel_enter");
        let message = MachineSpec::parse("m.toml", &unknown).unwrap_err().to_string();
        assert!(
            message.contains("line ") && message.contains("kernel_enter") && message.contains("kernel_entry"),
            "{message}"
        );
        let ways = text.replacen("ways = 4", "ways = 5", 1);
        assert!(MachineSpec::parse("m.toml", &ways).unwrap_err().to_string().contains("ways"));
        let size = text.replacen("\"4K\"", "\"5K\"", 1);
        assert!(MachineSpec::parse("m.toml", &size).unwrap_err().to_string().contains("accepted: 4K, 2M, 1G"));
        assert!(MachineSpec::load("pdp-11").unwrap_err().to_string().contains("known: skylake-sp"));
        assert!(MachineSpec::load("no/such.toml").unwrap_err().to_string().contains("no/such.toml"));
    }

    #[test]
    #[cfg(unix)]
    fn a_file_without_end_is_refused() {
        let message = MachineSpec::load("/dev/zero").unwrap_err().to_string();
        assert_eq!(message, "/dev/zero is not a machine file: it is larger than 1 MiB");
    }
}
