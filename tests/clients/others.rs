//! A program in Go, and a program in a container.

use std::{fs, process::Command};

use memtun_client::proto::{event::What, wait::Until, watch::Watch};
use nix::sys::signal::Signal;

use super::{BWRAP, Host, PATIENCE, PODMAN, WIREGUARD_GO, expect_gone};
use crate::{
    device::{inject, take},
    support::{
        daemon::{Backend, Daemon},
        program::{Program, compiled, compiled_static},
    },
};

/// It gets through TUNSETIFF and TUNGETIFF, then asks for an interface, which there is none.
pub(super) fn wireguard_go(backend: Backend) {
    let daemon = Daemon::start(backend);
    let mut watcher = daemon.client();
    watcher.call(&Watch { tunnel: None }).expect("watch");
    let run = Host::new(&daemon).run(WIREGUARD_GO, &["-f", "wg0"]);
    assert_eq!(run.status, 1, "{run:?}");
    let said = format!("{}{}", run.stdout, run.stderr);
    assert!(said.contains("Failed to create TUN device: no such device"), "{run:?}");
    loop {
        if let What::Attached { name, mode, .. } = watcher.next_event().expect("an event").what {
            assert_eq!((name.as_str(), mode.as_str()), ("wg0", "tun"));
            break;
        }
    }
}

/// It has an interface, which is down, and learns from a write of nothing, which must fail with EINVAL, that its tunnel is up.
pub(super) fn wireguard_go_up(backend: Backend) {
    let daemon = Daemon::start(backend);
    let host = Host::new(&daemon);
    host.network.add_interface("wg0");
    let mut command = host.command(WIREGUARD_GO, &["-f", "wg0"]);
    let program =
        Program::start_with_stderr(command.env("LOG_LEVEL", "verbose")).with_deadline(PATIENCE);
    program.line_with("Interface state was Down, requested Up, now Up");
    // It removes its socket.
    program.signal(Signal::SIGTERM);
    program.wait();
    expect_gone(&daemon, &["wg0"]);
}

/// A container with namespaces of its own, no capability and no device rule: a bind mount is enough.
pub(super) fn bubblewrap(backend: Backend) {
    let daemon = Daemon::start(backend);
    let device = daemon.device.to_str().expect("a plain path");
    let pong = compiled("pong");
    let bind = match backend {
        Backend::Cuse => "--dev-bind",
        Backend::Fuse => "--bind",
    };
    // It refuses to be run by an ordinary user with capabilities, as in a user namespace of the tests.
    let mut container = Command::new("setpriv");
    container
        .args(["--inh-caps", "-all", "--ambient-caps", "-all", "--", BWRAP.path])
        .args([
            "--unshare-all",
            "--cap-drop",
            "ALL",
            "--die-with-parent",
            "--ro-bind",
            "/",
            "/",
            "--dev",
            "/dev",
        ])
        .args([bind, device, "/dev/net/tun", "--"])
        .arg(&pong)
        .arg("tun0");
    let _program = Program::start_with_stderr(&mut container);
    expect_pong(&daemon);
}

/// A container of podman's, of a root file system with one program in it.
pub(super) fn podman(backend: Backend) {
    let daemon = Daemon::start(backend);
    let folder = tempfile::tempdir().expect("a folder for the container");
    let [root, state] = ["root", "state"].map(|name| folder.path().join(name));
    fs::create_dir_all(&root).expect("a folder for its files");
    fs::copy(compiled_static("pong"), root.join("pong")).expect("its program");
    // crun takes a machine with the old and the new control groups for broken: in this mount namespace there are new ones alone.
    let script = "mount -t cgroup2 none /sys/fs/cgroup; exec \"$@\"";
    let mut container = Command::new("unshare");
    container.args(["--mount", "--", "sh", "-c", script, "sh", PODMAN.path]).arg("--root");
    container.arg(state.join("root")).arg("--runroot").arg(state.join("run"));
    container
        .args(["--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--events-backend=none"])
        .args(["run", "--rm", "--network=none", "--cgroups=disabled", "--cap-drop=all"])
        // Its own defaults are higher than a limited user may ask for.
        .args(["--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000"])
        .arg(format!("--volume={}:/dev/net/tun", daemon.device.display()))
        .arg("--rootfs")
        .arg(&root)
        .args(["/pong", "tun0", "1"]);
    let program = Program::start_with_stderr(&mut container).with_deadline(PATIENCE);
    expect_pong(&daemon);
    program.wait();
}

/// The program `pong` answers a ping on tun0.
#[track_caller]
fn expect_pong(daemon: &Daemon) {
    daemon.wait_until("tun0", Until::Reading);
    // Before it has answered, and perhaps ended.
    let file = &daemon.list().tunnels[0].files[0];
    assert!(file.command.starts_with("pong"), "{file:?}");
    let mut client = daemon.client();
    let ping = memtun::packet::echo_request(
        [10, 0, 0, 1].into(),
        [10, 0, 0, 2].into(),
        memtun::packet::Echo::default(),
    )
    .unwrap();
    inject(&mut client, "tun0", &ping);
    let reply = take(&mut client, "tun0");
    assert_eq!(
        (&reply[12..16], &reply[16..20], reply[20]),
        (&ping[16..20], &ping[12..16], 0),
        "an echo reply"
    );
}
