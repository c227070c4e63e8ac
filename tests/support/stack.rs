//! A client with a protocol stack of its own, on an open file of the device.

use std::time::{Duration, Instant};

use nix::{
    errno::Errno,
    poll::{PollFlags, PollTimeout},
};
use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{DeviceCapabilities, Medium, RxToken, TxToken},
    socket::{tcp, udp},
    time,
    wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr},
};

use super::{DEADLINE, device::TunFile};

/// After so long without a move there will be none: acknowledgements are not held back for more than a fraction of it.
const STILL: Duration = Duration::from_millis(500);

/// A client at an address, perhaps with an Ethernet address.
pub struct StackClient {
    device: Device,
    interface: Interface,
    pub sockets: SocketSet<'static>,
    start: Instant,
}

impl StackClient {
    /// On a file that is attached without PI header; with an Ethernet address if it is a tap.
    #[expect(clippy::disallowed_methods, reason = "a stack is told what time it is")]
    pub fn new(file: TunFile, addresses: &[&str], hwaddr: Option<[u8; 6]>) -> Self {
        file.set_nonblocking(true);
        let (medium, hardware) = match hwaddr {
            None => (Medium::Ip, HardwareAddress::Ip),
            Some(address) => {
                (Medium::Ethernet, HardwareAddress::Ethernet(EthernetAddress(address)))
            }
        };
        let mut device = Device { file, medium };
        let mut interface = Interface::new(Config::new(hardware), &mut device, time::Instant::ZERO);
        interface.update_ip_addrs(|own| {
            for address in addresses {
                let (address, prefix) = address.split_once('/').expect("an address with a prefix");
                let address: IpAddress = address.parse().expect("an address");
                own.push(IpCidr::new(address, prefix.parse().expect("a prefix"))).expect("room");
            }
        });
        Self { device, interface, sockets: SocketSet::new(Vec::new()), start: Instant::now() }
    }

    /// Begins to connect.
    pub fn connect(&mut self, to: &str, port: u16, own_port: u16) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 64 << 10]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        let to: IpAddress = to.parse().expect("an address");
        socket.connect(self.interface.context(), (to, port), own_port).expect("a fresh socket");
        self.sockets.add(socket)
    }

    pub fn bind_udp(&mut self, own_port: u16) -> SocketHandle {
        let buffer =
            || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 16], vec![0; 128 << 10]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(own_port).expect("a fresh socket");
        self.sockets.add(socket)
    }

    pub fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub fn udp(&mut self, handle: SocketHandle) -> &mut udp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Lets the stack work until something is the case.
    #[track_caller]
    pub fn run_until<T>(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        self.run_moving(what, |client| (false, done(client)))
    }

    /// The same, with a deadline that begins anew whenever something has moved: for much, on a machine that is slow.
    #[track_caller]
    #[expect(clippy::disallowed_methods, reason = "a deadline is a matter of time")]
    pub fn run_moving<T>(
        &mut self,
        what: &str,
        mut step: impl FnMut(&mut Self) -> (bool, Option<T>),
    ) -> T {
        let mut end = Instant::now() + DEADLINE;
        loop {
            let micros = i64::try_from(self.start.elapsed().as_micros()).expect("a short test");
            let now = time::Instant::from_micros(micros);
            self.interface.poll(now, &mut self.device, &mut self.sockets);
            let (moved, result) = step(self);
            if let Some(result) = result {
                return result;
            }
            if moved {
                end = Instant::now() + DEADLINE;
            }
            assert!(Instant::now() < end, "{what}: nothing happened within {DEADLINE:?}");
            let delay = self.interface.poll_delay(now, &self.sockets);
            let delay = delay.map_or(100, |delay| delay.total_millis().min(100));
            let delay = PollTimeout::try_from(delay).expect("a short time");
            self.device.file.poll(PollFlags::POLLIN, delay);
        }
    }

    /// Lets the stack work until nothing has moved for a while. One that is only slow makes a test weaker, not wrong.
    #[track_caller]
    #[expect(clippy::disallowed_methods, reason = "that nothing happens shows only in time")]
    pub fn run_until_still(&mut self, what: &str, mut moves: impl FnMut(&mut Self) -> bool) {
        let mut since = Instant::now();
        self.run_moving(what, |client| {
            let moved = moves(client);
            if moved {
                since = Instant::now();
            }
            (moved, (since.elapsed() > STILL).then_some(()))
        });
    }

    /// Sends an end after all that was sent, and waits until it is acknowledged.
    #[track_caller]
    pub fn exchange_end(&mut self, handle: SocketHandle) {
        self.tcp(handle).close();
        self.run_until("the end to arrive", |client| {
            (client.tcp(handle).state() == tcp::State::FinWait2).then_some(())
        });
    }

    /// The open file.
    pub fn into_file(self) -> TunFile {
        self.device.file
    }

    /// Sends all of `data` and then an end, and returns all that comes until the other side ends.
    #[track_caller]
    pub fn exchange(&mut self, handle: SocketHandle, data: &[u8]) -> Vec<u8> {
        let mut unsent = data;
        let mut received = Vec::new();
        self.run_until("the exchange", |client| {
            let socket = client.tcp(handle);
            if socket.can_send() {
                let count = socket.send_slice(unsent).expect("it can send");
                unsent = &unsent[count..];
                if unsent.is_empty() {
                    socket.close();
                }
            }
            while socket.can_recv() {
                let count = |bytes: &mut [u8]| (bytes.len(), bytes.to_vec());
                received.extend(socket.recv(count).expect("it can receive"));
            }
            // Both ends are acknowledged.
            let is_over = matches!(socket.state(), tcp::State::TimeWait | tcp::State::Closed);
            is_over.then_some(())
        });
        received
    }
}

struct Device {
    file: TunFile,
    medium: Medium,
}

impl smoltcp::phy::Device for Device {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: time::Instant) -> Option<(Received, Sending<'_>)> {
        match self.file.read() {
            Ok(datagram) => Some((Received(datagram), Sending(&self.file))),
            Err(Errno::EAGAIN) => None,
            Err(errno) => panic!("read: {errno}"),
        }
    }

    fn transmit(&mut self, _: time::Instant) -> Option<Sending<'_>> {
        Some(Sending(&self.file))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = self.medium;
        capabilities.max_transmission_unit = match self.medium {
            Medium::Ip => 1_500,
            Medium::Ethernet => 1_514,
        };
        capabilities
    }
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, look: F) -> R {
        look(&self.0)
    }
}

struct Sending<'a>(&'a TunFile);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut datagram = vec![0; length];
        let result = fill(&mut datagram);
        assert_eq!(self.0.write(&datagram), Ok(length));
        result
    }
}
