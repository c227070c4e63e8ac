//! The control socket: how a harness reaches the daemon. `docs/control.md` describes it for users.

mod outbox;
pub(crate) mod server;
pub(crate) mod session;
pub(crate) mod verbs;

pub(crate) use outbox::{Outbox, Refused};
