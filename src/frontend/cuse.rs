//! A character device by `/dev/cuse`.

use std::path::PathBuf;

use cuse_rs::cuse::{DeviceOptions, RegisterError, Registration};
use nix::sys::stat::makedev;
use tracing::{info, warn};

use super::{Registered, device::Identity};

/// Registers the device.
///
/// # Errors
///
/// As [`RegisterError`] says.
pub(crate) fn register(options: DeviceOptions) -> Result<Registered, RegisterError> {
    let registration = options.register()?;
    let (major, minor) = registration.device_number();
    match registration.node() {
        Some(node) => info!(device = %node.display(), major, minor, "registered"),
        None => warn!(
            name = %registration.name(), major, minor,
            "the device has no node, because another device has its path; make one with 'mknod PATH c MAJOR MINOR', \
             or serve under another name, ignoring"
        ),
    }
    Ok(Registered::device(
        format!("/dev/{}", registration.name()),
        registration.node().map(PathBuf::from),
        &std::sync::Arc::clone(registration.channel()),
        Identity::Number(makedev(major.into(), minor.into())),
        Box::new(move || stop(&registration)),
    ))
}

fn stop(registration: &Registration) -> bool {
    match registration.stop() {
        Ok(()) => true,
        // The end of the process closes the device just as well.
        Err(error) => {
            warn!(%error, "ending the device's connection failed, ignoring");
            false
        }
    }
}
