//! What the model says of a row: the workload's parameters and the machine's switches in the terms of
//! [`memvirt_costmodel::footprint::predict`]. No counter of a run goes in.

use memvirt_addr::PageSize;
use memvirt_costmodel::footprint::predict::{KvmLimit, Machine, Prediction, Program, Touched};
use memvirt_machine::{GuestConfig, HostConfig, RegimeKind, TableFrames};
use memvirt_workload::spec::Residents;

use super::measure::Bytes;

/// Where the guest's page allocator begins, and which of its kernel's large pages run: the layout that `docs/guest.md` states.
const FIRST_FREE: u64 = (32 << 20) >> 12;

const fn level(size: PageSize) -> u32 {
    match size {
        PageSize::Size4K => 1,
        PageSize::Size2M => 2,
        PageSize::Size1G => 3,
    }
}

fn program(residents: &Residents) -> Program {
    let pages = residents.footprint.pages();
    let touched = residents.touched_pages();
    Program {
        processes: residents.processes.get().into(),
        first_page: residents.base.get() >> 12,
        pages,
        touched: if touched == pages { Touched::All } else { Touched::Random(touched) },
        again: residents.rounds.get() > 1,
    }
}

fn machine(guest: &GuestConfig, host: &HostConfig) -> Machine {
    Machine {
        memory: guest.memory_bytes / 4096,
        first_free: FIRST_FREE,
        direct_map_leaf: level(guest.direct_map_page),
        guest_leaf: level(guest.guest_page),
        host_leaf: level(host.host_page),
        isolated: guest.kpti,
    }
}

/// Frames of guest memory that the workload needs.
pub(super) fn frames_needed(residents: &Residents, guest: &GuestConfig) -> u64 {
    let program = program(residents);
    // The direct map of the memory itself: the largest that can be asked for.
    let machine = Machine { memory: 1 << 19, ..machine(guest, &HostConfig::default()) };
    let bytes = residents.footprint.bytes().saturating_mul(program.processes) / 4096;
    machine.frames_used(&program).unwrap_or(bytes) + (1 << 13)
}

/// The limit on shadow pages under a regime that has one, where it is known.
pub(super) fn limit(regime: RegimeKind, guest: &GuestConfig, host: &HostConfig) -> Option<u64> {
    let frames = guest.memory_bytes.div_ceil(host.host_page.bytes()) * host.host_page.frames();
    let own = host.shadow_page_limit.map_or(KvmLimit::default_for(frames), u64::from);
    matches!(regime, RegimeKind::ShadowKvm61 | RegimeKind::ShadowKvm612).then_some(own.max(KvmLimit::LEAST))
}

/// What the model says of the bytes at the end; `None` where it has nothing to say.
pub(super) fn predict(
    regime: RegimeKind,
    residents: &Residents,
    guest: &GuestConfig,
    host: &HostConfig,
) -> Option<Bytes> {
    if guest.table_frames != TableFrames::Mixed {
        return None;
    }
    let (machine, program) = (machine(guest, host), program(residents));
    let prediction = match regime {
        RegimeKind::Native => machine.native(&program)?,
        RegimeKind::NestedEpt | RegimeKind::NestedNpt => machine.nested(&program)?,
        RegimeKind::ShadowKvm61 | RegimeKind::ShadowKvm612 => {
            machine.shadow(&program, limit(regime, guest, host).unwrap_or(u64::MAX))?
        }
        _ => return None,
    };
    let Prediction { guest, shadow, nested, reverse_map, records } = prediction;
    let [guest, shadow, nested, reverse_map, records] = [guest, shadow, nested, reverse_map, records].map(whole);
    Some(Bytes { guest, shadow, nested, reverse_map, records })
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes below 2^53, never negative")]
fn whole(bytes: f64) -> u64 {
    bytes.round() as u64
}
