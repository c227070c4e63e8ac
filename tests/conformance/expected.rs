//! Where memtun is known not to answer as the kernel's tun.
//!
//! A row says why by the first words of a `DIFFERS:` comment, and it is an error if the difference does not occur.

use memtun::core::Interface;

use super::memtun::{Device, FrontEnd};

/// A known difference; all but the reason are patterns, see [`matches`].
#[derive(Debug)]
pub struct Expected {
    /// Which front ends have it.
    pub of: Of,
    /// The script.
    pub script: &'static str,
    pub step: &'static str,
    /// The kernel's result.
    pub kernel: &'static str,
    /// memtun's.
    pub memtun: &'static str,
    /// How the `DIFFERS:` comment begins that explains it.
    pub because: &'static str,
}

/// Front ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    All,
    /// Those to which the kernel sends messages: a character device, and a file.
    Messages,
    Cuse,
    Fuse,
    Notify,
    /// Those with bridges, whose queues are the kernel's.
    Bridge,
    /// Those whose queues are memtun's.
    Queues,
    BridgeOfCuse,
}

impl Of {
    pub fn contains(self, front_end: FrontEnd) -> bool {
        let FrontEnd { device, interface } = front_end;
        match self {
            Self::All => true,
            Self::Messages => !Self::Notify.contains(front_end),
            Self::Cuse => device == Device::Cuse,
            Self::Fuse => matches!(device, Device::Fuse(_)),
            Self::Notify => matches!(device, Device::Notify(_)),
            Self::Bridge => interface == Interface::Bridge,
            Self::Queues => interface != Interface::Bridge,
            Self::BridgeOfCuse => {
                Self::Bridge.contains(front_end) && Self::Cuse.contains(front_end)
            }
        }
    }
}

#[rustfmt::skip]
pub const EXPECTED: &[Expected] = {
    use Of::*;
    const fn row(
        of: Of, script: &'static str, step: &'static str, kernel: &'static str, memtun: &'static str,
        because: &'static str,
    ) -> Expected {
        Expected { of, script, step, kernel, memtun, because }
    }
    &[
        row(Cuse, "1.2-namespaces", "ioctl ? SIOCGSKNS *", "descriptor*", "-1 EPERM", "SIOCGSKNS and TUNGETDEVNETNS return"),
        row(Cuse, "1.2-namespaces", "ioctl ? TUNGETDEVNETNS *", "descriptor*", "-1 EPERM", "SIOCGSKNS and TUNGETDEVNETNS return"),
        row(All, "1.2-ebpf", "ioctl ? TUNSET*EBPF int:999", "-1 EBADF", "-1 EINVAL", "TUNSETSTEERINGEBPF and TUNSETFILTEREBPF take no"),
        row(All, "1.2-ebpf-filters", "ioctl ? TUNSET*EBPF fd:?", "0", "-1 EINVAL", "TUNSETSTEERINGEBPF and TUNSETFILTEREBPF take no"),
        row(All, "1.2-ebpf-filters", "read a 100", "-1 EAGAIN", "16 *", "TUNSETSTEERINGEBPF and TUNSETFILTEREBPF take no"),
        row(All, "1.2-ebpf-filters", "read a 100", "15 *", "16 *", "TUNSETSTEERINGEBPF and TUNSETFILTEREBPF take no"),
        row(All, "1.3-filter-of-a-persistent-device", "ioctl b TUNGETIFF *", "-1 EBADFD", "0 *", "a queue that is attached while TUNATTACHFILTER"),
        row(All, "1.3-filter-of-a-persistent-device", "poll b *", "1 ERR", "0", "a queue that is attached while TUNATTACHFILTER"),

        row(Messages, "2-restarted", "blocked t", "blocked", "ended", "a signal ends a blocked read with EINTR"),
        row(Messages, "2-restarted", "join t", "28 *", "-1 EINTR", "a signal ends a blocked read with EINTR"),
        row(Messages, "2-stopped", "join t", "28 *", "-1 EINTR", "a blocked read ends with EINTR when its program is stopped"),

        // DIFFERS: a process gets no SIGIO, O_ASYNC is not kept, and FIOASYNC gets ENOTTY. The kernel passes neither O_ASYNC
        // nor FIOASYNC to a server.
        row(Messages, "1.1-fioasync", "ioctl a FIOASYNC int:1", "0", "-1 ENOTTY", NO_SIGIO),
        row(Messages, "1.1-fioasync", "fcntl a getfl", "024002", "04002", NO_SIGIO),
        row(Messages, "4-async", "fcntl a getfl", "024002", "04002", NO_SIGIO),
        row(Messages, "4-async", "fcntl a getown", "this process", "nobody", NO_SIGIO),
        row(Messages, "4-async*", "signals 1", "1*", "0", NO_SIGIO),

        // DIFFERS: preadv2 with RWF_NOWAIT gets EOPNOTSUPP, as on every file of CUSE and FUSE.
        row(Messages, "2-nowait", "preadv2 a 100 8", "*", "-1 EOPNOTSUPP", "preadv2 with RWF_NOWAIT"),

        // DIFFERS: a file that is in an epoll set before TUNSETIFF wakes it afterwards. In the kernel's tun the set is
        // registered nowhere before TUNSETIFF. An edge-triggered wait for output alone also wakes for datagrams:
        // FUSE_NOTIFY_POLL does not name the event.
        row(Messages, "4-epoll-before-attachment", "epoll e wait 0", "0", "1 a=IN", "a file that is in an epoll set"),
        row(Messages, "4-epoll-edge-of-output", "epoll e wait 0", "0", "1 a=OUT", "a file that is in an epoll set"),

        // DIFFERS: a read or write whose memory is mapped only in part transfers the mapped part. If nothing is mapped, it gets
        // EFAULT, and memtun sees no request. The kernel's tun answers EFAULT to such a write, and takes nothing. It ignores
        // that it cannot store the payload of a read, and returns the full length.
        row(Messages, "2-bad-memory", "read a null:100", "28", "-1 EFAULT", PARTLY_MAPPED),
        row(Messages, "2-bad-memory", "read c ro:100", "28 *", "-1 EFAULT", PARTLY_MAPPED),
        row(Messages, "2-bad-memory", "read ? 100", "-1 EAGAIN", "28 *", PARTLY_MAPPED),
        row(Messages, "2-bad-memory", "read b edge:10:100", "28 45*", "10 45*", PARTLY_MAPPED),
        row(Messages, "2-bad-memory", "readv d 4,bad:8,100", "28 4500001ca5*", "4 4500001c", PARTLY_MAPPED),
        row(Messages, "2-bad-memory-for-headers", "read ? edge:*", "-1 EFAULT beyond *", "-1 EINVAL", PARTLY_MAPPED),
        row(Messages, "2-bad-memory-for-headers", "read b 100", "-1 EAGAIN", "32 *", PARTLY_MAPPED),
        row(Messages, "3-bad-memory", "write a edge:*", "-1 EFAULT", "*", PARTLY_MAPPED),
        row(Messages, "3-bad-memory", "writev a 4500,bad:10", "-1 EFAULT", "2", PARTLY_MAPPED),
        row(Messages, "3-bad-memory", "> take tun0", "nothing", "45*", PARTLY_MAPPED),
        row(Messages, "3-bad-memory-in-headers", "write a edge:4:*", "-1 EFAULT", "4", PARTLY_MAPPED),
        row(Messages, "3-bad-memory-in-headers", "write ? edge:*", "-1 EFAULT", "-1 EINVAL", PARTLY_MAPPED),
        row(Messages, "1.1-unattached", "ioctl a TUNGETFEATURES edge:3:*", "-1 EFAULT", "-1 EFAULT 7371", PARTLY_MAPPED),

        // DIFFERS: a read that fails with EINVAL because the vnet header does not fit into the reader's buffer leaves the buffer
        // as it was: an error reply carries no data.
        // The kernel's tun has stored the PI header by then.
        row(All, "random", "join t", "-1 EINVAL beyond *", "-1 EINVAL", "a read that fails with EINVAL because"),
        row(All, "*", "read* ? *", "-1 EINVAL beyond *", "-1 EINVAL", "a read that fails with EINVAL because"),

        // DIFFERS: a write of megabytes succeeds, but takes at most 8 MiB. The kernel needs memory in one piece for it, and
        // fails with ENOBUFS from about 4 MiB on.
        row(Messages, "3-larger", "write a 45+00*7999999", "-1 ENOBUFS", "8000000", "a write of megabytes succeeds"),

        // DIFFERS: on a bridge a large write gives the kernel only its beginning, and the rest is dropped. This holds for more
        // than 256 pieces or 1 MiB, on a character device for more than 32 pieces or 128 KiB. The file system passes such a
        // write in parts, and memtun has to answer the first part before it sees the next.
        row(Bridge, "3-basics", "> take tun0", "4545*..1024:*", "4545*", IN_PARTS),
        row(BridgeOfCuse, "3-many-pieces", "> take tun0", "4500*", "4500*", IN_PARTS),

        row(All, "3-napi", "writev a *", "-1 E*", "*", "on a tunnel with IFF_NAPI_FRAGS"),

        // DIFFERS: a full queue has room as soon as a datagram is read. The kernel frees the places of its ring in batches of
        // 16 (`__ptr_ring_discard_one`).
        row(Queues, "5.1-queue-length-of-a-tun", "drain a", "499 4511", "500 4577", "a full queue has room as soon"),

        // DIFFERS: the device has another number than 10:200, or is a regular file. `/proc/PID/fdinfo` does not name the
        // tunnel.
        row(Messages, "4-stat-and-fdinfo", "fstat a", "*", "*", "the device has another number"),
        row(All, "4-stat-and-fdinfo", "fdinfo a", "fdinfo iff=*", "fdinfo", "the device has another number"),

        // DIFFERS: two defects of the kernel's driver are not repeated. It stores 24 bytes of vnet header for a client that
        // accepts UDP_TUNNEL_GSO, though the header's size is 10, so that reads get EFAULT. And a file that was not the first
        // queue of a deleted tunnel gets EBUSY from TUNSETIFF for ever.
        row(All, "2-udp-tunnel-offload", "read a 24", "-1 EFAULT beyond *", "24 *", "two defects of the kernel's driver"),
        row(All, "1.5-queues-of-a-deleted-device", "ioctl b TUNSETIFF *", "-1 EBUSY", "0 *", "two defects of the kernel's driver"),

        // DIFFERS: on a character device lseek succeeds.
        row(Cuse, "4-not-served", "lseek a *", "-1 ESPIPE", "0", "on a character device lseek succeeds"),
        row(Cuse, "*", "read ? 0", "-1 EBADFD", "0", "a read or write of zero bytes returns 0"),
        row(Cuse, "*", "write ? +", "-1 E*", "0", "a read or write of zero bytes returns 0"),
        row(Cuse, "*", "write ? null:0", "-1 E*", "0", "a read or write of zero bytes returns 0"),

        // DIFFERS: on a FUSE file an ioctl whose number says that it has memory gets EFAULT if the memory is not there. The
        // kernel checks this first, even where its tun driver would answer EBADFD, EINVAL or EPERM. The kernel also answers
        // FIONREAD itself.
        row(Fuse, "*", "ioctl ? * null", "-1 E*", "-1 EFAULT", "on a FUSE file an ioctl whose number"),
        row(Fuse, "*", "ioctl ? * bad", "-1 E*", "-1 EFAULT", "on a FUSE file an ioctl whose number"),

        // DIFFERS: on a FUSE file close returns before the tunnel and its netdev are gone: the kernel does not wait for the
        // answer to RELEASE. The next open of the device, and every verb, wait until they are gone. The step program opens the
        // device after each close for this reason.

        // DIFFERS: on a FUSE file pread and pwrite get ESPIPE, O_DIRECT is allowed, and truncation has no effect. It is a
        // regular file that behaves as a stream.
        row(Fuse, "2-position", "pread *", "28 *", "-1 ESPIPE", STREAM),
        row(Fuse, "3-position", "pwrite *", "*", "-1 ESPIPE", STREAM),
        row(Fuse, "3-position", "> take tun0", "4599", "nothing", STREAM),
        row(Fuse, "1.1-open-modes", "open d direct|rdwr", "-1 EINVAL", "ok", STREAM),
        row(Fuse, "4-not-served", "other a ftruncate", "-1 EINVAL", "0", STREAM),
        row(Fuse, "4-not-served", "other a fallocate", "-1 ENODEV", "-1 EOPNOTSUPP", STREAM),
        row(Fuse, "4-not-served", "other a splice", "-1 EINVAL", "-1 EIO", STREAM),
        row(Fuse, "4-not-served", "other a sendfile", "-1 EINVAL", "-1 EIO", STREAM),

        row(Notify, "*", "poll ? *", "*", "1 *", PIPE),
        row(Notify, "*", "select ? *", "*", "*w", PIPE),
        row(Notify, "*", "epoll e wait *", "*", "1 a=*", PIPE),
        row(Notify, "2-deleted-while-polled", "join t", "1 ERR", "1 IN", PIPE),
        row(Notify, "4-*", "blocked t", "blocked", "ended", PIPE),
        row(Notify, "*", "poll ? PRI 0", "1 ERR", "0", PIPE),
        row(Notify, "4-async*", "signals 1", "1*", "*", PIPE_SIGNALS),
        row(Notify, "4-shared-files", "*read ? 100", "*", "*", NUMBERS),
        row(Notify, "4-shared-files", "ioctl c *", "0 *", "-1 ENOTTY", NUMBERS),
    ]
};

const NO_SIGIO: &str = "a process gets no SIGIO";
const IN_PARTS: &str = "on a bridge a large write";
const PARTLY_MAPPED: &str = "a read or write whose memory is mapped";
const PIPE: &str = "under `--front-end notify`, `poll` reports";
const PIPE_SIGNALS: &str = "under `--front-end notify`, SIGIO";
const NUMBERS: &str = "under `--front-end notify`, the device's descriptors";
const STREAM: &str = "on a FUSE file pread and pwrite get ESPIPE";

/// Whether a text is of a pattern, in which `*` stands for anything and `?` for one character.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (mut pattern, mut text) = (pattern.chars(), text.chars());
    loop {
        match pattern.next() {
            None => return text.as_str().is_empty(),
            Some('*') => {
                let rest = pattern.as_str();
                return loop {
                    if matches(rest, text.as_str()) {
                        break true;
                    }
                    if text.next().is_none() {
                        break false;
                    }
                };
            }
            Some(wanted) => match text.next() {
                Some(found) if wanted == '?' || wanted == found => {}
                _ => return false,
            },
        }
    }
}
