//! What only CUSE has: names, numbers and nodes.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};
use std::{process, thread};

use cuse_rs::cuse::{DeviceOptions, RegisterError};
use nix::sys::stat::{major, minor};

use super::{Backend, bodies, cuse_options as options, register};

bodies::on!(Backend::Cuse);

#[test]
fn a_device_comes_and_goes() {
    let options = options("node").mode(0o640).owner(Some(1), Some(2));
    let sysfs = options.name().sysfs_path();
    let Some(registration) = register(options) else { return };
    let node = registration.node().unwrap().to_owned();
    let metadata = fs::metadata(&node).unwrap();
    assert!(metadata.file_type().is_char_device());
    assert_eq!(metadata.mode() & 0o7777, 0o640);
    assert_eq!((metadata.uid(), metadata.gid()), (1, 2));
    let number = registration.device_number();
    assert_eq!(
        (major(metadata.rdev()), minor(metadata.rdev())),
        (number.0.into(), number.1.into())
    );
    assert!(sysfs.exists());
    registration.unregister().unwrap();
    wait_until_gone(&node);
    wait_until_gone(&sysfs);
}

#[test]
fn a_name_may_have_a_slash() {
    let name = format!("cuse-rs-{}/tunx", process::id());
    let options = DeviceOptions::new(name.parse().unwrap());
    let Some(registration) = register(options) else { return };
    assert_eq!(registration.node(), Some(Path::new("/dev").join(&name).as_path()));
    drop(registration);
    wait_until_gone(&Path::new("/dev").join(&name));
}

/// The device goes when the last descriptor of its channel is closed. A child that another test's thread forks meanwhile has
/// one too, until it executes its program.
#[track_caller]
#[expect(clippy::disallowed_methods, reason = "a deadline")]
fn wait_until_gone(path: &Path) {
    let start = Instant::now();
    while path.exists() {
        assert!(start.elapsed() < Duration::from_secs(30), "{} is still there", path.display());
        thread::yield_now();
    }
}

#[test]
fn names_and_numbers_that_are_taken() {
    let Some(registration) = register(options("taken")) else { return };
    let error = options("taken").register().unwrap_err();
    assert!(matches!(error, RegisterError::NameTaken { .. }), "{error}");
    let (major, minor) = registration.device_number();
    for (major, minor) in [(major, minor), (10, 200)] {
        let error = options("number").number(major, minor).register().unwrap_err();
        assert!(matches!(error, RegisterError::NumberTaken { .. }), "{error}");
    }
}

#[test]
fn a_number_that_is_asked_for() {
    let Some(registration) = register(options("number-240").number(240, 77)) else { return };
    assert_eq!(registration.device_number(), (240, 77));
}

#[test]
fn a_path_that_is_taken_gives_no_node() {
    let full = fs::metadata("/dev/full").map(|metadata| metadata.rdev()).unwrap();
    let options = DeviceOptions::new("full".parse().unwrap()).mode(0o600);
    let Some(registration) = register(options) else { return };
    assert_eq!(registration.node(), None);
    assert!(registration.device_number().0 > 0);
    registration.unregister().unwrap();
    assert_eq!(fs::metadata("/dev/full").unwrap().rdev(), full);
}
