//! A network namespace, held open, and rtnetlink in it.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns, unshare},
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
        setsockopt, socket, sockopt,
    },
};

use crate::abi::rtnetlink::{self, Link, Message, Request};

/// A network namespace. It stays as long as this does.
#[derive(Debug)]
pub struct Network {
    file: OwnedFd,
    inode: u64,
}

impl Network {
    /// That of a thread.
    ///
    /// # Errors
    ///
    /// The thread has ended, or may not be looked at.
    pub fn of_thread(tid: u32) -> io::Result<Self> {
        File::open(format!("/proc/{tid}/ns/net"))?.try_into()
    }

    /// That of the thread which calls.
    ///
    /// # Errors
    ///
    /// There is no `/proc`.
    pub fn current() -> io::Result<Self> {
        File::open("/proc/thread-self/ns/net")?.try_into()
    }

    /// A new one, with a loopback interface that is down.
    pub(super) fn make() -> io::Result<Self> {
        in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            // What else is there stays silent. A kernel may have no IPv6, and the file may be read-only.
            let _silent = fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
            Self::current()
        })
    }

    /// The inode number, which is what tunnels are told apart by.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Runs something in the namespace: by this thread if it is there, else by one that moves.
    ///
    /// # Errors
    ///
    /// `EPERM` if this process may not enter it.
    pub(super) fn run<T: Send>(&self, act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        if Self::current().is_ok_and(|current| current.inode == self.inode) {
            return act();
        }
        in_thread(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET)?;
            act()
        })
    }
}

impl AsFd for Network {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Runs what moves to another namespace: only the thread that asks does, and it must not come back to others' work if it cannot
/// come back.
fn in_thread<T: Send>(act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let moved = thread::Builder::new().name("network".to_owned()).spawn_scoped(scope, act)?;
        moved.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl TryFrom<File> for Network {
    type Error = io::Error;

    fn try_from(file: File) -> io::Result<Self> {
        let inode = file.metadata()?.ino();
        Ok(Self { file: file.into(), inode })
    }
}

/// rtnetlink in one namespace: requests, each answered before the next.
#[derive(Debug)]
pub(super) struct Requests {
    socket: Mutex<OwnedFd>,
    sequence: AtomicU32,
}

impl Requests {
    /// In the namespace of the thread which calls.
    pub(super) fn open() -> io::Result<Self> {
        let socket = netlink(SockFlag::SOCK_CLOEXEC)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self { socket: Mutex::new(socket), sequence: AtomicU32::new(0) })
    }

    /// Asks for a change.
    pub(super) fn change(&self, request: Request) -> Result<(), Errno> {
        self.ask(request).map(drop)
    }

    /// What the kernel knows of a link; `ENODEV` if there is none.
    pub(super) fn link(&self, index: u32) -> Result<Link, Errno> {
        self.look_up(Request::new(rtnetlink::GETLINK, 0, index))
    }

    /// The same, by its name.
    pub(super) fn link_named(&self, name: &[u8]) -> Result<Link, Errno> {
        let request = Request::new(rtnetlink::GETLINK, 0, 0);
        self.look_up(request.attribute(rtnetlink::attribute::NAME, &[name, b"\0"].concat()))
    }

    fn look_up(&self, request: Request) -> Result<Link, Errno> {
        self.ask(request)?.ok_or(Errno::ENODEV)
    }

    /// The kernel performs a request before `send` returns, so its answer is there: nothing can block for long.
    fn ask(&self, request: Request) -> Result<Option<Link>, Errno> {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        let bytes = request.into_bytes(sequence);
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        send(socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        let mut buffer = [0; RECEIVE];
        loop {
            let length = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                received => received?,
            };
            for message in rtnetlink::messages(&buffer[..length]) {
                match message {
                    Message::Ended { sequence: of, outcome } if of == sequence => {
                        return outcome.map(|()| None).map_err(Errno::from_raw);
                    }
                    Message::Link(link) => return Ok(Some(link)),
                    Message::Ended { .. } | Message::Gone { .. } | Message::Other => {}
                }
            }
        }
    }
}

/// rtnetlink's news about links of one namespace.
#[derive(Debug)]
pub(super) struct Monitor(OwnedFd);

/// What a monitor says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    /// It happened to one link.
    Message(Message),
    /// Some were lost: every link is to be looked at.
    Lost,
}

impl Monitor {
    /// In the namespace of the thread which calls; never blocks.
    pub(super) fn open() -> io::Result<Self> {
        /// `RTMGRP_LINK`.
        const LINKS: u32 = 1;
        let socket = netlink(SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
        setsockopt(&socket, sockopt::RcvBuf, &MONITOR_BUFFER)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, LINKS))?;
        Ok(Self(socket))
    }

    /// What has come, until there is no more.
    ///
    /// After an overrun the kernel says so once, and goes on to lose news silently until everything was read
    /// (`netlink_overrun`, `netlink_rcv_wake`). So [`News::Lost`] comes last, when what is looked at cannot be overtaken by
    /// older news. A bound keeps whoever makes news faster than it is read from holding the reader; then `lost` stays for
    /// the next time.
    pub(super) fn read(&self, lost: &mut bool, mut each: impl FnMut(News)) {
        let mut buffer = [0; RECEIVE];
        for _ in 0..NEWS_AT_ONCE {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => {
                    rtnetlink::messages(&buffer[..length])
                        .for_each(|message| each(News::Message(message)));
                }
                Err(Errno::EAGAIN) => {
                    if std::mem::take(lost) {
                        each(News::Lost);
                    }
                    return;
                }
                Err(Errno::EINTR) => {}
                // ENOBUFS; whatever else there might be has the same consequence.
                Err(_) => *lost = true,
            }
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Room for one datagram of rtnetlink: the kernel sends no more than a page or 8 KiB at a time, unless asked for more.
const RECEIVE: usize = 16 << 10;
/// Room for a burst of news; the kernel cuts it to `net.core.rmem_max`. What is lost is found out by looking.
const MONITOR_BUFFER: usize = 1 << 20;
const NEWS_AT_ONCE: usize = 1024;

fn netlink(flags: SockFlag) -> io::Result<OwnedFd> {
    let protocol = SockProtocol::NetlinkRoute;
    Ok(socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?)
}
