//! Answers to ioctls that store something in the caller's memory, given by another thread than the one that served the ioctl.
//!
//! On a file the server itself stores the answer, and the caller's memory may never arrive. The thread that serves an ioctl lets
//! another thread serve the file meanwhile. But a call may have had to wait, for example for a network device. The thread that ends the
//! wait has other work, so a separate thread stores the answer. There is one such thread for each caller whose memory does not arrive,
//! with a limit for each user, so that one user takes none from the others.

use std::{
    cell::Cell,
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use cuse_rs::{Channel, Errno, RequestId};
use tracing::warn;

use crate::core::IoctlOutput;

/// Callers of one user whose memory may be waited for at a time.
const OF_ONE_USER: usize = 16;
/// Callers of all users.
const OF_ALL: usize = 256;

thread_local! {
    /// The ioctl that this thread is asking the core.
    static ASKED: Cell<Option<RequestId>> = const { Cell::new(None) };
}

/// The answers of one device.
#[derive(Debug, Default)]
pub(super) struct Stores(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The users of those whose calls have not been answered.
    callers: BTreeMap<RequestId, u32>,
    /// How many threads store for a user.
    threads: BTreeMap<u32, usize>,
}

impl Stores {
    /// Asks the core what a caller wants to know. Answered meanwhile by this thread, it may wait for the caller.
    pub(super) fn ask(&self, id: RequestId, uid: u32, ask: impl FnOnce()) {
        self.lock().callers.insert(id, uid);
        ASKED.set(Some(id));
        ask();
        ASKED.set(None);
    }

    /// Answers a call; not by this thread, if it has not asked.
    pub(super) fn answer(
        self: &Arc<Self>,
        channel: &Arc<Channel>,
        id: RequestId,
        result: i32,
        output: IoctlOutput,
    ) {
        let uid = self.lock().callers.remove(&id);
        let Some(uid) = uid.filter(|_| ASKED.get() != Some(id)) else {
            channel.reply_ioctl(id).done(result, output.as_bytes());
            return;
        };
        if !self.begin(uid) {
            channel.reply_ioctl(id).error(Errno::ENOMEM);
            return;
        }
        let (this, to) = (Arc::clone(self), Arc::clone(channel));
        let stored = thread::Builder::new().name("store".to_owned()).spawn(move || {
            to.reply_ioctl(id).done(result, output.as_bytes());
            this.end(uid);
        });
        if let Err(error) = stored {
            warn!(%error, "no thread to answer an ioctl, answering ENOMEM");
            self.end(uid);
            channel.reply_ioctl(id).error(Errno::ENOMEM);
        }
    }

    fn begin(&self, uid: u32) -> bool {
        let mut state = self.lock();
        let all: usize = state.threads.values().sum();
        let of_user = state.threads.entry(uid).or_default();
        let has_room = *of_user < OF_ONE_USER && all < OF_ALL;
        *of_user += usize::from(has_room);
        has_room
    }

    fn end(&self, uid: u32) {
        let mut state = self.lock();
        if let Some(threads) = state.threads.get_mut(&uid) {
            *threads -= 1;
            if *threads == 0 {
                state.threads.remove(&uid);
            }
        }
    }

    /// A call was answered with nothing to store.
    pub(super) fn forget(&self, id: RequestId) {
        self.lock().callers.remove(&id);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_does_not_take_the_others_threads() {
        let stores = Stores::default();
        assert_eq!((0..100).filter(|_| stores.begin(7)).count(), OF_ONE_USER);
        assert!(stores.begin(8));
        stores.end(7);
        assert!(stores.begin(7) && !stores.begin(7));
        let all = (100..200).flat_map(|uid| [uid; 100]).filter(|uid| stores.begin(*uid)).count();
        assert_eq!(all + OF_ONE_USER + 1, OF_ALL);
    }
}
