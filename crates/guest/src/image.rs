//! A program's image: what `execve` maps and touches, and how the kernel reaches a process' memory.
//!
//! Source: Linux `fs/exec.c` (`copy_strings`: arguments go into pages of the new stack, at the top of user space;
//! `setup_arg_pages`, `shift_arg_pages`: the stack is moved to its place), `fs/binfmt_elf.c` (`load_elf_binary`: segments are
//! mapped, `padzero` clears the rest of the last page of data, which the kernel faults in; `create_elf_tables` stores to the
//! stack), `arch/x86/entry/vdso/vma.c`.

use memvirt_addr::{AccessKind, Gva, PageSize};
use memvirt_ops::process::{Backing, FileId, Image, ProcessId, Prot, Range, Segments, Sharing, Transfer};

use super::area::{Area, pages_of};
use super::fault::leaf;
use super::file::FileView;
use super::memory::Hands;
use super::mm::page_address;
use super::shootdown::{Flush, FreedTables};
use super::{Guest, Halted};

/// The page of code and the page of data that the kernel shows to user mode.
const VDSO: FileId = FileId(u32::MAX);
/// Where the arguments are collected before the stack is moved to its place: the last page of user space but one.
const FIRST_STACK_TOP: u64 = (1 << 35) - 1;
/// How often one access of the kernel may fault in a row.
const MAX_FAULTS: u32 = 8;

impl Guest {
    pub(crate) fn load_image(&mut self, hands: &mut Hands<'_>, id: ProcessId, image: &Image) -> Result<(), Halted> {
        let top = image.stack_top.frame().number();
        let pages = u64::from(image.argument_pages.max(1));
        let stack = u64::from(image.stack_pages).max(pages);
        if !sound(image) || top <= stack || top > FIRST_STACK_TOP {
            hands.stats.ignored.bad_range += 1;
            return Ok(());
        }
        hands.stats.execs += 1;
        let fresh = self.new_process(hands)?;
        let roots = fresh.roots;
        for page in FIRST_STACK_TOP - pages..FIRST_STACK_TOP {
            let frame = self.data_page(hands)?;
            self.clear(hands, frame)?;
            self.map(hands, roots, page_address(page), frame, PageSize::Size4K, leaf(Prot::RW, true, true))?;
        }
        self.replace(hands, id, fresh)?;
        if top != FIRST_STACK_TOP {
            self.move_pages(hands, roots, (FIRST_STACK_TOP - pages, FIRST_STACK_TOP), top - pages)?;
            // The tables that led to them are freed, and `tlb_finish_mmu` flushes for that once more.
            self.flush(hands, &Flush::All, FreedTables::Yes)?;
        }
        self.add_area(id, (top - stack, top), Prot::RW, true);
        for segments in [Some(&image.program), image.interpreter.as_ref()].into_iter().flatten() {
            self.map_segments(hands, id, segments)?;
        }
        let vdso = image.vdso.frame().number();
        let view = FileView { sharing: Sharing::Private, file: VDSO, first_page: 0 };
        self.add_file_area(id, (vdso, vdso + 2), Prot::RX, view);
        self.reach(hands, page_address(top - pages), AccessKind::Write)?;
        Ok(())
    }

    fn map_segments(&mut self, hands: &mut Hands<'_>, id: ProcessId, segments: &Segments) -> Result<(), Halted> {
        let first = segments.start.frame().number();
        let mut page = first;
        for (pages, prot) in [
            (segments.headers, Prot::R),
            (segments.text, Prot::RX),
            (segments.constants, Prot::R),
            (segments.data, Prot::RW),
        ] {
            let end = page + u64::from(pages);
            if end > page {
                let view = FileView { sharing: Sharing::Private, file: segments.file, first_page: page - first };
                self.add_file_area(id, (page, end), prot, view);
            }
            page = end;
        }
        if segments.zeros > 0 {
            self.add_area(id, (page, page + u64::from(segments.zeros)), Prot::RW, false);
        }
        if segments.data > 0 {
            self.reach(hands, page_address(page - 1), AccessKind::Write)?;
        }
        Ok(())
    }

    fn add_area(&mut self, id: ProcessId, (start, end): (u64, u64), prot: Prot, has_private_pages: bool) {
        let (object, backing) = (self.objects.create(), Backing::AnonymousPrivate);
        if let Some(process) = self.processes.get_mut(&id) {
            process.areas.insert(Area { start, end, prot, backing, object, first: 0, has_private_pages });
        }
    }

    /// Moves data between the kernel and the current process, page by page, up to the first that is not permitted.
    pub(crate) fn user_copy(&mut self, hands: &mut Hands<'_>, transfer: Transfer, range: Range) -> Result<(), Halted> {
        let Some((start, end)) = pages_of(range) else {
            hands.stats.ignored.bad_range += 1;
            return Ok(());
        };
        let kind = match transfer {
            Transfer::FromUser => AccessKind::Read,
            Transfer::ToUser => AccessKind::Write,
        };
        for page in start..end {
            if !self.reach(hands, page_address(page), kind)? {
                break;
            }
        }
        Ok(())
    }

    /// One access of the kernel to the current process' memory, its faults handled where they arise: within the kernel, so
    /// that no CR3 is loaded for them under isolation. False where the area does not permit it.
    fn reach(&mut self, hands: &mut Hands<'_>, at: Gva, kind: AccessKind) -> Result<bool, Halted> {
        let mut last = None;
        for _ in 0..MAX_FAULTS {
            let Some(fault) = hands.reach_user(at, kind)? else { return Ok(true) };
            hands.stats.faults_in_kernel += 1;
            if !self.handle(hands, fault)? {
                return Ok(false);
            }
            last = Some(fault);
        }
        last.map_or(Ok(true), |fault| Err(Halted::Livelock(fault)))
    }
}

/// Whether the parts of an image lie in user space and apart from each other.
fn sound(image: &Image) -> bool {
    let parts = |segments: &Segments| {
        let first = segments.start.frame().number();
        (first, first + segments.pages())
    };
    let (top, vdso) = (image.stack_top.frame().number(), image.vdso.frame().number());
    let mut all = vec![parts(&image.program), (vdso, vdso + 2)];
    all.extend(image.interpreter.as_ref().map(parts));
    all.push((top.saturating_sub(u64::from(image.stack_pages)), top));
    all.sort_unstable();
    all.iter().all(|(first, end)| *first > 0 && first < end && *end <= FIRST_STACK_TOP)
        && all.windows(2).all(|pair| pair[0].1 <= pair[1].0)
}
