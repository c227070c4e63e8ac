//! The messages that only a FUSE mount gets: for tests of [`crate::fuse_file`] without `/dev/fuse`.

use zerocopy::{FromBytes, IntoBytes};

use super::check::Expected;
use super::{FakeKernel, message};
use crate::abi::{self, InitFlags, Opcode};
use crate::channel::Channel;
use crate::codec::{FileRequest, Init, Request, Setattr};
use crate::fuse_file::FileOptions;
use crate::request::{Caller, RequestId};

impl FakeKernel {
    /// A kernel, and a channel to it that serves a file.
    #[track_caller]
    pub fn connect_file(options: &FileOptions) -> (Self, Channel) {
        let (mut kernel, server) = Self::new();
        let id = kernel.send_file_init(7, 45);
        let channel = options.handshake(server).expect("the handshake");
        kernel.wait_file_init(id);
        (kernel, channel)
    }

    /// Offers the handshake of a FUSE mount in this version, with all flags that matter.
    #[track_caller]
    pub fn send_file_init(&mut self, major: u32, minor: u32) -> RequestId {
        self.send(Request::Init(Init { major, minor, flags: InitFlags::all() }))
    }

    /// Waits for the answer to the handshake of a FUSE mount.
    #[track_caller]
    pub fn wait_file_init(&mut self, id: RequestId) -> abi::InitOut {
        let body = self.wait(id).expect("INIT succeeds");
        abi::InitOut::read_from_bytes(&body).expect("the length of a reply is checked on arrival")
    }

    /// `stat`, or with `setattr` whatever changes attributes.
    #[track_caller]
    pub fn attributes(&mut self, setattr: Option<Setattr>) -> abi::Attr {
        let id =
            self.send(Request::File(setattr.map_or(FileRequest::Getattr, FileRequest::Setattr)));
        let body = self.wait(id).expect("the file has attributes");
        let out = abi::AttrOut::read_from_bytes(&body);
        out.expect("the length of a reply is checked on arrival").attr
    }
}

/// The handshake, which nobody in particular asks for.
pub(super) fn encode_init(id: RequestId, init: Init) -> (Opcode, Expected, Vec<u8>) {
    let Init { major, minor, flags } = init;
    let body = abi::InitIn { major, minor, max_readahead: 131_072, flags: flags.bits() };
    let nobody = Caller { tid: 0, uid: 0, gid: 0 };
    // flags2 and what is reserved since 7.36.
    let bytes = message(id, Opcode::INIT, nobody, &body, &[0; 48]);
    (Opcode::INIT, Expected::Exactly(size_of::<abi::InitOut>()), bytes)
}

/// A request that only a FUSE mount gets.
pub(super) fn encode(
    id: RequestId,
    caller: Caller,
    request: FileRequest,
) -> (Opcode, Expected, Vec<u8>) {
    let (opcode, expected, body) = match request {
        FileRequest::Getattr => {
            (Opcode::GETATTR, Expected::Exactly(size_of::<abi::AttrOut>()), vec![0; 16])
        }
        FileRequest::Setattr(setattr) => {
            let body = abi::SetattrIn {
                valid: setattr.valid.bits(),
                mode: setattr.mode,
                uid: setattr.uid,
                gid: setattr.gid,
                atime: setattr.atime.0,
                atimensec: setattr.atime.1,
                mtime: setattr.mtime.0,
                mtimensec: setattr.mtime.1,
                ..Default::default()
            };
            let expected = Expected::Exactly(size_of::<abi::AttrOut>());
            (Opcode::SETATTR, expected, body.as_bytes().to_vec())
        }
        FileRequest::Statfs => {
            (Opcode::STATFS, Expected::Exactly(size_of::<abi::Kstatfs>()), Vec::new())
        }
        FileRequest::Fsync => (Opcode::FSYNC, Expected::Empty, vec![0; 16]),
        FileRequest::Optional => (Opcode::GETXATTR, Expected::Error, vec![0; 8]),
    };
    (opcode, expected, message(id, opcode, caller, &(), &body))
}
