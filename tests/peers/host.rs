//! A small host as the peer of a tunnel.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
};

use memtun::{core::Mode, packet, render};
use memtun_client::proto::{event::What, list::List, watch::Watch};
use nix::errno::Errno;
use smoltcp::socket::tcp;

use crate::{
    DeviceTest,
    device::inject,
    support::{
        Background,
        daemon::{Backend, Daemon},
        datagram,
        device::{NO_PI, TAP, TUN, TunFile},
        random_bytes,
        stack::StackClient,
        within_deadline,
    },
};

pub const TESTS: &[DeviceTest] = &[
    ("peers_host_answers_pings", host_answers_pings),
    ("peers_host_is_a_neighbour_on_a_tap", host_is_a_neighbour_on_a_tap),
    ("peers_host_echoes_and_discards_tcp", host_echoes_and_discards_tcp),
    ("peers_host_echoes_udp_in_fragments_too", host_echoes_udp_in_fragments_too),
    ("peers_host_gets_offloads_done", host_gets_offloads_done),
    ("peers_host_forwards_to_this_machine", host_forwards_to_this_machine),
    ("peers_host_holds_up_who_writes_too_fast", host_holds_up_who_writes_too_fast),
    ("peers_host_takes_so_many_connections", host_takes_so_many_connections),
    ("peers_host_ends_with_part_and_with_its_tunnel", host_ends_with_part_and_with_its_tunnel),
    ("peers_host_mistakes_get_one_line", host_mistakes_get_one_line),
];

const MEBIBYTE: usize = 1 << 20;

/// A client with a stack, on a tun whose host is 10.0.0.1 and fd00::1.
fn tun_client(daemon: &Daemon, options: &[&str]) -> StackClient {
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let host = ["host", "tun0", "--addr", "10.0.0.1/24", "--addr", "fd00::1/64"];
    assert_eq!(daemon.memtun(&[&host, options].concat()).succeeded(), "");
    StackClient::new(file, &["10.0.0.2/24", "fd00::2/64"], None)
}

fn host_answers_pings(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN);
    // It is waited for, and what was written before is answered too.
    let waiting = Background::start({
        let mut client = daemon.client();
        let host = memtun_client::proto::host::Host {
            tunnel: "tun1".parse().unwrap(),
            addresses: vec!["192.0.2.1/24".parse().unwrap()],
            forwards: Vec::new(),
            timeout_ms: 30_000,
        };
        move || client.call(&host).map(|hosted| (hosted.id, hosted.hwaddr))
    });
    let ping = |from: &str, to: &str| {
        let ping = packet::echo_request(
            from.parse().unwrap(),
            to.parse().unwrap(),
            packet::Echo::default(),
        )
        .unwrap();
        let protocol = if ping[0] >> 4 == 4 { [0, 0, 8, 0] } else { [0, 0, 0x86, 0xdd] };
        [&protocol, &ping[..]].concat()
    };
    file.write(&ping("10.0.0.2", "10.0.0.1")).unwrap();
    let host = ["host", "tun0", "--addr", "10.0.0.1/24", "--addr", "fd00::1/64"];
    assert_eq!(daemon.memtun(&host).succeeded(), "");
    let answer = |from: &str, to: &str| {
        let read = file.read().unwrap();
        let shown = render::datagram(&read[4..], Mode::Tun);
        assert!(shown.starts_with(&format!("{from} > {to}: ")), "{shown}");
        assert!(shown.contains("echo reply"), "{shown}");
    };
    answer("10.0.0.1", "10.0.0.2");
    for (from, to) in [
        ("10.0.0.9", "10.0.0.1"),
        ("fd00::2", "fd00::1"),
        // From another network too: on a tun the way to anywhere is the client.
        ("198.51.100.7", "10.0.0.1"),
        ("2001:db8::7", "fd00::1"),
    ] {
        file.write(&ping(from, to)).unwrap();
        answer(to, from);
    }

    // The harness may inject and watch.
    let mut watcher = daemon.client();
    watcher.call(&Watch { tunnel: None }).unwrap();
    file.write(&ping("10.0.0.2", "10.0.0.1")).unwrap();
    answer("10.0.0.1", "10.0.0.2");
    // They are told by two threads.
    let events = [(); 2].map(|()| watcher.next_event().unwrap().what);
    let is = |kind: fn(&What) -> bool| events.iter().filter(|event| kind(event)).count();
    let counts = (
        is(|event| matches!(event, What::FromClient(_))),
        is(|event| matches!(event, What::ToClient(_))),
    );
    assert_eq!(counts, (1, 1), "{events:?}");
    inject(&mut daemon.client(), "tun0", &datagram(1));
    assert_eq!(file.read().unwrap()[4..], datagram(1));
    let table = daemon.memtun(&["list"]).succeeded();
    assert!(table.contains("  host 10.0.0.1/24 fd00::1/64  "), "{table}");
    let take = daemon.memtun(&["take", "tun0", "--timeout", "0s"]).failed(1);
    assert!(take.contains("its peer, host 10.0.0.1/24 fd00::1/64, gets"), "{take}");

    assert!(waiting.is_running());
    let late = TunFile::attached(&daemon.device, "tun1", TUN | NO_PI);
    assert_eq!(waiting.join("the second host").unwrap(), (2, None));
    late.write(&ping("192.0.2.2", "192.0.2.1")[4..]).unwrap();
    assert!(render::datagram(&late.read().unwrap(), Mode::Tun).contains("echo reply"));
}

fn host_is_a_neighbour_on_a_tap(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tap0", TAP | NO_PI);
    let host = ["host", "tap0", "--addr", "10.0.0.1/24", "--addr", "fd00::1/64"];
    let hwaddr = daemon.memtun(&host).succeeded().trim_end().to_owned();
    let address = hex::decode(hwaddr.replace(':', "")).unwrap();
    assert_eq!((address.len(), address[0] & 3), (6, 2), "local and no group: {hwaddr}");
    let own = [2, 0, 0, 0, 0, 9];
    let arp = |operation, sender: &[u8], from: [u8; 4], target: &[u8], to: [u8; 4]| {
        [&[0, 1, 8, 0, 6, 4, 0, operation], sender, &from, target, &to].concat()
    };
    let request = arp(1, &own, [10, 0, 0, 2], &[0; 6], [10, 0, 0, 1]);
    file.write(&[&[0xff; 6][..], &own, &[8, 6], &request].concat()).unwrap();
    let reply = arp(2, &address, [10, 0, 0, 1], &own, [10, 0, 0, 2]);
    let reply = [&own[..], &address, &[8, 6], &reply].concat();
    let got = file.read().unwrap();
    assert_eq!(got[..reply.len()], reply);

    // Both kinds of address, found by ARP and by neighbour discovery, also from the link-local one.
    let mut client =
        StackClient::new(file, &["10.0.0.2/24", "fd00::2/64", "fe80::9/64"], Some(own));
    let data = random_bytes(100_000);
    let octets: [u8; 6] = address.try_into().unwrap();
    let [a, b, c, d, e, f] = octets.map(u16::from);
    let words = [0xfe80, 0, 0, 0, (a ^ 2) << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f];
    let link_local = std::net::Ipv6Addr::from(words).to_string();
    for (port, to) in (5_000..).zip(["10.0.0.1", "fd00::1", &link_local]) {
        let socket = client.connect(to, 7, port);
        assert!(client.exchange(socket, &data) == data, "{to}");
    }
    let peer = daemon.list().tunnels[0].peer.take().expect("it has one");
    assert_eq!(peer.details, ["10.0.0.1/24", "fd00::1/64", &hwaddr]);
}

fn host_echoes_and_discards_tcp(backend: Backend) {
    let daemon = Daemon::start(backend);
    let mut client = tun_client(&daemon, &[]);
    let data = random_bytes(MEBIBYTE);
    for (port, to) in (5_000..).zip(["10.0.0.1", "fd00::1"]) {
        let socket = client.connect(to, 7, port);
        assert!(client.exchange(socket, &data) == data, "{to}");
    }
    let discard = client.connect("10.0.0.1", 9, 6_000);
    assert_eq!(client.exchange(discard, &data), [0; 0]);
    let nobody = client.connect("10.0.0.1", 80, 6_001);
    client.run_until("a refusal", |client| {
        (client.tcp(nobody).state() == tcp::State::Closed).then_some(())
    });
}

fn host_echoes_udp_in_fragments_too(backend: Backend) {
    let daemon = Daemon::start(backend);
    let mut client = tun_client(&daemon, &[]);
    let socket = client.bind_udp(5_000);
    for (to, length) in [("10.0.0.1", 1), ("fd00::1", 1_400), ("10.0.0.1", 60_000)] {
        let data = random_bytes(length);
        let to = smoltcp::wire::IpEndpoint::new(to.parse().unwrap(), 7);
        client.udp(socket).send_slice(&data, to).unwrap();
        let (echo, from) = client.run_until("the echo", |client| {
            let received = client.udp(socket).recv().ok();
            received.map(|(bytes, from)| (bytes.to_vec(), from))
        });
        assert!(echo == data, "{length} bytes");
        assert_eq!(from.endpoint, to);
    }
    // What port 9 gets is lost, and what comes to all at once is answered by none.
    let discard = smoltcp::wire::IpEndpoint::new("10.0.0.1".parse().unwrap(), 9);
    client.udp(socket).send_slice(b"lost", discard).unwrap();
    let everybody = smoltcp::wire::IpEndpoint::new("10.0.0.255".parse().unwrap(), 7);
    client.udp(socket).send_slice(b"everybody", everybody).unwrap();
    let echo = smoltcp::wire::IpEndpoint::new("10.0.0.1".parse().unwrap(), 7);
    client.udp(socket).send_slice(b"last", echo).unwrap();
    let next = client.run_until("the next echo", |client| {
        client.udp(socket).recv().ok().map(|(bytes, _)| bytes.to_vec())
    });
    assert_eq!(next, b"last");
}

fn host_gets_offloads_done(backend: Backend) {
    const VNET_HDR: u16 = 0x4000;
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI | VNET_HDR);
    daemon.memtun(&["host", "tun0", "--addr", "10.0.0.1/24"]).succeeded();
    let [from, to] = ["10.0.0.2:5000", "10.0.0.1:7"].map(|at| at.parse().unwrap());
    let data = random_bytes(250);
    let mut udp = packet::udp(from, to, &data).unwrap();
    // What is left to be done begins with the sum of the pseudo-header: addresses, protocol and length.
    let pseudo = [&udp[12..20], &[0, 17], &udp[24..26]].concat();
    let sum: u32 = pseudo.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    udp[26..28].copy_from_slice(&sum.to_be_bytes());
    // NEEDS_CSUM from byte 20, stored 6 bytes on; then the same with UDP_L4 in pieces of 100 bytes.
    for (vnet, pieces) in [
        ([1, 0, 0, 0, 0, 0, 20, 0, 6, 0], &[250][..]),
        ([1, 5, 0, 0, 100, 0, 20, 0, 6, 0], &[100, 100, 50]),
    ] {
        file.write(&[&vnet, &udp[..]].concat()).unwrap();
        let mut rest = &data[..];
        for piece in pieces {
            let read = file.read().unwrap();
            assert_eq!(read[..10], [0; 10], "the answer's checksum is complete");
            let shown = render::datagram(&read[10..], Mode::Tun);
            assert!(shown.starts_with("10.0.0.1:7 > 10.0.0.2:5000: UDP"), "{shown}");
            let (echo, others) = rest.split_at(*piece);
            assert_eq!(read[38..], *echo);
            rest = others;
        }
    }
}

/// A listener of this machine, and what `--forward` says of it.
fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let forward = format!("8080:{}", listener.local_addr().expect("it is bound"));
    (listener, forward)
}

fn host_forwards_to_this_machine(backend: Backend) {
    let daemon = Daemon::start(backend);
    let (listener, forward) = listener();
    let mut client = tun_client(&daemon, &["--forward", &forward]);
    let (data, answer) = (random_bytes(MEBIBYTE), random_bytes(MEBIBYTE + 1));
    // The server reads to the end before it answers: the end passes through, one way alone.
    let serving = Background::start({
        let (listener, answer) = (listener.try_clone().unwrap(), answer.clone());
        move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut received = Vec::new();
            stream.read_to_end(&mut received).unwrap();
            stream.write_all(&answer).unwrap();
            received
        }
    });
    let socket = client.connect("10.0.0.1", 8_080, 5_000);
    assert!(client.exchange(socket, &data) == answer, "from the server");
    assert!(serving.join("the server") == data, "to the server");

    // The server speaks first, and ends first.
    let serving = Background::start({
        let (listener, answer) = (listener.try_clone().unwrap(), answer.clone());
        move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(&answer).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut received = Vec::new();
            stream.read_to_end(&mut received).unwrap();
            received
        }
    });
    let socket = client.connect("fd00::1", 8_080, 5_001);
    let mut received = Vec::new();
    client.run_until("the server's end", |client| {
        let socket = client.tcp(socket);
        while socket.can_recv() {
            received.extend(socket.recv(|bytes| (bytes.len(), bytes.to_vec())).unwrap());
        }
        (socket.state() == tcp::State::CloseWait).then_some(())
    });
    assert!(received == answer);
    client.exchange(socket, b"thanks");
    assert_eq!(serving.join("the server"), b"thanks");

    // Nobody listens any more.
    drop(listener);
    let socket = client.connect("10.0.0.1", 8_080, 5_002);
    client.run_until("a reset", |client| {
        (client.tcp(socket).state() == tcp::State::Closed).then_some(())
    });
    let details = daemon.list().tunnels[0].peer.take().map(|peer| peer.details);
    assert_eq!(details, Some(vec!["10.0.0.1/24".to_owned(), "fd00::1/64".to_owned(), forward]));
}

fn host_holds_up_who_writes_too_fast(backend: Backend) {
    const MUCH: usize = 32 * MEBIBYTE;
    let daemon = Daemon::start(backend);
    let (listener, forward) = listener();
    let mut client = tun_client(&daemon, &["--forward", &forward]);
    let socket = client.connect("10.0.0.1", 8_080, 5_000);
    let mut sent = 0;
    // The server does not read: the client is held up when all buffers between them are full.
    let chunk = vec![7; 64 << 10];
    let mut stream: Option<TcpStream> = None;
    client.run_until_still("the client to be held up", |client| {
        let socket = client.tcp(socket);
        if stream.is_none() && socket.may_send() {
            stream = Some(listener.accept().unwrap().0);
        }
        let count = if socket.can_send() { socket.send_slice(&chunk).unwrap() } else { 0 };
        sent += count;
        count > 0
    });
    assert!(sent < MUCH, "{sent} bytes are on their way");
    let mut stream = stream.expect("the server has accepted");
    let serving = Background::start({
        let mut stream = stream.try_clone().unwrap();
        move || {
            let mut received = Vec::new();
            stream.read_to_end(&mut received).unwrap();
            received.len()
        }
    });
    client.exchange_end(socket);
    assert_eq!(serving.join("the server"), sent, "nothing is lost");

    // The client does not read: the server is held up.
    stream.set_nonblocking(true).unwrap();
    let mut sent = 0;
    client.run_until_still("the server to be held up", |_| {
        let before = sent;
        loop {
            match stream.write(&chunk) {
                Ok(count) => sent += count,
                Err(error) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                    return sent > before;
                }
            }
        }
    });
    assert!(sent < MUCH, "{sent} bytes are on their way");
    drop(stream);
    let mut received = 0;
    client.run_moving("all that was sent", |client| {
        let (socket, before) = (client.tcp(socket), received);
        while socket.can_recv() {
            received += socket.recv(|bytes| (bytes.len(), bytes.len())).unwrap();
        }
        (received > before, (!socket.may_recv()).then_some(()))
    });
    assert_eq!(received, sent, "nothing is lost");
}

fn host_takes_so_many_connections(backend: Backend) {
    let daemon = Daemon::start(backend);
    let mut client = tun_client(&daemon, &[]);
    let sockets: Vec<_> = (5_000..5_070).map(|port| client.connect("10.0.0.1", 7, port)).collect();
    let states = client.run_until("all to be answered", |client| {
        let states: Vec<_> = sockets.iter().map(|socket| client.tcp(*socket).state()).collect();
        (!states.contains(&tcp::State::SynSent)).then_some(states)
    });
    let is = |state| states.iter().filter(|other| **other == state).count();
    assert_eq!((is(tcp::State::Established), is(tcp::State::Closed)), (64, 6), "{states:?}");
    // Those that are there go on, and one that ends makes room.
    assert_eq!(client.exchange(sockets[0], b"first"), b"first");
    let mut ports = 6_000..;
    let mut last = client.connect("10.0.0.1", 7, ports.next().unwrap());
    client.run_until("room for one more", |client| {
        let state = client.tcp(last).state();
        if state == tcp::State::Closed {
            // The acknowledgement of the first one's end was not there yet.
            last = client.connect("10.0.0.1", 7, ports.next().unwrap());
        }
        (state == tcp::State::Established).then_some(())
    });
    assert_eq!(client.exchange(last, b"last"), b"last");
}

/// Waits until the daemon has no thread of a host.
fn wait_until_no_host_runs(daemon: &Daemon) {
    within_deadline("the host's thread to end", {
        let pid = daemon.pid();
        move || {
            let is_host = |task: std::io::Result<std::fs::DirEntry>| {
                let name = std::fs::read_to_string(task.unwrap().path().join("comm"));
                name.is_ok_and(|name| name.trim_end() == "host")
            };
            while std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().any(is_host) {}
        }
    });
}

fn host_ends_with_part_and_with_its_tunnel(backend: Backend) {
    let daemon = Daemon::start(backend);
    let (listener, forward) = listener();
    let mut client = tun_client(&daemon, &["--forward", &forward]);
    let socket = client.connect("10.0.0.1", 8_080, 5_000);
    let mut stream = client.run_until("the connection", |client| {
        client.tcp(socket).may_send().then(|| listener.accept().unwrap().0)
    });
    daemon.memtun(&["part", "tun0"]).succeeded();
    assert!(daemon.list().tunnels[0].peer.is_none());
    wait_until_no_host_runs(&daemon);
    let ended = within_deadline("the connection's end", move || stream.read(&mut [0; 1]));
    assert_eq!(ended.unwrap(), 0);
    // The harness's again, and free for another host.
    let file = client.into_file();
    file.set_nonblocking(false);
    file.write(&datagram(1)).unwrap();
    let mut taken = daemon.memtun(&["take", "tun0", "--hex"]).succeeded();
    while taken.trim_end() != hex::encode(datagram(1)) {
        // The client's stack may have said something after the end.
        taken = daemon.memtun(&["take", "tun0", "--hex"]).succeeded();
    }
    daemon.memtun(&["host", "tun0", "--addr", "10.0.0.1/24"]).succeeded();
    let ping = packet::echo_request(
        "10.0.0.2".parse().unwrap(),
        "10.0.0.1".parse().unwrap(),
        packet::Echo::default(),
    )
    .unwrap();
    file.write(&ping).unwrap();
    assert!(render::datagram(&file.read().unwrap(), Mode::Tun).contains("echo reply"));
    file.write(&ping).unwrap();
    drop(file);
    wait_until_no_host_runs(&daemon);
    assert!(daemon.client().call(&List {}).unwrap().tunnels.is_empty(), "nothing is left to take");

    // Deleted under its client.
    let file = tun_client(&daemon, &[]).into_file();
    daemon.memtun(&["delete", "tun0"]).succeeded();
    wait_until_no_host_runs(&daemon);
    assert_eq!(file.write(&ping), Err(Errno::EBADFD));

    // What a client wrote last still reaches who it was for.
    let mut client = tun_client(&daemon, &["--forward", &forward]);
    let socket = client.connect("10.0.0.1", 8_080, 5_000);
    let mut stream = client.run_until("the connection", |client| {
        client.tcp(socket).may_send().then(|| listener.accept().unwrap().0)
    });
    client.tcp(socket).send_slice(b"last words").unwrap();
    client.run_until("one more turn", |_| Some(()));
    drop(client);
    let mut words = String::new();
    within_deadline("the last words", move || stream.read_to_string(&mut words).map(|_| words))
        .map(|words| assert_eq!(words, "last words"))
        .unwrap();
}

fn host_mistakes_get_one_line(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let _other = TunFile::attached(&daemon.device, "tun1", TUN | NO_PI);
    daemon.memtun(&["host", "tun1", "--addr", "10.0.0.1/24"]).succeeded();
    let forwards =
        |port: &'static str| ["host", "tun0", "--addr", "10.0.0.1/24", "--forward", port];
    for (arguments, said) in [
        (&["host", "tun9", "--addr", "10.0.0.1/24"][..], "no tunnel tun9"),
        (&["host", "tun1", "--addr", "10.0.0.1/24"], "tunnel tun1 has a peer already"),
        (&["join", "tun0", "tun1"], "tunnel tun1 has a peer already"),
        (
            &["host", "tun9", "--addr", "10.0.0.1/24", "--timeout", "1ms"],
            "no client made tunnel tun9 within 1ms",
        ),
    ] {
        let error = daemon.memtun(arguments).failed(1);
        assert!(error.starts_with("memtun: ") && error.contains(said), "{arguments:?}: {error}");
    }
    for (arguments, said) in [
        (&["host", "tun0"][..], "--addr"),
        (&forwards("7:127.0.0.1:7"), "port 7 of the host has a service already"),
        (&["host", "tun0", "--addr", "10.0.0.1"], "write it as 10.0.0.1/24"),
        (&["host", "tun0", "--addr", "224.0.0.1/4"], "not the address of one host"),
        (&forwards("80:localhost:80"), "write it as 8080:127.0.0.1:80"),
    ] {
        let run = daemon.memtun(arguments);
        assert!(run.status == 2 && run.stderr.contains(said), "{arguments:?}: {run:?}");
    }
    file.set_nonblocking(true);
    assert_eq!(file.read(), Err(Errno::EAGAIN));
}
