//! The memory of another process: read and written as the kernel would do it for a system call of that process.
//!
//! Follows `process_vm_readv(2)`. It takes the right to trace the process: it has the same user and is dumpable, or this process has
//! CAP_SYS_PTRACE; under Yama's `ptrace_scope` 1 it is also a descendant.

use std::io::{IoSlice, IoSliceMut};

use nix::{
    errno::Errno,
    sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev},
    unistd::Pid,
};

use crate::core::UserRange;

/// What lies in one page is there whole or not at all.
const PAGE: u64 = 4096;
/// The kernel takes at most so many pieces at a time (`UIO_MAXIOV`).
const MAX_PIECES: usize = 1024;

/// Fills `into` from the beginning of the ranges, as far as there is memory. Returns how much.
///
/// # Errors
///
/// `EFAULT` if there is none at the beginning; `EPERM` and `ESRCH` if the thread may not be looked at.
pub(super) fn read(tid: u32, ranges: &[UserRange], into: &mut [u8]) -> Result<usize, Errno> {
    if into.is_empty() {
        return Ok(0);
    }
    let length = into.len();
    with_pieces(ranges, length, |pieces| {
        process_vm_readv(pid(tid)?, &mut [IoSliceMut::new(into)], pieces)
    })
}

/// All the bytes of the ranges, joined.
///
/// # Errors
///
/// As [`read`]; `EFAULT` also if there is not memory everywhere.
pub(super) fn fetch(tid: u32, ranges: &[UserRange]) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; ranges.iter().map(|range| range.length).sum()];
    if read(tid, ranges, &mut bytes)? == bytes.len() { Ok(bytes) } else { Err(Errno::EFAULT) }
}

/// Stores bytes in the ranges, from their beginning and as far as there is memory. Returns how much.
///
/// # Errors
///
/// As [`read`].
pub(super) fn write(tid: u32, ranges: &[UserRange], pieces: &[&[u8]]) -> Result<usize, Errno> {
    let length = pieces.iter().map(|piece| piece.len()).sum();
    if length == 0 {
        return Ok(0);
    }
    // No caller has more: headers, and a datagram.
    let mut local = [IoSlice::new(&[]), IoSlice::new(&[])];
    for (slice, piece) in local.iter_mut().zip(pieces) {
        *slice = IoSlice::new(piece);
    }
    with_pieces(ranges, length, |pieces| process_vm_writev(pid(tid)?, &local, pieces))
}

/// Stores what an ioctl tells, as the kernel does: a number whole or not at all (`put_user`), a structure as far as there is memory.
///
/// # Errors
///
/// As [`write`].
pub(super) fn store(tid: u32, address: u64, bytes: &[u8]) -> Result<(), Errno> {
    /// The longest number.
    const NUMBER: usize = 8;
    let in_first = match usize::try_from(PAGE - address % PAGE) {
        Ok(in_first) if in_first < bytes.len() && bytes.len() <= NUMBER => in_first,
        Ok(_) | Err(_) => 0,
    };
    // What lies in a second page comes first.
    let (first, rest) = bytes.split_at(in_first);
    for (piece, offset) in [(rest, in_first), (first, 0)] {
        let address = address.saturating_add(offset as u64);
        if write(tid, &[UserRange { address, length: piece.len() }], &[piece])? != piece.len() {
            return Err(Errno::EFAULT);
        }
    }
    Ok(())
}

/// Acts on the first `length` bytes of the ranges.
fn with_pieces(
    ranges: &[UserRange],
    mut length: usize,
    act: impl FnOnce(&[RemoteIoVec]) -> Result<usize, Errno>,
) -> Result<usize, Errno> {
    let mut next = |range: &UserRange| {
        let len = range.length.min(length);
        length -= len;
        let base = usize::try_from(range.address).map_err(|_| Errno::EFAULT)?;
        Ok(RemoteIoVec { base, len })
    };
    if let [range] = ranges {
        return act(&[next(range)?]);
    }
    let pieces = ranges.iter().take(MAX_PIECES).map(next).collect::<Result<Vec<_>, Errno>>()?;
    act(&pieces)
}

/// A string that ends with a zero byte, without it; at most `most` bytes.
///
/// # Errors
///
/// As [`read`]; `ENAMETOOLONG` if it is longer.
pub(super) fn read_string(tid: u32, mut address: u64, most: usize) -> Result<Vec<u8>, Errno> {
    let mut string = Vec::new();
    while string.len() <= most {
        let rest = usize::try_from(PAGE - address % PAGE).unwrap_or(1);
        let (start, length) = (string.len(), rest.min(most + 1 - string.len()));
        string.resize(start + length, 0);
        let read = read(tid, &[UserRange { address, length }], &mut string[start..])?;
        string.truncate(start + read);
        if let Some(end) = string[start..].iter().position(|byte| *byte == 0) {
            string.truncate(start + end);
            return Ok(string);
        }
        address = address.checked_add(length as u64).ok_or(Errno::EFAULT)?;
    }
    Err(Errno::ENAMETOOLONG)
}

/// A thread of another pid namespace has number 0.
fn pid(tid: u32) -> Result<Pid, Errno> {
    match i32::try_from(tid) {
        Ok(tid) if tid > 0 => Ok(Pid::from_raw(tid)),
        _ => Err(Errno::ESRCH),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> u32 {
        std::process::id()
    }

    fn range(bytes: &[u8]) -> UserRange {
        UserRange { address: bytes.as_ptr() as u64, length: bytes.len() }
    }

    #[test]
    fn memory_is_joined_and_taken_as_far_as_it_goes() {
        let (left, right) = (*b"abc", *b"defg");
        assert_eq!(fetch(own(), &[range(&left), range(&right)]), Ok(b"abcdefg".to_vec()));
        let nothing = UserRange { address: 16, length: 4 };
        assert_eq!(fetch(own(), &[range(&left), nothing]), Err(Errno::EFAULT));
        let mut into = [0; 7];
        assert_eq!(read(own(), &[range(&left), nothing], &mut into), Ok(3));
        assert_eq!(read(own(), &[nothing], &mut into), Err(Errno::EFAULT));
        assert_eq!(read(0, &[range(&left)], &mut into), Err(Errno::ESRCH));
    }

    #[test]
    fn bytes_are_stored_over_pieces() {
        let (left, right) = (vec![0_u8; 3], vec![0_u8; 4]);
        let ranges = [range(&left), range(&right)];
        assert_eq!(write(own(), &ranges, &[b"ab", b"cde"]), Ok(5));
        assert_eq!(fetch(own(), &ranges), Ok(b"abcde\0\0".to_vec()));
    }

    #[test]
    fn strings_end_with_a_zero() {
        let mut long = vec![b'x'; 9000];
        long[8000] = 0;
        let address = long.as_ptr() as u64;
        assert_eq!(read_string(own(), address, 9000), Ok(vec![b'x'; 8000]));
        assert_eq!(read_string(own(), address, 100), Err(Errno::ENAMETOOLONG));
        assert_eq!(read_string(own(), 16, 100), Err(Errno::EFAULT));
    }
}
