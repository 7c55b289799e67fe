//! Differential test against the independent `x86_64` crate over the same bytes, which lie in an aligned buffer.
//!
//! In lockstep, each operation is done by both, each on a buffer of its own: outcomes and every byte must agree. In turns,
//! both work on one buffer: what one maps, changes or unmaps the other sees. Two things that crate does differently are kept
//! out: it has no notion of PAT (bit 12 of a large leaf is an address bit to it), and a `map_to` that it refuses because a
//! larger page covers the address has by then widened that page's flags.

#![expect(unsafe_code, reason = "the x86_64 crate reaches tables by pointer; here they point into one owned buffer")]
#![expect(clippy::unwrap_used, reason = "in a test a broken assumption of the harness may panic")]

use memvirt_addr::{Addr, Frame, Gfn, Gpa, GuestPhys, Gva, PageSize};
use memvirt_pagetable::{
    Attrs, FrameAllocator, FramePool, Guest4, LookupError, MapError, Mapper, TableAttrs, TableMem, Tree,
};
use proptest::prelude::*;
use x86_64::structures::paging::mapper::{
    CleanUp, MappedFrame, MappedPageTable, Mapper as _, PageTableFrameMapping, Translate, TranslateResult,
};
use x86_64::structures::paging::{self as theirs, Page, PageTable, PageTableFlags, PhysFrame};
use x86_64::{PhysAddr, VirtAddr};

const FRAMES: usize = 512;
const ROOT: Gfn = Gfn::new(1);
const TABLE_ATTRS: TableAttrs = TableAttrs::USER.with(Attrs::ACCESSED);
const TABLE_FLAGS: PageTableFlags = PageTableFlags::PRESENT
    .union(PageTableFlags::WRITABLE)
    .union(PageTableFlags::USER_ACCESSIBLE)
    .union(PageTableFlags::ACCESSED);

/// Physical memory as bytes: frame `n` lies `n` * 4096 bytes into the buffer.
struct Buffer {
    base: *mut PageTable,
}

impl Buffer {
    fn new() -> Self {
        let tables: Box<[PageTable]> = (0..FRAMES).map(|_| PageTable::new()).collect();
        Self { base: Box::into_raw(tables).cast() }
    }

    fn word(&self, at: Gpa) -> *mut u64 {
        let byte = usize::try_from(at.as_u64() & !7).unwrap();
        assert!(byte < FRAMES * 4096, "{at:?} lies outside the buffer");
        self.base.wrapping_byte_add(byte).cast()
    }

    fn words(&self) -> Vec<u64> {
        (0..FRAMES as u64 * 512).map(|word| self.read_entry(Addr::new(word * 8))).collect()
    }

    fn theirs(&mut self) -> MappedPageTable<'_, Pointers> {
        let root = self.word(ROOT.base()).cast();
        // SAFETY: the buffer is alive and borrowed exclusively while the result lives, and every frame of a table that
        // either crate links comes from a pool within the buffer.
        unsafe { MappedPageTable::new(&mut *root, Pointers(self.base)) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let tables = core::ptr::slice_from_raw_parts_mut(self.base, FRAMES);
        // SAFETY: made by `Box::into_raw` in `new` from a slice of this length, and dropped once.
        drop(unsafe { Box::from_raw(tables) });
    }
}

impl TableMem<GuestPhys> for Buffer {
    fn read_entry(&self, at: Gpa) -> u64 {
        // SAFETY: `word` checks the bounds and aligns; nobody holds a reference into the buffer now.
        unsafe { self.word(at).read() }
    }

    fn write_entry(&mut self, at: Gpa, value: u64) {
        // SAFETY: as for reading, and `self` is borrowed exclusively.
        unsafe { self.word(at).write(value) }
    }
}

struct Pointers(*mut PageTable);

// SAFETY: the pointers are into the buffer from which this was made; see `Buffer::theirs`.
unsafe impl PageTableFrameMapping for Pointers {
    fn frame_to_pointer(&self, frame: PhysFrame) -> *mut PageTable {
        let number = usize::try_from(frame.start_address().as_u64() / 4096).unwrap();
        assert!(number < FRAMES, "table frame {number} lies outside the buffer");
        self.0.wrapping_add(number)
    }
}

/// Our pool, as their allocator.
struct Pool<'p>(&'p mut FramePool<GuestPhys>);

// SAFETY: the pool hands out no frame twice (property-tested beside it).
unsafe impl theirs::FrameAllocator<theirs::Size4KiB> for Pool<'_> {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        let frame = self.0.allocate(PageSize::Size4K)?;
        Some(PhysFrame::containing_address(PhysAddr::new(frame.base().as_u64())))
    }
}

impl theirs::FrameDeallocator<theirs::Size4KiB> for Pool<'_> {
    unsafe fn deallocate_frame(&mut self, frame: PhysFrame) {
        self.0.free(Frame::new(frame.start_address().as_u64() >> 12), PageSize::Size4K);
    }
}

fn flags_of(attrs: Attrs) -> PageTableFlags {
    let pairs = [
        (Attrs::WRITE, PageTableFlags::WRITABLE),
        (Attrs::USER, PageTableFlags::USER_ACCESSIBLE),
        (Attrs::WRITE_THROUGH, PageTableFlags::WRITE_THROUGH),
        (Attrs::CACHE_DISABLE, PageTableFlags::NO_CACHE),
        (Attrs::ACCESSED, PageTableFlags::ACCESSED),
        (Attrs::DIRTY, PageTableFlags::DIRTY),
        (Attrs::GLOBAL, PageTableFlags::GLOBAL),
        (Attrs::SOFT_0, PageTableFlags::BIT_9),
        (Attrs::SOFT_1, PageTableFlags::BIT_10),
        (Attrs::SOFT_2, PageTableFlags::BIT_11),
    ];
    let no_execute = if attrs.contains(Attrs::EXEC) { PageTableFlags::empty() } else { PageTableFlags::NO_EXECUTE };
    pairs
        .iter()
        .filter(|(ours, _)| attrs.contains(*ours))
        .fold(PageTableFlags::PRESENT | no_execute, |all, p| all | p.1)
}

/// A machine: a buffer, its pool and which of the two crates works on it.
struct Machine {
    buffer: Buffer,
    pool: FramePool<GuestPhys>,
}

/// What an operation did: a refusal by kind, or the page it met.
#[derive(Debug, PartialEq)]
enum Outcome {
    Done(Option<(u64, PageSize)>),
    Occupied,
    Missing,
}

/// Runs `$body` with `$size` standing for the marker type of a page size.
macro_rules! by_size {
    ($value:expr, $size:ident => $body:expr) => {
        match $value {
            PageSize::Size4K => {
                type $size = theirs::Size4KiB;
                $body
            }
            PageSize::Size2M => {
                type $size = theirs::Size2MiB;
                $body
            }
            PageSize::Size1G => {
                type $size = theirs::Size1GiB;
                $body
            }
        }
    };
}

impl Machine {
    fn new() -> Self {
        Self { buffer: Buffer::new(), pool: FramePool::new(ROOT.offset(1), FRAMES as u64 - 2) }
    }

    fn ours(&mut self) -> (Mapper<'_, Guest4, Buffer>, &mut FramePool<GuestPhys>) {
        (Mapper::new(&mut self.buffer, ROOT, TABLE_ATTRS), &mut self.pool)
    }

    fn we_translate(&self, at: Gva) -> Option<(Gpa, PageTableFlags, PageSize)> {
        let (to, attrs, size) = Tree::<Guest4, _>::new(&self.buffer, ROOT).translate(at)?;
        Some((to, flags_of(attrs), size))
    }

    fn they_translate(&mut self, at: Gva) -> Option<(Gpa, PageTableFlags, PageSize)> {
        match self.buffer.theirs().translate(VirtAddr::new(at.as_u64())) {
            TranslateResult::Mapped { frame, offset, flags } => {
                let (base, size) = match frame {
                    MappedFrame::Size4KiB(frame) => (frame.start_address(), PageSize::Size4K),
                    MappedFrame::Size2MiB(frame) => (frame.start_address(), PageSize::Size2M),
                    MappedFrame::Size1GiB(frame) => (frame.start_address(), PageSize::Size1G),
                };
                Some((Gpa::new(base.as_u64() + offset), flags - PageTableFlags::HUGE_PAGE, size))
            }
            TranslateResult::NotMapped => None,
            TranslateResult::InvalidFrameAddress(at) => panic!("a frame that is not aligned: {at:?}"),
        }
    }

    fn we_do(&mut self, op: &Op) -> Outcome {
        let (mut mapper, pool) = self.ours();
        let found = |result: Result<memvirt_pagetable::Mapping<Guest4>, LookupError>| match result {
            Ok(old) => Outcome::Done(Some((old.frame.number(), old.size))),
            Err(LookupError::NotMapped { .. }) => Outcome::Missing,
            Err(error) => panic!("{error}"),
        };
        match *op {
            Op::Map { at, frame, size, attrs } => match mapper.map(at, frame, size, attrs, pool) {
                Ok(_) => Outcome::Done(None),
                Err(MapError::AlreadyMapped { .. } | MapError::TableInTheWay { .. }) => Outcome::Occupied,
                Err(error) => panic!("{error}"),
            },
            Op::Unmap { at } => found(mapper.unmap(at)),
            Op::Protect { at, attrs } => found(mapper.protect(at, |_| attrs)),
            Op::Prune { from, to } => {
                mapper.prune(from..=to, pool);
                Outcome::Done(None)
            }
        }
    }

    /// What the other crate calls by the size of the page is found out by looking first.
    fn they_do(&mut self, op: &Op) -> Outcome {
        let found = self.they_translate(op.at());
        let start = |size: PageSize| VirtAddr::new(op.at().align_down(size).as_u64());
        let pool = &mut Pool(&mut self.pool);
        let mut mapper = self.buffer.theirs();
        match (*op, found) {
            (Op::Map { frame, size, attrs, .. }, _) => by_size!(size, S => {
                let page = Page::<S>::from_start_address(start(size)).unwrap();
                let frame = PhysFrame::<S>::from_start_address(PhysAddr::new(frame.base().as_u64())).unwrap();
                // SAFETY: nothing executes on these tables.
                match unsafe { mapper.map_to_with_table_flags(page, frame, flags_of(attrs), TABLE_FLAGS, pool) } {
                    Ok(flush) => {
                        flush.ignore();
                        Outcome::Done(None)
                    }
                    Err(theirs::mapper::MapToError::PageAlreadyMapped(_)) => Outcome::Occupied,
                    Err(error) => panic!("{error:?}"),
                }
            }),
            (Op::Prune { from, to }, _) => {
                let page = |at: Gva| Page::containing_address(VirtAddr::new(at.as_u64()));
                // SAFETY: nothing executes on these tables.
                unsafe { mapper.clean_up_addr_range(Page::range_inclusive(page(from), page(to)), pool) };
                Outcome::Done(None)
            }
            (_, None) => Outcome::Missing,
            (Op::Unmap { .. }, Some((_, _, size))) => by_size!(size, S => {
                let (frame, flush) = mapper.unmap(Page::<S>::from_start_address(start(size)).unwrap()).unwrap();
                flush.ignore();
                Outcome::Done(Some((frame.start_address().as_u64() >> 12, size)))
            }),
            (Op::Protect { attrs, .. }, Some((to, _, size))) => by_size!(size, S => {
                let page = Page::<S>::from_start_address(start(size)).unwrap();
                // SAFETY: nothing executes on these tables.
                unsafe { mapper.update_flags(page, flags_of(attrs)) }.unwrap().ignore();
                Outcome::Done(Some((to.align_down(size).frame().number(), size)))
            }),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Map { at: Gva, frame: Gfn, size: PageSize, attrs: Attrs },
    Unmap { at: Gva },
    Protect { at: Gva, attrs: Attrs },
    Prune { from: Gva, to: Gva },
}

impl Op {
    const fn at(&self) -> Gva {
        match self {
            Self::Map { at, .. } | Self::Unmap { at } | Self::Protect { at, .. } | Self::Prune { from: at, .. } => *at,
        }
    }

    /// Whether a larger page covers what is to be mapped, see the module's text.
    fn is_covered(&self, machine: &Machine) -> bool {
        let Self::Map { at, size, .. } = self else { return false };
        machine.we_translate(*at).is_some_and(|(_, _, found)| found > *size)
    }
}

/// Few indices at each level, so that operations meet each other; both halves.
fn address() -> impl Strategy<Value = Gva> {
    let index = || prop::sample::select(vec![0u64, 1, 2, 511]);
    let top = prop::sample::select(vec![0u64, 255, 256, 511]);
    (top, index(), index(), index(), 0u64..4096).prop_map(|(l4, l3, l2, l1, offset)| {
        let low = l4 << 39 | l3 << 30 | l2 << 21 | l1 << 12 | offset;
        Gva::new(if l4 < 256 { low } else { low | 0xffff << 48 })
    })
}

fn attrs() -> impl Strategy<Value = Attrs> {
    let all = Attrs::RWX.bits() | 0xffe;
    any::<u32>().prop_map(move |bits| Attrs::from_bits_truncate(bits & all) | Attrs::READ)
}

fn op() -> impl Strategy<Value = Op> {
    let size = prop::sample::select(PageSize::ALL.to_vec());
    let map = (address(), 0..1u64 << 40, size, attrs()).prop_map(|(at, frame, size, attrs)| Op::Map {
        at: at.align_down(size),
        frame: Gfn::new(frame).align_down(size),
        size,
        attrs,
    });
    let prune = (address(), address()).prop_map(|(a, b)| Op::Prune { from: a.min(b), to: a.max(b) });
    prop_oneof![
        4 => map,
        2 => address().prop_map(|at| Op::Unmap { at }),
        2 => (address(), attrs()).prop_map(|(at, attrs)| Op::Protect { at, attrs }),
        1 => prune,
    ]
}

proptest! {
    #![proptest_config(memvirt_properties::cases(256))]

    #[test]
    fn in_lockstep_every_byte_agrees(ops in prop::collection::vec(op(), 1..60), probes in prop::collection::vec(address(), 20)) {
        let (mut we, mut they) = (Machine::new(), Machine::new());
        for op in &ops {
            if op.is_covered(&we) {
                continue;
            }
            prop_assert_eq!(we.we_do(op), they.they_do(op), "{:?}", op);
        }
        prop_assert!(we.buffer.words() == they.buffer.words(), "the tables differ");
        prop_assert_eq!(we.pool.allocated(), they.pool.allocated());
        for at in ops.iter().map(Op::at).chain(probes) {
            prop_assert_eq!(we.they_translate(at), they.we_translate(at));
        }
    }

    #[test]
    fn in_turns_each_sees_what_the_other_did(
        ops in prop::collection::vec((op(), any::<bool>()), 1..60),
        probes in prop::collection::vec(address(), 20),
    ) {
        let mut machine = Machine::new();
        for (op, ours) in &ops {
            if op.is_covered(&machine) {
                continue;
            }
            let outcome = if *ours { machine.we_do(op) } else { machine.they_do(op) };
            let seen = if *ours { machine.they_translate(op.at()) } else { machine.we_translate(op.at()) };
            match (*op, outcome) {
                (Op::Map { frame, size, attrs, .. }, Outcome::Done(_)) => {
                    prop_assert_eq!(seen, Some((frame.base(), flags_of(attrs), size)));
                }
                (Op::Unmap { .. }, _) => prop_assert_eq!(seen, None),
                (Op::Protect { attrs, .. }, Outcome::Done(_)) => {
                    prop_assert_eq!(seen.map(|(_, flags, _)| flags), Some(flags_of(attrs)));
                }
                _ => {}
            }
        }
        for at in ops.iter().map(|(op, _)| op.at()).chain(probes) {
            prop_assert_eq!(machine.we_translate(at), machine.they_translate(at), "{:?}", at);
        }
    }
}
