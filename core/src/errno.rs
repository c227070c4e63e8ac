//! Error numbers as a client sees them: plain data, no `libc`.
//!
//! Names and numbers are those of `include/uapi/asm-generic/errno-base.h` and `errno.h`. They hold on every
//! architecture Rust has a Linux target for, except MIPS and SPARC, where memtun does not build.

use core::fmt;

#[cfg(any(target_arch = "mips", target_arch = "mips64", target_arch = "sparc64"))]
compile_error!("the error numbers of this architecture differ from asm-generic/errno.h");

/// An error number of the kernel's user interface, such as [`Errno::EAGAIN`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "log", derive(serde::Deserialize))]
pub struct Errno(i32);

impl Errno {
    /// The number, always positive.
    #[must_use]
    pub const fn number(self) -> i32 {
        self.0
    }

    /// An error that the kernel gave to memtun itself, passed on.
    #[must_use]
    pub const fn from_number(number: i32) -> Self {
        Self(number)
    }

    /// The symbolic name, such as `"EAGAIN"`; `"E?"` for a number memtun never answers with.
    #[must_use]
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(number, _)| *number == self.0).map_or("E?", |(_, name)| name)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name(), self.0)
    }
}

#[cfg(feature = "log")]
impl serde::Serialize for Errno {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if to.is_human_readable() {
            return to.collect_str(self);
        }
        to.serialize_newtype_struct("Errno", &self.0)
    }
}

impl core::error::Error for Errno {}

macro_rules! errnos {
    ($($(#[doc = $doc:literal])* $name:ident = $number:literal;)*) => {
        impl Errno {
            $($(#[doc = $doc])* pub const $name: Self = Self($number);)*
        }
        const NAMES: &[(i32, &str)] = &[$(($number, stringify!($name)),)*];
    };
}

errnos! {
    /// Operation not permitted.
    EPERM = 1;
    /// Interrupted system call.
    EINTR = 4;
    /// Input/output error: on tun, a write while the interface is down.
    EIO = 5;
    /// Argument list too long: on tun, too many queues.
    E2BIG = 7;
    /// Bad file descriptor.
    EBADF = 9;
    /// Try again.
    EAGAIN = 11;
    /// Out of memory.
    ENOMEM = 12;
    /// Permission denied.
    EACCES = 13;
    /// Bad address.
    EFAULT = 14;
    /// Device or resource busy.
    EBUSY = 16;
    /// File exists: on tun, TUNSETIFF on a file that is attached.
    EEXIST = 17;
    /// No such device.
    ENODEV = 19;
    /// Invalid argument.
    EINVAL = 22;
    /// File table overflow.
    ENFILE = 23;
    /// Too many open files: of one user.
    EMFILE = 24;
    /// Inappropriate ioctl for device.
    ENOTTY = 25;
    /// Illegal seek.
    ESPIPE = 29;
    /// File descriptor in bad state: on tun, not attached.
    EBADFD = 77;
    /// Message too long.
    EMSGSIZE = 90;
    /// Operation not supported on transport endpoint.
    EOPNOTSUPP = 95;
    /// Cannot assign requested address.
    EADDRNOTAVAIL = 99;
    /// No buffer space available.
    ENOBUFS = 105;
}

#[cfg(test)]
mod tests {
    use alloc::{format, string::ToString};

    use super::*;

    #[test]
    fn names_and_numbers_agree_with_libc() {
        for (number, name) in NAMES {
            let ours = nix::errno::Errno::from_raw(*number);
            assert_eq!(format!("{ours:?}"), *name);
        }
    }

    #[test]
    fn shows_the_name() {
        assert_eq!(Errno::EBADFD.to_string(), "EBADFD");
        assert_eq!(format!("{:?}", Errno::EBADFD), "EBADFD(77)");
    }
}
