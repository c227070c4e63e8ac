//! Captures as a source of datagrams.

use std::process::Command;

use memtun_client::proto::list::List;

use crate::{
    DeviceTest,
    support::{
        daemon::{Backend, Daemon, MEMTUN},
        datagram,
        device::{NO_PI, TAP, TUN, TunFile},
        program::Program,
        within_deadline,
    },
};

pub const TESTS: &[DeviceTest] = &[
    ("inject_takes_what_a_capture_holds", inject_takes_what_a_capture_holds),
    ("inject_waits_for_room", inject_waits_for_room),
];

/// A capture of Ethernet frames, each with the length that it had.
fn capture(frames: &[(&[u8], usize)]) -> Vec<u8> {
    let mut capture =
        vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0];
    for (frame, original) in frames {
        let [captured, original] =
            [frame.len(), *original].map(|length| u32::try_from(length).unwrap().to_le_bytes());
        capture.extend([&[0; 8][..], &captured, &original, frame].concat());
    }
    capture
}

fn inject_takes_what_a_capture_holds(backend: Backend) {
    let daemon = Daemon::start(backend);
    let tun = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let tap = TunFile::attached(&daemon.device, "tap0", TAP | NO_PI);
    let frame =
        |ethertype: &[u8], payload: &[u8]| [&[0xff; 6][..], &[2; 6], ethertype, payload].concat();
    let plain = frame(&[8, 0], &datagram(1));
    let tagged = frame(&[0x81, 0, 0, 7, 8, 0], &datagram(2));
    let arp = frame(&[8, 6], &[0; 28]);
    let cut = frame(&[8, 0], &[&[0x45][..], &[7; 99]].concat());
    let large = frame(&[8, 0], &[&[0x45][..], &[7; 70_000]].concat());
    let last = frame(&[8, 0], &datagram(3));
    fn whole(frame: &[u8]) -> (&[u8], usize) {
        (frame, frame.len())
    }
    let mut bytes = capture(&[
        whole(&plain[..]),
        whole(&tagged),
        whole(&arp),
        (&cut, 1_500),
        whole(&large),
        (&[], 0),
        whole(&last),
        whole(&plain),
    ]);
    bytes.truncate(bytes.len() - 1);
    let said = daemon.memtun_with_input(&["inject", "tun0", "--pcap", "-"], &bytes).succeeded();
    assert_eq!(
        said,
        "4 datagrams injected, 4 queued, 1 shortened by the capture's snap length; \
         left out: 2 not IP, 1 longer than 65553 bytes; the last record is cut off\n"
    );
    for datagram in [&datagram(1), &datagram(2), &cut[14..], &datagram(3)] {
        assert_eq!(tun.read().as_deref(), Ok(datagram));
    }
    let said = daemon.memtun_with_input(&["inject", "tap0", "--pcap", "-"], &bytes).succeeded();
    assert_eq!(
        said,
        "5 datagrams injected, 5 queued, 1 shortened by the capture's snap length; \
         left out: 1 empty, 1 longer than 65553 bytes; the last record is cut off\n"
    );
    for frame in [&plain, &tagged, &arp, &cut, &last] {
        assert_eq!(tap.read().as_ref(), Ok(frame));
    }

    // Quiet about success, but not about what is lacking; and that is no failure.
    let quietly = |bytes: &[u8]| {
        let run = daemon.memtun_with_input(&["-q", "inject", "tun0", "--pcap", "-"], bytes);
        assert_eq!((run.status, run.stdout.as_str()), (0, ""), "{}", run.stderr);
        assert_eq!(tun.read(), Ok(datagram(1)));
        run.stderr
    };
    for (frames, cut_off, lacking) in [
        (&[whole(&plain[..])][..], 0, None),
        (&[whole(&plain), whole(&arp)], 0, Some("; left out: 1 not IP")),
        (&[(&plain, 1_500)], 0, Some(", 1 shortened by the capture's snap length")),
        (&[whole(&plain), whole(&plain)], 1, Some("; the last record is cut off")),
    ] {
        let mut bytes = capture(frames);
        bytes.truncate(bytes.len() - cut_off);
        let wanted = lacking.map(|lacking| {
            format!("memtun: capture standard input: 1 datagram injected, 1 queued{lacking}\n")
        });
        assert_eq!(quietly(&bytes), wanted.unwrap_or_default());
    }

    // Linux cooked: a tap gets the datagram with an Ethernet header of its own.
    let cooked = [&[0, 0, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0][..], &datagram(4)].concat();
    let mut bytes = capture(&[whole(&cooked[..])]);
    bytes[20] = 113;
    let said = daemon.memtun_with_input(&["inject", "tap0", "--pcap", "-"], &bytes).succeeded();
    assert_eq!(said, "1 datagram injected, 1 queued\n");
    assert_eq!(
        tap.read().map(|frame| frame[12..].to_vec()),
        Ok([&[8, 0][..], &datagram(4)].concat())
    );

    bytes[20] = 220;
    let run = |bytes: &[u8]| daemon.memtun_with_input(&["inject", "tun0", "--pcap", "-"], bytes);
    let said = run(&bytes).failed(1);
    assert!(said.contains("memtun does not know its link type 220"), "{said}");
    let mut damaged = capture(&[whole(&plain[..]), whole(&plain)]);
    let second = 24 + 16 + plain.len();
    damaged[second + 11] = 0x7f;
    let said = run(&damaged).failed(1);
    assert!(said.contains("record 2 is damaged") && said.contains("1 datagrams before"), "{said}");
    let down = daemon.memtun(&["set", "tun0", "down"]);
    down.succeeded();
    let said = run(&capture(&[whole(&arp[..]), whole(&plain)])).failed(1);
    assert!(said.contains("packet 2 of the capture: tunnel tun0 is down"), "{said}");
}

fn inject_waits_for_room(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let frames: Vec<Vec<u8>> =
        (0..1_500).map(|number| [&[0; 12][..], &[8, 0], &datagram(number)].concat()).collect();
    let frames: Vec<(&[u8], usize)> =
        frames.iter().map(|frame| (&frame[..], frame.len())).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("capture");
    std::fs::write(&path, capture(&frames)).unwrap();
    let inject = ["inject", "tun0", "--pcap", path.to_str().unwrap()];
    let full = "packet 501 of the capture: the queue of tunnel tun0 is full with 500 datagrams";
    for options in [&["--no-wait"][..], &["--timeout", "1ms"]] {
        let said = daemon.memtun(&[&inject, options].concat()).failed(1);
        assert!(said.contains(full) && said.contains("500 datagrams before it"), "{said}");
        for number in 0..500 {
            assert_eq!(file.read(), Ok(datagram(number)));
        }
    }
    // It has come to the packet that must wait when the queue is full.
    let injector =
        Program::start(Command::new(MEMTUN).args(inject).env("MEMTUN_CONTROL", &daemon.control));
    within_deadline("the queue to be full", {
        let mut client = daemon.client();
        move || {
            while client.call(&List {}).unwrap().tunnels[0].files[0].read_buffer.datagrams < 500 {}
        }
    });
    within_deadline("all of it to be read", {
        let file = file.try_clone();
        move || (0..1_500).for_each(|number| assert_eq!(file.read(), Ok(datagram(number))))
    });
    let said = injector.line();
    assert!(said.starts_with("1500 datagrams injected, "), "{said}");
    assert!(injector.wait().success());
    let dropped = daemon.list().tunnels[0].counters.to_client_dropped.datagrams;
    assert_eq!(dropped, 2, "only those that did not wait, or not longer");
}
