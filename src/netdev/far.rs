//! The other end of a `veth` that takes the place of a tun device. Its network namespace belongs to memtun alone. So the kernel removes
//! both ends when memtun ends, in whatever way.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use nix::errno::Errno;

use super::rtnetlink::Requests;
use crate::{
    abi::rtnetlink::{self, Request, attribute},
    core::Charge,
    netns::Network,
};

const NAME: &str = "far";

/// A namespace for one other end, and perhaps that.
#[derive(Debug)]
pub(super) struct Far {
    network: Network,
    requests: Requests,
    _charge: Charge,
}

impl Far {
    /// File descriptors that it takes.
    pub(super) const DESCRIPTORS: usize = 2;

    /// An empty one.
    pub(super) fn open(charge: Charge) -> io::Result<Self> {
        let network = Network::make()?;
        let requests = network.run(Requests::open)?;
        Ok(Self { network, requests, _charge: charge })
    }

    /// Makes a request for a link one for a `veth`, with its other end here.
    pub(super) fn with_end(&self, request: Request) -> Request {
        request.veth(NAME, self.network.as_fd().as_raw_fd())
    }

    /// Up, it gives the link a carrier.
    pub(super) fn set_up(&self, up: bool) -> Result<(), Errno> {
        let request = Request::new(rtnetlink::NEWLINK, rtnetlink::ACK, 0);
        let name = [NAME.as_bytes(), b"\0"].concat();
        self.requests.change(request.attribute(attribute::NAME, &name).flags(rtnetlink::IFF_UP, up))
    }
}
