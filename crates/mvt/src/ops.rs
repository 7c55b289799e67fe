//! Operations of the process-level vocabulary as bytes: a tag and the fields in order, numbers as in `varint`.

use memvirt_addr::Gva;
use memvirt_ops::arch::Trap;
use memvirt_ops::process::{Backing, FileId, Image, Op, ProcessId, Prot, Range, Segments, Sharing, Transfer};

use crate::varint::{put, take, take32};

/// No operation.
const NONE: u8 = 0;

const BACKINGS: [Backing; 4] =
    [Backing::AnonymousPrivate, Backing::AnonymousShared, Backing::FilePrivate, Backing::FileShared];
const SHARINGS: [Sharing; 2] = [Sharing::Private, Sharing::Shared];
const TRANSFERS: [Transfer; 2] = [Transfer::FromUser, Transfer::ToUser];
const TRAPS: [Trap; 5] = [Trap::Hypercall, Trap::PortIo, Trap::Msr, Trap::Cpuid, Trap::Halt];

fn place<T: PartialEq>(all: &[T], one: &T) -> u64 {
    all.iter().position(|other| other == one).unwrap_or(0) as u64
}

fn pick<T: Copy>(all: &[T], input: &mut &[u8]) -> Option<T> {
    all.get(usize::try_from(take(input)?).ok()?).copied()
}

fn put_range(out: &mut Vec<u8>, range: Range) {
    put(out, range.start.as_u64());
    put(out, range.bytes);
}

fn take_gva(input: &mut &[u8]) -> Option<Gva> {
    Gva::try_new(take(input)?).ok()
}

fn take_range(input: &mut &[u8]) -> Option<Range> {
    Some(Range { start: take_gva(input)?, bytes: take(input)? })
}

fn put_prot(out: &mut Vec<u8>, prot: Prot) {
    put(out, u64::from(prot.read) | u64::from(prot.write) << 1 | u64::from(prot.execute) << 2);
}

fn take_prot(input: &mut &[u8]) -> Option<Prot> {
    let bits = take(input).filter(|bits| *bits < 8)?;
    Some(Prot { read: bits & 1 != 0, write: bits & 2 != 0, execute: bits & 4 != 0 })
}

fn put_segments(out: &mut Vec<u8>, part: &Segments) {
    put(out, u64::from(part.file.0));
    put(out, part.start.as_u64());
    for pages in [part.headers, part.text, part.constants, part.data, part.zeros] {
        put(out, u64::from(pages));
    }
}

fn take16(input: &mut &[u8]) -> Option<u16> {
    take(input)?.try_into().ok()
}

fn take_segments(input: &mut &[u8]) -> Option<Segments> {
    Some(Segments {
        file: FileId(take32(input)?),
        start: take_gva(input)?,
        headers: take16(input)?,
        text: take16(input)?,
        constants: take16(input)?,
        data: take16(input)?,
        zeros: take16(input)?,
    })
}

fn put_image(out: &mut Vec<u8>, image: &Image) {
    put_segments(out, &image.program);
    out.push(u8::from(image.interpreter.is_some()));
    if let Some(interpreter) = &image.interpreter {
        put_segments(out, interpreter);
    }
    for number in [image.stack_top.as_u64(), image.stack_pages.into(), image.argument_pages.into(), image.vdso.as_u64()]
    {
        put(out, number);
    }
}

fn take_image(input: &mut &[u8]) -> Option<Image> {
    let program = take_segments(input)?;
    let interpreter = match take(input)? {
        0 => None,
        1 => Some(take_segments(input)?),
        _ => return None,
    };
    Some(Image {
        program,
        interpreter,
        stack_top: take_gva(input)?,
        stack_pages: take32(input)?,
        argument_pages: take16(input)?,
        vdso: take_gva(input)?,
    })
}

/// Appends an operation, or that there is none.
pub(crate) fn put_op(out: &mut Vec<u8>, op: Option<&Op>) {
    let Some(op) = op else { return out.push(NONE) };
    let tagged = |out: &mut Vec<u8>, tag: u8, numbers: &[u64]| {
        out.push(tag);
        numbers.iter().for_each(|number| put(out, *number));
    };
    match *op {
        Op::Mmap { range, prot, backing } => {
            out.push(1);
            put_range(out, range);
            put_prot(out, prot);
            put(out, place(&BACKINGS, &backing));
        }
        Op::MapFile { range, prot, sharing, file, first_page } => {
            out.push(2);
            put_range(out, range);
            put_prot(out, prot);
            put(out, place(&SHARINGS, &sharing));
            put(out, u64::from(file.0));
            put(out, first_page);
        }
        Op::Munmap { range } => tagged(out, 3, &[range.start.as_u64(), range.bytes]),
        Op::Mprotect { range, prot } => {
            out.push(4);
            put_range(out, range);
            put_prot(out, prot);
        }
        Op::Mremap { from, to } => {
            tagged(out, 5, &[from.start.as_u64(), from.bytes, to.start.as_u64(), to.bytes]);
        }
        Op::Brk { end } => tagged(out, 6, &[end.as_u64()]),
        Op::Discard { range } => tagged(out, 7, &[range.start.as_u64(), range.bytes]),
        Op::Fork { child } => tagged(out, 8, &[child.0.into()]),
        Op::Vfork { child } => tagged(out, 9, &[child.0.into()]),
        Op::Exec => out.push(10),
        Op::Load { image } => {
            out.push(11);
            put_image(out, &image);
        }
        Op::Exit => out.push(12),
        Op::Wait { child } => tagged(out, 13, &[child.map_or(0, |child| u64::from(child.0) + 1)]),
        Op::Switch { to } => tagged(out, 14, &[to.0.into()]),
        Op::Handoff { thread } => tagged(out, 15, &[thread.into()]),
        Op::Syscall { number } => tagged(out, 16, &[number.into()]),
        Op::Copy { number, transfer, range } => {
            tagged(out, 17, &[number.into(), place(&TRANSFERS, &transfer), range.start.as_u64(), range.bytes]);
        }
        Op::Interrupt => out.push(18),
        Op::Trap { trap, times } => tagged(out, 19, &[place(&TRAPS, &trap), times.into()]),
    }
}

/// Takes an operation from the front; the outer `None`: there is none such.
pub(crate) fn take_op(input: &mut &[u8]) -> Option<Option<Op>> {
    let (tag, rest) = input.split_first()?;
    *input = rest;
    Some(Some(match tag {
        0 => return Some(None),
        1 => Op::Mmap { range: take_range(input)?, prot: take_prot(input)?, backing: pick(&BACKINGS, input)? },
        2 => Op::MapFile {
            range: take_range(input)?,
            prot: take_prot(input)?,
            sharing: pick(&SHARINGS, input)?,
            file: FileId(take32(input)?),
            first_page: take(input)?,
        },
        3 => Op::Munmap { range: take_range(input)? },
        4 => Op::Mprotect { range: take_range(input)?, prot: take_prot(input)? },
        5 => Op::Mremap { from: take_range(input)?, to: take_range(input)? },
        6 => Op::Brk { end: take_gva(input)? },
        7 => Op::Discard { range: take_range(input)? },
        8 => Op::Fork { child: ProcessId(take32(input)?) },
        9 => Op::Vfork { child: ProcessId(take32(input)?) },
        10 => Op::Exec,
        11 => Op::Load { image: take_image(input)? },
        12 => Op::Exit,
        13 => Op::Wait {
            child: match take(input)?.checked_sub(1) {
                None => None,
                Some(number) => Some(ProcessId(u32::try_from(number).ok()?)),
            },
        },
        14 => Op::Switch { to: ProcessId(take32(input)?) },
        15 => Op::Handoff { thread: take32(input)? },
        16 => Op::Syscall { number: take32(input)? },
        17 => Op::Copy { number: take32(input)?, transfer: pick(&TRANSFERS, input)?, range: take_range(input)? },
        18 => Op::Interrupt,
        19 => Op::Trap { trap: pick(&TRAPS, input)?, times: take32(input)? },
        _ => return None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_op() -> Vec<Op> {
        let range = Range { start: Gva::new(0x7f00_1234_5000), bytes: 0x3001 };
        let segments =
            Segments { file: FileId(7), start: range.start, headers: 1, text: 2, constants: 3, data: 4, zeros: 65535 };
        let image = Image {
            program: segments,
            interpreter: Some(segments),
            stack_top: range.start,
            stack_pages: 2048,
            argument_pages: 1,
            vdso: range.start,
        };
        let child = ProcessId(70_000);
        let mut ops = vec![
            Op::Munmap { range },
            Op::Mprotect { range, prot: Prot::RX },
            Op::Mremap { from: Range { bytes: 0, ..range }, to: range },
            Op::Brk { end: range.start },
            Op::Discard { range },
            Op::Fork { child },
            Op::Vfork { child },
            Op::Exec,
            Op::Load { image },
            Op::Load { image: Image { interpreter: None, ..image } },
            Op::Exit,
            Op::Wait { child: Some(child) },
            Op::Wait { child: None },
            Op::Switch { to: child },
            Op::Handoff { thread: 3 },
            Op::Syscall { number: 435 },
            Op::Interrupt,
        ];
        ops.extend(BACKINGS.map(|backing| Op::Mmap { range, prot: Prot::RW, backing }));
        let file = |sharing| Op::MapFile { range, prot: Prot::R, sharing, file: FileId(9), first_page: 1 << 40 };
        ops.extend(SHARINGS.map(file));
        ops.extend(TRANSFERS.map(|transfer| Op::Copy { number: 1, transfer, range }));
        ops.extend(TRAPS.map(|trap| Op::Trap { trap, times: 5 }));
        ops
    }

    #[test]
    fn every_operation_survives_and_no_prefix_of_it_is_one() {
        for op in every_op() {
            let mut bytes = Vec::new();
            put_op(&mut bytes, Some(&op));
            let mut input = &bytes[..];
            assert_eq!(take_op(&mut input), Some(Some(op)));
            assert!(input.is_empty());
            for cut in 0..bytes.len() {
                assert_eq!(take_op(&mut &bytes[..cut]), None, "{op:?} cut to {cut}");
            }
        }
        assert_eq!(take_op(&mut &[0][..]), Some(None));
        assert_eq!(take_op(&mut &[20][..]), None);
        assert_eq!(take_op(&mut &[1, 0, 1, 8, 0][..]), None);
    }
}
