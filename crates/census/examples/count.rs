//! What a process of 100 pages does to its page tables.

use memvirt_addr::{Acc, AccessKind, Gva};
use memvirt_census::Census;
use memvirt_guest::{Guest, GuestConfig, Halted};
use memvirt_ops::process::{Backing, Batch, Op, Prot, Range};
use memvirt_ops::{VcpuId, VmId};
use memvirt_platform::{Engine, Host, Ledger, MemoryMap, Native, Tags, VmSpec};

fn main() -> Result<(), Halted> {
    let config = GuestConfig { memory_bytes: 64 << 20, ..GuestConfig::default() };
    let vm = VmSpec { map: MemoryMap::identity(16384), vcpus: 1 };
    let bare = Engine::new(Host::new(16384), 1, &Default::default(), Tags::On, vec![(vm, Native)]);
    let (mut census, mut ledger) = (Census::new(bare), Ledger::sums());
    let mut guest = Guest::boot(config, VmId::FIRST, VcpuId::FIRST, &mut census, &mut ledger)?;

    let range = Range { start: Gva::new(0x40_0000), bytes: 100 * 4096 };
    let map = Op::Mmap { range, prot: Prot::RW, backing: Backing::AnonymousPrivate };
    let stores = (0..100).map(|page| Acc::user(range.start.wrapping_add(page * 4096), AccessKind::Write)).collect();
    for batch in [Batch { then: Some(map), ..Batch::default() }, Batch { run: stores, ..Batch::default() }] {
        guest.batch(&batch, &mut census, &mut ledger)?;
    }
    for (name, count) in census.events().all() {
        println!("{name:16} {count:6}");
    }
    assert_eq!(census.events().get("faults"), Some(100));
    Ok(())
}
