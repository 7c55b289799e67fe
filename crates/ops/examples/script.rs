//! A stream of process operations by hand: map a page, store to it, fork, exit.

use memvirt_addr::{Acc, AccessKind, Gva};
use memvirt_ops::process::{Backing, Batch, Op, ProcessId, Prot, Range, Source};

struct Script(Vec<Op>);

impl Source for Script {
    type Error = std::convert::Infallible;

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, Self::Error> {
        batch.clear();
        let Some(op) = self.0.pop() else { return Ok(false) };
        if matches!(op, Op::Fork { .. }) {
            batch.run.push(Acc::user(Gva::new(0x40_0000), AccessKind::Write));
            batch.instructions = 1;
        }
        batch.then = Some(op);
        Ok(true)
    }
}

fn main() {
    let range = Range { start: Gva::new(0x40_0000), bytes: 4096 };
    let map = Op::Mmap { range, prot: Prot::RW, backing: Backing::AnonymousPrivate };
    let mut script = Script(vec![Op::Exit, Op::Fork { child: ProcessId(1) }, map]);
    let mut batch = Batch::default();
    while let Ok(true) = script.next_batch(&mut batch) {
        println!("{:?} then {:?}", batch.run, batch.then);
    }
}
