//! What a host does with connections and datagrams: echo, discard, forward.
//!
//! Each TCP port has one socket that listens. When a connection takes that socket, another one listens before the next datagram
//! comes in. At the limit of connections none listens, and the stack refuses connections. A connection is given up when its client
//! does not answer for two minutes, so clients that vanish do not use up the limit.

use std::{net::SocketAddr, os::fd::BorrowedFd, time::Duration};

use nix::poll::PollFlags;
use smoltcp::{
    iface::{SocketHandle, SocketSet},
    socket::{tcp, udp},
    time,
    wire::IpAddress,
};
use tracing::debug;

use super::{Forward, relay::Relay};

/// The port of the echo service.
pub(super) const ECHO: u16 = 7;
/// The port of the discard service.
pub(super) const DISCARD: u16 = 9;

/// TCP connections of one host at a time.
const MAX_CONNECTIONS: usize = 64;
/// Bytes of a connection that wait, each way.
const TCP_BUFFER: usize = 64 << 10;
/// Bytes that wait at a UDP port, each way: two of the longest datagrams.
const UDP_BUFFER: usize = 128 << 10;
/// Datagrams that wait at a UDP port, each way.
const UDP_DATAGRAMS: usize = 128;
/// A client that is silent is asked whether it is there.
const KEEP_ALIVE: time::Duration = time::Duration::from_secs(30);
/// A client that does not answer is gone.
const CLIENT_TIMEOUT: time::Duration = time::Duration::from_secs(120);
/// A neighbour that does not answer holds up the echoes to others for so long.
const NEIGHBOUR_TIMEOUT: Duration = Duration::from_secs(3);

pub(super) struct Services {
    ports: Vec<Port>,
    connections: Vec<Connection>,
    udp_echo: SocketHandle,
    udp_discard: SocketHandle,
    /// When the oldest echo should have been sent.
    stuck: Option<Duration>,
    scratch: Vec<u8>,
}

#[derive(Clone, Copy)]
enum Service {
    Echo,
    Discard,
    Forward(SocketAddr),
}

struct Port {
    number: u16,
    service: Service,
    listener: Option<SocketHandle>,
}

struct Connection {
    socket: SocketHandle,
    service: Service,
    /// Of a forwarded one, once the client has connected.
    relay: Option<Relay>,
}

impl Services {
    pub(super) fn new(forwards: &[Forward], sockets: &mut SocketSet<'static>) -> Self {
        let ports = [(ECHO, Service::Echo), (DISCARD, Service::Discard)];
        let forwards = forwards.iter().map(|forward| (forward.port, Service::Forward(forward.to)));
        let ports = ports.into_iter().chain(forwards);
        let ports = ports.map(|(number, service)| Port { number, service, listener: None });
        let [udp_echo, udp_discard] = [ECHO, DISCARD].map(|port| {
            let handle = sockets.add(udp::Socket::new(udp_buffer(), udp_buffer()));
            bind(sockets.get_mut(handle), port);
            handle
        });
        let mut services = Self {
            ports: ports.collect(),
            connections: Vec::new(),
            udp_echo,
            udp_discard,
            stuck: None,
            scratch: Vec::new(),
        };
        services.accept(sockets);
        services
    }

    /// Sees to it that something listens at each port, as long as there may be more connections.
    pub(super) fn accept(&mut self, sockets: &mut SocketSet<'static>) {
        for port in &mut self.ports {
            let is_taken =
                |handle: &mut SocketHandle| !sockets.get::<tcp::Socket<'_>>(*handle).is_listening();
            if let Some(socket) = port.listener.take_if(is_taken) {
                self.connections.push(Connection { socket, service: port.service, relay: None });
            }
            if port.listener.is_none() && has_room(&mut self.connections, sockets) {
                port.listener = Some(sockets.add(listener(port.number)));
            }
        }
    }

    /// Moves what has arrived; `is_own` says which addresses are the host's.
    pub(super) fn work(&mut self, sockets: &mut SocketSet<'_>, is_own: impl Fn(IpAddress) -> bool) {
        for connection in &mut self.connections {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(connection.socket);
            let is_beyond_handshake = !matches!(
                socket.state(),
                tcp::State::Listen | tcp::State::SynReceived | tcp::State::Closed
            );
            if !is_beyond_handshake {
                continue;
            }
            match connection.service {
                Service::Echo => echo(socket, &mut self.scratch),
                Service::Discard => discard(socket),
                Service::Forward(to) => {
                    if let Err(error) = forward(&mut connection.relay, to, socket) {
                        debug!(%to, %error, "a forwarded connection was aborted");
                        socket.abort();
                    }
                }
            }
        }
        echo_datagrams(sockets.get_mut(self.udp_echo), is_own);
        let discarded = sockets.get_mut::<udp::Socket<'_>>(self.udp_discard);
        while discarded.recv().is_ok() {}
    }

    /// Forgets connections that are over, and echoes that cannot be sent; after the stack has sent what it could.
    pub(super) fn clear(&mut self, now: Duration, sockets: &mut SocketSet<'static>) {
        self.connections.retain(|connection| {
            // A client that gave up during the handshake leaves a socket that listens.
            let socket = sockets.get::<tcp::Socket<'_>>(connection.socket);
            let is_over = matches!(socket.state(), tcp::State::Closed | tcp::State::Listen);
            if is_over {
                sockets.remove(connection.socket);
            }
            !is_over
        });
        self.accept(sockets);
        let echo = sockets.get_mut::<udp::Socket<'_>>(self.udp_echo);
        if echo.send_queue() == 0 {
            self.stuck = None;
        } else if now >= *self.stuck.get_or_insert(now + NEIGHBOUR_TIMEOUT) {
            self.stuck = None;
            echo.close();
            bind(echo, ECHO);
        }
    }

    #[cfg(test)]
    pub(super) fn connections(&self) -> usize {
        self.connections.len()
    }

    /// When echoes that cannot be sent are to be forgotten.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.stuck
    }

    pub(super) fn interests(
        &self,
        sockets: &SocketSet<'_>,
    ) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        self.connections.iter().filter_map(|connection| {
            connection.relay.as_ref()?.interest(sockets.get(connection.socket))
        })
    }

    pub(super) fn set_ready(&mut self, sockets: &SocketSet<'_>, ready: &[PollFlags]) {
        let waiting = self.connections.iter_mut().filter_map(|connection| {
            let socket = sockets.get(connection.socket);
            connection.relay.as_mut().filter(|relay| relay.interest(socket).is_some())
        });
        waiting.zip(ready).for_each(|(relay, ready)| relay.set_ready(*ready));
    }
}

/// Whether there may be one more. At the limit, one that is over makes room, were it only to be remembered.
fn has_room(connections: &mut Vec<Connection>, sockets: &mut SocketSet<'_>) -> bool {
    if connections.len() < MAX_CONNECTIONS {
        return true;
    }
    let is_over = |connection: &Connection| {
        let state = sockets.get::<tcp::Socket<'_>>(connection.socket).state();
        matches!(state, tcp::State::Closed | tcp::State::TimeWait)
    };
    let Some(at) = connections.iter().position(is_over) else { return false };
    sockets.remove(connections.remove(at).socket);
    true
}

fn listener(port: u16) -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; TCP_BUFFER]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    socket.set_keep_alive(Some(KEEP_ALIVE));
    socket.set_timeout(Some(CLIENT_TIMEOUT));
    // What is passed on was put together by whoever sent it.
    socket.set_nagle_enabled(false);
    // It fails for port 0 and for a socket that is open.
    let listening = socket.listen(port);
    debug_assert!(listening.is_ok(), "a fresh socket can listen at port {port}");
    socket
}

fn udp_buffer() -> udp::PacketBuffer<'static> {
    udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; UDP_DATAGRAMS], vec![0; UDP_BUFFER])
}

fn bind(socket: &mut udp::Socket<'_>, port: u16) {
    // It fails for port 0 and for a socket that is open.
    let bound = socket.bind(port);
    debug_assert!(bound.is_ok(), "a closed socket can be bound to port {port}");
}

fn echo(socket: &mut tcp::Socket<'_>, scratch: &mut Vec<u8>) {
    while socket.can_recv() && socket.can_send() {
        let room = socket.send_capacity() - socket.send_queue();
        // What is taken fits, so all of it is sent.
        let taken = socket.recv(|bytes| {
            let count = bytes.len().min(room);
            scratch.clear();
            scratch.extend_from_slice(&bytes[..count]);
            (count, ())
        });
        if taken.is_err() || socket.send_slice(scratch).is_err() {
            return socket.abort();
        }
    }
    if !socket.may_recv() {
        socket.close();
    }
}

fn discard(socket: &mut tcp::Socket<'_>) {
    while socket.can_recv() {
        if socket.recv(|bytes| (bytes.len(), ())).is_err() {
            return socket.abort();
        }
    }
    if !socket.may_recv() {
        socket.close();
    }
}

fn forward(
    relay: &mut Option<Relay>,
    to: SocketAddr,
    socket: &mut tcp::Socket<'_>,
) -> std::io::Result<()> {
    let relay = match relay {
        Some(relay) => relay,
        none => none.insert(Relay::start(to)?),
    };
    relay.work(socket)
}

fn echo_datagrams(socket: &mut udp::Socket<'_>, is_own: impl Fn(IpAddress) -> bool) {
    let mut buffer = Vec::new();
    while socket.can_send() {
        let Ok((bytes, from)) = socket.recv() else { return };
        buffer.clear();
        buffer.extend_from_slice(bytes);
        // One to several hosts at once is answered by none; nor can one be that is from nowhere.
        if from.local_address.is_some_and(&is_own) {
            let _unsent = socket.send_slice(&buffer, from);
        }
    }
}
