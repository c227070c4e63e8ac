//! How a client's system calls reach the core: each front end is a codec and a read loop, nothing more.

pub mod cuse;
pub mod device;
pub mod fuse;
pub mod intercept;
mod lookout;
pub(crate) mod opener;
pub mod probe;
mod stores;

use std::{path::PathBuf, sync::Arc};

use cuse_rs::Channel;

use self::device::Identity;

/// A device that the kernel knows, ready to be served.
pub struct Registered {
    /// How messages name it.
    pub name: String,
    /// Where clients find it.
    pub path: Option<PathBuf>,
    /// Its messages.
    pub channel: Arc<Channel>,
    /// How its open files are recognised.
    pub identity: Identity,
    /// Takes it away: blocked clients get an error, and the loops that serve it end. False if they do not.
    pub stop: Box<dyn FnOnce() -> bool + Send>,
}
