//! A datagram inside the core: its bytes, and what the headers before them said.

use bytes::Bytes;

use crate::abi::virtio_net::VnetHeader;

/// The payload of one `read` or `write`, in either mode.
///
/// It is moved at each step of its way, so it is kept small.
#[derive(Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "log", serde(from = "Stored", into = "Stored"))]
pub struct Datagram {
    /// The bytes: an IP datagram in tun mode, a frame in tap mode; or whatever was written.
    pub payload: Bytes,
    /// 0 if there was none.
    protocol: u16,
    /// Two bits of `gso_type` that no type uses say whether there was a protocol, and a vnet header.
    vnet: VnetHeader,
}

const _: () = assert!(size_of::<Datagram>() == size_of::<Bytes>() + 16);

const HAS_PROTOCOL: u8 = 0x08;
const HAS_VNET: u8 = 0x10;
/// A type that no kernel knows stands for all those that have the bits above.
const UNKNOWN_TYPE: u8 = 0x07;

impl Datagram {
    /// From a client: the protocol its PI header named. To a client it is found in the payload.
    #[must_use]
    pub fn protocol(&self) -> Option<u16> {
        (self.vnet.gso_type & HAS_PROTOCOL != 0).then_some(self.protocol)
    }

    /// What is left to be done to it: from a client, its vnet header.
    #[must_use]
    pub fn vnet(&self) -> Option<VnetHeader> {
        let gso_type = self.vnet.gso_type & !(HAS_PROTOCOL | HAS_VNET);
        self.has_vnet().then_some(VnetHeader { gso_type, ..self.vnet })
    }

    /// There is a vnet header.
    #[must_use]
    pub(crate) fn has_vnet(&self) -> bool {
        self.vnet.gso_type & HAS_VNET != 0
    }

    /// With a vnet header, or without.
    #[must_use]
    pub fn with_vnet(mut self, vnet: Option<VnetHeader>) -> Self {
        let has_protocol = self.vnet.gso_type & HAS_PROTOCOL;
        self.vnet = VnetHeader { gso_type: has_protocol, ..VnetHeader::default() };
        if let Some(vnet) = vnet {
            self.set_vnet(vnet);
        }
        self
    }

    /// With other bytes.
    #[must_use]
    pub fn with_payload(mut self, payload: Bytes) -> Self {
        self.payload = payload;
        self
    }

    pub(super) fn set_protocol(&mut self, protocol: u16) {
        self.protocol = protocol;
        self.vnet.gso_type |= HAS_PROTOCOL;
    }

    pub(super) fn set_vnet(&mut self, vnet: VnetHeader) {
        let mut vnet = vnet.normalized();
        if vnet.gso_type & (HAS_PROTOCOL | HAS_VNET) != 0 {
            vnet.gso_type = UNKNOWN_TYPE;
        }
        vnet.gso_type |= self.vnet.gso_type & HAS_PROTOCOL | HAS_VNET;
        self.vnet = vnet;
    }
}

impl From<Bytes> for Datagram {
    fn from(payload: Bytes) -> Self {
        Self { payload, ..Self::default() }
    }
}

/// As it is in a log.
#[cfg(feature = "log")]
#[derive(serde::Serialize, serde::Deserialize)]
struct Stored {
    #[serde(with = "crate::serial")]
    payload: Bytes,
    protocol: Option<u16>,
    vnet: Option<VnetHeader>,
}

#[cfg(feature = "log")]
impl From<Datagram> for Stored {
    fn from(datagram: Datagram) -> Self {
        let (protocol, vnet) = (datagram.protocol(), datagram.vnet());
        Self { payload: datagram.payload, protocol, vnet }
    }
}

#[cfg(feature = "log")]
impl From<Stored> for Datagram {
    fn from(Stored { payload, protocol, vnet }: Stored) -> Self {
        let mut datagram = Self::from(payload).with_vnet(vnet);
        if let Some(protocol) = protocol {
            datagram.set_protocol(protocol);
        }
        datagram
    }
}

impl core::fmt::Debug for Datagram {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Datagram")
            .field("payload", &self.payload)
            .field("protocol", &self.protocol())
            .field("vnet", &self.vnet())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datagram::offload::check;

    #[test]
    fn headers_come_back_as_they_were_given_and_no_bad_one_becomes_good() {
        let payload = Bytes::from_static(&[0x45; 100]);
        for protocol in [None, Some(0), Some(0x800)] {
            for gso_type in 0..=u8::MAX {
                let vnet = VnetHeader {
                    flags: 0xff,
                    gso_type,
                    gso_size: 9.into(),
                    ..VnetHeader::default()
                };
                for vnet in [None, Some(vnet)] {
                    let [mut one, mut other] = [(); 2].map(|()| Datagram::from(payload.clone()));
                    protocol.into_iter().for_each(|protocol| one.set_protocol(protocol));
                    one = one.with_vnet(vnet);
                    other = other.with_vnet(vnet);
                    protocol.into_iter().for_each(|protocol| other.set_protocol(protocol));
                    assert_eq!(one, other);
                    assert_eq!((one.protocol(), one.has_vnet()), (protocol, vnet.is_some()));
                    let Some((given, got)) = vnet.zip(one.vnet()) else { continue };
                    let is_kept = given == got;
                    let are_bad = || [given, got].iter().all(|it| check(it, &payload).is_err());
                    assert!(is_kept || are_bad(), "{given:?} became {got:?}");
                }
            }
        }
    }
}
