//! `drop`: removes datagrams that a `take` with `keep` has given.

use std::sync::Arc;

use memtun_proto::drop::{DropKept, Dropped};

use super::Verb;
use crate::{
    control::session::{Reply, Session},
    core::input,
};

/// As many datagrams as a tunnel keeps for harnesses. Each is looked for while clients wait.
const MAX_NUMBERS: usize = 4_096;

impl Verb for DropKept {
    type Parsed = Vec<u64>;
    const KNOWS_CLOSES: bool = false;

    fn parse(self) -> Result<Self::Parsed, String> {
        let Self { numbers } = self;
        if numbers.len() > MAX_NUMBERS {
            let given = numbers.len();
            return Err(format!("{given} numbers; give at most {MAX_NUMBERS} in one call"));
        }
        Ok(numbers)
    }

    fn perform(numbers: Vec<u64>, session: &Arc<Session>, reply: Reply<Dropped>) {
        let keeper = session.keeper();
        let dropped = session.hub().handle(input::DropKept { keeper, numbers });
        reply.send(Ok(Dropped { dropped }));
    }
}
