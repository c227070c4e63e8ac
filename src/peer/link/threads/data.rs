//! The data thread's side: what happens to links, and that something came by them, and the telling of it.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    ops::ControlFlow,
    os::fd::AsFd,
    sync::{Arc, MutexGuard, PoisonError, RwLockReadGuard},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::epoll::{EpollEvent, EpollTimeout},
};
use tracing::{debug, warn};

use super::{Shared, Source};
use crate::{
    abi::tun::{IfReq, Name},
    netns::Network,
    peer::link::{
        Link, LinkId, Place, State, lock,
        namespace::{Change, Namespace},
        queue::Queue,
        state_of,
    },
    planted,
    sys::tun::{self, IfReqCommand},
};

const EVENTS_AT_ONCE: usize = 64;

impl Shared {
    pub(super) fn serve(&self) {
        loop {
            let mut files = [PollFd::new(self.epoll.0.as_fd(), PollFlags::POLLIN)];
            match poll(&mut files, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => {
                    warn!(%errno, "waiting for links failed: what the kernel sends into them is lost");
                    return;
                }
            }
            if self.handle_events().is_break() {
                return;
            }
        }
    }

    /// Handles what there is, and returns when that has been done; break: the thread is to end.
    pub(super) fn handle_events(&self) -> ControlFlow<()> {
        // Whoever finds nothing to handle knows then that it has been handled.
        let _handling = lock(&self.handling);
        let mut events = [EpollEvent::empty(); EVENTS_AT_ONCE];
        // Epoll gives each its turn.
        let turns = self.read_sources().len() / EVENTS_AT_ONCE + 1;
        for _ in 0..turns {
            let count = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
            for event in &events[..count] {
                planted::panic_at("news");
                let source = self.read_sources().get(&event.data()).cloned();
                match source {
                    Some(Source::Queue { link, id, .. }) => self.listener.readable(link.id, id),
                    Some(Source::Monitor(namespace)) => {
                        if let Some(namespace) = namespace.upgrade() {
                            self.read_news(&namespace);
                        }
                    }
                    Some(Source::Stop) => return ControlFlow::Break(()),
                    // It was closed meanwhile.
                    None => {}
                }
            }
            if count < EVENTS_AT_ONCE {
                break;
            }
        }
        ControlFlow::Continue(())
    }

    fn read_sources(&self) -> RwLockReadGuard<'_, BTreeMap<u64, Source>> {
        self.sources.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn read_news(&self, namespace: &Namespace) {
        namespace.read_news(|id, change| match change {
            Change::Changed => {
                if let Some(link) = self.link(id) {
                    // If it is not there any more, that is news to come.
                    let _state = self.look_at(&link);
                }
            }
            Change::Left => self.has_left(id),
        });
    }

    pub(super) fn is_now(&self, link: &Link, state: State, _: &MutexGuard<'_, ()>) {
        let before = std::mem::replace(&mut *lock(&link.state), state);
        if before != state {
            self.listener.changed(link.id, &state);
        }
    }

    /// A link is not where it was: deleted, or moved to another namespace, where it is followed.
    pub(super) fn has_left(&self, id: LinkId) {
        let telling = lock(&self.telling);
        let Some(link) = self.link(id) else { return };
        match self.follow(&link) {
            Ok(state) => {
                debug!(name = %state.name, "a link was moved to another network namespace");
                self.is_now(&link, state, &telling);
            }
            Err(_) => {
                if self.forget(id).is_some() {
                    self.close_queues(&link, |_| true);
                    self.listener.gone(id);
                }
            }
        }
    }

    fn follow(&self, link: &Link) -> io::Result<State> {
        let file = link.queue(None).ok_or(Errno::ENODEV)?;
        let name = name_of(&file)?;
        let network = Network::try_from(File::from(tun::network_of(file.as_fd())?))?;
        let namespace = self.namespace(Arc::new(network))?;
        let index = namespace.requests.link_named(name.as_bytes())?.index;
        namespace.enter(index, link.id);
        let state = state_of(&namespace.requests.link(index)?, &namespace);
        *lock(&link.place) = Place { namespace, index };
        Ok(state)
    }
}

fn name_of(file: &Queue) -> Result<Name, Errno> {
    let attached = tun::with_ifreq(file.as_fd(), IfReqCommand::Attached, &IfReq::zeroed(false))?;
    Ok(attached.name())
}
