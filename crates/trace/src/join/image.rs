//! What exec mapped: the program, its interpreter and the stack, which no call declares.
//!
//! Found from what the run itself shows, by the order in which linkers lay files out (headers, text, constants, what is made
//! read-only after relocation, other data, zeros): code is where instructions were fetched; the calls of mprotect outside of
//! everything that was mapped are the interpreter's, and name the part that relocation writes; the last page of data is
//! the one that the kernel itself touches to clear its rest (`padzero`), so that the program does not fault there.
//! Sources: Linux `fs/binfmt_elf.c`; System V ABI, chapter 5, `PT_GNU_RELRO`.

use std::collections::BTreeSet;
use std::ops::Range;

use memvirt_addr::{AccessKind, Gva};
use memvirt_ops::process::{FileId, Image, Segments};

use super::collect::Fault;
use super::place::PAGE;

/// Nearer than this below the stack Linux maps nothing (`mmap_base`, the least gap).
const STACK_GAP: u64 = 128 << 20;
/// The stack's limit, 8 MiB.
const STACK_PAGES: u32 = 2048;
/// Pages of code and of data that the kernel shows to user mode, in front of the interpreter.
const VDSO_PAGES: u64 = 2;

/// Where the parts of an address space lie that exec made.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// Where the heap begins; programs lie below it.
    pub(crate) heap: u64,
    /// The lowest address that calls mapped, and the end of the space that they fill.
    pub(crate) mapped: Range<u64>,
    /// What mprotect made read-only in the program and in its interpreter.
    pub(crate) program_relro: Option<Range<u64>>,
    pub(crate) interpreter_relro: Option<Range<u64>>,
}

/// The image of an address space; `None` where the program's own pages were never touched.
pub(crate) fn image(faults: &[Fault], places: &Places, number: u32) -> Option<Image> {
    let within = |range: Range<u64>| faults.iter().copied().filter(move |fault| range.contains(&fault.address));
    let stack_starts = places.mapped.end.saturating_add(STACK_GAP);
    let program = segments(within(0..places.heap.min(places.mapped.start)), places.program_relro.as_ref(), number)?;
    // Before it looks at the program, the interpreter touches nothing but itself and the stack.
    let early = faults.iter().take_while(|fault| fault.address >= places.mapped.end);
    let first = early.filter(|fault| fault.address < stack_starts);
    let start = first.map(|fault| fault.address / PAGE * PAGE).min();
    let of_interpreter = start.map_or(0..0, |start| start..stack_starts);
    let interpreter = segments(within(of_interpreter), places.interpreter_relro.as_ref(), number.wrapping_add(1));
    let high = within(stack_starts..1 << 47).map(|fault| fault.address).max();
    // Arguments lie in the page above what the program touches first: the kernel has stored to it.
    let top = high.map_or(1 << 46, |high| high / PAGE * PAGE + 2 * PAGE);
    let before_interpreter = start.unwrap_or(places.mapped.end);
    Some(Image {
        program,
        interpreter,
        stack_top: Gva::try_new(top).ok()?,
        stack_pages: STACK_PAGES,
        argument_pages: 1,
        vdso: Gva::try_new(before_interpreter.checked_sub(VDSO_PAGES * PAGE)?).ok()?,
    })
}

fn segments(faults: impl Iterator<Item = Fault>, relro: Option<&Range<u64>>, file: u32) -> Option<Segments> {
    let (mut touched, mut fetched) = (BTreeSet::new(), BTreeSet::new());
    for fault in faults {
        touched.insert(fault.address / PAGE);
        if fault.kind == AccessKind::Fetch {
            fetched.insert(fault.address / PAGE);
        }
    }
    let (start, last) = (*touched.first()?, *touched.last()?);
    let relro = relro.map(|range| range.start / PAGE..range.end / PAGE).filter(|range| range.start >= start);
    let code = fetched.first().copied().unwrap_or(start)..fetched.last().map_or(start, |last| last + 1);
    let data = relro.clone().map_or(code.end, |range| range.start).max(code.end);
    let after = relro.map_or(data, |range| range.end).max(data);
    let cleared = (after..).find(|page| !touched.contains(page)).unwrap_or(after);
    let pages = |range: Range<u64>| u16::try_from(range.end.saturating_sub(range.start)).unwrap_or(u16::MAX);
    Some(Segments {
        file: FileId(file),
        start: Gva::try_new(start * PAGE).ok()?,
        headers: pages(start..code.start),
        text: pages(code.clone()),
        constants: pages(code.end..data),
        data: pages(data..cleared + 1),
        zeros: pages(cleared + 1..last + 1),
    })
}

/// The distance by which a program lies elsewhere than `relro` says: relocation writes to nearly every page of it, so that it
/// lies where most pages of a stretch of its length were touched. Programs at fixed addresses have none.
pub(crate) fn program_shift(faults: &[Fault], below: u64, relro: &Range<u64>) -> u64 {
    let pages: BTreeSet<u64> =
        faults.iter().map(|fault| fault.address / PAGE).filter(|page| *page < below / PAGE).collect();
    let length = (relro.end - relro.start) / PAGE;
    let hits = |start: u64| pages.range(start..start + length).count();
    let as_recorded = hits(relro.start / PAGE);
    let best = pages.iter().map(|page| (hits(*page), std::cmp::Reverse(*page))).max();
    match best {
        Some((count, std::cmp::Reverse(page))) if count > as_recorded && as_recorded == 0 => {
            (page * PAGE).wrapping_sub(relro.start)
        }
        _ => 0,
    }
}

/// Where the heap of a run begins: the lowest page touched that lies less than the heap's recorded length below the highest
/// one beneath everything mapped by calls.
pub(crate) fn heap_start(faults: &[Fault], below: u64, bytes: u64) -> Option<u64> {
    let low = || faults.iter().map(|fault| fault.address / PAGE * PAGE).filter(|page| *page < below);
    let highest = low().max()?;
    low().filter(|page| *page > highest.saturating_sub(bytes)).min()
}
