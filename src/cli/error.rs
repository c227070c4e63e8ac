//! Why a verb failed.

use std::io;

use memtun_client::ClientError;

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerbError {
    /// The daemon refused, or is not there.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// What the daemon said could not be written out.
    #[error("writing to standard output: {0}")]
    Output(#[from] io::Error),
}
