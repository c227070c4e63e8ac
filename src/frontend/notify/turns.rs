//! Threads that answer notifications in turn: one does, and another takes over when that one is held up.
//!
//! # Theory of operation
//!
//! To answer a call, a thread may have to touch the client's memory, or to follow a path of the client's. Either may wait for another
//! process for as long as that likes: `userfaultfd(2)`, or a file system whose server is a client itself. That is rare, and a hand-over
//! on each call would cost more than the call. So the thread says when it begins a call and when it ends it, and a watch looks at that
//! every [`TICK`] while there are calls. If it finds the same call twice, another thread goes on with the notifications. The one that
//! was held up ends when its call does.
//!
//! Each thread that is held up costs one of [`MOST`]. A process may hold up [`OF_ONE_PROCESS`]; its further calls get ENOMEM.

use std::{
    collections::BTreeMap,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::frontend::opener;

/// How long a call may take before another thread goes on: once to twice this.
const TICK: Duration = Duration::from_millis(20);
/// Threads that may be held up at one time.
const MOST: usize = 32;
/// Of these, by the calls of one process.
const OF_ONE_PROCESS: usize = 4;

/// Whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// The seat of the thread whose turn it is.
    seat: AtomicU64,
    /// The call that it is at; 0: none.
    call: AtomicU64,
    /// The thread of the client that makes it.
    caller: AtomicU32,
    /// How many calls there have been.
    calls: AtomicU64,
    /// The watch looks.
    is_watched: AtomicBool,
    /// Somebody is held up.
    is_any_held: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Of each thread that is held up, its seat and the process whose call it is.
    held: BTreeMap<u64, u32>,
    has_ended: bool,
}

/// A seat: it is its thread's turn as long as nobody has a later one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seat(u64);

impl Turns {
    pub(super) fn has_turn(&self, seat: Seat) -> bool {
        self.seat.load(Ordering::Acquire) == seat.0
    }

    /// Begins a call of a client's thread; false: its process has held up its share of threads.
    pub(super) fn begin(&self, tid: u32) -> bool {
        if self.is_any_held.load(Ordering::Relaxed) {
            let process = opener::process_of(tid).unwrap_or(tid);
            let held = self.lock().held.values().filter(|of| **of == process).count();
            if held >= OF_ONE_PROCESS {
                return false;
            }
        }
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        self.caller.store(tid, Ordering::Relaxed);
        self.call.store(call, Ordering::SeqCst);
        if !self.is_watched.load(Ordering::SeqCst) {
            self.is_watched.store(true, Ordering::SeqCst);
            let _asleep = self.lock();
            self.changed.notify_all();
        }
        true
    }

    /// Ends it; false: another thread has the turn.
    pub(super) fn end(&self, seat: Seat) -> bool {
        if self.has_turn(seat) {
            self.call.store(0, Ordering::SeqCst);
            // The watch may have given the turn away in between; then it has set this too.
            if self.has_turn(seat) {
                return true;
            }
        }
        let mut state = self.lock();
        state.held.remove(&seat.0);
        self.is_any_held.store(!state.held.is_empty(), Ordering::Relaxed);
        false
    }

    /// Whether the thread whose turn it is is at a call.
    pub(super) fn is_at_a_call(&self) -> bool {
        self.call.load(Ordering::SeqCst) != 0
    }

    /// No more turns.
    pub(super) fn stop(&self) {
        self.lock().has_ended = true;
        self.changed.notify_all();
    }

    /// Watches; the body of a thread. `relieve` starts a thread with a seat, and says whether it could.
    pub(super) fn watch(&self, relieve: impl Fn(Seat) -> bool) {
        let mut last = (0, 0);
        let mut state = self.lock();
        while !state.has_ended {
            let is_watched = self.is_watched.load(Ordering::SeqCst);
            state = if is_watched {
                let waited = self.changed.wait_timeout(state, TICK);
                waited.unwrap_or_else(PoisonError::into_inner).0
            } else {
                self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
            };
            let now = (self.call.load(Ordering::SeqCst), self.calls.load(Ordering::SeqCst));
            if is_watched && now.0 != 0 && now == last && state.held.len() < MOST {
                state = self.give_away(state, &relieve);
            } else if is_watched && now == last && now.0 == 0 {
                self.is_watched.store(false, Ordering::SeqCst);
                if self.calls.load(Ordering::SeqCst) != now.1 {
                    self.is_watched.store(true, Ordering::SeqCst);
                }
            }
            last = now;
        }
    }

    fn give_away<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        relieve: impl Fn(Seat) -> bool,
    ) -> MutexGuard<'a, State> {
        let tid = self.caller.load(Ordering::Relaxed);
        let from = self.seat.load(Ordering::Acquire);
        state.held.insert(from, opener::process_of(tid).unwrap_or(tid));
        self.is_any_held.store(true, Ordering::Relaxed);
        self.call.store(0, Ordering::SeqCst);
        self.seat.store(from + 1, Ordering::SeqCst);
        if !relieve(Seat(from + 1)) {
            // It is that thread's turn again, when it comes back.
            state.held.remove(&from);
            self.seat.store(from, Ordering::SeqCst);
        }
        state
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, mpsc},
        thread,
    };

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn who_is_held_up_is_relieved_and_a_process_has_its_share() {
        let turns = Arc::new(Turns::default());
        let (relieved, seats) = mpsc::channel();
        let watch = thread::spawn({
            let turns = Arc::clone(&turns);
            move || turns.watch(|seat| relieved.send(seat).is_ok())
        });
        let own = nix::unistd::gettid().as_raw().unsigned_abs();
        let mut held = vec![Seat::default()];
        for _ in 0..OF_ONE_PROCESS {
            let seat = held[held.len() - 1];
            assert!(turns.has_turn(seat) && turns.begin(own));
            held.push(seats.recv_timeout(PATIENCE).expect("it is relieved"));
            assert!(!turns.has_turn(seat));
        }
        assert!(!turns.begin(own), "it has had its share");
        assert!(turns.begin(1), "others have not");
        let last = held.pop().unwrap();
        assert!(turns.end(last));
        for seat in held {
            assert!(!turns.end(seat));
        }
        assert!(turns.begin(own) && turns.end(last));
        turns.stop();
        watch.join().unwrap();
    }
}
