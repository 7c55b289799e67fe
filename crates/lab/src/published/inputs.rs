//! Published figures that calibrate: where each of them stands and is used. None of them confirms anything.

use memvirt_machine::{GuestConfig, MachineSpec, RegimeKind};

use super::compared::SOURCE;
use super::{Agreement, PublishedRow, Sources, Use};
use crate::claims::result;
use crate::summary::exits_for;
use crate::text::{count, fraction};
use memvirt_platform::ExitReason;

/// An input: its number, what it is, who published it, its figure, where it is used, and why there.
type Input = (&'static str, &'static str, &'static str, &'static str, String, Use, &'static str, String);

fn shown((id, what, source, published, measured, usage, why, command): Input) -> PublishedRow {
    PublishedRow {
        id: id.to_owned(),
        what: what.to_owned(),
        source,
        published: published.to_owned(),
        measured,
        usage,
        agreement: Agreement::Shown,
        why: why.to_owned(),
        command,
    }
}

/// Figures of a machine file, by section and name, joined by a slash.
fn figures(machine: &str, names: &[&str]) -> String {
    let Ok(spec) = MachineSpec::load(machine) else { return "-".to_owned() };
    let one = |name: &&str| {
        let found = spec.figures().find(|listed| format!("{}.{}", listed.section, listed.name) == **name)?;
        Some(format!("{name} {}", found.figure.value))
    };
    format!("{machine}: {}", names.iter().filter_map(one).collect::<Vec<_>>().join(", "))
}

fn of_machine(machine: &str) -> String {
    format!("memvirt machines {machine}")
}

pub(super) fn pvm_inputs() -> Vec<PublishedRow> {
    let machine = "pvm-8269cy";
    let file = |names: &[&str]| figures(machine, names);
    let inputs: [Input; 4] = [
        (
            "P2",
            "one CR3-load exit under shadow paging",
            SOURCE,
            "0.935 us = 2340 cycles",
            file(&["exits.round_trip", "exits.cr3_load"]),
            Use::Input,
            "the round trip and the handler's part; with P1 it is the same figure",
            of_machine(machine),
        ),
        (
            "P3",
            "VM exit and entry: hypercall, exception, MSR, CPUID, port I/O to user space",
            SOURCE,
            "0.46, 1.66, 0.87, 0.54, 3.79 us",
            file(&["exits.round_trip", "exits.hidden_fault", "exits.reflected_fault", "exits.mmio", "exits.other"]),
            Use::Input,
            "a hypercall is the round trip, an exception the round trip and a fault's handler; MSR is not priced apart",
            of_machine(machine),
        ),
        (
            "P4",
            "the same with nested virtualization; PVM",
            SOURCE,
            "7.43, 9.20, 8.18, 7.10, 29.34 us; 0.48, 2.21, 2.88, 0.51, 12.94 us",
            "no price is taken from it".to_owned(),
            Use::Input,
            "nested virtualization is counted in world switches and exits to L0, and priced from single exits",
            "memvirt nested-virt".to_owned(),
        ),
        (
            "P5",
            "one world switch: single level, nested, PVM",
            SOURCE,
            "0.105, 1.3, 0.179 us",
            "no price is taken from it".to_owned(),
            Use::Input,
            "world switches are counted; their price is that of an exit",
            "memvirt nested-virt".to_owned(),
        ),
    ];
    inputs.into_iter().map(shown).collect()
}

pub(super) fn exit_costs() -> Vec<PublishedRow> {
    const AGESEN: &str = "Agesen et al., ATC 2012";
    let trip = |machine: &str| figures(machine, &["exits.round_trip"]);
    let none = || "no machine file".to_owned();
    let row = |id, what, source, published, measured, usage, why, command| {
        shown((id, what, source, published, measured, usage, why, command))
    };
    let kept = "shown beside the figure that the machine file holds";
    let nehalem = of_machine("nehalem");
    vec![
        row(
            "S5.1",
            "exit and entry, Nehalem",
            AGESEN,
            "1009 cycles",
            trip("nehalem"),
            Use::NotReread,
            kept,
            nehalem.clone(),
        ),
        row(
            "S5.2",
            "exit and entry, Prescott, Merom, Penryn, Westmere, Sandy Bridge",
            AGESEN,
            "3963, 1579, 1266, 761, 784 cycles",
            format!("{}; {}", none(), trip("haswell")),
            Use::NotReread,
            "Haswell's is an estimate between Sandy Bridge and Cascade Lake",
            of_machine("haswell"),
        ),
        row(
            "S5.3",
            "Cascade Lake: CPUID, hypercall, exception",
            SOURCE,
            "1350, 1150, 4150 cycles",
            figures("pvm-8269cy", &["exits.round_trip", "exits.other", "exits.hidden_fault"]),
            Use::Input,
            "also the prices of skylake-sp; handlers are what is above the round trip",
            of_machine("pvm-8269cy"),
        ),
        row(
            "S5.4",
            "AMD SVM: VMRUN to VMEXIT; ioctl round trip",
            "KVM patch thread, 2020",
            "about 1360; about 2550 cycles",
            format!("{}; {}", trip("zen2"), trip("zen4")),
            Use::Input,
            kept,
            of_machine("zen2"),
        ),
        row(
            "S5.5",
            "nested CPUID: Skylake, Ice Lake, Emerald Rapids",
            "KVM commit",
            "11650, 22350, 28850 cycles",
            "no price is taken from it".to_owned(),
            Use::Input,
            "nested virtualization is priced from single exits",
            "memvirt nested-virt".to_owned(),
        ),
        row(
            "S5.6",
            "native MOV to CR3",
            "Linux pti.rst",
            "about 100 cycles",
            figures("skylake-sp", &["base.cr3_load"]),
            Use::Input,
            "every machine file",
            of_machine("skylake-sp"),
        ),
    ]
}

/// The arrays of a machine's TLB, and its walk caches, in short.
fn arrays(machine: &str) -> String {
    let Ok(spec) = MachineSpec::load(machine) else { return "-".to_owned() };
    let list = |arrays: &[memvirt_machine::spec::TlbArray]| {
        let one = |array: &memvirt_machine::spec::TlbArray| {
            format!("{} {}/{}", array.pages.join("+"), array.entries, array.ways)
        };
        arrays.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    let caches = spec.walk_caches.as_ref().map_or_else(String::new, |caches| {
        let guest: Vec<_> = caches.guest.iter().map(|cache| cache.entries.to_string()).collect();
        let host: Vec<_> = caches.host.iter().map(|cache| cache.entries.to_string()).collect();
        format!("; walk caches {} and {}", guest.join("/"), host.join("/"))
    });
    format!("{machine}: L1 {}; L2 {}{caches}", list(&spec.tlb.l1), list(&spec.tlb.l2))
}

pub(super) fn geometry() -> Vec<PublishedRow> {
    let row = |id, what, source, published, machine: &str, usage| {
        let why = "the arrays of the machine file";
        shown((id, what, source, published, arrays(machine), usage, why, of_machine(machine)))
    };
    vec![
        row("S6.1", "TLBs of Nehalem", "Sniper configuration", "64/4; 512/4", "nehalem", Use::Input),
        row("S6.2", "TLBs of Haswell", "CPUID descriptors in Linux", "64/4, 32/4, 4/4; 1024/8", "haswell", Use::Input),
        row(
            "S6.3",
            "TLBs and walk caches of the Skylake-SP class",
            "DMT and SagePTE artifacts",
            "64/4; 1536/12; 2 / 4 / 32",
            "skylake-sp",
            Use::Input,
        ),
        row(
            "S6.4",
            "TLBs and walk caches of a modern P-core",
            "Virtuoso configuration",
            "64/4 + 64/4; 2048/8; 3 x 32/4, host 4 x 32/4",
            "p-core",
            Use::Input,
        ),
        row("S6.5", "TLBs of Zen 2", "wikichip, 7-cpu", "64 fully associative; 2048", "zen2", Use::Input),
        row("S6.6", "TLBs of Zen 4", "estimate", "72; 3072", "zen4", Use::NotReread),
        shown((
            "S6.7",
            "TLBs of AMD family 16h",
            "AMD 52128",
            "40+8; 512/4 + 256/2",
            "no machine file".to_owned(),
            Use::Input,
            "nothing is compared on it",
            "memvirt machines".to_owned(),
        )),
    ]
}

pub(super) fn workloads(sources: &Sources<'_>) -> Vec<PublishedRow> {
    let mut all: Vec<_> = [build(sources), boot(sources)].into_iter().flatten().collect();
    all.push(walk_shares(sources));
    all.push(shown((
        "S7.4",
        "footprints of the big-memory suite",
        "SagePTE artifact",
        "gups 128, btree 125, graph500 123, redis 155, memcached 95, xsbench 84, canneal 62 GB",
        "gups 4, b-tree, graph and xsbench 1 GiB each".to_owned(),
        Use::Input,
        "scaled down: all far beyond every TLB; the 128 GiB of GUPS are run for section 4",
        "memvirt workloads".to_owned(),
    )));
    let ceiling = GuestConfig::linux().flush_ceiling;
    all.push(PublishedRow {
        id: "S7.5".to_owned(),
        what: "Linux flushes all above so many pages; PCIDs of a CPU".to_owned(),
        source: "Linux mm/tlb.c",
        published: "33; 6".to_owned(),
        measured: format!("{ceiling}; 6"),
        usage: Use::Exact,
        agreement: Agreement::of(ceiling == 33),
        why: "switches of the guest model".to_owned(),
        command: "cargo test -p memvirt-guest".to_owned(),
    });
    all
}

fn build(sources: &Sources<'_>) -> Option<PublishedRow> {
    let build = sources.of("kernel-build")?;
    let native = result(build, RegimeKind::Native)?;
    let instructions = native.guest.instructions;
    let faults = fraction(native.guest_page_faults, instructions) * 1e6;
    let cycles = fraction(native.cycles.total, native.guest_page_faults);
    Some(shown((
        "S7.1",
        "Linux kernel build, AMD -j96 / Intel -j128: faults for each million instructions; cycles for each fault",
        "public perf logs",
        "7.1 / 6.5; 126 / 136 thousand (26.6 / 20.5 k faults and 99 / 106 context switches a second and CPU)",
        format!("{faults:.1}; {:.0} thousand", cycles / 1000.0),
        Use::Input,
        "instructions of the workload are set by the first figure; the cycles lack misses of instruction fetch and branches",
        build.command.clone(),
    )))
}

fn boot(sources: &Sources<'_>) -> Option<PublishedRow> {
    let boot = &sources.own.boot;
    let run = result(boot, RegimeKind::ShadowKvm61)?;
    let exits = |reason| exits_for(run, reason);
    let faults = exits(ExitReason::HiddenFault) + exits(ExitReason::ReflectedFault) + exits(ExitReason::TableWrite);
    let (cr3, invlpg) = (exits(ExitReason::Cr3Load), exits(ExitReason::Invlpg));
    Some(PublishedRow {
        id: "S7.2".to_owned(),
        what: "exits of a guest's boot to desktop under shadow paging: page faults, CR3 loads, INVLPG".to_owned(),
        source: "student measurement, replicated three times",
        published: "1.57 M, 8.62 M, 0.17 M: 1 : 5.49 : 0.11".to_owned(),
        measured: format!(
            "{}, {}, {}: 1 : {:.2} : {:.2}",
            count(faults),
            count(cr3),
            count(invlpg),
            fraction(cr3, faults),
            fraction(invlpg, faults)
        ),
        usage: Use::Order,
        agreement: Agreement::of(cr3 > faults && faults > invlpg),
        why: "a short script of programs that start, wait and end under isolation, not a desktop".to_owned(),
        command: boot.command.clone(),
    })
}

fn walk_shares(sources: &Sources<'_>) -> PublishedRow {
    let share = |name: &str| {
        let run = result(sources.of(name)?, RegimeKind::NestedEpt)?;
        Some(format!("{name} {:.3}", fraction(run.cycles.translation, run.cycles.total)))
    };
    let list: Vec<_> = ["gups", "xsbench", "b-tree", "graph", "key-value"].into_iter().filter_map(share).collect();
    shown((
        "S7.3",
        "walk-time share of run time, 4 KiB pages",
        "SagePTE artifact",
        "gups .963, xsbench .614, btree .445, graph500 .204, memcached .139, redis .478, canneal .782",
        list.join(", "),
        Use::Input,
        "theirs are shares measured on hardware that overlaps data misses; here every data miss waits, so walks are a smaller part",
        sources.of("gups").map_or_else(String::new, |one| one.command.clone()),
    ))
}
