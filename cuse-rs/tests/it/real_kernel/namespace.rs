//! The tests of the file once more, as an ordinary user in a user and mount namespace.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::{env, fs, process};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::geteuid;

use super::{FUSE_NODE, skip};

/// A folder that is removed in the end.
struct Folder(std::path::PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn an_ordinary_user_can_do_the_same() {
    if !geteuid().is_root() || env::var_os(FUSE_NODE).is_some() {
        return skip(&"only root can become an ordinary user").unwrap_or_default();
    }
    let folder = Folder(env::temp_dir().join(format!("cuse-rs-namespace-{}", process::id())));
    fs::create_dir(&folder.0).unwrap();
    fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o777)).unwrap();
    let node = folder.0.join("fuse");
    // /dev/fuse, but for everybody.
    mknod(&node, SFlag::S_IFCHR, Mode::empty(), makedev(10, 229)).unwrap();
    fs::set_permissions(&node, fs::Permissions::from_mode(0o666)).unwrap();
    if let Err(error) = fs::OpenOptions::new().read(true).write(true).open(&node) {
        return skip(&format!("opening a node of 10:229: {error}")).unwrap_or_default();
    }
    let test = folder.0.join("test");
    fs::copy(env::current_exe().unwrap(), &test).unwrap();
    let in_namespace = |program: &Path, arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "-Urm"]);
        command.arg(program).args(arguments).current_dir(&folder.0);
        command.env("TMPDIR", &folder.0).env(FUSE_NODE, &node);
        command.output().expect("setpriv starts")
    };
    let probe = in_namespace(Path::new("true"), &[]);
    if !probe.status.success() {
        let why = String::from_utf8_lossy(&probe.stderr);
        return skip(&format!("no user namespace: {}", why.trim_end())).unwrap_or_default();
    }
    let output = in_namespace(&test, &["real_kernel::file::"]);
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    assert!(!told.contains("SKIP: mounting") && !told.contains(" 0 passed"), "{told}");
}
