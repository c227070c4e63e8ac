//! What users share: the limit of each resource, for all users and for one, and how much is in use.
//!
//! # Theory of operation
//!
//! A [`Charge`] is a guard: it counts something for a [`User`] until it is dropped. Each thing that takes a resource holds the charge
//! for it: a file, a tunnel, a parked read, a datagram in a queue. So the amount in use is always the sum of what exists, however a
//! thing ends. A charge allocates nothing, and its time does not depend on the amount in use.
//!
//! The counters are atomic, because the edges charge too, without the core's lock: what waits in an outbox also takes memory. Such
//! charges are counted once more by themselves, because a log of the core's inputs must tell of them.
//!
//! A user is the file-system uid that opened the device, or connected to the control socket. Root is a user like others, because in a
//! container everybody may be root.

use alloc::{collections::BTreeMap, sync::Arc};
use core::sync::atomic::{AtomicUsize, Ordering};

use super::Limits;

/// Something of which there is not enough for everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub enum Resource {
    /// Bytes, of datagrams that are kept and of all else that grows.
    Memory,
    /// Open files.
    Files,
    /// Tunnels, deleted ones with untaken datagrams included.
    Tunnels,
    /// Reads that wait for a datagram.
    ParkedReads,
    /// Network namespaces from which files are open.
    Namespaces,
    /// File descriptors of the daemon's, for network devices and attached sockets.
    Descriptors,
    /// Connections to the control socket.
    Connections,
    /// Waits of harnesses.
    Waits,
    /// Answers to ioctls that are being stored in the memory of their callers, each by a thread.
    StoredAnswers,
}

impl Resource {
    /// Each of them.
    pub const ALL: [Self; 9] = [
        Self::Memory,
        Self::Files,
        Self::Tunnels,
        Self::ParkedReads,
        Self::Namespaces,
        Self::Descriptors,
        Self::Connections,
        Self::Waits,
        Self::StoredAnswers,
    ];

    /// The word that stands for it on the control socket.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Files => "files",
            Self::Tunnels => "tunnels",
            Self::ParkedReads => "parked-reads",
            Self::Namespaces => "namespaces",
            Self::Descriptors => "descriptors",
            Self::Connections => "connections",
            Self::Waits => "waits",
            Self::StoredAnswers => "stored-answers",
        }
    }
}

/// How much of a resource there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub struct Bound {
    /// Of all users together.
    pub all: usize,
    /// Of one user.
    pub user: usize,
}

impl Bound {
    /// A quarter for each user, so that one alone leaves something to others.
    #[must_use]
    pub const fn shared(all: usize) -> Self {
        Self { all, user: all.div_ceil(4) }
    }

    /// One user may have all.
    #[must_use]
    pub const fn unshared(all: usize) -> Self {
        Self { all, user: all }
    }
}

/// Why there is no more of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exhausted {
    /// The user has all that one user may have.
    Share,
    /// All is in use.
    All,
}

/// The limits, and what all users have in use.
#[derive(Debug)]
pub struct Budget {
    bounds: [Bound; Resource::ALL.len()],
    used: [AtomicUsize; Resource::ALL.len()],
    /// The most memory in use since [`trimmed`](Self::trimmed).
    peak: AtomicUsize,
    /// How often the edges have charged, or given back.
    outside_changes: AtomicUsize,
}

impl Budget {
    fn new(limits: &Limits) -> Arc<Self> {
        let bounds = Resource::ALL.map(|resource| limits.bound(resource));
        let (used, peak, outside_changes) = Default::default();
        Arc::new(Self { bounds, used, peak, outside_changes })
    }

    /// How much there may be.
    #[must_use]
    pub fn bound(&self, resource: Resource) -> Bound {
        self.bounds[resource as usize]
    }

    /// How much is in use.
    #[must_use]
    pub fn used(&self, resource: Resource) -> usize {
        self.used[resource as usize].load(Ordering::Relaxed)
    }

    /// How much memory has been given back since [`trimmed`](Self::trimmed).
    #[must_use]
    pub fn released(&self) -> usize {
        self.peak.load(Ordering::Relaxed).saturating_sub(self.used(Resource::Memory))
    }

    /// A number that changes whenever somebody outside of the core charges a user, or gives that back.
    #[must_use]
    pub fn outside_changes(&self) -> usize {
        self.outside_changes.load(Ordering::Relaxed)
    }

    /// What was given back is the system's again.
    pub fn trimmed(&self) {
        self.peak.store(self.used(Resource::Memory), Ordering::Relaxed);
    }
}

/// Who opens files or connects, and what is in use for it.
#[derive(Debug)]
pub struct User {
    uid: u32,
    budget: Arc<Budget>,
    used: [AtomicUsize; Resource::ALL.len()],
    /// How much of this the edges have charged.
    outside: [AtomicUsize; Resource::ALL.len()],
}

impl User {
    /// Its number.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// How much it has in use.
    #[must_use]
    pub fn used(&self, resource: Resource) -> usize {
        self.used[resource as usize].load(Ordering::Relaxed)
    }

    /// The budget that it has a share of.
    #[must_use]
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// How much of it is charged by somebody outside of the core.
    #[must_use]
    pub fn used_outside(&self, resource: Resource) -> usize {
        self.outside[resource as usize].load(Ordering::Relaxed)
    }

    /// Takes so much of a resource, for the core.
    ///
    /// # Errors
    ///
    /// [`Exhausted`], and nothing is taken.
    pub(crate) fn charge(
        self: &Arc<Self>,
        resource: Resource,
        amount: usize,
    ) -> Result<Charge, Exhausted> {
        self.nothing_of(resource, false).with(amount, self.budget.bound(resource))
    }

    /// Takes so much of a resource, for somebody outside of the core.
    ///
    /// # Errors
    ///
    /// [`Exhausted`], and nothing is taken.
    pub fn charge_outside(
        self: &Arc<Self>,
        resource: Resource,
        amount: usize,
    ) -> Result<Charge, Exhausted> {
        self.nothing_of(resource, true).with(amount, self.budget.bound(resource))
    }

    /// Takes memory for what was asked for and must be answered, up to twice what there may be otherwise. For somebody outside of
    /// the core.
    ///
    /// # Errors
    ///
    /// [`Exhausted`], and nothing is taken.
    pub fn charge_answer(self: &Arc<Self>, amount: usize) -> Result<Charge, Exhausted> {
        let Bound { all, user } = self.budget.bound(Resource::Memory);
        let twice = Bound { all: all.saturating_mul(2), user: user.saturating_mul(2) };
        self.nothing_of(Resource::Memory, true).with(amount, twice)
    }

    /// Has so much of a resource in use as somebody outside of another core had, who is not here: whatever the limits are.
    pub fn set_outside(&self, resource: Resource, amount: usize) {
        let index = resource as usize;
        let before = self.outside[index].swap(amount, Ordering::Relaxed);
        for used in [&self.used[index], &self.budget.used[index]] {
            used.fetch_add(amount, Ordering::Relaxed);
            used.fetch_sub(before, Ordering::Relaxed);
        }
    }

    fn nothing_of(self: &Arc<Self>, resource: Resource, is_outside: bool) -> Charge {
        Charge { user: Arc::clone(self), amount: 0, resource, is_outside }
    }
}

/// So much of a resource is in use, until this is dropped.
#[derive(Debug)]
pub struct Charge {
    user: Arc<User>,
    amount: u32,
    resource: Resource,
    is_outside: bool,
}

impl Charge {
    /// Whose it is.
    #[must_use]
    pub fn user(&self) -> &Arc<User> {
        &self.user
    }

    /// How much.
    #[must_use]
    pub fn amount(&self) -> usize {
        self.amount as usize
    }

    /// Takes more.
    ///
    /// # Errors
    ///
    /// [`Exhausted`], and nothing is taken.
    pub(crate) fn grow(&mut self, more: usize) -> Result<(), Exhausted> {
        let bound = self.user.budget.bound(self.resource);
        self.take(more, bound)
    }

    fn with(mut self, amount: usize, bound: Bound) -> Result<Self, Exhausted> {
        self.take(amount, bound)?;
        Ok(self)
    }

    fn take(&mut self, more: usize, bound: Bound) -> Result<(), Exhausted> {
        let more = u32::try_from(more).map_err(|_| Exhausted::Share)?;
        let amount = self.amount.checked_add(more).ok_or(Exhausted::Share)?;
        let (index, more) = (self.resource as usize, more as usize);
        let (own, all) = (&self.user.used[index], &self.user.budget.used[index]);
        if own.fetch_add(more, Ordering::Relaxed).saturating_add(more) > bound.user {
            own.fetch_sub(more, Ordering::Relaxed);
            let is_share = bound.user < bound.all;
            return Err(if is_share { Exhausted::Share } else { Exhausted::All });
        }
        let before = all.fetch_add(more, Ordering::Relaxed);
        if before.saturating_add(more) > bound.all {
            all.fetch_sub(more, Ordering::Relaxed);
            own.fetch_sub(more, Ordering::Relaxed);
            return Err(Exhausted::All);
        }
        if self.resource == Resource::Memory {
            let peak = &self.user.budget.peak;
            // Not exact where two do it at a time, and need not be.
            if before + more > peak.load(Ordering::Relaxed) {
                peak.store(before + more, Ordering::Relaxed);
            }
        }
        self.amount = amount;
        if self.is_outside {
            self.user.outside[index].fetch_add(more, Ordering::Relaxed);
            self.user.budget.outside_changes.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let (index, amount) = (self.resource as usize, self.amount());
        self.user.budget.used[index].fetch_sub(amount, Ordering::Relaxed);
        self.user.used[index].fetch_sub(amount, Ordering::Relaxed);
        if self.is_outside {
            self.user.outside[index].fetch_sub(amount, Ordering::Relaxed);
            self.user.budget.outside_changes.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The users that have something in use, or had lately.
#[derive(Debug)]
pub(super) struct Users {
    budget: Arc<Budget>,
    known: BTreeMap<u32, Arc<User>>,
    /// At how many those are forgotten that have nothing.
    tidy_at: usize,
}

impl Users {
    pub(super) fn new(limits: &Limits) -> Self {
        Self { budget: Budget::new(limits), known: BTreeMap::new(), tidy_at: 16 }
    }

    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    pub(super) fn get(&mut self, uid: u32) -> Arc<User> {
        if let Some(user) = self.known.get(&uid) {
            return Arc::clone(user);
        }
        if self.known.len() >= self.tidy_at {
            self.known.retain(|_, user| Arc::strong_count(user) > 1);
            self.tidy_at = (2 * self.known.len()).max(16);
        }
        let (used, outside) = Default::default();
        let user = Arc::new(User { uid, budget: Arc::clone(&self.budget), used, outside });
        self.known.insert(uid, Arc::clone(&user));
        user
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<User>> {
        self.known.values()
    }
}

#[cfg(test)]
mod tests {
    use alloc::{collections::BTreeSet, vec, vec::Vec};

    use super::*;

    fn users(all: usize, user: usize) -> Users {
        Users::new(&Limits { memory: Bound { all, user }, ..Limits::default() })
    }

    #[test]
    fn each_user_has_a_share_and_all_have_a_limit() {
        let mut users = users(100, 60);
        let (one, two) = (users.get(1), users.get(2));
        let memory = Resource::Memory;
        let mut first = one.charge(memory, 50).unwrap();
        assert_eq!(one.charge(memory, 11).map(drop), Err(Exhausted::Share));
        assert_eq!(first.grow(11), Err(Exhausted::Share));
        let second = two.charge(memory, 45).unwrap();
        assert_eq!(first.grow(10), Err(Exhausted::All));
        assert_eq!(two.charge(memory, 6).map(drop), Err(Exhausted::All));
        first.grow(5).unwrap();
        let used = |users: &Users| users.iter().map(|user| user.used(memory)).collect::<Vec<_>>();
        assert_eq!((used(&users), users.budget().used(memory)), (vec![55, 45], 100));
        assert_eq!(two.charge(memory, usize::MAX).map(drop), Err(Exhausted::Share), "of any size");
        drop(first);
        assert_eq!((used(&users), users.budget().used(memory)), (vec![0, 45], 45));
        drop(second);
        assert_eq!(users.budget().used(memory), 0);
    }

    #[test]
    fn an_answer_may_take_as_much_again() {
        let mut users = users(100, 60);
        let user = users.get(1);
        let _kept = user.charge(Resource::Memory, 60).unwrap();
        let answer = user.charge_answer(60).unwrap();
        assert_eq!(user.charge_answer(1).map(drop), Err(Exhausted::Share));
        // One user's answers leave the others their shares.
        let other = users.get(2);
        let others = [other.charge_answer(80).unwrap()];
        assert_eq!(other.charge_answer(1).map(drop), Err(Exhausted::All));
        drop((answer, others));
        assert_eq!(user.used(Resource::Memory), 60);
    }

    #[test]
    fn what_was_given_back_is_known() {
        let mut users = users(100, 100);
        let user = users.get(1);
        let (first, second) =
            (user.charge(Resource::Memory, 70), user.charge(Resource::Memory, 10));
        drop(first);
        assert_eq!(users.budget().released(), 70);
        users.budget().trimmed();
        assert_eq!(users.budget().released(), 0);
        drop(second);
        assert_eq!(users.budget().released(), 10);
    }

    #[test]
    fn users_that_have_nothing_are_forgotten() {
        let mut users = users(100, 100);
        let held = users.get(7).charge(Resource::Files, 1).unwrap();
        for uid in 100..1_000 {
            users.get(uid);
        }
        assert!(users.iter().count() <= 32);
        assert_eq!(users.get(7).used(Resource::Files), held.amount());
    }

    #[test]
    fn resources_have_a_word_each_and_are_numbered_as_listed() {
        let words: BTreeSet<&str> = Resource::ALL.iter().map(|resource| resource.word()).collect();
        assert_eq!(words.len(), Resource::ALL.len());
        assert!(Resource::ALL.iter().enumerate().all(|(at, resource)| *resource as usize == at));
    }
}
