//! Which system calls are notified: a classic BPF program for the kernel.
//!
//! Follows `seccomp(2)` and `linux/filter.h`. Calls on a descriptor are told by its number ([`Numbers`]). A call that is not in the
//! table costs next to nothing: the kernel remembers that the program always allows it (`seccomp_cache`).

use nix::{
    errno::Errno,
    libc::{SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_USER_NOTIF, sock_filter},
};

use super::{
    abi::{ABIS, Abi, Call},
    numbers::Numbers,
};
use crate::frontend::assembler::{Assembler, Label};

/// Where the words of `struct seccomp_data` are; those of a 64-bit number are in little-endian order.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// What is notified.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// Calls on these descriptors.
    pub(super) numbers: Numbers,
    /// Calls that ask about a path: there is nothing where clients find the device.
    pub(super) paths: bool,
    /// `io_uring_setup` gets ENOSYS: what goes through a ring passes by every filter.
    pub(super) refuses_rings: bool,
}

/// Which of a call's arguments decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decides {
    /// None: each is notified.
    Nothing,
    /// A descriptor is in one of the ranges.
    Descriptors(&'static [u32]),
    /// The last descriptor of a range is the first one of ours, or a higher one.
    Last,
    /// It is refused.
    Refused,
    /// It goes on.
    Passes,
}

impl Wanted {
    fn decides(&self, call: Call) -> Decides {
        let of_paths = |descriptors| {
            if self.paths { Decides::Nothing } else { descriptors }
        };
        match call {
            Call::Open | Call::Openat | Call::Openat2 | Call::Creat => Decides::Nothing,
            Call::Stat
            | Call::Lstat
            | Call::Stat64
            | Call::Lstat64
            | Call::Access
            | Call::Faccessat
            | Call::Faccessat2
            | Call::Readlink
            | Call::Readlinkat => of_paths(Decides::Passes),
            Call::Fstatat | Call::Fstatat64 | Call::Statx => of_paths(Decides::Descriptors(&[0])),
            Call::Dup2 | Call::Dup3 | Call::Sendfile | Call::Tee => Decides::Descriptors(&[0, 1]),
            Call::Splice | Call::CopyFileRange => Decides::Descriptors(&[0, 2]),
            Call::CloseRange => Decides::Last,
            Call::IoUringSetup if self.refuses_rings => Decides::Refused,
            Call::IoUringSetup => Decides::Passes,
            Call::Read
            | Call::Write
            | Call::Readv
            | Call::Writev
            | Call::Pread
            | Call::Pwrite
            | Call::Preadv
            | Call::Pwritev
            | Call::Preadv2
            | Call::Pwritev2
            | Call::Ioctl
            | Call::Fcntl
            | Call::Close
            | Call::Dup
            | Call::Fstat
            | Call::Fstat64
            | Call::Fallocate
            | Call::Vmsplice => Decides::Descriptors(&[0]),
        }
    }

    /// The filter; `None` on a machine whose system calls are not known here.
    pub(super) fn program(&self) -> Option<Vec<sock_filter>> {
        if ABIS.is_empty() {
            return None;
        }
        let mut program = Assembler::default();
        program.load(ARCH);
        for abi in ABIS {
            let next = program.label();
            // What follows is longer than a jump.
            let here = program.label();
            program.if_equal(abi.arch, here);
            program.skip_to(next);
            program.place(here);
            self.catch(&mut program, abi);
            program.place(next);
        }
        program.give(SECCOMP_RET_ALLOW);
        Some(program.finish())
    }

    /// What is caught of one kind of program.
    fn catch(&self, program: &mut Assembler, abi: &Abi) {
        let mut groups: Vec<(Decides, Label)> = Vec::new();
        program.load(NUMBER);
        for (call, number) in abi.calls {
            let decides = self.decides(*call);
            if decides == Decides::Passes {
                continue;
            }
            let known = groups.iter().find(|(of, _)| *of == decides).map(|(_, label)| *label);
            let label = known.unwrap_or_else(|| {
                let label = program.label();
                groups.push((decides, label));
                label
            });
            program.if_equal(*number, label);
        }
        program.give(SECCOMP_RET_ALLOW);
        for (decides, label) in groups {
            program.place(label);
            match decides {
                Decides::Nothing => program.give(SECCOMP_RET_USER_NOTIF),
                Decides::Refused => program.give(SECCOMP_RET_ERRNO | Errno::ENOSYS as u32),
                Decides::Passes => program.give(SECCOMP_RET_ALLOW),
                Decides::Last => {
                    let lowest = self.numbers.ranges().map(|range| range.start).min();
                    let notify = program.label();
                    program.load(ARGUMENTS + 8);
                    program.if_at_least(lowest.unwrap_or(u32::MAX), notify);
                    program.give(SECCOMP_RET_ALLOW);
                    program.place(notify);
                    program.give(SECCOMP_RET_USER_NOTIF);
                }
                Decides::Descriptors(arguments) => self.catch_descriptors(program, arguments),
            }
        }
    }

    /// The kernel takes the low half of a descriptor's argument.
    fn catch_descriptors(&self, program: &mut Assembler, arguments: &[u32]) {
        let notify = program.label();
        for argument in arguments {
            program.load(ARGUMENTS + 8 * argument);
            let other = program.label();
            for range in self.numbers.ranges() {
                program.if_below(range.start, other);
                program.if_below(range.end, notify);
            }
            program.place(other);
        }
        program.give(SECCOMP_RET_ALLOW);
        program.place(notify);
        program.give(SECCOMP_RET_USER_NOTIF);
    }
}

#[cfg(target_arch = "x86_64")]
#[cfg(test)]
mod tests {
    use nix::libc::{BPF_ABS, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};

    use super::*;

    const NATIVE: u32 = 0xc000_003e;
    const COMPAT: u32 = 0x4000_0003;

    fn wanted(paths: bool) -> Wanted {
        Wanted { numbers: Numbers::below(20_000), paths, refuses_rings: true }
    }

    /// What the kernel would do with a call, as `linux/filter.h` defines the few instructions in use.
    fn action(program: &[sock_filter], arch: u32, nr: u32, args: [u32; 3]) -> u32 {
        let mut words = vec![nr, arch, 0, 0];
        words.extend(args.iter().flat_map(|argument| [*argument, 0]));
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            let jump = |taken| usize::from(if taken { jt } else { jf });
            match u32::from(code) {
                code if code == BPF_LD | BPF_W | BPF_ABS => accumulator = words[k as usize / 4],
                code if code == BPF_RET | BPF_K => return k,
                code if code == BPF_JMP | BPF_JEQ | BPF_K => at += jump(accumulator == k),
                code if code == BPF_JMP | BPF_JGE | BPF_K => at += jump(accumulator >= k),
                code if code == BPF_JMP | BPF_JA => at += k as usize,
                code => panic!("{code:#x}"),
            }
        }
    }

    #[test]
    fn calls_on_high_descriptors_are_notified_and_others_are_not() {
        let program = wanted(false).program().unwrap();
        for (arch, read, splice) in [(NATIVE, 0, 275), (COMPAT, 3, 313)] {
            for (number, is_ours) in [
                (3, false),
                (959, false),
                (960, true),
                (1023, true),
                (1024, false),
                (15_903, false),
                (15_904, true),
                (19_999, true),
                (20_000, false),
                (u32::MAX, false),
            ] {
                let expected = if is_ours { SECCOMP_RET_USER_NOTIF } else { SECCOMP_RET_ALLOW };
                assert_eq!(action(&program, arch, read, [number, 1, 1]), expected, "{number}");
                assert_eq!(action(&program, arch, splice, [3, 0, number]), expected, "{number}");
                assert_eq!(action(&program, arch, splice, [number, 0, 3]), expected, "{number}");
            }
            assert_eq!(action(&program, arch, splice, [3, 960, 3]), SECCOMP_RET_ALLOW);
        }
        assert_eq!(action(&program, 0xc000_00b7, 63, [960, 0, 0]), SECCOMP_RET_ALLOW);
    }

    #[test]
    fn opens_are_always_notified_and_paths_if_wanted() {
        for paths in [false, true] {
            let program = wanted(paths).program().unwrap();
            let notified = |nr| action(&program, NATIVE, nr, [3, 0, 0]) == SECCOMP_RET_USER_NOTIF;
            assert!([2, 85, 257, 437].into_iter().all(notified));
            for of_path in [4, 6, 21, 89, 262, 267, 269, 332, 439] {
                assert_eq!(notified(of_path), paths, "{of_path}");
            }
            assert_eq!(action(&program, NATIVE, 262, [960, 0, 0]), SECCOMP_RET_USER_NOTIF);
            assert!(!notified(5) && !notified(39));
        }
    }

    #[test]
    fn ranges_of_descriptors_are_notified_if_they_reach_ours() {
        let program = wanted(false).program().unwrap();
        let action = |last| action(&program, NATIVE, 436, [3, last, 0]);
        assert_eq!((action(959), action(960)), (SECCOMP_RET_ALLOW, SECCOMP_RET_USER_NOTIF));
        assert_eq!(action(u32::MAX), SECCOMP_RET_USER_NOTIF);
    }

    #[test]
    fn rings_are_refused_unless_they_are_allowed() {
        let refusing = wanted(false).program().unwrap();
        let allowing = Wanted { refuses_rings: false, ..wanted(false) }.program().unwrap();
        for arch in [NATIVE, COMPAT] {
            let of = |program: &[sock_filter]| action(program, arch, 425, [4, 0, 0]);
            assert_eq!(of(&refusing), SECCOMP_RET_ERRNO | 38);
            assert_eq!(of(&allowing), SECCOMP_RET_ALLOW);
        }
    }
}
