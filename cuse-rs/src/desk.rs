//! Which requests the threads are handing to the device right now, and which of their callers got a signal meanwhile.
//!
//! # Theory of operation
//!
//! The kernel announces a signal with INTERRUPT. Another thread may read it while the request itself is still being handed to the
//! device. At that moment the device does not know the request yet, or cannot end it yet. After the answer EAGAIN the kernel sends
//! the INTERRUPT again at once (`queue_interrupt` of `fs/fuse/dev.c`), thousands of times for a request that takes 10 ms. So the
//! INTERRUPT leaves a note at the desk of the thread that has the request. That thread looks for a note when the device returns. By
//! then the device has answered the request or parked it, and the INTERRUPT is applied.
//!
//! A request takes its thread one atomic store and one swap.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::abi::INT_REQ_BIT;
use crate::request::RequestId;

/// The bit that stands for the note: no request's id has it.
const NOTE: u64 = INT_REQ_BIT;

/// The desks of all threads that serve a channel.
#[derive(Debug, Default)]
pub(crate) struct Desks(Mutex<Vec<Arc<AtomicU64>>>);

/// Where one thread has its request: the id, or 0 between requests.
#[derive(Debug)]
pub(crate) struct Desk<'a> {
    desks: &'a Desks,
    request: Arc<AtomicU64>,
}

impl Desks {
    /// A desk for one more thread.
    pub(crate) fn add(&self) -> Desk<'_> {
        let request = Arc::default();
        self.lock().push(Arc::clone(&request));
        Desk { desks: self, request }
    }

    /// Leaves a note for the thread that has this request; false if none has it.
    pub(crate) fn leave_note(&self, target: RequestId) -> bool {
        let (request, noted) = (target.0, target.0 | NOTE);
        self.lock().iter().any(|desk| {
            let left = desk.compare_exchange(request, noted, Ordering::AcqRel, Ordering::Acquire);
            left.is_ok() || left == Err(noted)
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<AtomicU64>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Desk<'_> {
    /// Does something about a request; returns whether a note was left meanwhile.
    pub(crate) fn handle(&self, id: RequestId, act: impl FnOnce()) -> bool {
        // An INTERRUPT has the id of its request and the bit more, and is no request itself.
        let request = if id.0 & NOTE == 0 { id.0 } else { 0 };
        self.request.store(request, Ordering::Release);
        act();
        self.request.swap(0, Ordering::AcqRel) & NOTE != 0
    }
}

impl Drop for Desk<'_> {
    fn drop(&mut self) {
        self.desks.lock().retain(|desk| !Arc::ptr_eq(desk, &self.request));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_reaches_the_desk_of_its_request_alone() {
        let desks = Desks::default();
        let (one, other) = (desks.add(), desks.add());
        let (id, idle) = (RequestId(6), RequestId(0));
        assert!(!one.handle(id, || {
            assert!(!other.handle(RequestId(8), || assert!(!desks.leave_note(RequestId(4)))));
        }));
        assert!(other.handle(id, || {
            assert!(desks.leave_note(id));
            assert!(desks.leave_note(id), "one is enough");
            assert!(!one.handle(RequestId(8), || {}));
        }));
        assert!(!desks.leave_note(id), "it is done");
        assert!(!other.handle(id, || {}), "the note is gone");
        let interrupt = RequestId(id.0 | INT_REQ_BIT);
        assert!(!one.handle(interrupt, || assert!(!desks.leave_note(id))));
        drop((one, other));
        assert!(desks.lock().is_empty() && !desks.leave_note(idle));
    }
}
