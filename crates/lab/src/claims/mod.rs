//! The claims of the lecture, each beside what is measured here: holds, holds under a condition, or fails.
//!
//! [`Evidence`] is everything that is run and walked for them; [`claims`] reads the verdicts off it and runs nothing. So every
//! figure of a verdict stands in the evidence, and with it in the report's tables. Source of the claims: the lecture slides
//! on memory virtualization that published-results row K15 quotes (Intel, about 2006).

mod benefit;
mod evidence;
mod fair;
mod machines;
mod many;
mod paging;
mod task;
mod work;

use serde::Serialize;

pub(crate) use benefit::{EQUAL, benefit, median, ranking as ranking_of};
pub(crate) use evidence::result;
pub use evidence::{Done, Effort, Evidence};
pub use fair::{Fair, WORKLOADS, measured_as};
pub(crate) use fair::{PLAIN, plain_tasks};
pub use machines::{Isolation, WorldSwitches};
pub use many::{Many, Residents, Scaled};
pub(crate) use task::Task;
pub(crate) use work::unpaged;

/// What measuring says of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It is so.
    Holds,
    /// It is so under a condition, which [`Claim::condition`] states.
    HoldsWhen,
    /// It is not so.
    Fails,
}

impl Verdict {
    /// In words.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::HoldsWhen => "holds when",
            Self::Fails => "fails",
        }
    }

    const fn of(holds: bool) -> Self {
        if holds { Self::Holds } else { Self::Fails }
    }
}

/// One claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Claim {
    /// A stable key.
    pub id: &'static str,
    /// What is claimed.
    pub claim: &'static str,
    /// What memvirt measured. Where the verdict is [`Verdict::HoldsWhen`] the first line is the condition.
    pub measured: String,
    /// The verdict.
    pub verdict: Verdict,
    /// The part of the report that shows it: the anchor of a section or figure.
    pub shown: &'static str,
    /// The command that reproduces it.
    pub command: String,
}

impl Claim {
    /// The same; `condition` stands on a line of its own above what was measured where the claim holds under one.
    fn when(self, condition: &str) -> Self {
        match self.verdict {
            Verdict::HoldsWhen => Self { measured: format!("{condition}\n{}", self.measured), ..self },
            Verdict::Holds | Verdict::Fails => self,
        }
    }

    /// Under which condition the claim holds: a sentence that the figures of the page decide; nothing where it holds or fails.
    #[must_use]
    pub fn condition(&self) -> Option<&str> {
        self.measured.split_once('\n').map(|(condition, _)| condition)
    }

    /// What was measured, without the condition.
    #[must_use]
    pub fn figures(&self) -> &str {
        self.measured.split_once('\n').map_or(self.measured.as_str(), |(_, figures)| figures)
    }
}

/// Every claim, in the order of the lecture.
#[must_use]
pub fn claims(evidence: &Evidence) -> Vec<Claim> {
    let mut all = paging::claims(evidence);
    all.extend(work::claims(evidence));
    all.extend(benefit::claims(evidence));
    all
}
