//! Classic BPF programs: what TUNATTACHFILTER takes, checked and run as by `net/core/filter.c`.
//!
//! A program is decoded once, by [`Program::check`], which has every rule of `bpf_check_classic` and
//! `check_load_and_stores`. What is decoded needs no further check: jumps go forward and end inside the program, so
//! [`Program::run`] comes to an end within as many steps as there are instructions.

mod decode;

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering};

use self::decode::{decode, reads_only_what_was_written};
use super::datagram::{ETHERNET_HEADER, mix};
use crate::{abi::tun::ARPHRD_ETHER, errno::Errno};

/// `BPF_MAXINSNS`: how many instructions a program has at most.
pub const MAX_INSTRUCTIONS: usize = 4096;
/// The size of `struct sock_filter`: `u16 code; u8 jt, jf; u32 k`, in the byte order of the machine.
pub const INSTRUCTION_SIZE: usize = 8;
/// `BPF_MEMWORDS`.
const MEMORY_WORDS: usize = 16;

/// `SKF_AD_OFF`: absolute loads from here on are of what the kernel knows about the packet.
const ANCILLARY: i32 = -0x1000;
/// `SKF_NET_OFF`: loads from here on count from the network header.
const NETWORK: i32 = -0x10_0000;
/// `SKF_LL_OFF`: loads from here on count from the link-layer header.
const LINK_LAYER: i32 = -0x20_0000;

/// A program that passed the check.
#[derive(Debug)]
pub struct Program {
    instructions: Box<[Instruction]>,
    /// How many random numbers were loaded.
    random: AtomicU64,
}

impl Program {
    /// Bytes that it takes.
    #[must_use]
    pub fn memory(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.instructions)
    }
}

/// One instruction. Jumps count from the instruction after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instruction {
    LoadA(Source),
    LoadX(Source),
    StoreA(usize),
    StoreX(usize),
    CopyAToX,
    CopyXToA,
    Calculate(Operator, Operand),
    Negate,
    Jump(u32),
    JumpIf { test: Test, operand: Operand, then: u8, otherwise: u8 },
    Return(Operand),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Constant(u32),
    Memory(usize),
    Length,
    Packet {
        width: usize,
        offset: u32,
    },
    PacketAtX {
        width: usize,
        offset: u32,
    },
    /// Four times the low nibble of a byte: the length of an IPv4 header.
    HeaderLength(u32),
    Ancillary(Ancillary),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Or,
    And,
    ShiftLeft,
    ShiftRight,
    Modulo,
    Xor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    Equal,
    Greater,
    GreaterOrEqual,
    AnyBit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operand {
    Constant(u32),
    A,
    X,
}

/// What an absolute load at `SKF_AD_OFF` gives.
///
/// DIFFERS: a classic BPF program sees index 0 for the interface, and 0 for processor, mark, queue and hash of a datagram. VLAN
/// tags are only in the frame. `SKF_AD_PAY_OFFSET`, `SKF_AD_NLATTR` and `SKF_AD_NLATTR_NEST` load 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ancillary {
    Protocol,
    LinkType,
    XorX,
    Random,
    Zero,
}

impl Program {
    /// Decodes instructions and checks that they make a program.
    ///
    /// DIFFERS: a classic BPF program is limited only to 4,096 instructions. The kernel also refuses a program whose
    /// translation to eBPF takes more than `net.core.optmem_max` bytes (`ENOMEM`), or which jumps over more than 32,767
    /// instructions (`EINVAL`).
    ///
    /// # Errors
    ///
    /// `EINVAL`, as `bpf_check_classic`: for no or too many instructions, an unknown one, a jump out of the program, a constant
    /// that divides by zero or shifts by 32 or more, a memory word that does not exist or may be read before it is written,
    /// and a last instruction that does not return.
    pub fn check(instructions: &[u8]) -> Result<Self, Errno> {
        let (raw, rest) = instructions.as_chunks::<INSTRUCTION_SIZE>();
        if raw.is_empty() || raw.len() > MAX_INSTRUCTIONS || !rest.is_empty() {
            return Err(Errno::EINVAL);
        }
        let decoded: Option<Box<[Instruction]>> =
            raw.iter().rev().enumerate().map(|(after, raw)| decode(*raw, after)).collect();
        let mut instructions = decoded.ok_or(Errno::EINVAL)?;
        instructions.reverse();
        let returns = matches!(instructions.last(), Some(Instruction::Return(_)));
        if !returns || !reads_only_what_was_written(&instructions) {
            return Err(Errno::EINVAL);
        }
        Ok(Self { instructions, random: AtomicU64::new(0) })
    }

    /// How many bytes of a frame are to be kept; 0 drops it.
    ///
    /// A load beyond the frame, and a division by an X of 0, end the program with 0.
    #[must_use]
    pub fn run(&self, packet: &[u8]) -> u32 {
        self.execute(packet).unwrap_or(0)
    }

    fn execute(&self, packet: &[u8]) -> Option<u32> {
        let (mut a, mut x) = (0_u32, 0_u32);
        let mut memory = [0_u32; MEMORY_WORDS];
        let mut at = 0;
        loop {
            let instruction = self.instructions.get(at)?;
            at += 1;
            match *instruction {
                Instruction::LoadA(source) => a = self.load(source, packet, a, x, &memory)?,
                Instruction::LoadX(source) => x = self.load(source, packet, a, x, &memory)?,
                Instruction::StoreA(word) => memory[word] = a,
                Instruction::StoreX(word) => memory[word] = x,
                Instruction::CopyAToX => x = a,
                Instruction::CopyXToA => a = x,
                Instruction::Calculate(operator, operand) => {
                    a = operator.apply(a, operand.value(a, x))?;
                }
                Instruction::Negate => a = a.wrapping_neg(),
                Instruction::Jump(by) => at += by as usize,
                Instruction::JumpIf { test, operand, then, otherwise } => {
                    let holds = test.holds(a, operand.value(a, x));
                    at += usize::from(if holds { then } else { otherwise });
                }
                Instruction::Return(operand) => return Some(operand.value(a, x)),
            }
        }
    }

    fn load(
        &self,
        source: Source,
        packet: &[u8],
        a: u32,
        x: u32,
        memory: &[u32; MEMORY_WORDS],
    ) -> Option<u32> {
        match source {
            Source::Constant(k) => Some(k),
            Source::Memory(word) => Some(memory[word]),
            // A length beyond 32 bits is none that a datagram has.
            Source::Length => u32::try_from(packet.len()).ok(),
            Source::Packet { width, offset } => load_packet(packet, width, offset),
            Source::PacketAtX { width, offset } => {
                load_packet(packet, width, offset.wrapping_add(x))
            }
            Source::HeaderLength(offset) => Some((load_packet(packet, 1, offset)? & 0xf) << 2),
            Source::Ancillary(Ancillary::Protocol) => {
                Some(load_packet(packet, 2, 12).unwrap_or_default())
            }
            Source::Ancillary(Ancillary::LinkType) => Some(ARPHRD_ETHER.into()),
            Source::Ancillary(Ancillary::XorX) => Some(a ^ x),
            Source::Ancillary(Ancillary::Random) => {
                Some((mix(self.random.fetch_add(GOLDEN, Ordering::Relaxed)) >> 32) as u32)
            }
            Source::Ancillary(Ancillary::Zero) => Some(0),
        }
    }
}

/// The step of SplitMix64.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// `bpf_skb_load_helper_*` for a frame: its link-layer header is at 0, its network header follows.
fn load_packet(packet: &[u8], width: usize, offset: u32) -> Option<u32> {
    let (header, offset) = match offset.cast_signed() {
        plain @ 0.. => (0, plain),
        offset @ NETWORK.. => (ETHERNET_HEADER, offset - NETWORK),
        offset @ LINK_LAYER.. => (0, offset - LINK_LAYER),
        _ => return None,
    };
    let from = header.checked_add(usize::try_from(offset).ok()?)?;
    let bytes = packet.get(from..)?.get(..width)?;
    Some(bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
}

impl Operator {
    /// `None` for a division by zero. A shift counts modulo 32.
    fn apply(self, a: u32, b: u32) -> Option<u32> {
        match self {
            Self::Add => Some(a.wrapping_add(b)),
            Self::Subtract => Some(a.wrapping_sub(b)),
            Self::Multiply => Some(a.wrapping_mul(b)),
            Self::Divide => a.checked_div(b),
            Self::Or => Some(a | b),
            Self::And => Some(a & b),
            Self::ShiftLeft => Some(a.wrapping_shl(b)),
            Self::ShiftRight => Some(a.wrapping_shr(b)),
            Self::Modulo => a.checked_rem(b),
            Self::Xor => Some(a ^ b),
        }
    }
}

impl Test {
    fn holds(self, a: u32, b: u32) -> bool {
        match self {
            Self::Equal => a == b,
            Self::Greater => a > b,
            Self::GreaterOrEqual => a >= b,
            Self::AnyBit => a & b != 0,
        }
    }
}

impl Operand {
    fn value(self, a: u32, x: u32) -> u32 {
        match self {
            Self::Constant(k) => k,
            Self::A => a,
            Self::X => x,
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::{vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    fn program(instructions: &[(u16, u8, u8, u32)]) -> Result<Program, Errno> {
        let raw: Vec<u8> = instructions
            .iter()
            .flat_map(|(code, then, otherwise, k)| {
                [&code.to_ne_bytes()[..], &[*then, *otherwise], &k.to_ne_bytes()].concat()
            })
            .collect();
        Program::check(&raw)
    }

    fn result(instructions: &[(u16, u8, u8, u32)], packet: &[u8]) -> u32 {
        program(instructions).unwrap().run(packet)
    }

    const RETURN_A: (u16, u8, u8, u32) = (0x16, 0, 0, 0);

    /// What `tcpdump -dd arp` gives.
    #[test]
    fn a_filter_of_tcpdump_tells_arp_from_the_rest() {
        let arp = [(0x28, 0, 0, 12), (0x15, 0, 1, 0x806), (0x6, 0, 0, 0x40000), (0x6, 0, 0, 0)];
        let mut frame = [0; 42];
        assert_eq!(result(&arp, &frame), 0);
        frame[12..14].copy_from_slice(&[8, 6]);
        assert_eq!(result(&arp, &frame), 0x40000);
        assert_eq!(result(&arp, &frame[..13]), 0, "a load beyond the end drops");
    }

    #[test]
    fn loads_count_from_the_frame_and_from_its_network_header() {
        let frame: Vec<u8> = (0..64).collect();
        let load = |code, k| result(&[(code, 0, 0, k), RETURN_A], &frame);
        assert_eq!(load(0x20, 1), 0x0102_0304);
        assert_eq!(load(0x30, NETWORK.cast_unsigned()), 14);
        assert_eq!(load(0x28, LINK_LAYER.cast_unsigned() + 2), 0x0203);
        assert_eq!(load(0x30, LINK_LAYER.cast_unsigned() - 1), 0);
        assert_eq!(load(0x30, 63), 63);
        assert_eq!(load(0x28, 63), 0);
        assert_eq!(load(0x80, 0), 64);
        assert_eq!(load(0x20, ANCILLARY.cast_unsigned()), 0x0c0d, "the protocol");
        let at_x = [(0x01, 0, 0, u32::MAX), (0x50, 0, 0, 6), RETURN_A];
        assert_eq!(result(&at_x, &frame), 5, "an offset wraps");
        let header = [(0xb1, 0, 0, 7), (0x87, 0, 0, 0), RETURN_A];
        assert_eq!(result(&header, &frame), 28);
    }

    #[test]
    fn arithmetic_wraps_and_division_by_zero_drops() {
        let calculate = |code, a, x| {
            let program = [(0x00, 0, 0, a), (0x01, 0, 0, x), (code, 0, 0, 0), RETURN_A];
            result(&program, &[])
        };
        assert_eq!(calculate(0x0c, u32::MAX, 2), 1);
        assert_eq!(calculate(0x1c, 1, 2), u32::MAX);
        assert_eq!(calculate(0x2c, 1 << 31, 2), 0);
        assert_eq!(calculate(0x3c, 7, 2), 3);
        assert_eq!(calculate(0x3c, 7, 0), 0);
        assert_eq!(calculate(0x9c, 7, 0), 0);
        assert_eq!(calculate(0x6c, 1, 33), 2);
        assert_eq!(calculate(0x84, 1, 0), u32::MAX);
    }

    #[test]
    fn each_load_of_a_random_number_gives_another() {
        let random = program(&[(0x20, 0, 0, ANCILLARY.cast_unsigned() + 56), RETURN_A]).unwrap();
        let drawn: alloc::collections::BTreeSet<u32> = (0..64).map(|_| random.run(&[])).collect();
        assert_eq!(drawn.len(), 64);
    }

    #[test]
    fn programs_that_break_a_rule_are_refused() {
        let ret = (0x06, 0, 0, 1);
        let store = (0x02, 0, 0, 3);
        let load = (0x60, 0, 0, 3);
        for (allowed, what, instructions) in [
            (true, "one return", &[ret][..]),
            (false, "no instruction", &[]),
            (false, "no return at the end", &[ret, (0x00, 0, 0, 1)]),
            (false, "a return of X", &[(0x0e, 0, 0, 0)]),
            (false, "a code beyond a byte", &[(0x106, 0, 0, 0)]),
            (true, "a jump to the last", &[(0x05, 0, 0, 0), ret]),
            (false, "a jump behind the last", &[(0x05, 0, 0, 1), ret]),
            (false, "a jump far behind", &[(0x05, 0, 0, u32::MAX), ret]),
            (false, "a condition that jumps behind the last", &[(0x15, 0, 1, 0), ret]),
            (false, "a constant division by zero", &[(0x34, 0, 0, 0), ret]),
            (true, "a division by X", &[(0x3c, 0, 0, 0), ret]),
            (true, "a shift by 31", &[(0x64, 0, 0, 31), ret]),
            (false, "a shift by 32", &[(0x74, 0, 0, 32), ret]),
            (false, "a seventeenth word", &[(0x02, 0, 0, 16), ret]),
            (false, "a word that was not written", &[load, ret]),
            (true, "a word that was", &[store, load, ret]),
            (false, "one that was on one path only", &[(0x15, 1, 0, 0), store, load, ret]),
            (true, "one in unreachable code", &[(0x05, 0, 0, 1), load, ret]),
            (false, "an unknown ancillary load", &[(0x20, 0, 0, 0xffff_f001), ret]),
            (true, "the same as an indirect load", &[(0x40, 0, 0, 0xffff_f001), ret]),
        ] {
            assert_eq!(program(instructions).is_ok(), allowed, "{what}");
        }
        assert!(program(&vec![ret; MAX_INSTRUCTIONS]).is_ok());
        assert!(program(&vec![ret; MAX_INSTRUCTIONS + 1]).is_err());
        assert!(Program::check(&[6, 0, 0, 0, 0, 0, 0]).is_err(), "no whole instruction");
    }

    proptest! {
        #[test]
        fn whatever_passes_the_check_runs_to_an_end(
            // Half of all codes are known, and small numbers are more often in bounds.
            code in prop::collection::vec((0_u16..0xb8, 0_u8..4, 0_u8..4, prop_oneof![0_u32..20, any::<u32>()]), 0..12),
            packet in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            let mut code = code;
            code.push((0x16, 0, 0, 0));
            if let Ok(program) = program(&code) {
                let _kept = program.run(&packet);
            }
        }
    }
}
