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
    Cuse,
    Fuse,
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
            Self::Cuse => device == Device::Cuse,
            Self::Fuse => device != Device::Cuse,
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

        row(All, "2-restarted", "blocked t", "blocked", "ended", "a signal ends a blocked read with EINTR"),
        row(All, "2-restarted", "join t", "28 *", "-1 EINTR", "a signal ends a blocked read with EINTR"),
        row(All, "2-stopped", "join t", "28 *", "-1 EINTR", "a blocked read ends with EINTR when its program is stopped"),

        // DIFFERS: a process gets no SIGIO. O_ASYNC is not kept and FIOASYNC gets ENOTTY: the file system passes neither on.
        row(All, "1.1-fioasync", "ioctl a FIOASYNC int:1", "0", "-1 ENOTTY", NO_SIGIO),
        row(All, "1.1-fioasync", "fcntl a getfl", "024002", "04002", NO_SIGIO),
        row(All, "4-async", "fcntl a getfl", "024002", "04002", NO_SIGIO),
        row(All, "4-async", "fcntl a getown", "this process", "nobody", NO_SIGIO),
        row(All, "4-async*", "signals 1", "1*", "0", NO_SIGIO),

        // DIFFERS: preadv2 with RWF_NOWAIT gets EOPNOTSUPP, as of every file of CUSE and FUSE.
        row(All, "2-nowait", "preadv2 a 100 8", "*", "-1 EOPNOTSUPP", "preadv2 with RWF_NOWAIT"),

        // DIFFERS: a file that is in an epoll set before TUNSETIFF wakes it afterwards; the kernel's has registered with
        // nobody by then. One that waits for output alone, edge-triggered, is woken by datagrams: FUSE_NOTIFY_POLL does
        // not say what for.
        row(All, "4-epoll-before-attachment", "epoll e wait 0", "0", "1 a=IN", "a file that is in an epoll set"),
        row(All, "4-epoll-edge-of-output", "epoll e wait 0", "0", "1 a=OUT", "a file that is in an epoll set"),

        // DIFFERS: of memory that is mapped only in part, a read or write has the part that is, and of memory that is not
        // mapped at all EFAULT, without a request. The kernel's driver says EFAULT and takes no part of a write; of a
        // read it ignores that the payload cannot be stored, and returns the full length.
        row(All, "2-bad-memory", "read a null:100", "28", "-1 EFAULT", PARTLY_MAPPED),
        row(All, "2-bad-memory", "read c ro:100", "28 *", "-1 EFAULT", PARTLY_MAPPED),
        row(All, "2-bad-memory", "read ? 100", "-1 EAGAIN", "28 *", PARTLY_MAPPED),
        row(All, "2-bad-memory", "read b edge:10:100", "28 45*", "10 45*", PARTLY_MAPPED),
        row(All, "2-bad-memory", "readv d 4,bad:8,100", "28 4500001ca5*", "4 4500001c", PARTLY_MAPPED),
        row(All, "2-bad-memory-for-headers", "read ? edge:*", "-1 EFAULT beyond *", "-1 EINVAL", PARTLY_MAPPED),
        row(All, "2-bad-memory-for-headers", "read b 100", "-1 EAGAIN", "32 *", PARTLY_MAPPED),
        row(All, "3-bad-memory", "write a edge:*", "-1 EFAULT", "*", PARTLY_MAPPED),
        row(All, "3-bad-memory", "writev a 4500,bad:10", "-1 EFAULT", "2", PARTLY_MAPPED),
        row(All, "3-bad-memory", "> take tun0", "nothing", "45*", PARTLY_MAPPED),
        row(All, "3-bad-memory-in-headers", "write a edge:4:*", "-1 EFAULT", "4", PARTLY_MAPPED),
        row(All, "3-bad-memory-in-headers", "write ? edge:*", "-1 EFAULT", "-1 EINVAL", PARTLY_MAPPED),
        row(All, "1.1-unattached", "ioctl a TUNGETFEATURES edge:3:*", "-1 EFAULT", "-1 EFAULT 7371", PARTLY_MAPPED),

        // DIFFERS: a read that fails with EINVAL for want of room for the vnet header stores nothing; the kernel has stored
        // the PI header by then. An error has no payload.
        row(All, "random", "join t", "-1 EINVAL beyond *", "-1 EINVAL", "a read that fails with EINVAL for want"),
        row(All, "*", "read* ? *", "-1 EINVAL beyond *", "-1 EINVAL", "a read that fails with EINVAL for want"),

        // DIFFERS: a write of megabytes is taken, though of more than 8 MiB only so much; the kernel finds no memory for it in
        // one piece (ENOBUFS, from some 4 MiB on).
        row(All, "3-larger", "write a 45+00*7999999", "-1 ENOBUFS", "8000000", "a write of megabytes is taken"),

        // DIFFERS: on a bridge a write of more than 256 pieces or 1 MiB, on a character device of 32 or 128 KiB, gives the kernel its
        // beginning, and the rest is dropped: the file system brings it in parts, and what the first one comes to must be known before
        // the next is there.
        row(Bridge, "3-basics", "> take tun0", "4545*..1024:*", "4545*", IN_PARTS),
        row(BridgeOfCuse, "3-many-pieces", "> take tun0", "4500*", "4500*", IN_PARTS),

        row(All, "3-napi", "writev a *", "-1 E*", "*", "on a tunnel with IFF_NAPI_FRAGS"),

        // DIFFERS: a full queue has room as soon as a datagram is read; the kernel frees its ring's places in batches of 16
        // (`__ptr_ring_discard_one`).
        row(Queues, "5.1-queue-length-of-a-tun", "drain a", "499 4511", "500 4577", "a full queue has room as soon"),

        // DIFFERS: the device has another number than 10:200, or is a regular file, and `/proc/PID/fdinfo` does not name the
        // tunnel.
        row(All, "4-stat-and-fdinfo", "fstat a", "*", "*", "the device has another number"),
        row(All, "4-stat-and-fdinfo", "fdinfo a", "fdinfo iff=*", "fdinfo", "the device has another number"),

        // DIFFERS: two defects of the kernel's driver are not repeated. It stores 24 bytes of vnet header for a client that
        // accepts UDP_TUNNEL_GSO, though the header's size is 10, so that reads get EFAULT. And a file that was not the
        // first queue of a deleted tunnel gets EBUSY from TUNSETIFF for ever.
        row(All, "2-udp-tunnel-offload", "read a 24", "-1 EFAULT beyond *", "24 *", "two defects of the kernel's driver"),
        row(All, "1.5-queues-of-a-deleted-device", "ioctl b TUNSETIFF *", "-1 EBUSY", "0 *", "two defects of the kernel's driver"),

        // DIFFERS: on a character device lseek succeeds.
        row(Cuse, "4-not-served", "lseek a *", "-1 ESPIPE", "0", "on a character device lseek succeeds"),
        row(Cuse, "*", "read ? 0", "-1 EBADFD", "0", "a read or write of nothing returns 0"),
        row(Cuse, "*", "write ? +", "-1 E*", "0", "a read or write of nothing returns 0"),
        row(Cuse, "*", "write ? null:0", "-1 E*", "0", "a read or write of nothing returns 0"),

        // DIFFERS: on a FUSE file an ioctl whose number tells of memory gets EFAULT if there is none, before it is looked at:
        // also where the driver would say EBADFD, EINVAL or EPERM first. FIONREAD is answered by the kernel.
        row(Fuse, "*", "ioctl ? * null", "-1 E*", "-1 EFAULT", "on a FUSE file an ioctl whose number"),
        row(Fuse, "*", "ioctl ? * bad", "-1 E*", "-1 EFAULT", "on a FUSE file an ioctl whose number"),

        // DIFFERS: on a FUSE file close returns before the tunnel is gone, and its link: of RELEASE nobody waits for the answer. Whoever
        // opens the device next finds it gone (the step program does after each close), as do the verbs, which wait for it.

        // DIFFERS: on a FUSE file pread and pwrite get ESPIPE, O_DIRECT is allowed, and truncation has no effect: it is a
        // regular file that behaves as a stream.
        row(Fuse, "2-position", "pread *", "28 *", "-1 ESPIPE", STREAM),
        row(Fuse, "3-position", "pwrite *", "*", "-1 ESPIPE", STREAM),
        row(Fuse, "3-position", "> take tun0", "4599", "nothing", STREAM),
        row(Fuse, "1.1-open-modes", "open d direct|rdwr", "-1 EINVAL", "ok", STREAM),
        row(Fuse, "4-not-served", "other a ftruncate", "-1 EINVAL", "0", STREAM),
        row(Fuse, "4-not-served", "other a fallocate", "-1 ENODEV", "-1 EOPNOTSUPP", STREAM),
        row(Fuse, "4-not-served", "other a splice", "-1 EINVAL", "-1 EIO", STREAM),
        row(Fuse, "4-not-served", "other a sendfile", "-1 EINVAL", "-1 EIO", STREAM),
    ]
};

const NO_SIGIO: &str = "a process gets no SIGIO";
const IN_PARTS: &str = "on a bridge a write of more than 256 pieces";
const PARTLY_MAPPED: &str = "of memory that is mapped only in part";
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
