//! The device as clients see it, by real system calls.

use std::{os::unix::process::ExitStatusExt, process::Command};

use memtun_client::{
    Client,
    proto::{
        inject::{Inject, Injected},
        take::Take,
        wait::Until,
    },
};
use nix::{
    errno::Errno,
    fcntl::OFlag,
    poll::{PollFlags, PollTimeout},
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        select::{FdSet, select},
        signal::Signal,
        time::TimeVal,
    },
    unistd::Pid,
};
use std::os::fd::AsFd;

use crate::{
    DeviceTest,
    support::{
        Background, DEADLINE,
        daemon::{Backend, Daemon},
        datagram,
        device::{NO_PI, TAP, TUN, TunFile},
        program::{Program, compiled, compiled_static},
        within_deadline,
    },
};

pub const TESTS: &[DeviceTest] = &[
    ("blocking_read_is_woken_by_inject", blocking_read_is_woken_by_inject),
    ("read_without_datagram_gets_eagain", read_without_datagram_gets_eagain),
    ("late_o_nonblock_counts", late_o_nonblock_counts),
    ("datagram_is_cut_to_the_buffer", datagram_is_cut_to_the_buffer),
    ("pi_header_goes_both_ways", pi_header_goes_both_ways),
    ("vectors_are_one_datagram", vectors_are_one_datagram),
    ("large_datagrams_pass_whole", large_datagrams_pass_whole),
    ("split_calls_never_get_a_second_datagram", split_calls_never_get_a_second_datagram),
    ("tap_frames_bare_ip", tap_frames_bare_ip),
    ("poll_reports_and_waits", poll_reports_and_waits),
    ("select_reports_and_waits", select_reports_and_waits),
    ("level_triggered_epoll_repeats", level_triggered_epoll_repeats),
    ("edge_triggered_epoll_counts_every_datagram", edge_triggered_epoll_counts_every_datagram),
    ("signal_breaks_a_blocked_read", signal_breaks_a_blocked_read),
    ("sigkill_of_a_blocked_client_frees_its_file", sigkill_of_a_blocked_client_frees_its_file),
    ("blocked_reader_holds_up_nobody", blocked_reader_holds_up_nobody),
    ("stopped_and_continued_reader_reads_on", stopped_and_continued_reader_reads_on),
    ("static_program_works", static_program_works),
    ("child_and_duplicate_share_the_file", child_and_duplicate_share_the_file),
    ("many_files_are_isolated", many_files_are_isolated),
    ("one_thread_serves_many_blocked_readers", one_thread_serves_many_blocked_readers),
    ("several_device_threads_lose_nothing", several_device_threads_lose_nothing),
    ("ioctls_fetch_and_store_the_argument", ioctls_fetch_and_store_the_argument),
    ("values_pass_where_the_kernel_lets_them", values_pass_where_the_kernel_lets_them),
    ("refused_ioctls_leave_nothing_behind", refused_ioctls_leave_nothing_behind),
    ("down_tunnel_refuses_writes", down_tunnel_refuses_writes),
    ("sigterm_leaves_nothing_behind", sigterm_leaves_nothing_behind),
    ("sigkill_of_the_daemon_gives_clients_an_error", sigkill_of_the_daemon_gives_clients_an_error),
    ("idle_daemon_uses_no_cpu_and_little_memory", idle_daemon_uses_no_cpu_and_little_memory),
];

pub fn inject(client: &mut Client, tunnel: &str, datagram: &[u8]) -> Injected {
    let call = Inject {
        tunnel: tunnel.parse().expect("an address"),
        datagram: datagram.to_vec().into(),
        frame: false,
        source: None,
        destination: None,
        vnet: None,
        timeout_ms: 0,
    };
    client.call(&call).unwrap_or_else(|error| panic!("inject: {error}"))
}

pub fn take(client: &mut Client, tunnel: &str) -> Vec<u8> {
    let timeout_ms = u64::try_from(DEADLINE.as_millis()).expect("a short time");
    let call = Take {
        tunnel: tunnel.parse().expect("an address"),
        count: 1,
        timeout_ms,
        segment: false,
        keep: false,
    };
    let taken = client.call(&call).unwrap_or_else(|error| panic!("take: {error}"));
    taken.datagrams[0].datagram.to_vec()
}

const FOREVER: PollTimeout = PollTimeout::NONE;
const NOW: PollTimeout = PollTimeout::ZERO;

fn blocking_read_is_woken_by_inject(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let reader = Background::start(move || file.read());
    daemon.wait_until("tun0", Until::Reading);
    assert!(reader.is_running());
    let injected = inject(&mut daemon.client(), "tun0", &datagram(1));
    assert!(injected.read, "a parked read got it");
    assert_eq!(reader.join("the blocked read"), Ok(datagram(1)));
}

fn read_without_datagram_gets_eagain(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::open_with(&daemon.device, OFlag::O_RDWR | OFlag::O_NONBLOCK).unwrap();
    assert_eq!(file.read(), Err(Errno::EBADFD), "not attached");
    assert_eq!(file.write(&datagram(1)), Err(Errno::EBADFD), "not attached");
    file.set_iff("tun0", TUN | NO_PI).unwrap();
    assert_eq!(file.read(), Err(Errno::EAGAIN));
    let mut client = daemon.client();
    assert_eq!(inject(&mut client, "tun0", &datagram(1)).queued, 1);
    assert_eq!(inject(&mut client, "tun0", &datagram(2)).queued, 2);
    assert_eq!(file.read(), Ok(datagram(1)));
    assert_eq!(file.read(), Ok(datagram(2)));
    assert_eq!(file.read(), Err(Errno::EAGAIN));
}

fn late_o_nonblock_counts(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    file.set_nonblocking(true);
    assert_eq!(file.read(), Err(Errno::EAGAIN));
    assert!(!daemon.list().tunnels[0].files[0].blocking);
    file.set_nonblocking(false);
    let reader = Background::start(move || file.read());
    daemon.wait_until("tun0", Until::Reading);
    assert!(daemon.list().tunnels[0].files[0].blocking);
    inject(&mut daemon.client(), "tun0", &datagram(1));
    assert_eq!(reader.join("the read"), Ok(datagram(1)));
}

fn datagram_is_cut_to_the_buffer(backend: Backend) {
    let daemon = Daemon::start(backend);
    let bare = TunFile::attached(&daemon.device, "bare", TUN | NO_PI);
    let pi = TunFile::attached(&daemon.device, "pi", TUN);
    let mut client = daemon.client();
    for tunnel in ["bare", "pi"] {
        inject(&mut client, tunnel, &datagram(1));
        inject(&mut client, tunnel, &datagram(2));
    }
    assert_eq!(bare.read_up_to(10), Ok(datagram(1)[..10].to_vec()));
    assert_eq!(bare.read(), Ok(datagram(2)), "the rest is lost");
    assert_eq!(
        pi.read_up_to(14),
        Ok([&[1, 0, 8, 0][..], &datagram(1)[..10]].concat()),
        "TUN_PKT_STRIP"
    );
    assert_eq!(pi.read_up_to(3), Err(Errno::EINVAL), "no room for the PI header");
    pi.set_nonblocking(true);
    assert_eq!(pi.read(), Err(Errno::EAGAIN), "and the datagram is lost");
}

fn pi_header_goes_both_ways(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN);
    let mut client = daemon.client();
    inject(&mut client, "tun0", &datagram(1));
    inject(&mut client, "tun0", &[0x60, 1, 2]);
    assert_eq!(file.read(), Ok([&[0, 0, 0x08, 0x00][..], &datagram(1)].concat()));
    assert_eq!(file.read(), Ok(vec![0, 0, 0x86, 0xdd, 0x60, 1, 2]));
    assert_eq!(file.write(&[0, 0, 0x12, 0x34, 9, 9]), Ok(6), "a protocol is believed");
    assert_eq!(take(&mut client, "tun0"), [9, 9]);
    assert_eq!(file.write(&[0, 0, 8]), Err(Errno::EINVAL));
}

fn vectors_are_one_datagram(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN);
    let mut client = daemon.client();
    let payload = datagram(7);
    assert_eq!(file.writev(&[&[0, 0, 8, 0], &payload[..9], &payload[9..]]), Ok(4 + payload.len()));
    assert_eq!(take(&mut client, "tun0"), payload);
    inject(&mut client, "tun0", &payload);
    let (length, pieces) = file.readv(&[4, 9, 100]).unwrap();
    assert_eq!(length, 4 + payload.len());
    assert_eq!((&pieces[0][..], &pieces[1][..]), (&[0, 0, 8, 0][..], &payload[..9]));
    assert_eq!(pieces[2][..payload.len() - 9], payload[9..]);
}

fn large_datagrams_pass_whole(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let mut client = daemon.client();
    for length in [1_500, 9_000, 65_535] {
        let datagram: Vec<u8> =
            [0x45].into_iter().chain((0..=250).cycle().take(length - 1)).collect();
        inject(&mut client, "tun0", &datagram);
        assert_eq!(file.read(), Ok(datagram.clone()), "{length} bytes to the client");
        assert_eq!(file.write(&datagram), Ok(datagram.len()));
        assert_eq!(take(&mut client, "tun0"), datagram, "{length} bytes from the client");
    }
}

/// The kernel splits a call of more than 32 pieces; each part must stay with its datagram.
fn split_calls_never_get_a_second_datagram(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let mut client = daemon.client();
    let first: Vec<u8> = [0x45].into_iter().chain(1..80).collect();
    inject(&mut client, "tun0", &first);
    inject(&mut client, "tun0", &datagram(2));
    let (length, pieces) = file.readv(&[2; 40]).unwrap();
    assert_eq!((length, pieces.concat()), (80, first.clone()), "one datagram over 40 pieces");
    assert_eq!(file.read(), Ok(datagram(2)));

    inject(&mut client, "tun0", &first[..64]);
    inject(&mut client, "tun0", &datagram(3));
    let (length, _) = file.readv(&[2; 40]).unwrap();
    assert_eq!(length, 64, "the first part was filled, and there was no more");
    assert_eq!(file.read(), Ok(datagram(3)));

    let pieces: Vec<&[u8]> = first.chunks(2).collect();
    assert_eq!(file.writev(&pieces), Ok(80));
    assert_eq!(take(&mut client, "tun0"), first);
}

fn tap_frames_bare_ip(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tap0", TAP | NO_PI);
    inject(&mut daemon.client(), "tap0", &datagram(1));
    let frame = file.read().unwrap();
    assert_eq!(
        (&frame[..6], &frame[12..14], &frame[14..]),
        (&[0xff; 6][..], &[8, 0][..], &datagram(1)[..])
    );
    assert_eq!(file.write(&frame[..13]), Err(Errno::EINVAL), "shorter than an Ethernet header");
    assert_eq!(file.write(&frame), Ok(frame.len()));
    assert_eq!(take(&mut daemon.client(), "tap0"), frame);
}

fn poll_reports_and_waits(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::open(&daemon.device);
    let all = PollFlags::POLLIN | PollFlags::POLLOUT;
    assert_eq!(file.poll(all, NOW), PollFlags::POLLERR, "not attached");
    file.set_iff("tun0", TUN | NO_PI).unwrap();
    assert_eq!(file.poll(all, NOW), PollFlags::POLLOUT);
    assert_eq!(file.poll(PollFlags::POLLIN, NOW), PollFlags::empty());
    let poller = {
        let file = file.try_clone();
        Background::start(move || file.poll(PollFlags::POLLIN, FOREVER))
    };
    wait_until_armed(&daemon);
    inject(&mut daemon.client(), "tun0", &datagram(1));
    assert_eq!(poller.join("poll"), PollFlags::POLLIN);
    assert_eq!(file.read(), Ok(datagram(1)));
    assert_eq!(file.poll(PollFlags::POLLIN, NOW), PollFlags::empty());
}

/// Waits until somebody sleeps in a poll of the only tunnel.
fn wait_until_armed(daemon: &Daemon) {
    let mut client = daemon.client();
    within_deadline("arming a poll", move || {
        loop {
            let listing = client.call(&memtun_client::proto::list::List {}).expect("list");
            if listing.tunnels[0].files[0].poll_armed {
                return;
            }
        }
    });
}

fn select_reports_and_waits(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let waiter = {
        let file = file.try_clone();
        Background::start(move || {
            let mut read = FdSet::new();
            read.insert(file.as_fd());
            let mut timeout = TimeVal::new(i64::try_from(DEADLINE.as_secs()).expect("short"), 0);
            let ready = select(None, &mut read, None, None, &mut timeout);
            (ready, read.contains(file.as_fd()))
        })
    };
    wait_until_armed(&daemon);
    inject(&mut daemon.client(), "tun0", &datagram(1));
    assert_eq!(waiter.join("select"), (Ok(1), true));
    let mut write = FdSet::new();
    write.insert(file.as_fd());
    assert_eq!(select(None, None, &mut write, None, &mut TimeVal::new(0, 0)), Ok(1));
}

fn epoll_of(file: &TunFile, flags: EpollFlags) -> Epoll {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("epoll");
    epoll.add(file.as_fd(), EpollEvent::new(flags, 1)).expect("the device can be polled");
    epoll
}

fn epoll_wait(epoll: &Epoll, timeout: EpollTimeout) -> Option<EpollFlags> {
    let mut events = [EpollEvent::empty()];
    match epoll.wait(&mut events, timeout).expect("epoll_wait") {
        0 => None,
        _ => Some(events[0].events()),
    }
}

fn level_triggered_epoll_repeats(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let epoll = epoll_of(&file, EpollFlags::EPOLLIN);
    assert_eq!(epoll_wait(&epoll, EpollTimeout::ZERO), None);
    inject(&mut daemon.client(), "tun0", &datagram(1));
    for _ in 0..3 {
        assert_eq!(
            epoll_wait(&epoll, EpollTimeout::from(30_000_u16)),
            Some(EpollFlags::EPOLLIN),
            "as long as it is unread"
        );
    }
    file.read().unwrap();
    assert_eq!(epoll_wait(&epoll, EpollTimeout::ZERO), None);
}

fn edge_triggered_epoll_counts_every_datagram(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let epoll = epoll_of(&file, EpollFlags::EPOLLIN | EpollFlags::EPOLLET);
    let mut client = daemon.client();
    for number in 0..3 {
        inject(&mut client, "tun0", &datagram(number));
        let event = epoll_wait(&epoll, EpollTimeout::from(30_000_u16));
        assert_eq!(
            event,
            Some(EpollFlags::EPOLLIN),
            "datagram {number} is an edge, though none was read"
        );
        assert_eq!(epoll_wait(&epoll, EpollTimeout::ZERO), None, "one edge each");
    }
}

fn signal_breaks_a_blocked_read(backend: Backend) {
    let daemon = Daemon::start(backend);
    for handler in ["plain", "sa_restart"] {
        let program = Program::start(
            Command::new(compiled("reader")).arg(&daemon.device).args([handler, handler]),
        );
        program.expect_line(&format!("attached {handler}"));
        daemon.wait_until(handler, Until::Reading);
        program.signal(Signal::SIGUSR1);
        program.expect_line("signal");
        // DIFFERS: a signal ends a blocked read with EINTR even under SA_RESTART. The kernel accepts no ERESTARTSYS from a
        // server.
        program.expect_line("read -1 EINTR");
        daemon.wait_until(handler, Until::Reading);
        inject(&mut daemon.client(), handler, &datagram(1));
        program.expect_line("read 28");
        program.signal(Signal::SIGTERM);
        assert_eq!(
            program.wait().signal(),
            Some(Signal::SIGTERM as i32),
            "a blocked client can be ended"
        );
    }
}

fn sigkill_of_a_blocked_client_frees_its_file(backend: Backend) {
    let daemon = Daemon::start(backend);
    let program = Program::start(Command::new(compiled("reader")).arg(&daemon.device).arg("tun0"));
    program.expect_line("attached tun0");
    daemon.wait_until("tun0", Until::Reading);
    let listing = daemon.list();
    assert_eq!(
        (listing.tunnels[0].files[0].command.as_str(), listing.tunnels[0].files[0].parked_reads),
        {
            let name = compiled("reader")
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .chars()
                .take(15)
                .collect::<String>();
            (&*name.leak(), 1)
        }
    );
    program.signal(Signal::SIGKILL);
    assert_eq!(program.wait().signal(), Some(Signal::SIGKILL as i32));
    daemon.wait_until("tun0", Until::Detached);
    let listing = daemon.list();
    assert_eq!((listing.tunnels.len(), listing.unattached_files.len()), (0, 0));
}

fn blocked_reader_holds_up_nobody(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let reader = {
        let file = file.try_clone();
        Background::start(move || file.read())
    };
    daemon.wait_until("tun0", Until::Reading);
    let mut client = daemon.client();
    let writer = {
        let file = file.try_clone();
        Background::start(move || file.write(&datagram(1)))
    };
    assert_eq!(writer.join("a write from another thread"), Ok(28));
    assert_eq!(take(&mut client, "tun0"), datagram(1));
    // dd inherits the open file description as its standard output, as a forked child does.
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("datagram");
    std::fs::write(&source, datagram(2)).unwrap();
    let duplicate = file.try_clone();
    let child = Background::start(move || {
        let mut dd = Command::new("dd");
        dd.args(["bs=2000", "status=none"]).arg(format!("if={}", source.display()));
        dd.stdout(duplicate.into_fd()).status().expect("dd can be run")
    });
    assert_eq!(child.join("a write from a child").code(), Some(0));
    assert_eq!(take(&mut client, "tun0"), datagram(2));
    assert_eq!(file.poll(PollFlags::POLLIN | PollFlags::POLLOUT, NOW), PollFlags::POLLOUT);
    assert!(reader.is_running());
    inject(&mut client, "tun0", &datagram(3));
    assert_eq!(reader.join("the blocked read"), Ok(datagram(3)));
}

fn stopped_and_continued_reader_reads_on(backend: Backend) {
    let daemon = Daemon::start(backend);
    let program = Program::start(Command::new(compiled("reader")).arg(&daemon.device).arg("tun0"));
    program.expect_line("attached tun0");
    daemon.wait_until("tun0", Until::Reading);
    program.signal(Signal::SIGSTOP);
    // DIFFERS: a blocked read ends with EINTR when its program is stopped and continued. The kernel's tun hides this signal
    // from the program, but a server learns of it.
    program.signal(Signal::SIGCONT);
    program.expect_line("read -1 EINTR");
    daemon.wait_until("tun0", Until::Reading);
    inject(&mut daemon.client(), "tun0", &datagram(1));
    program.expect_line("read 28");
}

fn static_program_works(backend: Backend) {
    let daemon = Daemon::start(backend);
    let program =
        Program::start(Command::new(compiled_static("reader")).arg(&daemon.device).arg("tun0"));
    program.expect_line("attached tun0");
    daemon.wait_until("tun0", Until::Reading);
    inject(&mut daemon.client(), "tun0", &datagram(1));
    program.expect_line("read 28");
}

fn child_and_duplicate_share_the_file(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let duplicate = file.try_clone();
    let mut client = daemon.client();
    for number in 1..=3 {
        inject(&mut client, "tun0", &datagram(number));
    }
    assert_eq!(duplicate.read(), Ok(datagram(1)));
    assert_eq!(file.read(), Ok(datagram(2)), "one queue");
    // dd inherits the open file description as its standard input, as a forked child does.
    let child = Command::new("dd")
        .args(["bs=2000", "count=1", "status=none"])
        .stdin(duplicate.into_fd())
        .output()
        .expect("dd can be run");
    assert_eq!(child.stdout, datagram(3));
    assert_eq!(daemon.list().tunnels[0].files.len(), 1, "the child's exit closed nothing for us");
    daemon.close(file);
    assert!(daemon.list().tunnels.is_empty());
}

fn many_files_are_isolated(backend: Backend) {
    let daemon = Daemon::start(backend);
    let files: Vec<TunFile> =
        (0..200).map(|_| TunFile::attached(&daemon.device, "", TUN | NO_PI)).collect();
    let mut client = daemon.client();
    for number in 0..200 {
        inject(&mut client, &format!("tun{number}"), &datagram(number));
    }
    for (number, file) in (0..).zip(&files) {
        assert_eq!(file.get_iff().unwrap().0, format!("tun{number}"));
        assert_eq!(file.read(), Ok(datagram(number)));
        file.write(&datagram(1_000 + number)).unwrap();
        file.set_nonblocking(true);
    }
    for (number, file) in (0..).zip(&files) {
        assert_eq!(file.read(), Err(Errno::EAGAIN));
        assert_eq!(take(&mut client, &format!("tun{number}")), datagram(1_000 + number));
    }
}

fn one_thread_serves_many_blocked_readers(backend: Backend) {
    let daemon = Daemon::start(backend);
    let threads = || {
        std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).expect("it is running").count()
    };
    let before = threads();
    let readers: Vec<Background<_>> = (0..100)
        .map(|_| {
            let file = TunFile::attached(&daemon.device, "", TUN | NO_PI);
            Background::start(move || file.read())
        })
        .collect();
    for number in 0..100 {
        daemon.wait_until(&format!("tun{number}"), Until::Reading);
    }
    // A wait_until's connection may still be on its way out: two threads each.
    within_deadline("connections to end", {
        let pid = daemon.pid();
        move || {
            while std::fs::read_dir(format!("/proc/{pid}/task")).expect("it is running").count()
                > before
            {}
        }
    });
    let mut client = daemon.client();
    for number in 0..100 {
        inject(&mut client, &format!("tun{number}"), &datagram(number));
    }
    for (number, reader) in (0..).zip(readers) {
        assert_eq!(reader.join("a blocked reader"), Ok(datagram(number)));
    }
}

fn several_device_threads_lose_nothing(backend: Backend) {
    let daemon = Daemon::start_with(backend, &["--threads", "4"]);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let file = file.try_clone();
            Background::start(move || {
                (0..25).map(|_| file.read().expect("a datagram")).collect::<Vec<_>>()
            })
        })
        .collect();
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let file = file.try_clone();
            Background::start(move || {
                (0..25).for_each(|n| assert_eq!(file.write(&datagram(writer * 25 + n)), Ok(28)))
            })
        })
        .collect();
    let mut client = daemon.client();
    for number in 0..200 {
        inject(&mut client, "tun0", &datagram(number));
    }
    let mut read: Vec<_> = readers.into_iter().flat_map(|reader| reader.join("a reader")).collect();
    read.sort_unstable();
    let mut all: Vec<_> = (0..200).map(datagram).collect();
    all.sort_unstable();
    assert!(read == all, "each datagram went to exactly one reader");
    writers.into_iter().for_each(|writer| writer.join("a writer"));
    let mut taken: Vec<_> = (0..200).map(|_| take(&mut client, "tun0")).collect();
    let of = |writer: u32| {
        taken.iter().filter(move |d| (writer * 25..(writer + 1) * 25).any(|n| **d == datagram(n)))
    };
    for writer in 0..8 {
        assert!(
            of(writer)
                .eq((writer * 25..(writer + 1) * 25).map(datagram).collect::<Vec<_>>().iter()),
            "in order"
        );
    }
    taken.sort_unstable();
    assert!(taken == all, "none was lost or doubled");
}

fn ioctls_fetch_and_store_the_argument(backend: Backend) {
    use memtun::abi::tun::ioctl::{
        SIOCGIFHWADDR, TUNGETFEATURES, TUNGETIFF, TUNGETSNDBUF, TUNSETIFF,
    };
    const UNMAPPED: usize = 16;
    const TCGETS: u32 = 0x5401;
    let daemon = Daemon::start(backend);
    let file = TunFile::open(&daemon.device);
    let mut features = [0; 4];
    assert_eq!(file.ioctl(TUNGETFEATURES, &mut features), Ok(0));
    assert_eq!(u32::from_ne_bytes(features), 0x7173);
    assert_eq!(file.ioctl_value(TUNSETIFF, UNMAPPED), Err(Errno::EFAULT));
    assert_eq!(file.ioctl_value(SIOCGIFHWADDR, UNMAPPED), Err(Errno::EFAULT), "before EBADFD");
    assert_eq!(file.ioctl_value(TUNGETIFF, UNMAPPED), Err(Errno::EBADFD), "before EFAULT");
    assert_eq!(file.ioctl_value(TCGETS, UNMAPPED), Err(Errno::EBADFD), "TCGETS");
    assert_eq!(file.set_iff("tap%d", TAP), Ok("tap0".to_owned()));
    assert_eq!(file.set_iff("other", TAP), Err(Errno::EEXIST));
    assert_eq!(
        file.get_iff().map(|(name, flags)| (name, flags.bits())),
        Ok(("tap0".to_owned(), 0x1002))
    );
    assert_eq!(file.ioctl_value(TUNGETSNDBUF, UNMAPPED), Err(Errno::EFAULT));
    assert_eq!(file.ioctl_value(TCGETS, UNMAPPED), Err(Errno::EINVAL), "never ENOTTY");
    // Guard bytes: nothing is stored beyond the structure.
    let mut guarded = [0x5a; 48];
    file.ioctl(TUNGETIFF, &mut guarded).unwrap();
    assert_eq!(guarded[40..], [0x5a; 8]);
}

fn values_pass_where_the_kernel_lets_them(backend: Backend) {
    use memtun::abi::tun::ioctl::{SIOCGSKNS, TUNSETOFFLOAD, TUNSETPERSIST};
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    // DIFFERS: on a FUSE file, ioctls that pass a value get EFAULT, unless the program runs under `memtun run`. The kernel
    // copies as many bytes as the command's size field says, so it takes the value for an address.
    let expected = match backend {
        Backend::Cuse => Ok(0),
        Backend::Fuse => Err(Errno::EFAULT),
    };
    assert_eq!(file.ioctl_value(TUNSETOFFLOAD, 0), expected);
    assert_eq!(file.ioctl_value(TUNSETPERSIST, 1), expected);
    assert_eq!(daemon.list().tunnels[0].persistent, backend == Backend::Cuse);
    assert_eq!(file.ioctl_value(SIOCGSKNS, 0), Err(Errno::EPERM), "its size field claims nothing");
}

fn refused_ioctls_leave_nothing_behind(backend: Backend) {
    const UNKNOWN: u32 = 0x5401;
    let daemon = Daemon::start(backend);
    let file = TunFile::open(&daemon.device);
    let refuse = |times| {
        for _ in 0..times {
            assert_eq!(file.ioctl_value(UNKNOWN, 0), Err(Errno::EBADFD));
        }
    };
    // What is needed once.
    refuse(100);
    let before = resident_kilobytes(daemon.pid());
    refuse(20_000);
    let grown = resident_kilobytes(daemon.pid()).saturating_sub(before);
    assert!(grown < 1_000, "{grown} kB, of 20,000 calls");
}

fn down_tunnel_refuses_writes(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    daemon.memtun(&["set", "tun0", "down"]).succeeded();
    assert_eq!(file.write(&datagram(1)), Err(Errno::EIO));
    let all = PollFlags::POLLIN | PollFlags::POLLOUT;
    assert_eq!(file.poll(all, NOW), PollFlags::empty());
    let poller = {
        let file = file.try_clone();
        Background::start(move || file.poll(PollFlags::POLLOUT, FOREVER))
    };
    wait_until_armed(&daemon);
    daemon.memtun(&["set", "tun0", "up"]).succeeded();
    assert_eq!(poller.join("poll"), PollFlags::POLLOUT);
    assert_eq!(file.write(&datagram(1)), Ok(28));
}

fn sigterm_leaves_nothing_behind(backend: Backend) {
    let mut daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let reader = Background::start(move || file.read());
    daemon.wait_until("tun0", Until::Reading);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(reader.join("the blocked read"), Err(Errno::ECONNABORTED));
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!daemon.device.exists(), "the device is gone");
    assert!(!daemon.control.exists(), "the socket is gone");
}

fn sigkill_of_the_daemon_gives_clients_an_error(backend: Backend) {
    let mut daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    // The node of a character device goes with its server; a mount stays, and says that nobody serves it.
    let opened_later = match backend {
        Backend::Cuse => Errno::ENOENT,
        Backend::Fuse => Errno::ENOTCONN,
    };
    let reader = {
        let file = file.try_clone();
        Background::start(move || file.read())
    };
    let poller = {
        let file = file.try_clone();
        Background::start(move || file.poll(PollFlags::POLLIN, FOREVER))
    };
    daemon.wait_until("tun0", Until::Reading);
    wait_until_armed(&daemon);
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
    assert_eq!(reader.join("the blocked read"), Err(Errno::ECONNABORTED));
    assert!(poller.join("the poll").contains(PollFlags::POLLERR));
    assert_eq!(file.read(), Err(Errno::ENOTCONN));
    assert_eq!(file.write(&datagram(1)), Err(Errno::ENOTCONN));
    assert_eq!(TunFile::open_with(&daemon.device, OFlag::O_RDWR).map(|_| ()), Err(opened_later));
    assert!(daemon.control.exists(), "a killed daemon cannot remove its socket");
    // The next daemon replaces the socket.
    let next = Daemon::start_at(backend, &daemon.control, &[]);
    assert!(Client::connect(&daemon.control).is_ok(), "{}", next.log());
}

fn idle_daemon_uses_no_cpu_and_little_memory(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let reader = Background::start(move || file.read());
    daemon.wait_until("tun0", Until::Reading);
    let pid = daemon.pid();
    // Every thread must be asleep, and none may have been switched to over a while in which other things happened.
    let switches = move || {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it is running");
        let statuses = tasks
            .flatten()
            .map(|task| std::fs::read_to_string(task.path().join("status")).unwrap_or_default());
        statuses
            .map(|status| {
                let count = |key| {
                    status
                        .lines()
                        .find_map(|line| line.strip_prefix(key))
                        .map_or("0", str::trim)
                        .to_owned()
                };
                (
                    count("voluntary_ctxt_switches:"),
                    count("nonvoluntary_ctxt_switches:"),
                    count("State:"),
                )
            })
            .collect::<Vec<_>>()
    };
    let settled = within_deadline("the daemon to come to rest", move || {
        loop {
            let before = switches();
            let tick = nix::poll::poll(&mut [], PollTimeout::from(500_u16));
            assert_eq!(tick, Ok(0));
            if switches() == before {
                return before;
            }
        }
    });
    assert!(settled.iter().all(|(_, _, state)| state.starts_with('S')), "{settled:?}");
    let kilobytes = resident_kilobytes(pid);
    println!("resident memory of the idle daemon, without its code: {kilobytes} kB");
    assert!(kilobytes < 4_000, "{kilobytes} kB");
    assert!(reader.is_running());
}

/// Of what is the process's own: its code is larger in a test's build, by far, and shared.
fn resident_kilobytes(pid: Pid) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it is running");
    let resident =
        status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("it has a size");
    resident.trim().trim_end_matches(" kB").parse().expect("a number")
}
