//! Forks a process with 100 pages and prints what its kernel did.

use memvirt_addr::{Acc, AccessKind, Gva};
use memvirt_guest::{Guest, GuestConfig, Halted};
use memvirt_ops::process::{Backing, Batch, Op, ProcessId, Prot, Range};
use memvirt_ops::{VcpuId, VmId};
use memvirt_platform::{Engine, Host, Ledger, MemoryMap, Native, Tags, VmSpec};

fn stores(start: Gva, pages: u64) -> Batch {
    let page = |page| Acc::user(start.wrapping_add(page * 4096), AccessKind::Write);
    Batch { run: (0..pages).map(page).collect(), ..Batch::default() }
}

fn does(op: Op) -> Batch {
    Batch { then: Some(op), ..Batch::default() }
}

fn main() -> Result<(), Halted> {
    let config = GuestConfig { memory_bytes: 64 << 20, ..GuestConfig::default() };
    let vm = VmSpec { map: MemoryMap::identity(16384), vcpus: 1 };
    let mut cpu = Engine::new(Host::new(16384), 1, &Default::default(), Tags::On, vec![(vm, Native)]);
    let mut ledger = Ledger::sums();
    let mut guest = Guest::boot(config, VmId::FIRST, VcpuId::FIRST, &mut cpu, &mut ledger)?;

    let (start, child) = (Gva::new(0x40_0000), ProcessId(1));
    let range = Range { start, bytes: 100 * 4096 };
    let map = Op::Mmap { range, prot: Prot::RW, backing: Backing::AnonymousPrivate };
    let fork = [does(Op::Fork { child }), does(Op::Switch { to: child })];
    for batch in [does(map), stores(start, 100)].iter().chain(&fork).chain(&[stores(start, 7), does(Op::Exit)]) {
        guest.batch(batch, &mut cpu, &mut ledger)?;
    }
    let stats = guest.stats();
    println!("{} faults, {} pages copied, {} table stores", stats.faults(), stats.pages_copied, stats.table_stores);
    assert_eq!(stats.pages_copied, 7);
    Ok(())
}
