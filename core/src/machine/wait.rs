//! What the harness waits for: requests from its side that are answered when something happens, or at their deadline.
//!
//! A wait holds no thread. After each change the core looks at the waits, in the order in which they were made. So of several
//! takers that want the same number of datagrams, the first is served first.

use alloc::{collections::BTreeSet, vec::Vec};

use super::{
    Address, CommandError, Core, Datagram, Delivery, Injection, Instant, Keeper, Output, Tunnel,
    TunnelId,
};

/// One wait, as the hub numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub struct WaitId(pub u64);

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub enum Condition {
    /// A file is attached to the tunnel.
    Attached(Address),
    /// No tunnel answers to the address, or no file is attached to it.
    Detached(Address),
    /// A client is blocked in `read` on the tunnel.
    Reading(Address),
    /// The client wrote a datagram that has not been taken.
    Written(Address),
    /// A living tunnel answers to each of the addresses.
    Exist(Vec<Address>),
    /// So many datagrams can be taken; the answer takes them.
    Take(TunnelId, usize),
    /// The same, but the datagrams are kept for somebody, until they are dropped.
    Keep(TunnelId, usize, Keeper),
    /// There is room for a datagram in the client's queue; the answer puts it there.
    Inject(Injection),
}

/// How a wait ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "log", derive(serde::Serialize))]
pub enum Answer {
    /// What was waited for is the case, on this tunnel (`None`: it is gone, as was waited for).
    Met(Option<TunnelId>),
    /// The datagrams, oldest first.
    Taken(Vec<Datagram>),
    /// The same, each with its number.
    Kept(Vec<(u64, Datagram)>),
    /// What became of the datagram. For [`Condition::Inject`] this is the answer at the deadline too.
    Injected(Result<Delivery, CommandError>),
    /// The deadline came first. For [`Condition::Take`] and [`Condition::Keep`]: how many there were; they stay.
    TimedOut(usize),
    /// For the same two: the tunnel is gone, and the rest of what its client wrote with it.
    Gone,
}

#[derive(Debug)]
struct Wait {
    id: WaitId,
    condition: Condition,
    deadline: Option<Instant>,
}

/// All waits.
#[derive(Debug, Default)]
pub(super) struct Waits {
    /// In the order in which they were asked for.
    asked: Vec<Wait>,
    /// Of those that end by time; the earliest is found at once.
    deadlines: BTreeSet<(Instant, WaitId)>,
}

impl Waits {
    /// When the first of them ends by time.
    pub(super) fn first_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    fn insert(&mut self, at: usize, wait: Wait) {
        self.deadlines.extend(wait.deadline.map(|deadline| (deadline, wait.id)));
        self.asked.insert(at, wait);
    }

    fn remove(&mut self, at: usize) -> Wait {
        let wait = self.asked.remove(at);
        if let Some(deadline) = wait.deadline {
            self.deadlines.remove(&(deadline, wait.id));
        }
        wait
    }

    fn remove_by_id(&mut self, id: WaitId) -> Option<Wait> {
        let at = self.asked.iter().position(|wait| wait.id == id)?;
        Some(self.remove(at))
    }

    /// Removes the one whose deadline came first, if it has come.
    fn remove_due(&mut self, now: Instant) -> Option<Wait> {
        let (_, id) = *self.deadlines.first().filter(|(at, _)| *at <= now)?;
        self.remove_by_id(id)
    }
}

impl Core {
    /// Waits whose deadline has come end.
    pub(super) fn end_due_waits(&mut self) {
        while let Some(Wait { id, condition, .. }) = self.waits.remove_due(self.now) {
            let available = match condition {
                Condition::Take(tunnel, _) | Condition::Keep(tunnel, ..) => {
                    self.tunnels.get(&tunnel).map_or(0, |tunnel| tunnel.written.available())
                }
                Condition::Inject(injection) => {
                    let injected = Answer::Injected(self.finish_injection(injection));
                    self.outputs.push(Output::Answer(id, injected));
                    continue;
                }
                Condition::Attached(_)
                | Condition::Detached(_)
                | Condition::Reading(_)
                | Condition::Written(_)
                | Condition::Exist(_) => 0,
            };
            self.outputs.push(Output::Answer(id, Answer::TimedOut(available)));
        }
    }

    /// Answers when the condition holds, or at the deadline; at once if it holds now.
    ///
    /// # Errors
    ///
    /// [`CommandError::BadCount`], [`CommandError::TooManyWaits`], [`CommandError::UnknownTunnel`] for a tunnel to take
    /// from, and [`CommandError::AmbiguousTunnel`].
    pub(super) fn wait(
        &mut self,
        id: WaitId,
        condition: Condition,
        deadline: Option<Instant>,
    ) -> Result<(), CommandError> {
        match &condition {
            Condition::Take(tunnel, count) | Condition::Keep(tunnel, count, _) => {
                self.tunnel_or_unknown(*tunnel)?;
                let (count, limit) = (*count, self.limits.written_datagrams);
                if !(1..=limit).contains(&count) {
                    return Err(CommandError::BadCount { count, limit });
                }
            }
            Condition::Attached(address)
            | Condition::Detached(address)
            | Condition::Reading(address)
            | Condition::Written(address) => {
                self.refuse_ambiguous(address)?;
            }
            Condition::Inject(_) => {}
            Condition::Exist(addresses) => {
                addresses.iter().try_for_each(|address| self.refuse_ambiguous(address))?;
            }
        }
        if self.waits.asked.len() >= self.limits.waits.all {
            return Err(CommandError::TooManyWaits(self.limits.waits.all));
        }
        self.waits.insert(self.waits.asked.len(), Wait { id, condition, deadline });
        Ok(())
    }

    /// Nobody waits any more.
    pub(super) fn cancel_wait(&mut self, id: WaitId) {
        // It may have been answered meanwhile.
        let _given_up = self.waits.remove_by_id(id);
    }

    /// Answers the waits whose condition holds. Costs nothing while nobody waits.
    pub(super) fn settle_waits(&mut self) {
        let mut at = 0;
        while let Some(wait) = self.waits.asked.get(at) {
            match self.check(&wait.condition) {
                None => at += 1,
                Some(met) => {
                    let Wait { id, condition, deadline } = self.waits.remove(at);
                    let answer = match (met, condition) {
                        (Answer::Met(Some(tunnel)), Condition::Take(_, count)) => {
                            Answer::Taken((0..count).filter_map(|_| self.take(tunnel)).collect())
                        }
                        (Answer::Met(Some(tunnel)), Condition::Keep(_, count, by)) => {
                            Answer::Kept((0..count).filter_map(|_| self.keep(tunnel, by)).collect())
                        }
                        (_, Condition::Inject(injection)) => match self.go_on(injection) {
                            Ok(injected) => Answer::Injected(injected),
                            Err(rest) => {
                                let condition = Condition::Inject(rest);
                                self.waits.insert(at, Wait { id, condition, deadline });
                                at += 1;
                                continue;
                            }
                        },
                        (met, _) => met,
                    };
                    self.outputs.push(Output::Answer(id, answer));
                }
            }
        }
    }

    fn refuse_ambiguous(&self, address: &Address) -> Result<(), CommandError> {
        match self.find(address) {
            Err(error @ CommandError::AmbiguousTunnel { .. }) => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn check(&self, condition: &Condition) -> Option<Answer> {
        // A name may have come to mean several tunnels since; any of them will do.
        let living = |address| {
            self.tunnels.values().filter(move |tunnel| !tunnel.gone && tunnel.is_at(address))
        };
        let met = |tunnel: &Tunnel| Answer::Met(Some(tunnel.id));
        match condition {
            Condition::Attached(address) => {
                living(address).find(|tunnel| tunnel.file_count() > 0).map(met)
            }
            Condition::Detached(address) => match living(address).next_back() {
                None => Some(Answer::Met(None)),
                Some(tunnel) => {
                    living(address).all(|tunnel| tunnel.file_count() == 0).then(|| met(tunnel))
                }
            },
            Condition::Reading(address) => {
                living(address).find(|tunnel| self.has_parked_read(tunnel)).map(met)
            }
            Condition::Written(address) => {
                let has_written = |tunnel: &&Tunnel| tunnel.written.available() > 0;
                let gone =
                    || self.tunnels.values().rfind(|tunnel| tunnel.gone && tunnel.is_at(address));
                living(address).find(has_written).or_else(|| gone().filter(has_written)).map(met)
            }
            Condition::Exist(addresses) => addresses
                .iter()
                .all(|address| living(address).next().is_some())
                .then_some(Answer::Met(None)),
            Condition::Inject(injection) => self.can_go_on(injection).then_some(Answer::Met(None)),
            Condition::Take(id, count) | Condition::Keep(id, count, _) => {
                match self.tunnels.get(id) {
                    Some(tunnel)
                        if tunnel.peer.is_none() && tunnel.written.available() >= *count =>
                    {
                        Some(met(tunnel))
                    }
                    Some(tunnel) if !tunnel.gone => None,
                    Some(_) | None => Some(Answer::Gone),
                }
            }
        }
    }

    fn has_parked_read(&self, tunnel: &Tunnel) -> bool {
        tunnel.files().filter_map(|id| self.files.get(&id)).any(|file| !file.parked.is_empty())
    }
}
