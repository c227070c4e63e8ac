//! What the tests share: a daemon for each, clients of its device, and waiting with a deadline.

pub mod daemon;
pub mod device;
pub mod kernel;
pub mod network;
pub mod program;
pub mod stack;
pub mod terminal;
pub mod transfer;

use std::{sync::mpsc, thread, time::Duration};

use nix::poll::{PollTimeout, poll};

/// How long an event may take. Long, because the tests also run on an emulated machine; nothing waits for it to pass.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Runs something that may block in a thread, and fails the test if it does not come back.
#[track_caller]
pub fn within_deadline<T: Send + 'static>(
    what: &str,
    act: impl FnOnce() -> T + Send + 'static,
) -> T {
    Background::start(act).join(what)
}

/// Something that runs beside the test.
pub struct Background<T>(mpsc::Receiver<T>);

impl<T: Send + 'static> Background<T> {
    pub fn start(act: impl FnOnce() -> T + Send + 'static) -> Self {
        let (done, result) = mpsc::sync_channel(1);
        thread::spawn(move || {
            // Nobody listens once the test has failed.
            let _failed = done.send(act());
        });
        Self(result)
    }

    #[track_caller]
    pub fn join(self, what: &str) -> T {
        match self.0.recv_timeout(DEADLINE) {
            Ok(result) => result,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                panic!("{what}: nothing happened within {DEADLINE:?}")
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => panic!("{what}: it panicked"),
        }
    }

    /// It is still running.
    pub fn is_running(&self) -> bool {
        matches!(self.0.try_recv(), Err(mpsc::TryRecvError::Empty))
    }
}

/// Looks again and again, for what nobody tells.
#[track_caller]
pub fn until(mut is_so: impl FnMut() -> bool) {
    let mut ticks = 0;
    while !is_so() {
        assert_eq!(poll(&mut [], PollTimeout::from(20_u16)), Ok(0));
        ticks += 1;
        assert!(ticks < 1_500, "it does not come to be");
    }
}

/// Random numbers that are the same in each run, unless `MEMTUN_TEST_SEED` is another number. A failure shows the seed.
pub fn random_numbers() -> fastrand::Rng {
    let seed = std::env::var("MEMTUN_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    fastrand::Rng::with_seed(seed.unwrap_or(1))
}

/// Bytes that are not the same anywhere.
pub fn random_bytes(length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(1);
    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
}

/// A minimal IPv4 datagram with a number in it, so that each can be told from the others.
pub fn datagram(number: u32) -> Vec<u8> {
    let mut bytes = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    bytes.extend(number.to_be_bytes());
    bytes.extend([0; 4]);
    bytes
}
