//! What harnesses cost: nobody waits for one that does not read, nor for what a client has open.

use std::{
    process::{Command, Stdio},
    time::Instant,
};

use cuse_rs::fuse_file::FileOptions;
use memtun_client::proto::list::List;
use nix::{fcntl::OFlag, sys::stat::Mode};
use serde_json::json;

use crate::{
    DeviceTest,
    control::Wire,
    support::{
        daemon::{Backend, Daemon},
        device::{NO_PI, TUN, TunFile},
        until, within_deadline,
    },
};

pub const TESTS: &[DeviceTest] = &[
    ("list_waits_for_no_server_of_a_client", list_waits_for_no_server_of_a_client),
    (
        "watches_that_nobody_reads_cost_clients_little",
        watches_that_nobody_reads_cost_clients_little,
    ),
];

/// A file system of FUSE that is mounted and never served: whoever asks for the attributes of its file waits for ever.
fn list_waits_for_no_server_of_a_client(backend: Backend) {
    let daemon = Daemon::start(backend);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("unserved");
    let unserved = FileOptions::mount_at(&path).mount().expect("a file can be mounted");
    // Nobody asks the server for a descriptor of this kind.
    let file = nix::fcntl::open(&path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
    let mut client = Command::new("sh")
        .args(["-c", r#"exec 3<>"$0" && exec sleep 1000"#])
        .arg(&daemon.device)
        .stdin(file)
        // If this test fails, nobody waits for the end of its output.
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("there is a shell");
    let list = || {
        let mut client = daemon.client();
        within_deadline("list", move || client.call(&List {})).expect("list").unattached_files
    };
    // While the open is under way the file is listed, and has no descriptor.
    until(|| list().first().is_some_and(|file| file.close_on_exec.is_some()));
    assert_eq!(list()[0].close_on_exec, Some(false), "it is known all the same");
    client.kill().expect("it is running");
    client.wait().expect("it can be waited for");
    drop(unserved);
}

/// As many as there can be, of harnesses that do not read.
#[expect(clippy::disallowed_methods, reason = "what a write costs is measured")]
fn watches_that_nobody_reads_cost_clients_little(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let datagram = vec![0x45; 60_000];
    // The shortest of many: others may want the CPU.
    let cost = || {
        let write = |_| {
            let start = Instant::now();
            assert_eq!(file.write(&datagram), Ok(datagram.len()));
            start.elapsed()
        };
        (0..200).map(write).min().expect("there are some")
    };
    let alone = cost();
    let mut harnesses: Vec<Wire> = (0..60).map(|_| Wire::connect(&daemon)).collect();
    for wire in &mut harnesses {
        for _ in 0..8 {
            assert_eq!(wire.call("watch", &json!({}))["id"], "watch");
        }
    }
    let watched = cost();
    // Were each event encoded for each watch by whoever serves the client, it would be a thousand.
    assert!(watched < alone * 50, "{watched:?} instead of {alone:?}");
}
