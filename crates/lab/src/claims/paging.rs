//! Claims about tables, walks and the isolation of memory.

use memvirt_machine::{RegimeKind, RunResult};

use super::evidence::{Evidence, result};
use super::{Claim, Verdict};
use crate::text::{bytes, count, fraction};
use crate::walk::RecordedWalk;

pub(super) fn claims(evidence: &Evidence) -> Vec<Claim> {
    [
        references(evidence),
        tree(evidence),
        Some(user_space(evidence)),
        structure(evidence),
        two_stages(evidence),
        second_stage(evidence),
        naive(evidence),
        Some(isolation(evidence)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn walk<'a>(evidence: &'a Evidence, regime: &str, pages: (&str, &str)) -> Option<&'a RecordedWalk> {
    let wanted = |walk: &&RecordedWalk| walk.regime == regime && (walk.guest_page, walk.host_page) == pages;
    evidence.walks.iter().find(wanted)
}

fn references(evidence: &Evidence) -> Option<Claim> {
    let (native, nested) = (walk(evidence, "native", ("4K", "4K"))?, walk(evidence, "nested", ("4K", "4K"))?);
    let large = walk(evidence, "nested", ("2M", "2M"))?;
    let run = result(evidence.of("zipf")?, RegimeKind::NestedEpt)?;
    Some(Claim {
        id: "references",
        claim: "A TLB miss costs 4 memory references natively and 24 under nested paging.",
        measured: format!(
            "{} and {} with cold caches and 4 KiB pages in both dimensions; {} with 2 MiB pages in both. Over a whole run of \
             `zipf` the average walk makes {:.2}: walks that end at a missing entry are shorter. Walk caches leave far less.",
            native.total,
            nested.total,
            large.total,
            run.refs_per_walk()
        ),
        verdict: Verdict::of(native.total == 4 && nested.total == 24),
        shown: "walk",
        command: "memvirt walk".to_owned(),
    })
}

/// What the tables of a run hold, in bytes, against a linear table over 48 bits of address.
fn tree(evidence: &Evidence) -> Option<Claim> {
    const LINEAR: u64 = (1 << (48 - 12)) * 8;
    let comparison = evidence.of("gups")?;
    let run = result(comparison, RegimeKind::Native)?;
    let native = walk(evidence, "native", ("4K", "4K"))?;
    Some(Claim {
        id: "tree",
        claim: "Tables are trees because a linear table would be too large; the price is references.",
        measured: format!(
            "A linear table over 48 bits of address takes {} for each process; the tree of `gups`, kernel included, took {} \
             at most. A linear table is read once for each miss, the tree {} times.",
            bytes(LINEAR),
            bytes(run.table_bytes.peak),
            native.total
        ),
        verdict: Verdict::of(run.table_bytes.peak < LINEAR / 1000),
        shown: "footprint",
        command: comparison.command.clone(),
    })
}

fn user_space(evidence: &Evidence) -> Claim {
    let isolation = evidence.isolation[0];
    Claim {
        id: "user-space",
        claim: "(The slide puts page tables into user space.)",
        measured: format!(
            "A slip of the slide. Guest tables lie in the guest kernel's memory: of {} present entries of two machines {} lead user mode \
             to a table; the kernel stores to them through its direct map. Shadow and nested tables lie in the host's memory, which \
             the guest cannot name at all.",
            count(isolation.entries),
            count(isolation.exposing)
        ),
        verdict: Verdict::Fails,
        shown: "isolation",
        command: evidence.command(),
    }
}

/// Bytes of shadow tables for each byte of guest tables, and whether they are as many but for a tenth.
fn likeness(comparison: &crate::Comparison, regime: RegimeKind) -> Option<(String, bool)> {
    let run: &RunResult = result(comparison, regime)?;
    let times = fraction(run.table_bytes.shadow, run.table_bytes.guest);
    let same = (0.9..1.1).contains(&times);
    Some((format!("{} {times:.2} ({})", regime.name(), if same { "true" } else { "false" }), same))
}

fn structure(evidence: &Evidence) -> Option<Claim> {
    const POLICIES: [RegimeKind; 4] =
        [RegimeKind::ShadowWriteProtect, RegimeKind::ShadowLazyFill, RegimeKind::ShadowVtlb, RegimeKind::ShadowKvm61];
    let likenesses =
        |comparison| POLICIES.iter().map(|regime| likeness(comparison, *regime)).collect::<Option<Vec<_>>>();
    let (small, large) = (likenesses(evidence.of("zipf")?)?, likenesses(&evidence.large_guest_pages)?);
    let words = |all: &[(String, bool)]| all.iter().map(|(words, _)| words.as_str()).collect::<Vec<_>>().join(", ");
    let (some, all) = (small.iter().any(|(_, same)| *same), small.iter().chain(&large).all(|(_, same)| *same));
    let those = |wanted: bool| {
        let found: Vec<_> =
            POLICIES.iter().zip(&small).filter(|(_, (_, same))| *same == wanted).map(|(p, _)| p.name()).collect();
        if found.is_empty() { "none".to_owned() } else { found.join(", ") }
    };
    let not = if some && small.iter().all(|(_, same)| *same) {
        String::new()
    } else {
        format!("not with {}, and ", those(false))
    };
    let condition = format!(
        "When guest and host have pages of the same size and the policy is one of {} (shadow tables within a tenth of the guest's bytes); {not}not \
         with larger pages in the guest than in the host.",
        those(true)
    );
    let claim = Claim {
        id: "same-structure",
        claim: "Shadow tables have the same structure as the guest's tables.",
        measured: format!(
            "Bytes of shadow tables for each byte of guest tables at the end of `zipf`, and whether that is as much but for a tenth: {}. \
             With guest pages of 2 MiB on host pages of 4 KiB (command): {}: a large guest page becomes a whole shadow table of small \
             ones, one level more than the guest has there; under write protection one for all that map the frame, the program and the kernel's \
             direct map, under the others one for each. With pages of one size levels and indices are the guest's under every policy; what the \
             tables hold is what has been touched, under the virtual TLB since the last CR3 load.",
            words(&small),
            words(&large)
        ),
        verdict: match (all, some) {
            (true, _) => Verdict::Holds,
            (false, true) => Verdict::HoldsWhen,
            (false, false) => Verdict::Fails,
        },
        shown: "footprint",
        command: evidence.large_guest_pages.command.clone(),
    }
    .when(&condition);
    Some(claim)
}

fn two_stages(evidence: &Evidence) -> Option<Claim> {
    let table = evidence.exits.first()?;
    let cell = |row: &str| table.rows.iter().find(|found| found.row == row)?.cell("ept");
    let (guest, more) = (cell("5")?, cell("19+")?);
    let run = result(evidence.of("touch-and-free")?, RegimeKind::NestedEpt)?;
    let violations = run.exits.get("ept_violation").copied().unwrap_or(0);
    Some(Claim {
        id: "two-stage-fault",
        claim: "Under nested paging the guest's page fault is its own; only the host's causes an exit.",
        measured: format!(
            "A fault for an absent page: {} exits, {} guest fault. {} demand-zero pages in memory that the host has backed: {} exits. \
             In `touch-and-free` {} guest faults meet {} EPT violations, one for each guest frame touched the first time.",
            guest.exits?,
            guest.guest_faults?,
            more.guest_faults?,
            more.exits?,
            count(run.guest_page_faults),
            count(violations)
        ),
        verdict: Verdict::of(guest.exits == Some(0) && more.exits == Some(0) && violations < run.guest_page_faults),
        shown: "events",
        command: "memvirt exits".to_owned(),
    })
}

fn second_stage(evidence: &Evidence) -> Option<Claim> {
    let comparison = evidence.of("touch-and-free")?;
    let run = result(comparison, RegimeKind::NestedEpt)?;
    let native = result(comparison, RegimeKind::Native)?;
    let handlers = run.work.entries_set + run.work.frames_backed;
    Some(Claim {
        id: "on-at-entry",
        claim: "EPT is on while the guest runs: it is switched on at VM entry and off at VM exit.",
        measured: format!(
            "All {} nested references of `touch-and-free` belong to walks of guest accesses; the {} exits wrote and backed {} things \
             through the host's own tables without one. Natively the same stream makes {}.",
            count(run.walk_refs.host),
            count(run.total_exits()),
            count(handlers),
            count(native.walk_refs.host)
        ),
        verdict: Verdict::of(run.walk_refs.host > 0 && native.walk_refs.host == 0 && handlers > 0),
        shown: "references",
        command: comparison.command.clone(),
    })
}

fn naive(evidence: &Evidence) -> Option<Claim> {
    let comparison = &evidence.naive;
    let broken = |regime| Some(result(comparison, regime)?.stale.broken);
    let (naive, protected) = (broken(RegimeKind::ShadowInvlpgOnly)?, broken(RegimeKind::ShadowWriteProtect)?);
    Some(Claim {
        id: "naive",
        claim: "A shadow MMU that listens to INVLPG alone goes wrong when the guest leaves INVLPG out.",
        measured: format!(
            "`fork-and-exit` flushes by loading CR3, as architecture allows: under the naive policy the guest got {} translations \
             that no hardware could have given, under write protection {}.",
            count(naive),
            count(protected)
        ),
        verdict: Verdict::of(naive > 0 && protected == 0),
        shown: "claims",
        command: comparison.command.clone(),
    })
}

fn isolation(evidence: &Evidence) -> Claim {
    let words = evidence.isolation.map(|isolation| {
        format!(
            "under {}: {} host frames behind two machines with equal tables, {} of both; {} guest entries, {} name where the page \
             lies in the host",
            isolation.regime,
            count(isolation.frames),
            count(isolation.shared),
            count(isolation.entries),
            count(isolation.telling)
        )
    });
    Claim {
        id: "isolation",
        claim: "A guest never holds a host address, and no frame belongs to two machines.",
        measured: words.join("; ") + ".",
        verdict: Verdict::of(evidence.isolation.iter().all(|isolation| isolation.shared + isolation.telling == 0)),
        shown: "isolation",
        command: evidence.command(),
    }
}
