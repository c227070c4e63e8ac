//! `wait`: until a tunnel is as it should be, instead of sleeping and hoping.

use std::{sync::Arc, time::Duration};

use memtun_proto::wait::{Met, Until, Wait};

use super::{Verb, timed_out};
use crate::{
    control::session::{Reply, Session},
    core::{Address, Answer, Condition},
};

impl Verb for Wait {
    type Parsed = (Address, Until, u64);

    fn parse(self) -> Result<Self::Parsed, String> {
        let Self { tunnel, until, timeout_ms } = self;
        Ok((tunnel.as_str().parse()?, until, timeout_ms))
    }

    fn perform(
        (tunnel, until, timeout_ms): Self::Parsed,
        session: &Arc<Session>,
        reply: Reply<Met>,
    ) {
        let hub = Arc::clone(session.hub());
        let condition = condition(until, tunnel.clone());
        session.wait(
            condition,
            Duration::from_millis(timeout_ms),
            reply,
            move |answer| match answer {
                Answer::Met(id) => {
                    let name = id.and_then(|id| {
                        hub.view(|core| core.tunnel(id).map(|tunnel| *tunnel.name()))
                    });
                    Ok(Met { id: id.map(|id| id.0), name: name.map(|name| name.to_string()) })
                }
                Answer::TimedOut(_)
                | Answer::Gone
                | Answer::Taken(_)
                | Answer::Kept(_)
                | Answer::Injected(_) => Err(timed_out(missing(until, &tunnel), timeout_ms)),
            },
        );
    }
}

fn condition(until: Until, tunnel: Address) -> Condition {
    match until {
        Until::Attached => Condition::Attached(tunnel),
        Until::Detached => Condition::Detached(tunnel),
        Until::Reading => Condition::Reading(tunnel),
        Until::Written => Condition::Written(tunnel),
    }
}

fn missing(until: Until, tunnel: &Address) -> String {
    match until {
        Until::Attached => format!("no client attached to tunnel {tunnel}"),
        Until::Detached => format!("the clients of tunnel {tunnel} did not leave it"),
        Until::Reading => format!("no client was blocked in a read on tunnel {tunnel}"),
        Until::Written => format!("no client wrote a datagram on tunnel {tunnel}"),
    }
}
