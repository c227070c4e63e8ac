//! Which system calls are intercepted: a classic BPF program for the kernel, and what one of its catches means.
//!
//! Follows `seccomp(2)` and `linux/filter.h`. The program must stay short: it runs for each `read`, `write` and `ioctl` of the
//! program under test. Other calls cost less: the kernel remembers that the program always allows them (`seccomp_cache`).

use nix::{
    errno::Errno,
    libc::{
        SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_USER_NOTIF, seccomp_data, sock_filter,
    },
};

use super::network::Subject;
use crate::{core::ioctl::disguised_values, frontend::assembler::Assembler};

/// Where the words of `struct seccomp_data` are; those of a 64-bit number are in little-endian order.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// The system calls of a kind of program, by the number that it knows them by (`unistd_64.h`, `unistd_32.h`).
struct Abi {
    /// `AUDIT_ARCH_*` of `linux/audit.h`.
    arch: u32,
    ioctl: u32,
    reads: [u32; 2],
    writes: [u32; 2],
}

/// 64-bit programs first. Those of x32 have numbers of their own, which are not looked at.
#[cfg(target_arch = "x86_64")]
const ABIS: &[Abi] = &[
    Abi { arch: 0xc000_003e, ioctl: 16, reads: [0, 17], writes: [1, 18] },
    Abi { arch: 0x4000_0003, ioctl: 54, reads: [3, 180], writes: [4, 181] },
];
#[cfg(not(target_arch = "x86_64"))]
const ABIS: &[Abi] = &[];

/// A system call that was caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caught {
    /// `read` or `pread` of zero bytes.
    Read,
    /// `write` or `pwrite` of zero bytes.
    Write,
    /// `ioctl` with a value.
    Ioctl { command: u32, value: u64 },
    /// `ioctl` that returns a network namespace.
    Network(Subject),
}

impl Caught {
    /// What the filter was meant to catch; `None`: something else.
    pub(super) fn of(call: &seccomp_data) -> Option<Self> {
        let abi = ABIS.iter().find(|abi| abi.arch == call.arch)?;
        let number = u32::try_from(call.nr).ok()?;
        let [_, second, third, ..] = call.args;
        if abi.reads.contains(&number) && third == 0 {
            Some(Self::Read)
        } else if abi.writes.contains(&number) && third == 0 {
            Some(Self::Write)
        } else {
            // The kernel looks at the low half alone (SYSCALL_DEFINE3(ioctl): unsigned int).
            let command = low(second);
            if number != abi.ioctl {
                return None;
            }
            let network = || Subject::of(command).map(Self::Network);
            let is_value = disguised_values().any(|c| c == command);
            is_value.then_some(Self::Ioctl { command, value: third }).or_else(network)
        }
    }
}

/// The low half of an argument.
pub(super) fn low(argument: u64) -> u32 {
    let [a, b, c, d, ..] = argument.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The number of `io_uring_setup`, which is the same everywhere.
const RING: u32 = 425;

/// The filter; `None` on a machine whose system calls are not known here. A program whose rings are refused gets ENOSYS: the kernel joins
/// what a ring reads from a file until the buffer is full (`need_complete_io`), so datagrams would be merged.
pub(super) fn program(refuses_rings: bool) -> Option<Vec<sock_filter>> {
    if ABIS.is_empty() {
        return None;
    }
    let mut program = Assembler::default();
    program.load(ARCH);
    for abi in ABIS {
        let next = program.label();
        program.unless_equal(abi.arch, next);
        catch(&mut program, abi, refuses_rings);
        program.place(next);
    }
    program.give(SECCOMP_RET_ALLOW);
    Some(program.finish())
}

/// What is caught of one kind of program.
fn catch(program: &mut Assembler, abi: &Abi, refuses_rings: bool) {
    let [ioctl, transfer, allow, notify] = std::array::from_fn(|_| program.label());
    let [[read, pread], [write, pwrite]] = [abi.reads, abi.writes];
    // The most frequent calls first.
    program.load(NUMBER);
    program.if_equal(read, transfer);
    program.if_equal(write, transfer);
    program.if_equal(abi.ioctl, ioctl);
    program.if_equal(pread, transfer);
    program.if_equal(pwrite, transfer);
    if refuses_rings {
        let allow = program.label();
        program.unless_equal(RING, allow);
        program.give(SECCOMP_RET_ERRNO | Errno::ENOSYS as u32);
        program.place(allow);
    }
    program.give(SECCOMP_RET_ALLOW);

    program.place(ioctl);
    program.load(ARGUMENTS + 8);
    for command in disguised_values().chain(Subject::ALL.map(Subject::command)) {
        program.if_equal(command, notify);
    }
    program.give(SECCOMP_RET_ALLOW);

    // A read or write of zero bytes: both halves of its length are zero.
    program.place(transfer);
    program.load(ARGUMENTS + 16);
    program.unless_equal(0, allow);
    program.load(ARGUMENTS + 20);
    program.if_equal(0, notify);
    program.place(allow);
    program.give(SECCOMP_RET_ALLOW);

    program.place(notify);
    program.give(SECCOMP_RET_USER_NOTIF);
}

#[cfg(target_arch = "x86_64")]
#[cfg(test)]
mod tests {
    use nix::libc::{BPF_ABS, BPF_K, BPF_LD, BPF_RET, BPF_W};

    use super::*;
    use crate::abi::tun::ioctl::{SIOCGSKNS, TUNGETDEVNETNS, TUNSETIFF, TUNSETPERSIST};

    /// What the kernel would do with a call, as `linux/filter.h` defines the few instructions in use.
    fn action(arch: u32, nr: u32, args: [u64; 3]) -> u32 {
        let mut words = vec![nr, arch, 0, 0];
        words.extend(args.iter().flat_map(|argument| [low(*argument), low(argument >> 32)]));
        let program = program(true).unwrap();
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            match u32::from(code) {
                code if code == BPF_LD | BPF_W | BPF_ABS => accumulator = words[k as usize / 4],
                code if code == BPF_RET | BPF_K => return k,
                _ => at += usize::from(if accumulator == k { jt } else { jf }),
            }
        }
    }

    #[test]
    fn filter_and_meaning_agree_on_every_call() {
        let persist = u64::from(TUNSETPERSIST);
        let arguments = [
            [3, 0, 0],
            [3, 0x1000, 1],
            [3, 0x1000, 1 << 32],
            [3, persist, 1],
            [3, persist | 1 << 40, 1],
            [3, u64::from(TUNSETIFF), 0],
            [3, u64::from(SIOCGSKNS), 7],
            [3, u64::from(TUNGETDEVNETNS), 7],
        ];
        let mut caught = 0;
        for arch in [0xc000_003e, 0x4000_0003, 0xc000_00b7] {
            for nr in (0..500).chain([0x4000_0000, 0x4000_0001]) {
                for [first, second, third] in arguments {
                    let args = [first, second, third, 0, 0, 0];
                    let nr_signed = i32::try_from(nr).unwrap();
                    let call = seccomp_data { nr: nr_signed, arch, instruction_pointer: 0, args };
                    let meant = Caught::of(&call).is_some();
                    let action = action(arch, nr, [first, second, third]);
                    let wanted = match nr {
                        RING if arch != 0xc000_00b7 => SECCOMP_RET_ERRNO | 38,
                        _ if meant => SECCOMP_RET_USER_NOTIF,
                        _ => SECCOMP_RET_ALLOW,
                    };
                    assert_eq!(action, wanted, "{arch:#x} {nr} {args:x?}");
                    caught += u32::from(meant);
                }
            }
        }
        // Of each kind of program: four calls of zero bytes with two of the arguments, and four ioctls.
        assert_eq!(caught, 2 * (4 * 2 + 4));
    }

    #[test]
    fn seven_commands_pass_a_value_and_two_nothing() {
        let numbers: Vec<u32> = disguised_values().map(|command| command & 0xff).collect();
        assert_eq!(numbers, [0xc8, 0xc9, 0xcb, 0xcc, 0xce, 0xcd, 0xd0, 0xd6, 0xde]);
    }
}
