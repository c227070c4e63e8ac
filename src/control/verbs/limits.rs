//! `limits`: how much of everything there may be, and how much is in use.

use std::sync::Arc;

use memtun_proto::{
    limits::{Limits, LimitsView, SharedView, SingleView},
    line::MAX_LINE,
};

use super::Verb;
use crate::{
    control::session::{MAX_OPEN_CALLS, MAX_WATCHES, OUTBOX_LIMIT, Reply, Session},
    core::{Bound, Core, Resource},
};

impl Verb for Limits {
    type Parsed = ();

    fn parse(self) -> Result<(), String> {
        let Self {} = self;
        Ok(())
    }

    fn perform((): (), session: &Arc<Session>, reply: Reply<LimitsView>) {
        let view = session.hub().view(view);
        reply.send(Ok(view));
    }
}

fn view(core: &Core) -> LimitsView {
    let shared = |resource: Resource| {
        let Bound { all, user } = core.budget().bound(resource);
        let users = core.users().map(|user| (user.uid(), user.used(resource)));
        SharedView {
            resource: resource.word().to_owned(),
            used: core.budget().used(resource),
            limit: all,
            user_limit: user,
            users: users.filter(|(_, used)| *used > 0).collect(),
        }
    };
    let limits = core.limits();
    let single = [
        ("untaken-datagrams", "tunnel", limits.written_datagrams),
        ("untaken-bytes", "tunnel", limits.written_bytes),
        ("copied-datagrams", "tunnel", limits.copied_datagrams),
        ("copied-bytes", "tunnel", limits.copied_bytes),
        ("datagram-bytes", "tunnel", limits.datagram),
        ("queued-bytes", "file", limits.queue_bytes),
        ("parked-reads", "file", limits.parked_reads),
        ("line-bytes", "connection", MAX_LINE),
        ("open-calls", "connection", MAX_OPEN_CALLS),
        ("watches", "connection", MAX_WATCHES),
        ("waiting-bytes", "connection", OUTBOX_LIMIT),
        ("gone-tunnels", "daemon", limits.gone_tunnels.all),
        ("gone-tunnels", "user", limits.gone_tunnels.user),
    ];
    let single = single.map(|(resource, of, limit)| SingleView {
        resource: resource.to_owned(),
        of: of.to_owned(),
        limit,
    });
    LimitsView { shared: Resource::ALL.map(shared).into(), single: single.into() }
}
