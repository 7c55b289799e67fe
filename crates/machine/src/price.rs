//! Prices: counted things times the figures of a machine file. Nothing is counted here, and nothing priced elsewhere.
//!
//! [`price`] makes the account of a whole run; [`guest_cycles`] and [`exit_price`] are the same prices without its items, for
//! whoever prices step by step (simulated time) and cannot allocate for each.

use memvirt_addr::Level;
use memvirt_cache::Purpose;
use memvirt_platform::{Account, Counters, Exit, ExitReason, ServedBy, Work};
use serde::Serialize;

use crate::spec::{Caches, Figure, MachineSpec};
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
    base(spec, counters, guest, &mut |name, count, cost| cycles.add("base", name, count, cost));
    match served.zip(spec.caches.as_ref()) {
        None => {
            translation(spec, counters, &mut |name, count, cost| cycles.add("translation", name, count, cost));
        }
        Some((account, caches)) => {
            data(&mut cycles, caches, account);
            followed(&mut cycles, spec, counters, caches, account);
        }
    }
    exits(spec, counters, &mut |name, count, cost| cycles.add("exits", name, count, cost));
    cycles
}

/// Cycles in guest mode: base and translation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestCycles {
    /// The guest's own work, its kernel's included.
    pub base: u64,
    /// TLB misses and walks.
    pub translation: u64,
}

/// What a run cost in guest mode, in the mode `counts`: the sums of [`price`] without their items.
#[must_use]
pub fn guest_cycles(spec: &MachineSpec, counters: &Counters, guest: &GuestStats) -> GuestCycles {
    let mut cycles = GuestCycles::default();
    base(spec, counters, guest, &mut |_, _, cost| cycles.base += cost);
    translation(spec, counters, &mut |_, _, cost| cycles.translation += cost);
    cycles
}

/// What translation cost, in the mode `counts`.
#[must_use]
pub fn translation_cycles(spec: &MachineSpec, counters: &Counters) -> u64 {
    let mut sum = 0;
    translation(spec, counters, &mut |_, _, cost| sum += cost);
    sum
}

/// What one exit cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitPrice {
    /// Exit, entry, and what the handler does without the MMU lock: dispatch, the walk of the guest's tables, bringing in the
    /// host's page, emulation.
    pub unlocked: u64,
    /// What it does under the lock, where it takes it: shadow and nested tables, reverse maps, flushes.
    pub locked: u64,
}

/// What one exit cost; the sum over all exits is the part `exits` of [`price`], where nothing is worked for but exits.
///
/// Which work is done under the lock follows `direct_page_fault` and `FNAME(page_fault)` of Linux 6.1, `arch/x86/kvm/mmu/`:
/// guest tables are walked and the host's page is found (`kvm_faultin_pfn`) before `mmu_lock` is taken.
#[must_use]
pub fn exit_price(spec: &MachineSpec, exit: &Exit) -> ExitPrice {
    let mut price =
        ExitPrice { unlocked: spec.exits.round_trip.times(1) + handler(spec, exit.reason).times(1), locked: 0 };
    for ((name, count), (_, figure)) in exit.work.units().zip(spec.work.figures()) {
        let cost = figure.times(count);
        if needs_lock(name) { price.locked += cost } else { price.unlocked += cost }
    }
    if exit.lock.is_none() {
        price = ExitPrice { unlocked: price.unlocked + price.locked, locked: 0 };
    }
    price
}

/// What a handler's work costs that belongs to no exit: the host acted by itself.
#[must_use]
pub fn work_cycles(spec: &MachineSpec, work: &Work) -> u64 {
    work.units().zip(spec.work.figures()).map(|((_, count), (_, figure))| figure.times(count)).sum()
}

/// Whether a handler does this work under the MMU lock.
fn needs_lock(unit: &str) -> bool {
    !matches!(unit, "guest_entries_read" | "frames_backed" | "instructions_emulated")
}

/// Takes an item: what it is, how many there were, cycles for all of them.
type Items<'a> = &'a mut dyn FnMut(&'static str, u64, u64);

fn base(spec: &MachineSpec, counters: &Counters, guest: &GuestStats, add: Items<'_>) {
    let costs = &spec.base;
    add("instructions", guest.instructions, costs.per_1000_instructions.times(guest.instructions) / 1000);
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
        add(name, count, figure.times(count));
    }
}

fn translation(spec: &MachineSpec, counters: &Counters, add: Items<'_>) {
    let costs = &spec.translation;
    let items = [
        ("second-level TLB hits", &costs.l2_tlb_hit, counters.l2_hits),
        ("guest table references", &costs.guest_reference, counters.refs.guest),
        ("shadow table references", &costs.shadow_reference, counters.refs.shadow),
        ("nested table references", &costs.host_reference, counters.refs.host),
        ("accessed and dirty bits", &costs.ad_update, counters.ad_updates),
    ];
    for (name, figure, count) in items {
        add(name, count, figure.times(count));
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

/// The handler's fixed part.
fn handler(spec: &MachineSpec, reason: ExitReason) -> &Figure {
    let costs = &spec.exits;
    match reason {
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
    }
}

fn exits(spec: &MachineSpec, counters: &Counters, add: Items<'_>) {
    let all = counters.total_exits();
    add("round trips", all, spec.exits.round_trip.times(all));
    for reason in ExitReason::ALL {
        let count = counters.exits_for(*reason);
        add(reason.key(), count, handler(spec, *reason).times(count));
    }
    for ((name, count), (_, figure)) in counters.work.units().zip(spec.work.figures()) {
        add(name, count, figure.times(count));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memvirt_ops::arch::VcpuSet;
    use memvirt_platform::{Ledger, LockMode};

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

    #[test]
    fn step_by_step_costs_what_the_whole_costs() {
        let spec = MachineSpec::load(MachineSpec::DEFAULT).unwrap();
        let mut ledger = Ledger::listing();
        for (i, reason) in (0u64..).zip(ExitReason::ALL) {
            let mut work = Work { entries_set: i, guest_entries_read: 2, ..Work::default() };
            work.frames_backed = i % 3;
            let lock = (i % 2 == 0).then_some(LockMode::Exclusive);
            ledger.exit(Exit { at: 0, reason: *reason, work, lock, kick: VcpuSet::EMPTY });
        }
        let (mut counters, exits) = (ledger.counters, ledger.exits.unwrap());
        (counters.l2_hits, counters.refs.shadow, counters.ad_updates) = (5, 7, 11);
        let guest = GuestStats { instructions: 12_345, cr3_loads: 6, pages_copied: 3, ..GuestStats::default() };
        let whole = price(&spec, &counters, &guest, None);
        let GuestCycles { base, translation } = guest_cycles(&spec, &counters, &guest);
        assert_eq!((base, translation), (whole.base, whole.translation));
        let prices: Vec<_> = exits.iter().map(|exit| exit_price(&spec, exit)).collect();
        assert_eq!(prices.iter().map(|price| price.unlocked + price.locked).sum::<u64>(), whole.exits);
        let without: Vec<_> = exits.iter().zip(&prices).filter(|(exit, _)| exit.lock.is_none()).collect();
        assert!(without.iter().all(|(_, price)| price.locked == 0));
        let locked = spec.work.entries_set.times((0..17).step_by(2).sum());
        assert_eq!(prices.iter().map(|price| price.locked).sum::<u64>(), locked);
    }
}
