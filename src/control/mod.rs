//! The control socket: how a harness reaches the daemon. `docs/control.md` describes it for users.

mod outbox;
pub mod server;
pub mod session;
pub mod wire;

pub use outbox::{Outbox, Refused};
