//! One connection of a harness: its calls, their answers, and what it watches.

use std::{
    marker::PhantomData,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use memtun_proto::{
    Failure,
    error::code,
    line::{Call, Line},
};
use serde::Serialize;
use serde_json::Value;

use super::{Outbox, verbs};
use crate::{
    core::{Answer, CommandError, Condition, Keeper, Resource, User},
    hub::{Hub, Observer, Waiter},
    planted,
};

/// Bytes that may wait for a harness that does not read; then its calls wait, and its events are dropped.
pub(crate) const OUTBOX_LIMIT: usize = 4 << 20;
/// Bytes of a call's id: it is kept while the call is open, and no budget counts it.
const MAX_ID: usize = 1024;
/// Calls of one connection that may be open.
pub(crate) const MAX_OPEN_CALLS: usize = 256;
/// What one connection may watch.
pub(crate) const MAX_WATCHES: usize = 8;

/// One connection; what a command acts through.
pub(crate) struct Session {
    hub: Arc<Hub>,
    user: Arc<User>,
    outbox: Arc<Outbox>,
    /// Calls that are owed an answer, and 1 for as long as more may come. At 0 the outbox is finished.
    open_calls: AtomicUsize,
    waiter: Waiter,
    watches: Mutex<Vec<Arc<dyn Observer>>>,
    /// Something is watched: answers come after the events before them.
    is_watching: AtomicBool,
}

impl Session {
    pub(super) fn new(hub: Arc<Hub>, socket: OwnedFd, user: Arc<User>) -> Arc<Self> {
        let outbox = Outbox::new(socket, OUTBOX_LIMIT, Arc::clone(&user));
        let waiter = hub.new_waiter();
        Arc::new(Self {
            hub,
            user,
            outbox,
            open_calls: AtomicUsize::new(1),
            waiter,
            watches: Mutex::default(),
            is_watching: AtomicBool::new(false),
        })
    }

    /// The hub.
    #[must_use]
    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Who has connected.
    #[must_use]
    pub(crate) fn user(&self) -> &Arc<User> {
        &self.user
    }

    /// Where lines go out.
    #[must_use]
    pub(crate) fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }

    /// One line from the harness.
    pub(super) fn handle_line(self: &Arc<Self>, line: &[u8]) {
        self.outbox.wait_for_room();
        match serde_json::from_slice::<Call>(line) {
            Ok(call) if is_short(&call.id) => self.handle_call(call),
            Ok(_) => self.refuse(
                &Value::Null,
                Failure::new(
                    code::BAD_LINE,
                    format_args!(
                        "the id of a call is null, a number, or a string of at most {MAX_ID} bytes"
                    ),
                ),
            ),
            Err(error) => self.refuse(
                &Value::Null,
                Failure::new(code::BAD_LINE, format_args!("not a call: {error}")),
            ),
        }
    }

    fn handle_call(self: &Arc<Self>, Call { id, method, params }: Call) {
        if self.open_calls.load(Ordering::Relaxed) > MAX_OPEN_CALLS {
            let message = format!(
                "{MAX_OPEN_CALLS} calls are open on this connection, the limit; wait for answers"
            );
            return self.refuse(&id, Failure::new(code::TOO_MANY_CALLS, message));
        }
        self.open_calls.fetch_add(1, Ordering::Relaxed);
        let reply = AnyReply { session: Arc::clone(self), id };
        planted::panic_at(&method);
        verbs::dispatch(&method, params, self, reply);
    }

    pub(super) fn refuse(&self, id: &Value, error: Failure) {
        self.send(&Line::<(), ()>::Error { id: id.clone(), error }, None);
    }

    /// A connection that is closing needs no answer.
    fn send<T: Serialize>(&self, line: &T, descriptor: Option<OwnedFd>) {
        let line = encode(line);
        if !self.is_watching.load(Ordering::Relaxed) {
            let _closing = self.outbox.send(line, descriptor);
            return;
        }
        let outbox = Arc::clone(&self.outbox);
        let Ok(announced) = outbox.announce(line, descriptor) else { return };
        self.hub.after_events(move || {
            let _closing = outbox.send_announced(announced);
        });
    }

    /// Waits for a condition; gives up when the connection ends.
    pub(crate) fn wait<R: Serialize + Send + 'static>(
        self: &Arc<Self>,
        condition: Condition,
        timeout: Duration,
        reply: Reply<R>,
        then: impl FnOnce(Answer) -> Result<R, Failure> + Send + 'static,
    ) {
        let Ok(charge) = self.user.charge_outside(Resource::Waits, 1) else {
            let limit = self.user.budget().bound(Resource::Waits).user;
            return reply.send(Err(failure(CommandError::TooManyWaits(limit))));
        };
        // The reply is shared with the refusal below: one of the two gets it.
        let reply = Arc::new(Mutex::new(Some(reply)));
        let take_reply = |reply: &Mutex<Option<Reply<R>>>| {
            reply.lock().unwrap_or_else(PoisonError::into_inner).take()
        };
        let waiting = self.hub.wait(self.waiter, condition, timeout, {
            let reply = Arc::clone(&reply);
            move |answer| {
                let _until_answered = charge;
                if let Some(reply) = take_reply(&reply) {
                    reply.send(then(answer));
                }
            }
        });
        if let Err(error) = waiting
            && let Some(reply) = take_reply(&reply)
        {
            reply.send(Err(failure(error)));
        }
    }

    /// Lets an observer see what happens until the connection ends.
    ///
    /// # Errors
    ///
    /// Too many of them.
    pub(crate) fn watch(&self, observer: Arc<dyn Observer>) -> Result<(), Failure> {
        let mut watches = self.lock();
        if watches.len() >= MAX_WATCHES {
            let message = format!("{MAX_WATCHES} watches are open on this connection, the limit");
            return Err(Failure::new(code::TOO_MANY_WATCHES, message));
        }
        watches.push(Arc::clone(&observer));
        drop(watches);
        self.is_watching.store(true, Ordering::Relaxed);
        self.hub.observe(observer);
        Ok(())
    }

    /// As whom it keeps datagrams.
    #[must_use]
    pub(crate) fn keeper(&self) -> Keeper {
        self.waiter.keeper()
    }

    /// No more calls come: what waits is given up. Answers that are on their way still go out.
    pub(super) fn close(&self) {
        self.hub.leave(self.waiter);
        let watches = std::mem::take(&mut *self.lock());
        for watch in watches {
            self.hub.unobserve(&watch);
        }
        self.end_call();
    }

    fn end_call(&self) {
        if self.open_calls.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.outbox.finish();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<dyn Observer>>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A refusal of the core, as it goes out.
pub(super) fn failure(error: CommandError) -> Failure {
    Failure::new(error.code(), error)
}

/// A line, as it goes out.
pub(crate) fn encode<T: Serialize>(line: &T) -> Bytes {
    match serde_json::to_vec(line) {
        Ok(mut bytes) => {
            bytes.push(b'\n');
            bytes.into()
        }
        // Only a map with keys that are no strings, or a failing Serialize, ends here; lines have neither.
        Err(error) => Bytes::from(format!(
            "{{\"id\":null,\"error\":{{\"code\":\"internal\",\"message\":{:?}}}}}\n",
            error.to_string()
        )),
    }
}

/// The answer that a call is owed: sent once, from any thread.
pub(crate) struct AnyReply {
    session: Arc<Session>,
    id: Value,
}

impl Drop for AnyReply {
    fn drop(&mut self) {
        // Answered, or given up with its connection.
        self.session.end_call();
    }
}

impl AnyReply {
    /// The same, for a method whose result is known.
    #[must_use]
    pub(crate) fn typed<R: Serialize>(self) -> Reply<R> {
        Reply { any: self, result: PhantomData }
    }

    /// The call failed.
    pub(crate) fn fail(self, error: Failure) {
        self.typed::<()>().send(Err(error));
    }
}

/// The answer that a call of one method is owed.
pub(crate) struct Reply<R> {
    any: AnyReply,
    result: PhantomData<fn(R)>,
}

impl<R: Serialize> Reply<R> {
    /// The call's id.
    #[must_use]
    pub(crate) fn id(&self) -> &Value {
        &self.any.id
    }

    /// Answers.
    pub(crate) fn send(self, result: Result<R, Failure>) {
        self.finish(result, None);
    }

    /// Answers, and passes a descriptor with the answer.
    pub(crate) fn send_with(self, result: R, descriptor: OwnedFd) {
        self.finish(Ok(result), Some(descriptor));
    }

    fn finish(self, result: Result<R, Failure>, descriptor: Option<OwnedFd>) {
        let id = self.any.id.clone();
        let line: Line<R, ()> = match result {
            Ok(result) => Line::Result { id, result },
            Err(error) => Line::Error { id, error },
        };
        self.any.session.send(&line, descriptor);
    }
}

/// An id that may be kept: parsed, a structure takes many times the bytes of its text.
fn is_short(id: &Value) -> bool {
    match id {
        Value::Null | Value::Number(_) => true,
        Value::String(text) => text.len() <= MAX_ID,
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => false,
    }
}
