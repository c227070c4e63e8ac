//! Deletes devices and closes queues, in a thread of its own.
//!
//! Each of these takes the kernel an RCU grace period of about 20 ms. But one request of rtnetlink can delete all devices of a *group*, a
//! number that each device has. So the devices that have to go get a group number that no other device has.

use std::{
    sync::{Arc, mpsc},
    thread,
};

use nix::errno::Errno;
use tracing::debug;

use super::{Sender, namespace::Namespace, owner::Message, queue::Queue};
use crate::{
    abi::rtnetlink::{self, Request, attribute},
    core::TunnelId,
};

/// Devices that go at a time: so many hold up whoever else wants a device changed not much longer than one does.
const AT_ONCE: usize = 64;

/// What is to be removed.
pub(super) struct Removal {
    pub(super) tunnel: TunnelId,
    /// The device, if it is to be deleted. Else it goes with its last queue, or stays.
    pub(super) device: Option<(Arc<Namespace>, u32)>,
    pub(super) queues: Vec<Arc<Queue>>,
}

/// The remover.
pub(super) struct Remover(mpsc::Sender<Removal>);

impl Remover {
    pub(super) fn start(owner: Sender) -> std::io::Result<Self> {
        let (send, removals) = mpsc::channel();
        thread::Builder::new().name("netdev-remove".to_owned()).spawn(move || {
            while let Ok(first) = removals.recv() {
                let more = removals.try_iter().take(AT_ONCE - 1);
                let removals: Vec<Removal> = std::iter::once(first).chain(more).collect();
                delete(&removals);
                for Removal { tunnel, queues, .. } in removals {
                    // If the device is gone this takes no time.
                    queues.iter().for_each(|queue| queue.close());
                    owner.send(Message::Removed(tunnel));
                }
            }
        })?;
        Ok(Self(send))
    }

    pub(super) fn remove(&self, removal: Removal) {
        // The thread ends with the owner.
        let _ended = self.0.send(removal);
    }
}

fn delete(removals: &[Removal]) {
    let mut devices: Vec<_> =
        removals.iter().filter_map(|removal| removal.device.as_ref()).collect();
    devices.sort_by_key(|(namespace, _)| namespace.network.inode());
    let of_one = |a: &&(Arc<Namespace>, u32), b: &&(Arc<Namespace>, u32)| Arc::ptr_eq(&a.0, &b.0);
    for together in devices.chunk_by(of_one) {
        let namespace = &together[0].0;
        let indices: Vec<u32> = together.iter().map(|(_, index)| *index).collect();
        if indices.len() == 1 || delete_as_group(namespace, &indices).is_err() {
            indices.into_iter().for_each(|index| delete_one(namespace, index));
        }
    }
}

fn delete_as_group(namespace: &Namespace, indices: &[u32]) -> Result<(), Errno> {
    let group = fastrand::u32(1 << 31..).to_ne_bytes();
    for index in indices {
        let request = Request::new(rtnetlink::NEWLINK, rtnetlink::ACK, *index);
        match namespace.slow_requests.change(request.attribute(attribute::GROUP, &group)) {
            // Somebody was faster.
            Ok(()) | Err(Errno::ENODEV) => {}
            Err(errno) => return Err(errno),
        }
    }
    let request = Request::new(rtnetlink::DELLINK, rtnetlink::ACK, 0);
    match namespace.slow_requests.change(request.attribute(attribute::GROUP, &group)) {
        // None is left.
        Ok(()) | Err(Errno::ENODEV) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn delete_one(namespace: &Namespace, index: u32) {
    match namespace.slow_requests.change(Request::new(rtnetlink::DELLINK, rtnetlink::ACK, index)) {
        Ok(()) | Err(Errno::ENODEV) => {}
        Err(errno) => {
            debug!(index, %errno, "deleting a device failed: it goes with its last queue")
        }
    }
}
