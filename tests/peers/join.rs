//! Two tunnels as each other's peer.

use std::time::Duration;

use memtun_client::proto::{
    error::code, event::What, join::Join, list::List, take::Take, watch::Watch,
};
use nix::errno::Errno;

use crate::{
    DeviceTest,
    device::inject,
    support::{
        Background,
        daemon::{Backend, Daemon},
        datagram,
        device::{NO_PI, TAP, TUN, TunFile},
        within_deadline,
    },
};

pub const TESTS: &[DeviceTest] = &[
    ("peers_joined_tunnels_carry_datagrams_both_ways", joined_tunnels_carry_datagrams_both_ways),
    ("peers_joined_taps_carry_frames", joined_taps_carry_frames),
    ("peers_joined_tunnels_keep_order_under_load", joined_tunnels_keep_order_under_load),
    ("peers_join_waits_until_both_exist", join_waits_until_both_exist),
    ("peers_part_ends_every_kind", part_ends_every_kind),
    ("peers_mistakes_get_one_line", mistakes_get_one_line),
];

fn joined_tunnels_carry_datagrams_both_ways(backend: Backend) {
    let daemon = Daemon::start(backend);
    let left = TunFile::attached(&daemon.device, "left", TUN | NO_PI);
    let right = TunFile::attached(&daemon.device, "right", TUN);
    left.write(&datagram(1)).unwrap();
    assert_eq!(daemon.memtun(&["join", "left", "right"]).succeeded(), "");
    let with_pi = |number| [&[0, 0, 8, 0], &datagram(number)[..]].concat();
    assert_eq!(right.read(), Ok(with_pi(1)), "what was written before");
    let mut watcher = daemon.client();
    watcher.call(&Watch { tunnel: None }).unwrap();
    let reading = Background::start({
        let left = left.try_clone();
        move || left.read()
    });
    right.write(&with_pi(2)).unwrap();
    assert_eq!(reading.join("a blocked read"), Ok(datagram(2)));
    let events = [(); 2].map(|()| watcher.next_event().unwrap().what);
    assert!(
        matches!(&events, [What::FromClient(from), What::ToClient(to)]
            if (&*from.name, &*to.name) == ("right", "left") && to.datagram == datagram(2)),
        "{events:?}"
    );

    inject(&mut daemon.client(), "left", &datagram(3));
    assert_eq!(left.read(), Ok(datagram(3)), "the harness may inject");
    let take = daemon.memtun(&["take", "left", "--timeout", "1ms"]).failed(1);
    assert!(take.contains("its peer, tunnel #2, gets what the client writes"), "{take}");
    let taken = daemon.client().call(&Take::new("left").timeout(Duration::from_millis(1)));
    assert_eq!(taken.unwrap_err().code(), Some(code::PEER_TAKES));
    let table = daemon.memtun(&["list"]).succeeded();
    assert!(table.contains("  tunnel #2  ") && table.contains("  tunnel #1  "), "{table}");
    let peer = daemon.list().tunnels[0].peer.take().expect("it has one");
    assert_eq!((peer.kind.as_str(), peer.details), ("tunnel", vec!["#2".to_owned()]));

    daemon.close(right);
    left.write(&datagram(4)).unwrap();
    let taken = daemon.memtun(&["take", "left", "--hex"]).succeeded();
    assert_eq!(taken.trim_end(), hex::encode(datagram(4)), "the harness's again");
}

fn joined_taps_carry_frames(backend: Backend) {
    let daemon = Daemon::start(backend);
    let [left, right] =
        ["tap0", "tap1"].map(|name| TunFile::attached(&daemon.device, name, TAP | NO_PI));
    daemon.memtun(&["join", "tap1", "tap0"]).succeeded();
    let frame = |number| [&[0xff; 6][..], &[2; 6], &[8, 0], &datagram(number)].concat();
    left.write(&frame(1)).unwrap();
    assert_eq!(right.read(), Ok(frame(1)));
    right.write(&frame(2)).unwrap();
    assert_eq!(left.read(), Ok(frame(2)));
}

fn joined_tunnels_keep_order_under_load(backend: Backend) {
    // More than a queue takes; an emulated machine takes a millisecond for each.
    let many: u32 = match backend {
        Backend::Cuse => 2_000,
        Backend::Fuse => 20_000,
    };
    let daemon = Daemon::start(backend);
    let ends = ["a", "b"].map(|name| TunFile::attached(&daemon.device, name, TUN | NO_PI));
    daemon.memtun(&["join", "a", "b"]).succeeded();
    let number_of = |datagram: &[u8]| u32::from_be_bytes(datagram[20..24].try_into().unwrap());
    let reading = ends.each_ref().map(|end| {
        let end = end.try_clone();
        Background::start(move || {
            let mut last = None;
            let mut count = 0;
            loop {
                let number = number_of(&end.read().unwrap());
                assert!(last.is_none_or(|last| last < number), "{last:?}, then {number}");
                last = Some(number);
                count += 1;
                if number == many {
                    return count;
                }
            }
        })
    });
    let writing = ends.each_ref().map(|end| {
        let end = end.try_clone();
        Background::start(move || {
            (0..many).for_each(|number| assert_eq!(end.write(&datagram(number)), Ok(28)));
        })
    });
    writing.into_iter().for_each(|writer| writer.join("a writer"));
    within_deadline("room for the last datagram", {
        let mut client = daemon.client();
        move || {
            let mut is_full = |tunnel: usize| {
                let listing = client.call(&List {}).unwrap();
                let queue = &listing.tunnels[tunnel].files[0].read_buffer;
                queue.datagrams == queue.capacity
            };
            while is_full(0) || is_full(1) {}
        }
    });
    ends.iter().for_each(|end| assert_eq!(end.write(&datagram(many)), Ok(28)));
    let read = reading.map(|reader| reader.join("a reader"));
    for (tunnel, read) in daemon.list().tunnels.iter().zip(read) {
        let counters = &tunnel.counters;
        assert_eq!(counters.from_client.datagrams, u64::from(many) + 1);
        assert_eq!(counters.to_client.datagrams, read, "nothing is delivered twice");
        assert_eq!(
            read + counters.to_client_dropped.datagrams,
            u64::from(many) + 1,
            "each was read, or counted as dropped"
        );
    }
}

fn join_waits_until_both_exist(backend: Backend) {
    let daemon = Daemon::start(backend);
    let joining = Background::start({
        let mut client = daemon.client();
        let (tunnel, peer) = ("late0".parse().unwrap(), "late1".parse().unwrap());
        move || {
            client
                .call(&Join { tunnel, peer, timeout_ms: 30_000 })
                .map(|joined| (joined.id, joined.peer))
        }
    });
    let late1 = TunFile::attached(&daemon.device, "late1", TUN | NO_PI);
    assert!(joining.is_running());
    let late0 = TunFile::attached(&daemon.device, "late0", TUN | NO_PI);
    assert_eq!(joining.join("the join").unwrap(), (2, 1));
    late0.write(&datagram(1)).unwrap();
    assert_eq!(late1.read(), Ok(datagram(1)));
    let error = daemon.memtun(&["join", "late0", "never", "--timeout", "1ms"]).failed(1);
    assert!(error.contains("no client made tunnel never within 1ms"), "{error}");
}

fn part_ends_every_kind(backend: Backend) {
    let daemon = Daemon::start(backend);
    let [left, right] =
        ["tun0", "tun1"].map(|name| TunFile::attached(&daemon.device, name, TUN | NO_PI));
    daemon.memtun(&["join", "tun0", "tun1"]).succeeded();
    daemon.memtun(&["part", "tun1"]).succeeded();
    left.write(&datagram(1)).unwrap();
    right.set_nonblocking(true);
    assert_eq!(right.read(), Err(Errno::EAGAIN));

    let mut client = daemon.client();
    let socket = client.attach("tun0").unwrap();
    let receive = move || {
        let mut buffer = [0; 100];
        nix::sys::socket::recv(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            &mut buffer,
            nix::sys::socket::MsgFlags::empty(),
        )
    };
    assert_eq!(receive(), Ok(28), "the one that was written after the join");
    daemon.memtun(&["part", "tun0"]).succeeded();
    left.write(&datagram(2)).unwrap();
    assert_eq!(receive(), Ok(0), "the end of the socket");
    let taken = daemon.memtun(&["take", "tun0", "--hex"]).succeeded();
    assert_eq!(taken.trim_end(), hex::encode(datagram(2)));
    daemon.memtun(&["join", "tun0", "tun1"]).succeeded();
}

fn mistakes_get_one_line(backend: Backend) {
    let daemon = Daemon::start(backend);
    let _files = [("tun0", TUN), ("tun1", TUN), ("tun2", TUN), ("tap0", TAP)]
        .map(|(name, mode)| TunFile::attached(&daemon.device, name, mode | NO_PI));
    let gone = TunFile::attached(&daemon.device, "gone", TUN | NO_PI);
    gone.write(&datagram(1)).unwrap();
    daemon.close(gone);
    daemon.memtun(&["join", "tun0", "tun1"]).succeeded();
    for (arguments, said) in [
        (&["join", "tun0", "tun9"][..], "no tunnel tun9; 'memtun list' shows those there are"),
        (&["join", "tun2", "#3"], "tunnel tun2 cannot be its own peer; name two tunnels"),
        (&["join", "tap0", "tun2"], "tunnel tun2 is a tun and tap0 a tap"),
        (&["join", "tun2", "tun1"], "tunnel tun1 has a peer already; 'memtun list' shows it"),
        (&["join", "gone", "tun2"], "tunnel gone is gone"),
        (&["part", "tun2"], "tunnel tun2 has no peer"),
        (&["part", "tun9"], "no tunnel tun9"),
    ] {
        let error = daemon.memtun(arguments).failed(1);
        assert!(error.starts_with("memtun: ") && error.contains(said), "{arguments:?}: {error}");
    }
}
