//! Lines that are wrong, and inputs that are no logs.

use crate::common::{pieces, run};
use memvirt_addr::Gva;
use memvirt_ops::process::{Batch, Op};
use memvirt_trace::TraceError;

/// A run of the reader over well-formed lines around `line`: the expectation it names, or `None` where the line is fine.
fn verdict(line: &str) -> Option<String> {
    let text = format!("I  04001090,3\n{line}\n L 1ffefff888,8\n");
    let run = run(text.as_bytes());
    assert!(run.error.is_none(), "{line}");
    assert_eq!(run.tally.lines, 3, "{line}");
    assert!(run.tally.malformed <= 1, "{line}");
    let accesses = run.accesses();
    assert_eq!(accesses.first(), pieces('I', 0x400_1090, 3).first(), "{line}");
    assert_eq!(accesses.last(), pieces('L', 0x1f_feff_f888, 8).last(), "{line}: reading goes on");
    run.tally.first_malformed.map(|first| {
        assert_eq!((first.file.as_str(), first.line), ("test.lackey", 2));
        assert!(line.contains(first.found.trim_end_matches("...")), "{line}: found `{}`", first.found);
        assert_eq!(accesses.len(), 2, "{line}: nothing comes of a malformed line");
        first.expected
    })
}

#[test]
fn each_kind_of_mistake_is_named() {
    for (line, expected) in [
        ("I  0400109g,3", "`,` after the address"),
        ("I  ,3", "an address of 1 to 16 hexadecimal digits"),
        ("I  00000000004001090,3", "`,` after the address"),
        ("I  04001090;3", "`,` after the address"),
        (" L 04001090,", "a size of 1 to 1048576 bytes after the comma"),
        (" L 04001090,0", "a size of 1 to 1048576 bytes after the comma"),
        (" S 04001090,1048577", "a size of 1 to 1048576 bytes after the comma"),
        (" S 04001090,99999999999999999999", "a size of 1 to 1048576 bytes after the comma"),
        (" M 04001090,8 ", "the end of the line after the size"),
        (" M 04001090,8,8", "the end of the line after the size"),
        (" L 0100000000000000,8", "a canonical address"),
        (" L fe00000000000000,8", "a canonical address"),
        (" S 00ffffffffffffff,2", "a canonical address"),
        (" S ffffffffffffffff,2", "a canonical address"),
        ("SYSCALL[x,1](9) sys_mmap ( ) --> Success(0x0)", "a process number"),
        ("SYSCALL[7](9) sys_mmap ( ) --> Success(0x0)", "`,` and a thread number"),
        ("SYSCALL[7,1] sys_mmap ( ) --> Success(0x0)", "`](` and the number of a system call"),
        ("SYSCALL[7,1](9) sys_mmap ( a, b ) --> Success(0x0)", "numbers as the arguments of the call"),
        (
            "SYSCALL[7,1](9) sys_mmap ( 0x0, 4096, 3, 34 ) --> Perhaps",
            "`Success(0x...)`, `Failure(0x...)` or `NoWriteResult`",
        ),
        // 1 EiB, nothing, and a range over the end of the lower half.
        (
            "SYSCALL[7,1](9) sys_mmap ( 0x0, 1152921504606846976, 3, 34, 4, 0 ) --> [pre-success] Success(0x5000) ",
            RANGE,
        ),
        ("SYSCALL[7,1](9) sys_mmap ( 0x0, 0, 3, 34, 4, 0 ) --> [pre-success] Success(0x5000) ", RANGE),
        ("SYSCALL[7,1](11) sys_munmap ( 0xfffffffffff000, 8192 )[sync] --> Success(0x0) ", RANGE),
        ("SYSCALL[7,1](12) sys_brk ( 0x0 ) --> [pre-success] Success(0xffffffffffffffff) ", RANGE),
        (
            "SYSCALL[7,1](25) sys_mremap ( 0x1000, 18446744073709551615, 1, 0x1 ) --> [pre-success] Success(0x1000) ",
            RANGE,
        ),
    ] {
        assert_eq!(verdict(line).as_deref(), Some(expected), "{line}");
    }
    for line in ["nonsense", "I 04001090,3", "i  04001090,3", "  L 04001090,3", "==x== y", "\u{1}\u{0}"] {
        if line.is_ascii() && !line.contains('\u{0}') {
            assert!(verdict(line).unwrap().starts_with("an access (`I  ADDRESS,SIZE`"), "{line}");
        }
    }
}

const RANGE: &str = "a range of addresses that exists";

#[test]
fn what_is_unusual_but_right_is_taken() {
    for line in [
        "I  0,1",
        " L ffffffffffffffff,1",
        " S 00fffffffffffff8,8",
        " S 04001090,1048576",
        "I  0400109A,3",
        "==1== anything",
        "**1** anything",
        "--1--   SCHED[1]: releasing lock",
        "SCHEDSETJMP(line 1211) tid 1, jumped=1476724588",
        "SB 04001090",
        "",
        "   ",
        " --> [pre-fail] Failure(0x26) ",
        "SYSCALL[7,1](9) sys_mmap ( 0x0, 4096, 3, 34, 4, 0 ) --> [pre-fail] Failure(0xc) ",
        "SYSCALL[7,1]( 10) sys_mprotect ( 0x1000, 0, 3 )[sync] --> Success(0x0) ",
    ] {
        assert_eq!(verdict(line), None, "{line}");
    }
}

#[test]
fn the_first_malformed_line_is_kept_and_all_are_counted() {
    let text = "I  04001090,3\r\n L 0400zz90,3\r\nwrong\r\n S 1ffefff888,8\r\n";
    let run = run(text.as_bytes());
    assert_eq!((run.tally.malformed, run.accesses().len()), (2, 2));
    assert_eq!(
        run.tally.first_malformed.unwrap().to_string(),
        "test.lackey: line 2: expected `,` after the address, found `zz90,3`"
    );
}

#[test]
fn accesses_over_page_boundaries_are_split() {
    let text = "I  00400ffe,4\n M 1ffefffffc,8\n S 00001fff,8194\n L 00002ff8,8\n S 00600000,1048576\n";
    let run = run(text.as_bytes());
    let expected: Vec<_> = [
        ('I', 0x40_0ffe, 4),
        ('M', 0x1f_feff_fffc, 8),
        ('S', 0x1fff, 8194),
        ('L', 0x2ff8, 8),
        ('S', 0x60_0000, 1 << 20),
    ]
    .into_iter()
    .flat_map(|(letter, address, bytes)| pieces(letter, address, bytes))
    .collect();
    assert_eq!(expected.len(), 2 + 4 + 4 + 1 + 256);
    assert_eq!(run.accesses(), expected);
    assert_eq!((run.instructions(), run.tally.page_crossings), (1, 4));
}

#[test]
fn an_access_that_does_not_fit_the_batch_goes_whole_into_the_next() {
    let text = " M 00600fff,1048576\n".repeat(9);
    let run = run(text.as_bytes());
    assert_eq!(run.accesses().len(), 9 * 514);
    let lengths: Vec<_> = run.batches.iter().map(|batch| batch.run.len()).collect();
    assert_eq!(lengths, [7 * 514, 2 * 514]);
    assert!(lengths[0] <= Batch::CAPACITY);
}

#[test]
fn the_program_break_is_where_each_call_says() {
    let call = |end: u64| format!("SYSCALL[7,1](12) sys_brk ( {end:#x} ) --> [pre-success] Success({end:#x}) \n");
    let ends = [0x40_0100, 0x40_3001, 0x40_2000];
    let ops = run(ends.map(call).concat().as_bytes()).ops();
    assert_eq!(ops, ends.map(|end| Op::Brk { end: Gva::new(end) }));
}

#[test]
fn nothing_happens_after_the_exit() {
    let text = "I  04001090,3\nSYSCALL[7,1](231) exit_group( 0 ) --> [pre-success] Success(0x0) \nI  04001090,3\n\
                SYSCALL[7,1](39) sys_getpid ()[sync] --> Success(0x7) \n==7== \n";
    let run = run(text.as_bytes());
    assert_eq!((run.accesses().len(), run.ops()), (1, vec![Op::Exit]));
    assert_eq!(run.tally.first_malformed.unwrap().expected, "nothing, as the process has exited");
}

#[test]
fn calls_of_another_process_in_the_same_log_change_nothing() {
    let text = "SYSCALL[7,1](39) sys_getpid ()[sync] --> Success(0x7) \n\
                SYSCALL[8,1](11) sys_munmap ( 0x1000, 4096 )[sync] --> Success(0x0) \n\
                SYSCALL[8,1](231) exit_group( 0 ) --> [pre-success] Success(0x0) \nI  04001090,3\n";
    let run = run(text.as_bytes());
    assert_eq!(run.ops(), [39, 11, 231].map(|number| Op::Syscall { number }));
    assert_eq!((run.accesses().len(), run.tally.pids), (1, vec![7, 8]));
}

fn refusal(input: &[u8]) -> String {
    let run = run(input);
    assert!(run.batches.is_empty());
    let error = run.error.unwrap();
    assert!(matches!(error, TraceError::NotALog { .. }));
    let message = error.to_string();
    assert!(message.starts_with("test.lackey is not a Valgrind lackey log: ") && !message.contains('\n'), "{message}");
    message
}

#[test]
fn what_is_no_log_is_refused_in_one_sentence() {
    assert!(refusal(b"").contains("it is empty"));
    assert!(refusal(b"\x7fELF\x02\x01\x01\x00\x00\x00").contains("it begins with binary data, `\\x7fELF"));
    assert!(refusal(b"root:x:0:0\n").contains("none of its first 1 lines is a memory access"));
    assert!(refusal(b"==7== Memcheck\n==7== Command: ls\n").contains("Valgrind's remarks only"));
    assert!(refusal(&b"word\n".repeat(2_000_000)).contains("first 1000 lines"));
    assert!(refusal(&[b'x'; 10 << 20]).contains("none of its first 1 lines"));
    let mut tar = vec![b'f'; 512];
    tar[257..262].copy_from_slice(b"ustar");
    assert!(refusal(&tar).contains("tar archive"));
    let packed = zstd::encode_all(&tar[..], 1).unwrap();
    assert!(refusal(&packed).contains("tar archive"), "also within compressed data");
}

#[test]
fn a_log_may_begin_with_some_other_lines() {
    let text = [b"word\n".repeat(999), b"I  04001090,3\n".to_vec()].concat();
    let run = run(&text[..]);
    assert_eq!((run.tally.malformed, run.accesses().len(), run.error.is_none()), (999, 1, true));
}

#[test]
fn a_line_of_ten_megabytes_is_one_malformed_line() {
    for newline in ["\n", ""] {
        let mut text = b"I  04001090,3\n".to_vec();
        text.extend(b"I  04001090,3 ".repeat(10 << 20 >> 4));
        text.extend(newline.as_bytes());
        let before = run(&text[..]);
        assert_eq!((before.tally.lines, before.tally.malformed, before.accesses().len()), (2, 1, 1));
        assert_eq!(before.tally.raw_bytes, text.len() as u64);
        assert_eq!(before.tally.first_malformed.unwrap().expected, "a line of at most 64 KiB");
        text.extend(b"\nI  04001090,3\n");
        assert_eq!(run(&text[..]).accesses().len(), 2);
    }
}
