//! One token for each open request: its holder owes the client an answer.
//!
//! Owns the promise that each request is answered exactly once. The answer consumes the token, and so does `defer`. A token that is
//! dropped answers EIO, so no mistake or panic in a device leaves a client in a call that nothing ends. The types differ by what
//! the kernel accepts for the request.

use std::io::IoSlice;

use crate::channel::Channel;
use crate::codec::Reply;
use crate::errno::Errno;
use crate::request::{FileHandle, RequestId, UserRange};

/// What all tokens are: the request, where its answer goes, and whether one is owed still.
#[derive(Debug)]
struct Token<'c> {
    channel: &'c Channel,
    id: RequestId,
    send: fn(&Channel, RequestId, &Reply<'_>) -> bool,
    owed: bool,
}

impl Token<'_> {
    fn answer(mut self, reply: Reply<'_>) -> bool {
        self.owed = false;
        (self.send)(self.channel, self.id, &reply)
    }

    fn defer(mut self) -> RequestId {
        self.owed = false;
        self.id
    }
}

impl Drop for Token<'_> {
    fn drop(&mut self) {
        if self.owed {
            tracing::warn!(id = self.id.0, "request dropped without an answer, answering EIO");
            (self.send)(self.channel, self.id, &Reply::Error(Errno::EIO));
        }
    }
}

macro_rules! tokens {
    ($($(#[$doc:meta])* $name:ident from $from:ident by $send:ident;)*) => {
        $(
            $(#[$doc])*
            ///
            /// The answering methods return whether the kernel took the answer. It does not when nobody waits
            /// any more, because the connection has ended. Dropped without an answer, the token answers EIO.
            #[derive(Debug)]
            #[must_use = "a token that is dropped answers EIO"]
            pub struct $name<'c>(Token<'c>);

            impl<'c> $name<'c> {
                pub(crate) fn new(channel: &'c Channel, id: RequestId) -> Self {
                    Self(Token { channel, id, send: Channel::$send, owed: true })
                }

                /// The kernel's name for the request.
                pub fn id(&self) -> RequestId {
                    self.0.id
                }

                /// Where the answer will go.
                pub fn channel(&self) -> &'c Channel {
                    self.0.channel
                }

                /// Leaves the request open: it must be answered later, from any thread, with
                #[doc = concat!("[`Channel::", stringify!($from), "`].")]
                pub fn defer(self) -> RequestId {
                    self.0.defer()
                }
            }
        )*

        /// Tokens for requests that were deferred.
        ///
        /// The id must come from `defer` of the same kind of token, and must be answered once. The kernel ignores a second answer. It
        /// refuses an answer of another kind, and the caller then gets EIO.
        impl Channel {
            $(
                #[doc = concat!("The token of a request deferred by [`", stringify!($name), "::defer`].")]
                pub fn $from(&self, id: RequestId) -> $name<'_> {
                    $name::new(self, id)
                }
            )*
        }
    };
}

tokens! {
    /// Answers `open`.
    ReplyOpen from reply_open by answer;
    /// Answers `read`.
    ReplyRead from reply_read by answer;
    /// Answers `write`.
    ReplyWrite from reply_write by answer;
    /// Answers `ioctl`.
    ReplyIoctl from reply_ioctl by answer_ioctl;
    /// Answers `poll`.
    ReplyPoll from reply_poll by answer;
    /// Answers the last `close`.
    ReplyRelease from reply_release by answer;
}

impl ReplyOpen<'_> {
    /// The file is open, and is called `file` from now on.
    pub fn opened(self, file: FileHandle) -> bool {
        let flags = self.0.channel.open_flags();
        self.0.answer(Reply::Opened(file, flags))
    }

    /// `open` fails. (ENOSYS is sent as EIO: `fuse_file_open` would take it as "let every later open
    /// succeed without asking".)
    pub fn error(self, errno: Errno) -> bool {
        self.0.answer(Reply::Error(never_enosys(errno)))
    }
}

impl ReplyRead<'_> {
    /// `read` returns these bytes; none: end of file. At most [`Read::size`](crate::Read::size).
    pub fn bytes(self, data: &[u8]) -> bool {
        self.data(&[IoSlice::new(data)])
    }

    /// As [`bytes`](Self::bytes), with the bytes in several places: a header and a payload, say.
    pub fn data(self, pieces: &[IoSlice<'_>]) -> bool {
        self.0.answer(Reply::Data(pieces))
    }

    /// `read` fails.
    pub fn error(self, errno: Errno) -> bool {
        self.0.answer(Reply::Error(errno))
    }
}

impl ReplyWrite<'_> {
    /// `write` returns `size`, at most the length of the data.
    pub fn written(self, size: u32) -> bool {
        self.0.answer(Reply::Written(size))
    }

    /// `write` fails.
    pub fn error(self, errno: Errno) -> bool {
        self.0.answer(Reply::Error(errno))
    }
}

impl ReplyIoctl<'_> {
    /// `ioctl` returns `result` (negative: an errno), and `output` is stored in the output ranges.
    ///
    /// `output` is at most [`Ioctl::output_size`](crate::Ioctl::output_size) bytes. If the caller's memory cannot
    /// be written, the caller gets EFAULT and the device does not learn of it (of a [FUSE file](crate::fuse_file):
    /// unless `false` is returned).
    pub fn done(self, result: i32, output: &[u8]) -> bool {
        self.0.answer(Reply::Ioctl { result, output })
    }

    /// The kernel shall ask again, with the bytes of `input` and room for `output`.
    ///
    /// Ranges of all earlier rounds have to be named again. At most [`IOCTL_MAX_IOV`](crate::abi::IOCTL_MAX_IOV)
    /// ranges in total and 128 KiB each way, else the caller gets ENOMEM. If `input` cannot be read the caller
    /// gets EFAULT and the device is not asked again.
    ///
    /// On a [FUSE file](crate::fuse_file) this crate does what the kernel does on `/dev/cuse`, but only while
    /// [`Device::ioctl`](crate::Device::ioctl) runs: the caller of a deferred ioctl gets EIO.
    pub fn retry(self, input: &[UserRange], output: &[UserRange]) -> bool {
        self.0.answer(Reply::Retry { input, output })
    }

    /// `ioctl` fails. (The kernel turns ENOSYS into ENOTTY.)
    pub fn error(self, errno: Errno) -> bool {
        self.0.answer(Reply::Error(errno))
    }
}

impl ReplyPoll<'_> {
    /// The `POLL*` events that hold now; the kernel picks those the caller asked for.
    pub fn ready(self, revents: u32) -> bool {
        self.0.answer(Reply::Ready(revents))
    }

    /// The caller finds POLLERR, whatever the error. (ENOSYS is sent as EIO: `fuse_file_poll` would take it
    /// as "always ready" and never ask again.)
    pub fn error(self, errno: Errno) -> bool {
        self.0.answer(Reply::Error(never_enosys(errno)))
    }
}

impl ReplyRelease<'_> {
    /// The file's state is gone, `close` may return.
    pub fn done(self) -> bool {
        self.0.answer(Reply::Done)
    }

    /// As [`done`](Self::done): the kernel ignores the error.
    pub fn error(self, errno: Errno) -> bool {
        self.0.answer(Reply::Error(errno))
    }
}

fn never_enosys(errno: Errno) -> Errno {
    if errno == Errno::ENOSYS { Errno::EIO } else { errno }
}
