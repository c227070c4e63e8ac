//! What goes into the core: one door, [`Core::handle`], for everything that changes it.
//!
//! An input comes with its time, and nothing else decides what it does. So the log of a core's inputs and their times, given to another
//! core with the same limits and seed, gives the same outputs and answers, bit for bit.
//!
//! What the edges charge to users (`budget`) is no input, because nothing comes of it at once. A log has it in records of its own, with
//! what was charged before each input. So the two cores differ only if a budget runs out by what an edge charges during an input.

use alloc::{sync::Arc, vec::Vec};
use core::time::Duration;

use bytes::Bytes;

use super::{
    Address, Admission, Condition, Core, Datagram, Delivery, FileId, Instant, Interface, Keeper,
    NetdevNews, Origin, PeerId, Request, RequestId, Settings, Switch, TunnelId, User, WaitId, Wrap,
    harness::CommandError, to_client::Sender,
};

/// Something that the core can be given.
pub trait Enter: Clone + Into<Input> {
    /// What the core says to it at once. What it leads to later comes as outputs.
    type Answer;

    /// Acts on the core; only [`Core::handle`] calls it.
    #[doc(hidden)]
    fn enter(self, core: &mut Core) -> Self::Answer;
}

impl Core {
    /// Gives the core an input. Whatever is to be done now is among the [outputs](Self::take_outputs).
    ///
    /// A time before that of the last input counts as that.
    pub fn handle<I: Enter>(&mut self, now: Instant, input: I) -> I::Answer {
        // Threads may come in another order than that in which they looked at the clock.
        self.now = self.now.max(now);
        let answer = input.enter(self);
        self.settle_waits();
        answer
    }

    /// The time of the last input.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.now
    }
}

/// Declares inputs: a structure each, a variant of [`Input`], and the function that acts on it.
macro_rules! inputs {
    ($(
        $(#[doc = $doc:literal])*
        $name:ident { $($(#[$field_attribute:meta])* $field:ident: $type:ty,)* } -> $answer:ty
            = |$core:ident| $act:expr;
    )*) => {
        $(
            $(#[doc = $doc])*
            #[derive(Clone, Debug)]
            #[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
            pub struct $name {
                $($(#[$field_attribute])* pub $field: $type,)*
            }

            impl From<$name> for Input {
                fn from(input: $name) -> Self {
                    Self::$name(input)
                }
            }

            impl Enter for $name {
                type Answer = $answer;

                fn enter(self, $core: &mut Core) -> $answer {
                    let Self { $($field),* } = self;
                    $act
                }
            }
        )*

        /// Any input, as a log has them.
        #[derive(Clone, Debug)]
        #[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
        #[non_exhaustive]
        pub enum Input {
            /// A client asks something.
            Request(Request),
            $($(#[doc = $doc])* $name($name),)*
        }

        #[cfg(test)]
        impl Input {
            /// Of each variant.
            pub(super) const NAMES: &[&str] = &["Request", $(stringify!($name)),*];
        }

        impl Enter for Input {
            type Answer = ();

            fn enter(self, core: &mut Core) {
                match self {
                    Self::Request(input) => input.enter(core),
                    $(Self::$name(input) => drop(input.enter(core)),)*
                }
            }
        }
    };
}

impl Enter for Request {
    type Answer = ();

    fn enter(self, core: &mut Core) {
        core.request(self);
    }
}

impl From<Request> for Input {
    fn from(request: Request) -> Self {
        Self::Request(request)
    }
}

inputs! {
    /// A client's request again, now that its tunnel's network device has been looked at ([`Output::Refresh`](super::Output::Refresh)).
    Looked {
        /// What the client asks.
        request: Request,
    } -> () = |core| core.perform_in_turn(request);

    /// News of the network device beside a tunnel: what was asked for, or what has changed.
    Netdev {
        /// The news.
        news: NetdevNews,
    } -> () = |core| core.handle_netdev(news);

    /// The kernel has sent a datagram by the queue of a file. Says whether more are wanted.
    NetdevDatagram {
        /// The tunnel.
        tunnel: TunnelId,
        /// The file.
        queue: FileId,
        /// What it has sent, headers included.
        #[cfg_attr(feature = "log", serde(with = "crate::serial"))]
        bytes: Bytes,
    } -> bool = |core| core.handle_netdev_datagram(tunnel, queue, bytes);

    /// What new tunnels have beside them.
    SetInterfacePolicy {
        /// It.
        policy: Interface,
    } -> () = |core| core.set_interface_policy(policy);

    /// A tunnel is to have another interface: says what that takes.
    SwitchInterface {
        /// The tunnel.
        tunnel: TunnelId,
        /// It.
        to: Interface,
    } -> Result<Switch, CommandError> = |core| core.begin_switch(tunnel, to);

    /// A tunnel has another interface beside it.
    SetInterface {
        /// The tunnel.
        tunnel: TunnelId,
        /// It.
        interface: Interface,
    } -> () = |core| core.set_interface(tunnel, interface);

    /// The caller of a request got a signal: a parked read ends with `EINTR`. False if the request is not known here: it
    /// has been answered, or is still to come.
    Cancel {
        /// The request.
        request: RequestId,
    } -> bool = |core| core.cancel(request);

    /// The answer to a request did not reach its client, which has died: a file that it opened is closed.
    Undelivered {
        /// The request.
        request: RequestId,
    } -> () = |core| core.take_back(request);

    /// A front end that learns whether its answers reach their clients says so, once, before its first request.
    ///
    /// From then on it says of *each* request of this origin that was completed ([`Output::Complete`](super::Output::Complete)) whether
    /// the answer reached its client, by [`Answered`]: also of errors, and in whatever order. Until then the outcome is reserved, as if
    /// the call had not been made yet:
    ///
    /// - What a write wrote is seen by nobody. Later writes of the tunnel, of any front end, wait behind it.
    /// - What a read read is in the queue for nobody else. It comes back as the oldest if the client did not get it.
    /// - The file of an open, and the tunnel that a TUNSETIFF made, are not shown. All requests for that file wait.
    /// - TUNSETIFF and TUNSETQUEUE take effect when their outcome has reached the client.
    /// - A close waits until each outcome of its file is known.
    ///
    /// So the call can be made again by `SA_RESTART`, as a request of its own, and ends as if it were the first. Calls that do the same
    /// when they are made twice (the other ioctls, poll) take effect at once.
    ///
    /// On a bridge the kernel gets a write when its outcome has reached the client. What it refuses then is counted as dropped.
    ///
    /// Other front ends pay nothing. They say [`Undelivered`] of an open whose client has died.
    ReportAnswers {
        /// The front end.
        origin: Origin,
    } -> () = |core| core.report_answers(origin);

    /// The answer to a request reached its client, or a signal came first; see [`ReportAnswers`]. That of a request which reserves
    /// nothing is passed over.
    Answered {
        /// The request.
        request: RequestId,
        /// The client got the answer.
        delivered: bool,
    } -> () = |core| core.answered(request, delivered);

    /// Time has passed: waits whose deadline has come end.
    Timeout {} -> () = |core| core.end_due_waits();

    /// Somebody outside is to be charged for what it holds for a user: gives the user.
    FindUser {
        /// Its number.
        uid: u32,
    } -> Arc<User> = |core| core.users.get(uid);

    /// Who may make a tunnel from now on.
    SetAdmission {
        /// It.
        admission: Admission,
    } -> () = |core| core.admission = admission;

    /// Whether events are wanted.
    Observe {
        /// They are.
        on: bool,
    } -> () = |core| core.observed = on;

    /// Puts a datagram on its way to the client. What its vnet header asks for is done first, except for what the client
    /// accepts (TUNSETOFFLOAD): then several datagrams may come of it.
    ///
    /// The answer says why nothing, or of several datagrams not each, was delivered; a full queue and a read without room for
    /// the headers are counted as drops.
    Inject {
        /// The tunnel.
        tunnel: Address,
        /// What the client is to read.
        datagram: Datagram,
        /// How it becomes one of the tunnel's mode.
        wrap: Wrap,
    } -> Result<Delivery, CommandError> = |core| {
        let tunnel = core.find(&tunnel)?;
        core.send_to_client(tunnel, datagram, Sender::Harness(wrap))
    };

    /// Puts a datagram from a tunnel's peer on its way to the client. What is refused is counted as dropped: a peer is
    /// not told. Answers as [`Inject`] does.
    InjectFromPeer {
        /// The tunnel.
        tunnel: TunnelId,
        /// What the client is to read.
        datagram: Datagram,
    } -> Result<Delivery, CommandError> = |core| core.send_to_client(tunnel, datagram, Sender::Peer);

    /// Removes the oldest datagram that clients wrote.
    Take {
        /// The tunnel.
        tunnel: TunnelId,
    } -> Option<Datagram> = |core| core.take(tunnel);

    /// Puts back what was taken last, and did not get to whom it was taken for.
    PutBack {
        /// The tunnel.
        tunnel: TunnelId,
        /// What was taken, oldest first.
        datagrams: Vec<Datagram>,
        /// The user in whose memory it is kept.
        uid: u32,
    } -> () = |core| {
        let user = core.users.get(uid);
        for datagram in datagrams.into_iter().rev() {
            core.put_back(tunnel, datagram, &user);
        }
    };

    /// Drops datagrams that a keeper was given, and says how many. What is not there, or another's, is passed over, so that
    /// it can be said twice.
    DropKept {
        /// Whose they are.
        keeper: Keeper,
        /// Their numbers.
        numbers: Vec<u64>,
    } -> usize = |core| core.drop_kept(keeper, &numbers);

    /// A keeper has ended: what it has not dropped can be taken again.
    ReleaseKept {
        /// Whose they were.
        keeper: Keeper,
    } -> () = |core| core.release_kept(keeper);

    /// A datagram that was taken for a peer is lost: it is longer than the peer can carry.
    CountPeerDrop {
        /// The tunnel.
        tunnel: TunnelId,
        /// Its length in bytes.
        length: usize,
    } -> () = |core| core.count_peer_drop(tunnel, length);

    /// Gives a tunnel a peer, which is told whenever there is something to [`Take`]: now too, if there is.
    ///
    /// While a tunnel has a peer, no wait of the harness takes from it. Refused with [`CommandError::UnknownTunnel`] or
    /// [`CommandError::HasPeer`].
    SetPeer {
        /// The tunnel.
        tunnel: TunnelId,
        /// The peer.
        peer: PeerId,
    } -> Result<(), CommandError> = |core| core.set_peer(tunnel, peer);

    /// A peer has left; what clients write is for the harness's waits again.
    ClearPeer {
        /// The peer.
        peer: PeerId,
    } -> () = |core| core.clear_peer(peer);

    /// Makes two tunnels of one mode each other's peer.
    Join {
        /// One of them.
        left: Address,
        /// The other.
        right: Address,
    } -> Result<(TunnelId, TunnelId), CommandError> = |core| {
        let (left, right) = (core.find(&left)?, core.find(&right)?);
        core.join(left, right).map(|()| (left, right))
    };

    /// Takes a tunnel's peer away; one from outside is to be told by whoever asks.
    Part {
        /// The tunnel.
        tunnel: Address,
    } -> Result<Option<PeerId>, CommandError> = |core| {
        let tunnel = core.find(&tunnel)?;
        core.part(tunnel)
    };

    /// Changes a tunnel: everything that is asked for, or nothing. Refused with [`CommandError::UnknownTunnel`] or
    /// [`CommandError::BadSetting`].
    Configure {
        /// The tunnel.
        tunnel: Address,
        /// What is to change.
        settings: Settings,
    } -> Result<(), CommandError> = |core| {
        let tunnel = core.find(&tunnel)?;
        core.configure(tunnel, &settings)
    };

    /// Takes a tunnel from its clients, as `ip link delete` does.
    Delete {
        /// The tunnel.
        tunnel: Address,
    } -> Result<(), CommandError> = |core| {
        let tunnel = core.find(&tunnel)?;
        core.delete(tunnel)
    };

    /// Answers when a condition holds or the time is over; among the outputs of this input if it holds now.
    ///
    /// Refused with [`CommandError::BadCount`], [`CommandError::TooManyWaits`], [`CommandError::UnknownTunnel`] for a tunnel
    /// to take from, and [`CommandError::AmbiguousTunnel`].
    Wait {
        /// By which it is answered.
        id: WaitId,
        /// What is waited for.
        condition: Condition,
        /// For how long; beyond the clock's range means for ever.
        timeout: Duration,
    } -> Result<(), CommandError> = |core| {
        let deadline = core.now.checked_add(timeout);
        core.wait(id, condition, deadline)
    };

    /// Nobody waits any more.
    CancelWait {
        /// What was waited for.
        id: WaitId,
    } -> () = |core| core.cancel_wait(id);
}
