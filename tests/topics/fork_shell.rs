//! The exits of a shell script that forks 24 times, by reason and by what the guest was doing, under every kind of shadow and
//! under nested paging. `cargo test -p memvirt-tests --test fork_shell -- --nocapture` prints the tables of docs/fork-shell.md.
#![expect(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use memvirt_machine::{
    Guest, HostConfig, MachineSpec, Measure, Outcome, RegimeKind, RunResult, Setup, Watch, run_watched,
};
use memvirt_ops::process::{Batch, Op, Source};
use memvirt_platform::{Counters, ExitReason, Platform};
use memvirt_tests::{data, trace_guest};
use memvirt_trace::{Reading, Recording};

const REGIMES: [&str; 8] = [
    "native",
    "shadow:write-protect",
    "shadow:kvm",
    "shadow:lazy-fill",
    "shadow:vtlb",
    "shadow:xen",
    "shadow:vbox",
    "nested",
];

/// What the guest does between two looks at a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Doing {
    /// A process runs: its own misses and its page faults.
    Runs,
    Fork,
    Exec,
    Exit,
    Switch,
    /// Calls that change areas.
    Areas,
    Other,
}

fn doing(op: Option<Op>) -> Doing {
    match op {
        None => Doing::Runs,
        Some(Op::Fork { .. } | Op::Vfork { .. }) => Doing::Fork,
        Some(Op::Exec | Op::Load { .. }) => Doing::Exec,
        Some(Op::Exit) => Doing::Exit,
        Some(Op::Switch { .. }) => Doing::Switch,
        Some(Op::Mmap { .. } | Op::MapFile { .. } | Op::Munmap { .. } | Op::Mprotect { .. } | Op::Brk { .. }) => {
            Doing::Areas
        }
        Some(_) => Doing::Other,
    }
}

/// Exits by reason.
type Exits = BTreeMap<&'static str, u64>;

/// A recording whose operations are told to whoever looks at the run.
struct Told(Recording, Rc<Cell<Option<Op>>>);

impl Source for Told {
    type Error = memvirt_trace::TraceError;

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, Self::Error> {
        let more = self.0.next_batch(batch)?;
        self.1.set(batch.then);
        Ok(more)
    }
}

/// Puts the exits down to what the guest was doing: accesses are looked at first, then the operation after them. What was
/// counted before the first look is the boot's.
struct Account {
    next: Rc<Cell<Option<Op>>>,
    accesses_seen: bool,
    before: Counters,
    by: BTreeMap<Doing, Exits>,
}

impl Watch for Account {
    fn look(&mut self, _: &Guest, _: &dyn Platform, counters: &Counters) {
        let did = if self.accesses_seen { doing(self.next.get()) } else { Doing::Runs };
        for reason in ExitReason::ALL {
            let count = counters.exits_for(*reason) - self.before.exits_for(*reason);
            if count > 0 {
                *self.by.entry(did).or_default().entry(reason.key()).or_default() += count;
            }
        }
        self.accesses_seen = !self.accesses_seen;
        self.before = *counters;
    }
}

/// A run, and its exits by what the guest was doing.
type Run = (RunResult, BTreeMap<Doing, Exits>);

fn run(regime: RegimeKind) -> Run {
    let machine = MachineSpec::load(MachineSpec::DEFAULT).unwrap();
    let (host, measure) = (HostConfig::default(), Measure::default());
    let setup = Setup { regime, guest: trace_guest(), host, machine, measure, check: false };
    let next = Rc::new(Cell::new(None));
    let recording = Recording::open(data("mvt/fork-shell.mvt"), Reading::default()).unwrap();
    let mut source = Told(recording, Rc::clone(&next));
    let mut account = Account { next, accesses_seen: false, before: Counters::default(), by: BTreeMap::new() };
    let finished = run_watched(&setup, &mut source, &mut |_| {}, &mut account).unwrap();
    assert_eq!(finished.result.outcome, Outcome::Completed);
    (finished.result, account.by)
}

fn of(exits: &Exits, reason: &str) -> u64 {
    exits.get(reason).copied().unwrap_or(0)
}

#[test]
fn exits_have_the_counts_that_their_mechanisms_give() {
    let all: Vec<_> = REGIMES.iter().map(|name| run(name.parse().unwrap())).collect();
    for (result, by) in &all {
        println!("{}: {:?}", result.regime, result.exits);
        for (doing, exits) in by {
            println!("    {doing:?}: {} = {exits:?}", exits.values().sum::<u64>());
        }
    }
    let [native, protect, kvm, lazy, vtlb, xen, vbox, nested] = &all[..] else { panic!("eight regimes") };
    let guest = native.0.guest;
    println!("{guest:?}");
    assert_eq!((guest.forks, guest.execs, guest.exits), (24, 6, 25));
    assert_eq!(of(&native.0.exits, "total"), 0);
    // Each fork flushes its parent whole, each exit the space that it ends; each exec and each switch loads another.
    assert_eq!(guest.full_flushes, guest.forks + guest.exits);
    assert_eq!(guest.cr3_loads, guest.full_flushes + guest.space_switches);
    assert_eq!(guest.space_switches, guest.switches + guest.execs);
    for (result, by) in [protect, kvm, lazy, vtlb, xen, vbox] {
        let (regime, exits) = (result.regime, &result.exits);
        assert_eq!(result.guest, guest, "{regime}");
        // What the guest must see it sees through an exit, whatever the policy.
        assert_eq!(of(exits, "reflected_fault"), guest.faults(), "{regime}");
        assert_eq!(of(exits, "cr3_load"), guest.cr3_loads, "{regime}");
        assert_eq!(of(exits, "invlpg"), guest.invlpgs, "{regime}");
        let reasons = ["reflected_fault", "cr3_load", "invlpg", "hidden_fault", "table_write"];
        let sum: u64 = reasons.iter().map(|reason| of(exits, reason)).sum();
        assert_eq!(of(exits, "total"), sum, "{regime}");
        // The account is whole: every exit is somebody's.
        assert_eq!(by.values().flat_map(BTreeMap::values).sum::<u64>(), sum, "{regime}");
    }
    let writes = |run: &Run| of(&run.0.exits, "table_write");
    // Nothing is protected where tables are read again at flushes only; the more tables may drift, the fewer stores exit.
    assert_eq!((writes(lazy), writes(vtlb)), (0, 0));
    assert!(writes(kvm) < writes(xen) && writes(xen) < writes(vbox) && writes(vbox) < writes(protect));
    assert!(writes(protect) < guest.table_stores, "tables that nobody has run on are not protected");
    // Where everything is forgotten at a CR3 load, some twenty pages in use are missed again after each.
    let hidden = |run: &Run| of(&run.0.exits, "hidden_fault");
    assert!(hidden(vtlb) > hidden(lazy) + 10 * guest.cr3_loads);
    // Under nested paging an exit for each frame that the guest uses for the first time, whatever for.
    assert_eq!(of(&nested.0.exits, "total"), of(&nested.0.exits, "ept_violation"));
    assert_eq!(nested.0.guest, guest);
}
