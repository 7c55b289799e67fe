//! Properties over generated logs and over arbitrary bytes.

use crate::common::{pieces, run};
use memvirt_addr::Gva;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Item {
    Access(char, u64, u64),
    Skipped(&'static str),
    Malformed(&'static str),
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => any::<u64>().prop_map(|raw| raw >> 27),
        2 => any::<u64>().prop_map(|raw| Gva::new_truncate(raw).as_u64()),
        // Near the end of a page.
        2 => (any::<u64>(), 0u64..16).prop_map(|(raw, back)| ((raw >> 28) | 0xfff) - back),
    ]
}

fn item() -> impl Strategy<Value = Item> {
    let size = prop_oneof![8 => 1u64..33, 1 => 1u64..200, 1 => 4000u64..10_000];
    let access = (prop::sample::select(vec!['I', 'L', 'S', 'M']), address(), size)
        .prop_filter("the last byte has an address too", |&(_, address, bytes)| {
            Gva::new(address).checked_add(bytes - 1).is_some()
        })
        .prop_map(|(letter, address, bytes)| Item::Access(letter, address, bytes));
    let skipped = prop::sample::select(vec!["==7== text", "--7--   SCHED[1]: x", "", "SCHED x", " --> NoWriteResult "]);
    let malformed = prop::sample::select(vec!["I  0400", " X 04001090,3", "04001090,3", " L 04001090,a", "\u{1}"]);
    prop_oneof![
        20 => access,
        1 => skipped.prop_map(Item::Skipped),
        1 => malformed.prop_map(Item::Malformed),
    ]
}

fn write(items: &[Item], newline: &str) -> String {
    let line = |item: &Item| match item {
        Item::Access('I', address, bytes) => format!("I  {address:08x},{bytes}{newline}"),
        Item::Access(letter, address, bytes) => format!(" {letter} {address:08x},{bytes}{newline}"),
        Item::Skipped(text) | Item::Malformed(text) => format!("{text}{newline}"),
    };
    items.iter().map(line).collect()
}

/// Parts of lines that a log can be torn into.
const PIECES: &[&str] = &[
    "I  04001090,3\n",
    " M 1ffeffffff,8\n",
    "SYSCALL[7,1](12) sys_brk ( 0x0 ) --> ",
    "[pre-success] Success(0x4035000) ",
    "--7-- x",
    "\r\n",
    " --> Success(0x0) ",
    "SYSCALL[7,2](9) sys_mmap ( 0x0, 8192, 3, 34, 4, 0 )",
    " L 04001090,8",
    "\n",
    "SYSCALL[7,1](9) ... [async] --> Success(0x5000) ",
    "[async] ... ",
    "SYSCALL[7,1](60) exit( 0 )",
];

proptest! {
    #![proptest_config(memvirt_properties::cases(256))]

    #[test]
    fn what_is_written_is_read(items in prop::collection::vec(item(), 0..400), crlf: bool) {
        let mut items = items;
        items.insert(0, Item::Access('I', 0x400_1090, 3));
        let text = write(&items, if crlf { "\r\n" } else { "\n" });
        let run = run(text.as_bytes());
        let accesses: Vec<_> = items.iter().flat_map(|item| match *item {
            Item::Access(letter, address, bytes) => pieces(letter, address, bytes),
            _ => Vec::new(),
        }).collect();
        prop_assert_eq!(run.accesses(), accesses);
        let malformed = items.iter().filter(|item| matches!(item, Item::Malformed(_))).count();
        prop_assert_eq!(run.tally.malformed, malformed as u64);
        prop_assert_eq!(run.tally.lines, items.len() as u64);
        prop_assert!(run.error.is_none());
    }

    /// Everything, the counts of malformed lines too, is a function of the bytes alone.
    #[test]
    fn pieces_do_not_matter(pieces in prop::collection::vec(prop::sample::select(PIECES), 1..40), at in 0usize..1000) {
        let text = pieces.concat().into_bytes();
        let whole = run(&text[..]);
        let (first, second) = text.split_at(at % (text.len() + 1));
        let split = run(std::io::Read::chain(first, second));
        prop_assert_eq!(split.batches, whole.batches);
        prop_assert_eq!(split.tally, whole.tally);
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_always_end(
        bytes in prop::collection::vec(any::<u8>(), 0..3000),
        head in prop::sample::select(vec![
            &b""[..], b"I  04001090,3\n", &[0x28, 0xb5, 0x2f, 0xfd], &[0xfd, b'7', b'z', b'X', b'Z', 0], &[0x1f, 0x8b, 8],
        ]),
    ) {
        let text = [head, &bytes[..]].concat();
        let run = run(&text[..]);
        prop_assert!(run.tally.malformed <= run.tally.lines.max(text.len() as u64));
    }

    /// Bytes that are nearly lines reach further into the grammar than arbitrary ones.
    #[test]
    fn arbitrary_nearly_lines_never_panic(text in r"(I  |I | [LSM] |SYSCALL\[|[0-9a-f]{1,17}|,|\[|\]|\(|\)|0x| sys_(mmap|brk|mremap|munmap|mprotect) | --> |Success\(0x|Failure|==7==|--|\n|\r| ){0,200}") {
        let text = format!("I  04001090,3\n{text}");
        let run = run(text.as_bytes());
        prop_assert!(run.error.is_none());
        prop_assert_eq!(run.tally.raw_bytes, text.len() as u64);
    }
}
