//! Programs as they start: what they map, call and touch first, recorded once from real ones (`programs/*.prog`).
//!
//! One action on a line; `#` opens a comment. Addresses are hexadecimal, pages are 4 KiB:
//!
//! ```text
//! program FILE START HEADERS TEXT CONSTANTS DATA ZEROS     segments in pages; the four of an image come first
//! interpreter PRESENT START HEADERS TEXT CONSTANTS DATA ZEROS   (its file is number 1)
//! stack TOP PAGES ARGUMENT-PAGES
//! vdso START
//! call NUMBER              a system call without effect on memory
//! mmap START PAGES PROT    anonymous, private
//! file START PAGES PROT FILE FIRST-PAGE     a file, private
//! munmap START PAGES       mprotect START PAGES PROT       brk END
//! r ADDRESS   w ADDRESS   x ADDRESS         the process reads, writes, executes
//! kr ADDRESS  kw ADDRESS                    the kernel reads or writes for it, in a system call
//! ```

use std::sync::OnceLock;

use memvirt_addr::{AccessKind, Gva};
use memvirt_ops::process::{Backing, FileId, Image, Op, Prot, Range, Segments, Sharing, Transfer};

/// One thing that a program does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Do(Op),
    Touch(u64, AccessKind),
}

/// A program.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    text: &'static str,
    actions: OnceLock<Vec<Action>>,
}

macro_rules! programs {
    ($($name:literal),+ $(,)?) => {
        [$(Program {
            name: $name,
            text: include_str!(concat!("../programs/", $name, ".prog")),
            actions: OnceLock::new(),
        }),+]
    };
}

/// All of them.
static ALL: [Program; 6] = programs!["after-fork", "child", "child-exec", "hello", "parent", "sh"];

/// The names of all programs.
pub(crate) const NAMES: &str = "after-fork, child, child-exec, hello, parent, sh";

/// The program of this name.
pub(crate) fn find(name: &str) -> Option<&'static Program> {
    ALL.iter().find(|program| program.name == name)
}

impl Program {
    /// What it does, in order.
    pub(crate) fn actions(&self) -> &[Action] {
        self.actions.get_or_init(|| read(self.text))
    }
}

/// The actions of a text. Lines that are none are left out: a test reads every text that is built in.
fn read(text: &str) -> Vec<Action> {
    let mut image = None;
    let mut actions = Vec::new();
    for line in lines(text) {
        if let Some(action) = action(&line, &mut image) {
            actions.push(action);
        }
    }
    actions
}

fn lines(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    lines.map(|line| line.split_whitespace().collect::<Vec<_>>()).filter(|line| !line.is_empty())
}

/// The action of a line; lines of an image are gathered until its last, `vdso`.
fn action(line: &[&str], image: &mut Option<Image>) -> Option<Action> {
    let (word, rest) = line.split_first()?;
    let address = |index: usize| u64::from_str_radix(rest.get(index)?, 16).ok().map(Gva::new_truncate);
    let number = |index: usize| rest.get(index)?.parse::<u32>().ok();
    let range = || Some(Range { start: address(0)?, bytes: u64::from(number(1)?) * 4096 });
    let touch = |kind| Some(Action::Touch(address(0)?.as_u64(), kind));
    let copy = |transfer| {
        let range = Range { start: address(0)?, bytes: 8 };
        Some(Action::Do(Op::Copy { number: 0, transfer, range }))
    };
    match *word {
        "program" => *image = Some(Image { program: segments(rest, true)?, ..EMPTY }),
        "interpreter" => image.as_mut()?.interpreter = Some(segments(rest, false)?),
        "stack" => {
            let image = image.as_mut()?;
            image.stack_top = address(0)?;
            image.stack_pages = number(1)?;
            image.argument_pages = u16::try_from(number(2)?).ok()?;
        }
        "vdso" => {
            let image = Image { vdso: address(0)?, ..(*image)? };
            return Some(Action::Do(Op::Load { image }));
        }
        "call" => return Some(Action::Do(Op::Syscall { number: number(0)? })),
        "mmap" => {
            let backing = Backing::AnonymousPrivate;
            return Some(Action::Do(Op::Mmap { range: range()?, prot: prot(rest.get(2)?)?, backing }));
        }
        "file" => {
            let (file, first_page) = (FileId(number(3)?), number(4)?.into());
            let (range, prot, sharing) = (range()?, prot(rest.get(2)?)?, Sharing::Private);
            return Some(Action::Do(Op::MapFile { range, prot, sharing, file, first_page }));
        }
        "munmap" => return Some(Action::Do(Op::Munmap { range: range()? })),
        "mprotect" => return Some(Action::Do(Op::Mprotect { range: range()?, prot: prot(rest.get(2)?)? })),
        "brk" => return Some(Action::Do(Op::Brk { end: address(0)? })),
        "r" => return touch(AccessKind::Read),
        "w" => return touch(AccessKind::Write),
        "x" => return touch(AccessKind::Fetch),
        "kr" => return copy(Transfer::FromUser),
        "kw" => return copy(Transfer::ToUser),
        _ => {}
    }
    None
}

const NOTHING: Segments =
    Segments { file: FileId(0), start: Gva::ZERO, headers: 0, text: 0, constants: 0, data: 0, zeros: 0 };
const EMPTY: Image = Image {
    program: NOTHING,
    interpreter: None,
    stack_top: Gva::ZERO,
    stack_pages: 0,
    argument_pages: 1,
    vdso: Gva::ZERO,
};

fn segments(rest: &[&str], is_program: bool) -> Option<Segments> {
    let [file, start, sizes @ ..] = rest else { return None };
    let sizes: Vec<u16> = sizes.iter().filter_map(|size| size.parse().ok()).collect();
    let [headers, text, constants, data, zeros] = sizes[..] else { return None };
    let file = if is_program { FileId(file.parse().ok()?) } else { FileId(1) };
    let start = Gva::new_truncate(u64::from_str_radix(start, 16).ok()?);
    Some(Segments { file, start, headers, text, constants, data, zeros })
}

fn prot(text: &str) -> Option<Prot> {
    match text {
        "none" => Some(Prot::NONE),
        "r" => Some(Prot::R),
        "rw" => Some(Prot::RW),
        "rx" => Some(Prot::RX),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_every_program_is_read() {
        for program in &ALL {
            let image_lines = ["program", "interpreter", "stack"];
            let expected = lines(program.text).filter(|line| !image_lines.contains(&line[0])).count();
            assert_eq!(program.actions().len(), expected, "{}", program.name);
            assert!(NAMES.split(", ").any(|name| name == program.name));
        }
        assert_eq!(NAMES.split(", ").count(), ALL.len());
    }

    #[test]
    fn a_program_starts_with_its_image() {
        let Some(Action::Do(Op::Load { image })) = find("hello").unwrap().actions().first() else { panic!("no image") };
        assert_eq!((image.program.pages(), image.stack_pages), (5, 33));
        assert_eq!(image.interpreter.unwrap().text, 38);
    }
}
