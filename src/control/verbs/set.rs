//! `set`: changes a tunnel from outside, as `ip link set` does an interface.

use std::sync::Arc;

use memtun_proto::set::{Carrier, Done, Link, Set};

use super::{Verb, failure};
use crate::{
    control::session::{Reply, Session},
    core::{Settings, input, parse_name},
};

impl Verb for Set {
    type Parsed = input::Configure;

    fn parse(self) -> Result<Self::Parsed, String> {
        let Self { tunnel, link, mtu, mac, name, carrier, txqueuelen } = self;
        let settings = Settings {
            up: link.map(|link| link == Link::Up),
            mtu,
            hwaddr: mac.map(|mac| mac.as_str().parse()).transpose()?,
            name: name.map(|name| parse_name(name.as_str())).transpose()?,
            carrier: carrier.map(|carrier| carrier == Carrier::On),
            tx_queue_length: txqueuelen,
        };
        Ok(input::Configure { tunnel: tunnel.as_str().parse()?, settings })
    }

    fn perform(configure: Self::Parsed, session: &Arc<Session>, reply: Reply<Done>) {
        let result = session.hub().handle(configure);
        reply.send(result.map(|()| Done {}).map_err(failure));
    }
}
