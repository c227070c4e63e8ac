//! The kernel's own tun, in a network namespace of its own, to compare with.
#![allow(unsafe_code, reason = "interface and socket ioctls take a pointer")]

use std::{
    ffi::CStr,
    fs,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    thread,
};

use nix::{
    errno::Errno,
    libc,
    sched::{CloneFlags, unshare},
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socket},
};

use super::device::TunFile;

const DEVICE: &str = "/dev/net/tun";
const NAME: &str = "kernel0";
const C_NAME: &CStr = c"kernel0";

/// The first kernel whose tun checks vnet headers as the core does.
const COMPARED: (u32, u32) = (6, 17);

/// Why the kernel's tun cannot be compared with here.
pub fn obstacle() -> Option<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < COMPARED {
        let release = release.trim();
        return Some(format!("Linux {release} is older than what the core follows, 6.17"));
    }
    let unshared = thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET)).join();
    if let Err(error) = unshared.expect("it does not panic") {
        return Some(format!("making a network namespace: {error}"));
    }
    let usable = fs::OpenOptions::new().read(true).write(true).open(DEVICE);
    usable.err().map(|error| format!("{DEVICE}: {error}"))
}

/// An interface of the kernel's, a file attached to it, and a socket that sends through it.
pub struct KernelTun {
    pub file: TunFile,
    /// `AF_PACKET`: each message, behind its vnet header, is a datagram that the file can read.
    packets: OwnedFd,
    control: OwnedFd,
}

impl KernelTun {
    /// An interface that is down, and on which the kernel sends nothing by itself.
    pub fn new(flags: u16) -> Self {
        // Only that thread moves; what it opens stays in the namespace.
        let made = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may make a network namespace");
            fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("no IPv6");
            let file = TunFile::attached(Path::new(DEVICE), NAME, flags);
            file.set_nonblocking(true);
            let packets = packet_socket();
            let control =
                socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
                    .expect("a socket");
            Self { file, packets, control }
        });
        made.join().expect("it does not panic")
    }

    /// Brings it up, with the longest MTU there is.
    pub fn set_up(&self) {
        set_up(&self.control, NAME);
    }

    /// Sends a datagram behind its vnet header.
    pub fn send(&self, header: &[u8], payload: &[u8]) -> Result<(), Errno> {
        let message = [header, payload].concat();
        send(self.packets.as_raw_fd(), &message, MsgFlags::empty()).map(drop)
    }

    /// Everything there is to read: sending ends only when it is there.
    pub fn read_all(&self) -> Vec<Vec<u8>> {
        read_all(&self.file)
    }
}

/// Two taps of the kernel's and a bridge between them: what is written to one can be read from the other.
pub struct KernelBridge {
    pub from: TunFile,
    pub to: TunFile,
}

impl KernelBridge {
    /// With these flags besides; both ends are up.
    pub fn new(flags: u16) -> Self {
        const BRIDGE: &str = "bridge0";
        let made = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may make a network namespace");
            fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("no IPv6");
            let control =
                socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
                    .expect("a socket");
            let name = [BRIDGE.as_bytes(), &[0; 16]].concat();
            // SAFETY: SIOCBRADDBR reads a name of 16 bytes.
            let made = unsafe { libc::ioctl(control.as_raw_fd(), SIOCBRADDBR, name.as_ptr()) };
            Errno::result(made).expect("root may make a bridge");
            let [from, to] = ["from", "to"].map(|end| {
                let file = TunFile::attached(Path::new(DEVICE), end, flags);
                file.set_nonblocking(true);
                interface_ioctl(&control, SIOCBRADDIF, BRIDGE, index_of(end));
                set_up(&control, end);
                file
            });
            set_up(&control, BRIDGE);
            Self { from, to }
        });
        made.join().expect("it does not panic")
    }

    /// Everything there is to read at the far end: a write ends only when it is there.
    pub fn read_all(&self) -> Vec<Vec<u8>> {
        read_all(&self.to)
    }
}

const SIOCBRADDBR: libc::Ioctl = 0x89a0;
const SIOCBRADDIF: libc::Ioctl = 0x89a2;

fn set_up(control: &OwnedFd, name: &str) {
    const IFF_UP: i32 = 1;
    interface_ioctl(control, libc::SIOCSIFMTU, name, 65_521);
    interface_ioctl(control, libc::SIOCSIFFLAGS, name, IFF_UP);
}

fn interface_ioctl(control: &OwnedFd, command: libc::Ioctl, name: &str, value: i32) {
    let mut request = [0_u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..20].copy_from_slice(&value.to_ne_bytes());
    // SAFETY: all these read an ifreq of 40 bytes.
    let result = unsafe { libc::ioctl(control.as_raw_fd(), command, request.as_ptr()) };
    Errno::result(result).expect("root may change an interface");
}

fn index_of(name: &str) -> i32 {
    let index = nix::net::if_::if_nametoindex(name).expect("the interface is there");
    i32::try_from(index).expect("it is small")
}

fn read_all(file: &TunFile) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| match file.read() {
        Ok(datagram) => Some(datagram),
        Err(Errno::EAGAIN) => None,
        Err(error) => panic!("read: {error}"),
    })
    .collect()
}

/// A socket that sends whole datagrams or frames through the interface, each behind a vnet header.
fn packet_socket() -> OwnedFd {
    let packets = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
        .expect("root may have a packet socket");
    let on: libc::c_int = 1;
    // SAFETY: PACKET_VNET_HDR reads an int.
    let result = unsafe {
        libc::setsockopt(
            packets.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_VNET_HDR,
            (&raw const on).cast(),
            u32::try_from(size_of::<libc::c_int>()).expect("it is small"),
        )
    };
    Errno::result(result).expect("PACKET_VNET_HDR");
    // SAFETY: the name ends with a NUL.
    let index = unsafe { libc::if_nametoindex(C_NAME.as_ptr()) };
    assert!(index > 0, "the interface is there");
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).expect("it is small"),
        // Nothing is received.
        sll_protocol: 0,
        sll_ifindex: i32::try_from(index).expect("it is positive"),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the address is a sockaddr_ll, and its size is given.
    let result = unsafe {
        libc::bind(
            packets.as_raw_fd(),
            (&raw const address).cast(),
            u32::try_from(size_of::<libc::sockaddr_ll>()).expect("it is small"),
        )
    };
    Errno::result(result).expect("bind");
    packets
}
