//! How a client's system calls reach the core: each front end is a codec and a loop, nothing more.
//!
//! A front end is a file or a folder here that makes a [`Registered`]. The daemon knows it by the trait [`FrontEnd`] alone.

mod assembler;
pub(crate) mod cuse;
pub(crate) mod device;
pub(crate) mod fuse;
pub(crate) mod intercept;
mod lookout;
mod memory;
pub(crate) mod notify;
pub(crate) mod opener;
pub(crate) mod probe;
mod stores;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use cuse_rs::Channel;

use self::device::{DeviceFrontEnd, Identity, Stop};
use crate::hub::{FrontEnd, Hub};

/// A device that clients can find, ready to be served.
pub(crate) struct Registered {
    name: String,
    path: Option<PathBuf>,
    identity: Option<Identity>,
    enter: Box<Enter>,
}

/// Adds a front end to the hub; `None` if the hub has its full number.
type Enter = dyn FnOnce(&Arc<Hub>) -> Option<Arc<dyn FrontEnd>> + Send;

impl Registered {
    /// A device of the kernel's, which `stop` takes away.
    fn device(
        name: String,
        path: Option<PathBuf>,
        channel: &Arc<Channel>,
        identity: Identity,
        stop: Box<Stop>,
    ) -> Self {
        let channel = Arc::clone(channel);
        let enter = Box::new(move |hub: &Arc<Hub>| {
            let front_end = DeviceFrontEnd::new(hub, channel, identity, stop)?;
            Some(front_end as Arc<dyn FrontEnd>)
        });
        Self { name, path, identity: Some(identity), enter }
    }

    /// How messages name it.
    #[must_use]
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Where clients find it, if it has a place in the file system.
    #[must_use]
    pub(crate) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// How its open files are recognised, if they are files of its own.
    #[must_use]
    pub(crate) fn identity(&self) -> Option<Identity> {
        self.identity
    }

    /// Adds its front end to a hub; `None` if the hub has its full number.
    #[must_use]
    pub(crate) fn enter(self, hub: &Arc<Hub>) -> Option<Arc<dyn FrontEnd>> {
        (self.enter)(hub)
    }
}
