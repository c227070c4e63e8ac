//! Whole system calls of a client: a request, the wait for its reply, and what `libc` would return.

use std::collections::BTreeMap;

use zerocopy::FromBytes;

use super::{Answer, FakeKernel};
use crate::abi::{self, CuseInitFlags, IoctlFlags};
use crate::codec::{CuseInit, Request};
use crate::errno::Errno;
use crate::request::{FileHandle, Ioctl, Open, Poll, PollHandle, Read, RequestId, Write};

/// What a server answered to CUSE_INIT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitReply {
    /// Version of the protocol.
    pub version: (u32, u32),
    /// What was agreed.
    pub flags: CuseInitFlags,
    /// The most bytes of a READ.
    pub max_read: u32,
    /// The most bytes of a WRITE.
    pub max_write: u32,
    /// Major and minor number of the device.
    pub device_number: (u32, u32),
    /// The `KEY=VALUE\0` list.
    pub info: Vec<u8>,
}

/// The system calls.
impl FakeKernel {
    /// Offers the handshake in this version, with unrestricted ioctl.
    #[track_caller]
    pub fn send_init(&mut self, major: u32, minor: u32) -> RequestId {
        let flags = CuseInitFlags::UNRESTRICTED_IOCTL;
        self.send(Request::CuseInit(CuseInit { major, minor, flags }))
    }

    /// Waits for the answer to the handshake.
    #[track_caller]
    pub fn wait_init(&mut self, id: RequestId) -> InitReply {
        let body = self.wait(id).expect("CUSE_INIT succeeds");
        let (init, info) = split::<abi::CuseInitOut>(&body);
        InitReply {
            version: (init.major, init.minor),
            flags: CuseInitFlags::from_bits_retain(init.flags),
            max_read: init.max_read,
            max_write: init.max_write,
            device_number: (init.dev_major, init.dev_minor),
            info: info.to_vec(),
        }
    }

    /// `open` with these `O_*` flags.
    #[track_caller]
    pub fn open(&mut self, flags: u32) -> Result<FileHandle, Errno> {
        let id = self.send(Request::Open(Open { flags }));
        let body = self.wait(id)?;
        Ok(FileHandle(split::<abi::OpenOut>(&body).0.fh))
    }

    /// Begins a `read` with room for `size` bytes, to be ended by [`wait`](Self::wait).
    #[track_caller]
    pub fn send_read(&mut self, file: FileHandle, size: u32, flags: u32) -> RequestId {
        self.send(Request::Read(Read { file, offset: 0, size, flags }))
    }

    /// `read` with room for `size` bytes, on a file with these `O_*` flags.
    #[track_caller]
    pub fn read(&mut self, file: FileHandle, size: u32, flags: u32) -> Answer {
        let id = self.send_read(file, size, flags);
        self.wait(id)
    }

    /// `write` on a file with these `O_*` flags.
    #[track_caller]
    pub fn write(&mut self, file: FileHandle, data: &[u8], flags: u32) -> Result<u32, Errno> {
        let id = self.send(Request::Write(Write { file, offset: 0, data: data.into(), flags }));
        let body = self.wait(id)?;
        Ok(split::<abi::WriteOut>(&body).0.size)
    }

    /// `ioctl` of a 64-bit client with this memory: all rounds of `fuse_do_ioctl`.
    #[track_caller]
    pub fn ioctl(
        &mut self,
        file: FileHandle,
        command: u32,
        argument: u64,
        memory: &mut ClientMemory,
    ) -> Result<i32, Errno> {
        let flags = IoctlFlags::UNRESTRICTED;
        let (mut input, mut outputs, mut output_size) = (Vec::new(), Vec::new(), 0);
        loop {
            let ioctl = Ioctl { file, command, argument, flags, input: &input, output_size };
            let id = self.send(Request::Ioctl(ioctl));
            let body = self.wait(id)?;
            let (reply, rest) = split::<abi::IoctlOut>(&body);
            if reply.flags & IoctlFlags::RETRY.bits() == 0 {
                memory.scatter(&outputs, rest)?;
                let failed = (-4095..0).contains(&reply.result);
                return if failed {
                    Err(Errno::from_number(-reply.result))
                } else {
                    Ok(reply.result)
                };
            }
            let mut inputs = iovecs(rest);
            outputs = inputs.split_off(reply.in_iovs as usize);
            total(&inputs)?;
            output_size = total(&outputs)?;
            input = memory.gather(&inputs)?;
        }
    }

    /// `poll` for these `POLL*` events, going to sleep (with a name for notifications) or not.
    #[track_caller]
    pub fn poll(
        &mut self,
        file: FileHandle,
        events: u32,
        notify: Option<PollHandle>,
    ) -> Result<u32, Errno> {
        let id = self.send(Request::Poll(Poll { file, events, notify }));
        let body = self.wait(id)?;
        Ok(split::<abi::PollOut>(&body).0.revents)
    }

    /// Sends a signal to the client that waits for `target` (or will have, for an id of the future).
    #[track_caller]
    pub fn interrupt(&mut self, target: RequestId) {
        self.send(Request::Interrupt(target));
    }

    /// The last `close`.
    #[track_caller]
    pub fn release(&mut self, file: FileHandle) {
        let id = self.send(Request::Release(file));
        // The kernel ignores the error.
        let _ = self.wait(id);
    }
}

/// The memory of a client, as far as an ioctl may reach: ranges of bytes, each with an address.
#[derive(Clone, Debug, Default)]
pub struct ClientMemory {
    ranges: BTreeMap<u64, Vec<u8>>,
}

impl ClientMemory {
    /// Memory that is nowhere mapped.
    pub fn new() -> Self {
        Self::default()
    }

    /// Maps `bytes` at `address`.
    #[must_use]
    pub fn with(mut self, address: u64, bytes: &[u8]) -> Self {
        self.ranges.insert(address, bytes.to_vec());
        self
    }

    /// The range that was mapped at `address`, as it is now.
    ///
    /// # Panics
    ///
    /// If nothing was mapped there.
    #[track_caller]
    pub fn at(&self, address: u64) -> &[u8] {
        self.ranges.get(&address).expect("the address is that of a mapping")
    }

    /// What the kernel copies in. EFAULT: not all of it is mapped.
    fn gather(&mut self, iovecs: &[abi::IoctlIovec]) -> Result<Vec<u8>, Errno> {
        let mut input = Vec::new();
        for iovec in iovecs {
            input.extend_from_slice(self.slice(*iovec)?);
        }
        Ok(input)
    }

    /// Copies out what there is. EFAULT: not all of the place is mapped.
    fn scatter(&mut self, iovecs: &[abi::IoctlIovec], mut output: &[u8]) -> Result<(), Errno> {
        for iovec in iovecs {
            let here = output.len().min(size(*iovec)?);
            let place = abi::IoctlIovec { len: here as u64, ..*iovec };
            let (bytes, rest) = output.split_at(here);
            self.slice(place)?.copy_from_slice(bytes);
            output = rest;
        }
        Ok(())
    }

    fn slice(&mut self, iovec: abi::IoctlIovec) -> Result<&mut [u8], Errno> {
        let size = size(iovec)?;
        if size == 0 {
            return Ok(&mut []);
        }
        let (start, bytes) =
            self.ranges.range_mut(..=iovec.base).next_back().ok_or(Errno::EFAULT)?;
        let from = usize::try_from(iovec.base - start).map_err(|_| Errno::EFAULT)?;
        let to = from.checked_add(size).ok_or(Errno::EFAULT)?;
        bytes.get_mut(from..to).ok_or(Errno::EFAULT)
    }
}

fn size(iovec: abi::IoctlIovec) -> Result<usize, Errno> {
    usize::try_from(iovec.len).map_err(|_| Errno::EFAULT)
}

/// The bytes of all ranges (`fuse_verify_ioctl_iov`: ENOMEM beyond what a message carries).
fn total(iovecs: &[abi::IoctlIovec]) -> Result<u32, Errno> {
    let total = iovecs.iter().fold(0_u64, |sum, iovec| sum.saturating_add(iovec.len));
    let total = u32::try_from(total).map_err(|_| Errno::ENOMEM)?;
    if total > abi::MAX_DATA { Err(Errno::ENOMEM) } else { Ok(total) }
}

/// The ranges of a retry.
fn iovecs(mut bytes: &[u8]) -> Vec<abi::IoctlIovec> {
    let mut iovecs = Vec::new();
    while let Ok((iovec, rest)) = abi::IoctlIovec::read_from_prefix(bytes) {
        iovecs.push(iovec);
        bytes = rest;
    }
    iovecs
}

/// The fixed part of a reply whose length was checked when it arrived, and the rest.
fn split<T: FromBytes>(body: &[u8]) -> (T, &[u8]) {
    T::read_from_prefix(body).expect("the length of a reply is checked on arrival")
}
