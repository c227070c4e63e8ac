//! What the harness waits for: requests from its side that are answered when something happens, or at their deadline.
//!
//! A wait holds no thread. After each input the core looks at the waits that are about what may have changed, in the order in which
//! they were made. So of several takers that want the same number of datagrams, the first is served first. While a wait is open, the
//! tables of tunnels and files remember which of them were touched. A wait that takes more datagrams than there are is passed over.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec,
    vec::Vec,
};

use super::{
    Address, CommandError, Core, Datagram, Delivery, Injection, Instant, Keeper, Output, Tunnel,
    TunnelId,
};
use crate::abi::tun::Name;

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

/// What a wait is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Tunnel(TunnelId),
    /// All tunnels of a name, in any scope.
    Name(Name),
}

impl From<&Address> for Subject {
    fn from(address: &Address) -> Self {
        match address {
            Address::Id(id) => Self::Tunnel(*id),
            Address::Name(name) | Address::Scoped(name, _) => Self::Name(*name),
        }
    }
}

impl Condition {
    /// What it is about, and how many datagrams have to be there before it can hold.
    fn subjects(&self) -> (Vec<Subject>, usize) {
        match self {
            Self::Attached(address)
            | Self::Detached(address)
            | Self::Reading(address)
            | Self::Written(address) => (vec![address.into()], 0),
            Self::Exist(addresses) => (addresses.iter().map(Subject::from).collect(), 0),
            Self::Take(tunnel, count) | Self::Keep(tunnel, count, _) => {
                (vec![Subject::Tunnel(*tunnel)], *count)
            }
            Self::Inject(injection) => (vec![Subject::Tunnel(injection.tunnel())], 0),
        }
    }
}

/// A wait's number: their order is that in which they were asked for.
type Turn = u64;

/// All waits.
#[derive(Debug, Default)]
pub(super) struct Waits {
    asked: BTreeMap<Turn, Wait>,
    turns: BTreeMap<WaitId, Turn>,
    /// Of those that end by time; the earliest is found at once.
    deadlines: BTreeSet<(Instant, WaitId)>,
    /// By what they are about, and how many datagrams they want.
    subjects: BTreeSet<(Subject, usize, Turn)>,
    /// There were waits when this was looked at last: what changes is remembered.
    is_watching: bool,
    /// Those that nobody has looked at.
    fresh: Vec<Turn>,
    /// Names that a tunnel has had until now.
    names: Vec<Name>,
    last: Turn,
    /// How often the condition of a wait was looked at.
    #[cfg(test)]
    pub(super) looks: usize,
}

impl Waits {
    /// When the first of them ends by time.
    pub(super) fn first_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// A tunnel does not have a name any more.
    pub(super) fn name_changed(&mut self, name: Name) {
        if self.is_watching {
            self.names.push(name);
        }
    }

    fn insert(&mut self, turn: Turn, wait: Wait) {
        let (subjects, count) = wait.condition.subjects();
        self.subjects.extend(subjects.into_iter().map(|subject| (subject, count, turn)));
        self.deadlines.extend(wait.deadline.map(|deadline| (deadline, wait.id)));
        self.turns.insert(wait.id, turn);
        self.asked.insert(turn, wait);
    }

    fn remove(&mut self, turn: Turn) -> Option<Wait> {
        let wait = self.asked.remove(&turn)?;
        self.turns.remove(&wait.id);
        let (subjects, count) = wait.condition.subjects();
        for subject in subjects {
            self.subjects.remove(&(subject, count, turn));
        }
        if let Some(deadline) = wait.deadline {
            self.deadlines.remove(&(deadline, wait.id));
        }
        Some(wait)
    }

    fn remove_by_id(&mut self, id: WaitId) -> Option<Wait> {
        self.remove(*self.turns.get(&id)?)
    }

    /// Removes the one whose deadline came first, if it has come.
    fn remove_due(&mut self, now: Instant) -> Option<Wait> {
        let (_, id) = *self.deadlines.first().filter(|(at, _)| *at <= now)?;
        self.remove_by_id(id)
    }

    /// Those about something that has so many datagrams.
    fn about(&self, subject: Subject, available: usize) -> impl Iterator<Item = Turn> {
        self.subjects
            .range((subject, 0, 0)..=(subject, available, Turn::MAX))
            .map(|(.., turn)| *turn)
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
        self.watch(true);
        self.waits.last += 1;
        self.waits.fresh.push(self.waits.last);
        self.waits.insert(self.waits.last, Wait { id, condition, deadline });
        Ok(())
    }

    /// Nobody waits any more.
    pub(super) fn cancel_wait(&mut self, id: WaitId) {
        // It may have been answered meanwhile.
        let _given_up = self.waits.remove_by_id(id);
    }

    /// Answers the waits whose condition holds. Costs nothing while nobody waits.
    pub(super) fn settle_waits(&mut self) {
        if self.waits.is_watching {
            self.settle_touched();
        }
    }

    #[cold]
    fn settle_touched(&mut self) {
        // What one takes or sends may be what another waits for.
        loop {
            let touched = self.touched_waits();
            if touched.is_empty() {
                break;
            }
            touched.into_iter().for_each(|turn| self.settle(turn));
        }
        if self.waits.asked.is_empty() {
            self.watch(false);
        }
    }

    fn watch(&mut self, is_watched: bool) {
        if self.waits.is_watching != is_watched {
            self.waits.is_watching = is_watched;
            self.tunnels.watch(is_watched);
            self.files.watch(is_watched);
        }
    }

    /// The waits whose condition may hold by now, in the order in which they were made.
    fn touched_waits(&mut self) -> BTreeSet<Turn> {
        let mut turns: BTreeSet<Turn> =
            core::mem::take(&mut self.waits.fresh).into_iter().collect();
        for name in core::mem::take(&mut self.waits.names) {
            turns.extend(self.waits.about(Subject::Name(name), usize::MAX));
        }
        let mut touched: BTreeSet<TunnelId> = self.tunnels.take_touched().into_iter().collect();
        for file in self.files.take_touched() {
            touched.extend(self.files.get(&file).and_then(|file| file.tunnel));
        }
        for id in touched {
            let tunnel = self.tunnels.get(&id);
            let living = tunnel.filter(|tunnel| !tunnel.gone);
            let available = living.map_or(usize::MAX, |tunnel| tunnel.written.available());
            turns.extend(self.waits.about(Subject::Tunnel(id), available));
            if let Some(tunnel) = tunnel {
                turns.extend(self.waits.about(Subject::Name(tunnel.name), usize::MAX));
            }
        }
        turns
    }

    /// Answers a wait if its condition holds.
    fn settle(&mut self, turn: Turn) {
        #[cfg(test)]
        {
            self.waits.looks += 1;
        }
        let Some(met) = self.waits.asked.get(&turn).and_then(|wait| self.check(&wait.condition))
        else {
            return;
        };
        let Some(Wait { id, condition, deadline }) = self.waits.remove(turn) else { return };
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
                    return self.waits.insert(turn, Wait { id, condition, deadline });
                }
            },
            (met, _) => met,
        };
        self.outputs.push(Output::Answer(id, answer));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        FileId, input,
        machine::rig::{Rig, flags::TUN_NO_PI},
    };

    #[test]
    fn only_waits_about_what_has_changed_are_looked_at() {
        let mut rig = Rig::new();
        let (busy, tunnel) = rig.attached("busy", TUN_NO_PI);
        let (_, idle) = rig.attached("idle", TUN_NO_PI);
        let mut waits = 0;
        let mut wait = |rig: &mut Rig, condition| {
            waits += 1;
            rig.wait(waits, condition, 1_000).unwrap();
        };
        let named = |name: &str| Address::Name(Name::new(name.as_bytes()));
        for _ in 0..100 {
            wait(&mut rig, Condition::Take(idle, 2));
            wait(&mut rig, Condition::Written(named("idle")));
            wait(&mut rig, Condition::Exist(vec![named("another")]));
            wait(&mut rig, Condition::Take(tunnel, 1_000));
        }
        let looks = |rig: &mut Rig, act: fn(&mut Rig, FileId)| {
            let before = rig.core.waits.looks;
            let file = rig.core.files().nth(1).expect("there are two").id();
            act(rig, file);
            rig.core.waits.looks - before
        };
        let write = |rig: &mut Rig, file| assert_eq!(rig.write(file, &[0x45]), Ok(1));
        let before = rig.core.waits.looks;
        write(&mut rig, busy);
        rig.inject(tunnel, &[0x45]).unwrap();
        assert_eq!(rig.core.waits.looks, before, "those of the tunnel want more");
        assert_eq!(looks(&mut rig, write), 100, "those that want one");
        assert_eq!(looks(&mut rig, write), 100, "those that want two");
        assert!(rig.answer(1).is_some() && rig.answer(5).is_none(), "the first is served first");
        let attach = |rig: &mut Rig, _| assert!(rig.attached("another", TUN_NO_PI).1 > TunnelId(0));
        assert_eq!(looks(&mut rig, attach), 100);
        assert_eq!(looks(&mut rig, |rig, file| rig.close(file)), 99);
        assert_eq!(rig.answer(5), Some(Answer::Gone));
    }

    #[test]
    fn waits_of_a_tunnel_that_is_named_anew_are_looked_at() {
        let mut rig = Rig::new();
        let (_, tunnel) = rig.attached("a", TUN_NO_PI);
        let named = |name: &str| Address::Name(Name::new(name.as_bytes()));
        rig.wait(1, Condition::Detached(named("a")), 100).unwrap();
        rig.wait(2, Condition::Attached(named("b")), 100).unwrap();
        let name = Some(Name::new(b"b"));
        rig.configure(tunnel, &super::super::Settings { name, ..Default::default() }).unwrap();
        assert_eq!(rig.answer(1), Some(Answer::Met(None)));
        assert_eq!(rig.answer(2), Some(Answer::Met(Some(tunnel))));
        assert!(!rig.core.waits.is_watching, "nothing is remembered for nobody");
        rig.wait(3, Condition::Take(tunnel, 1), 100).unwrap();
        rig.handle(input::CancelWait { id: WaitId(3) });
        assert!(!rig.core.waits.is_watching);
    }
}
