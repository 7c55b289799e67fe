//! Writes a trace of a small loop to memory and reads it back.

use memvirt_addr::{Acc, AccessKind, Gva};
use memvirt_mvt::{Header, Mvt, Writer};
use memvirt_ops::process::{Batch, Op, ProcessId, Source};

fn main() -> Result<(), memvirt_mvt::MvtError> {
    let header = Header { notes: vec![("program".into(), "a loop over 64 pages".into())], ..Header::default() };
    let mut writer = Writer::new(Vec::new(), "loop.mvt", header)?;
    for round in 0..1000 {
        let fetch = |at: u64| Acc::user(Gva::new(0x40_0000 + at), AccessKind::Fetch);
        let store = Acc::user(Gva::new(0x7000_0000 + round % 64 * 4096), AccessKind::Write);
        let run = vec![fetch(0), fetch(4), store, fetch(8)];
        let then = (round == 999).then_some(Op::Exit);
        writer.batch(ProcessId::FIRST, &Batch { run, instructions: 3, then })?;
    }
    let (written, file) = writer.finish()?;
    println!("{} accesses in {} bytes", written.accesses, written.bytes);

    let mvt = Mvt::new(std::io::Cursor::new(file), "loop.mvt")?;
    let mut batch = Batch::default();
    let mut stream = mvt.process(ProcessId::FIRST);
    let mut accesses = 0;
    while stream.next_batch(&mut batch)? {
        accesses += batch.run.len();
    }
    println!(
        "{:?}: {accesses} accesses read, whole: {}",
        mvt.header().note("program"),
        mvt.verify()?.damage.is_empty()
    );
    Ok(())
}
