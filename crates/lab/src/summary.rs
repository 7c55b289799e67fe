//! The table for people: one column per regime, rows in groups. The command prints it, the report shows it.

use memvirt_machine::result::WalkCacheCounts;
use memvirt_machine::{Mode, Outcome, RunResult};
use memvirt_platform::ExitReason;

use crate::comparison::Comparison;
use crate::text::{bytes, count, fraction, share};
use crate::walk_latency::WalkLatency;

/// Rows that belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// What the rows are about, with the unit.
    pub title: &'static str,
    /// The rows.
    pub rows: Vec<Row>,
}

/// One row: a figure of every regime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What it counts.
    pub label: String,
    /// One cell per regime.
    pub cells: Vec<String>,
    /// Whether it is the sum of the rows above.
    pub total: bool,
}

/// What stands in a cell that does not apply.
const NONE: &str = "-";

/// The groups of the table.
#[must_use]
pub fn summary(comparison: &Comparison) -> Vec<Group> {
    let of = Columns(&comparison.results);
    let mut groups = vec![of.guest(), of.tlb(), of.walks(), of.exits(), of.tables(), of.cycles(comparison)];
    groups.extend(of.walk_caches());
    groups.extend(of.served());
    groups.extend(of.walk_latency());
    groups.extend(of.stale());
    groups.insert(0, of.outcomes());
    groups.retain(|group| !group.rows.is_empty());
    groups
}

/// A label and the figure it stands for.
type Kind = (&'static str, fn(&RunResult) -> u64);

struct Columns<'a>(&'a [RunResult]);

impl Columns<'_> {
    fn row(&self, label: impl Into<String>, cell: impl Fn(&RunResult) -> String) -> Row {
        Row { label: label.into(), cells: self.0.iter().map(cell).collect(), total: false }
    }

    fn total(&self, label: impl Into<String>, cell: impl Fn(&RunResult) -> String) -> Row {
        Row { total: true, ..self.row(label, cell) }
    }

    fn any(&self, figure: impl Fn(&RunResult) -> u64) -> bool {
        self.0.iter().any(|result| figure(result) > 0)
    }

    /// Shown only where some run did not come to its end.
    fn outcomes(&self) -> Group {
        let all_well = self.0.iter().all(|result| result.outcome == Outcome::Completed);
        let rows = if all_well { Vec::new() } else { vec![self.row("ended by", |r| outcome(r.outcome).to_owned())] };
        Group { title: "Outcome", rows }
    }

    fn guest(&self) -> Group {
        let mut rows = vec![
            self.row("instructions of processes", |r| count(r.guest.instructions)),
            self.row("accesses of processes", |r| count(r.guest.user_accesses)),
            self.row("accesses of the kernel", |r| count(r.guest.kernel_accesses)),
            self.row("page faults", |r| count(r.guest_page_faults)),
            self.row("stores to page tables", |r| count(r.guest.table_stores)),
            self.row("CR3 loads", |r| count(r.guest.cr3_loads)),
            self.row("INVLPG", |r| count(r.guest.invlpgs)),
        ];
        if self.any(|r| r.guest.faults_refused) {
            rows.push(self.row("accesses refused", |r| count(r.guest.faults_refused)));
        }
        if self.any(|r| r.guest.ignored_ops) {
            rows.push(self.row("operations that made no sense", |r| count(r.guest.ignored_ops)));
        }
        Group { title: "Guest", rows }
    }

    fn tlb(&self) -> Group {
        let lookups = |r: &RunResult| r.tlb.l1_hits + r.tlb.l2_hits + r.tlb.misses;
        let with_share = |n: u64, r: &RunResult| format!("{} ({})", count(n), share(n, lookups(r)));
        Group {
            title: "TLB lookups",
            rows: vec![
                self.row("first-level hits", |r| with_share(r.tlb.l1_hits, r)),
                self.row("second-level hits", |r| with_share(r.tlb.l2_hits, r)),
                self.row("misses", |r| with_share(r.tlb.misses, r)),
                self.row("flushes wider than a page", |r| count(r.tlb_flushes)),
            ],
        }
    }

    fn walks(&self) -> Group {
        let mut rows = vec![
            self.row("walks", |r| count(r.walks)),
            self.row("references per walk", |r| format!("{:.2}", r.refs_per_walk())),
            self.row("references of the longest walk", |r| count(r.walk_refs.longest)),
        ];
        let kinds: [Kind; 3] = [
            ("references to guest tables", |r| r.walk_refs.guest),
            ("references to shadow tables", |r| r.walk_refs.shadow),
            ("references to nested tables", |r| r.walk_refs.host),
        ];
        rows.extend(kinds.iter().filter(|(_, n)| self.any(n)).map(|(label, n)| self.row(*label, |r| count(n(r)))));
        rows.push(self.total("references", |r| count(r.walk_refs.total)));
        rows.push(self.row("accessed and dirty bits set", |r| count(r.ad_updates)));
        if self.any(|r| r.ad_updates_nested) {
            rows.push(self.row("of these in nested tables", |r| count(r.ad_updates_nested)));
        }
        Group { title: "Page walks by hardware", rows }
    }

    /// The hit rates of the walk caches, where they were modelled.
    fn walk_caches(&self) -> Option<Group> {
        type Kind = (&'static str, fn(&WalkCacheCounts) -> [u64; 2]);
        let kinds: [Kind; 9] = [
            ("guest dimension: PDE", |c| [c.guest.pde_hits, c.guest.lookups()]),
            ("guest dimension: PDPTE", |c| [c.guest.pdpte_hits, c.guest.lookups()]),
            ("guest dimension: PML4E", |c| [c.guest.pml4e_hits, c.guest.lookups()]),
            ("guest dimension: PML5E", |c| [c.guest.pml5e_hits, c.guest.lookups()]),
            ("host dimension: PDE", |c| [c.host.pde_hits, c.host.lookups()]),
            ("host dimension: PDPTE", |c| [c.host.pdpte_hits, c.host.lookups()]),
            ("host dimension: PML4E", |c| [c.host.pml4e_hits, c.host.lookups()]),
            ("host dimension: PML5E", |c| [c.host.pml5e_hits, c.host.lookups()]),
            ("nested TLB", |c| [c.nested_tlb.hits, c.nested_tlb.hits + c.nested_tlb.misses]),
        ];
        let used = kinds.into_iter().filter(|(_, of)| self.any(|r| r.walk_caches.as_ref().map_or(0, |c| of(c)[0])));
        let rows = used.map(|(label, of)| {
            self.row(label, move |r| {
                let [hits, lookups] = r.walk_caches.as_ref().map_or([0; 2], of);
                format!("{} ({})", count(hits), share(hits, lookups))
            })
        });
        let title = "Hits in walk caches (share of lookups)";
        self.0.iter().any(|r| r.walk_caches.is_some()).then(|| Group { title, rows: rows.collect() })
    }

    fn exits(&self) -> Group {
        let mut rows: Vec<Row> =
            reasons(self.0).map(|reason| self.row(reason_name(reason), |r| count(exits_for(r, reason)))).collect();
        rows.push(self.total("exits", |r| count(r.total_exits())));
        if self.any(RunResult::total_exits) {
            rows.push(self.row("exits per million instructions", |r| {
                format!("{:.1}", fraction(r.total_exits(), r.guest.instructions) * 1e6)
            }));
        }
        let nested: [Kind; 2] = [
            ("world switches", |r| r.nested_virt.map_or(0, |nested| nested.world_switches)),
            ("entries into L0", |r| r.nested_virt.map_or(0, |nested| nested.l0_exits)),
        ];
        rows.extend(nested.iter().filter(|(_, n)| self.any(n)).map(|(label, n)| self.row(*label, |r| count(n(r)))));
        Group { title: "VM exits", rows }
    }

    fn tables(&self) -> Group {
        let kinds: [Kind; 4] = [
            ("guest tables", |r| r.table_bytes.guest),
            ("shadow tables", |r| r.table_bytes.shadow),
            ("nested tables", |r| r.table_bytes.nested),
            ("hypervisor's records", |r| r.table_bytes.metadata),
        ];
        let mut rows: Vec<Row> =
            kinds.iter().filter(|(_, n)| self.any(n)).map(|(label, n)| self.row(*label, |r| bytes(n(r)))).collect();
        rows.push(self.total("at the end", |r| bytes(r.table_bytes.total)));
        rows.push(self.row("at most", |r| bytes(r.table_bytes.peak)));
        Group { title: "Bytes of page tables", rows }
    }

    fn cycles(&self, comparison: &Comparison) -> Group {
        let with_share = |n: u64, r: &RunResult| format!("{} ({})", count(n), share(n, r.cycles.total));
        let mut rows = vec![
            self.row("base: the guest's own work", |r| with_share(r.cycles.base, r)),
            self.row("translation: TLB misses and walks", |r| with_share(r.cycles.translation, r)),
            self.row("exits and their handling", |r| with_share(r.cycles.exits, r)),
            self.row("waiting", |r| with_share(r.cycles.waiting, r)),
            self.total("cycles", |r| count(r.cycles.total)),
        ];
        if comparison.results.len() > 1 && comparison.native().is_some() {
            let slowdown = |r: &RunResult| comparison.slowdown(r).map_or(NONE.to_owned(), |x| format!("{x:.3}"));
            rows.push(self.row("times native", slowdown));
        }
        Group { title: "Cycles", rows }
    }

    /// Where references were served, in the mode `cycles` only.
    fn served(&self) -> Option<Group> {
        let mut names: Vec<&str> = Vec::new();
        for part in self.0.iter().filter(|result| result.mode == Mode::Cycles).flat_map(|result| &result.cycles.parts) {
            let wanted = part.group == "translation" || part.name.starts_with("data: ");
            if wanted && !names.contains(&part.name.as_str()) {
                names.push(&part.name);
            }
        }
        let cell = |r: &RunResult, name: &str| {
            let part = r.cycles.parts.iter().find(|part| part.name == name);
            part.map_or(NONE.to_owned(), |part| format!("{} ({})", count(part.cycles), count(part.count)))
        };
        let rows: Vec<_> = names.iter().map(|name| self.row(*name, |r| cell(r, name))).collect();
        (!rows.is_empty()).then_some(Group { title: "Cycles by what served the reference (and how many)", rows })
    }

    /// What walks in two dimensions spend their time on, in the mode `cycles` only.
    fn walk_latency(&self) -> Option<Group> {
        let first = self.0.iter().find_map(WalkLatency::of)?;
        let cell = |r: &RunResult, show: &dyn Fn(&WalkLatency) -> String| {
            WalkLatency::of(r).map_or(NONE.to_owned(), |latency| show(&latency))
        };
        let percent = |share: f64| format!("{:.1} %", share * 100.0);
        let mut rows = vec![
            self.row("cycles per walk", |r| cell(r, &|l| format!("{:.1}", l.per_walk()))),
            self.row("share of the last host walk", |r| cell(r, &|l| percent(l.share(l.last_host_walk)))),
            self.row("share of its leaf alone", |r| cell(r, &|l| percent(l.share(l.last_host_leaf)))),
        ];
        rows.extend(first.designs().enumerate().map(|(i, (name, _))| {
            let nth = |l: &WalkLatency| l.designs().nth(i).map_or(NONE.to_owned(), |(_, s)| format!("{s:.3}"));
            self.row(format!("times faster: {name}"), |r| cell(r, &nth))
        }));
        Some(Group { title: "Walks in two dimensions, and with the same latencies", rows })
    }

    /// Shown only where the oracle watched.
    fn stale(&self) -> Option<Group> {
        let cell = |r: &RunResult, n: u64| if r.stale.checked { count(n) } else { NONE.to_owned() };
        self.0.iter().any(|r| r.stale.checked).then(|| Group {
            title: "Stale translations used",
            rows: vec![
                self.row("allowed: before the flush", |r| cell(r, r.stale.allowed)),
                self.row("broken: no hardware could", |r| cell(r, r.stale.broken)),
            ],
        })
    }
}

/// How a run ended, in words.
#[must_use]
pub const fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Completed => "end of the stream",
        Outcome::InputError => "unreadable input",
        Outcome::WarmUpOnly => "end of the stream within the warm-up",
        Outcome::GuestOutOfMemory => "guest out of memory",
        Outcome::HostOutOfMemory => "host out of memory",
        Outcome::GuestKernelFault => "wrong translation: fault in the guest's kernel",
        Outcome::Livelock => "wrong translation: endless faults",
    }
}

/// How often a run exited for `reason`.
#[must_use]
pub fn exits_for(result: &RunResult, reason: ExitReason) -> u64 {
    result.exits.get(reason.key()).copied().unwrap_or(0)
}

/// The reasons that occur in any of the results, in the order of tables.
pub fn reasons(results: &[RunResult]) -> impl Iterator<Item = ExitReason> + '_ {
    ExitReason::ALL.iter().copied().filter(|reason| results.iter().any(|result| exits_for(result, *reason) > 0))
}

/// A reason's name for people.
#[must_use]
pub const fn reason_name(reason: ExitReason) -> &'static str {
    match reason {
        ExitReason::HiddenFault => "hidden fault",
        ExitReason::ReflectedFault => "reflected fault",
        ExitReason::TableWrite => "table write",
        ExitReason::Invlpg => "INVLPG",
        ExitReason::Cr3Load => "CR3 load",
        ExitReason::CrAccess => "CR0 or CR4 access",
        ExitReason::Invpcid => "INVPCID",
        ExitReason::EptViolation => "EPT violation",
        ExitReason::EptMisconfig => "EPT misconfiguration",
        ExitReason::Mmio => "device access",
        ExitReason::PmlFull => "PML full",
        ExitReason::Ipi => "IPI",
        ExitReason::Hypercall => "hypercall",
        ExitReason::PortIo => "port I/O",
        ExitReason::Msr => "MSR access",
        ExitReason::Cpuid => "CPUID",
        ExitReason::Halt => "HLT",
    }
}
