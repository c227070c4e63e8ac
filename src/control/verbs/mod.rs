//! The effect of each verb: one file each, of the name that its types have in [`memtun_proto`] and its words in `cli`.

mod attach;
mod delete;
mod drop;
mod host;
mod inject;
mod interface;
mod join;
mod limits;
mod list;
mod part;
mod set;
pub(crate) mod take;
mod wait;
mod watch;

use std::{sync::Arc, time::Duration};

use memtun_proto::{Failure, METHODS, Method, error::code, for_each_method};
use serde::Serialize;
use serde_json::Value;

use super::session::{AnyReply, Reply, Session, failure};
use crate::{
    core::{Address, Answer, Condition, Tunnel},
    hub::Hub,
};

/// What a method does in the daemon. The type is its parameters.
pub(crate) trait Verb: Method {
    /// The parameters in the types of the daemon.
    type Parsed;
    /// It is about tunnels and who has them open, so all that clients have closed must be known first. That takes a message
    /// through the kernel, and is spared where only datagrams matter.
    const KNOWS_CLOSES: bool = true;

    /// Reads what is text.
    ///
    /// # Errors
    ///
    /// What is malformed.
    fn parse(self) -> Result<Self::Parsed, String>;

    /// Does it, and answers now or later. Must not block.
    fn perform(parsed: Self::Parsed, session: &Arc<Session>, reply: Reply<Self::Result>);
}

/// Finds the method of a call and performs it.
pub(super) fn dispatch(method: &str, params: Value, session: &Arc<Session>, reply: AnyReply) {
    macro_rules! dispatch {
        ($($verb:ty,)*) => {
            match method {
                $(<$verb>::NAME => perform::<$verb>(params, session, reply),)*
                _ => {
                    let (last, others) = METHODS.split_last().expect("there are methods");
                    let message = format!(
                        "there is no method {method:?}; the methods are {} and {last}",
                        others.join(", ")
                    );
                    reply.fail(Failure::new(code::UNKNOWN_METHOD, message));
                }
            }
        };
    }
    for_each_method!(dispatch);
}

fn perform<V: Verb>(params: Value, session: &Arc<Session>, reply: AnyReply) {
    let parsed = match params {
        // No parameters at all are the same as none of them.
        Value::Null => serde_json::from_value(Value::Object(serde_json::Map::new())),
        Value::Object(_) => serde_json::from_value::<V>(params),
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Err(serde::de::Error::custom("params must be an object"))
        }
    };
    match parsed.map_err(|error| error.to_string()).and_then(V::parse) {
        Ok(parsed) => {
            if V::KNOWS_CLOSES {
                session.hub().catch_up();
            }
            // What the harness has done to a link counts.
            session.hub().catch_up_with_netdevs();
            V::perform(parsed, session, reply.typed());
        }
        Err(error) => {
            reply.fail(Failure::new(code::BAD_PARAMS, format_args!("{}: {error}", V::NAME)))
        }
    }
}

/// Acts when all of these tunnels exist: now, if there is no time to wait.
fn when_they_exist<R: Serialize + Send + 'static>(
    session: &Arc<Session>,
    tunnels: Vec<Address>,
    timeout_ms: u64,
    reply: Reply<R>,
    act: impl FnOnce(&Arc<Hub>) -> Result<R, Failure> + Send + 'static,
) {
    let hub = Arc::clone(session.hub());
    if timeout_ms == 0 {
        return reply.send(act(&hub));
    }
    let condition = Condition::Exist(tunnels.clone());
    session.wait(condition, Duration::from_millis(timeout_ms), reply, move |answer| match answer {
        Answer::Met(_)
        | Answer::Taken(_)
        | Answer::Kept(_)
        | Answer::Injected(_)
        | Answer::Gone => act(&hub),
        Answer::TimedOut(_) => {
            let is_missing = |tunnel: &&Address| {
                hub.view(|core| {
                    core.find(tunnel)
                        .ok()
                        .and_then(|id| core.tunnel(id))
                        .is_none_or(Tunnel::is_gone)
                })
            };
            let missing: Vec<String> = tunnels
                .iter()
                .filter(is_missing)
                .map(|tunnel| format!("tunnel {tunnel}"))
                .collect();
            Err(timed_out(format_args!("no client made {}", missing.join(" and ")), timeout_ms))
        }
    });
}

/// A wait that ran into its deadline.
pub(crate) fn timed_out(what: impl std::fmt::Display, after_ms: u64) -> Failure {
    let after = humantime::format_duration(Duration::from_millis(after_ms));
    Failure::new(code::TIMEOUT, format_args!("{what} within {after}"))
}
