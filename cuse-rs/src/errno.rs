//! Error numbers as clients see them. A type of this crate, so that no other crate's version is part of its interface.

use std::{fmt, io};

use nix::libc;

/// The error of a request: what the client finds in `errno`.
///
/// Its number is in 1..=511, which is what the kernel takes from a server (`fuse_dev_do_write`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Errno(i32);

impl Errno {
    /// The highest number that the kernel takes.
    const MAX: i32 = 511;

    /// The error of this number. A number that the kernel would not take becomes [`EIO`](Self::EIO).
    #[must_use]
    pub const fn from_number(number: i32) -> Self {
        if number >= 1 && number <= Self::MAX { Self(number) } else { Self::EIO }
    }

    /// Its number, such as 5 for EIO.
    #[must_use]
    pub const fn number(self) -> i32 {
        self.0
    }

    /// What it means, such as `Permission denied`.
    #[must_use]
    pub fn description(self) -> &'static str {
        nix::errno::Errno::from_raw(self.0).desc()
    }

    pub(crate) fn of(errno: nix::errno::Errno) -> Self {
        Self::from_number(errno as i32)
    }

    pub(crate) fn of_io(error: &io::Error) -> Self {
        error.raw_os_error().map_or(Self::EIO, Self::from_number)
    }
}

/// Such as `EACCES: Permission denied`.
impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}: {}", self.description())
    }
}

/// Its name, such as `EACCES`.
impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errno = nix::errno::Errno::from_raw(self.0);
        if errno == nix::errno::Errno::UnknownErrno {
            write!(f, "E{}", self.0)
        } else {
            fmt::Debug::fmt(&errno, f)
        }
    }
}

impl std::error::Error for Errno {}

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> Self {
        Self::from_raw_os_error(errno.0)
    }
}

macro_rules! errnos {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// The errors that devices answer with. [`from_number`](Self::from_number) makes any other.
        impl Errno {
            $($(#[doc = $doc])* pub const $name: Self = Self(libc::$name);)*
        }
        #[cfg(test)]
        const ALL: &[(Errno, &str)] = &[$((Errno::$name, stringify!($name)),)*];
    };
}

errnos! {
    /// Operation not permitted.
    EPERM,
    /// No such file or directory.
    ENOENT,
    /// No such process.
    ESRCH,
    /// A signal came first.
    EINTR,
    /// Input or output error.
    EIO,
    /// No such device or address.
    ENXIO,
    /// Argument list too long.
    E2BIG,
    /// Bad file descriptor.
    EBADF,
    /// Try again: the call would have to wait.
    EAGAIN,
    /// Out of memory.
    ENOMEM,
    /// Permission denied.
    EACCES,
    /// Bad address.
    EFAULT,
    /// Device or resource busy.
    EBUSY,
    /// It exists.
    EEXIST,
    /// No such device.
    ENODEV,
    /// It is a folder.
    EISDIR,
    /// Invalid argument.
    EINVAL,
    /// All have too many files open.
    ENFILE,
    /// The process, or the user, has too many files open.
    EMFILE,
    /// The device does not know this ioctl.
    ENOTTY,
    /// Too large.
    EFBIG,
    /// No space left.
    ENOSPC,
    /// It cannot be sought in.
    ESPIPE,
    /// Read-only.
    EROFS,
    /// Nobody reads any more.
    EPIPE,
    /// Out of the domain of the function.
    EDOM,
    /// Out of range.
    ERANGE,
    /// There is no such call.
    ENOSYS,
    /// Too many symbolic links.
    ELOOP,
    /// No data is available.
    ENODATA,
    /// The time is over.
    ETIME,
    /// Communication failed.
    ECOMM,
    /// Protocol error.
    EPROTO,
    /// Not a message.
    EBADMSG,
    /// The value does not fit.
    EOVERFLOW,
    /// The file descriptor is in a bad state.
    EBADFD,
    /// Message too long.
    EMSGSIZE,
    /// Not supported.
    EOPNOTSUPP,
    /// The address is in use.
    EADDRINUSE,
    /// The address is not available.
    EADDRNOTAVAIL,
    /// The network is down.
    ENETDOWN,
    /// The connection was ended from this side.
    ECONNABORTED,
    /// The connection was ended from the other side.
    ECONNRESET,
    /// No buffer space.
    ENOBUFS,
    /// It is not connected.
    ENOTCONN,
    /// It was shut down.
    ESHUTDOWN,
    /// It took too long.
    ETIMEDOUT,
    /// The other end refuses.
    ECONNREFUSED,
    /// It is under way already.
    EALREADY,
    /// It is under way.
    EINPROGRESS,
    /// The remote device failed.
    EREMOTEIO,
    /// It was given up.
    ECANCELED,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_those_of_the_system() {
        for (errno, name) in ALL {
            assert_eq!(format!("{errno:?}"), *name);
            assert_eq!(Errno::from_number(errno.number()), *errno);
            assert_eq!(io::Error::from(*errno).raw_os_error(), Some(errno.number()));
            assert_ne!(errno.description(), Errno(510).description(), "it is known");
        }
        assert_eq!(Errno::EACCES.to_string(), "EACCES: Permission denied");
    }

    #[test]
    fn no_number_is_one_that_the_kernel_does_not_take() {
        for number in [0, -5, 512, i32::MAX, i32::MIN] {
            assert_eq!(Errno::from_number(number), Errno::EIO);
        }
        assert_eq!(Errno::from_number(511).number(), 511);
        assert_eq!(format!("{:?}", Errno::from_number(511)), "E511");
    }
}
