//! What depends on the machine: the numbers of system calls, and how arguments lie in registers.
//!
//! Follows `linux/audit.h` and the kernel's tables (`syscall_64.tbl`, `syscall_32.tbl`, `unistd.h` of the architectures that share one).
//! Those of arm64 are written down after the kernel's headers; no test has run there.

/// A system call that is looked at, whatever its number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Read,
    Write,
    Readv,
    Writev,
    Pread,
    Pwrite,
    Preadv,
    Pwritev,
    Preadv2,
    Pwritev2,
    Ioctl,
    Fcntl,
    Close,
    CloseRange,
    Dup,
    Dup2,
    Dup3,
    Open,
    Openat,
    Openat2,
    Creat,
    /// With the `struct stat` of this machine's own programs.
    Fstat,
    Stat,
    Lstat,
    /// `newfstatat`, `fstatat64`.
    Fstatat,
    /// With the `struct stat64` of 32-bit programs.
    Fstat64,
    Stat64,
    Lstat64,
    Fstatat64,
    Statx,
    Access,
    Faccessat,
    Faccessat2,
    Readlink,
    Readlinkat,
    Fallocate,
    Splice,
    Tee,
    Vmsplice,
    Sendfile,
    CopyFileRange,
    IoUringSetup,
}

/// One kind of programs.
pub(super) struct Abi {
    /// `AUDIT_ARCH_*`.
    pub(super) arch: u32,
    /// Its programs have 32 bits.
    pub(super) is_compat: bool,
    /// The calls it has, the most frequent first.
    pub(super) calls: &'static [(Call, u32)],
}

impl Abi {
    pub(super) fn of(arch: u32) -> Option<&'static Self> {
        ABIS.iter().find(|abi| abi.arch == arch)
    }

    pub(super) fn call(&self, number: i32) -> Option<Call> {
        let number = u32::try_from(number).ok()?;
        self.calls.iter().find(|(_, of)| *of == number).map(|(call, _)| *call)
    }

    /// A 64-bit offset: 32-bit programs pass it in two registers.
    pub(super) fn offset(&self, args: &[u64; 6]) -> i64 {
        let offset = if self.is_compat { args[3] & 0xffff_ffff | args[4] << 32 } else { args[3] };
        offset.cast_signed()
    }

    /// The flags behind such an offset.
    pub(super) fn flags_after_offset(&self, args: &[u64; 6]) -> u64 {
        // 64-bit programs pass a high half that is not looked at.
        args[5]
    }
}

/// The kinds of programs that this machine runs. Those of x32 have numbers of their own, which are not looked at.
#[cfg(target_arch = "x86_64")]
pub(super) const ABIS: &[Abi] = &[
    Abi { arch: 0xc000_003e, is_compat: false, calls: X86_64 },
    Abi { arch: 0x4000_0003, is_compat: true, calls: I386 },
];
#[cfg(target_arch = "aarch64")]
pub(super) const ABIS: &[Abi] = &[Abi { arch: 0xc000_00b7, is_compat: false, calls: AARCH64 }];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(super) const ABIS: &[Abi] = &[];

#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const X86_64: &[(Call, u32)] = {
    use Call::*;
    &[
        (Read, 0), (Write, 1), (Close, 3), (Openat, 257), (Ioctl, 16), (Fstatat, 262), (Fstat, 5), (Readv, 19), (Writev, 20),
        (Fcntl, 72), (Pread, 17), (Pwrite, 18), (Preadv, 295), (Pwritev, 296), (Preadv2, 327), (Pwritev2, 328), (CloseRange, 436),
        (Dup, 32), (Dup2, 33), (Dup3, 292), (Open, 2), (Openat2, 437), (Creat, 85), (Stat, 4), (Lstat, 6), (Statx, 332),
        (Access, 21), (Faccessat, 269), (Faccessat2, 439), (Readlink, 89), (Readlinkat, 267), (Fallocate, 285), (Splice, 275),
        (Tee, 276), (Vmsplice, 278), (Sendfile, 40), (CopyFileRange, 326), (IoUringSetup, 425),
    ]
};

#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const I386: &[(Call, u32)] = {
    use Call::*;
    &[
        (Read, 3), (Write, 4), (Close, 6), (Openat, 295), (Ioctl, 54), (Fstatat64, 300), (Fstat64, 197), (Readv, 145), (Writev, 146),
        (Fcntl, 55), (Fcntl, 221), (Pread, 180), (Pwrite, 181), (Preadv, 333), (Pwritev, 334), (Preadv2, 378), (Pwritev2, 379),
        (CloseRange, 436), (Dup, 41), (Dup2, 63), (Dup3, 330), (Open, 5), (Openat2, 437), (Creat, 8), (Stat64, 195), (Lstat64, 196),
        (Statx, 383), (Access, 33), (Faccessat, 307), (Faccessat2, 439), (Readlink, 85), (Readlinkat, 305), (Fallocate, 324),
        (Splice, 313), (Tee, 315), (Vmsplice, 316), (Sendfile, 187), (Sendfile, 239), (CopyFileRange, 377), (IoUringSetup, 425),
    ]
};

#[cfg(target_arch = "aarch64")]
#[rustfmt::skip]
const AARCH64: &[(Call, u32)] = {
    use Call::*;
    &[
        (Read, 63), (Write, 64), (Close, 57), (Openat, 56), (Ioctl, 29), (Fstatat, 79), (Fstat, 80), (Readv, 65), (Writev, 66),
        (Fcntl, 25), (Pread, 67), (Pwrite, 68), (Preadv, 69), (Pwritev, 70), (Preadv2, 286), (Pwritev2, 287), (CloseRange, 436),
        (Dup, 23), (Dup3, 24), (Openat2, 437), (Statx, 291), (Faccessat, 48), (Faccessat2, 439), (Readlinkat, 78), (Fallocate, 47),
        (Splice, 76), (Tee, 77), (Vmsplice, 75), (Sendfile, 71), (CopyFileRange, 285), (IoUringSetup, 425),
    ]
};

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use nix::libc;

    use super::*;

    #[test]
    fn numbers_are_those_of_the_c_library() {
        let abi = Abi::of(0xc000_003e).unwrap();
        for (number, call) in [
            (libc::SYS_read, Call::Read),
            (libc::SYS_newfstatat, Call::Fstatat),
            (libc::SYS_statx, Call::Statx),
            (libc::SYS_close_range, Call::CloseRange),
            (libc::SYS_openat2, Call::Openat2),
            (libc::SYS_faccessat2, Call::Faccessat2),
            (libc::SYS_preadv2, Call::Preadv2),
            (libc::SYS_pwritev2, Call::Pwritev2),
            (libc::SYS_copy_file_range, Call::CopyFileRange),
            (libc::SYS_io_uring_setup, Call::IoUringSetup),
            (libc::SYS_splice, Call::Splice),
            (libc::SYS_fallocate, Call::Fallocate),
        ] {
            assert_eq!(abi.call(i32::try_from(number).unwrap()), Some(call));
        }
        assert_eq!(abi.call(-1), None);
        assert!(Abi::of(0x4000_0003).unwrap().is_compat && Abi::of(7).is_none());
    }

    #[test]
    fn offsets_of_32_bit_programs_come_in_two_halves() {
        let args = [0, 0, 0, 0xffff_fffe, 1, 0];
        assert_eq!(Abi::of(0x4000_0003).unwrap().offset(&args), 0x1_ffff_fffe);
        assert_eq!(Abi::of(0xc000_003e).unwrap().offset(&args), 0xffff_fffe);
    }
}
