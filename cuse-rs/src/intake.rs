//! Where a message lands when it is read, so that a device can keep much written data without a copy.
//!
//! # Theory of operation
//!
//! After a large WRITE the next [`APART`] messages are read *apart*, into three pieces in turn: the first [`HEAD`] bytes of `message`, the buffer
//! `data`, and the rest of `message`. `HEAD` is as long as the headers of a WRITE. So the data of a WRITE that fits lies alone in
//! `data`, from the beginning. Then the device can get the buffer whole, as a [`Bytes`], and the thread's next message gets another
//! buffer. The drop of the last reference gives the buffer back to the thread's [`Pool`].
//!
//! All other messages are read in one piece, because each piece costs the kernel a look-up of its pages. Their data is borrowed: a copy
//! of a small write costs less than a cold buffer, and keeps less memory. The first large write after many other messages is copied too.

use std::io::IoSliceMut;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use zerocopy::FromBytes;

use crate::abi::{InHeader, Opcode, WriteIn};
use crate::codec::{self, DecodeError, Message};

/// The headers of a WRITE.
const HEAD: usize = size_of::<InHeader>() + size_of::<WriteIn>();
/// Room for the data of a WRITE that can be given away: 64 KiB, and a page for what a device has before them.
const DATA: usize = (64 << 10) + (4 << 10);
/// Less is not given away: at most half of a buffer that is kept is unused.
const LEAST_GIVEN: usize = DATA / 2;
/// How many messages are read apart after a large write: a client may poll between its writes.
const APART: u8 = 16;
/// Buffers that wait for the next message.
const POOLED: usize = 4;

/// The buffers of one thread.
pub(crate) struct Intake {
    message: Vec<u8>,
    /// Empty while it is given away, or was never wanted.
    data: Vec<u8>,
    /// How many messages are still read apart.
    apart: u8,
    given: Bytes,
    pool: Arc<Pool>,
}

impl Intake {
    /// Room for messages of `size` bytes.
    pub(crate) fn new(size: usize) -> Self {
        let pool = Arc::default();
        let message = vec![0; size.max(HEAD)];
        Self { message, data: Vec::new(), apart: 0, given: Bytes::new(), pool }
    }

    /// Reads the next message by `read`, which gets the pieces to fill and returns how many bytes it has put there.
    pub(crate) fn read_with<R>(&mut self, read: impl FnOnce(&mut [IoSliceMut<'_>]) -> R) -> R {
        self.given = Bytes::new();
        if self.apart == 0 {
            return read(&mut [IoSliceMut::new(&mut self.message)]);
        }
        if self.data.is_empty() {
            self.data = self.pool.take();
        }
        let (head, rest) = self.message.split_at_mut(HEAD);
        let data = IoSliceMut::new(&mut self.data);
        read(&mut [IoSliceMut::new(head), data, IoSliceMut::new(rest)])
    }

    /// Decodes what was read, so many bytes.
    ///
    /// # Errors
    ///
    /// As [`codec::decode`].
    pub(crate) fn decode(&mut self, length: usize) -> Result<Message<'_>, DecodeError> {
        let beyond = length.saturating_sub(HEAD);
        let is_large = (LEAST_GIVEN..=DATA).contains(&beyond) && self.is_write();
        let was_apart = self.apart > 0;
        self.apart = if is_large { APART } else { self.apart.saturating_sub(1) };
        if was_apart && beyond > 0 {
            if is_large {
                let lent =
                    Lent { data: std::mem::take(&mut self.data), pool: Arc::clone(&self.pool) };
                self.given = Bytes::from_owner(lent).slice(..beyond);
                return codec::decode_write(&self.message[..HEAD], (&self.given).into());
            }
            // What lies behind `data` makes way for it.
            let apart = beyond.min(self.data.len());
            let rest = beyond - apart;
            self.message.copy_within(HEAD..HEAD + rest, HEAD + apart);
            self.message[HEAD..HEAD + apart].copy_from_slice(&self.data[..apart]);
        }
        codec::decode(&self.message[..length])
    }

    fn is_write(&self) -> bool {
        InHeader::read_from_prefix(&self.message)
            .is_ok_and(|(header, _)| Opcode(header.opcode) == Opcode::WRITE)
    }
}

/// Buffers that were given away and have come back, as many as may be wanted soon.
#[derive(Default)]
struct Pool(Mutex<Vec<Vec<u8>>>);

impl Pool {
    fn take(&self) -> Vec<u8> {
        let pooled = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        pooled.unwrap_or_else(|| vec![0; DATA])
    }

    fn give(&self, data: Vec<u8>) {
        let mut pooled = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pooled.len() < POOLED {
            pooled.push(data);
        }
    }
}

/// A buffer that was given away.
struct Lent {
    data: Vec<u8>,
    pool: Arc<Pool>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.pool.give(std::mem::take(&mut self.data));
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::{Immutable, IntoBytes};

    use super::*;
    use crate::abi::IoctlIn;
    use crate::codec::Request;

    const SIZE: usize = 1 << 20;

    /// Reads a message as the channel does, and decodes it.
    fn receive<'a>(intake: &'a mut Intake, message: &[u8]) -> Message<'a> {
        let mut left = message;
        intake.read_with(|pieces| {
            for piece in pieces {
                let count = left.len().min(piece.len());
                let (now, later) = left.split_at(count);
                piece[..count].copy_from_slice(now);
                left = later;
            }
        });
        assert!(left.is_empty(), "the message fits");
        intake.decode(message.len()).unwrap()
    }

    fn message(opcode: Opcode, body: &(impl IntoBytes + Immutable), data: &[u8]) -> Vec<u8> {
        let length = size_of::<InHeader>() + body.as_bytes().len() + data.len();
        let header = InHeader {
            len: u32::try_from(length).unwrap(),
            opcode: opcode.0,
            unique: 4,
            ..InHeader::default()
        };
        [header.as_bytes(), body.as_bytes(), data].concat()
    }

    fn write_of(length: usize) -> (Vec<u8>, Vec<u8>) {
        let data: Vec<u8> = (0..=250).cycle().take(length).collect();
        let size = u32::try_from(length).unwrap();
        (message(Opcode::WRITE, &WriteIn { size, ..WriteIn::default() }, &data), data)
    }

    #[test]
    fn data_of_every_length_comes_whole_in_any_order() {
        let mut intake = Intake::new(SIZE);
        let mut kept = Vec::new();
        let lengths =
            [0, 1, LEAST_GIVEN - 1, LEAST_GIVEN, DATA - 1, DATA, DATA + 1, 2 * DATA, 7, SIZE / 2];
        for length in lengths.into_iter().chain(lengths.into_iter().rev()) {
            let (message, data) = write_of(length);
            let Request::Write(write) = receive(&mut intake, &message).request else {
                panic!("not a write")
            };
            assert_eq!(&*write.data, data, "{length}");
            kept.push((write.data.to_bytes(), data));
        }
        assert!(kept.iter().all(|(kept, data)| kept == data), "what is kept does not change");
    }

    #[test]
    fn much_data_is_kept_without_a_copy_and_its_buffer_comes_back() {
        let mut intake = Intake::new(SIZE);
        let mut keep = |length| {
            let (message, _) = write_of(length);
            let Request::Write(write) = receive(&mut intake, &message).request else {
                panic!("not a write")
            };
            let (lent, kept) = (write.data.as_ptr(), write.data.to_bytes());
            (lent == kept.as_ptr(), kept)
        };
        let (is_same, _) = keep(LEAST_GIVEN);
        assert!(!is_same, "the first of them is copied");
        let (is_same, first) = keep(LEAST_GIVEN);
        assert!(is_same, "much data is given away");
        let (is_same, second) = keep(LEAST_GIVEN);
        assert!(is_same && second.as_ptr() != first.as_ptr(), "another buffer");
        let (is_same, _) = keep(LEAST_GIVEN - 1);
        assert!(!is_same, "little data is copied");
        let (is_same, _) = keep(LEAST_GIVEN);
        assert!(is_same, "much data is given away after little, too");
        let place = first.as_ptr();
        drop(first);
        keep(LEAST_GIVEN);
        let (_, third) = keep(LEAST_GIVEN);
        let (_, fourth) = keep(LEAST_GIVEN);
        assert!([third.as_ptr(), fourth.as_ptr()].contains(&place), "the buffer is used again");
    }

    #[test]
    fn other_messages_are_put_together() {
        let mut intake = Intake::new(SIZE);
        for length in [1, 8, 9, 500, DATA, DATA + 500] {
            receive(&mut intake, &write_of(DATA).0);
            let input: Vec<u8> = (0..=250).cycle().take(length).collect();
            let in_size = u32::try_from(length).unwrap();
            let ioctl = IoctlIn { in_size, ..IoctlIn::default() };
            let message = message(Opcode::IOCTL, &ioctl, &input);
            let Request::Ioctl(ioctl) = receive(&mut intake, &message).request else {
                panic!("not an ioctl")
            };
            assert_eq!(ioctl.input, input, "{length}");
        }
    }
}
