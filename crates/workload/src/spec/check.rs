//! What concerns several fields of a generator's parameters together.

use std::fmt;

use super::{Churn, ForkAndExit, PointerChase, Residents, Sequential, Spec, SpecError};
use crate::units::{Base, Count, Share, write_bytes};

impl Spec {
    /// Checks what concerns several fields together.
    ///
    /// # Errors
    ///
    /// [`SpecError`] where the areas leave the user's address space, where elements do not fit their area, where a
    /// generator would need too much memory, or where a run would make more than [`Count::MAX`] accesses.
    pub fn check(&self) -> Result<(), SpecError> {
        let (base, field, span) = self.extent();
        if span > Base::USER_END - base.get() {
            let most = Base::USER_END - base.get();
            return refuse(
                field,
                format!(
                    "{span} bytes from base {:#x} pass the end of user space; at most {most} bytes, or a lower base",
                    base.get()
                ),
            );
        }
        match self {
            Self::Sequential(s) => s.check(),
            Self::Uniform(_) => Ok(()),
            Self::Zipf(s) => at_most("footprint", "pages", s.footprint.pages(), Self::MAX_ZIPF_PAGES),
            Self::PointerChase(s) => s.check(),
            Self::TouchAndFree(s) => total("iterations", s.footprint.pages().checked_mul(s.iterations.get())),
            Self::ForkAndExit(s) => s.check(),
            Self::Churn(s) => s.check(),
            Self::Residents(s) => s.check(),
            Self::Script(s) => s.check(),
        }
    }

    /// First address, the field that sets the size, and bytes from the first address to the end of the last area.
    fn extent(&self) -> (Base, &'static str, u64) {
        match self {
            Self::Sequential(s) => (s.base, "footprint", s.footprint.bytes()),
            Self::Uniform(s) => (s.base, "footprint", s.footprint.bytes()),
            Self::Zipf(s) => (s.base, "footprint", s.footprint.bytes()),
            Self::PointerChase(s) => (s.base, "footprint", s.footprint.bytes()),
            Self::TouchAndFree(s) => (s.base, "footprint", s.footprint.bytes()),
            Self::ForkAndExit(s) => (s.base, "footprint", s.footprint.bytes()),
            Self::Residents(s) => (s.base, "footprint", s.footprint.bytes()),
            Self::Churn(s) => (s.base, "areas", s.pitch().saturating_mul(u64::from(s.areas.get()))),
            Self::Script(s) => (s.base, "areas", s.span()),
        }
    }
}

impl Sequential {
    pub(super) fn check(&self) -> Result<(), SpecError> {
        if self.stride.bytes() > self.footprint.bytes() {
            return refuse(
                "stride",
                format!("{} passes over the whole footprint of {}; at most the footprint", self.stride, self.footprint),
            );
        }
        Ok(())
    }
}

impl PointerChase {
    pub(super) fn check(&self) -> Result<(), SpecError> {
        if !self.footprint.bytes().is_multiple_of(self.node.bytes()) || self.nodes() < 2 {
            let (node, footprint) = (self.node, self.footprint);
            return refuse(
                "node",
                format!(
                    "{node} does not divide the footprint of {footprint} into two nodes or more; a smaller power of two does"
                ),
            );
        }
        at_most("footprint", "nodes", self.nodes(), Spec::MAX_CHASE_NODES)
    }
}

impl ForkAndExit {
    pub(super) fn check(&self) -> Result<(), SpecError> {
        at_most("footprint", "pages", self.footprint.pages(), Spec::MAX_FORK_PAGES)?;
        at_most("forks", "forks", self.forks.get(), Spec::MAX_FORKS)?;
        let each = self.child_pages() + self.parent_pages();
        total("forks", each.checked_mul(self.forks.get()).and_then(|all| all.checked_add(self.footprint.pages())))
    }
}

impl Churn {
    pub(super) fn check(&self) -> Result<(), SpecError> {
        let pages = self.area.pages().saturating_mul(u64::from(self.areas.get()));
        at_most("areas", "pages in all areas", pages, Spec::MAX_CHURN_PAGES)?;
        if self.mix.total() == 0 {
            return refuse("mix", "nothing is ever drawn; give some operation a weight above 0".into());
        }
        total("touches", self.touches.get().checked_mul(self.operations.get()))
    }
}

impl Residents {
    pub(super) fn check(&self) -> Result<(), SpecError> {
        if self.touched < Share::ONE {
            at_most("touched", "pages", self.touched_pages(), Spec::MAX_DRAWN_PAGES)?;
        }
        let pages = self.touched_pages().checked_mul(u64::from(self.processes.get()));
        total("rounds", pages.and_then(|pages| pages.checked_mul(self.rounds.get())))
    }
}

pub(super) fn refuse(field: &'static str, message: String) -> Result<(), SpecError> {
    Err(SpecError { field, message })
}

pub(super) fn at_most(field: &'static str, what: &str, given: u64, most: u64) -> Result<(), SpecError> {
    if given <= most {
        return Ok(());
    }
    // Who gave a size is told of sizes.
    let size = |count: u64| if what.starts_with("pages") { format!(" ({})", Size(count << 12)) } else { String::new() };
    refuse(field, format!("{given} {what}{} are too many; at most {most}{}", size(given), size(most)))
}

/// Bytes as a file writes them.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_bytes(f, self.0)
    }
}

pub(super) fn total(field: &'static str, accesses: Option<u64>) -> Result<(), SpecError> {
    let most = Count::MAX.get();
    match accesses {
        Some(accesses) if accesses <= most => Ok(()),
        _ => {
            refuse(field, format!("the run would make more than {most} accesses; fewer {field} or a smaller footprint"))
        }
    }
}
