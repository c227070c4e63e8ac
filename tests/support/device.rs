//! A client of the device, one system call a method.
#![allow(unsafe_code, reason = "ioctl takes a pointer")]

use std::{
    io::{IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use memtun::abi::tun::{IfFlags, IfReq, Name, ioctl};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl, open},
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{AddressFamily, SockFlag, SockType, socket},
        stat::Mode,
    },
};

pub const TUN: u16 = IfFlags::TUN.bits();
pub const TAP: u16 = IfFlags::TAP.bits();
pub const NO_PI: u16 = IfFlags::NO_PI.bits();
pub const MULTI_QUEUE: u16 = IfFlags::MULTI_QUEUE.bits();
pub const VNET_HDR: u16 = IfFlags::VNET_HDR.bits();
pub const TUN_EXCL: u16 = IfFlags::TUN_EXCL.bits();

/// An open file of the device.
#[derive(Debug)]
pub struct TunFile(OwnedFd);

impl TunFile {
    pub fn open(path: &Path) -> Self {
        Self::open_with(path, OFlag::O_RDWR | OFlag::O_CLOEXEC).expect("the device can be opened")
    }

    pub fn open_with(path: &Path, flags: OFlag) -> Result<Self, Errno> {
        open(path, flags, Mode::empty()).map(Self)
    }

    /// An open file, attached.
    pub fn attached(path: &Path, name: &str, flags: u16) -> Self {
        let file = Self::open(path);
        file.set_iff(name, flags).expect("TUNSETIFF succeeds");
        file
    }

    pub fn set_iff(&self, name: &str, flags: u16) -> Result<String, Errno> {
        let mut request = [0; IfReq::SIZE];
        request[..name.len()].copy_from_slice(name.as_bytes());
        request[16..18].copy_from_slice(&flags.to_ne_bytes());
        self.ioctl(ioctl::TUNSETIFF, &mut request)?;
        Ok(Name::new(&request[..16]).to_string())
    }

    /// Name and flags.
    pub fn get_iff(&self) -> Result<(String, IfFlags), Errno> {
        let mut request = [0xff; IfReq::SIZE];
        self.ioctl(ioctl::TUNGETIFF, &mut request)?;
        let request = IfReq::from_bytes(&request).expect("an ifreq has 40 bytes");
        Ok((request.name().to_string(), request.flags()))
    }

    /// An ioctl whose argument is a pointer; the buffer must be as long as the command needs.
    pub fn ioctl(&self, command: u32, argument: &mut [u8]) -> Result<i32, Errno> {
        assert!(argument.len() >= 4, "the shortest argument behind a pointer is an int");
        // SAFETY: the pointer is valid for as many bytes as the driver reads and writes, by the caller's word.
        let result =
            unsafe { libc::ioctl(self.0.as_raw_fd(), command.into(), argument.as_mut_ptr()) };
        Errno::result(result)
    }

    /// An ioctl whose argument is a value, or an address that the driver is to refuse.
    pub fn ioctl_value(&self, command: u32, argument: usize) -> Result<i32, Errno> {
        // SAFETY: the argument is a number to the driver; as an address it is one that nothing is mapped at.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), command.into(), argument) };
        Errno::result(result)
    }

    pub fn read(&self) -> Result<Vec<u8>, Errno> {
        self.read_up_to(70_000)
    }

    pub fn read_up_to(&self, limit: usize) -> Result<Vec<u8>, Errno> {
        let mut buffer = vec![0; limit];
        let length = nix::unistd::read(&self.0, &mut buffer)?;
        buffer.truncate(length);
        Ok(buffer)
    }

    pub fn readv(&self, sizes: &[usize]) -> Result<(usize, Vec<Vec<u8>>), Errno> {
        let mut buffers: Vec<Vec<u8>> = sizes.iter().map(|size| vec![0; *size]).collect();
        let mut pieces: Vec<IoSliceMut<'_>> =
            buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
        let length = nix::sys::uio::readv(&self.0, &mut pieces)?;
        Ok((length, buffers))
    }

    pub fn write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        nix::unistd::write(&self.0, bytes)
    }

    pub fn writev(&self, pieces: &[&[u8]]) -> Result<usize, Errno> {
        let pieces: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        nix::sys::uio::writev(&self.0, &pieces)
    }

    pub fn set_nonblocking(&self, on: bool) {
        let flags = fcntl(&self.0, FcntlArg::F_GETFL).expect("F_GETFL");
        let mut flags = OFlag::from_bits_retain(flags);
        flags.set(OFlag::O_NONBLOCK, on);
        fcntl(&self.0, FcntlArg::F_SETFL(flags)).expect("F_SETFL");
    }

    /// What poll(2) says, having waited for at most so long.
    pub fn poll(&self, events: PollFlags, timeout: PollTimeout) -> PollFlags {
        let mut files = [PollFd::new(self.0.as_fd(), events)];
        poll(&mut files, timeout).expect("poll");
        files[0].revents().expect("only flags that nix knows")
    }

    pub fn try_clone(&self) -> Self {
        Self(self.0.try_clone().expect("dup"))
    }

    pub fn into_fd(self) -> OwnedFd {
        self.0
    }
}

impl AsFd for TunFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Brings an interface of the calling thread's network namespace up or down, as programs do: SIOCSIFFLAGS.
pub fn set_up(name: &str, up: bool) {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .expect("a socket");
    let mut request = [0; IfReq::SIZE];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16] = up.into();
    // SAFETY: the kernel reads a `struct ifreq`, and the buffer is as long as one.
    let result =
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, request.as_mut_ptr()) };
    Errno::result(result).expect("SIOCSIFFLAGS");
}
