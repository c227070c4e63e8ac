//! An in-memory `/dev/net/tun`: unmodified programs open the device, a test holds the far end.
//!
//! # Theory of operation
//!
//! A *client*, the program under test, makes system calls on the device. A *front end* turns each into a
//! [`Request`](core::Request); the [`Core`](core::Core) answers it with an [`Outcome`](core::Outcome), at once or when something
//! happens. The *harness*, which is the test, speaks to the control socket: it injects datagrams, takes what the client
//! wrote, and waits. Both meet in the `hub`, a mutex around the core, and nowhere else.
//!
//! ```text
//!   client  --read, write, ioctl, poll-->  kernel  --/dev/cuse-->  frontend --.
//!                                                                              hub --> core
//!   harness --inject, take, wait, list-->  control socket ------>  control  --'
//! ```
//!
//! A datagram to the client: the verb `inject` gives the core an [input](core::input::Inject) by
//! `Hub::handle`. If a read is parked, the core completes it: it puts the headers on and cuts the result to the
//! read's limit. Otherwise the datagram joins the file's queue, and the core wakes pollers. After the lock is released the front
//! end makes the one system call that answers the client.
//!
//! A datagram from the client: the front end submits a write; the core checks it, takes the headers off and keeps it for
//! `take`, or hands it to the tunnel's peer. The client's call is answered, then whoever waits for the datagram.
//!
//! # Layers
//!
//! Arrows point down only. Cargo holds this between crates; between modules a test reads the sources and fails on a circle.
//!
//! | layer | modules | may |
//! | --- | --- | --- |
//! | operator | [`cli`], `daemon` | everything |
//! | edges | `frontend`, `control`, `peer`, `netdev` | block, do I/O |
//! | meeting point | `hub` | lock, read the clock |
//! | state machine | the crate [`memtun_core`] | compute |
//! | what is on the wire | the crate [`memtun_proto`] | compute |
//! | plain data | [`abi`] | - |
//!
//! A verb is three small files of one name: its types in [`memtun_proto`], its effect in `control::verbs`, its words in [`cli`]. The
//! harness's end of the control socket is the crate [`memtun_client`].
//!
//! [`packet`] builds datagrams, and [`render`] shows them to people. `terminal` makes harmless what they and the [`log`] print. The log
//! writes to standard error, and `panics` decides what a panic costs; neither makes another thread wait. The kernel's protocol is the
//! crate [`cuse_rs`].

pub mod abi;
pub mod cli;
mod control;
mod daemon;
mod frontend;
mod hub;
mod input_log;
pub mod log;
mod mounts;
mod namespace;
// For the tests of this package: they drive the owner of network devices with a listener of their own.
#[doc(hidden)]
pub mod netdev;
#[doc(hidden)]
pub mod netns;
pub mod packet;
mod panics;
mod peer;
mod planted;
pub mod render;
mod sys;
mod terminal;
mod vnet;

pub use memtun_core::{self as core, errno};
