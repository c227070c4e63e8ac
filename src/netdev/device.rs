//! One device, as its owner has it.

use std::{collections::BTreeMap, sync::Arc};

use nix::errno::Errno;

use super::{Kind, State, far::Far, namespace::Namespace, queue::Queue, state_of, table::Entry};
use crate::core::{FileId, User};

/// A device.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) kind: Kind,
    /// In whose share it is.
    pub(super) user: Arc<User>,
    /// Several programs may have queues of it.
    pub(super) is_shared: bool,
    pub(super) namespace: Arc<Namespace>,
    pub(super) index: u32,
    /// How it was when the listener was told last.
    pub(super) state: State,
    pub(super) queues: BTreeMap<FileId, Arc<Queue>>,
    /// It stays when it is not used any more.
    pub(super) persistent: bool,
    /// Of a `veth`.
    pub(super) far: Option<Far>,
}

impl Device {
    /// Asks the kernel how it is.
    ///
    /// News alone is not enough: it may be older than an answer that the kernel has given meanwhile. And the news of a carrier comes up
    /// to a second after the carrier.
    pub(super) fn look(&self) -> Result<State, Errno> {
        let link = self.namespace.requests.link(self.index)?;
        Ok(state_of(&link, &self.namespace.network))
    }

    /// A queue of it, if there is one.
    pub(super) fn any_queue(&self) -> Option<&Arc<Queue>> {
        self.queues.values().next()
    }

    /// What others need to know.
    pub(super) fn entry(&self) -> Entry {
        Entry {
            kind: self.kind,
            namespace: Arc::clone(&self.namespace),
            queues: self.queues.clone(),
        }
    }
}
