//! What the daemon needs of a front end.

use std::error;

use crate::{
    core::{Outcome, WakeHandle},
    hub::FileKind,
};

/// How clients' system calls reach the core: where their answers go, and the loop that brings them.
pub(crate) trait FrontEnd: Send + Sync {
    /// Brings clients' calls to the core until there will be no more; the body of each of its threads. The only one may look for the
    /// next call for a moment before it sleeps.
    ///
    /// # Errors
    ///
    /// What ended it before its time.
    fn serve(&self, briskly: bool) -> Result<Ended, Box<dyn error::Error + Send + Sync>>;
    /// Answers a request. Called exactly once for each.
    fn complete(&self, unique: u64, outcome: Outcome);
    /// Wakes the pollers of a file.
    fn wake(&self, handle: WakeHandle);
    /// Whether an open file is one of this front end's.
    fn owns(&self, file: FileKind) -> bool;
    /// Waits until the core knows everything that clients did before, such as a `close` that returned early. False if it cannot know.
    fn catch_up(&self) -> bool;
    /// Takes the device away: blocked clients get an error, and the threads that serve it end. False if they do not.
    fn stop(&self) -> bool;
}

/// Why there will be no more calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The kernel has no device for clients any more.
    Taken,
    /// No client is left, and none can come.
    #[allow(dead_code, reason = "no front end that is there can tell it")]
    Left,
}
