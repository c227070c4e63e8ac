//! The one place where the core meets threads: a mutex around it, and what happens after the mutex is released.
//!
//! # Theory of operation
//!
//! Every thread of the daemon reaches the core through [`Hub::handle`]. It takes the lock, gives the core an input, moves
//! the core's outputs into a buffer of its own, releases the lock, and only then performs them: a reply is a system call,
//! and no system call is made under the lock. Answers to clients go first, the harness and observers after.
//!
//! Outputs of two threads may be performed in another order than they were made. Where order counts it is kept by
//! construction: a datagram is bound to its read and put into its queue under the lock, and a wake-up or a peer's
//! notification only says "look again". Events are queued under the lock too, and told by a thread of their own ([`Observer`]).
//!
//! # Locks
//!
//! A thread that holds more than one takes them in this order:
//!
//! 1. the list of observers, while one comes or goes, and while they are told something;
//! 2. what a peer holds while it takes from its tunnel, or the turn of a network device's queue ([`netdev`](crate::netdev) says more);
//! 3. the core's, here. No other is taken under it;
//! 4. what belongs to one connection, to the waits, to a front end, or to the network namespaces. None of these is held while another
//!    is taken, but for the last;
//! 5. the log's.
//!
//! One timer thread sleeps until the core's next deadline; it is woken only for an earlier one.

mod events;
mod front_end;
mod inputs;

use std::{
    cell::Cell,
    collections::BTreeMap,
    sync::{
        Arc, Condvar, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{self, Duration, SystemTime},
};

use self::{events::Events, inputs::Inputs};
pub(crate) use self::{
    events::{Happened, Observer},
    front_end::{Ended, FrontEnd},
};
use crate::core::{
    Address, Answer, CommandError, Condition, Core, Enter, FileId, Forward, Instant, Interface,
    Keeper, Look, NetdevNews, NetdevRequest, Origin, Output, PeerId, Request, TunnelId, WaitId,
    input,
};
pub(crate) use crate::sys::FileKind;
use crate::{errno::Errno, netns::Networks, panics, planted};

/// The far side of a tunnel, instead of the harness. Must not block.
pub(crate) trait Peer: Send + Sync {
    /// The tunnel has something to take, or is gone. May be called by several threads at a time.
    fn notify(&self);
    /// It is to end. Once this returns it takes nothing from the tunnel.
    fn part(&self);
    /// What it is, for people.
    fn description(&self) -> Description;
}

/// What a peer is: a word, and what else there is to say, such as its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Description {
    /// `socket` or `host`.
    pub kind: &'static str,
    /// More words.
    pub details: Vec<String>,
}

/// The owner of the network devices beside tunnels. Must not block, but where it says so.
pub(crate) trait NetdevOwner: Send + Sync {
    /// Does what the core asks, and answers by [`input::Netdev`]: later, by another thread.
    fn ask(&self, request: NetdevRequest);
    /// Hands the kernel a datagram.
    ///
    /// # Errors
    ///
    /// The kernel's.
    fn forward(&self, forward: &Forward) -> Result<(), Errno>;
    /// Has the core handle a request ([`input::Looked`]) when it knows what it has to: at once, or later by another thread.
    fn look(&self, look: Look, request: Box<Request>);
    /// Gives the core what the kernel has sent by the queue of a file, as much as it wants.
    fn receive(&self, tunnel: TunnelId, file: FileId);
    /// Waits until the core knows how all devices are.
    fn catch_up(&self);
    /// Gives a tunnel another interface, and calls `then` with why not, perhaps by another thread.
    fn switch(&self, tunnel: TunnelId, to: Interface, then: Switched);
    /// Removes the devices, and waits for that.
    fn stop(&self);
}

/// What is done when a tunnel has another interface, or cannot have it.
pub(crate) type Switched = Box<dyn FnOnce(Result<(), String>) + Send>;

/// Whoever waits: what it still waits for can be given up at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waiter(u64);

impl Waiter {
    /// The same, as it keeps what it takes.
    #[must_use]
    pub(crate) fn keeper(self) -> Keeper {
        Keeper(self.0)
    }
}

/// What is done when a wait is over, and whose it is.
struct Pending {
    waiter: Waiter,
    then: Box<dyn FnOnce(Answer) + Send>,
}

/// Front ends that a hub can have.
const MAX_FRONT_ENDS: usize = 4;

/// The core, shared between threads; see the [module](self).
pub(crate) struct Hub {
    state: Mutex<State>,
    timer: Condvar,
    /// For the observers' thread.
    happened: Condvar,
    /// For the thread that logs inputs.
    logged: Condvar,
    front_ends: [OnceLock<Arc<dyn FrontEnd>>; MAX_FRONT_ENDS],
    netdevs: OnceLock<Arc<dyn NetdevOwner>>,
    networks: Networks,
    /// Each with the number of events that there were before it came.
    observers: RwLock<Vec<(u64, Arc<dyn Observer>)>>,
    peers: RwLock<BTreeMap<PeerId, Arc<dyn Peer>>>,
    waits: Mutex<BTreeMap<WaitId, Pending>>,
    /// Says that memory is to be returned to the system, and how far that is.
    trim: (Mutex<Trim>, Condvar),
    /// It has been said.
    trim_asked: AtomicBool,
    last_wait: AtomicU64,
    last_waiter: AtomicU64,
    last_peer: AtomicU32,
}

/// Whether memory is to be returned to the system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Trim {
    #[default]
    No,
    Asked,
    Stopping,
}

/// So much memory must have been given back before it is returned to the system.
const TRIM_AFTER: usize = 8 << 20;
/// And so long ago, for more may follow, or be taken again.
const TRIM_DELAY: Duration = Duration::from_secs(1);

struct State {
    core: Core,
    /// What has happened and was not told yet.
    events: Events,
    /// What went in and was not logged yet.
    inputs: Inputs,
    /// When the timer thread wakes up by itself.
    timer_due: Option<Instant>,
    stopping: bool,
}

/// Threads that are to be woken when the lock is released.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wakes {
    observers: bool,
    input_log: bool,
}

impl State {
    /// Gives the core an input, and moves its outputs into `outputs`, but for events, which are queued.
    fn handle<I: Enter>(
        &mut self,
        now: Instant,
        input: I,
        outputs: &mut Vec<Output>,
    ) -> (I::Answer, Wakes) {
        let copy = self.inputs.copy(&input, &self.core);
        let answer = self.core.handle(now, input);
        planted::panic_at("lock");
        self.core.take_outputs(outputs);
        if let Some(input) = copy {
            // Threads come in another order than that in which they looked at the clock.
            self.inputs.push(self.core.now(), input, outputs);
        }
        let observers = self.queue_events(outputs);
        (answer, Wakes { observers, input_log: self.inputs.wakes() })
    }
}

thread_local! {
    /// Storage for outputs, so that a call does not allocate.
    static SCRATCH: Cell<Vec<Output>> = const { Cell::new(Vec::new()) };
}

impl Hub {
    /// A hub around a core, without front ends.
    #[must_use]
    pub(crate) fn new(core: Core) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                core,
                events: Events::default(),
                inputs: Inputs::default(),
                timer_due: None,
                stopping: false,
            }),
            timer: Condvar::new(),
            happened: Condvar::new(),
            logged: Condvar::new(),
            front_ends: [const { OnceLock::new() }; MAX_FRONT_ENDS],
            netdevs: OnceLock::new(),
            networks: Networks::default(),
            observers: RwLock::default(),
            peers: RwLock::default(),
            waits: Mutex::default(),
            trim: Default::default(),
            trim_asked: AtomicBool::new(false),
            last_wait: AtomicU64::new(0),
            last_waiter: AtomicU64::new(0),
            last_peer: AtomicU32::new(0),
        })
    }

    /// Adds a front end, built with the origin its requests must carry. `None` if there are four already.
    pub(crate) fn add_front_end<F: FrontEnd + 'static>(
        &self,
        build: impl FnOnce(Origin) -> Arc<F>,
    ) -> Option<Arc<F>> {
        let slot = self.front_ends.iter().position(|slot| slot.get().is_none())?;
        let front_end = build(Origin(u8::try_from(slot).ok()?));
        self.front_ends[slot].set(Arc::clone(&front_end) as Arc<dyn FrontEnd>).ok()?;
        Some(front_end)
    }

    /// Gives the core an input, then performs what comes of it.
    pub(crate) fn handle<I: Enter>(&self, input: I) -> I::Answer {
        let mut outputs = SCRATCH.take();
        let now = now();
        let mut state = self.lock();
        let (answer, wakes) = state.handle(now, input, &mut outputs);
        let earlier = match (state.core.poll_timeout(), state.timer_due) {
            (Some(due), Some(sleeps_until)) => (due < sleeps_until).then_some(due),
            (due, None) => due,
            (None, Some(_)) => None,
        };
        if earlier.is_some() {
            state.timer_due = earlier;
        }
        let is_trim_due = state.core.budget().released() >= TRIM_AFTER;
        drop(state);
        if earlier.is_some() {
            self.timer.notify_one();
        }
        self.perform(&mut outputs, wakes);
        if is_trim_due && !self.trim_asked.swap(true, Ordering::Relaxed) {
            self.set_trim(Trim::Asked);
        }
        SCRATCH.set(outputs);
        answer
    }

    /// Looks at the core. The closure runs under the lock: it must not make system calls, nor call the hub again.
    pub(crate) fn view<R>(&self, look: impl FnOnce(&Core) -> R) -> R {
        let state = self.lock();
        let seen = look(&state.core);
        planted::panic_at("lock");
        seen
    }

    /// Somebody who may wait.
    pub(crate) fn new_waiter(&self) -> Waiter {
        Waiter(self.last_waiter.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Calls `then` with the answer when the condition holds or the time is over; at once, by this thread, if it holds now.
    ///
    /// # Errors
    ///
    /// As [`input::Wait`]; `then` is not called then.
    pub(crate) fn wait(
        &self,
        waiter: Waiter,
        condition: Condition,
        timeout: Duration,
        then: impl FnOnce(Answer) + Send + 'static,
    ) -> Result<(), CommandError> {
        let id = WaitId(self.last_wait.fetch_add(1, Ordering::Relaxed) + 1);
        self.lock_waits().insert(id, Pending { waiter, then: Box::new(then) });
        let waiting = self.handle(input::Wait { id, condition, timeout });
        if waiting.is_err() {
            self.lock_waits().remove(&id);
        }
        waiting
    }

    /// Somebody has ended: what it waits for is not done, and what it keeps is given back.
    pub(crate) fn leave(&self, waiter: Waiter) {
        // What was to be done is dropped without the lock: it may be the last part of a connection.
        let given_up: Vec<(WaitId, Pending)> =
            self.lock_waits().extract_if(.., |_, pending| pending.waiter == waiter).collect();
        for (id, _) in given_up {
            self.handle(input::CancelWait { id });
        }
        self.handle(input::ReleaseKept { keeper: waiter.keeper() });
    }

    fn change_observers(&self, change: impl FnOnce(&mut Vec<(u64, Arc<dyn Observer>)>)) {
        let mut observers = self.observers.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut observers);
        // The lock is held until the core knows: the last to come or go decides.
        self.handle(input::Observe { on: !observers.is_empty() });
    }

    /// Gives a tunnel a peer.
    ///
    /// # Errors
    ///
    /// As [`input::SetPeer`].
    pub(crate) fn add_peer(
        &self,
        of: TunnelId,
        peer: Arc<dyn Peer>,
    ) -> Result<PeerId, CommandError> {
        let id = PeerId(self.last_peer.fetch_add(1, Ordering::Relaxed) + 1);
        self.peers.write().unwrap_or_else(PoisonError::into_inner).insert(id, peer);
        let added = self.handle(input::SetPeer { tunnel: of, peer: id });
        if added.is_err() {
            self.peers.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
        }
        added.map(|()| id)
    }

    /// The peer leaves.
    pub(crate) fn remove_peer(&self, id: PeerId) {
        self.handle(input::ClearPeer { peer: id });
        self.peers.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    /// Lets somebody own the network devices; once.
    pub(crate) fn set_netdev_owner(&self, owner: Arc<dyn NetdevOwner>) {
        // There is one daemon around a hub, which does it once.
        let _first = self.netdevs.set(owner);
    }

    /// The owner of the network devices.
    #[must_use]
    pub(crate) fn netdev_owner(&self) -> Option<&Arc<dyn NetdevOwner>> {
        self.netdevs.get()
    }

    /// The network namespaces from which files are open.
    #[must_use]
    pub(crate) fn networks(&self) -> &Networks {
        &self.networks
    }

    /// Waits until the core knows how all network devices are.
    pub(crate) fn catch_up_with_netdevs(&self) {
        self.netdev(|owner| owner.catch_up());
    }

    /// Takes a tunnel's peer away, whatever it is.
    ///
    /// # Errors
    ///
    /// As [`input::Part`].
    pub(crate) fn part(&self, tunnel: Address) -> Result<(), CommandError> {
        if let Some(id) = self.handle(input::Part { tunnel })? {
            if let Some(peer) = self.peer(id) {
                peer.part();
            }
            self.remove_peer(id);
        }
        Ok(())
    }

    /// What a peer is; `None` if it has left.
    #[must_use]
    pub(crate) fn peer_description(&self, id: PeerId) -> Option<Description> {
        self.peer(id).map(|peer| peer.description())
    }

    /// Whether an open file is one of a front end's.
    #[must_use]
    pub(crate) fn owns(&self, file: FileKind) -> bool {
        self.front_ends.iter().filter_map(OnceLock::get).any(|front_end| front_end.owns(file))
    }

    /// Waits until the core knows of every file that a client has closed by now. Not for a thread that serves a front end.
    pub(crate) fn catch_up(&self) {
        for front_end in self.front_ends.iter().filter_map(OnceLock::get) {
            // One that has ended has no news.
            let _known = front_end.catch_up();
        }
    }

    /// Ends waits at their deadlines, until [`stop`](Self::stop); the body of the timer thread.
    pub(crate) fn run_timer(&self) {
        let mut outputs = Vec::new();
        let mut state = self.lock();
        while !state.stopping {
            let ((), wakes) = state.handle(now(), input::Timeout {}, &mut outputs);
            if wakes != Wakes::default() || !outputs.is_empty() {
                planted::panic_at("timer");
                drop(state);
                self.perform(&mut outputs, wakes);
                state = self.lock();
                if state.stopping {
                    return;
                }
            }
            state.timer_due = state.core.poll_timeout();
            state = match state.timer_due {
                None => self.timer.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(due) => {
                    let rest = due.saturating_duration_since(now());
                    self.timer.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Ends the timer's thread, the observers', and the one that returns memory.
    pub(crate) fn stop(&self) {
        self.lock().stopping = true;
        self.timer.notify_one();
        self.happened.notify_one();
        self.set_trim(Trim::Stopping);
    }

    /// Calls `trim` a while after much memory was given back, until [`stop`](Self::stop); the body of a thread that nobody
    /// waits for.
    pub(crate) fn return_memory(&self, trim: impl Fn()) {
        let (state, changed) = &self.trim;
        let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let asked = changed.wait_while(lock(), |state| *state == Trim::No);
            let asked = asked.unwrap_or_else(PoisonError::into_inner);
            let waited =
                changed.wait_timeout_while(asked, TRIM_DELAY, |state| *state != Trim::Stopping);
            let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if *state == Trim::Stopping {
                return;
            }
            *state = Trim::No;
            drop(state);
            trim();
            self.view(|core| core.budget().trimmed());
            self.trim_asked.store(false, Ordering::Relaxed);
        }
    }

    fn set_trim(&self, to: Trim) {
        let (state, changed) = &self.trim;
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        if *state != Trim::Stopping {
            *state = to;
        }
        drop(state);
        changed.notify_all();
    }

    /// Performs outputs: what clients and peers wait for first.
    fn perform(&self, outputs: &mut Vec<Output>, wakes: Wakes) {
        for output in outputs.extract_if(.., |output| !matches!(output, Output::Answer(..))) {
            match output {
                Output::Complete(to, outcome) => {
                    self.front_end(to.origin, |end| end.complete(to.unique, outcome))
                }
                Output::Wake(origin, handle) => self.front_end(origin, |end| end.wake(handle)),
                Output::Notify(peer) => self.notify(peer),
                Output::Netdev(request) => self.netdev(|owner| owner.ask(request)),
                Output::Forward(forward) => {
                    let taken = self
                        .netdevs
                        .get()
                        .map_or(Err(Errno::EBADFD), |owner| owner.forward(&forward));
                    self.handle(input::Netdev { news: NetdevNews::Forwarded(forward, taken) });
                }
                Output::Refresh(look, request) => {
                    self.netdev(|owner| owner.look(look, request));
                }
                Output::Receive(tunnel, file) => {
                    self.netdev(|owner| owner.receive(tunnel, file));
                }
                Output::Left(scope) => self.networks.leave(scope),
                Output::Answer(..) | Output::Event(_) => {}
            }
        }
        for output in outputs.drain(..) {
            if let Output::Answer(wait, answer) = output {
                self.answer(wait, answer);
            }
        }
        if wakes.observers {
            self.happened.notify_one();
        }
        if wakes.input_log {
            self.logged.notify_one();
        }
    }

    /// Without an owner there are no devices that the core could ask for.
    fn netdev(&self, act: impl FnOnce(&dyn NetdevOwner)) {
        if let Some(owner) = self.netdevs.get() {
            act(owner.as_ref());
        }
    }

    fn front_end(&self, origin: Origin, act: impl FnOnce(&dyn FrontEnd)) {
        if let Some(front_end) = self.front_ends.get(usize::from(origin.0)).and_then(OnceLock::get)
        {
            act(front_end.as_ref());
        }
    }

    fn answer(&self, wait: WaitId, answer: Answer) {
        let pending = self.lock_waits().remove(&wait);
        if let Some(Pending { then, .. }) = pending {
            then(answer);
        }
    }

    fn notify(&self, peer: PeerId) {
        if let Some(peer) = self.peer(peer) {
            peer.notify();
        }
    }

    fn peer(&self, id: PeerId) -> Option<Arc<dyn Peer>> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Runs something whose panic costs no more than what this thread does, unless it panics under the core's lock. `None`: it panicked.
    pub(crate) fn contain<R>(&self, act: impl FnOnce() -> R) -> Option<R> {
        let result = panics::contain(act);
        if result.is_none() && self.state.is_poisoned() {
            panics::give_up("it held the lock of the core, whose state may be incomplete");
        }
        result
    }

    /// A panic under the lock is the daemon's end, which needs the core once more.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_waits(&self) -> MutexGuard<'_, BTreeMap<WaitId, Pending>> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[expect(clippy::disallowed_methods, reason = "the hub is the place that reads the clock")]
fn now() -> Instant {
    /// Any moment will do.
    static ORIGIN: LazyLock<time::Instant> = LazyLock::new(time::Instant::now);
    Instant::after_origin(ORIGIN.elapsed())
}

#[expect(clippy::disallowed_methods, reason = "the hub is the place that reads the clock")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;
    use crate::core::{Limits, Resource};

    #[test]
    fn memory_that_was_given_back_is_returned_to_the_system() {
        let hub = Hub::new(Core::new(Limits::default(), 1));
        let (trimmed, trims) = mpsc::channel();
        let thread = thread::spawn({
            let hub = Arc::clone(&hub);
            move || hub.return_memory(|| trimmed.send(()).unwrap())
        });
        let give_back = || {
            let user = hub.handle(input::FindUser { uid: 1 });
            drop(user.charge_outside(Resource::Memory, TRIM_AFTER).unwrap());
            hub.handle(input::Timeout {});
        };
        give_back();
        trims.recv_timeout(Duration::from_secs(60)).expect("it is returned");
        // Perhaps the first time is not quite over.
        let again = (0..600).any(|_| {
            give_back();
            trims.recv_timeout(Duration::from_millis(100)).is_ok()
        });
        assert!(again, "and again");
        hub.stop();
        thread.join().unwrap();
    }
}
