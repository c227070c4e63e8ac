//! `take`: removes what the client wrote.

use std::{fmt::Display, sync::Arc, time::Duration};

use memtun_proto::{
    Failure,
    error::code,
    take::{MAX_COUNT, Take, Taken, TakenDatagram},
};

use super::{Verb, failure, list::peer_view, timed_out};
use crate::{
    control::session::{Reply, Session},
    core::{Address, Answer, Condition, Datagram, Mode, Tunnel, offload},
    vnet,
};

impl Verb for Take {
    type Parsed = (Address, Self);
    const KNOWS_CLOSES: bool = false;

    fn parse(self) -> Result<Self::Parsed, String> {
        Ok((self.tunnel.as_str().parse()?, self))
    }

    fn perform((address, take): Self::Parsed, session: &Arc<Session>, reply: Reply<Taken>) {
        let Self { tunnel: _, count, timeout_ms, segment, keep } = take;
        if !(1..=MAX_COUNT).contains(&count) {
            let message = format!("count is {count}; ask for 1 to {MAX_COUNT} datagrams at a time");
            return reply.send(Err(Failure::new(code::BAD_COUNT, message)));
        }
        let found = session.hub().view(|core| {
            core.find(&address)
                .map(|id| (id, core.tunnel(id).map_or(Mode::Tun, |tunnel| tunnel.mode())))
        });
        let (id, mode) = match found {
            Ok(found) => found,
            Err(error) => return reply.send(Err(failure(error))),
        };
        let timeout = Duration::from_millis(timeout_ms);
        let hub = Arc::clone(session.hub());
        let condition = if keep {
            Condition::Keep(id, count, session.keeper())
        } else {
            Condition::Take(id, count)
        };
        let taken = move |datagrams: Vec<(Option<u64>, Datagram)>| {
            let datagrams = datagrams
                .into_iter()
                .flat_map(|(number, datagram)| {
                    let parts = if segment { segments(datagram, mode) } else { vec![datagram] };
                    parts.into_iter().map(move |datagram| taken_datagram(number, datagram))
                })
                .collect();
            Taken { mode: mode.word().to_owned(), datagrams }
        };
        session.wait(condition, timeout, reply, move |answer| match answer {
            Answer::Taken(datagrams) => {
                Ok(taken(datagrams.into_iter().map(|datagram| (None, datagram)).collect()))
            }
            Answer::Kept(datagrams) => Ok(taken(
                datagrams.into_iter().map(|(number, datagram)| (Some(number), datagram)).collect(),
            )),
            Answer::TimedOut(available) => {
                let peer = hub.view(|core| core.tunnel(id).and_then(Tunnel::peer));
                Err(match peer.and_then(|peer| peer_view(&hub, peer)) {
                    None => timed_out(wrote(&address, available, count), timeout_ms),
                    Some(peer) => {
                        let what = format_args!(
                            "tunnel {address}: its peer, {peer}, gets what the client writes; nothing was left to take"
                        );
                        Failure { code: code::PEER_TAKES.to_owned(), ..timed_out(what, timeout_ms) }
                    }
                })
            }
            Answer::Met(_) | Answer::Injected(_) | Answer::Gone => {
                let left = match count {
                    1 => "no more datagrams".to_owned(),
                    _ => format!("fewer than {count} datagrams"),
                };
                Err(Failure::new(
                    code::GONE,
                    format_args!("tunnel {address} is gone and has {left} to take"),
                ))
            }
        });
    }
}

fn taken_datagram(number: Option<u64>, datagram: Datagram) -> TakenDatagram {
    TakenDatagram {
        number,
        protocol: datagram.protocol(),
        vnet: datagram.vnet().map(vnet::of_header),
        datagram: datagram.payload,
    }
}

/// What is said when not enough came.
pub(crate) fn wrote(tunnel: &Address, available: impl Display, wanted: impl Display) -> String {
    format!("tunnel {tunnel}: the client wrote {available} of {wanted} datagrams")
}

fn segments(datagram: Datagram, mode: Mode) -> Vec<Datagram> {
    match offload::finish(datagram.clone(), mode) {
        Ok(segments) => segments.collect(),
        Err(_) => vec![datagram],
    }
}
