//! Prices: counted things times the figures of a machine file. Nothing is counted here, and nothing priced elsewhere.

use memvirt_platform::{Counters, ExitReason};
use serde::Serialize;

use memvirt_guest::GuestStats;
use crate::spec::MachineSpec;

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
pub fn price(spec: &MachineSpec, counters: &Counters, guest: &GuestStats) -> Cycles {
    let mut cycles = Cycles::default();
    base(&mut cycles, spec, counters, guest);
    translation(&mut cycles, spec, counters);
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
        let cycles = price(&spec, &counters, &guest);
        assert_eq!(cycles.total, cycles.base + cycles.translation + cycles.exits + cycles.waiting);
        assert_eq!(cycles.total, cycles.parts.iter().map(|part| part.cycles).sum::<u64>());
        let cr3: Vec<_> = cycles.parts.iter().filter(|part| part.name.contains("CR3")).map(|part| part.count).collect();
        assert_eq!(cr3, [1], "five of six CR3 loads exited and are paid for as exits");
    }
}
