//! The queues of each device. The thread that has a client's call looks them up here; only the owner changes them.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, PoisonError, RwLock},
};

use nix::sys::epoll::{Epoll, EpollCreateFlags};

use super::{
    Kind, Listener,
    namespace::Namespace,
    queue::{Queue, Stop},
};
use crate::core::{FileId, Look, Sent, TunnelId};

/// What is where.
pub(super) struct Table {
    entries: RwLock<BTreeMap<TunnelId, Arc<Entry>>>,
    /// The owner's, to be told again of a queue that was not emptied.
    pub(super) epoll: Epoll,
}

/// What others need to know of a device.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) namespace: Arc<Namespace>,
    pub(super) queues: BTreeMap<FileId, Arc<Queue>>,
}

/// How many times a queue is read for one call, a turn of 64 datagrams each: a queue of the longest default is then empty.
const MAX_ROUNDS: usize = 64;

impl Table {
    pub(super) fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { entries: RwLock::default(), epoll })
    }

    pub(super) fn find(&self, tunnel: TunnelId) -> Option<Arc<Entry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).get(&tunnel).cloned()
    }

    pub(super) fn queue(&self, tunnel: TunnelId, file: FileId) -> Option<Arc<Queue>> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries.get(&tunnel)?.queues.get(&file).cloned()
    }

    /// For the owner: how a device is from now on; `None`: it is gone.
    pub(super) fn set(&self, tunnel: TunnelId, entry: Option<Entry>) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        match entry {
            Some(entry) => entries.insert(tunnel, Arc::new(entry)),
            None => entries.remove(&tunnel),
        };
    }

    /// Gives a listener what the kernel has sent, as far as that is looked for. True: the device was deleted.
    pub(super) fn receive(&self, look: Look, listener: &dyn Listener) -> bool {
        let tunnel = look.tunnel;
        match look.sent {
            Sent::Nothing => false,
            Sent::To(file) => {
                let Some(queue) = self.queue(tunnel, file) else { return false };
                match queue.receive(|datagram| listener.take(tunnel, file, datagram)) {
                    Stop::Done => false,
                    Stop::Others => {
                        queue.watch_again(&self.epoll);
                        false
                    }
                    Stop::Gone => true,
                }
            }
            Sent::All => {
                let Some(entry) = self.find(tunnel) else { return false };
                entry.queues.iter().any(|(file, queue)| {
                    // What was sent before the call is in the driver's queue. More may come all the time, which is not for it.
                    for _ in 0..MAX_ROUNDS {
                        let stop = queue.receive(|datagram| {
                            let _wanted = listener.take(tunnel, *file, datagram);
                            true
                        });
                        if stop != Stop::Others {
                            return stop == Stop::Gone;
                        }
                    }
                    queue.watch_again(&self.epoll);
                    false
                })
            }
        }
    }
}
