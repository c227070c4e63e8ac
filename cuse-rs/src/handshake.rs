//! The first message of a channel: what the two handshakes have in common.

use std::io::IoSliceMut;

use crate::abi::{self, Opcode};
use crate::channel::{Channel, ServeError};
use crate::codec::{self, DecodeError, Message};
use crate::errno::Errno;

/// Why the handshake, CUSE_INIT of a device or INIT of a file, failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The first message could not be read.
    #[error(transparent)]
    Read(#[from] ServeError),
    /// The channel ended before its first message.
    #[error("the channel ended before its first message")]
    Ended,
    /// The first message makes no sense.
    #[error("malformed first message: {0}")]
    Malformed(#[from] DecodeError),
    /// The first message is another one: the handshake was done before, or this is not the kernel's channel.
    #[error("the first message is {opcode:?}, not {wanted:?}")]
    NotInit {
        /// What it is.
        opcode: Opcode,
        /// What it should be.
        wanted: Opcode,
    },
    /// The kernel speaks a version that is too old, or one that is not known.
    #[error(
        "the kernel speaks FUSE protocol {major}.{minor}; {}.{minimum} or later is needed (Linux {})",
        abi::KERNEL_VERSION,
        linux_of(*minimum)
    )]
    Version {
        /// The kernel's major version.
        major: u32,
        /// The kernel's minor version.
        minor: u32,
        /// The lowest minor version that does.
        minimum: u32,
    },
    /// The reply could not be sent.
    #[error("answering the first message: {}", .errno.description())]
    Reply {
        /// The error of `writev(2)`.
        errno: Errno,
    },
    /// The kernel took the reply and gave the connection up: the name or the number of the device is taken.
    #[error("the kernel refused the device")]
    Refused,
}

/// The first Linux that speaks a minor version.
fn linux_of(minimum: u32) -> &'static str {
    if minimum < abi::MINIMUM_FILE_MINOR_VERSION { "3.10" } else { "5.2" }
}

/// Reads the first message into a buffer.
pub(crate) fn first_message<'a>(
    channel: &Channel,
    buffer: &'a mut [u8],
) -> Result<Message<'a>, HandshakeError> {
    let length =
        channel.receive(&mut [IoSliceMut::new(buffer)], None)?.ok_or(HandshakeError::Ended)?;
    Ok(codec::decode(&buffer[..length])?)
}

/// Checks what the kernel speaks.
pub(crate) fn check_version(major: u32, minor: u32, minimum: u32) -> Result<(), HandshakeError> {
    if major == abi::KERNEL_VERSION && minor >= minimum {
        Ok(())
    } else {
        Err(HandshakeError::Version { major, minor, minimum })
    }
}
