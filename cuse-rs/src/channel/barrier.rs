//! Waits until all queued messages have been read. A `close` does not wait for its own message, so this is needed.
//!
//! The kernel queues messages in the order of the calls. FUSE_NOTIFY_RETRIEVE makes it queue one more message, behind them. When that
//! message arrives, the others have been served.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::errno::Errno;
use crate::request::RequestId;

/// Messages that came back to us.
#[derive(Debug, Default)]
pub(crate) struct Barrier {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The latest that was sent.
    sent: u64,
    /// The latest that came: those before it came earlier.
    reached: u64,
}

impl Barrier {
    /// Sends a message and waits until it has come back; false if that takes too long, or it cannot be sent.
    pub(crate) fn pass(
        &self,
        patience: Duration,
        send: impl FnOnce(RequestId) -> Result<(), Errno>,
    ) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.sent += 1;
        let own = state.sent;
        // Under the lock, so that they are queued in the order of their numbers. It waits for nobody.
        if let Err(errno) = send(RequestId(own)) {
            tracing::debug!(%errno, "queueing a message failed, ignoring");
            return false;
        }
        let waited = self.changed.wait_timeout_while(state, patience, |state| state.reached < own);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.reached >= own
    }

    /// A message has come back.
    pub(crate) fn reached(&self, id: RequestId) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.reached = state.reached.max(id.0);
        drop(state);
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_passes_when_its_own_message_has_come() {
        let barrier = Barrier::default();
        let patience = Duration::from_secs(10);
        assert!(!barrier.pass(Duration::ZERO, |_| Ok(())), "nothing has come");
        barrier.reached(RequestId(2));
        assert!(barrier.pass(patience, |_| Ok(())), "it came before it was waited for");
        assert!(!barrier.pass(Duration::ZERO, |_| Ok(())));
        assert!(!barrier.pass(patience, |_| Err(Errno::ENODEV)), "the channel has ended");
    }
}
