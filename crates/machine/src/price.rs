//! Prices: counted things times the figures of a machine file. Nothing is counted here, and nothing priced elsewhere.

use memvirt_addr::Level;
use memvirt_cache::Purpose;
use memvirt_platform::{Account, Counters, ExitReason, ServedBy};
use serde::Serialize;

use crate::spec::{Caches, MachineSpec};
use memvirt_guest::GuestStats;

/// One item of the account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// `base`, `translation`, `exits` or `waiting`.
    pub group: &'static str,
    /// What was paid for.
    pub name: String,
    /// How many.
    pub count: u64,
    /// Cycles for all of them.
    pub cycles: u64,
}

/// Cycles of a run. The four parts add up to the total, the items to the parts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cycles {
    /// The guest's own work, its kernel's included.
    pub base: u64,
    /// TLB misses and walks.
    pub translation: u64,
    /// VM exits and their handling.
    pub exits: u64,
    /// Waiting for locks and other vCPUs; nothing with one vCPU.
    pub waiting: u64,
    /// All of it.
    pub total: u64,
    /// The items.
    pub parts: Vec<Part>,
    /// In the mode `cycles`: every reference to tables and data by what it was for and what served it. Those to tables add up
    /// to the items of the walks, those to data to the items of data.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<ServedReferences>,
}

/// References of one purpose that one level of the machine's caches served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ServedReferences {
    /// `data`, `guest`, `shadow` or `nested`: what was read.
    pub dimension: &'static str,
    /// The guest level whose entry's address a nested table translates; null for the data's own address, and for everything
    /// that is no nested table.
    pub serves: Option<u8>,
    /// The level of the entry, 1 the lowest; null for data.
    pub level: Option<u8>,
    /// What served it: `walk_cache` and `nested_tlb` saved it; `l1`, `l2`, `llc`, `dram` held its line.
    pub served_by: &'static str,
    /// How many.
    pub count: u64,
    /// How many more in walks that overlapped with longer ones; they cost nothing.
    pub overlapped: u64,
    /// Cycles for all of them.
    pub cycles: u64,
}

impl ServedReferences {
    /// Whether a walk made them.
    #[must_use]
    pub fn is_of_a_walk(&self) -> bool {
        self.dimension != "data"
    }

    /// Whether the walk that translates the data's own address made them: the last nested one.
    #[must_use]
    pub fn is_of_the_last_host_walk(&self) -> bool {
        self.dimension == "nested" && self.serves.is_none()
    }
}

impl Cycles {
    fn add(&mut self, group: &'static str, name: impl Into<String>, count: u64, cycles: u64) {
        match group {
            "base" => self.base += cycles,
            "translation" => self.translation += cycles,
            "exits" => self.exits += cycles,
            _ => self.waiting += cycles,
        }
        self.total += cycles;
        if count > 0 {
            self.parts.push(Part { group, name: name.into(), count, cycles });
        }
    }
}

/// What a run cost on a machine.
#[must_use]
pub fn price(spec: &MachineSpec, counters: &Counters, guest: &GuestStats, served: Option<&Account>) -> Cycles {
    let mut cycles = Cycles::default();
    base(&mut cycles, spec, counters, guest);
    match served.zip(spec.caches.as_ref()) {
        None => translation(&mut cycles, spec, counters),
        Some((account, caches)) => {
            data(&mut cycles, caches, account);
            followed(&mut cycles, spec, counters, caches, account);
        }
    }
    exits(&mut cycles, spec, counters);
    cycles
}

fn base(cycles: &mut Cycles, spec: &MachineSpec, counters: &Counters, guest: &GuestStats) {
    let costs = &spec.base;
    cycles.add(
        "base",
        "instructions",
        guest.instructions,
        costs.per_1000_instructions.times(guest.instructions) / 1000,
    );
    // A CR3 load or INVLPG that exits is paid for as an exit.
    let cr3 = guest.cr3_loads.saturating_sub(counters.exits_for(ExitReason::Cr3Load));
    let invlpg = guest.invlpgs.saturating_sub(counters.exits_for(ExitReason::Invlpg));
    let items = [
        ("kernel entries", &costs.kernel_entry, guest.kernel_entries),
        ("fault handlers", &costs.fault_handler, guest.faults()),
        ("system calls", &costs.syscall, guest.syscalls),
        ("context switches", &costs.context_switch, guest.switches),
        ("pages cleared", &costs.clear_page, guest.pages_cleared),
        ("pages copied", &costs.copy_page, guest.pages_copied),
        ("table stores", &costs.table_store, guest.table_stores),
        ("CR3 loads", &costs.cr3_load, cr3),
        ("INVLPG", &costs.invlpg, invlpg),
    ];
    for (name, figure, count) in items {
        cycles.add("base", name, count, figure.times(count));
    }
}

fn translation(cycles: &mut Cycles, spec: &MachineSpec, counters: &Counters) {
    let costs = &spec.translation;
    let items = [
        ("second-level TLB hits", &costs.l2_tlb_hit, counters.l2_hits),
        ("guest table references", &costs.guest_reference, counters.refs.guest),
        ("shadow table references", &costs.shadow_reference, counters.refs.shadow),
        ("nested table references", &costs.host_reference, counters.refs.host),
        ("accessed and dirty bits", &costs.ad_update, counters.ad_updates),
    ];
    for (name, figure, count) in items {
        cycles.add("translation", name, count, figure.times(count));
    }
}

/// What a reference, or what saved it, costs.
fn latency(spec: &MachineSpec, caches: &Caches, served: ServedBy) -> u64 {
    let walk_cache = || spec.walk_caches.as_ref().map_or(0, |caches| caches.latency.value);
    u64::from(match served {
        ServedBy::WalkCache | ServedBy::NestedTlb => walk_cache(),
        ServedBy::L1 => caches.l1.latency.value,
        ServedBy::L2 => caches.l2.latency.value,
        ServedBy::Llc => caches.llc.latency.value,
        ServedBy::Dram => caches.dram.value,
    })
}

/// Mode `cycles`: references to data, beyond what a hit in the first level costs: that is within the instructions' price.
fn data(cycles: &mut Cycles, caches: &Caches, account: &Account) {
    for (at, latency) in [
        (ServedBy::L1, &caches.l1.latency),
        (ServedBy::L2, &caches.l2.latency),
        (ServedBy::Llc, &caches.llc.latency),
        (ServedBy::Dram, &caches.dram),
    ] {
        let count = account.data.of(Purpose::Data, at);
        let beyond = u64::from(latency.value.saturating_sub(caches.l1.latency.value)) * count;
        cycles.add("base", format!("data: {}", place(at)), count, beyond);
        if count > 0 {
            cycles.references.push(ServedReferences {
                dimension: "data",
                serves: None,
                level: None,
                served_by: at.key(),
                count,
                overlapped: 0,
                cycles: beyond,
            });
        }
    }
}

/// Mode `cycles`: each reference of a walk at the price of the level that held its line.
fn followed(cycles: &mut Cycles, spec: &MachineSpec, counters: &Counters, caches: &Caches, account: &Account) {
    let costs = &spec.translation;
    cycles.add("translation", "second-level TLB hits", counters.l2_hits, costs.l2_tlb_hit.times(counters.l2_hits));
    for purpose in Purpose::all().filter(|purpose| *purpose != Purpose::Data) {
        for served in ServedBy::ALL {
            let (count, overlapped) = (account.walks.of(purpose, served), account.overlapped.of(purpose, served));
            if count + overlapped > 0 {
                let (dimension, serves, level) = names(purpose);
                let cost = latency(spec, caches, served) * count;
                let served_by = served.key();
                let row = ServedReferences { dimension, serves, level, served_by, count, overlapped, cycles: cost };
                cycles.references.push(row);
            }
        }
    }
    walk_parts(cycles);
    cycles.add(
        "translation",
        "accessed and dirty bits",
        counters.ad_updates,
        costs.ad_update.times(counters.ad_updates),
    );
}

/// The items of the walks: their references by dimension and by what served them.
fn walk_parts(cycles: &mut Cycles) {
    let rows = cycles.references.clone();
    for dimension in ["guest", "shadow", "nested"] {
        for served in ServedBy::ALL {
            let mine = || rows.iter().filter(|row| row.dimension == dimension && row.served_by == served.key());
            let (count, cost) = (mine().map(|row| row.count).sum(), mine().map(|row| row.cycles).sum());
            cycles.add("translation", format!("{dimension} tables: {}", place(served)), count, cost);
        }
    }
    let overlapped = rows.iter().map(|row| row.overlapped).sum();
    cycles.add("translation", "references of overlapped walks", overlapped, 0);
}

/// Dimension, guest level served and level.
fn names(purpose: Purpose) -> (&'static str, Option<u8>, Option<u8>) {
    match purpose {
        Purpose::Data => ("data", None, None),
        Purpose::Guest { level } => ("guest", None, Some(level.number())),
        Purpose::Shadow { level } => ("shadow", None, Some(level.number())),
        Purpose::Nested { serves, level } => ("nested", serves.map(Level::number), Some(level.number())),
    }
}

/// What served, for people.
const fn place(served: ServedBy) -> &'static str {
    match served {
        ServedBy::WalkCache => "walk cache",
        ServedBy::NestedTlb => "nested TLB",
        ServedBy::L1 => "L1",
        ServedBy::L2 => "L2",
        ServedBy::Llc => "last level",
        ServedBy::Dram => "DRAM",
    }
}

fn exits(cycles: &mut Cycles, spec: &MachineSpec, counters: &Counters) {
    let costs = &spec.exits;
    cycles.add("exits", "round trips", counters.total_exits(), costs.round_trip.times(counters.total_exits()));
    for reason in ExitReason::ALL {
        let figure = match reason {
            ExitReason::HiddenFault => &costs.hidden_fault,
            ExitReason::ReflectedFault => &costs.reflected_fault,
            ExitReason::TableWrite => &costs.table_write,
            ExitReason::Invlpg | ExitReason::Invpcid => &costs.invlpg,
            ExitReason::Cr3Load => &costs.cr3_load,
            ExitReason::CrAccess => &costs.cr_access,
            ExitReason::EptViolation => &costs.ept_violation,
            // A hypervisor makes entries with illegal bits for devices: the access goes on to user space.
            ExitReason::EptMisconfig | ExitReason::Mmio => &costs.mmio,
            _ => &costs.other,
        };
        let count = counters.exits_for(*reason);
        cycles.add("exits", reason.key(), count, figure.times(count));
    }
    let work = &counters.work;
    for ((name, count), (_, figure)) in work.units().zip(spec.work.figures()) {
        cycles.add("exits", name, count, figure.times(count));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memvirt_platform::Work;

    #[test]
    fn work_units_and_prices_have_the_same_names_in_the_same_order() {
        let spec = MachineSpec::load(MachineSpec::DEFAULT).unwrap();
        let units: Vec<_> = Work::default().units().map(|(name, _)| name).collect();
        let prices: Vec<_> = spec.work.figures().map(|(name, _)| name).collect();
        assert_eq!(units, prices);
    }

    #[test]
    fn parts_add_up() {
        let spec = MachineSpec::load(MachineSpec::DEFAULT).unwrap();
        let mut counters = Counters { l2_hits: 3, ad_updates: 2, ..Counters::default() };
        counters.refs.guest = 7;
        counters.exits[ExitReason::Cr3Load as usize] = 5;
        counters.work.entries_set = 11;
        let guest = GuestStats { instructions: 12_345, cr3_loads: 6, ..GuestStats::default() };
        let cycles = price(&spec, &counters, &guest, None);
        assert_eq!(cycles.total, cycles.base + cycles.translation + cycles.exits + cycles.waiting);
        assert_eq!(cycles.total, cycles.parts.iter().map(|part| part.cycles).sum::<u64>());
        let cr3: Vec<_> = cycles.parts.iter().filter(|part| part.name.contains("CR3")).map(|part| part.count).collect();
        assert_eq!(cr3, [1], "five of six CR3 loads exited and are paid for as exits");
    }
}
