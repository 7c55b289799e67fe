//! A remapped page: stale until INVLPG, broken after it.

use std::collections::BTreeMap;

use memvirt_addr::{Acc, AccessKind, Gpa, Gva, Hfn};
use memvirt_ops::VcpuId;
use memvirt_ops::arch::{Control, Cr3};
use memvirt_oracle::{Oracle, Seen, View};

fn main() {
    // Page 0 through tables in frames 1 to 4; host frames are guest frames plus 100.
    let mut words = BTreeMap::from([(0x1000, 0x2023_u64), (0x2000, 0x3023), (0x3000, 0x4023), (0x4000, 0x9023)]);
    let mut oracle: Oracle = Oracle::new(1);
    oracle.control(VcpuId::FIRST, &Control::Cr3(Cr3::flushing(Gpa::new(0x1000))), &|_| 0);

    let old = words.insert(0x4000, 0xa023).unwrap_or(0);
    oracle.store(Gpa::new(0x4000), old, 0xa023);
    judge(&mut oracle, &words, "the guest remaps page 0 from frame 9 to frame 10");

    oracle.control(VcpuId::FIRST, &Control::Invlpg(Gva::new(0)), &|at| words.get(&at.as_u64()).copied().unwrap_or(0));
    judge(&mut oracle, &words, "INVLPG");
}

fn judge(oracle: &mut Oracle, words: &BTreeMap<u64, u64>, after: &str) {
    let view = View {
        peek: &|at| words.get(&at.as_u64()).copied().unwrap_or(0),
        backing: &|gfn| Some(Hfn::new(gfn.number() + 100)),
    };
    for frame in [109, 110] {
        let acc = Acc::supervisor(Gva::new(0x10), AccessKind::Read);
        let seen = Seen { frame: Some(Hfn::new(frame)), writable: false };
        println!(
            "after {after}: a read that reaches host frame {frame} is {:?}",
            oracle.judge(VcpuId::FIRST, acc, seen, &view)
        );
    }
}
