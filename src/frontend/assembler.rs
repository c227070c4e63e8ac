//! Classic BPF programs for seccomp, put together with labels instead of counted jumps.
//!
//! Follows `linux/filter.h`. Jumps go forward only, and those with a condition at most 255 instructions far, as the kernel wants it.

use nix::libc::{
    BPF_ABS, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter,
};

/// A place in a program, known by [`Assembler::place`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Label(usize);

/// Where a jump goes.
#[derive(Clone, Copy)]
enum Target {
    Next,
    Label(Label),
}

/// A program that is being written.
#[derive(Default)]
pub(super) struct Assembler {
    instructions: Vec<(sock_filter, [Target; 2])>,
    places: Vec<Option<usize>>,
}

impl Assembler {
    /// A label that is still to be placed.
    pub(super) fn label(&mut self) -> Label {
        self.places.push(None);
        Label(self.places.len() - 1)
    }

    /// Puts a label before the next instruction.
    pub(super) fn place(&mut self, label: Label) {
        let before = self.places[label.0].replace(self.instructions.len());
        assert!(before.is_none(), "a label is placed once");
    }

    /// Loads the word at an offset of what is looked at.
    pub(super) fn load(&mut self, offset: u32) {
        self.push(BPF_LD | BPF_W | BPF_ABS, offset, [Target::Next; 2]);
    }

    /// Goes to a label if the loaded word is this, else on.
    pub(super) fn if_equal(&mut self, value: u32, to: Label) {
        self.push(BPF_JMP | BPF_JEQ | BPF_K, value, [Target::Label(to), Target::Next]);
    }

    /// Goes to a label unless the loaded word is this, else on.
    pub(super) fn unless_equal(&mut self, value: u32, to: Label) {
        self.push(BPF_JMP | BPF_JEQ | BPF_K, value, [Target::Next, Target::Label(to)]);
    }

    /// Goes to a label if the loaded word is this or more, else on.
    pub(super) fn if_at_least(&mut self, value: u32, to: Label) {
        self.push(BPF_JMP | BPF_JGE | BPF_K, value, [Target::Label(to), Target::Next]);
    }

    /// Goes to a label if the loaded word is less, else on.
    pub(super) fn if_below(&mut self, value: u32, to: Label) {
        self.push(BPF_JMP | BPF_JGE | BPF_K, value, [Target::Next, Target::Label(to)]);
    }

    /// Goes to a label, however far.
    pub(super) fn skip_to(&mut self, to: Label) {
        self.push(BPF_JMP | BPF_JA, 0, [Target::Label(to), Target::Next]);
    }

    /// Ends with a result.
    pub(super) fn give(&mut self, result: u32) {
        self.push(BPF_RET | BPF_K, result, [Target::Next; 2]);
    }

    /// The program.
    pub(super) fn finish(self) -> Vec<sock_filter> {
        let places = self.places;
        let distance = |from: usize, target| match target {
            Target::Next => 0,
            Target::Label(Label(label)) => places[label]
                .and_then(|place| place.checked_sub(from + 1))
                .expect("a jump goes forward, to a label that is placed"),
        };
        let skip = |from, target| {
            u8::try_from(distance(from, target)).expect("a jump goes forward, not too far")
        };
        let always = u16::try_from(BPF_JMP | BPF_JA).expect("codes have 16 bits");
        let assembled = self.instructions.into_iter().enumerate();
        assembled
            .map(|(at, (instruction, [if_true, if_false]))| {
                if instruction.code == always {
                    let k = u32::try_from(distance(at, if_true)).expect("a program is short");
                    return sock_filter { k, ..instruction };
                }
                sock_filter { jt: skip(at, if_true), jf: skip(at, if_false), ..instruction }
            })
            .collect()
    }

    fn push(&mut self, code: u32, k: u32, targets: [Target; 2]) {
        let code = u16::try_from(code).expect("codes have 16 bits");
        self.instructions.push((sock_filter { code, jt: 0, jf: 0, k }, targets));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_skip_what_lies_before_their_label() {
        let mut program = Assembler::default();
        let (one, other) = (program.label(), program.label());
        program.load(4);
        program.if_equal(7, other);
        program.unless_equal(8, one);
        program.give(1);
        program.place(one);
        program.give(2);
        program.place(other);
        program.give(3);
        let skips: Vec<(u8, u8)> =
            program.finish().iter().map(|instruction| (instruction.jt, instruction.jf)).collect();
        assert_eq!(skips, [(0, 0), (3, 0), (0, 1), (0, 0), (0, 0), (0, 0)]);
    }

    #[test]
    #[should_panic(expected = "a jump goes forward")]
    fn a_label_that_is_not_placed_is_a_mistake() {
        let mut program = Assembler::default();
        let nowhere = program.label();
        program.if_equal(1, nowhere);
        program.finish();
    }
}
