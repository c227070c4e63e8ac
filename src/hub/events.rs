//! Events on their way to observers.
//!
//! Events are queued with their time under the core's lock. A thread of their own tells them ([`Hub::run_observers`]), so no client waits
//! for an observer, however many there are. The queue is bounded. An event that finds no room is counted, and the next event that is
//! told says how many are missing before it.
//!
//! Observers that want the same form of an event share one encoding: see [`Happened::encoded`].

use std::{
    cell::OnceCell,
    collections::VecDeque,
    sync::{Arc, PoisonError},
    time::SystemTime,
};

use bytes::Bytes;

use super::{Hub, State};
use crate::{
    core::{Event, Output},
    planted,
};

/// Bytes of events that may wait, each with what it carries. As many again may be with the thread that tells.
const MAX_BYTES: usize = 4 << 20;

/// Gets told of every event. Must not block: one thread tells all observers.
pub(crate) trait Observer: Send + Sync {
    /// Something happened.
    fn observe(&self, happened: &Happened);
}

/// Something that happened.
#[derive(Debug)]
pub(crate) struct Happened {
    /// When.
    pub at: SystemTime,
    /// What.
    pub event: Event,
    /// How many events before this one are told to nobody, for they came too fast.
    pub missed: u64,
    number: u64,
    encoded: OnceCell<Bytes>,
}

impl Happened {
    /// What `encode` makes of it. Called once: there is one encoding, which all share.
    pub(crate) fn encoded(&self, encode: impl FnOnce(&Self) -> Bytes) -> Bytes {
        self.encoded.get_or_init(|| encode(self)).clone()
    }

    #[cfg(test)]
    pub(crate) fn new(at: SystemTime, event: Event) -> Self {
        Self { at, event, missed: 0, number: 0, encoded: OnceCell::new() }
    }

    #[cfg(test)]
    pub(crate) fn is_encoded(&self) -> bool {
        self.encoded.get().is_some()
    }
}

/// The queue.
#[derive(Default)]
pub(super) struct Events {
    queue: VecDeque<Queued>,
    bytes: usize,
    /// How many have happened, so that an observer is told of none before it came.
    count: u64,
    missed: u64,
    /// The thread that tells waits for the next.
    is_awaited: bool,
}

enum Queued {
    Event(Happened),
    /// Done when what is before it was told.
    Then(Box<dyn FnOnce() + Send>),
}

impl Events {
    fn push(&mut self, at: SystemTime, event: Event) {
        let bytes = size_of(&event);
        self.count += 1;
        if self.bytes + bytes > MAX_BYTES {
            self.missed += 1;
            return;
        }
        self.bytes += bytes;
        let missed = std::mem::take(&mut self.missed);
        let number = self.count;
        let happened = Happened { at, event, missed, number, encoded: OnceCell::new() };
        self.queue.push_back(Queued::Event(happened));
    }

    /// Whether the thread that tells is to be woken; told once.
    fn wakes(&mut self) -> bool {
        !self.queue.is_empty() && std::mem::take(&mut self.is_awaited)
    }
}

/// What an event takes of the queue.
fn size_of(event: &Event) -> usize {
    let carried = match event {
        Event::ToClient { payload, .. }
        | Event::FromClient { payload, .. }
        | Event::ToLink { payload, .. } => payload.len(),
        Event::Opened { command, .. } => command.len(),
        Event::Closed { .. }
        | Event::Attached { .. }
        | Event::Detached { .. }
        | Event::Deleted { .. }
        | Event::Dropped { .. }
        | Event::Link { .. } => 0,
    };
    carried + std::mem::size_of::<Queued>()
}

impl State {
    /// Queues the events among outputs; whether the thread that tells them is to be woken.
    pub(super) fn queue_events(&mut self, outputs: &mut Vec<Output>) -> bool {
        let mut at = None;
        for output in outputs.extract_if(.., |output| matches!(output, Output::Event(_))) {
            if let Output::Event(event) = output {
                self.events.push(*at.get_or_insert_with(super::wall_clock), event);
            }
        }
        self.events.wakes()
    }
}

impl Hub {
    /// Adds an observer, which sees all that happens from now on.
    pub(crate) fn observe(&self, observer: Arc<dyn Observer>) {
        let since = self.lock().events.count;
        self.change_observers(|observers| observers.push((since, observer)));
    }

    /// Removes an observer.
    pub(crate) fn unobserve(&self, observer: &Arc<dyn Observer>) {
        self.change_observers(|observers| {
            observers.retain(|(_, other)| !Arc::ptr_eq(other, observer));
        });
    }

    /// Does something when all that has happened by now was told to observers; by another thread, and it must not block.
    pub(crate) fn after_events(&self, then: impl FnOnce() + Send + 'static) {
        let mut state = self.lock();
        if state.stopping {
            drop(state);
            return then();
        }
        state.events.queue.push_back(Queued::Then(Box::new(then)));
        let wakes = state.events.wakes();
        drop(state);
        if wakes {
            self.happened.notify_one();
        }
    }

    /// Tells observers what happens, in the order in which it does, until [`stop`](Self::stop); the body of the observers' thread.
    pub(crate) fn run_observers(&self) {
        let mut queued = VecDeque::new();
        let mut state = self.lock();
        loop {
            if !state.events.queue.is_empty() {
                std::mem::swap(&mut queued, &mut state.events.queue);
                state.events.bytes = 0;
                drop(state);
                planted::panic_at("observers");
                queued.drain(..).for_each(|queued| self.tell(queued));
                state = self.lock();
            } else if state.stopping {
                return;
            } else {
                state.events.is_awaited = true;
                state = self.happened.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.events.is_awaited = false;
            }
        }
    }

    fn tell(&self, queued: Queued) {
        match queued {
            Queued::Event(happened) => {
                let observers = self.observers.read().unwrap_or_else(PoisonError::into_inner);
                let meant = observers.iter().filter(|(since, _)| happened.number > *since);
                meant.for_each(|(_, observer)| observer.observe(&happened));
            }
            Queued::Then(then) => then(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};

    use super::*;
    use crate::{
        abi::tun::Name,
        core::{Core, FileId, Limits, Mode, TunnelId},
    };

    fn closed(number: u64) -> Event {
        Event::Closed { file: FileId(number) }
    }

    fn passed(length: usize) -> Event {
        let payload = Bytes::from(vec![0; length]);
        let (tunnel, name) = (TunnelId(1), Name::new(b"tun0"));
        Event::FromClient { tunnel, name, mode: Mode::Tun, payload }
    }

    /// Keeps what it is told, and how often it encoded.
    #[derive(Default)]
    struct Notes(Mutex<(Vec<Event>, usize)>);

    impl Observer for Notes {
        fn observe(&self, happened: &Happened) {
            let mut notes = self.0.lock().unwrap();
            notes.0.push(happened.event.clone());
            happened.encoded(|_| {
                notes.1 += 1;
                Bytes::new()
            });
        }
    }

    #[test]
    fn observers_are_told_in_order_and_share_one_encoding() {
        let hub = Hub::new(Core::new(Limits::default(), 1));
        let notes = [Notes::default(), Notes::default(), Notes::default()].map(Arc::new);
        hub.lock().events.push(SystemTime::UNIX_EPOCH, closed(0));
        for notes in &notes {
            hub.observe(Arc::clone(notes) as Arc<dyn Observer>);
        }
        (1..=5).for_each(|number| {
            hub.lock().events.push(SystemTime::UNIX_EPOCH, closed(number));
        });
        let (told, all_told) = mpsc::channel();
        hub.after_events(move || told.send(()).unwrap());
        hub.stop();
        // It tells what is there before it stops.
        hub.run_observers();
        all_told.recv().unwrap();
        let mut encoded = 0;
        for notes in &notes {
            let notes = notes.0.lock().unwrap();
            assert_eq!(notes.0, (1..=5).map(closed).collect::<Vec<_>>());
            encoded += notes.1;
        }
        assert_eq!(encoded, 5, "once for each event");
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let mut events = Events::default();
        let length = 60_000;
        let fits = MAX_BYTES / size_of(&passed(length));
        (0..fits + 3).for_each(|_| events.push(SystemTime::UNIX_EPOCH, passed(length)));
        assert_eq!((events.queue.len(), events.missed), (fits, 3));
        events.bytes = 0;
        events.push(SystemTime::UNIX_EPOCH, passed(1));
        let Some(Queued::Event(last)) = events.queue.pop_back() else { panic!("it is an event") };
        assert_eq!((last.missed, events.missed), (3, 0));
    }
}
