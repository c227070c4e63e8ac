//! The log of the core's inputs, on its way to a file.
//!
//! # Theory of operation
//!
//! While inputs are logged, the hub queues a copy of each, with its outputs, under the core's lock. The bytes of datagrams are
//! shared, not copied. A thread of its own encodes and writes what is queued ([`Hub::run_input_log`]), so no client waits for a disk.
//!
//! An input that is missing would make all after it worthless. So the log ends where the queue is full or the file cannot be written,
//! and says how it ended. The daemon goes on without it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::PoisonError,
};

use memtun_core::log::{End, Record, digest, weight};
use tracing::warn;

use super::{Hub, State};
use crate::{
    core::{Core, Input, Instant, Output, Resource},
    input_log::InputLog,
    planted,
};

/// Bytes that may wait for the file. As many again may be with the thread that writes.
const MAX_WAITING: usize = 16 << 20;

/// So much is encoded before it is written.
const WRITTEN_AT_ONCE: usize = 1 << 20;

/// What waits to be written.
#[derive(Default)]
pub(super) struct Inputs {
    queue: VecDeque<Waiting>,
    bytes: usize,
    phase: Phase,
    /// Of the edges, when they were looked at last.
    changes: usize,
    charges: BTreeMap<(u32, Resource), usize>,
    /// The thread that writes waits for the next.
    is_awaited: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// Nothing is logged.
    #[default]
    Off,
    On,
    /// What is queued is the rest.
    Ending(End),
}

enum Waiting {
    Input { now: Instant, input: Input, outputs: Vec<Output> },
    Charge { uid: u32, resource: Resource, amount: usize },
}

impl Inputs {
    /// The copy that is to be logged of an input, before the core is given it.
    pub(super) fn copy<I: Clone + Into<Input>>(&mut self, input: &I, core: &Core) -> Option<Input> {
        if self.phase != Phase::On {
            return None;
        }
        self.note_charges(core);
        Some(input.clone().into())
    }

    /// Logs an input with what came of it.
    pub(super) fn push(&mut self, now: Instant, input: Input, outputs: &[Output]) {
        let bytes = size_of::<Waiting>() + weight(&input, outputs);
        if self.phase == Phase::On && self.bytes + bytes > MAX_WAITING {
            self.phase = Phase::Ending(End::TooSlow);
        }
        if self.phase == Phase::On {
            self.bytes += bytes;
            self.queue.push_back(Waiting::Input { now, input, outputs: outputs.to_vec() });
        }
    }

    /// Whether the thread that writes is to be woken; told once.
    pub(super) fn wakes(&mut self) -> bool {
        let has_more = !self.queue.is_empty() || matches!(self.phase, Phase::Ending(_));
        has_more && std::mem::take(&mut self.is_awaited)
    }

    /// Logs what the edges have charged since the last input.
    fn note_charges(&mut self, core: &Core) {
        let changes = core.budget().outside_changes();
        if changes == self.changes {
            return;
        }
        self.changes = changes;
        let held = core.users().flat_map(|user| {
            let held = move |resource| ((user.uid(), resource), user.used_outside(resource));
            Resource::ALL.into_iter().map(held)
        });
        let held: BTreeMap<_, _> = held.filter(|(_, amount)| *amount > 0).collect();
        let before = std::mem::replace(&mut self.charges, held);
        let given_back = before.keys().filter(|key| !self.charges.contains_key(*key));
        let given_back = given_back.map(|key| (*key, 0));
        let taken = self.charges.iter().map(|(key, amount)| (*key, *amount));
        let changed = taken.filter(|(key, amount)| before.get(key) != Some(amount));
        for ((uid, resource), amount) in given_back.chain(changed) {
            self.bytes += size_of::<Waiting>();
            self.queue.push_back(Waiting::Charge { uid, resource, amount });
        }
    }
}

impl Waiting {
    fn encode(self, into: &mut Vec<u8>) {
        let record = match self {
            Self::Input { now, input, outputs } => {
                Record::Input { now, input, outputs: digest(&outputs) }
            }
            Self::Charge { uid, resource, amount } => Record::Charge { uid, resource, amount },
        };
        record.encode(into);
    }
}

impl Hub {
    /// Logs all inputs from now on, which must be the first, by [`run_input_log`](Self::run_input_log).
    pub(crate) fn log_inputs(&self) {
        self.lock().inputs.phase = Phase::On;
    }

    /// Ends the log of inputs, if there is one: what has been logged is still written.
    pub(crate) fn end_input_log(&self) {
        let mut state = self.lock();
        if state.inputs.phase == Phase::On {
            state.inputs.phase = Phase::Ending(End::Stopped);
        }
        let wakes = state.inputs.wakes();
        drop(state);
        if wakes {
            self.logged.notify_one();
        }
    }

    /// Writes inputs to a file that has its beginning, until the log ends; the body of a thread.
    pub(crate) fn run_input_log(&self, mut file: InputLog) {
        let mut queued = VecDeque::new();
        let mut records = Vec::new();
        let end = loop {
            if let Some(end) = self.next_inputs(&mut queued) {
                break end;
            }
            planted::panic_at("input-log");
            while !queued.is_empty() {
                records.clear();
                while records.len() < WRITTEN_AT_ONCE
                    && let Some(waiting) = queued.pop_front()
                {
                    waiting.encode(&mut records);
                }
                if let Err(error) = file.append(&records) {
                    let path = file.path().display();
                    warn!(%path, %error, "writing the log of inputs failed; it ends here, ignoring");
                    self.lock().inputs = Inputs::default();
                    return end_file(&file, End::WriteFailed);
                }
            }
        };
        if end == End::TooSlow {
            let path = file.path().display();
            warn!(%path, "inputs come faster than they can be written; their log ends here, ignoring");
        }
        end_file(&file, end);
    }

    /// Waits for inputs, or for the end, which comes after them.
    fn next_inputs(&self, into: &mut VecDeque<Waiting>) -> Option<End> {
        let mut state = self.lock();
        loop {
            let State { inputs, .. } = &mut *state;
            if !inputs.queue.is_empty() {
                std::mem::swap(into, &mut inputs.queue);
                inputs.bytes = 0;
                return None;
            }
            if let Phase::Ending(end) = inputs.phase {
                inputs.phase = Phase::Off;
                return Some(end);
            }
            inputs.is_awaited = true;
            state = self.logged.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.inputs.is_awaited = false;
        }
    }
}

fn end_file(file: &InputLog, how: End) {
    if let Err(error) = file.end(how) {
        let path = file.path().display();
        warn!(%path, %error, "writing how the log of inputs ended failed, ignoring");
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        sync::{Arc, mpsc},
        thread,
        time::Duration,
    };

    use super::*;
    use crate::{
        core::{Bound, Limits, TunnelId, input},
        input_log::{Next, Reader},
    };

    fn take() -> input::Take {
        input::Take { tunnel: TunnelId(1) }
    }

    fn records(log: &File) -> (Vec<Record>, End) {
        let (mut reader, _) = Reader::new(log).unwrap();
        let mut records = Vec::new();
        while let Next::Record(record) = reader.next().unwrap() {
            records.push(*record);
        }
        (records, reader.end())
    }

    /// A log whose file has its beginning.
    fn log() -> (tempfile::TempDir, InputLog, impl Fn() -> File) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("inputs");
        let mut log = InputLog::create(&path).unwrap();
        log.begin(1, Limits::default()).unwrap();
        (folder, log, move || File::open(&path).unwrap())
    }

    #[test]
    fn log_ends_with_a_gap_when_nobody_writes_in_time() {
        let (_folder, log, read) = log();
        let hub = Hub::new(Core::new(Limits::default(), 1));
        hub.log_inputs();
        let fits = MAX_WAITING / size_of::<Waiting>();
        (0..fits + 10).for_each(|_| drop(hub.handle(take())));
        assert_eq!(hub.lock().inputs.queue.len(), fits);
        hub.run_input_log(log);
        let (records, end) = records(&read());
        assert_eq!((records.len(), end), (fits, End::TooSlow));
        hub.handle(take());
        assert!(hub.lock().inputs.queue.is_empty(), "it has ended");
    }

    #[test]
    fn times_in_the_log_are_those_that_the_core_acts_at() {
        let (_folder, log, read) = log();
        let hub = Hub::new(Core::new(Limits::default(), 1));
        hub.log_inputs();
        let times = [5, 3, 7].map(|ns| Instant::ORIGIN + Duration::from_nanos(ns));
        for now in times {
            let _taken = hub.lock().handle(now, take(), &mut Vec::new());
        }
        hub.end_input_log();
        hub.run_input_log(log);
        let logged = |record: &Record| match record {
            Record::Input { now, .. } => *now,
            Record::Charge { .. } => panic!("{record:?}"),
        };
        let logged: Vec<Instant> = records(&read()).0.iter().map(logged).collect();
        assert_eq!(logged, [times[0], times[0], times[2]]);
    }

    #[test]
    fn log_ends_where_the_file_cannot_be_written() {
        let hub = Hub::new(Core::new(Limits::default(), 1));
        hub.log_inputs();
        hub.handle(take());
        hub.run_input_log(InputLog::of(File::options().write(true).open("/dev/full").unwrap()));
        hub.handle(take());
        assert!(hub.lock().inputs.queue.is_empty(), "it has ended");
    }

    #[test]
    fn what_the_edges_charge_is_logged_before_the_next_input() {
        let (_folder, log, read) = log();
        let connections = Bound { all: 9, user: 5 };
        let hub = Hub::new(Core::new(Limits { connections, ..Limits::default() }, 1));
        hub.log_inputs();
        let user = hub.handle(input::FindUser { uid: 7 });
        let charge = user.charge_outside(Resource::Connections, 2).unwrap();
        hub.handle(take());
        hub.handle(take());
        drop(charge);
        hub.handle(take());
        hub.end_input_log();
        hub.run_input_log(log);
        let (records, end) = records(&read());
        let shown: Vec<_> = records
            .iter()
            .map(|record| match record {
                Record::Input { input, .. } => matches!(input, Input::Take(_)).into(),
                Record::Charge { uid: 7, resource: Resource::Connections, amount } => 10 + *amount,
                Record::Charge { .. } => panic!("{record:?}"),
            })
            .collect();
        assert_eq!((shown, end), (vec![0, 12, 1, 1, 10, 1], End::Stopped));
    }

    #[test]
    fn timer_that_logs_its_inputs_sleeps() {
        let (_folder, log, read) = log();
        let hub = Hub::new(Core::new(Limits::default(), 1));
        hub.log_inputs();
        let (ended, end) = mpsc::channel();
        let threads = [
            thread::spawn({
                let hub = Arc::clone(&hub);
                move || hub.run_timer()
            }),
            thread::spawn({
                let hub = Arc::clone(&hub);
                move || {
                    hub.run_input_log(log);
                    ended.send(()).unwrap();
                }
            }),
        ];
        let length = || read().metadata().unwrap().len();
        let before = length();
        while length() == before {
            thread::yield_now();
        }
        hub.stop();
        hub.end_input_log();
        end.recv().unwrap();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let (records, _) = records(&read());
        assert!(records.len() <= 2, "{} inputs", records.len());
    }
}
