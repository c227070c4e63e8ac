//! `inject`: puts a datagram on its way to the client.

use std::{sync::Arc, time::Duration};

use memtun_proto::{
    Failure,
    error::code,
    inject::{Inject, Injected},
};

use super::{Verb, failure, timed_out};
use crate::{
    control::session::{Reply, Session},
    core::{Answer, Condition, Datagram, Delivery, Resource, Wrap, input},
    vnet,
};

impl Verb for Inject {
    type Parsed = (input::Inject, u64);
    const KNOWS_CLOSES: bool = false;

    fn parse(self) -> Result<Self::Parsed, String> {
        let Self { tunnel, datagram, frame, source, destination, vnet, timeout_ms } = self;
        let source = source.map(|source| source.as_str().parse()).transpose()?;
        let destination = destination.map(|address| address.as_str().parse()).transpose()?;
        let vnet = vnet.map(vnet::header_of);
        let inject = input::Inject {
            tunnel: tunnel.as_str().parse()?,
            datagram: Datagram::from(datagram).with_vnet(vnet),
            wrap: if frame { Wrap::Frame } else { Wrap::Ethernet { source, destination } },
        };
        Ok((inject, timeout_ms))
    }

    fn perform((inject, timeout_ms): Self::Parsed, session: &Arc<Session>, reply: Reply<Injected>) {
        if timeout_ms == 0 {
            let injected = session.hub().handle(inject);
            return reply.send(injected.map(fate).map_err(failure));
        }
        let input::Inject { tunnel, datagram, wrap } = inject;
        let injection = session.hub().view(|core| {
            let tunnel = core.find(&tunnel)?;
            core.injection(tunnel, datagram, wrap)
        });
        let injection = match injection {
            Ok(injection) => injection,
            Err(error) => return reply.send(Err(failure(error))),
        };
        // While it waits it is in the memory of who asked.
        let Ok(charge) = session.user().charge_outside(Resource::Memory, injection.memory()) else {
            let message = format!(
                "no memory is left for what uid {} injects; 'memtun limits' shows what is in use",
                session.user().uid()
            );
            return reply.send(Err(Failure::new(code::NO_MEMORY, message)));
        };
        let timeout = Duration::from_millis(timeout_ms);
        session.wait(Condition::Inject(injection), timeout, reply, move |answer| match answer {
            Answer::Injected(injected) => {
                drop(charge);
                injected.map(fate).map_err(failure)
            }
            Answer::Met(_)
            | Answer::Taken(_)
            | Answer::Kept(_)
            | Answer::TimedOut(_)
            | Answer::Gone => {
                Err(timed_out(format_args!("tunnel {tunnel} had no room"), timeout_ms))
            }
        });
    }
}

fn fate(delivery: Delivery) -> Injected {
    match delivery {
        Delivery::Read => Injected { read: true, queued: 0 },
        Delivery::Queued(queued) => Injected { read: false, queued },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ethernet_addresses_are_text() {
        let inject = Inject::new("tap0", &b"\x45"[..]).source("02:00:00:00:00:01");
        let (parsed, _) = inject.parse().unwrap();
        let Wrap::Ethernet { source: Some(source), destination: None } = parsed.wrap else {
            panic!("one was given");
        };
        assert_eq!(source.0, [2, 0, 0, 0, 0, 1]);
        let error =
            Inject::new("tap0", &b"\x45"[..]).source("02:00:00:00:00").parse().err().unwrap();
        assert!(error.contains("02:00:00:00:00"), "{error}");
    }
}
