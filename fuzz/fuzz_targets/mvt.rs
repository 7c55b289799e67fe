//! memvirt's own traces. The bytes are a file, which is read and checked; and they are batches, which come back from a file
//! as they went in, also where that file is damaged: then up to the damage.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use memvirt_addr::{Acc, AccessKind, Gva};
use memvirt_mvt::{Density, Header, Mvt, Writer};
use memvirt_ops::process::{Batch, Op, ProcessId};

/// Every nine bytes are an access; one in four ends a batch.
fn batches(data: &[u8]) -> Vec<Batch> {
    let (mut all, mut batch) = (Vec::new(), Batch::default());
    for part in data.chunks_exact(9) {
        let kind = [AccessKind::Fetch, AccessKind::Read, AccessKind::Write][usize::from(part[0] & 3).min(2)];
        let address = part[1..].iter().fold(0, |all, byte| all << 8 | u64::from(*byte));
        batch.run.push(Acc::user(Gva::new_truncate(address), kind));
        if part[0] & 0xc0 == 0 {
            batch.instructions = address;
            batch.then = (part[0] & 0x20 != 0).then_some(Op::Syscall { number: u32::from(part[0]) });
            all.push(std::mem::take(&mut batch));
        }
    }
    all
}

/// What a file gives of its first process.
fn decoded(bytes: &[u8]) -> Vec<Batch> {
    let mut all = Vec::new();
    if let Ok(mvt) = Mvt::new(Cursor::new(bytes), "fuzz.mvt") {
        let error = memvirt_fuzz::drain(&mut mvt.process(ProcessId::FIRST), |batch| all.push(batch.clone()));
        assert!(error.is_none_or(|error| error.to_string().contains("fuzz.mvt")));
    }
    all
}

fuzz_target!(|data: &[u8]| {
    if let Ok(mvt) = Mvt::new(Cursor::new(data), "fuzz.mvt") {
        let verified = mvt.verify().expect("memory can be read");
        assert!(mvt.damage().is_none_or(|damage| verified.damage.contains(damage)));
        let _ = decoded(data);
    }
    let Some((&[first, at, bit], rest)) = data.split_first_chunk::<3>() else { return };
    let (density, shift) = if first & 1 == 0 { (Density::Pages, 12) } else { (Density::Lines, 6) };
    let mut written = batches(rest);
    written.truncate(memvirt_fuzz::MOST_BATCHES - 1);
    let mut writer = Writer::new(Vec::new(), "fuzz.mvt", Header { density, ..Header::default() }).expect("in memory");
    for batch in &written {
        writer.batch(ProcessId::FIRST, batch).expect("user accesses, few of them");
    }
    let (_, mut file) = writer.finish().expect("in memory");
    for batch in &mut written {
        for access in &mut batch.run {
            *access = Acc::user(Gva::new_truncate(access.gva().as_u64() >> shift << shift), access.kind());
        }
    }
    assert_eq!(decoded(&file), written);
    let at = usize::from(at) * file.len() / 256;
    file[at] ^= 1 << (bit & 7);
    assert!(written.starts_with(&decoded(&file)));
});
