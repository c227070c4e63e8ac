//! The control socket: how a harness reaches the daemon. `docs/control.md` describes it for users.

mod outbox;
pub mod server;
pub mod session;
pub(crate) mod verbs;

pub use outbox::{Outbox, Refused};
