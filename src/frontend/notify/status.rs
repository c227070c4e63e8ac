//! What `stat` and its relatives say of the device: a character device with the number of the kernel's tun.
//!
//! Follows the kernel's structures: `struct stat` of each architecture, `struct stat64` of 32-bit programs, and `struct statx`.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use nix::{
    libc,
    sys::stat::{major, makedev, minor},
};

use super::path::NUMBER;

/// In which form a client wants to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `struct stat` of this machine's own programs.
    Stat,
    /// `struct stat64` of 32-bit programs.
    Stat64,
    /// `struct statx`.
    Statx,
}

/// What is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Status {
    device: u64,
    inode: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    /// Seconds and nanoseconds: accessed, modified, changed.
    times: [(i64, i64); 3],
}

impl Status {
    /// Of the device at a path: that of the node which is there, or else that of one that is open to all.
    pub(super) fn at(path: &Path) -> Self {
        match fs::metadata(path) {
            Ok(node) if node.file_type().is_char_device() => Self {
                device: node.dev(),
                inode: node.ino(),
                mode: node.mode(),
                uid: node.uid(),
                gid: node.gid(),
                times: [
                    (node.atime(), node.atime_nsec()),
                    (node.mtime(), node.mtime_nsec()),
                    (node.ctime(), node.ctime_nsec()),
                ],
            },
            Ok(_) | Err(_) => {
                let device = fs::metadata("/dev").map_or(0, |folder| folder.dev());
                let mode = libc::S_IFCHR | 0o666;
                Self { device, inode: 1, mode, uid: 0, gid: 0, times: [(0, 0); 3] }
            }
        }
    }

    /// The bytes of a structure.
    pub(super) fn bytes(&self, form: Form) -> Vec<u8> {
        match form {
            Form::Stat => self.stat(),
            Form::Stat64 => self.stat64(),
            Form::Statx => self.statx(),
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn stat(&self) -> Vec<u8> {
        let mut bytes = Fields(vec![0; 144]);
        bytes.put(0, self.device).put(8, self.inode).put(16, 1_u64).put(24, self.mode);
        bytes.put(28, self.uid).put(32, self.gid).put(40, number()).put(56, BLOCK);
        for (at, (seconds, nanoseconds)) in [72, 88, 104].into_iter().zip(self.times) {
            bytes.put(at, seconds).put(at + 8, nanoseconds);
        }
        bytes.0
    }

    /// That which most architectures share (`asm-generic/stat.h`).
    #[cfg(not(target_arch = "x86_64"))]
    fn stat(&self) -> Vec<u8> {
        let mut bytes = Fields(vec![0; 128]);
        bytes.put(0, self.device).put(8, self.inode).put(16, self.mode).put(20, 1_u32);
        bytes.put(24, self.uid).put(28, self.gid).put(32, number()).put(56, low(BLOCK));
        for (at, (seconds, nanoseconds)) in [72, 88, 104].into_iter().zip(self.times) {
            bytes.put(at, seconds).put(at + 8, nanoseconds);
        }
        bytes.0
    }

    /// `struct stat64` of `asm/stat.h`, as i386 has it.
    fn stat64(&self) -> Vec<u8> {
        let mut bytes = Fields(vec![0; 96]);
        bytes.put(0, self.device).put(12, low(self.inode)).put(16, self.mode).put(20, 1_u32);
        bytes.put(24, self.uid).put(28, self.gid).put(32, number()).put(52, low(BLOCK));
        for (at, (seconds, nanoseconds)) in [64, 72, 80].into_iter().zip(self.times) {
            bytes
                .put(at, low(seconds.cast_unsigned()))
                .put(at + 4, low(nanoseconds.cast_unsigned()));
        }
        bytes.put(88, self.inode);
        bytes.0
    }

    fn statx(&self) -> Vec<u8> {
        let mut bytes = Fields(vec![0; 256]);
        bytes.put(0, libc::STATX_BASIC_STATS).put(4, low(BLOCK)).put(16, 1_u32);
        bytes.put(20, self.uid).put(24, self.gid);
        let [first, second, ..] = self.mode.to_ne_bytes();
        bytes.put(28, u16::from_ne_bytes([first, second])).put(32, self.inode);
        for (at, (seconds, nanoseconds)) in [64, 112, 96].into_iter().zip(self.times) {
            bytes.put(at, seconds).put(at + 8, low(nanoseconds.cast_unsigned()));
        }
        bytes.put(128, low(NUMBER.0)).put(132, low(NUMBER.1));
        bytes.put(136, low(major(self.device))).put(140, low(minor(self.device)));
        bytes.0
    }
}

const BLOCK: u64 = 4096;

fn number() -> u64 {
    makedev(NUMBER.0, NUMBER.1)
}

fn low(number: u64) -> u32 {
    let [a, b, c, d, ..] = number.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// A structure that is being written, each field at its offset.
struct Fields(Vec<u8>);

impl Fields {
    fn put(&mut self, at: usize, value: impl Field) -> &mut Self {
        value.store(&mut self.0[at..]);
        self
    }
}

trait Field {
    fn store(self, into: &mut [u8]);
}

macro_rules! fields {
    ($($type:ty),*) => {$(
        impl Field for $type {
            fn store(self, into: &mut [u8]) {
                let bytes = self.to_ne_bytes();
                into[..bytes.len()].copy_from_slice(&bytes);
            }
        }
    )*};
}

fields!(u16, u32, u64, i64);

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel tells of `/dev/null` what is written here, but for the number.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn structures_are_the_kernels() {
        let path = Path::new("/dev/null");
        let status = Status::at(path);
        let told = nix::sys::stat::stat(path).unwrap();
        let bytes = status.bytes(Form::Stat);
        assert_eq!(bytes.len(), size_of_val(&told));
        let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!((word(0), word(8), word(40)), (told.st_dev, told.st_ino, 0xac8));
        assert_eq!(word(24) & 0xffff_ffff, u64::from(told.st_mode));
        assert_eq!(
            (word(72), word(104)),
            (told.st_atime.cast_unsigned(), told.st_ctime.cast_unsigned())
        );

        let bytes = status.bytes(Form::Statx);
        assert_eq!(bytes.len(), size_of::<libc::statx>());
        let half = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!((half(128), half(132), half(0)), (10, 200, 0x7ff));
        assert_eq!(status.bytes(Form::Stat64).len(), 96);
    }

    #[test]
    fn what_is_not_there_is_a_device_for_all() {
        let status = Status::at(Path::new("/nowhere/tun"));
        assert_eq!((status.mode, status.uid), (libc::S_IFCHR | 0o666, 0));
    }
}
