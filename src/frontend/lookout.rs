//! Looks at other processes in a thread of its own, because such a look may never end.
//!
//! A look at an open file of another process may have to wait for the server of that file's system, and nothing interrupts such a wait.
//! So a separate thread looks, and is given up when it takes too long. It ends when its look ends. Until then no thread looks at that
//! process again. The number of given-up threads has a limit; at the limit no thread looks at all.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use tracing::warn;

use crate::panics;

/// How long a look at one process may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// Threads that have been given up, at one time.
const MAX_GIVEN_UP: usize = 4;

/// The processes that threads have not come back from. A thread holds what its `Weak` points to.
static GIVEN_UP: Lookout = Lookout::new();

/// Looks at each process. One that cannot be looked at in time is left out.
pub(crate) fn look_at<T: Send + 'static>(
    pids: impl IntoIterator<Item = u32>,
    look: impl Fn(u32) -> T + Send + Sync + 'static,
) -> BTreeMap<u32, T> {
    GIVEN_UP.look_at(pids, look)
}

struct Lookout(Mutex<Vec<(u32, Weak<()>)>>);

impl Lookout {
    const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    fn look_at<T: Send + 'static>(
        &self,
        pids: impl IntoIterator<Item = u32>,
        look: impl Fn(u32) -> T + Send + Sync + 'static,
    ) -> BTreeMap<u32, T> {
        let look = Arc::new(look);
        let mut left: BTreeSet<u32> = pids.into_iter().collect();
        let mut found = BTreeMap::new();
        while self.may_look(&mut left) && !left.is_empty() {
            let (seen, sights) = mpsc::channel();
            let alive = Arc::new(());
            let is_alive = Arc::downgrade(&alive);
            let (look, order) = (Arc::clone(&look), left.clone());
            let looker = move || {
                let _alive = alive;
                panics::contain(|| {
                    // When this thread has been given up, nobody hears.
                    order.into_iter().try_for_each(|pid| seen.send((pid, look(pid)))).ok()
                });
            };
            if let Err(error) = thread::Builder::new().name("lookout".to_owned()).spawn(looker) {
                warn!(%error, "starting a thread to look at clients failed, ignoring");
                break;
            }
            loop {
                match sights.recv_timeout(PATIENCE) {
                    Ok((pid, sight)) => {
                        left.remove(&pid);
                        found.insert(pid, sight);
                    }
                    Err(RecvTimeoutError::Timeout) => {
                        if let Some(pid) = left.pop_first() {
                            warn!(pid, "looking at a client's files takes too long, ignoring");
                            self.lock().push((pid, is_alive));
                        }
                        break;
                    }
                    Err(RecvTimeoutError::Disconnected) => return found,
                }
            }
        }
        found
    }

    /// Leaves out the processes that somebody is stuck at; false if there are too many who are.
    fn may_look(&self, pids: &mut BTreeSet<u32>) -> bool {
        let mut given_up = self.lock();
        given_up.retain(|(_, is_alive)| is_alive.strong_count() > 0);
        for (pid, _) in given_up.iter() {
            pids.remove(pid);
        }
        given_up.len() < MAX_GIVEN_UP
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(u32, Weak<()>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Condvar,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    /// Looks that do not come back before they are let go.
    #[derive(Default)]
    struct Gate(Mutex<bool>, Condvar);

    impl Gate {
        fn pass(&self) {
            drop(self.1.wait_while(self.0.lock().unwrap(), |open| !*open).unwrap());
        }

        fn open(&self) {
            *self.0.lock().unwrap() = true;
            self.1.notify_all();
        }
    }

    #[test]
    fn who_does_not_come_back_is_left_out_and_few_are_waited_for() {
        static LOOKOUT: Lookout = Lookout::new();
        let gate = Arc::new(Gate::default());
        let looks = Arc::new(AtomicUsize::new(0));
        let look = |hangs: fn(u32) -> bool| {
            let (gate, looks) = (Arc::clone(&gate), Arc::clone(&looks));
            move |pid: u32| {
                looks.fetch_add(1, Ordering::SeqCst);
                if hangs(pid) {
                    gate.pass();
                }
                pid * 10
            }
        };
        let found = LOOKOUT.look_at([1, 2, 3], look(|pid| pid == 2));
        assert_eq!(found, BTreeMap::from([(1, 10), (3, 30)]));
        let before = looks.load(Ordering::SeqCst);
        assert_eq!(LOOKOUT.look_at([2], look(|_| true)), BTreeMap::new());
        assert_eq!(looks.load(Ordering::SeqCst), before, "somebody is there already");
        assert_eq!(LOOKOUT.look_at(4..20, look(|_| true)), BTreeMap::new());
        assert_eq!(LOOKOUT.lock().len(), MAX_GIVEN_UP);
        assert_eq!(LOOKOUT.look_at([1], look(|_| false)), BTreeMap::new(), "they are too many");
        gate.open();
        while LOOKOUT.lock().iter().any(|(_, is_alive)| is_alive.strong_count() > 0) {
            thread::yield_now();
        }
        assert_eq!(LOOKOUT.look_at([2], look(|_| false)), BTreeMap::from([(2, 20)]));
    }
}
