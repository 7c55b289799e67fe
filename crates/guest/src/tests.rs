//! Random lives of processes: every frame accounted for, every table in its tree, nothing left at the end.

use std::collections::BTreeMap;

use memvirt_addr::{Acc, AccessKind, Gfn, Gva, PageSize};
use memvirt_ops::process::{Backing, Batch, FileId, Image, Op, ProcessId, Prot, Range, Segments, Sharing, Transfer};
use memvirt_ops::{VcpuId, VmId};
use memvirt_pagetable::{Guest4, Mapper, TableAttrs};
use memvirt_platform::{Engine, Host, Ledger, MemoryMap, Native, Tags, VmSpec};
use memvirt_tlb::Geometry;
use proptest::prelude::*;

use super::memory::BootMem;
use super::{Guest, GuestConfig};

const MEMORY: u64 = 256 << 20;
/// Pages that the operations of a test lie in: two 2 MiB regions.
const PAGES: u64 = 1024;
const BASE: u64 = 0x4000_0000;

fn machine(vcpus: u16) -> Engine<Native> {
    let frames = MEMORY / 4096;
    let vm = VmSpec { map: MemoryMap::identity(frames), vcpus };
    Engine::new(Host::new(frames), usize::from(vcpus), &Geometry::default(), Tags::On, vec![(vm, Native)])
}

fn range(start: u64, pages: u64) -> Range {
    Range { start: Gva::new(BASE + start * 4096), bytes: pages * 4096 }
}

fn prots() -> impl Strategy<Value = Prot> {
    prop::sample::select(vec![Prot::RW, Prot::RW, Prot::R, Prot::RX, Prot::NONE, Prot::NONE])
}

fn backings() -> impl Strategy<Value = Backing> {
    let all = [Backing::AnonymousPrivate, Backing::AnonymousShared, Backing::FilePrivate, Backing::FileShared];
    prop::sample::select(all.to_vec())
}

fn sharings() -> impl Strategy<Value = Sharing> {
    prop::sample::select(vec![Sharing::Private, Sharing::Shared])
}

fn transfers() -> impl Strategy<Value = Transfer> {
    prop::sample::select(vec![Transfer::FromUser, Transfer::ToUser])
}

/// A program whose data lies among the pages that the test touches.
fn image() -> Image {
    let part = |file, start| Segments {
        file: FileId(file),
        start: Gva::new(start),
        headers: 2,
        text: 30,
        constants: 5,
        data: 3,
        zeros: 2,
    };
    Image {
        program: part(1, BASE + 100 * 4096),
        interpreter: Some(part(2, 0x7000_0000_0000)),
        stack_top: Gva::new(0x7ff0_0000_0000),
        stack_pages: 32,
        argument_pages: 2,
        vdso: Gva::new(0x7000_1000_0000),
    }
}

#[derive(Clone, Debug)]
enum Step {
    Touch(u64, AccessKind),
    Op(Op),
    /// Forks a child with the next free number.
    Fork,
    /// Makes a child in the current process' address space.
    Vfork,
    /// Switches to the process with this number, where it lives.
    Switch(u32),
    /// Makes a process with the next free number that nobody forked.
    Spawn,
    /// Leaves the CPU to nobody.
    Idle,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let span = (0..PAGES, prop_oneof![1u64..40, 500u64..PAGES]);
    let kinds = prop::sample::select(vec![AccessKind::Read, AccessKind::Write, AccessKind::Write, AccessKind::Fetch]);
    let step = prop_oneof![
        8 => (0..PAGES, kinds).prop_map(|(page, kind)| Step::Touch(page, kind)),
        3 => (span.clone(), prots(), backings()).prop_map(|((start, pages), prot, backing)| {
            Step::Op(Op::Mmap { range: range(start, pages), prot, backing })
        }),
        2 => span.clone().prop_map(|(start, pages)| Step::Op(Op::Munmap { range: range(start, pages) })),
        4 => (span, prots()).prop_map(|((start, pages), prot)| Step::Op(Op::Mprotect { range: range(start, pages), prot })),
        2 => Just(Step::Fork),
        3 => (0..PAGES, 1u64..300, 0u64..64, 0u32..3, prots(), sharings()).prop_map(|(start, pages, first_page, file, prot, sharing)| {
            let file = FileId(file);
            Step::Op(Op::MapFile { range: range(start, pages), prot, sharing, file, first_page })
        }),
        2 => (0..PAGES, 0..PAGES, 1u64..600, 1u64..600).prop_map(|(from, to, old, new)| {
            Step::Op(Op::Mremap { from: range(from, old), to: range(to, new) })
        }),
        2 => (0u64..200).prop_map(|pages| Step::Op(Op::Brk { end: Gva::new(BASE + (PAGES + pages) * 4096) })),
        1 => (0..PAGES, 1u64..600).prop_map(|(start, pages)| Step::Op(Op::Discard { range: range(start, pages) })),
        2 => (0..PAGES, 1u64..9, transfers()).prop_map(|(start, pages, transfer)| {
            Step::Op(Op::Copy { number: 0, transfer, range: range(start, pages) })
        }),
        1 => Just(Step::Op(Op::Interrupt)),
        1 => Just(Step::Op(Op::Load { image: image() })),
        1 => Just(Step::Vfork),
        1 => Just(Step::Op(Op::Exec)),
        1 => Just(Step::Op(Op::Exit)),
        3 => (0u32..6).prop_map(Step::Switch),
    ];
    prop::collection::vec(step, 1..120)
}

/// Checks that frames and tables in use are exactly those that the processes' trees and hidden pages show.
fn account(guest: &Guest, machine: &mut Engine<Native>) {
    let mut uses: BTreeMap<Gfn, u32> = BTreeMap::new();
    let mut show = |frame: Gfn, size: PageSize| {
        for i in 0..size.frames() {
            *uses.entry(frame.offset(i)).or_default() += 1;
        }
    };
    let mut mem = BootMem { platform: machine, vm: VmId::FIRST };
    let kernel_tables =
        Mapper::<Guest4, _>::new(&mut mem, guest.kernel_root, TableAttrs::SUPERVISOR).count().all_tables();
    let mut tables = kernel_tables;
    for process in guest.processes.values().chain(&guest.doomed) {
        let tree = Mapper::<Guest4, _>::new(&mut mem, process.roots.root, TableAttrs::USER);
        for mapping in tree.leaves(..Gva::new(1 << 47)).filter(|mapping| mapping.frame != guest.zero_page) {
            show(mapping.frame, mapping.size);
        }
        // The kernel's half is shared: a tree has its own root and the tables of its user half.
        tables += tree.count().all_tables() - (kernel_tables - 1);
        tables += u64::from(process.roots.user_root.is_some());
        show(process.kernel_stack, PageSize::Size4K);
        process.thread_stacks.values().for_each(|stack| show(*stack, PageSize::Size4K));
        for (frame, size) in process.hidden.values().filter(|(frame, _)| *frame != guest.zero_page) {
            show(*frame, *size);
        }
    }
    for frame in guest.objects.kept() {
        *uses.entry(frame).or_default() += 1;
    }
    for (frame, count) in &uses {
        assert_eq!(guest.frames.uses(*frame), *count, "mappings of {frame:?}");
    }
    assert_eq!(guest.frames.data(), uses.len() as u64, "data frames in use");
    assert_eq!(guest.frames.tables(), tables, "table frames in use");
}

/// Every CPU is on the tables of what it runs, or of nobody who is gone.
fn loaded(guest: &Guest) {
    for cpu in &guest.cpus {
        match cpu.current.map(|id| guest.processes.get(&id)) {
            Some(Some(process)) => assert_eq!(cpu.loaded, process.roots.root),
            Some(None) => panic!("{:?} does not live", cpu.current),
            None => {
                let mut spaces = guest.processes.values().chain(&guest.doomed);
                let lives = spaces.any(|process| process.roots.root == cpu.loaded);
                assert!(lives || cpu.loaded == guest.kernel_root, "{:?} is nobody's root", cpu.loaded);
            }
        }
    }
}

fn live(config: GuestConfig, cpus: u16, steps: &[(usize, Step)]) {
    let (mut machine, mut ledger) = (machine(cpus), Ledger::sums());
    let vcpus: Vec<VcpuId> = (0..cpus).map(VcpuId).collect();
    let mut guest = Guest::boot_on(config, VmId::FIRST, &vcpus, &mut machine, &mut ledger).unwrap();
    let mut next = 1;
    for (cpu, step) in steps {
        let mut batch = Batch { instructions: 1, ..Batch::default() };
        match step {
            Step::Touch(page, kind) => batch.run.push(Acc::user(Gva::new(BASE + page * 4096), *kind)),
            Step::Op(op) => batch.then = Some(*op),
            Step::Fork => {
                batch.then = Some(Op::Fork { child: ProcessId(next) });
                next += 1;
            }
            Step::Vfork => {
                batch.then = Some(Op::Vfork { child: ProcessId(next) });
                next += 1;
            }
            Step::Switch(to) => batch.then = Some(Op::Switch { to: ProcessId(*to) }),
            Step::Spawn => {
                guest.spawn_on(*cpu, ProcessId(next), &mut machine, &mut ledger).unwrap();
                next += 1;
            }
            Step::Idle => guest.idle_on(*cpu, &mut machine, &mut ledger).unwrap(),
        }
        guest.batch_on(*cpu, &batch, &mut machine, &mut ledger).unwrap();
        account(&guest, &mut machine);
        loaded(&guest);
    }
}

fn alone(steps: Vec<Step>) -> Vec<(usize, Step)> {
    steps.into_iter().map(|step| (0, step)).collect()
}

/// Steps on three CPUs.
fn together() -> impl Strategy<Value = Vec<(usize, Step)>> {
    let more = prop_oneof![Just(Step::Spawn), Just(Step::Idle), (0u32..6).prop_map(Step::Switch)];
    let more = prop::collection::vec((0usize..200, more), 0..30);
    (steps(), more, prop::collection::vec(0usize..3, 150)).prop_map(|(mut steps, more, cpus)| {
        for (at, step) in more {
            steps.insert(at % (steps.len() + 1), step);
        }
        cpus.into_iter().zip(steps).collect()
    })
}

proptest! {
    #![proptest_config(memvirt_properties::cases(256))]

    #[test]
    fn every_frame_is_accounted_for(steps in steps(), kpti: bool, pcid: bool, large: bool) {
        let guest_page = if large { PageSize::Size2M } else { PageSize::Size4K };
        live(GuestConfig { memory_bytes: MEMORY, kpti, pcid, guest_page, ..GuestConfig::default() }, 1, &alone(steps));
    }

    #[test]
    fn every_frame_is_accounted_for_with_all_of_linux(steps in steps(), kpti: bool, pcid: bool, work: bool) {
        let background = if work { (3, 2048, 100) } else { (0, 0, 0) };
        let (tick_instructions, collapse_scan_pages, aging_pages) = background;
        let (memory_bytes, linux) = (MEMORY, GuestConfig::linux());
        live(GuestConfig { memory_bytes, kpti, pcid, tick_instructions, collapse_scan_pages, aging_pages, ..linux }, 1, &alone(steps));
    }
}

proptest! {
    #![proptest_config(memvirt_properties::cases(64))]

    #[test]
    fn every_frame_is_accounted_for_on_three_cpus(steps in together(), kpti: bool, pcid: bool, large: bool, linux: bool) {
        let guest_page = if large { PageSize::Size2M } else { PageSize::Size4K };
        let like = if linux { GuestConfig::linux() } else { GuestConfig::default() };
        live(GuestConfig { memory_bytes: MEMORY, kpti, pcid, guest_page, ..like }, 3, &steps);
    }
}
