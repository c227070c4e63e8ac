//! How a server waits for the next message: asleep, or looking again and again for a while first.
//!
//! # Theory of operation
//!
//! What a call costs depends on where the scheduler puts client and server. On one CPU they hand over to each other, which is
//! cheapest. On two CPUs, each has to be woken on a CPU that has gone idle, and that costs more than all the rest. A server
//! that does not sleep saves half of it. Which way is faster depends on kernel, machine and load, and changes. So the server
//! measures: when messages follow each other closely, it waits for some asleep and for some looking. It keeps the faster way
//! for the next thousands of messages.
//!
//! A server that looks yields its CPU to any thread that wants it, and goes to sleep when nothing has come for [`WINDOW`]. So a
//! client that calls rarely costs nothing, a client that pauses costs one window, and after the last call no time is spent. With
//! one CPU to run on, the server does not look at all.

use std::thread::available_parallelism;
use std::time::{Duration, Instant};

/// How long a server looks for the next message, and how close two messages have to be.
const WINDOW: Duration = Duration::from_micros(100);
/// Nothing of ours takes so long between two looks: somebody else had the CPU.
const PREEMPTED: Duration = Duration::from_micros(30);
/// How many messages in a row have to be close before the ways to wait are compared.
const BRISK: u32 = 16;
/// How many messages each way is tried for.
const TRIAL: u32 = 64;
/// For how many messages the better one is kept.
const SETTLED: u32 = 8192;

/// What one thread in a read loop knows of the messages it got.
#[derive(Debug)]
pub(crate) struct Pace {
    phase: Phase,
    /// When the last message came.
    last: Option<Instant>,
    /// When looking for the next one began, and the last look.
    looking: Option<(Instant, Instant)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// So many messages in a row came closely.
    Counting(u32),
    /// So many are left to be waited for asleep; the time the others took.
    TryingSleep(u32, Duration),
    /// The same for looking; and the time it took asleep.
    TryingLook(u32, Duration, Duration),
    /// The better way, and for how many messages.
    Settled(Next, u32),
}

/// How to wait for a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Look,
    Sleep,
}

impl Pace {
    /// `None` where looking is of no use.
    pub(crate) fn new() -> Option<Self> {
        available_parallelism().is_ok_and(|cpus| cpus.get() > 1).then_some(Self::UNKNOWN)
    }

    const UNKNOWN: Self = Self { phase: Phase::Counting(0), last: None, looking: None };

    /// There is no message, and the read did not sleep.
    pub(crate) fn missed(&mut self, now: Instant) -> Next {
        let (since, looked) = self.looking.unwrap_or((now, now));
        self.looking = Some((since, now));
        // In a trial it is part of what looking costs.
        let is_unwelcome = now - looked > PREEMPTED && matches!(self.phase, Phase::Settled(..));
        if now - since > WINDOW || is_unwelcome {
            self.phase = Phase::Counting(0);
        }
        self.phase.next()
    }

    /// There is a message. Returns how the next is to be waited for, if that changes.
    pub(crate) fn came(&mut self, now: impl FnOnce() -> Instant) -> Option<Next> {
        self.looking = None;
        if let Phase::Settled(_, left @ 1..) = &mut self.phase {
            *left -= 1;
            self.last = None;
            return None;
        }
        let now = now();
        let gap = self.last.replace(now).map(|last| now - last)?;
        let before = self.phase.next();
        self.phase = match self.phase {
            // A pause of the client says nothing of either way.
            _ if gap > 10 * WINDOW => Phase::Counting(0),
            Phase::Counting(_) if gap > WINDOW => Phase::Counting(0),
            Phase::Counting(BRISK..) => Phase::TryingSleep(TRIAL, Duration::ZERO),
            Phase::Counting(brisk) => Phase::Counting(brisk + 1),
            Phase::TryingSleep(0, asleep) => Phase::TryingLook(TRIAL, Duration::ZERO, asleep),
            Phase::TryingSleep(left, asleep) => Phase::TryingSleep(left - 1, asleep + gap),
            Phase::TryingLook(0, awake, asleep) => {
                Phase::Settled(if awake < asleep { Next::Look } else { Next::Sleep }, SETTLED)
            }
            Phase::TryingLook(left, awake, asleep) => {
                Phase::TryingLook(left - 1, awake + gap, asleep)
            }
            Phase::Settled(..) => Phase::TryingSleep(TRIAL, Duration::ZERO),
        };
        let next = self.phase.next();
        (next != before).then_some(next)
    }
}

impl Phase {
    fn next(self) -> Next {
        match self {
            Self::TryingLook(..) | Self::Settled(Next::Look, _) => Next::Look,
            Self::Counting(_) | Self::TryingSleep(..) | Self::Settled(Next::Sleep, _) => {
                Next::Sleep
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client that calls as soon as it is answered, and a clock.
    struct World {
        pace: Pace,
        next: Next,
        now: Instant,
        /// How long a message takes to one that sleeps, and to one that looks.
        costs: (Duration, Duration),
        /// How long it takes from one look to the next.
        look: Duration,
    }

    impl World {
        fn new(asleep: u64, awake: u64) -> Self {
            let (pace, look) = (Pace::UNKNOWN, Duration::from_micros(1));
            let costs = (Duration::from_micros(asleep), Duration::from_micros(awake));
            Self { pace, next: Next::Sleep, now: instant(), costs, look }
        }

        /// The next message, which comes after a pause; whether it was met awake.
        fn call(&mut self, pause: Duration) -> bool {
            let begin = self.now;
            let awake = begin + pause + self.costs.1;
            let is_awake = loop {
                if self.next == Next::Sleep {
                    self.now = begin + pause + self.costs.0;
                    break false;
                }
                if self.now >= awake {
                    break true;
                }
                self.next = self.pace.missed(self.now);
                self.now += self.look;
            };
            if let Some(next) = self.pace.came(|| self.now) {
                assert_ne!(next, self.next);
                self.next = next;
            }
            is_awake
        }

        /// How many of so many messages were met awake.
        fn calls(&mut self, count: u32) -> u32 {
            (0..count).map(|_| u32::from(self.call(Duration::ZERO))).sum()
        }
    }

    #[allow(clippy::disallowed_methods, reason = "there is no other way to have an Instant")]
    fn instant() -> Instant {
        Instant::now()
    }

    /// Messages until the first thousands are settled.
    const LEARNING: u32 = BRISK + 2 * TRIAL + 8;

    #[test]
    fn looking_is_kept_where_it_is_faster() {
        let mut world = World::new(60, 20);
        assert_eq!(world.calls(BRISK), 0);
        world.calls(LEARNING);
        assert_eq!(world.calls(1000), 1000);
        assert_eq!(world.calls(SETTLED), SETTLED - TRIAL - 1, "asleep is tried again");
    }

    #[test]
    fn sleeping_is_kept_where_it_is_faster() {
        let mut world = World::new(8, 20);
        world.calls(LEARNING);
        assert_eq!(world.calls(1000), 0);
        assert_eq!(world.calls(SETTLED), TRIAL + 1, "looking is tried again");
    }

    #[test]
    fn rare_calls_are_never_looked_for() {
        let mut world = World::new(60, 20);
        assert!((0..1000).all(|_| !world.call(Duration::from_millis(1))));
    }

    #[test]
    fn a_pause_costs_one_window() {
        let mut world = World::new(60, 20);
        world.calls(LEARNING + 100);
        let before = world.now;
        assert!(!world.call(Duration::from_secs(1)));
        assert_eq!(world.pace.phase, Phase::Counting(0));
        assert!(world.now - before >= Duration::from_secs(1));
        assert_eq!(world.calls(BRISK), 0, "and has to be earned again");
    }

    #[test]
    fn a_cpu_that_others_want_is_left_to_them() {
        let mut world = World::new(60, 20);
        world.calls(LEARNING + 100);
        (world.look, world.costs.1) = (Duration::from_micros(50), Duration::from_micros(90));
        world.calls(1);
        assert_eq!(world.pace.phase, Phase::Counting(0));
        // In the trial that follows looking takes longer than sleeping.
        world.calls(LEARNING);
        assert!(matches!(world.pace.phase, Phase::Settled(Next::Sleep, _)), "{:?}", world.pace);
    }
}
