//! What stands before a datagram that a client reads.

use crate::abi::{tun::TunPi, virtio_net::VnetHeader};

/// The headers before a datagram that is read, held inline: PI, then vnet.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    bytes: [u8; Self::ROOM],
    length: u8,
}

impl Head {
    /// PI header, and the longest vnet header of which something is known.
    pub const ROOM: usize = TunPi::SIZE + VnetHeader::TUNNEL_SIZE;

    /// Appends bytes; false, and nothing appended, if they do not fit.
    #[must_use]
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        let start = usize::from(self.length);
        let Some(room) = self.bytes.get_mut(start..start + bytes.len()) else { return false };
        room.copy_from_slice(bytes);
        self.length = u8::try_from(start + bytes.len()).unwrap_or(u8::MAX);
        true
    }

    /// The headers.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

#[cfg(feature = "log")]
impl serde::Serialize for Head {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        crate::serial::serialize(self.as_bytes(), to)
    }
}

#[cfg(feature = "log")]
impl<'de> serde::Deserialize<'de> for Head {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let (bytes, mut head) = (<&[u8]>::deserialize(from)?, Self::default());
        let fits = head.push(bytes);
        fits.then_some(head)
            .ok_or_else(|| serde::de::Error::invalid_length(bytes.len(), &"headers"))
    }
}

impl core::fmt::Debug for Head {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.as_bytes().fmt(f)
    }
}
