//! What happens to devices without the owner: datagrams, changes, deletions, and moves to another namespace.

use std::{
    fs::File,
    io,
    os::fd::AsFd,
    sync::{Arc, Weak},
};

use nix::{
    errno::Errno,
    sys::epoll::{EpollEvent, EpollFlags, EpollTimeout},
};
use tracing::{debug, warn};

use super::{
    super::{
        News,
        device::Device,
        namespace::{Changes, Namespace},
        share,
    },
    Owner,
};
use crate::{
    abi::tun::IfReq,
    core::{FileId, Look, TunnelId},
    netns::Network,
    planted,
    sys::tun::{self, IfReqCommand},
};

/// Something that can be read.
#[derive(Clone, Copy)]
pub(super) enum Source {
    Queue(TunnelId, FileId),
    Monitor(u64),
    Messages,
}

const EVENTS_AT_ONCE: usize = 64;

impl Owner {
    /// Tells all that has happened, and what queues have got.
    pub(super) fn tell_all_news(&mut self) {
        let namespaces: Vec<_> = self.namespaces.values().filter_map(Weak::upgrade).collect();
        namespaces.iter().for_each(|namespace| self.tell_news(namespace));
        // Epoll gives each its turn.
        for _ in 0..=self.sources.len() / EVENTS_AT_ONCE {
            self.handle_events(EpollTimeout::ZERO);
        }
    }

    /// Tells what is to be known before a client's call goes on.
    pub(super) fn look_for(&mut self, look: Look) {
        if let Some(entry) = self.table.find(look.tunnel) {
            self.tell_news(&entry.namespace);
        }
        if self.table.receive(look, self.listener.as_ref()) {
            self.has_left(look.tunnel);
        }
    }

    pub(super) fn handle_events(&mut self, timeout: EpollTimeout) {
        let mut events = [EpollEvent::empty(); EVENTS_AT_ONCE];
        let count = match self.table.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => {
                warn!(%errno, "waiting for network devices failed, ignoring");
                0
            }
        };
        for event in &events[..count] {
            match self.sources.get(&event.data()) {
                Some(Source::Queue(tunnel, file)) => {
                    self.listener.tell(News::Readable(*tunnel, *file));
                }
                Some(Source::Monitor(inode)) => {
                    planted::panic_at("news");
                    if let Some(namespace) = self.namespace_at(*inode) {
                        self.tell_news(&namespace);
                    }
                }
                // Or one that was closed meanwhile.
                Some(Source::Messages) | None => {}
            }
        }
    }

    pub(super) fn tell_news(&mut self, namespace: &Namespace) {
        namespace.read_news(|Changes { changed, left }| {
            for tunnel in changed {
                // If it is not there any more, that is news to come.
                let _state = self.look_at(tunnel);
            }
            left.into_iter().for_each(|tunnel| self.has_left(tunnel));
        });
    }

    /// Asks the kernel how a device is, and tells the listener if it has changed.
    pub(super) fn look_at(&mut self, tunnel: TunnelId) -> Result<(), Errno> {
        let device = self.devices.get_mut(&tunnel).ok_or(Errno::EBADFD)?;
        let state = device.look()?;
        let before = std::mem::replace(&mut device.state, state);
        if before != state {
            self.listener.tell(News::Changed(tunnel, state));
        }
        Ok(())
    }

    /// A device is not where it was: deleted, or moved to another namespace, where it is followed.
    pub(super) fn has_left(&mut self, tunnel: TunnelId) {
        if !self.devices.contains_key(&tunnel) {
            return;
        }
        if self.follow(tunnel).is_ok() {
            debug!(tunnel = tunnel.0, "a device was moved to another network namespace");
            let _state = self.look_at(tunnel);
            return;
        }
        self.listener.tell(News::Gone(tunnel));
        self.let_go(tunnel);
    }

    fn follow(&mut self, tunnel: TunnelId) -> io::Result<()> {
        let device = self.devices.get(&tunnel).ok_or(Errno::ENODEV)?;
        let before = (device.namespace.network.inode(), device.index);
        let user = Arc::clone(&device.user);
        let (name, network) = device.any_queue().ok_or(Errno::ENODEV)?.with(|file| {
            let attached = tun::with_ifreq(file, IfReqCommand::Attached, &IfReq::zeroed(false))?;
            Ok((attached.name(), tun::network_of(file.as_fd())?))
        })?;
        let network = Arc::new(Network::try_from(File::from(network))?);
        let namespace = match self.namespace_at(network.inode()) {
            Some(namespace) => namespace,
            None => {
                let charge = share::charge(&user, name, Namespace::DESCRIPTORS);
                let charge = charge.map_err(|error| {
                    warn!("{error}; the interface was moved there, and its tunnel ends");
                    error.errno()
                })?;
                self.join(Arc::new(Namespace::open(network, charge)?))?
            }
        };
        let index = namespace.requests.link_named(name.as_bytes())?.index;
        if before == (namespace.network.inode(), index) {
            return Ok(());
        }
        namespace.enter(index, tunnel);
        if let Some(device) = self.devices.get_mut(&tunnel) {
            device.namespace.leave(device.index, tunnel);
            (device.namespace, device.index) = (namespace, index);
        }
        self.publish(tunnel);
        Ok(())
    }

    pub(super) fn publish(&self, tunnel: TunnelId) {
        self.table.set(tunnel, self.devices.get(&tunnel).map(Device::entry));
    }

    pub(super) fn namespace_at(&self, inode: u64) -> Option<Arc<Namespace>> {
        self.namespaces.get(&inode).and_then(Weak::upgrade)
    }

    /// Watches a namespace that a maker has opened, unless there is one that is watched already.
    pub(super) fn join(&mut self, namespace: Arc<Namespace>) -> Result<Arc<Namespace>, Errno> {
        let inode = namespace.network.inode();
        if let Some(known) = self.namespace_at(inode) {
            return Ok(known);
        }
        self.namespaces.retain(|_, namespace| namespace.strong_count() > 0);
        let namespaces = &self.namespaces;
        self.sources.retain(|_, source| match source {
            Source::Monitor(inode) => namespaces.contains_key(inode),
            Source::Queue(..) | Source::Messages => true,
        });
        let number = self.new_source(Source::Monitor(inode));
        let event = EpollEvent::new(EpollFlags::EPOLLIN, number);
        self.table.epoll.add(namespace.monitor(), event)?;
        self.namespaces.insert(inode, Arc::downgrade(&namespace));
        Ok(namespace)
    }

    pub(super) fn new_source(&mut self, source: Source) -> u64 {
        self.last_source += 1;
        self.sources.insert(self.last_source, source);
        self.last_source
    }
}
