//! The wrapper around a platform: a correct machine passes, one that forgets its flushes, bits or faults is caught.

#![expect(clippy::unwrap_used, reason = "test helpers")]

use memvirt_addr::{Acc, AccessKind, Gpa, Gva, PageSize, PfCode};
use memvirt_ops::arch::{Control, Cr3, CrWrite, Event, GuestFault, HostEvent, StoreOp, Width};
use memvirt_ops::{VcpuId, VmId};
use memvirt_oracle::{BitsVerdict, Checked, Tally, Wrong};
use memvirt_platform::{
    Cx, Engine, Horizon, Host, Ledger, MemoryMap, Native, Outcome, Platform, Refusal, Regime, Request, TableBytes,
    Tags, VmSpec,
};
use memvirt_tlb::{Geometry, Perms};

/// A bare machine with one thing wrong.
struct Wrongly {
    native: Native,
    how: How,
}

#[derive(Clone, Copy, PartialEq)]
enum How {
    NotAtAll,
    IgnoresCr3Flush,
    FaultsWithoutCause,
    FaultsWithTheWrongCode,
    ForgetsDirty,
}

impl Regime for Wrongly {
    fn miss(&mut self, cx: &mut Cx<'_>, request: &Request<'_>) -> Outcome {
        let gva = request.acc.gva();
        match (self.native.miss(cx, request), self.how) {
            (Outcome::Filled(_), How::FaultsWithoutCause) if request.acc.is_write() => {
                Outcome::Fault(GuestFault { gva, code: PfCode::of(request.acc, true) })
            }
            (Outcome::Fault(_), How::FaultsWithTheWrongCode) => {
                Outcome::Fault(GuestFault { gva, code: PfCode::of(request.acc, true) })
            }
            (Outcome::Filled(mut entry), How::ForgetsDirty) => {
                entry.perms = entry.perms | Perms::WRITE;
                Outcome::Filled(entry)
            }
            (outcome, _) => outcome,
        }
    }

    fn control(&mut self, cx: &mut Cx<'_>, control: &Control) -> Result<(), Refusal> {
        match control {
            Control::Cr3(cr3) if self.how == How::IgnoresCr3Flush => {
                cx.regs_mut().cr3 = *cr3;
                Ok(())
            }
            _ => self.native.control(cx, control),
        }
    }

    fn host(&mut self, _: &mut Cx<'_>, _: &HostEvent) {}

    fn table_bytes(&self) -> TableBytes {
        TableBytes::default()
    }
}

const V: VcpuId = VcpuId::FIRST;
const PAGE: Gva = Gva::new(0x3000);
/// Where the table that maps everything lies: an identity map of 32 pages, root in frame 1.
const LEAF_TABLE: u64 = 0x4000;

fn machine(how: How) -> (Checked<Engine<Wrongly>>, Ledger) {
    let vm = VmSpec { map: MemoryMap::identity(PageSize::Size1G.frames()), vcpus: 1 };
    let regime = Wrongly { native: Native, how };
    let engine = Engine::new(Host::new(64), 1, &Geometry::default(), Tags::On, vec![(vm, regime)]);
    let mut machine = Checked::single(engine);
    for (at, next) in [(0x1000, 0x2000), (0x2000, 0x3000), (0x3000, LEAF_TABLE)] {
        machine.poke(VmId::FIRST, Gpa::new(at), next | 0x23);
    }
    for page in 0..32 {
        machine.poke(VmId::FIRST, Gpa::new(LEAF_TABLE + 8 * page), page << 12 | 0x23);
    }
    let mut ledger = Ledger::sums();
    machine.event(V, &Control::Cr3(Cr3::flushing(Gpa::new(0x1000))).into(), &mut ledger).unwrap();
    (machine, ledger)
}

fn store(machine: &mut Checked<Engine<Wrongly>>, at: u64, value: u64) -> Result<Option<u64>, Refusal> {
    let op = StoreOp::Mov { width: Width::B8, value };
    machine.event(V, &Event::Store { via: Gva::new(at), op, ip: Gva::ZERO }, &mut Ledger::sums())
}

/// Uses a page, remaps it, uses it again before and after a flush, and runs into a fault.
fn exercise(how: How) -> (Tally, Vec<Wrong>) {
    let (mut machine, mut ledger) = machine(how);
    let page = Acc::supervisor(PAGE, AccessKind::Read);
    machine.accesses(V, &[page, Acc::supervisor(PAGE, AccessKind::Write)], Horizon::Open, &mut ledger);
    let _ = store(&mut machine, LEAF_TABLE + 8 * 3, 0x9000 | 0x21);
    machine.accesses(V, &[page], Horizon::Open, &mut ledger);
    machine.event(V, &Control::Cr3(Cr3::flushing(Gpa::new(0x1000))).into(), &mut ledger).unwrap();
    machine.accesses(V, &[page], Horizon::Open, &mut ledger);
    machine.event(V, &Event::Load { gva: PAGE }, &mut ledger).unwrap();
    machine.accesses(V, &[Acc::supervisor(Gva::new(0x3f_f000), AccessKind::Read)], Horizon::Open, &mut ledger);
    machine.event(V, &Control::Cr(CrWrite::TogglePge).into(), &mut ledger).unwrap();
    (*machine.tally(), machine.violations().iter().map(|violation| violation.wrong).collect())
}

#[test]
fn a_correct_machine_passes_and_its_staleness_is_counted() {
    let (tally, wrong) = exercise(How::NotAtAll);
    assert_eq!(wrong, []);
    // Stale: the one read after the store and before the flush.
    assert_eq!(tally, Tally { fresh: 5, allowed: 1, broken: 0, faults: 1, unjustified: 0 });
}

#[test]
fn a_forgotten_flush_is_a_broken_translation_and_a_wrong_place() {
    let (tally, wrong) = exercise(How::IgnoresCr3Flush);
    assert_eq!(tally.broken, 2, "the read and the load after the flush: {wrong:?}");
    assert!(
        matches!(wrong[0], Wrong::Translation { reached: Some(reached), expected: Some(expected) }
        if (reached.number(), expected.number()) == (3, 9)),
        "{wrong:?}"
    );
}

#[test]
fn faults_need_a_cause_and_the_right_code() {
    let (tally, wrong) = exercise(How::FaultsWithoutCause);
    assert_eq!((tally.unjustified, tally.faults), (2, 1));
    assert!(matches!(wrong[0], Wrong::Fault { expected: None, .. }));
    let (tally, wrong) = exercise(How::FaultsWithTheWrongCode);
    assert_eq!((tally.unjustified, tally.faults), (1, 0));
    assert!(
        matches!(wrong[0], Wrong::Fault { code, expected: Some(expected) } if (code.bits(), expected.bits()) == (1, 0))
    );
}

#[test]
fn a_store_that_leaves_no_dirty_bit_is_refused() {
    let (tally, wrong) = exercise(How::ForgetsDirty);
    assert!(tally.broken > 0);
    assert!(wrong.contains(&Wrong::Bits(BitsVerdict::DirtyLost)), "{wrong:?}");
}
