//! One guest on several vCPUs: whatever its processes and threads do at the same time, no CPU goes on with a translation that
//! another has taken away, under no regime; and what interrupts, flushes and locks that takes.
#![expect(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod lab;
mod lives;
mod locks;
mod scenarios;
