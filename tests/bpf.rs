//! Classic BPF beside the kernel's: random programs, attached to a socket, must be taken or refused alike, and cut what the socket
//! receives alike. Needs no privilege.
#![allow(unsafe_code, reason = "SO_ATTACH_FILTER takes a pointer")]

use std::os::fd::{AsRawFd, OwnedFd};

use memtun::core::bpf::{INSTRUCTION_SIZE, MAX_INSTRUCTIONS, Program};
use nix::{
    errno::Errno,
    libc,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair},
};

use crate::support::random_numbers;

pub const TESTS: &[(&str, fn())] = &[
    ("random_programs_are_taken_and_run_as_by_the_kernel", random_programs_agree_with_the_kernel),
    ("longest_program_is_taken", longest_program_is_taken),
];

/// `code, jt, jf, k`.
pub type Instruction = (u16, u8, u8, u32);

const RETURN_A: Instruction = (0x16, 0, 0, 0);
/// `SKF_AD_OFF`.
pub const ANCILLARY: u32 = 0xffff_f000;

/// Every code that is allowed, but for jumps and returns.
const CODES: &[u16] = &[
    0x00, 0x01, 0x20, 0x28, 0x30, 0x40, 0x48, 0x50, 0x60, 0x61, 0x80, 0x81, 0xb1, 0x02, 0x03, 0x07,
    0x87, 0x84, 0x04, 0x0c, 0x14, 0x1c, 0x24, 0x2c, 0x34, 0x3c, 0x44, 0x4c, 0x54, 0x5c, 0x64, 0x6c,
    0x74, 0x7c, 0x94, 0x9c, 0xa4, 0xac,
];
const JUMPS: &[u16] = &[0x05, 0x15, 0x1d, 0x25, 0x2d, 0x35, 0x3d, 0x45, 0x4d];

pub fn encoded(program: &[Instruction]) -> Vec<u8> {
    program
        .iter()
        .flat_map(|(code, then, otherwise, k)| {
            [&code.to_ne_bytes()[..], &[*then, *otherwise], &k.to_ne_bytes()].concat()
        })
        .collect()
}

/// A program of which about half are right: most codes are known and most numbers in bounds, a few are not.
pub fn random_program(random: &mut fastrand::Rng, special: &[u32]) -> Vec<Instruction> {
    let length = random.u8(0..24);
    let mut program: Vec<Instruction> = (0..length)
        .map(|at| {
            let left = u32::from(length - at) + 2;
            let any_jump = |random: &mut fastrand::Rng| {
                u8::try_from(random.u32(0..left)).expect("it is short")
            };
            let small = match random.u8(0..16) {
                0 => random.u32(..),
                1 => random.choice(special).copied().unwrap_or_default(),
                2 => 1 << random.u8(0..32),
                _ => random.u32(0..16),
            };
            match random.u8(0..200) {
                0 => (random.u16(..), random.u8(..), random.u8(..), random.u32(..)),
                1 => (random.u16(0..0x100), 0, 0, small),
                2 => (0x06, 0, 0, random.u32(0..200)),
                // Stores before anything else, so that loads are often allowed.
                3..60 if at < 6 => (random.u16(2..4), 0, 0, random.u32(0..8)),
                3..60 => {
                    let code = random.choice(JUMPS).copied().expect("there are some");
                    (code, any_jump(random), any_jump(random), small.min(random.u32(0..left * 2)))
                }
                _ => (random.choice(CODES).copied().expect("there are some"), 0, 0, small),
            }
        })
        .collect();
    // Seven bits of A are seen in what is received.
    program.extend([(0x74, 0, 0, random.u32(0..30)), (0x54, 0, 0, 0x7f), RETURN_A]);
    program
}

fn attach(socket: &OwnedFd, program: &[u8]) -> Result<(), Errno> {
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len() / INSTRUCTION_SIZE).expect("it is a program's length"),
        filter: program.as_ptr().cast_mut().cast(),
    };
    // SAFETY: the kernel reads a sock_fprog of that size, and through it the program, which is only read.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            u32::try_from(size_of::<libc::sock_fprog>()).expect("it is small"),
        )
    };
    Errno::result(result).map(drop)
}

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::SOCK_CLOEXEC)
        .expect("a pair of sockets")
}

/// What the filter of the other end leaves of a packet.
fn received(from: &OwnedFd, to: &OwnedFd, packet: &[u8]) -> usize {
    send(from.as_raw_fd(), packet, MsgFlags::MSG_DONTWAIT).expect("a filter drops silently");
    let mut buffer = [0; 512];
    match recv(to.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
        Ok(length) => length,
        Err(Errno::EAGAIN) => 0,
        Err(error) => panic!("recv: {error}"),
    }
}

fn random_programs_agree_with_the_kernel() {
    let mut random = random_numbers();
    let seed = random.get_seed();
    let (from, to) = pair();
    // Of what a socket has no interface or clock for, this loads the same: mark, hash, VLAN tag, A ^ X.
    let special = [20, 32, 40, 40, 40, 44, 48].map(|offset| ANCILLARY + offset);
    let (mut taken, mut refused, mut kept, mut dropped) = (0, 0, 0, 0);
    for number in 0..20_000 {
        let instructions = random_program(&mut random, &special);
        let raw = encoded(&instructions);
        let what = || format!("program {number} of seed {seed}: {instructions:x?}");
        let program = Program::check(&raw);
        assert_eq!(
            attach(&to, &raw).map_err(|error| error as i32),
            program.as_ref().map(|_| ()).map_err(|error| error.number()),
            "{}",
            what()
        );
        let Ok(program) = program else {
            refused += 1;
            continue;
        };
        taken += 1;
        let depends_on_the_socket = instructions.iter().any(|(code, _, _, k)| {
            [0x20, 0x28, 0x30].contains(code) && *k >= ANCILLARY && !special.contains(k)
        });
        if depends_on_the_socket {
            continue;
        }
        for _ in 0..4 {
            let packet: Vec<u8> = (0..random.usize(1..200)).map(|_| random.u8(..)).collect();
            let expected = (program.run(&packet) as usize).min(packet.len());
            assert_eq!(received(&from, &to, &packet), expected, "{packet:x?} by {}", what());
            *if expected > 0 { &mut kept } else { &mut dropped } += 1;
        }
    }
    let counts = [taken, refused, kept, dropped];
    assert!(counts.iter().all(|count| *count > 2_000), "the programs test nothing: {counts:?}");
}

fn longest_program_is_taken() {
    let (_from, to) = pair();
    for (length, outcome) in
        [(MAX_INSTRUCTIONS, Ok(())), (MAX_INSTRUCTIONS + 1, Err(Errno::EINVAL))]
    {
        let program = encoded(&vec![RETURN_A; length]);
        assert_eq!(attach(&to, &program), outcome);
        assert_eq!(Program::check(&program).is_ok(), outcome.is_ok());
    }
}
