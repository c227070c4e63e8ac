//! The slow steps of making a device: entering its namespace, and TUNSETIFF. A thread of its own does them for each device.

use std::sync::Arc;

use nix::errno::Errno;

use super::{
    Kind, MakeError, Spec, Then, TunNode,
    make::{self, errno_of},
    namespace::Namespace,
    share::{self, Held},
};
use crate::{
    abi::tun::IfFlags,
    core::{FileId, NetdevPlan, RequestId, TunnelId},
    netns::Network,
};

/// What a maker does.
pub(super) enum Job {
    /// A device with a queue for a file, for a client.
    Make { tunnel: TunnelId, file: FileId, spec: Spec, network: Arc<Network> },
    /// A further queue.
    Open { tunnel: TunnelId, file: FileId, spec: Spec, asker: RequestId },
    /// A device with a queue for each file, for a tunnel that is there.
    Add { plan: Box<NetdevPlan>, spec: Spec, network: Arc<Network>, then: Then },
}

/// What a maker has made.
pub(super) enum Made {
    Device(Arc<Namespace>, make::Made, Vec<Held>),
    /// Of a substitute there is none.
    Queue(Option<Held>),
}

/// A maker's work. `known`: the namespace, if something is there already; `place`: the device that is to have a further queue.
pub(super) fn make_for(
    job: &Job,
    node: &TunNode,
    known: Option<Arc<Namespace>>,
    place: Option<(u32, Kind)>,
) -> Result<Made, MakeError> {
    let open = |network: &Arc<Network>, spec: &Spec| {
        if let Some(namespace) = known.clone() {
            return Ok(namespace);
        }
        let name = spec.name;
        let charge = share::charge(&spec.user, name, Namespace::DESCRIPTORS)?;
        Namespace::open(Arc::clone(network), charge)
            .map(Arc::new)
            .map_err(|error| MakeError::Network { name, errno: errno_of(&error) })
    };
    match job {
        Job::Make { spec, network, .. } => {
            let namespace = open(network, spec)?;
            let made = make::make(node, &namespace, spec)?;
            Ok(Made::Device(namespace, made, Vec::new()))
        }
        Job::Add { plan, spec, network, .. } => {
            let namespace = open(network, spec)?;
            let made = make::make(node, &namespace, spec)?;
            let flags = spec.flags - IfFlags::TUN_EXCL;
            let further = Spec { flags, ..spec.clone() };
            let mut queues = Vec::new();
            if made.kind == Kind::Tun {
                for _ in plan.files.iter().skip(1) {
                    queues.push(make::add_queue(node, &namespace, made.state.index, &further)?);
                }
            }
            Ok(Made::Device(namespace, made, queues))
        }
        Job::Open { spec, .. } => {
            let name = spec.name;
            let refused = |errno| MakeError::Refused { name, errno };
            let (namespace, (index, kind)) =
                known.zip(place).ok_or_else(|| refused(Errno::EBADFD))?;
            let state = namespace.slow_requests.link(index).map_err(refused)?;
            if kind != Kind::Tun {
                return Ok(Made::Queue(None));
            }
            let flags = spec.flags - IfFlags::TUN_EXCL;
            let spec = Spec { name: state.name, flags, ..spec.clone() };
            make::add_queue(node, &namespace, index, &spec).map(|queue| Made::Queue(Some(queue)))
        }
    }
}
