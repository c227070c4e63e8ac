//! Threads that serve one channel in turn: one reads, the others stand by.
//!
//! # Theory of operation
//!
//! While a server works for one client, it may have to wait for another client, or for itself. For example, the memory of an ioctl's
//! caller can be a mapping of the very file that is served; the kernel then asks the server for its content. So a thread calls
//! [`step_aside`] before it touches such memory. A thread that stands by then takes over the reading, and the first thread stands by
//! when it is done. The call wakes one thread; a server that never calls it pays nothing.
//!
//! Invariant: of the threads of a crew one reads, except while it is relieved, and one stands by, unless there is no
//! thread left for it. Of those that come back [`SPARE`] stay.
//!
//! At most [`SHARE`] threads wait for callers of one user. A user whose memory never comes so loses the own ioctls and nobody
//! else's. It takes [`MAX_MEMBERS`] - 1 such callers, of many users, to keep all ioctls from being served. Reads and writes go on
//! even then.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope};

/// How many threads a crew has at most.
const MAX_MEMBERS: usize = 64;
/// How many of them may wait for the memory of one user's callers.
const SHARE: usize = 8;
/// How many of them stand by at most: two, so that ioctls in turn start no thread.
const SPARE: usize = 2;

thread_local! {
    static DUTY: RefCell<Duty> = const { RefCell::new(Duty::None) };
}

/// What a thread does at the moment.
#[derive(Debug)]
enum Duty {
    /// It belongs to no crew, or stands by.
    None,
    /// It reads for this crew.
    Reading(Arc<Crew>),
    /// It has stepped aside for a caller of this user.
    Aside(u32),
}

/// The state that the threads share.
#[derive(Debug, Default)]
struct Crew {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    members: usize,
    standing_by: usize,
    /// Called to take over, and not there yet.
    called: usize,
    /// Too many, and not gone yet.
    dismissed: usize,
    /// For each thread that has stepped aside, the user of the caller.
    aside: Vec<u32>,
    ended: bool,
}

/// Takes steps, each thread those of its own `member()`, until one of them breaks; its result is returned when all threads
/// have ended.
pub(crate) fn run<R, S>(member: impl Fn() -> S + Sync) -> R
where
    R: Send,
    S: FnMut() -> ControlFlow<R>,
{
    let crew = Arc::new(Crew {
        state: Mutex::new(State { members: 1, ..State::default() }),
        ..Crew::default()
    });
    let result = Mutex::new(None);
    thread::scope(|scope| work(&crew, scope, &member, &result, Role::Founder));
    let result = result.into_inner().unwrap_or_else(PoisonError::into_inner);
    result.expect("the threads of a channel end with a result, unless one of them panics")
}

/// Who may leave.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// The thread that the crew was made by: it stays to the end.
    Founder,
    /// A thread of the crew's own.
    Recruit,
}

/// Whoever calls this may wait next for a caller of this user. False: then it must not, for the user has had its share, or nobody
/// can take this thread's place.
pub(crate) fn step_aside(user: u32) -> bool {
    DUTY.with_borrow_mut(|duty| match duty {
        Duty::None | Duty::Aside(_) => true,
        Duty::Reading(crew) if crew.call_next(user) => {
            *duty = Duty::Aside(user);
            true
        }
        Duty::Reading(_) => false,
    })
}

/// The life of a member: it reads until it is relieved, and stands by until it is called.
fn work<'scope, R, S>(
    crew: &Arc<Crew>,
    scope: &'scope Scope<'scope, '_>,
    member: &'scope (impl Fn() -> S + Sync),
    result: &'scope Mutex<Option<R>>,
    role: Role,
) where
    R: Send,
    S: FnMut() -> ControlFlow<R>,
{
    let mut step = member();
    loop {
        for _ in 0..crew.wanted_members() {
            let theirs = Arc::clone(crew);
            let name = thread::current().name().unwrap_or_default().to_owned();
            let spawned = thread::Builder::new().name(name).spawn_scoped(scope, move || {
                if theirs.wait_for_call(Role::Recruit) {
                    work(&theirs, scope, member, result, Role::Recruit);
                }
            });
            if let Err(error) = spawned {
                tracing::warn!(%error, "starting another thread to read the device failed, ignoring");
                crew.lose_member();
            }
        }
        let on_duty = OnDuty::begin(crew);
        while OnDuty::lasts() {
            if let ControlFlow::Break(ended) = step() {
                result.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(ended);
                crew.end();
                return;
            }
        }
        let user = on_duty.end();
        if !crew.comes_back(role, user) || !crew.wait_for_call(role) {
            return;
        }
    }
}

impl Crew {
    /// How many more are needed to stand by, as far as there is room for them; they are counted as if they did.
    fn wanted_members(&self) -> usize {
        let mut state = self.lock();
        if state.standing_by > 0 {
            return 0;
        }
        let wanted = SPARE.min(MAX_MEMBERS - state.members);
        state.members += wanted;
        state.standing_by += wanted;
        wanted
    }

    fn lose_member(&self) {
        let mut state = self.lock();
        state.members -= 1;
        state.standing_by -= 1;
    }

    /// Calls one that stands by, so that this thread can wait for a caller of a user; false if there is none, or none for this user.
    fn call_next(&self, user: u32) -> bool {
        let mut state = self.lock();
        let taken = state.aside.iter().filter(|other| **other == user).count();
        if state.standing_by == 0 || taken >= SHARE {
            return false;
        }
        state.aside.push(user);
        state.standing_by -= 1;
        state.called += 1;
        drop(state);
        self.changed.notify_one();
        true
    }

    /// A thread that had stepped aside for a caller of a user is to stand by; false if there are enough.
    fn comes_back(&self, role: Role, user: Option<u32>) -> bool {
        let mut state = self.lock();
        if let Some(at) = state.aside.iter().position(|other| Some(*other) == user) {
            state.aside.swap_remove(at);
        }
        if state.standing_by < SPARE {
            state.standing_by += 1;
            return true;
        }
        state.members -= 1;
        if role == Role::Recruit {
            return false;
        }
        // One of the others leaves in its place.
        state.dismissed += 1;
        drop(state);
        self.changed.notify_all();
        true
    }

    /// Waits as one of those that stand by; false: this thread is not needed any more.
    fn wait_for_call(&self, role: Role) -> bool {
        let may_leave = role == Role::Recruit;
        let waiting = |state: &mut State| {
            state.called == 0 && !(may_leave && state.dismissed > 0) && !state.ended
        };
        let state = self.changed.wait_while(self.lock(), waiting);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        if state.called > 0 {
            state.called -= 1;
            return true;
        }
        state.dismissed = state.dismissed.saturating_sub(usize::from(may_leave));
        false
    }

    fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// This thread reads for its crew.
struct OnDuty<'a>(&'a Crew);

impl<'a> OnDuty<'a> {
    fn begin(crew: &'a Arc<Crew>) -> Self {
        DUTY.set(Duty::Reading(Arc::clone(crew)));
        Self(crew)
    }

    fn lasts() -> bool {
        DUTY.with_borrow(|duty| matches!(duty, Duty::Reading(_)))
    }

    /// The user for whose caller it stepped aside.
    fn end(self) -> Option<u32> {
        match DUTY.replace(Duty::None) {
            Duty::Aside(user) => Some(user),
            Duty::None | Duty::Reading(_) => None,
        }
    }
}

impl Drop for OnDuty<'_> {
    fn drop(&mut self) {
        DUTY.set(Duty::None);
        if thread::panicking() {
            // Else those that stand by would wait for ever, and the panic with them.
            self.0.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn steps_go_on_while_a_thread_is_held_up() {
        let steps = AtomicUsize::new(0);
        let meeting = Barrier::new(2);
        let result = run(|| {
            || match steps.fetch_add(1, Ordering::SeqCst) {
                0 => {
                    assert!(step_aside(0));
                    meeting.wait();
                    ControlFlow::Continue(())
                }
                1 => {
                    meeting.wait();
                    ControlFlow::Continue(())
                }
                number => ControlFlow::Break(number),
            }
        });
        assert_eq!(result, 2);
    }

    /// A user who has not had its share.
    fn user_of(step: usize) -> u32 {
        u32::try_from(step / SHARE).unwrap()
    }

    #[test]
    fn the_last_one_does_not_step_aside() {
        let (steps, meeting) = (AtomicUsize::new(0), Barrier::new(MAX_MEMBERS));
        let refused = run(|| {
            || {
                let user = user_of(steps.fetch_add(1, Ordering::SeqCst));
                if step_aside(user) {
                    meeting.wait();
                    ControlFlow::Continue(())
                } else {
                    assert!(!step_aside(user + 1), "and still does not");
                    meeting.wait();
                    ControlFlow::Break(true)
                }
            }
        });
        assert!(refused);
    }

    #[test]
    fn a_user_who_has_had_its_share_is_refused_and_others_are_not() {
        let (steps, meeting) = (AtomicUsize::new(0), Barrier::new(SHARE + 2));
        run(|| {
            || match steps.fetch_add(1, Ordering::SeqCst) {
                step if step < SHARE => {
                    assert!(step_aside(1));
                    meeting.wait();
                    ControlFlow::Continue(())
                }
                step if step == SHARE => {
                    assert!(!step_aside(1));
                    assert!(step_aside(2));
                    meeting.wait();
                    ControlFlow::Continue(())
                }
                step if step == SHARE + 1 => {
                    meeting.wait();
                    ControlFlow::Continue(())
                }
                _ => {
                    // When all have come back, the user has its share again.
                    let is_alone = DUTY.with_borrow(|duty| match duty {
                        Duty::Reading(crew) => crew.lock().aside.is_empty(),
                        Duty::None | Duty::Aside(_) => false,
                    });
                    if is_alone { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                }
            }
        });
    }

    #[test]
    fn of_those_that_come_back_few_stay() {
        // Everybody but one is held up at the same time, then all come back.
        let (steps, meeting) = (AtomicUsize::new(0), Barrier::new(MAX_MEMBERS));
        let most = MAX_MEMBERS - 1;
        let members = run(|| {
            || {
                let step = steps.fetch_add(1, Ordering::SeqCst);
                if step < most {
                    assert!(step_aside(user_of(step)));
                    meeting.wait();
                } else if step == most {
                    meeting.wait();
                }
                let members = DUTY.with_borrow(|duty| match duty {
                    Duty::Reading(crew) => Some(crew.lock().members),
                    Duty::None | Duty::Aside(_) => None,
                });
                match members {
                    Some(members) if step > most && members == SPARE + 1 => {
                        ControlFlow::Break(members)
                    }
                    _ => ControlFlow::Continue(()),
                }
            }
        });
        assert_eq!(members, SPARE + 1);
    }

    #[test]
    fn others_step_aside_as_they_like() {
        assert!(step_aside(0));
    }

    #[test]
    fn a_panic_ends_the_crew() {
        let caught = std::panic::catch_unwind(|| {
            run(|| || -> ControlFlow<()> { panic!("on purpose") });
        });
        assert!(caught.is_err());
    }
}
