//! `memtun wait`

use memtun_client::{
    Client,
    proto::wait::{Until, Wait},
};

use super::{Scene, VerbError};
use crate::{core::Address, terminal::escaped};

/// Waits until a tunnel is in a state. Without a tunnel, waits until the daemon is ready.
///
/// The daemon need not run yet: the command waits for it first.
#[derive(Debug, clap::Args)]
#[command(override_usage = "memtun wait [OPTIONS] [<TUNNEL> <attached|detached|reading|written>]")]
pub(super) struct Args {
    /// NAME, NAME@SCOPE or #ID. The tunnel need not exist yet.
    #[arg(requires = "until")]
    tunnel: Option<Address>,
    /// What to wait for.
    #[arg(value_name = "STATE")]
    until: Option<State>,
    /// How long to wait for the daemon, and then again for the tunnel, such as 500ms or 2s. With 0s the command only looks.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = super::duration, allow_hyphen_values = true)]
    timeout: humantime::Duration,
}

/// What can be waited for.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum State {
    /// A client has attached to the tunnel (TUNSETIFF).
    Attached,
    /// No client is attached to it, or it is gone.
    Detached,
    /// A client is blocked in a read on it.
    Reading,
    /// A client has written a datagram that nobody has taken.
    Written,
}

impl From<State> for Until {
    fn from(state: State) -> Self {
        match state {
            State::Attached => Self::Attached,
            State::Detached => Self::Detached,
            State::Reading => Self::Reading,
            State::Written => Self::Written,
        }
    }
}

impl Args {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// What the daemon says; a timeout is one of it.
    pub(super) fn run(self, scene: &mut Scene<'_>) -> Result<(), VerbError> {
        let mut client = Client::connect_within(scene.control(), *self.timeout)?;
        let (Some(tunnel), Some(until)) = (self.tunnel, self.until) else { return Ok(()) };
        let wait = Wait::new(tunnel.to_string(), until.into()).timeout(*self.timeout);
        let met = client.call(&wait)?;
        if let (Some(id), Some(name)) = (met.id, met.name) {
            writeln!(scene.report(), "{} #{id}", escaped(&name))?;
        }
        Ok(())
    }
}
