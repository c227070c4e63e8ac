//! TCP by the kernel's own stack between two network namespaces, both ways at once, until it is told to end.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use nix::{
    poll::{PollTimeout, poll},
    sys::socket::{setsockopt, sockopt::SndBuf},
};

use super::{DEADLINE, network::Network};

/// After so many bytes they repeat; no power of two, so that nothing of another length fits in their place.
const PERIOD: usize = 1_000_003;

/// That much may be under way, which no queue on the way drops: on an emulated machine, whose datagrams take their time, the
/// kernel would wait very long before it sends again.
const UNDER_WAY: usize = 64 << 10;

/// A connection that is in use.
pub struct Transfer {
    directions: [Direction; 2],
    over: Arc<AtomicBool>,
}

/// What is sent one way. Both threads end by themselves when nothing has moved for [`DEADLINE`].
struct Direction {
    received: Arc<AtomicUsize>,
    writer: JoinHandle<usize>,
    reader: JoinHandle<usize>,
}

impl Transfer {
    /// A connection from `near` to that address at `far`.
    pub fn start(near: &Network, far: &Network, address: &str) -> Self {
        let address = SocketAddr::new(address.parse().expect("an address"), 0);
        let listener = far.inside(|| TcpListener::bind(address)).expect("it is an address there");
        let address = listener.local_addr().expect("it is bound");
        let connected = near.inside(|| TcpStream::connect_timeout(&address, DEADLINE));
        let near = connected.expect("the other end answers");
        let (far, _) = listener.accept().expect("somebody has connected");
        let over = Arc::default();
        let directions = [(&near, &far), (&far, &near)];
        let directions = directions.map(|(from, to)| Direction::start(from, to, &over));
        Self { directions, over }
    }

    /// Waits until so many bytes more have arrived each way.
    #[track_caller]
    pub fn wait_for(&self, bytes: usize) {
        let wanted = self.directions.each_ref().map(|direction| direction.received() + bytes);
        for (direction, wanted) in self.directions.iter().zip(wanted) {
            while direction.received() < wanted {
                assert!(!direction.reader.is_finished(), "it has ended, or nothing moves");
                assert_eq!(poll(&mut [], PollTimeout::from(20_u16)), Ok(0));
            }
        }
    }

    /// Ends it. All that was sent has arrived.
    #[track_caller]
    pub fn finish(self) {
        self.over.store(true, Ordering::Relaxed);
        for Direction { writer, reader, .. } in self.directions {
            let [sent, received] =
                [writer, reader].map(|thread| thread.join().expect("it ends well"));
            assert_eq!(sent, received);
        }
    }
}

impl Direction {
    fn start(from: &TcpStream, to: &TcpStream, over: &Arc<AtomicBool>) -> Self {
        let [mut from, mut to] = [from, to].map(|end| end.try_clone().expect("a descriptor"));
        setsockopt(&from, SndBuf, &UNDER_WAY).expect("a size");
        from.set_write_timeout(Some(DEADLINE)).expect("a time");
        to.set_read_timeout(Some(DEADLINE)).expect("a time");
        let data: Arc<[u8]> = super::random_bytes(PERIOD).into();
        let (received, over) = (Arc::new(AtomicUsize::new(0)), Arc::clone(over));
        let writer = thread::spawn({
            let data = Arc::clone(&data);
            move || {
                let mut sent = 0;
                while !over.load(Ordering::Relaxed) {
                    sent += from.write(after(&data, sent)).expect("it takes more");
                }
                from.shutdown(Shutdown::Write).expect("it is connected");
                sent
            }
        });
        let reader = thread::spawn({
            let received = Arc::clone(&received);
            move || {
                let mut buffer = vec![0; 64 << 10];
                let mut count = 0;
                loop {
                    let length = to.read(&mut buffer).expect("more comes");
                    if length == 0 {
                        return count;
                    }
                    let mut rest = &buffer[..length];
                    while !rest.is_empty() {
                        let expected = after(&data, count);
                        let (part, behind) = rest.split_at(rest.len().min(expected.len()));
                        assert!(part == &expected[..part.len()], "at {count} and after");
                        count += part.len();
                        rest = behind;
                    }
                    received.store(count, Ordering::Relaxed);
                }
            }
        });
        Self { received, writer, reader }
    }

    fn received(&self) -> usize {
        self.received.load(Ordering::Relaxed)
    }
}

/// What comes after so many bytes, up to where they repeat.
fn after(data: &[u8], count: usize) -> &[u8] {
    &data[count % data.len()..]
}
