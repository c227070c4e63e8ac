//! `limits`: how much of everything there may be, and how much is in use.

use std::{collections::BTreeMap, io::Write, sync::Arc};

use serde::{Deserialize, Serialize};

use super::Method;
use crate::{
    client::{Client, ClientError},
    control::{
        session::{MAX_OPEN_CALLS, MAX_WATCHES, OUTBOX_LIMIT, Reply, Session},
        wire::MAX_LINE,
    },
    core::{Bound, Core, Resource},
    render,
    terminal::Styles,
};

/// Parameters on the wire: none.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {}

/// What it gives.
#[derive(Debug, Serialize, Deserialize)]
pub struct LimitsView {
    /// What users share.
    pub shared: Vec<SharedView>,
    /// What a single tunnel, file or connection may have.
    pub single: Vec<SingleView>,
}

/// A resource that users share.
#[derive(Debug, Serialize, Deserialize)]
pub struct SharedView {
    /// `memory` (in bytes), `files`, `tunnels`, `parked-reads`, `namespaces`, `descriptors`, `connections` or `waits`.
    pub resource: String,
    /// How much is in use.
    pub used: usize,
    /// How much there may be.
    pub limit: usize,
    /// How much one user may have.
    pub user_limit: usize,
    /// How much each user has in use, by uid; those who have nothing are left out.
    pub users: BTreeMap<u32, usize>,
}

/// A limit that is not shared.
#[derive(Debug, Serialize, Deserialize)]
pub struct SingleView {
    /// What is limited.
    pub resource: String,
    /// Of what: `tunnel`, `file`, `connection`, `user` or `daemon`.
    pub of: String,
    /// How much there may be.
    pub limit: usize,
}

impl Method for Limits {
    const NAME: &'static str = "limits";
    type Result = LimitsView;

    fn perform(self, session: &Arc<Session>, reply: Reply<LimitsView>) {
        let view = session.hub().view(|core| LimitsView::from(core));
        reply.send(Ok(view));
    }
}

impl From<&Core> for LimitsView {
    fn from(core: &Core) -> Self {
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
        Self { shared: Resource::ALL.map(shared).into(), single: single.into() }
    }
}

/// Shows the limits of memory, files, tunnels and so on, and how much of each is in use, by all users and by each.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// What the daemon says.
    pub fn run(
        self,
        client: &mut Client,
        out: &mut dyn Write,
        styles: Styles,
    ) -> Result<(), ClientError> {
        let limits = client.call(&Limits {})?;
        if self.json {
            serde_json::to_writer_pretty(&mut *out, &limits).map_err(std::io::Error::from)?;
            writeln!(out)?;
        } else {
            out.write_all(render::limits(&limits, styles).as_bytes())?;
        }
        Ok(())
    }
}
