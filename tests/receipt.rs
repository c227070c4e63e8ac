//! What a harness has not received is not lost.

use std::{
    io::BufRead,
    os::fd::{AsRawFd, OwnedFd},
    process::{Command, Stdio},
};

use memtun_client::proto::wait::Until;
use nix::sys::socket::{MsgFlags, recv, send};
use serde_json::json;

use crate::{
    DeviceTest,
    control::Wire,
    device::take,
    support::{
        daemon::{Backend, Daemon, MEMTUN},
        datagram,
        device::{NO_PI, TUN, TunFile},
        within_deadline,
    },
};

pub const TESTS: &[DeviceTest] = &[
    ("half_closed_connection_gets_its_answers", half_closed_connection_gets_its_answers),
    ("kept_datagrams_are_dropped_or_come_back", kept_datagrams_are_dropped_or_come_back),
    ("take_loses_nothing_that_is_not_written_out", take_loses_nothing_that_is_not_written_out),
    ("half_closed_attached_socket_gets_everything", half_closed_attached_socket_gets_everything),
    (
        "closed_attached_socket_leaves_what_it_did_not_take",
        closed_attached_socket_leaves_what_it_did_not_take,
    ),
];

fn half_closed_connection_gets_its_answers(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let long = [&[0x45][..], &[7; 60_000]].concat();
    for _ in 0..64 {
        file.write(&long).unwrap();
    }
    let mut wire = Wire::connect(&daemon);
    wire.send(r#"{"id":1,"method":"take","params":{"tunnel":"tun0","count":64}}"#);
    wire.send(r#"{"id":2,"method":"take","params":{"tunnel":"tun0","timeout_ms":3600000}}"#);
    wire.send(r#"{"id":3,"method":"list"}"#);
    wire.lines.get_mut().shutdown(std::net::Shutdown::Write).unwrap();
    let taken = wire.receive();
    let datagrams = taken["result"]["datagrams"].as_array().expect("the answer is whole");
    let digits = hex::encode(&long);
    assert_eq!(datagrams.len(), 64);
    assert!(datagrams.iter().all(|taken| taken["datagram"] == digits.as_str()));
    assert_eq!(wire.receive()["id"], 3);
    let mut rest = String::new();
    wire.lines.read_line(&mut rest).unwrap();
    assert_eq!(rest, "", "then the end: what waited is given up");
    file.write(&datagram(1)).unwrap();
    assert_eq!(take(&mut daemon.client(), "tun0"), datagram(1), "and takes nothing");
}

fn kept_datagrams_are_dropped_or_come_back(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    for number in 0..4 {
        file.write(&datagram(number)).unwrap();
    }
    let keep = |wire: &mut Wire, count: usize| {
        let call = json!({"tunnel": "tun0", "count": count, "keep": true, "timeout_ms": 0});
        let answer = wire.call("take", &call);
        let kept = answer["result"]["datagrams"].as_array();
        let kept = kept.unwrap_or_else(|| panic!("{answer}")).iter().map(|kept| {
            let number = kept["number"].as_u64().expect("it has a number");
            (number, hex::decode(kept["datagram"].as_str().unwrap()).unwrap())
        });
        kept.collect::<Vec<_>>()
    };
    let (mut first, mut second) = (Wire::connect(&daemon), Wire::connect(&daemon));
    let ours = keep(&mut first, 2);
    let theirs = keep(&mut second, 1);
    assert_eq!(ours.iter().map(|kept| &kept.1).collect::<Vec<_>>(), [&datagram(0), &datagram(1)]);
    assert_eq!(theirs[0].1, datagram(2), "no two get the same");
    assert_eq!(daemon.list().tunnels[0].write_buffer.datagrams, 4, "all of them are there");
    let dropped = |wire: &mut Wire, number: u64| {
        wire.call("drop", &json!({"numbers": [number]}))["result"]["dropped"].clone()
    };
    assert_eq!(dropped(&mut first, theirs[0].0), 0, "it is another's");
    assert_eq!(
        (dropped(&mut first, ours[0].0), dropped(&mut first, ours[0].0)),
        (json!(1), json!(0))
    );
    drop(first);
    // Its end is known when the datagram can be taken again; by then the client has gone.
    drop(file);
    daemon.wait_until("tun0", Until::Detached);
    let taken = within_deadline("what was kept to come back", {
        let mut client = daemon.client();
        move || loop {
            let taken = take(&mut client, "tun0");
            if taken != datagram(3) {
                return taken;
            }
        }
    });
    assert_eq!(taken, datagram(1));
    assert_eq!(dropped(&mut second, theirs[0].0), 1, "of a tunnel that is gone");
    assert_eq!(dropped(&mut second, theirs[0].0), 0);
}

fn take_loses_nothing_that_is_not_written_out(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    for number in 0..10 {
        file.write(&datagram(number)).unwrap();
    }
    let untaken = || daemon.list().tunnels[0].write_buffer.datagrams;
    let take_to = |output: Stdio, arguments: &[&str]| {
        let mut command = Command::new(MEMTUN);
        command.args(["take", "tun0"]).args(arguments).env("MEMTUN_CONTROL", &daemon.control);
        let command = command.stdout(output).stderr(Stdio::piped());
        let child = command.spawn().expect("memtun runs");
        let ended = within_deadline("take to end", move || child.wait_with_output()).unwrap();
        (ended.status.code(), String::from_utf8(ended.stderr).unwrap())
    };
    for format in [&["--hex"][..], &["--json"], &["--raw"], &[]] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let (status, said) = take_to(full.into(), format);
        let wanted = "memtun: writing to standard output: No space left on device (os error 28)\n";
        assert_eq!((status, said.as_str()), (Some(1), wanted), "{format:?}");
        assert_eq!(untaken(), 10, "{format:?}");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let (_, said) = take_to(writer.into(), format);
        assert_eq!((said.as_str(), untaken()), ("", 10), "{format:?}");
    }
    let listed = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let list = Command::new(MEMTUN)
        .args(["list"])
        .env("MEMTUN_CONTROL", &daemon.control)
        .stdout(listed)
        .output()
        .unwrap();
    let said = String::from_utf8(list.stderr).unwrap();
    assert!(said.starts_with("memtun: writing to standard output: "), "{said}");

    // Those that were printed are removed, and counted truthfully.
    let some = daemon.memtun(&["take", "tun0", "--hex", "-n", "50", "--timeout", "20ms"]);
    let printed: Vec<String> = (0..10).map(|number| hex::encode(datagram(number))).collect();
    assert_eq!(some.status, 1);
    assert_eq!(some.stdout.lines().collect::<Vec<_>>(), printed);
    let wanted = "memtun: tunnel tun0: the client wrote 10 of 50 datagrams within 20ms\n";
    assert_eq!(some.stderr, wanted);
    assert_eq!(untaken(), 0);
}

/// Receives until the end.
fn receive_all(socket: &OwnedFd) -> Vec<Vec<u8>> {
    let socket = socket.try_clone().unwrap();
    within_deadline("the socket's end", move || {
        let mut buffer = [0; 100_000];
        let mut received = Vec::new();
        loop {
            match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap() {
                0 => return received,
                length => received.push(buffer[..length].to_vec()),
            }
        }
    })
}

fn half_closed_attached_socket_gets_everything(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let socket = daemon.client().attach("tun0").unwrap();
    send(socket.as_raw_fd(), &datagram(1), MsgFlags::empty()).unwrap();
    nix::sys::socket::shutdown(socket.as_raw_fd(), nix::sys::socket::Shutdown::Write).unwrap();
    assert_eq!(file.read(), Ok(datagram(1)));
    // More than the socket holds.
    for number in 0..2_000 {
        file.write(&datagram(number)).unwrap();
    }
    drop(file);
    assert!(receive_all(&socket) == (0..2_000).map(datagram).collect::<Vec<_>>());
}

fn closed_attached_socket_leaves_what_it_did_not_take(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let numbered = |number: u32| [&[0x45][..], &number.to_be_bytes(), &[7; 9_000]].concat();
    for number in 0..1_000 {
        file.write(&numbered(number)).unwrap();
    }
    let mut client = daemon.client();
    let socket = client.attach("tun0").unwrap();
    daemon.memtun(&["part", "tun0"]).succeeded();
    let received = receive_all(&socket);
    assert!(!received.is_empty() && received.len() < 1_000, "the socket is full");
    let rest = received.len()..1_000;
    let left: Vec<Vec<u8>> = rest.map(|_| take(&mut client, "tun0")).collect();
    assert!([received, left].concat() == (0..1_000).map(numbered).collect::<Vec<_>>());
}
