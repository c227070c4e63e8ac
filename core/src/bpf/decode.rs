//! What an instruction means, and what the kernel asks of a program before it runs: `bpf_check_classic`, `chk_code_allowed`.

use alloc::vec;

use super::{
    ANCILLARY, Ancillary, INSTRUCTION_SIZE, Instruction, MEMORY_WORDS, Operand, Operator, Source,
    Test,
};

/// One instruction, of which so many more come after; `None` if it is not allowed there.
pub(super) fn decode(raw: [u8; INSTRUCTION_SIZE], after: usize) -> Option<Instruction> {
    let [code_low, code_high, then, otherwise, k @ ..] = raw;
    let (code, k) = (u16::from_ne_bytes([code_low, code_high]), u32::from_ne_bytes(k));
    let operand = if code & 0x08 == 0 { Operand::Constant(k) } else { Operand::X };
    Some(match code {
        // BPF_LD, BPF_LDX
        0x00 => Instruction::LoadA(Source::Constant(k)),
        0x01 => Instruction::LoadX(Source::Constant(k)),
        0x20 | 0x28 | 0x30 => Instruction::LoadA(absolute(width(code), k)?),
        0x40 | 0x48 | 0x50 => {
            Instruction::LoadA(Source::PacketAtX { width: width(code), offset: k })
        }
        0x60 => Instruction::LoadA(Source::Memory(memory_word(k)?)),
        0x61 => Instruction::LoadX(Source::Memory(memory_word(k)?)),
        0x80 => Instruction::LoadA(Source::Length),
        0x81 => Instruction::LoadX(Source::Length),
        0xb1 => Instruction::LoadX(Source::HeaderLength(k)),
        // BPF_ST, BPF_STX
        0x02 => Instruction::StoreA(memory_word(k)?),
        0x03 => Instruction::StoreX(memory_word(k)?),
        // BPF_MISC
        0x07 => Instruction::CopyAToX,
        0x87 => Instruction::CopyXToA,
        // BPF_ALU
        0x84 => Instruction::Negate,
        0x04 | 0x0c => Instruction::Calculate(Operator::Add, operand),
        0x14 | 0x1c => Instruction::Calculate(Operator::Subtract, operand),
        0x24 | 0x2c => Instruction::Calculate(Operator::Multiply, operand),
        0x34 | 0x94 if k == 0 => return None,
        0x34 | 0x3c => Instruction::Calculate(Operator::Divide, operand),
        0x94 | 0x9c => Instruction::Calculate(Operator::Modulo, operand),
        0x44 | 0x4c => Instruction::Calculate(Operator::Or, operand),
        0x54 | 0x5c => Instruction::Calculate(Operator::And, operand),
        0x64 | 0x74 if k >= 32 => return None,
        0x64 | 0x6c => Instruction::Calculate(Operator::ShiftLeft, operand),
        0x74 | 0x7c => Instruction::Calculate(Operator::ShiftRight, operand),
        0xa4 | 0xac => Instruction::Calculate(Operator::Xor, operand),
        // BPF_JMP
        0x05 if (k as usize) < after => Instruction::Jump(k),
        0x15 | 0x1d | 0x25 | 0x2d | 0x35 | 0x3d | 0x45 | 0x4d
            if usize::from(then.max(otherwise)) < after =>
        {
            let test = match code & 0xf0 {
                0x10 => Test::Equal,
                0x20 => Test::Greater,
                0x30 => Test::GreaterOrEqual,
                _ => Test::AnyBit,
            };
            Instruction::JumpIf { test, operand, then, otherwise }
        }
        // BPF_RET
        0x06 => Instruction::Return(Operand::Constant(k)),
        0x16 => Instruction::Return(Operand::A),
        _ => return None,
    })
}

/// `BPF_SIZE`, in bytes.
fn width(code: u16) -> usize {
    match code & 0x18 {
        0x00 => 4,
        0x08 => 2,
        _ => 1,
    }
}

fn memory_word(k: u32) -> Option<usize> {
    usize::try_from(k).ok().filter(|word| *word < MEMORY_WORDS)
}

/// An absolute load: of the packet, or as `bpf_anc_helper` says.
fn absolute(width: usize, k: u32) -> Option<Source> {
    if !(ANCILLARY..0).contains(&k.cast_signed()) {
        return Some(Source::Packet { width, offset: k });
    }
    Some(Source::Ancillary(match k.cast_signed() - ANCILLARY {
        0 => Ancillary::Protocol,
        28 => Ancillary::LinkType,
        40 => Ancillary::XorX,
        56 => Ancillary::Random,
        // Packet type, interface, netlink attributes (12, 16), mark, queue, hash, processor, VLAN (44, 48, 60), payload.
        4 | 8 | 12 | 16 | 20 | 24 | 32 | 36 | 44 | 48 | 52 | 60 => Ancillary::Zero,
        _ => return None,
    }))
}

/// `check_load_and_stores`: whether on every path each memory word is written before it is read.
pub(super) fn reads_only_what_was_written(instructions: &[Instruction]) -> bool {
    // Of each instruction, the words that all jumps to it have written.
    let mut at_target = vec![u16::MAX; instructions.len()];
    let mut written = 0_u16;
    for (at, instruction) in instructions.iter().enumerate() {
        written &= at_target[at];
        let mut jump_to = |by: usize| at_target[at + 1 + by] &= written;
        match *instruction {
            Instruction::StoreA(word) | Instruction::StoreX(word) => written |= 1 << word,
            Instruction::LoadA(Source::Memory(word)) | Instruction::LoadX(Source::Memory(word)) => {
                if written & 1 << word == 0 {
                    return false;
                }
            }
            Instruction::Jump(by) => {
                jump_to(by as usize);
                written = u16::MAX;
            }
            Instruction::JumpIf { then, otherwise, .. } => {
                jump_to(then.into());
                jump_to(otherwise.into());
                written = u16::MAX;
            }
            Instruction::LoadA(_)
            | Instruction::LoadX(_)
            | Instruction::CopyAToX
            | Instruction::CopyXToA
            | Instruction::Calculate(..)
            | Instruction::Negate
            | Instruction::Return(_) => {}
        }
    }
    true
}
