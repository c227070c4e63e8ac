//! A small host as the peer of a tunnel. It answers the client in a test that has no network.
//!
//! It answers ARP and neighbour discovery, pings, TCP and UDP echo (RFC 862) and discard (RFC 863), and passes TCP
//! connections to some of its ports on to addresses of this machine. The protocols are the crate `smoltcp`'s.
//!
//! # Theory of operation
//!
//! A thread for each host sleeps in `poll(2)` on an eventfd, which a notification makes readable, and on the sockets of
//! forwarded connections, until the stack's next deadline. Awake, it feeds the stack what clients wrote, a batch at a
//! time, moves bytes between connections, and injects what the stack sends. So datagrams of a tunnel pass through in
//! order, and what does not fit into a client's queue is dropped and counted, as on a wire.
//!
//! The thread ends when the tunnel is gone and all that its client wrote has been dealt with, or by
//! [`part`](crate::hub::Peer::part). Nobody is told: to a client the host is unplugged.

mod config;
mod relay;
mod services;
mod stack;

use std::{
    io,
    os::fd::AsFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};

use bytes::Bytes;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};
use tracing::warn;

pub(crate) use self::config::{Cidr, Config, ConfigError, Forward};
use self::stack::{Stack, Wire};
use crate::{
    core::{
        CommandError, Datagram, MacAddress, Mode, PeerId, TunnelId, input,
        offload::{self, Finished},
    },
    hub::{Description, Hub, Peer},
    planted,
};

/// Why there is no host.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    /// The tunnel does not take it.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// It cannot be made so.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The kernel has no descriptor or thread for it.
    #[error("making a host for the tunnel: {0}")]
    System(#[from] io::Error),
}

struct HostPeer {
    hub: Arc<Hub>,
    tunnel: TunnelId,
    mode: Mode,
    description: Description,
    wake: EventFd,
    /// The eventfd is readable, or about to be, and the thread has not looked since.
    is_woken: AtomicBool,
    is_closed: Mutex<bool>,
}

/// Gives a tunnel a host as its peer; on a tap, returns its Ethernet address.
///
/// # Errors
///
/// As [`HostError`] says.
pub(crate) fn start(
    hub: &Arc<Hub>,
    tunnel: TunnelId,
    config: &Config,
) -> Result<Option<MacAddress>, HostError> {
    config.check()?;
    let (mode, mtu) = hub.view(|core| match core.tunnel(tunnel) {
        None => Err(CommandError::UnknownTunnel(tunnel.into())),
        Some(tunnel) if tunnel.is_gone() => Err(CommandError::Gone(*tunnel.name())),
        Some(tunnel) => Ok((tunnel.mode(), tunnel.mtu())),
    })?;
    let hwaddr = (mode == Mode::Tap).then(|| MacAddress::random(&mut fastrand::Rng::new()));
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let peer = Arc::new(HostPeer {
        hub: Arc::clone(hub),
        tunnel,
        mode,
        description: Description { kind: "host", details: config.details(hwaddr) },
        wake: EventFd::from_value_and_flags(0, flags).map_err(io::Error::from)?,
        is_woken: AtomicBool::new(false),
        is_closed: Mutex::new(false),
    });
    let stack = Stack::new(config, hwaddr, mtu);
    let id = hub.add_peer(tunnel, Arc::clone(&peer) as Arc<dyn Peer>)?;
    let leaving = Leaving { peer, id };
    // Without a thread, the closure is dropped, and the peer leaves with it.
    thread::Builder::new().name("host".to_owned()).spawn(move || {
        // It leaves, whether it has panicked or not.
        let _ended = leaving.peer.hub.contain(|| leaving.peer.run(stack));
    })?;
    Ok(hwaddr)
}

/// Takes the peer off its tunnel when its thread ends, however that does.
struct Leaving {
    peer: Arc<HostPeer>,
    id: PeerId,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.peer.hub.remove_peer(self.id);
    }
}

impl Peer for HostPeer {
    fn notify(&self) {
        if !self.is_woken.swap(true, Ordering::AcqRel) {
            // It fails only where the counter is at its maximum, and so readable.
            let _readable = self.wake.write(1);
        }
    }

    fn part(&self) {
        *self.lock() = true;
        self.notify();
    }

    fn description(&self) -> Description {
        self.description.clone()
    }
}

impl HostPeer {
    #[expect(clippy::disallowed_methods, reason = "the stack is told what time it is")]
    fn run(&self, mut stack: Stack) {
        let start = Instant::now();
        let mut line = Line { peer: self, segments: None };
        loop {
            // What is written from here on notifies again.
            let _drained = self.wake.read();
            self.is_woken.store(false, Ordering::Release);
            planted::panic_at("host");
            let is_due_again = stack.perform(start.elapsed(), &mut line);
            let is_gone = || self.hub.view(|core| core.tunnel(self.tunnel).is_none());
            if *self.lock() || (!is_due_again && is_gone()) {
                return;
            }
            let timeout = if is_due_again { Some(0) } else { stack.sleep_ms(start.elapsed()) };
            if let Err(errno) = self.sleep(&mut stack, timeout) {
                warn!(tunnel = self.tunnel.0, %errno, "waiting failed, and a host has ended, ignoring");
                return;
            }
        }
    }

    /// Until there is something to do.
    fn sleep(&self, stack: &mut Stack, timeout_ms: Option<u64>) -> Result<(), Errno> {
        let timeout = timeout_ms
            .map_or(PollTimeout::NONE, |ms| PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX));
        let mut files = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
        files.extend(stack.interests().map(|(file, events)| PollFd::new(file, events)));
        match poll(&mut files, timeout) {
            // Interrupted, it looks again.
            Err(Errno::EINTR) => return Ok(()),
            waited => waited?,
        };
        let ready: Vec<PollFlags> =
            files[1..].iter().map(|file| file.revents().unwrap_or(PollFlags::empty())).collect();
        stack.set_ready(&ready);
        Ok(())
    }

    fn take(&self) -> Option<Datagram> {
        // Held while taking, so that nothing is taken once it is closed.
        let is_closed = self.lock();
        if *is_closed { None } else { self.hub.handle(input::Take { tunnel: self.tunnel }) }
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.is_closed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The tunnel as the stack's wire: offloads are done before a datagram gets there.
struct Line<'a> {
    peer: &'a HostPeer,
    /// What is left of a datagram that was cut.
    segments: Option<Finished>,
}

impl Wire for Line<'_> {
    fn take(&mut self) -> Option<Bytes> {
        loop {
            if let Some(segment) = self.segments.as_mut().and_then(Iterator::next) {
                return Some(segment.payload);
            }
            let HostPeer { hub, tunnel, mode, .. } = self.peer;
            let datagram = self.peer.take()?;
            let length = datagram.payload.len();
            self.segments = offload::finish(datagram, *mode).ok();
            if self.segments.is_none() {
                hub.handle(input::CountPeerDrop { tunnel: *tunnel, length });
            }
        }
    }

    fn send(&mut self, datagram: Bytes) {
        let HostPeer { hub, tunnel, .. } = self.peer;
        // What cannot be delivered is counted, as on a wire.
        let _delivery =
            hub.handle(input::InjectFromPeer { tunnel: *tunnel, datagram: datagram.into() });
    }
}
