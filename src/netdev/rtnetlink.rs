//! rtnetlink in one network namespace: requests and news.
//!
//! A user who is root in a namespace decides how long its messages are (alternative names, statistics), may send messages to any socket
//! there, and may remove a device while an answer about it is awaited. So there is room for a message of any length, only messages of the
//! kernel count, an answer is known by its number, and the wait for an answer ends.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv,
            recvfrom, send, setsockopt, socket, sockopt,
        },
        time::TimeVal,
    },
};

use super::buffer;
use crate::abi::rtnetlink::{self, Link, Message, Request};

/// rtnetlink in one namespace: requests, each answered before the next.
#[derive(Debug)]
pub(super) struct Requests {
    socket: Mutex<Socket>,
    sequence: AtomicU32,
}

impl Requests {
    /// In the namespace of the thread which calls.
    pub(super) fn open() -> io::Result<Self> {
        let socket = Socket::open(SockFlag::empty(), NO_GROUP)?;
        setsockopt(&socket.file, sockopt::ReceiveTimeout, &ANSWER)?;
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

    /// The kernel performs a request before `send` returns, so its answer is there, unless it was lost.
    ///
    /// # Errors
    ///
    /// `ETIMEDOUT` if there is no answer.
    fn ask(&self, request: Request) -> Result<Option<Link>, Errno> {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        let bytes = request.into_bytes(sequence);
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        send(socket.file.as_raw_fd(), &bytes, MsgFlags::empty())?;
        buffer::with(0, |buffer| Self::answer(&socket, sequence, buffer))
    }

    fn answer(socket: &Socket, sequence: u32, buffer: &mut Vec<u8>) -> Result<Option<Link>, Errno> {
        for _ in 0..FOREIGN_AT_ONCE {
            let received = match socket.receive(buffer) {
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return Err(Errno::ETIMEDOUT),
                received => received?,
            };
            // What comes late answers a request that was given up.
            let answers = rtnetlink::messages(received).filter(|(of, _)| *of == sequence);
            for (_, message) in answers {
                match message {
                    Message::Ended(outcome) => {
                        return outcome.map(|()| None).map_err(Errno::from_raw);
                    }
                    Message::Link(link) => return Ok(Some(link)),
                    Message::Gone { .. } | Message::Other => {}
                }
            }
        }
        Err(Errno::ETIMEDOUT)
    }
}

/// rtnetlink's news about links of one namespace.
#[derive(Debug)]
pub(super) struct Monitor(Mutex<Socket>, OwnedFd);

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
        let socket = Socket::open(SockFlag::SOCK_NONBLOCK, LINKS)?;
        setsockopt(&socket.file, sockopt::RcvBuf, &MONITOR_BUFFER)?;
        let file = socket.file.try_clone()?;
        Ok(Self(Mutex::new(socket), file))
    }

    /// Whether something has come, or was lost.
    pub(super) fn is_readable(&self) -> bool {
        let mut files = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        // What cannot be told is read.
        poll(&mut files, PollTimeout::ZERO) != Ok(0)
    }

    /// What has come, until there is no more.
    ///
    /// After an overrun the kernel says so once, and goes on to lose news silently until everything was read
    /// (`netlink_overrun`, `netlink_rcv_wake`). So [`News::Lost`] comes last, when what is looked at cannot be overtaken by
    /// older news. A bound keeps whoever makes news faster than it is read from holding the reader; then `lost` stays for
    /// the next time.
    pub(super) fn read(&self, lost: &mut bool, each: impl FnMut(News)) {
        let socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        buffer::with(0, |buffer| Self::read_into(&socket, buffer, lost, each));
    }

    fn read_into(
        socket: &Socket,
        buffer: &mut Vec<u8>,
        lost: &mut bool,
        mut each: impl FnMut(News),
    ) {
        for _ in 0..NEWS_AT_ONCE {
            match socket.receive(buffer) {
                Ok(received) => {
                    rtnetlink::messages(received)
                        .for_each(|(_, message)| each(News::Message(message)));
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
        self.1.as_fd()
    }
}

/// A socket of rtnetlink.
#[derive(Debug)]
struct Socket {
    file: OwnedFd,
}

impl Socket {
    /// In the namespace of the thread which calls; it gets what is sent to these groups.
    fn open(flags: SockFlag, groups: u32) -> io::Result<Self> {
        let flags = flags | SockFlag::SOCK_CLOEXEC;
        let protocol = SockProtocol::NetlinkRoute;
        let file = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        bind(file.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Self { file })
    }

    /// The next datagram; nothing of it if it is not the kernel's.
    fn receive<'a>(&self, buffer: &'a mut Vec<u8>) -> Result<&'a [u8], Errno> {
        let file = self.file.as_raw_fd();
        // Its length first: what does not fit would be cut.
        let length = recv(file, &mut [], MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC)?;
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        let (length, from) = recvfrom::<NetlinkAddr>(file, buffer)?;
        let is_kernels = from.is_some_and(|from| from.pid() == 0);
        Ok(if is_kernels { buffer.get(..length).unwrap_or_default() } else { &[] })
    }
}

const NO_GROUP: u32 = 0;
/// How long the kernel may take to have an answer, which it has when a request was sent.
const ANSWER: TimeVal = TimeVal::new(5, 0);
/// Datagrams that are passed over while an answer is waited for.
const FOREIGN_AT_ONCE: usize = 1024;
/// Room for a burst of news; the kernel cuts it to `net.core.rmem_max`. What is lost is found out by looking.
const MONITOR_BUFFER: usize = 1 << 20;
const NEWS_AT_ONCE: usize = 1024;
