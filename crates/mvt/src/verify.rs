//! Whether a file is whole: every block read, unpacked, decoded and counted.

use std::io::{Read, Seek};

use memvirt_ops::process::Batch;

use crate::error::{Damage, MvtError};
use crate::reader::Mvt;

/// What [`Mvt::verify`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Blocks that are intact.
    pub blocks: u64,
    /// Batches in them.
    pub batches: u64,
    /// Accesses in them.
    pub accesses: u64,
    /// Instructions in them.
    pub instructions: u64,
    /// Everything that is broken, in the order of the file.
    pub damage: Vec<Damage>,
}

impl<R: Read + Seek> Mvt<R> {
    /// Reads every block and checks it, on beyond those that are broken.
    ///
    /// # Errors
    ///
    /// [`MvtError::Io`], where the operating system refuses.
    pub fn verify(&self) -> Result<Verified, MvtError> {
        let mut verified = Verified::default();
        for block in self.blocks() {
            let counted = self.contents(block).and_then(|mut contents| {
                let mut sums = (0, 0, 0u64);
                let mut batch = Batch::default();
                loop {
                    batch.clear();
                    match contents.next(&mut batch) {
                        Ok(true) => {
                            let instructions = sums.2.saturating_add(batch.instructions);
                            sums = (sums.0 + 1, sums.1 + batch.run.len() as u64, instructions);
                        }
                        Ok(false) => return Ok(sums),
                        Err(what) => {
                            let damage = Damage { offset: block.offset, what: format!("a block: {what}") };
                            return Err(MvtError::Damaged { name: self.name().to_owned(), damage });
                        }
                    }
                }
            });
            match counted {
                Ok(sums) if sums == (block.batches, block.accesses, block.instructions) => {
                    verified.blocks += 1;
                    verified.batches += u64::from(block.batches);
                    verified.accesses += block.accesses;
                    verified.instructions = verified.instructions.saturating_add(block.instructions);
                }
                Ok(_) => {
                    let what = "a block: it holds something else than its head says".to_owned();
                    verified.damage.push(Damage { offset: block.offset, what });
                }
                Err(MvtError::Damaged { damage, .. }) => verified.damage.push(damage),
                Err(error) => return Err(error),
            }
        }
        verified.damage.extend(self.damage().cloned());
        Ok(verified)
    }
}
