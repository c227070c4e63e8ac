//! Names of devices: what CUSE takes as DEVNAME.
//!
//! Invariant: a [`DeviceName`] names exactly one node below `/dev`, and reaches the kernel unchanged. So
//! it has no part that `cuse_parse_devinfo` strips, that a path resolves away, or that `kobject_set_name_vargs`
//! turns into something else.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// `NAME_MAX`: the name is one entry of `/sys/class/cuse`, slashes and all.
const MAX_LENGTH: usize = 255;

/// The name of a device: its path below `/dev`, such as `hello` or `net/tunx`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DeviceName(String);

impl DeviceName {
    /// The name as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The device's node: `/dev/net/tunx`.
    pub fn node_path(&self) -> PathBuf {
        Path::new("/dev").join(&self.0)
    }

    /// The device's folder in sysfs, which has `!` for each slash: `/sys/class/cuse/net!tunx`.
    pub fn sysfs_path(&self) -> PathBuf {
        Path::new("/sys/class/cuse").join(self.0.replace('/', "!"))
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for DeviceName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        let problem = if name.is_empty() {
            "is empty"
        } else if name.len() > MAX_LENGTH {
            "is longer than 255 bytes"
        } else if name.starts_with('/') {
            "starts with '/'; give the path below /dev"
        } else if name.contains('!') {
            "contains '!', which the kernel takes for '/'"
        } else if name.chars().any(char::is_control) {
            "contains a control character"
        } else if name.trim() != name {
            "starts or ends with white space"
        } else if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
            "has an empty part, '.' or '..'"
        } else {
            return Ok(Self(name.to_owned()));
        };
        Err(NameError { name: name.to_owned(), problem })
    }
}

/// Why a name is no [`DeviceName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("device name {name:?} {problem}")]
pub struct NameError {
    name: String,
    problem: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_their_paths() {
        let name: DeviceName = "net/tunx".parse().unwrap();
        assert_eq!(name.to_string(), "net/tunx");
        assert_eq!(name.node_path(), Path::new("/dev/net/tunx"));
        assert_eq!(name.sysfs_path(), Path::new("/sys/class/cuse/net!tunx"));
        assert!("a=b".parse::<DeviceName>().is_ok());
        assert!("x".repeat(255).parse::<DeviceName>().is_ok());
    }

    #[test]
    fn names_that_would_not_arrive() {
        let long = "x".repeat(256);
        let names = [
            "", &long, "/x", "a!b", "a\nb", "a\0b", " a", "a ", "a//b", "a/", "..", "a/../b", ".",
            "./a",
        ];
        for name in names {
            assert!(name.parse::<DeviceName>().is_err(), "{name:?}");
        }
        assert_eq!(
            "/dev/x".parse::<DeviceName>().unwrap_err().to_string(),
            "device name \"/dev/x\" starts with '/'; give the path below /dev"
        );
    }
}
