//! Numbers, flags and names of system calls as tools print them.

use crate::calls;

/// A number: hexadecimal with `0x`, else decimal; a negative one as its two's complement.
pub(crate) fn number(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?.trim();
    if let Some(digits) = text.strip_prefix("0x") {
        return u64::from_str_radix(digits, 16).ok();
    }
    text.parse().ok().or_else(|| text.parse().ok().map(i64::cast_unsigned))
}

/// The number of a process or thread.
pub(crate) fn task(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

const FLAGS: [(&[u8], u64); 18] = [
    (b"NULL", 0),
    (b"AT_FDCWD", 0xffff_ff9c),
    (b"PROT_NONE", 0),
    (b"PROT_READ", 1),
    (b"PROT_WRITE", 2),
    (b"PROT_EXEC", 4),
    (b"MAP_SHARED", 1),
    (b"MAP_PRIVATE", 2),
    (b"MAP_SHARED_VALIDATE", 3),
    (b"MAP_FIXED", 0x10),
    (b"MAP_ANONYMOUS", 0x20),
    (b"MADV_DONTNEED", 4),
    (b"MADV_FREE", 8),
    (b"CLONE_VM", 0x100),
    (b"CLONE_VFORK", 0x4000),
    (b"CLONE_THREAD", 0x1_0000),
    (b"WNOHANG", 1),
    (b"MREMAP_MAYMOVE", 1),
];

/// A number, a flag, or several of them joined by `|`; flags that do not matter here count as nothing.
pub(crate) fn value(text: &[u8]) -> Option<u64> {
    let text = text.trim_ascii();
    if let Some(number) = number(text) {
        return Some(number);
    }
    let is_name = |part: &[u8]| {
        !part.is_empty() && part.iter().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || *b == b'_')
    };
    let part = |part: &[u8]| {
        let known = FLAGS.iter().find(|(name, _)| *name == part).map(|(_, bits)| *bits);
        known.or_else(|| number(part)).or_else(|| is_name(part).then_some(0))
    };
    text.split(|b| *b == b'|').map(<[u8]>::trim_ascii).try_fold(0, |sum, text| Some(sum | part(text)?))
}

/// The number of a system call by its name; `None` for those that recordings of memory events do not name.
pub(crate) fn call(name: &[u8]) -> Option<u32> {
    const NAMES: [(&[u8], u32); 50] = [
        (b"read", 0),
        (b"write", 1),
        (b"open", calls::OPEN),
        (b"close", calls::CLOSE),
        (b"stat", 4),
        (b"fstat", 5),
        (b"poll", 7),
        (b"lseek", 8),
        (b"mmap", calls::MMAP),
        (b"mprotect", calls::MPROTECT),
        (b"munmap", calls::MUNMAP),
        (b"brk", calls::BRK),
        (b"rt_sigaction", 13),
        (b"rt_sigprocmask", 14),
        (b"ioctl", 16),
        (b"pread64", 17),
        (b"access", 21),
        (b"sched_yield", 24),
        (b"mremap", calls::MREMAP),
        (b"msync", 26),
        (b"mincore", 27),
        (b"madvise", calls::MADVISE),
        (b"shmget", 29),
        (b"shmat", 30),
        (b"dup2", 33),
        (b"nanosleep", 35),
        (b"getpid", 39),
        (b"clone", calls::CLONE),
        (b"fork", calls::FORK),
        (b"vfork", calls::VFORK),
        (b"execve", calls::EXECVE),
        (b"exit", calls::EXIT),
        (b"wait4", calls::WAIT4),
        (b"kill", 62),
        (b"shmdt", 67),
        (b"fcntl", 72),
        (b"arch_prctl", 158),
        (b"remap_file_pages", 216),
        (b"set_tid_address", 218),
        (b"exit_group", calls::EXIT_GROUP),
        (b"waitid", 247),
        (b"openat", calls::OPENAT),
        (b"newfstatat", 262),
        (b"set_robust_list", 273),
        (b"prlimit64", 302),
        (b"getrandom", 318),
        (b"memfd_create", 319),
        (b"execveat", calls::EXECVEAT),
        (b"pkey_mprotect", 329),
        (b"clone3", calls::CLONE3),
    ];
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// The number that stands for a call which is not in the list.
pub(crate) const OTHER_CALL: u32 = 9999;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_as_strace_and_perf_print_them() {
        for (text, expected) in [
            ("NULL", Some(0)),
            ("0x7f00", Some(0x7f00)),
            ("-1", Some(u64::MAX)),
            ("PROT_READ|PROT_WRITE", Some(3)),
            ("MAP_PRIVATE|MAP_FIXED|MAP_DENYWRITE", Some(0x12)),
            ("CLONE_CHILD_CLEARTID|CLONE_CHILD_SETTID|SIGCHLD", Some(0)),
            ("MAP_PRIVATE|0x40000", Some(0x4_0002)),
            ("", None),
            ("{tv_sec=1}", None),
            ("0x", None),
        ] {
            assert_eq!(value(text.as_bytes()), expected, "{text}");
        }
        assert_eq!((call(b"mmap"), call(b"frobnicate")), (Some(9), None));
    }
}
