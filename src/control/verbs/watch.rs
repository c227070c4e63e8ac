//! `watch`: tells what happens, as it happens.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::UNIX_EPOCH,
};

use bytes::Bytes;
use memtun_proto::{
    event::{Passed, What},
    watch::{Watch, Watching},
};
use serde::Serialize;
use serde_json::Value;

use super::{Verb, failure};
use crate::{
    control::{
        Outbox, Refused,
        session::{Reply, Session, encode},
    },
    core::{Address, Event, Mode, TunnelId},
    hub::{Happened, Observer},
};

impl Verb for Watch {
    type Parsed = Option<Address>;

    fn parse(self) -> Result<Self::Parsed, String> {
        let Self { tunnel } = self;
        tunnel.map(|tunnel| tunnel.as_str().parse()).transpose()
    }

    fn perform(tunnel: Option<Address>, session: &Arc<Session>, reply: Reply<Watching>) {
        let tunnel = match tunnel
            .map(|address| session.hub().view(|core| core.find(&address)))
            .transpose()
        {
            Ok(tunnel) => tunnel,
            Err(error) => return reply.send(Err(failure(error))),
        };
        let watcher = Watcher::new(reply.id(), tunnel, Arc::clone(session.outbox()));
        // Events may come before the result; both carry the call's id.
        let watching = session.watch(Arc::new(watcher));
        reply.send(watching.map(|()| Watching {}));
    }
}

/// Sends events as lines; what the harness does not read in time is dropped and counted.
///
/// The beginning of a line is the watch's own, the rest is shared by all watches. A watch whose harness does not read needs neither.
struct Watcher {
    /// `{"event":{"watch":ID`
    head: Bytes,
    tunnel: Option<TunnelId>,
    outbox: Arc<Outbox>,
    missed: AtomicU64,
}

impl Watcher {
    fn new(call: &Value, tunnel: Option<TunnelId>, outbox: Arc<Outbox>) -> Self {
        let head = format!("{{\"event\":{{\"watch\":{call}").into();
        Self { head, tunnel, outbox, missed: AtomicU64::new(0) }
    }
}

impl Observer for Watcher {
    fn observe(&self, happened: &Happened) {
        // Whose those were that nobody was told of is not known.
        let missed = self.missed.load(Ordering::Relaxed) + happened.missed;
        if self.tunnel.is_some() && happened.event.tunnel() != self.tunnel {
            return self.missed.store(missed, Ordering::Relaxed);
        }
        let sent = if self.outbox.is_full() {
            Err(Refused::Full)
        } else {
            let head = match missed {
                0 => self.head.clone(),
                _ => [&self.head, format!(",\"missed\":{missed}").as_bytes()].concat().into(),
            };
            self.outbox.try_send([head, happened.encoded(rest_of_line)])
        };
        self.missed.store(if sent.is_ok() { 0 } else { missed + 1 }, Ordering::Relaxed);
    }
}

/// What a [`WatchEvent`](memtun_proto::event::WatchEvent) has after `watch` and `missed`, and the end of its line.
fn rest_of_line(happened: &Happened) -> Bytes {
    #[derive(Serialize)]
    struct Rest {
        time: f64,
        #[serde(flatten)]
        what: What,
    }
    let time = happened.at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let rest = encode(&Rest { time, what: what(&happened.event) });
    // An object and a newline: its fields go on, and so does the line.
    let fields = rest.trim_ascii_end().strip_prefix(b"{").unwrap_or_default();
    [b",", fields, b"}\n"].concat().into()
}

fn what(event: &Event) -> What {
    let passed =
        |tunnel: &TunnelId, name: &crate::abi::tun::Name, mode: &Mode, payload: &Bytes| Passed {
            id: tunnel.0,
            name: name.to_string(),
            mode: mode.word().to_owned(),
            datagram: payload.clone(),
        };
    match event {
        Event::Opened { file, pid, command } => {
            What::Opened { file: file.0, pid: *pid, command: command.clone() }
        }
        Event::Closed { file } => What::Closed { file: file.0 },
        Event::Attached { tunnel, name, mode, file, created } => What::Attached {
            id: tunnel.0,
            name: name.to_string(),
            mode: mode.word().to_owned(),
            file: file.0,
            created: *created,
        },
        Event::Detached { tunnel, name, file, deleted } => {
            What::Detached { id: tunnel.0, name: name.to_string(), file: file.0, deleted: *deleted }
        }
        Event::ToClient { tunnel, name, mode, payload } => {
            What::ToClient(passed(tunnel, name, mode, payload))
        }
        Event::FromClient { tunnel, name, mode, payload } => {
            What::FromClient(passed(tunnel, name, mode, payload))
        }
        Event::ToLink { tunnel, name, mode, payload } => {
            What::ToLink(passed(tunnel, name, mode, payload))
        }
        Event::Dropped { tunnel, name, reason, length } => What::Dropped {
            id: tunnel.0,
            name: name.to_string(),
            reason: reason.word().to_owned(),
            length: *length,
        },
        Event::Deleted { tunnel, name } => What::Deleted { id: tunnel.0, name: name.to_string() },
        Event::Link { tunnel, name, up, carrier } => {
            What::Link { id: tunnel.0, name: name.to_string(), up: *up, carrier: *carrier }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        os::unix::net::UnixStream,
        thread,
        time::Duration,
    };

    use memtun_proto::{event::WatchEvent, line::Line};
    use serde_json::json;

    use super::*;
    use crate::{
        abi::tun::Name,
        core::{Core, Instant, Limits, input},
    };

    fn happened(payload: &Bytes) -> Happened {
        let (tunnel, name, payload) = (TunnelId(1), Name::new(b"tun0"), payload.clone());
        let event = Event::FromClient { tunnel, name, mode: Mode::Tun, payload };
        Happened::new(UNIX_EPOCH + Duration::from_millis(1_500), event)
    }

    fn watcher(call: &Value) -> (Watcher, BufReader<UnixStream>) {
        let (reader, writer) = UnixStream::pair().unwrap();
        let user =
            Core::new(Limits::default(), 1).handle(Instant::ORIGIN, input::FindUser { uid: 1 });
        let outbox = Outbox::new(writer.into(), 1 << 16, user);
        (Watcher::new(call, None, outbox), BufReader::new(reader))
    }

    fn next(lines: &mut BufReader<UnixStream>) -> WatchEvent {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        let Line::Event { event } = serde_json::from_str::<Line<(), WatchEvent>>(&line).unwrap()
        else {
            panic!("{line} is an event");
        };
        event
    }

    #[test]
    fn a_line_is_what_is_read_from_it() {
        let payload = Bytes::from_static(b"\x45\x00");
        for call in [json!(5), json!("a \"b\""), json!(null), json!({"x": [1]})] {
            let (watcher, mut lines) = watcher(&call);
            let mut after_others = happened(&payload);
            after_others.missed = 7;
            watcher.observe(&after_others);
            watcher.observe(&happened(&payload));
            for missed in [7, 0] {
                let event = next(&mut lines);
                assert_eq!((&event.watch, event.time, event.missed), (&call, 1.5, missed));
                let What::FromClient(passed) = event.what else { panic!("it was written") };
                assert_eq!((passed.id, passed.datagram), (1, payload.clone()));
            }
        }
    }

    #[test]
    fn nothing_is_encoded_for_an_outbox_that_is_full() {
        let payload = Bytes::from(vec![0x45; 30_000]);
        let (watcher, mut lines) = watcher(&json!(1));
        let mut sent = 0;
        loop {
            let event = happened(&payload);
            watcher.observe(&event);
            if !event.is_encoded() {
                break;
            }
            sent += 1;
        }
        watcher.observe(&happened(&payload));
        let outbox = Arc::clone(&watcher.outbox);
        let sender = thread::spawn(move || outbox.run());
        for _ in 0..sent {
            assert_eq!(next(&mut lines).missed, 0);
        }
        watcher.observe(&happened(&payload));
        assert_eq!(next(&mut lines).missed, 2);
        watcher.outbox.close();
        sender.join().unwrap();
    }
}
