//! What memtun has in one network namespace: rtnetlink, and the links it watches there.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    LinkId,
    network::{Monitor, News, Requests},
};
use crate::{abi::rtnetlink::Message, netns::Network};

/// One namespace. It is there as long as a link is.
#[derive(Debug)]
pub(super) struct Namespace {
    pub(super) network: Arc<Network>,
    pub(super) requests: Requests,
    monitor: Monitor,
    /// Whether news was lost. Locked while news is read and acted upon, so that it is acted upon in its order.
    lost: Mutex<bool>,
    members: Mutex<BTreeMap<u32, LinkId>>,
}

/// What has become of a link.
#[derive(Debug)]
pub(super) enum Change {
    /// It may have changed.
    Changed,
    /// It is not in this namespace any more.
    Left,
}

impl Namespace {
    pub(super) fn open(network: Arc<Network>) -> io::Result<Self> {
        let (requests, monitor) = network.run(|| Ok((Requests::open()?, Monitor::open()?)))?;
        Ok(Self { network, requests, monitor, lost: Mutex::default(), members: Mutex::default() })
    }

    pub(super) fn monitor(&self) -> &Monitor {
        &self.monitor
    }

    /// From now on there is news about a link.
    pub(super) fn enter(&self, index: u32, link: LinkId) {
        self.members().insert(index, link);
    }

    /// From now on there is none.
    pub(super) fn leave(&self, index: u32, link: LinkId) {
        let mut members = self.members();
        if members.get(&index) == Some(&link) {
            members.remove(&index);
        }
    }

    /// Reads the news that has come, and tells what became of each link.
    pub(super) fn read_news(&self, mut tell: impl FnMut(LinkId, Change)) {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        self.monitor.read(&mut lost, |news| match news {
            News::Message(Message::Link(link)) => {
                let member = self.members().get(&link.index).copied();
                if let Some(member) = member {
                    tell(member, Change::Changed);
                }
            }
            News::Message(Message::Gone { index }) => {
                let member = self.members().remove(&index);
                if let Some(member) = member {
                    tell(member, Change::Left);
                }
            }
            News::Lost => self.look_at_all(&mut tell),
            News::Message(Message::Ended(_) | Message::Other) => {}
        });
    }

    fn look_at_all(&self, tell: &mut impl FnMut(LinkId, Change)) {
        let members = self.members().clone();
        for (index, member) in members {
            if self.requests.link(index) == Err(nix::errno::Errno::ENODEV) {
                self.leave(index, member);
                tell(member, Change::Left);
            } else {
                tell(member, Change::Changed);
            }
        }
    }

    fn members(&self) -> MutexGuard<'_, BTreeMap<u32, LinkId>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
