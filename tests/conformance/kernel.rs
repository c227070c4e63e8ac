//! The kernel's own tun, in a network namespace without traffic of its own, and the kernel's side of its interfaces.
#![allow(unsafe_code, reason = "sockets of families that nix does not wrap")]

use std::{
    collections::VecDeque,
    fs::File,
    io,
    mem::{size_of, zeroed},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
    process::Command,
    ptr, thread,
};

use nix::{
    libc,
    sched::{CloneFlags, unshare},
};

use super::{
    script::{Change, bytes},
    subject::{Far, Program, Seen, Subject, describe},
};

const DEVICE: &str = "/dev/net/tun";

/// Why the kernel's tun cannot be had here.
pub fn obstacle() -> Option<String> {
    let ids = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    if !nix::unistd::geteuid().is_root() || ids.split_whitespace().ne(["0", "0", "4294967295"]) {
        return Some("only root can have the kernel's tun for itself".to_owned());
    }
    let opened = File::options().read(true).write(true).open(DEVICE);
    opened.err().map(|error| format!("{DEVICE}: {error}"))
}

/// The version of the running kernel.
pub fn version() -> (u32, u32) {
    let name = nix::sys::utsname::uname().expect("uname");
    let mut numbers = name
        .release()
        .to_str()
        .expect("a release is ASCII")
        .split(['.', '-'])
        .map_while(|n| n.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// The program on the kernel's device, in a namespace of its own. The node is one that is open to all, as udev has it: the
/// machine's may be root's alone.
pub fn subject(program: &Path) -> Subject {
    let far = Kernel::of(|| unshare(CloneFlags::CLONE_NEWNET));
    let open_to_all = "mount -t tmpfs -o dev,mode=755 tmpfs /mnt && mknod -m 666 /mnt/tun c 10 200 && \
        mount --bind /mnt/tun \"$1\" && exec \"$0\" \"$1\"";
    let mut command = Command::new("nsenter");
    command.arg(far.path()).args(["--", "unshare", "--mount", "--", "sh", "-c", open_to_all]);
    command.arg(program).arg(DEVICE);
    Subject::new(Program::start(&mut command), far, ())
}

/// A datagram that came from an interface.
struct Received {
    interface: i32,
    bytes: Vec<u8>,
}

/// The kernel's side of a network namespace.
pub struct Kernel {
    namespace: File,
    /// Sees and makes traffic.
    packets: OwnedFd,
    /// Deletes interfaces.
    route: OwnedFd,
    /// Takes ioctls.
    control: OwnedFd,
    received: VecDeque<Received>,
}

impl Kernel {
    /// Of the namespace that a thread gets into.
    pub fn of(enter: impl FnOnce() -> nix::Result<()> + Send + 'static) -> Self {
        let entered = thread::spawn(|| {
            enter().expect("root may make and enter network namespaces");
            Self::here()
        });
        entered.join().expect("it does not panic")
    }

    /// Of the calling thread's namespace, which sends nothing by itself from now on.
    fn here() -> Self {
        // IPv6 would send of itself on every interface that comes up.
        for scope in ["all", "default"] {
            let setting = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
            if Path::new(&setting).exists() {
                std::fs::write(setting, "1").expect("root may set it");
            }
        }
        let protocol = i32::from(ETH_P_ALL.to_be());
        Self {
            namespace: File::open("/proc/thread-self/ns/net").expect("it has a file"),
            packets: socket(libc::AF_PACKET, libc::SOCK_RAW, protocol),
            route: socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE),
            control: socket(libc::AF_INET, libc::SOCK_DGRAM, 0),
            received: VecDeque::new(),
        }
    }

    /// The option of nsenter that leads there.
    fn path(&self) -> String {
        format!("--net=/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd())
    }

    /// An ioctl that takes a `struct ifreq`, with what is to stand behind the name.
    fn request(&self, command: libc::Ioctl, tunnel: &str, value: &[u8]) -> io::Result<[u8; 40]> {
        let mut request = [0_u8; 40];
        request[..tunnel.len()].copy_from_slice(tunnel.as_bytes());
        request[16..16 + value.len()].copy_from_slice(value);
        // SAFETY: a `struct ifreq` has 40 bytes, and none of the commands used has a pointer in it.
        match unsafe { libc::ioctl(self.control.as_raw_fd(), command, request.as_mut_ptr()) } {
            0 => Ok(request),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn index(&self, tunnel: &str) -> Option<i32> {
        let request = self.request(libc::SIOCGIFINDEX, tunnel, &[]).ok()?;
        request[16..20].try_into().ok().map(i32::from_ne_bytes)
    }

    fn set_up(&self, tunnel: &str, up: bool) -> io::Result<()> {
        let request = self.request(libc::SIOCGIFFLAGS, tunnel, &[])?;
        let flags = u16::from_ne_bytes([request[16], request[17]]);
        let bit = u16::try_from(libc::IFF_UP).expect("a small flag");
        let flags = if up { flags | bit } else { flags & !bit };
        self.request(libc::SIOCSIFFLAGS, tunnel, &flags.to_ne_bytes()).map(drop)
    }

    fn try_change(&self, tunnel: &str, change: &Change) -> io::Result<()> {
        match change {
            Change::Up => self.set_up(tunnel, true),
            Change::Down => self.set_up(tunnel, false),
            Change::Delete => self
                .index(tunnel)
                .ok_or(io::ErrorKind::NotFound.into())
                .and_then(|i| self.delete(i)),
            Change::Rename(name) => {
                self.request(libc::SIOCSIFNAME, tunnel, name.as_bytes()).map(drop)
            }
            Change::Mtu(number) => {
                self.request(libc::SIOCSIFMTU, tunnel, &number.to_ne_bytes()).map(drop)
            }
            Change::Address(address) => {
                let value = [&1_u16.to_ne_bytes(), &bytes(address)[..]].concat();
                self.request(libc::SIOCSIFHWADDR, tunnel, &value).map(drop)
            }
            Change::QueueLength(number) => {
                self.request(libc::SIOCSIFTXQLEN, tunnel, &number.to_ne_bytes()).map(drop)
            }
        }
    }

    /// RTM_DELLINK, and its acknowledgement.
    fn delete(&self, interface: i32) -> io::Result<()> {
        let mut message = Vec::new();
        message.extend(32_u32.to_ne_bytes());
        message.extend(libc::RTM_DELLINK.to_ne_bytes());
        message.extend(
            u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_ACK).expect("small").to_ne_bytes(),
        );
        message.extend([0; 8]);
        message.extend([0; 4]);
        message.extend(interface.to_ne_bytes());
        message.extend([0; 8]);
        // SAFETY: the message is readable for its length.
        let sent = unsafe {
            libc::send(self.route.as_raw_fd(), message.as_ptr().cast(), message.len(), 0)
        };
        let mut answer = [0_u8; 256];
        // SAFETY: the answer is writable for its length.
        let length = unsafe {
            libc::recv(self.route.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0)
        };
        // A header of 16 bytes, then the error of `struct nlmsgerr`.
        match i32::from_ne_bytes(answer[16..20].try_into().expect("four bytes")) {
            0 if sent == 32 && length >= 20 => Ok(()),
            error => Err(io::Error::from_raw_os_error(-error)),
        }
    }

    /// Sends a datagram so many times; how many were not refused.
    pub fn send(&self, tunnel: &str, datagram: &[u8], times: u32) -> u64 {
        (0..times).map(|_| u64::from(self.try_send(tunnel, datagram).is_ok())).sum()
    }

    /// As the stack sends it: with the protocol that the datagram's first bytes tell.
    fn try_send(&self, tunnel: &str, datagram: &[u8]) -> io::Result<()> {
        let interface = self.index(tunnel).ok_or(io::ErrorKind::NotFound)?;
        let request = self.request(libc::SIOCGIFHWADDR, tunnel, &[])?;
        let is_tap = u16::from_ne_bytes([request[16], request[17]]) == libc::ARPHRD_ETHER;
        let protocol = match (is_tap, datagram) {
            (true, [_, _, _, _, _, _, _, _, _, _, _, _, high, low, ..]) => {
                u16::from_be_bytes([*high, *low])
            }
            (false, [first, ..]) if first >> 4 == 4 => 0x0800,
            (false, [first, ..]) if first >> 4 == 6 => 0x86dd,
            _ => 0,
        };
        // SAFETY: a `struct sockaddr_ll` may be all zeros.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).expect("a small number");
        address.sll_protocol = protocol.to_be();
        address.sll_ifindex = interface;
        // SAFETY: datagram and address are readable for the lengths given.
        let sent = unsafe {
            libc::sendto(
                self.packets.as_raw_fd(),
                datagram.as_ptr().cast(),
                datagram.len(),
                0,
                ptr::from_ref(&address).cast(),
                ADDRESS_SIZE,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Collects what has come from all interfaces.
    fn receive(&mut self) {
        let mut buffer = vec![0_u8; 1 << 17];
        loop {
            // SAFETY: a `struct sockaddr_ll` may be all zeros.
            let mut address: libc::sockaddr_ll = unsafe { zeroed() };
            let mut size = ADDRESS_SIZE;
            // SAFETY: buffer and address are writable for the lengths given.
            let length = unsafe {
                libc::recvfrom(
                    self.packets.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    libc::MSG_DONTWAIT,
                    ptr::from_mut(&mut address).cast(),
                    &raw mut size,
                )
            };
            let Ok(length) = usize::try_from(length) else { return };
            // What goes to the client is seen here too.
            if address.sll_pkttype != libc::PACKET_OUTGOING {
                let bytes = buffer[..length].to_vec();
                self.received.push_back(Received { interface: address.sll_ifindex, bytes });
            }
        }
    }

    /// Throws away what has come.
    pub fn forget(&mut self) {
        self.receive();
        self.received.clear();
    }

    /// As `ip` shows it.
    pub fn seen(&self, tunnel: &str) -> Option<Seen> {
        let shown = Command::new("nsenter")
            .arg(self.path())
            .args(["--", "ip", "-j", "-d", "link", "show", "dev", tunnel])
            .output()
            .expect("ip can be run");
        let links: serde_json::Value = serde_json::from_slice(&shown.stdout).ok()?;
        let link = links.get(0)?;
        let tun = &link["linkinfo"]["info_data"];
        // Ids that have no name are shown as numbers, and scripts use only those.
        let number = |value: &serde_json::Value| {
            value.as_u64().map_or_else(|| "none".to_owned(), |id| id.to_string())
        };
        Some(Seen {
            mode: tun["type"].as_str()?.to_owned(),
            up: link["flags"].as_array()?.iter().any(|flag| flag == "UP"),
            mtu: link["mtu"].as_u64()?,
            persistent: tun["persist"].as_bool()?,
            owner: number(&tun["user"]),
            group: number(&tun["group"]),
        })
    }
}

const ETH_P_ALL: u16 = 3;
#[expect(clippy::cast_possible_truncation, reason = "a few bytes")]
const ADDRESS_SIZE: libc::socklen_t = size_of::<libc::sockaddr_ll>() as libc::socklen_t;

fn socket(family: i32, kind: i32, protocol: i32) -> OwnedFd {
    // SAFETY: no pointers.
    let made = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    assert!(made >= 0, "socket: {}", io::Error::last_os_error());
    // SAFETY: it has just been made, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(made) }
}

impl Far for Kernel {
    fn change(&mut self, tunnel: &str, change: &Change) {
        let _refused = self.try_change(tunnel, change);
    }

    fn inject(&mut self, tunnel: &str, datagram: &[u8], times: u32) {
        let _accepted = self.send(tunnel, datagram, times);
    }

    fn take(&mut self, tunnel: &str) -> Option<Vec<u8>> {
        self.receive();
        let interface = self.index(tunnel)?;
        let at = self.received.iter().position(|received| received.interface == interface)?;
        self.received.remove(at).map(|received| received.bytes)
    }

    fn show(&mut self, tunnel: &str) -> String {
        describe(self.seen(tunnel))
    }

    fn clear(&mut self, names: &[&str], _: &mut Program) {
        for interface in names.iter().filter_map(|name| self.index(name)) {
            self.delete(interface).expect("an interface can be deleted");
        }
        self.forget();
    }
}
