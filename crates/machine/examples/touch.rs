//! Runs one small workload under three regimes and prints what each did.

use memvirt_addr::{Acc, AccessKind, Gva};
use memvirt_machine::{GuestConfig, HostConfig, MachineSpec, Measure, RegimeKind, Setup, run};
use memvirt_ops::process::{Backing, Batch, Op, Prot, Range, Source};

/// A process that maps 64 pages and stores to each twice.
struct Touch(u32);

impl Source for Touch {
    type Error = std::convert::Infallible;

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, Self::Error> {
        batch.clear();
        let range = Range { start: Gva::new(0x7000_0000), bytes: 64 * 4096 };
        match self.0 {
            0 => batch.then = Some(Op::Mmap { range, prot: Prot::RW, backing: Backing::AnonymousPrivate }),
            1 | 2 => batch
                .run
                .extend((0..64).map(|page| Acc::user(range.start.wrapping_add(page * 4096), AccessKind::Write))),
            _ => return Ok(false),
        }
        self.0 += 1;
        Ok(true)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let machine = MachineSpec::load(MachineSpec::DEFAULT)?;
    for regime in [RegimeKind::Native, RegimeKind::ShadowWriteProtect, RegimeKind::NestedEpt] {
        let (guest, host) = (GuestConfig::default(), HostConfig::default());
        let setup = Setup { regime, guest, host, machine: machine.clone(), measure: Measure::default(), check: true };
        let result = run(&setup, &mut Touch(0), &mut |_| {})?.result;
        println!("{regime}: {:?}, {} faults, exits {:?}", result.outcome, result.guest_page_faults, result.exits);
        assert_eq!(result.stale.broken, 0);
    }
    Ok(())
}
