//! How a server waits for the next message: it looks again for a moment, and sleeps then.
//!
//! # Theory of operation
//!
//! A call costs most where the server has fallen asleep: the scheduler puts it on an idle CPU, and waking that takes longer
//! than all the rest. So after a message whose predecessor was close, the server looks for a next one for [`WINDOW`] before it
//! sleeps. That is given up in two cases:
//!
//! * Nothing came in time: the next message is waited for asleep, and only if that came soon the server looks again. So a
//!   client that calls rarely costs at most one window for each burst of calls.
//! * The thread was not running for a while as it looked: somebody else wants the CPU, perhaps the client itself. It then
//!   sleeps for the next messages, for twice as many each time, for half as many when as many have been met awake.
//!
//! It does not look at all where there is one CPU to run on.

use std::thread::available_parallelism;
use std::time::{Duration, Instant};

/// How long a server looks for the next message.
const WINDOW: Duration = Duration::from_micros(100);
/// A pause of this length between two looks was not our own.
const PREEMPTED: Duration = Duration::from_micros(30);
/// How many messages are waited for asleep after that, at first and at most.
const PENALTIES: (u32, u32) = (16, 4096);

/// What one thread in a read loop knows of the messages it got.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Looking pays: the last message came soon after the one before.
    is_brisk: bool,
    /// Messages to sleep for, whatever their pace.
    penance: u32,
    penalty: u32,
    /// Messages met awake since the penalty has changed.
    met: u32,
    waiting: Option<Waiting>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    since: Instant,
    looked: Instant,
    slept: bool,
}

/// What to do when there is no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Look,
    Sleep,
}

impl Pace {
    /// `None` where looking is of no use.
    pub(crate) fn new() -> Option<Self> {
        available_parallelism().is_ok_and(|cpus| cpus.get() > 1).then_some(Self {
            is_brisk: false,
            penance: 0,
            penalty: PENALTIES.0,
            met: 0,
            waiting: None,
        })
    }

    /// There is no message.
    pub(crate) fn missed(&mut self, now: Instant) -> Next {
        let Some(waiting) = &mut self.waiting else {
            let looks = self.is_brisk && self.penance == 0;
            self.waiting = Some(Waiting { since: now, looked: now, slept: !looks });
            return if looks { Next::Look } else { Next::Sleep };
        };
        if waiting.slept {
            return Next::Sleep;
        }
        if now - waiting.looked > PREEMPTED {
            self.penance = self.penalty;
            self.penalty = (self.penalty * 2).min(PENALTIES.1);
            self.met = 0;
            waiting.slept = true;
        } else if now - waiting.since > WINDOW {
            waiting.slept = true;
        }
        waiting.looked = now;
        if waiting.slept { Next::Sleep } else { Next::Look }
    }

    /// There is a message; `now` is asked for only if it had to be waited for.
    pub(crate) fn came(&mut self, now: impl FnOnce() -> Instant) {
        self.penance = self.penance.saturating_sub(1);
        let Some(waiting) = self.waiting.take() else {
            self.is_brisk = true;
            return;
        };
        self.is_brisk = now() - waiting.since <= WINDOW;
        if !waiting.slept {
            self.met += 1;
            if self.met >= self.penalty {
                self.penalty = (self.penalty / 2).max(PENALTIES.0);
                self.met = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Brings messages at times in microseconds, each waited for from the one before; a look every microsecond.
    /// Returns for each whether it was met awake.
    fn met_awake(pace: &mut Pace, gaps: &[u64]) -> Vec<bool> {
        let mut now = instant();
        let mut met = |gap: u64| {
            let due = now + Duration::from_micros(gap);
            let mut awake = true;
            while now < due {
                match pace.missed(now) {
                    Next::Look => now += Duration::from_micros(1),
                    Next::Sleep => (now, awake) = (due, false),
                }
            }
            pace.came(|| now);
            awake
        };
        gaps.iter().map(|gap| met(*gap)).collect()
    }

    #[allow(clippy::disallowed_methods, reason = "there is no other way to have an Instant")]
    fn instant() -> Instant {
        Instant::now()
    }

    fn pace() -> Pace {
        Pace { is_brisk: false, penance: 0, penalty: PENALTIES.0, met: 0, waiting: None }
    }

    #[test]
    fn brisk_messages_are_met_awake() {
        assert_eq!(met_awake(&mut pace(), &[50, 50, 0, 50]), [false, true, true, true]);
    }

    #[test]
    fn rare_messages_cost_one_look_for_each_burst() {
        let gaps = [50, 50, 5000, 5000, 50, 50];
        assert_eq!(met_awake(&mut pace(), &gaps), [false, true, false, false, false, true]);
    }

    /// Somebody else gets the CPU as the server looks.
    fn preempt(pace: &mut Pace) {
        let begin = instant();
        assert_eq!(pace.missed(begin), Next::Look);
        assert_eq!(pace.missed(begin + Duration::from_micros(50)), Next::Sleep);
        pace.came(|| begin + Duration::from_micros(60));
    }

    #[test]
    fn a_busy_cpu_is_left_to_others_for_longer_each_time() {
        let mut pace = pace();
        met_awake(&mut pace, &[50]);
        for asleep in [16, 32, 64] {
            preempt(&mut pace);
            let awake = met_awake(&mut pace, &vec![50; asleep]);
            // The message that was met late is one of them.
            assert_eq!(awake.iter().filter(|awake| !**awake).count(), asleep - 1);
        }
    }

    #[test]
    fn a_cpu_that_is_free_again_is_found_out() {
        let mut pace = pace();
        met_awake(&mut pace, &[50]);
        preempt(&mut pace);
        preempt_after(&mut pace, 16);
        assert_eq!(pace.penalty, 64);
        met_awake(&mut pace, &[50; 32 + 64 + 32]);
        assert_eq!(pace.penalty, 16);
    }

    fn preempt_after(pace: &mut Pace, messages: usize) {
        met_awake(pace, &vec![50; messages]);
        preempt(pace);
    }
}
