//! `memtun run --use`: a program gets the device of a running daemon.

use std::{os::unix::fs::MetadataExt, path::Path, process::Command};

use nix::sys::{
    signal::Signal,
    stat::{Mode, SFlag, mknod},
};

use crate::{
    DeviceTest,
    support::daemon::{Backend, Daemon, MEMTUN, run},
};

pub const TESTS: &[DeviceTest] = &[
    ("run_covers_the_path_for_its_program_alone", run_covers_the_path_for_its_program_alone),
    ("run_uses_devices_of_memtun_alone", run_uses_devices_of_memtun_alone),
];

fn run_covers_the_path_for_its_program_alone(backend: Backend) {
    let daemon = Daemon::start(backend);
    let device = daemon.device.to_str().unwrap();
    let number =
        |path: &str| std::fs::metadata(path).map(|m| (MetadataExt::rdev(&m), MetadataExt::ino(&m)));
    let before = number("/dev/net/tun").unwrap();
    let shown = daemon
        .memtun(&["run", "--use", device, "--", "stat", "-c", "%t:%T %i", "/dev/net/tun"])
        .succeeded();
    let direct = run(Command::new("stat").args(["-c", "%t:%T %i", device]), b"").succeeded();
    assert_eq!(shown, direct, "the program sees the device");
    assert_eq!(number("/dev/net/tun").unwrap(), before, "nobody else does");
    let run_in =
        |arguments: &[&str]| daemon.memtun(&[&["run", "--use", device, "--"], arguments].concat());
    assert_eq!(run_in(&["sh", "-c", "exit 7"]).status, 7);
    assert_eq!(
        run_in(&["sh", "-c", "echo $MEMTUN_CONTROL"]).succeeded().trim_end(),
        daemon.control.to_str().unwrap()
    );
    // The program may have another folder, and without a path it looks where everybody does.
    let shown = |control: Option<&str>| {
        let mut command = Command::new(MEMTUN);
        command.args(["run", "--use", device, "--", "sh", "-c", "echo ${MEMTUN_CONTROL-unset}"]);
        command.current_dir(daemon.control.parent().unwrap()).env_remove("MEMTUN_CONTROL");
        command.envs(control.map(|control| ("MEMTUN_CONTROL", control)));
        run(&mut command, b"").succeeded()
    };
    assert_eq!(shown(Some("control")).trim_end(), daemon.control.to_str().unwrap());
    assert_eq!(shown(None), "unset\n");
    assert_eq!(run_in(&["sh", "-c", "kill -9 $$"]).status, -1, "the signal is the program's own");
    assert!(run_in(&["no-such-program"]).failed(127).contains("no-such-program"));
    assert!(run_in(&["/etc/passwd"]).failed(126).contains("/etc/passwd"));
    let missing = daemon.memtun(&["run", "--use", "/dev/no-such-device", "--", "true"]).failed(125);
    assert!(
        missing.contains("/dev/no-such-device") && missing.contains("memtun serve"),
        "{missing}"
    );
    assert_eq!(daemon.memtun(&["run", "--use", device]).status, 2, "a program is needed");
}

fn run_uses_devices_of_memtun_alone(backend: Backend) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let mut daemon = Daemon::start(backend);
    let use_device = |device: &Path| {
        let mut command = Command::new(MEMTUN);
        command.args(["run", "--use"]).arg(device).args(["--", "echo", "started"]);
        run(&mut command, b"")
    };
    assert_eq!(use_device(&daemon.device).succeeded(), "started\n");
    assert!(daemon.list().unattached_files.is_empty(), "nothing is left open");
    let others = [file.as_path(), Path::new("/dev/null"), folder.path(), Path::new("/dev/net/tun")];
    for other in others.into_iter().filter(|other| other.exists()) {
        let error = use_device(other).failed(125);
        let expected = format!("{} is not a memtun device", other.display());
        assert!(error.contains(&expected), "{error}");
    }
    let missing = use_device(&folder.path().join("missing")).failed(125);
    assert!(missing.contains("there is no device"), "{missing}");
    daemon.signal(Signal::SIGSTOP);
    let silent = use_device(&daemon.device).failed(125);
    assert!(silent.contains("does not answer"), "{silent}");
    daemon.signal(Signal::SIGCONT);
    // Of a character device a node of somebody's own stays.
    let node = match backend {
        Backend::Cuse => {
            let number = std::fs::metadata(&daemon.device).unwrap().rdev();
            let node = folder.path().join("node");
            mknod(&node, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), number).unwrap();
            assert_eq!(use_device(&node).succeeded(), "started\n");
            node
        }
        Backend::Fuse => daemon.device.clone(),
    };
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
    let dead = use_device(&node).failed(125);
    assert!(dead.contains("has ended; start 'memtun serve' again"), "{dead}");
}
