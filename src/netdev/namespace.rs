//! What memtun has in one network namespace: rtnetlink, and the devices it watches there.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::errno::Errno;

use super::rtnetlink::{Monitor, News, Requests};
use crate::{
    abi::rtnetlink::Message,
    core::{Charge, TunnelId},
    netns::Network,
};

/// One namespace. It is there as long as a device is.
#[derive(Debug)]
pub(super) struct Namespace {
    pub(super) network: Arc<Network>,
    /// The owner's.
    pub(super) requests: Requests,
    /// The makers' and the remover's, who may wait for the kernel.
    pub(super) slow_requests: Requests,
    monitor: Monitor,
    /// News has been read, and perhaps not been told.
    telling: AtomicBool,
    /// The owner's alone.
    watched: Mutex<Watched>,
    /// In the share of the user whose device was the first here.
    _charge: Charge,
}

#[derive(Debug, Default)]
struct Watched {
    /// By index.
    devices: BTreeMap<u32, TunnelId>,
    /// News was lost.
    lost: bool,
}

/// What has become of devices.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// They may have changed.
    pub(super) changed: BTreeSet<TunnelId>,
    /// They are not in this namespace any more.
    pub(super) left: BTreeSet<TunnelId>,
}

impl Namespace {
    /// File descriptors that it takes: the namespace, which may have no other file open, and three sockets, the monitor's twice.
    pub(super) const DESCRIPTORS: usize = 5;

    pub(super) fn open(network: Arc<Network>, charge: Charge) -> io::Result<Self> {
        let open = || Ok((Requests::open()?, Requests::open()?, Monitor::open()?));
        let (requests, slow_requests, monitor) = network.run(open)?;
        let (telling, watched) = (AtomicBool::default(), Mutex::default());
        Ok(Self { network, requests, slow_requests, monitor, telling, watched, _charge: charge })
    }

    pub(super) fn monitor(&self) -> &Monitor {
        &self.monitor
    }

    /// From now on there is news about a device.
    pub(super) fn enter(&self, index: u32, tunnel: TunnelId) {
        self.watched().devices.insert(index, tunnel);
    }

    /// From now on there is none.
    pub(super) fn leave(&self, index: u32, tunnel: TunnelId) {
        let mut watched = self.watched();
        if watched.devices.get(&index) == Some(&tunnel) {
            watched.devices.remove(&index);
        }
    }

    /// Whether something has happened that the listener may not have been told of. What happened before this is called is news that
    /// can be read, or was read by the owner, who says so before it reads and after it has told.
    pub(super) fn has_news(&self) -> bool {
        self.monitor.is_readable() || self.telling.load(Ordering::SeqCst)
    }

    /// For the owner: reads the news that has come, and has it told.
    pub(super) fn read_news(&self, tell: impl FnOnce(Changes)) {
        self.telling.store(true, Ordering::SeqCst);
        let changes = self.changes();
        tell(changes);
        self.telling.store(false, Ordering::SeqCst);
    }

    fn changes(&self) -> Changes {
        let mut changes = Changes::default();
        let mut watched = self.watched();
        let Watched { devices, lost } = &mut *watched;
        let mut look_at_all = false;
        self.monitor.read(lost, |news| match news {
            News::Message(Message::Link(link)) => changes.changed.extend(devices.get(&link.index)),
            News::Message(Message::Gone { index }) => changes.left.extend(devices.remove(&index)),
            News::Lost => look_at_all = true,
            News::Message(Message::Ended(_) | Message::Other) => {}
        });
        if look_at_all {
            let is_gone = |index: &u32| self.requests.link(*index) == Err(Errno::ENODEV);
            changes
                .left
                .extend(devices.extract_if(.., |index, _| is_gone(index)).map(|(_, it)| it));
            changes.changed.extend(devices.values());
        }
        changes
    }

    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
