//! What the shadow costs in memory.
//!
//! A page that stands for a guest table costs a second page of translations; every page has a header of 184 bytes. The memory
//! slot costs a word and a count for each frame, whether anything is shadowed or not. Source: spec A17 (slab sizes measured on
//! Linux 6.1 and 6.12).

use memvirt_platform::TableBytes;

use super::Kvm;

const TABLE: u64 = 4096;
const HEADER: u64 = 184;
const DESCRIPTOR: u64 = 128;
const HASH: u64 = 4096 * 8;

impl Kvm {
    pub(crate) fn footprint(&self) -> TableBytes {
        let frames = self.slot.frames();
        let large = frames / 512 + frames / (512 * 512);
        let slot = 8 * (frames + large) + 4 * large + 2 * frames;
        TableBytes {
            shadow: TABLE * self.pages.tables,
            nested: 0,
            metadata: TABLE * self.pages.with_translations
                + HEADER * self.pages.tables
                + DESCRIPTOR * (self.lists.descriptors() + self.links.descriptors()) as u64
                + slot
                + HASH,
        }
    }
}
