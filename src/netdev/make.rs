//! Makes a network device: the kernel's own tun or tap, otherwise a substitute.
//!
//! When the tun driver refuses, the client gets its errno: a name that is taken, a missing right. memtun tries a substitute only where
//! it cannot use the driver at all.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::Path,
    sync::Arc,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::stat::Mode as Permissions,
};
use tracing::debug;

use super::{
    Kind, Rights, Spec,
    far::Far,
    namespace::Namespace,
    share::{self, Held},
};
use crate::{
    abi::{
        rtnetlink::{self, Request, attribute},
        tun::{IfFlags, IfReq, Name},
        virtio_net::VnetHeader,
    },
    core::{Charge, Exhausted},
    sys::{
        self,
        tun::{self, IfReqCommand, IntCommand},
    },
};

/// The node of the kernel's tun driver, held so that it can still be opened when something else covers its path.
#[derive(Debug)]
pub struct TunNode(Result<OwnedFd, Arc<str>>);

impl TunNode {
    /// The node at `/dev/net/tun`; to be called before that is covered.
    #[must_use]
    pub fn find() -> Self {
        Self::at(Path::new("/dev/net/tun"))
    }

    /// The node at a path. If it is not one of the tun driver's, devices are substitutes, and their making says why.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        /// The misc driver's number, and tun's among them.
        const TUN: u64 = nix::sys::stat::makedev(10, 200);
        let handle = File::options().read(true).custom_flags(OFlag::O_PATH.bits()).open(path);
        let node = handle.and_then(|handle| {
            let metadata = handle.metadata()?;
            let is_tun = metadata.file_type().is_char_device() && metadata.rdev() == TUN;
            if is_tun {
                Ok(handle.into())
            } else {
                Err(io::Error::other("it is not the tun driver's node"))
            }
        });
        Self(node.map_err(|error| format!("{}: {error}", path.display()).into()))
    }

    /// Opens it, for the network namespace of the thread which calls.
    fn open(&self) -> Result<OwnedFd, Unopened> {
        let missing = |reason| Unopened::NoDriver(NoDriver(reason));
        let handle = self.0.as_ref().map_err(|reason| missing(Arc::clone(reason)))?;
        let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
        let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        // There is no driver, or a container's rules keep it from us. Else this process has no room for a file, say.
        let is_missing = |errno| {
            [Errno::ENOENT, Errno::ENXIO, Errno::ENODEV, Errno::EACCES, Errno::EPERM]
                .contains(&errno)
        };
        open(path.as_str(), flags, Permissions::empty()).map_err(|errno| {
            if is_missing(errno) {
                missing(format!("opening /dev/net/tun: {}", errno.desc()).into())
            } else {
                Unopened::Failed(errno)
            }
        })
    }
}

/// Why there is no file of the tun driver.
enum Unopened {
    NoDriver(NoDriver),
    /// There is a driver, but this process has no room for a file, say.
    Failed(Errno),
}

/// Why the kernel's tun driver cannot be asked.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the kernel's tun driver cannot be used ({0})")]
pub struct NoDriver(Arc<str>);

/// Why there is no link.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MakeError {
    /// The tun driver refused.
    #[error("making interface {name}: {}{}", .errno.desc(), hint(*.errno))]
    Refused {
        /// The name that was wanted.
        name: Name,
        /// What it said.
        errno: Errno,
    },
    /// The tun driver cannot be asked, and a substitute does not do, or was refused too.
    #[error("making interface {name}: {driver}, and a substitute for it failed: {}{}", .errno.desc(), hint(*.errno))]
    NoSubstitute {
        /// The name that was wanted.
        name: Name,
        /// Why not the driver.
        driver: NoDriver,
        /// What became of the substitute.
        errno: Errno,
    },
    /// Datagrams are to pass, and no substitute can do that.
    #[error("making interface {name}: a bridge needs the kernel's tun driver: {driver}")]
    NoTraffic {
        /// The name that was wanted.
        name: Name,
        /// Why not the driver.
        driver: NoDriver,
    },
    /// The network namespace cannot be entered, or rtnetlink does not work in it.
    #[error("entering the network namespace of interface {name}: {}{}", .errno.desc(), hint(*.errno))]
    Network {
        /// The name that was wanted.
        name: Name,
        /// What the kernel said.
        errno: Errno,
    },
    /// The tun driver's node could not be opened, though it is there.
    #[error("opening /dev/net/tun for interface {name}: {}; raise the daemon's limit of open files (LimitNOFILE=, ulimit -n)", .errno.desc())]
    Open {
        /// The name that was wanted.
        name: Name,
        /// What the kernel said.
        errno: Errno,
    },
    /// The client may not, by the kernel's rule.
    #[error(
        "making interface {name}: the client needs CAP_NET_ADMIN in its network namespace, or must own the interface; see --allow-unprivileged and --names"
    )]
    NotPermitted {
        /// The name that was wanted.
        name: Name,
    },
    /// There are as many devices as there may be.
    #[error("making interface {name}: there are {limit} already, the limit")]
    TooMany {
        /// The name that was wanted.
        name: Name,
        /// How many.
        limit: usize,
    },
    /// There are as many file descriptors for devices as there may be.
    #[error(
        "making interface {name}: no file descriptors are left for uid {uid}; 'memtun limits' shows who has them"
    )]
    NoDescriptors {
        /// The name that was wanted.
        name: Name,
        /// For whom.
        uid: u32,
        /// Whose limit it is.
        exhausted: Exhausted,
    },
}

impl MakeError {
    /// What TUNSETIFF answers.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Refused { errno, .. }
            | Self::NoSubstitute { errno, .. }
            | Self::Network { errno, .. } => *errno,
            Self::NoTraffic { .. } => Errno::ENODEV,
            Self::NotPermitted { .. } => Errno::EPERM,
            // The client's own files are not too many.
            Self::NoDescriptors { exhausted: Exhausted::Share, .. } => Errno::EMFILE,
            Self::Open { errno: Errno::EMFILE, .. }
            | Self::TooMany { .. }
            | Self::NoDescriptors { exhausted: Exhausted::All, .. } => Errno::ENFILE,
            Self::Open { errno, .. } => *errno,
        }
    }
}

fn hint(errno: Errno) -> &'static str {
    if errno == Errno::EPERM {
        "; it takes CAP_NET_ADMIN there: run as root, or 'memtun run --net'"
    } else if errno == Errno::EBUSY || errno == Errno::EINVAL {
        "; another program may have the name"
    } else {
        ""
    }
}

/// A link as it was made.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) kind: Kind,
    pub(super) queue: Option<Held>,
    pub(super) state: rtnetlink::Link,
    /// It stays when it is not used any more.
    pub(super) persistent: bool,
    /// It was there before, and the kernel let the client attach to it.
    pub(super) was_there: bool,
    pub(super) far: Option<Far>,
}

/// Makes a link in a namespace.
pub(super) fn make(node: &TunNode, namespace: &Namespace, spec: &Spec) -> Result<Made, MakeError> {
    let name = spec.name;
    let in_network = |error: &io::Error| MakeError::Network { name, errno: errno_of(error) };
    let charge = share::charge(&spec.user, name, 1)?;
    let opened = namespace.network.run(|| Ok(node.open())).map_err(|error| in_network(&error))?;
    let driver = match opened {
        Ok(queue) => return attach(Held::new(queue, charge), namespace, spec),
        Err(Unopened::Failed(errno)) => return Err(MakeError::Open { name, errno }),
        Err(Unopened::NoDriver(driver)) => driver,
    };
    drop(charge);
    if spec.passes_datagrams {
        return Err(MakeError::NoTraffic { name, driver });
    }
    if let Rights::Of { may_make: false, .. } = spec.rights {
        return Err(MakeError::NotPermitted { name });
    }
    let charge = share::charge(&spec.user, name, Far::DESCRIPTORS)?;
    substitute(namespace, spec, charge).map_err(|errno| MakeError::NoSubstitute {
        name,
        driver,
        errno,
    })
}

/// Opens a further queue of a link.
pub(super) fn add_queue(
    node: &TunNode,
    namespace: &Namespace,
    index: u32,
    spec: &Spec,
) -> Result<Held, MakeError> {
    let name = spec.name;
    let charge = share::charge(&spec.user, name, 1)?;
    let opened = namespace.network.run(|| Ok(node.open()));
    let queue = opened
        .map_err(|error| MakeError::Network { name, errno: errno_of(&error) })?
        .map_err(|unopened| match unopened {
            Unopened::NoDriver(driver) => MakeError::NoTraffic { name, driver },
            Unopened::Failed(errno) => MakeError::Open { name, errno },
        })?;
    let made = attach(Held::new(queue, charge), namespace, spec)?;
    // Between the look at the name and its use the link may have got another, and another link this one.
    let queue = made.queue.filter(|_| made.state.index == index);
    queue.ok_or(MakeError::Refused { name, errno: Errno::EBUSY })
}

/// TUNSETIFF, as the client asked for it.
fn attach(queue: Held, namespace: &Namespace, spec: &Spec) -> Result<Made, MakeError> {
    let name = spec.name;
    let refused = |errno| MakeError::Refused { name, errno };
    if let Some(index) = spec.index {
        tun::with_int(queue.as_fd(), IntCommand::Index, index).map_err(refused)?;
    }
    let was_there = match &spec.rights {
        Rights::Admin => set_iff(&queue, spec.name, spec.flags).map(|()| false).map_err(refused)?,
        Rights::Of { caller, may_make } => {
            // The kernel makes nothing for a caller without the capability, and judges whether it may attach to what is there.
            let set = || set_iff(&queue, spec.name, spec.flags);
            match sys::rights::with_rights_of(caller.uid, &caller.groups, set) {
                Ok(()) => true,
                Err(Errno::EPERM) if *may_make => {
                    make_new(&queue, namespace, spec)?;
                    false
                }
                Err(Errno::EPERM) => return Err(MakeError::NotPermitted { name }),
                Err(errno) => return Err(refused(errno)),
            }
        }
    };
    look_at(queue, namespace, spec.flags, was_there).map_err(refused)
}

fn set_iff(queue: &Held, name: Name, flags: IfFlags) -> Result<(), Errno> {
    let mut request = IfReq::zeroed(false);
    request.copy_name(&name);
    request.set_flags(flags);
    tun::with_ifreq(queue.as_fd(), IfReqCommand::Attach, &request).map(drop)
}

/// A device for a caller who could not make one, and so never one that is there.
fn make_new(queue: &Held, namespace: &Namespace, spec: &Spec) -> Result<(), MakeError> {
    let name = spec.name;
    set_iff(queue, name, spec.flags | IfFlags::TUN_EXCL).map_err(|errno| {
        let is_there = || namespace.slow_requests.link_named(name.as_bytes()).is_ok();
        if errno == Errno::EBUSY && is_there() {
            MakeError::NotPermitted { name }
        } else {
            MakeError::Refused { name, errno }
        }
    })
}

/// How a link is to which a queue has been attached.
fn look_at(
    queue: Held,
    namespace: &Namespace,
    flags: IfFlags,
    was_there: bool,
) -> Result<Made, Errno> {
    if flags.contains(IfFlags::VNET_HDR) {
        // A persistent link keeps the size that somebody else set.
        let size = i32::try_from(VnetHeader::TUNNEL_SIZE).unwrap_or(i32::MAX);
        tun::with_int(queue.as_fd(), IntCommand::VnetHeaderSize, size)?;
    }
    let attached = tun::with_ifreq(queue.as_fd(), IfReqCommand::Attached, &IfReq::zeroed(false))?;
    let persistent = attached.flags().contains(IfFlags::PERSIST);
    let state = namespace.slow_requests.link_named(attached.name().as_bytes())?;
    Ok(Made { kind: Kind::Tun, queue: Some(queue), state, persistent, was_there, far: None })
}

/// How many numbers the kernel tries for a template (`__dev_alloc_name`).
const MAX_TEMPLATE_NUMBER: u32 = 8 * 4096;

fn substitute(namespace: &Namespace, spec: &Spec, charge: Charge) -> Result<Made, Errno> {
    let far = Far::open(charge)
        .inspect_err(|error| debug!(%error, "making a network namespace failed, ignoring"));
    let veth = far.ok().map(|far| (Kind::Veth, Some(far)));
    for (kind, far) in veth.into_iter().chain([(Kind::Dummy, None), (Kind::Ifb, None)]) {
        match add_named(namespace, spec, kind, far.as_ref()) {
            Ok(state) => {
                let (persistent, was_there) = (false, false);
                return Ok(Made { kind, queue: None, state, persistent, was_there, far });
            }
            // A kind that the kernel does not know.
            Err(Errno::EOPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::ENODEV)
}

/// Adds a substitute by the name that is wanted, or the first of a template that is free.
fn add_named(
    namespace: &Namespace,
    spec: &Spec,
    kind: Kind,
    far: Option<&Far>,
) -> Result<rtnetlink::Link, Errno> {
    let is_tap = !spec.flags.contains(IfFlags::TUN);
    let template: &[u8] = match (spec.name.as_bytes(), is_tap) {
        (b"", false) => b"tun%d",
        (b"", true) => b"tap%d",
        (name, _) => name,
    };
    let Some(at) = template.windows(2).position(|pair| pair == b"%d") else {
        return add(namespace, spec, template, kind, far);
    };
    for number in 0..MAX_TEMPLATE_NUMBER {
        let number = number.to_string();
        let name = [&template[..at], number.as_bytes(), &template[at + 2..]].concat();
        match add(namespace, spec, &name, kind, far) {
            // The kernel's way to say that the name is taken.
            Err(Errno::EBUSY | Errno::EINVAL)
                if namespace.slow_requests.link_named(&name).is_ok() => {}
            added => return added,
        }
    }
    Err(Errno::ENFILE)
}

fn add(
    namespace: &Namespace,
    spec: &Spec,
    name: &[u8],
    kind: Kind,
    far: Option<&Far>,
) -> Result<rtnetlink::Link, Errno> {
    let is_tap = !spec.flags.contains(IfFlags::TUN);
    let queue_length: u32 = if is_tap { 1000 } else { 500 };
    let index = spec.index.and_then(|index| u32::try_from(index).ok()).unwrap_or(0);
    let request = Request::new(rtnetlink::NEWLINK, rtnetlink::ACK | rtnetlink::CREATE, index)
        .flags(rtnetlink::IFF_NOARP, !is_tap)
        .attribute(attribute::NAME, &[name, b"\0"].concat())
        .attribute(attribute::QUEUE_LENGTH, &queue_length.to_ne_bytes());
    let request = match far {
        Some(far) => far.with_end(request),
        None => request.kind(kind.word()),
    };
    let requests = &namespace.slow_requests;
    requests.change(request).map_err(|errno| {
        if errno != Errno::EEXIST {
            errno
        } else if spec.flags.contains(IfFlags::TUN_EXCL) {
            // As TUNSETIFF says of a name that something else than a tun has.
            Errno::EBUSY
        } else {
            Errno::EINVAL
        }
    })?;
    let link = requests.link_named(name)?;
    // A link that is made gets none (rtnl_create_link).
    let remark = Request::new(rtnetlink::NEWLINK, rtnetlink::ACK, link.index);
    let _for_people = requests.change(remark.attribute(attribute::ALIAS, b"memtun\0"));
    far.map_or(Ok(()), |far| far.set_up(true))?;
    Ok(link)
}

pub(super) fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
