//! The control socket and the command line, with a daemon at the other end.

use std::{
    io::{BufRead, BufReader, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::{MetadataExt, PermissionsExt},
            net::UnixStream,
        },
    },
    process::Command,
};

use memtun_client::proto::{event::What, list::List, wait::Until, watch::Watch};
use nix::{
    fcntl::OFlag,
    sys::socket::{MsgFlags, recv, send},
};
use serde_json::{Value, json};

use crate::{
    DeviceTest,
    device::{inject, take},
    support::{
        Background, DEADLINE,
        daemon::{Backend, Daemon, MEMTUN, run},
        datagram,
        device::{NO_PI, TAP, TUN, TunFile},
        program::{Program, compiled},
        within_deadline,
    },
};

pub const TESTS: &[DeviceTest] = &[
    ("transcript_of_the_documentation_holds", transcript_of_the_documentation_holds),
    ("bad_lines_leave_the_connection_usable", bad_lines_leave_the_connection_usable),
    ("waiting_calls_hold_up_nobody", waiting_calls_hold_up_nobody),
    ("closed_connection_takes_nothing", closed_connection_takes_nothing),
    ("attached_socket_carries_datagrams_both_ways", attached_socket_carries_datagrams_both_ways),
    (
        "attached_socket_takes_over_in_order_and_ends_with_its_tunnel",
        attached_socket_takes_over_in_order_and_ends_with_its_tunnel,
    ),
    ("watch_shows_everything", watch_shows_everything),
    ("list_shows_tunnels_and_files", list_shows_tunnels_and_files),
    ("list_knows_of_every_close", list_knows_of_every_close),
    ("ping_is_answered_by_an_unmodified_program", ping_is_answered_by_an_unmodified_program),
    ("inject_takes_every_source", inject_takes_every_source),
    ("mode_asked_for_is_that_of_the_living_tunnel", mode_asked_for_is_that_of_the_living_tunnel),
    ("take_prints_every_format", take_prints_every_format),
    ("mistakes_get_one_line_that_helps", mistakes_get_one_line_that_helps),
    ("second_daemon_is_told_what_is_taken", second_daemon_is_told_what_is_taken),
    ("socket_has_its_mode_and_group", socket_has_its_mode_and_group),
];

/// A connection driven by hand.
pub struct Wire {
    pub lines: BufReader<UnixStream>,
}

impl Wire {
    pub fn connect(daemon: &Daemon) -> Self {
        let stream = UnixStream::connect(&daemon.control).expect("the socket takes connections");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout can be set");
        let mut wire = Self { lines: BufReader::new(stream) };
        assert_eq!(wire.receive()["protocol"], 1);
        wire
    }

    pub fn send(&mut self, line: &str) {
        writeln!(self.lines.get_mut(), "{line}").expect("the daemon reads");
    }

    pub fn receive(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a line in time");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }

    pub fn call(&mut self, method: &str, params: &Value) -> Value {
        self.send(&json!({"id": method, "method": method, "params": params}).to_string());
        self.receive()
    }
}

/// As JSON values, but `"*"` matches anything.
fn matches(pattern: &Value, value: &Value) -> bool {
    match (pattern, value) {
        (Value::String(star), _) if star == "*" => true,
        (Value::Object(pattern), Value::Object(value)) => {
            pattern.len() == value.len()
                && pattern.iter().all(|(key, p)| value.get(key).is_some_and(|v| matches(p, v)))
        }
        (Value::Array(pattern), Value::Array(value)) => {
            pattern.len() == value.len() && pattern.iter().zip(value).all(|(p, v)| matches(p, v))
        }
        (pattern, value) => pattern == value,
    }
}

fn transcript_of_the_documentation_holds(backend: Backend) {
    let document =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/control.md")).unwrap();
    let (_, rest) = document.split_once("```transcript\n").expect("there is a transcript");
    let (transcript, _) = rest.split_once("```").expect("it ends");
    let daemon = Daemon::start(backend);
    let stream = UnixStream::connect(&daemon.control).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut wire = Wire { lines: BufReader::new(stream) };
    let mut file = None;
    for line in transcript.lines() {
        let client =
            |file: &Option<TunFile>| file.as_ref().expect("the client is attached").try_clone();
        match line.split_once(' ').expect("who, then what") {
            ("H", sent) => wire.send(sent),
            ("D", wanted) => {
                let (wanted, got) = (serde_json::from_str(wanted).expect(line), wire.receive());
                assert!(matches(&wanted, &got), "wanted {wanted}\n   got {got}");
            }
            ("client:", "close") => file = None,
            ("client:", act) => match act.split_once(' ').expect("what, then with what") {
                ("attach", name) => {
                    file = Some(TunFile::attached(&daemon.device, name, TUN | NO_PI))
                }
                ("read", wanted) => {
                    assert_eq!(client(&file).read(), Ok(hex::decode(wanted).unwrap()))
                }
                ("write", bytes) => {
                    let bytes = hex::decode(bytes).unwrap();
                    assert_eq!(client(&file).write(&bytes), Ok(bytes.len()));
                }
                _ => panic!("{line}"),
            },
            _ => panic!("{line}"),
        }
    }
}

fn bad_lines_leave_the_connection_usable(backend: Backend) {
    let daemon = Daemon::start(backend);
    let mut wire = Wire::connect(&daemon);
    let deep = "[".repeat(100_000);
    let long = format!("{{\"method\":\"{}\"}}", "x".repeat(300 << 10));
    for (line, code) in [
        ("{", "bad-line"),
        ("[]", "bad-line"),
        ("null", "bad-line"),
        ("\u{1}\u{fffd}", "bad-line"),
        (deep.as_str(), "bad-line"),
        (long.as_str(), "line-too-long"),
        (r#"{"id":1}"#, "bad-line"),
        (r#"{"method":"fly"}"#, "unknown-method"),
        (r#"{"method":"list","params":[]}"#, "bad-params"),
        (r#"{"method":"list","params":{"a":1}}"#, "bad-params"),
        (r#"{"method":"take","params":{"tunnel":"","count":1}}"#, "bad-params"),
        (r#"{"method":"take","params":{"tunnel":"tun0","count":-1}}"#, "bad-params"),
        (r##"{"method":"take","params":{"tunnel":"#99999999999"}}"##, "bad-params"),
        (r#"{"method":"inject","params":{"tunnel":"tun0","datagram":"zz"}}"#, "bad-params"),
        (r#"{"method":"wait","params":{"tunnel":"tun0","until":"friday"}}"#, "bad-params"),
        (r#"{"method":"take","params":{"tunnel":"tun0","count":65}}"#, "bad-count"),
        (
            r#"{"method":"wait","params":{"tunnel":"tun0","until":"attached","timeout_ms":0}}"#,
            "timeout",
        ),
    ] {
        wire.send(line);
        let answer = wire.receive();
        assert_eq!(answer["error"]["code"], code, "{}: {answer}", &line[..line.len().min(80)]);
    }
    wire.send("");
    assert!(wire.call("list", &json!({}))["result"]["tunnels"].is_array());
    // What has no newline at its end is no line.
    wire.lines.get_mut().write_all(b"{\"method\":\"list\"}").unwrap();
    wire.lines.get_mut().shutdown(std::net::Shutdown::Write).unwrap();
    let mut rest = String::new();
    wire.lines.read_line(&mut rest).unwrap();
    assert_eq!(rest, "");
    assert!(daemon.client().call(&List {}).is_ok(), "the daemon is alive");
}

fn waiting_calls_hold_up_nobody(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let mut wire = Wire::connect(&daemon);
    wire.send(r#"{"id":1,"method":"take","params":{"tunnel":"tun0","timeout_ms":3600000}}"#);
    wire.send(r#"{"id":2,"method":"wait","params":{"tunnel":"tun7","until":"attached","timeout_ms":18446744073709551615}}"#);
    assert_eq!(wire.call("list", &json!({}))["id"], "list");
    file.write(&datagram(1)).unwrap();
    let taken = wire.receive();
    assert_eq!(
        (&taken["id"], &taken["result"]["datagrams"][0]["datagram"]),
        (&json!(1), &json!(hex::encode(datagram(1))))
    );
    let _other = TunFile::attached(&daemon.device, "tun7", TUN);
    assert_eq!(wire.receive(), json!({"id": 2, "result": {"id": 2, "name": "tun7"}}));

    // A connection may have so many open calls, and no more.
    for id in 0..257 {
        wire.send(&json!({"id": id, "method": "take", "params": {"tunnel": "tun0"}}).to_string());
    }
    let refused = wire.receive();
    assert_eq!(
        (&refused["id"], &refused["error"]["code"]),
        (&json!(256), &json!("too-many-calls"))
    );
    file.write(&datagram(2)).unwrap();
    assert_eq!(wire.receive()["id"], 0, "first come, first served");
}

fn closed_connection_takes_nothing(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let mut wire = Wire::connect(&daemon);
    wire.send(r#"{"id":1,"method":"take","params":{"tunnel":"tun0","timeout_ms":3600000}}"#);
    wire.call("list", &json!({}));
    wire.lines.get_mut().shutdown(std::net::Shutdown::Both).unwrap();
    drop(wire);
    // The daemon has seen the end when the connection's threads are gone.
    within_deadline("the connection to end", {
        let pid = daemon.pid();
        move || {
            let names = || {
                let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it is running");
                tasks
                    .flatten()
                    .filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok())
                    .collect::<Vec<_>>()
            };
            while names().iter().any(|name| name.trim() == "harness") {}
        }
    });
    file.write(&datagram(1)).unwrap();
    assert_eq!(
        take(&mut daemon.client(), "tun0"),
        datagram(1),
        "it was not taken for the connection that is gone"
    );
}

fn attached_socket_carries_datagrams_both_ways(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    file.write(&datagram(1)).unwrap();
    let mut client = daemon.client();
    let socket = client.attach("tun0").unwrap();
    let receive = |socket: &OwnedFd| {
        let socket = socket.try_clone().unwrap();
        within_deadline("a message", move || {
            let mut buffer = [0; 100_000];
            recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())
                .map(|length| buffer[..length].to_vec())
        })
    };
    let send = |bytes: &[u8]| send(socket.as_raw_fd(), bytes, MsgFlags::empty()).map(|_| ());
    assert_eq!(receive(&socket), Ok(datagram(1)), "what was written before");
    file.write(&datagram(2)).unwrap();
    assert_eq!(receive(&socket), Ok(datagram(2)));
    let largest = [&[0x45][..], &[7; 65_534]].concat();
    for datagram in [&datagram(3), &largest] {
        send(datagram).unwrap();
        assert_eq!(file.read(), Ok(datagram.clone()));
        file.write(datagram).unwrap();
        assert_eq!(receive(&socket).as_ref(), Ok(datagram));
    }
    assert!(client.attach("tun0").unwrap_err().to_string().contains("has a peer already"));

    // A burst beyond the client's queue: the oldest are kept, the rest is counted.
    for number in 0..600 {
        send(&datagram(number)).unwrap();
    }
    let counted = within_deadline("the burst to arrive", {
        let mut client = daemon.client();
        move || loop {
            let listing = client.call(&List {}).unwrap();
            let counters = &listing.tunnels[0].counters;
            if counters.to_client.datagrams + counters.to_client_dropped.datagrams == 602 {
                return (counters.to_client.datagrams, counters.to_client_dropped.datagrams);
            }
        }
    });
    assert_eq!(counted, (502, 100));
    assert_eq!(file.read(), Ok(datagram(0)));

    // A burst that nobody receives does not hold the client up, and is not lost either.
    for number in 0..2_000 {
        assert_eq!(file.write(&datagram(number)), Ok(28));
    }
    for number in 0..2_000 {
        assert_eq!(receive(&socket), Ok(datagram(number)));
    }
    drop(socket);
    within_deadline("the peer to leave", {
        let mut client = daemon.client();
        move || while client.call(&List {}).unwrap().tunnels[0].peer.is_some() {}
    });
    file.write(&datagram(4)).unwrap();
    assert_eq!(take(&mut client, "tun0"), datagram(4), "taken by hand again");
}

fn attached_socket_takes_over_in_order_and_ends_with_its_tunnel(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let mut client = daemon.client();
    // A client that goes on writing while a backlog is handed over.
    let writer = Background::start({
        let file = file.try_clone();
        move || (0..3_000).for_each(|number| assert_eq!(file.write(&datagram(number)), Ok(28)))
    });
    daemon.wait_until("tun0", Until::Written);
    let socket = client.attach("tun0").unwrap();
    let received = Background::start({
        let socket = socket.try_clone().unwrap();
        move || {
            let mut buffer = [0; 2_000];
            let mut received = Vec::new();
            loop {
                match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap() {
                    0 => return received,
                    length => received.push(buffer[..length].to_vec()),
                }
            }
        }
    });
    writer.join("the writer");
    // More than any socket carries in one message: it alone is lost.
    file.write(&vec![0x45; 120_000]).unwrap();
    file.write(&datagram(3_000)).unwrap();
    drop(file);
    let mut received = received.join("the socket's end, for its tunnel is gone");
    received.retain(|datagram| datagram.len() == 28);
    assert!(received == (0..=3_000).map(datagram).collect::<Vec<_>>(), "everything, in order");
    within_deadline("the tunnel to go", move || {
        while !client.call(&List {}).unwrap().tunnels.is_empty() {}
    });
}

fn watch_shows_everything(backend: Backend) {
    let daemon = Daemon::start(backend);
    let mut watcher = daemon.client();
    watcher.call(&Watch { tunnel: None }).unwrap();
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    inject(&mut daemon.client(), "tun0", &datagram(1));
    file.write(&datagram(2)).unwrap();
    drop(file);
    let mut seen = Vec::new();
    loop {
        let event = watcher.next_event().unwrap();
        let ends = matches!(event.what, What::Closed { .. });
        seen.push(match event.what {
            What::Opened { pid, .. } => format!("opened {}", pid == std::process::id()),
            What::Attached { name, mode, created, .. } => {
                format!("attached {name} {mode} {created}")
            }
            What::ToClient(passed) => format!("to client {}", passed.datagram == datagram(1)),
            What::FromClient(passed) => format!("from client {}", passed.datagram == datagram(2)),
            What::Detached { deleted, .. } => format!("detached {deleted}"),
            What::Closed { .. } => "closed".to_owned(),
            What::Dropped { .. }
            | What::Deleted { .. }
            | What::Link { .. }
            | What::ToLink(_)
            | What::Unknown => "unexpected".to_owned(),
        });
        if ends {
            break;
        }
    }
    assert_eq!(
        seen,
        [
            "opened true",
            "attached tun0 tun true",
            "to client true",
            "from client true",
            "detached true",
            "closed"
        ]
    );

    let program =
        Program::start(Command::new(MEMTUN).args(["watch"]).env("MEMTUN_CONTROL", &daemon.control));
    let _tap = TunFile::attached(&daemon.device, "tap0", TAP);
    // The watch may begin before or after the open, but what is attached last is seen.
    let lines = Background::start(move || {
        let mut opened = 0;
        loop {
            let line = program.line();
            opened += u32::from(line.contains(" opened by integration"));
            if line.contains(" link") || line.contains(" is down") {
                return (opened, line);
            }
        }
    });
    within_deadline("the watch to show a change", {
        let mut client = daemon.client();
        move || {
            let mut set = |link| {
                let tunnel = "tap0";
                let set = memtun_client::proto::set::Set::new(tunnel);
                let link = Some(link);
                client.call(&memtun_client::proto::set::Set { link, ..set }).unwrap();
            };
            while lines.is_running() {
                set(memtun_client::proto::set::Link::Down);
                set(memtun_client::proto::set::Link::Up);
            }
        }
    });
}

fn list_shows_tunnels_and_files(backend: Backend) {
    let daemon = Daemon::start(backend);
    assert_eq!(
        daemon.memtun(&["list"]).succeeded(),
        "no tunnels; a client makes one by TUNSETIFF\n"
    );
    let file = TunFile::attached(&daemon.device, "tap%d", TAP);
    let _idle = TunFile::open(&daemon.device);
    inject(&mut daemon.client(), "tap0", &datagram(1));
    file.write(&[0; 4 + 60]).unwrap();
    let listing: Value =
        serde_json::from_str(&daemon.memtun(&["list", "--json"]).succeeded()).unwrap();
    let tunnel = &listing["tunnels"][0];
    let scope =
        std::fs::metadata("/proc/self/ns/net").map(|metadata| MetadataExt::ino(&metadata)).unwrap();
    for (field, wanted) in [
        ("id", json!(1)),
        ("name", json!("tap0")),
        ("requested_name", json!("tap%d")),
        ("scope", json!(scope)),
        ("mode", json!("tap")),
        ("flags", json!([])),
        ("persistent", json!(false)),
        ("mtu", json!(1500)),
        ("link", json!("up")),
        ("write_buffer", json!({"datagrams": 1, "bytes": 60, "capacity": 4096})),
    ] {
        assert_eq!(tunnel[field], wanted, "{field}");
    }
    assert_eq!(tunnel["hwaddr"].as_str().map(str::len), Some(17));
    assert_eq!(tunnel["counters"]["from_client"], json!({"datagrams": 1, "bytes": 60}));
    let shown = &tunnel["files"][0];
    for (field, wanted) in [
        ("pid", json!(std::process::id())),
        ("open_flags", json!(["O_RDWR"])),
        ("blocking", json!(true)),
        ("close_on_exec", json!(true)),
        ("read_buffer", json!({"datagrams": 1, "bytes": 42, "capacity": 1000})),
        ("parked_reads", json!(0)),
        ("poll_armed", json!(false)),
    ] {
        assert_eq!(shown[field], wanted, "{field}");
    }
    assert_eq!(listing["unattached_files"].as_array().map(Vec::len), Some(1));

    // Two descriptors that differ: nobody can tell which is meant.
    let kept = TunFile::open_with(&daemon.device, OFlag::O_RDWR).unwrap();
    let close_on_exec = || daemon.list().tunnels[0].files[0].close_on_exec;
    assert_eq!(close_on_exec(), None);
    drop(kept);
    assert_eq!(close_on_exec(), Some(true));
    let table = daemon.memtun(&["list"]).succeeded();
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("ID  TUNNEL  MODE  LINK"), "{table}");
    assert!(lines[1].starts_with("#1  tap0    tap   up"), "{table}");
    assert!(lines[2].starts_with("open, attached to no tunnel: "), "{table}");
}

/// Though the close of a FUSE file does not wait for the daemon. The program is one of its own: what this one has open, children of
/// other tests hold for a moment.
fn list_knows_of_every_close(backend: Backend) {
    let daemon = Daemon::start(backend);
    let mut client = daemon.client();
    for round in 0..50 {
        let open = r#"exec 3<>"$0" 4<>"$0" 5<>"$0" 6<>"$0" 7<>"$0" 8<>"$0" 9<>"$0""#;
        let opened = Command::new("sh").args(["-c", open]).arg(&daemon.device).status();
        assert!(opened.expect("there is a shell").success());
        let left = client.call(&List {}).expect("list").unattached_files;
        assert!(left.is_empty(), "round {round}: {left:?}");
    }
}

fn ping_is_answered_by_an_unmodified_program(backend: Backend) {
    let daemon = Daemon::start(backend);
    let device = daemon.device.to_str().unwrap();
    let pong = Program::start(
        Command::new(MEMTUN)
            .args(["run", "--use", device, "--"])
            .arg(compiled("pong"))
            .args(["tun0", "2"])
            .env("MEMTUN_CONTROL", &daemon.control),
    );
    assert_eq!(
        daemon.memtun(&["wait", "tun0", "reading", "--timeout", "30s"]).succeeded(),
        "tun0 #1\n"
    );
    for _ in 0..2 {
        let ping = ["inject", "tun0", "--ping", "--from", "10.0.0.1", "--to", "10.0.0.2"];
        daemon.memtun(&[&ping[..], &["--id", "28020", "--seq", "65535"]].concat()).succeeded();
        let reply = daemon.memtun(&["take", "tun0", "--timeout", "30s"]).succeeded();
        assert_eq!(reply, "10.0.0.2 > 10.0.0.1: ICMP echo reply, id 28020, seq 65535, length 64\n");
    }
    assert_eq!(pong.wait().code(), Some(0));
    assert_eq!(daemon.memtun(&["wait", "tun0", "detached"]).succeeded(), "");
}

fn inject_takes_every_source(backend: Backend) {
    let daemon = Daemon::start(backend);
    let tun = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let tap = TunFile::attached(&daemon.device, "tap0", TAP | NO_PI);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();

    let said = daemon.memtun(&["inject", "tun0", "--hex", "45 00:01\n02"]).succeeded();
    assert_eq!(said, "1 datagram injected, 1 queued\n");
    assert_eq!(tun.read(), Ok(vec![0x45, 0, 1, 2]));
    std::fs::write(path("bytes"), datagram(1)).unwrap();
    daemon.memtun(&["inject", "tun0", "--file", &path("bytes")]).succeeded();
    assert_eq!(tun.read(), Ok(datagram(1)));
    daemon.memtun_with_input(&["inject", "tun0"], &datagram(2)).succeeded();
    assert_eq!(tun.read(), Ok(datagram(2)));
    let udp = [
        "inject",
        "tun0",
        "--udp",
        "--from",
        "[fd00::1]:53",
        "--to",
        "[fd00::2]:5353",
        "--data",
        "hello",
    ];
    daemon.memtun(&udp).succeeded();
    let read = tun.read().unwrap();
    assert_eq!((read[0] >> 4, &read[48..]), (6, &b"hello"[..]));

    // A capture of two frames: an IPv4 datagram and an ARP request.
    let ip = [&[0xff; 6][..], &[2; 6], &[8, 0], &datagram(3)].concat();
    let arp = [&[0xff; 6][..], &[2; 6], &[8, 6], &[0; 28]].concat();
    let mut capture =
        vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0];
    for frame in [&ip, &arp] {
        let length = u32::try_from(frame.len()).unwrap().to_le_bytes();
        capture.extend([&[0; 8][..], &length, &length, frame].concat());
    }
    std::fs::write(path("capture"), capture).unwrap();
    let said = daemon.memtun(&["inject", "tun0", "--pcap", &path("capture")]).succeeded();
    assert_eq!(said, "1 datagram injected, 1 queued; left out: 1 not IP\n");
    assert_eq!(tun.read(), Ok(datagram(3)));
    assert_eq!(
        daemon.memtun(&["inject", "tap0", "--pcap", &path("capture")]).succeeded(),
        "2 datagrams injected, 2 queued\n"
    );
    assert_eq!((tap.read(), tap.read()), (Ok(ip), Ok(arp)));

    let addressed = ["--source-mac", "02:00:00:00:00:01", "--destination-mac", "02:00:00:00:00:02"];
    daemon.memtun(&[&["inject", "tap0", "--hex", "45"][..], &addressed].concat()).succeeded();
    assert_eq!(tap.read(), Ok(vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45]));
    daemon.memtun(&["inject", "tap0", "--frame", "--hex", "0102"]).succeeded();
    assert_eq!(tap.read(), Ok(vec![1, 2]), "untouched");
}

fn mode_asked_for_is_that_of_the_living_tunnel(backend: Backend) {
    let daemon = Daemon::start(backend);
    let tap = TunFile::attached(&daemon.device, "t", TAP | NO_PI);
    let frame = [&[0xff; 6][..], &[2; 6], &[8, 0], &datagram(1)].concat();
    tap.write(&frame).unwrap();
    daemon.memtun(&["delete", "t"]).succeeded();
    let mut client = daemon.client();
    assert!(client.is_tap(&"t".parse().unwrap()).unwrap(), "it is kept for its frame");
    let _tun = TunFile::attached(&daemon.device, "t", TUN | NO_PI);
    for (address, is_tap) in [("t", false), ("#1", true), ("#2", false), ("none", false)] {
        assert_eq!(client.is_tap(&address.parse().unwrap()).unwrap(), is_tap, "{address}");
    }
}

fn take_prints_every_format(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN);
    let write = || file.write(&[0, 0, 8, 0, 0x45, 1]).unwrap();
    write();
    assert_eq!(daemon.memtun(&["take", "tun0", "--hex"]).succeeded(), "4501\n");
    write();
    assert_eq!(
        daemon.memtun(&["take", "tun0", "--json"]).succeeded(),
        "{\"datagram\":\"4501\",\"protocol\":2048}\n"
    );
    write();
    assert_eq!(daemon.memtun(&["take", "tun0", "--raw"]).succeeded(), "E\u{1}");
    write();
    write();
    assert_eq!(daemon.memtun(&["take", "tun0", "--hex", "-n", "2"]).succeeded(), "4501\n4501\n");
    write();
    let some = daemon.memtun(&["take", "tun0", "--hex", "-n", "2", "--timeout", "0s"]);
    assert_eq!(
        (some.status, some.stdout.as_str()),
        (1, "4501\n"),
        "what there is, is printed: {some:?}"
    );
    assert!(some.stderr.contains("1 of 2 datagrams"), "{some:?}");
}

fn mistakes_get_one_line_that_helps(backend: Backend) {
    let daemon = Daemon::start(backend);
    let _tun = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let _tap = TunFile::attached(&daemon.device, "tap0", TAP | NO_PI);
    let folder = tempfile::tempdir().unwrap();
    let long = "45".repeat(65_554);
    let huge = std::fs::File::create(folder.path().join("huge")).unwrap();
    huge.set_len(4 << 20).unwrap();
    let huge = folder.path().join("huge");
    let large = folder.path().join("large");
    std::fs::write(&large, hex::decode(&long).unwrap()).unwrap();
    for (arguments, said) in [
        (
            &["inject", "tun9", "--hex", "45"][..],
            "no tunnel tun9; 'memtun list' shows those there are",
        ),
        (&["inject", "tun0", "--hex", ""], "the datagram is empty"),
        (
            &["inject", "tun0", "--file", large.to_str().unwrap()],
            "/large has 65554 bytes; at most 65553 can be injected",
        ),
        (
            &["inject", "tun0", "--file", huge.to_str().unwrap()],
            "/huge has 4194304 bytes; at most 65553 can be injected as one datagram",
        ),
        (
            &["inject", "tun0", "--file", "/dev/zero"],
            "/dev/zero has more than 65553 bytes; at most 65553 can be injected",
        ),
        (&["inject", "tun0", "--file", "/no/such/file"], "/no/such/file"),
        (&["inject", "tun0", "--pcap", "/etc/passwd"], "a pcap or pcapng file is needed"),
        (&["inject", "tun0", "--frame", "--hex", "45"], "is a tun, which carries no frames"),
        (&["inject", "tap0", "--hex", "01"], "with --frame"),
        (&["take", "tun9"], "no tunnel tun9"),
        (&["take", "tun0", "--timeout", "1ms"], "the client wrote 0 of 1 datagrams within 1ms"),
        (
            &["wait", "tun9", "attached", "--timeout", "0s"],
            "no client attached to tunnel tun9 within 0s",
        ),
        (&["set", "tun9", "up"], "no tunnel tun9"),
        (&["watch", "tun9"], "no tunnel tun9"),
    ] {
        let error = daemon.memtun(arguments).failed(1);
        assert!(error.starts_with("memtun: ") && error.contains(said), "{arguments:?}: {error}");
    }
    for _ in 0..500 {
        inject(&mut daemon.client(), "tun0", &datagram(1));
    }
    let full = daemon.memtun(&["inject", "tun0", "--hex", "45"]).failed(1);
    assert!(full.contains("queue of tunnel tun0 is full with 500 datagrams"), "{full}");

    // The same name in another network namespace.
    let device = daemon.device.to_str().unwrap();
    let reader = compiled("reader");
    let other =
        Program::start(Command::new("unshare").args(["-n"]).arg(&reader).args([device, "tun0"]));
    other.expect_line("attached tun0");
    let ambiguous = daemon.memtun(&["inject", "tun0", "--hex", "45"]).failed(1);
    assert!(ambiguous.contains("tunnel tun0 is ambiguous; say tun0@SCOPE"), "{ambiguous}");
    daemon.wait_until("#3", Until::Reading);
    daemon.memtun(&["inject", "#3", "--hex", "45"]).succeeded();
    other.expect_line("read 1");
    assert!(daemon.client().call(&List {}).is_ok(), "the daemon is alive");
}

fn second_daemon_is_told_what_is_taken(backend: Backend) {
    let daemon = Daemon::start(backend);
    let control = daemon.control.to_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let serve = |device: &str, control: &str| {
        let (options, _) = backend.options(device);
        run(Command::new(MEMTUN).arg("serve").args(options).args(["--control", control]), b"")
            .failed(1)
    };
    let error = serve("memtun-other", control);
    assert!(error.contains(control) && error.contains("in use by another daemon"), "{error}");
    let name = daemon.device.file_name().unwrap().to_str().unwrap();
    let error = serve(name, &path("control"));
    let taken = match backend {
        Backend::Cuse => "another CUSE device has this name",
        Backend::Fuse => "is served by another daemon",
    };
    assert!(error.contains(name) && error.contains(taken), "{error}");
    assert!(!folder.path().join("control").exists(), "the socket does not stay");
    std::fs::write(path("file"), "").unwrap();
    let error = serve("memtun-other", &path("file"));
    assert!(error.contains("is not a socket"), "{error}");
    assert!(daemon.client().call(&List {}).is_ok(), "the first daemon is untouched");
}

fn socket_has_its_mode_and_group(backend: Backend) {
    let mode =
        |daemon: &Daemon| std::fs::metadata(&daemon.control).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&Daemon::start(backend)), 0o600);
    let daemon =
        Daemon::start_with(backend, &["--control-mode", "0660", "--control-group", "nogroup"]);
    assert_eq!(mode(&daemon), 0o660);
    let group = MetadataExt::gid(&std::fs::metadata(&daemon.control).unwrap());
    assert_eq!(
        Some(group),
        nix::unistd::Group::from_name("nogroup").unwrap().map(|group| group.gid.as_raw())
    );
}
