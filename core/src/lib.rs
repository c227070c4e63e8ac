//! The state machine: open files, tunnels, and the rules between them. Pure: no descriptor, no clock, no thread.
//!
//! # Theory of operation
//!
//! [`Core`] is driven from outside, by one function: [`Core::handle`] takes an [input](mod@input) and the time. An input is what
//! a client asks, what a harness wants, news of a network device, or that time has passed. It may leave work, which
//! [`Core::take_outputs`] hands out: requests to answer, pollers to wake, waits that are over. Whoever drives the core fetches that
//! after every input and performs it; the `Hub` of the crate `memtun` does. The same inputs give the same outputs.
//!
//! A read without a datagram is *parked*: its request simply stays unanswered until a datagram comes, the request is
//! cancelled, or the daemon ends. So no thread waits, however many readers do.
//!
//! Each request is answered exactly once. The behaviour is that of `drivers/net/tun.c`; where it cannot be, or should
//! not, a comment is tagged `DIFFERS:`.

#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod abi;
pub mod bpf;
pub mod datagram;
pub mod errno;
#[cfg(feature = "log")]
pub mod log;
mod machine;
#[cfg(feature = "log")]
mod serial;
mod time;

pub use self::{
    datagram::{Datagram, Head, MacAddress, Mode, offload},
    machine::{
        Address, Admission, Answer, Bound, Budget, Charge, CommandError, Condition, Core, Count,
        Counters, Credentials, Delivery, DropReason, Enter, Event, Exhausted, File, FileId,
        Forward, Injection, Input, Interface, IoctlCall, IoctlOutput, Keeper, Limits, Look,
        MAX_DATAGRAM, MadeNetdev, NamePattern, NetdevNews, NetdevPlan, NetdevRequest,
        NetdevSetting, NetdevState, Op, Opener, Origin, Outcome, Output, Peer, PeerId, Queue,
        ReadCall, Reply, Request, RequestId, Resource, Rights, Scope, Sent, SettingError, Settings,
        Switch, Tunnel, TunnelId, User, UserRange, WaitId, WakeHandle, Wrap, WriteCall, input,
        ioctl, parse_name,
    },
    time::Instant,
};
