//! The small guest of the shadow policies' tests, with the alternatives on it.

#[path = "../../../shadow/tests/lab/mod.rs"]
pub(crate) mod lab;

use lab::Audited;
use memvirt_alternatives::{Agile, DirectSegment, Flat, RegisterWalk};
use memvirt_platform::{Host, MemoryMap};

impl Audited for Agile {
    fn audit(&self, host: &Host, map: &MemoryMap) -> Vec<String> {
        self.audit(host, map)
    }
}

impl Audited for Flat {
    fn audit(&self, _: &Host, _: &MemoryMap) -> Vec<String> {
        Vec::new()
    }
}

impl Audited for DirectSegment {
    fn audit(&self, _: &Host, _: &MemoryMap) -> Vec<String> {
        Vec::new()
    }
}

impl Audited for RegisterWalk {
    fn audit(&self, _: &Host, _: &MemoryMap) -> Vec<String> {
        Vec::new()
    }
}
