//! Which queue of a multi-queue tunnel a datagram joins, after `tun_automq_select_queue` in `drivers/net/tun.c`.

use alloc::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use super::{Charge, Datagram, FileId, Mode, Resource, Tunnel, User, datagram};

impl Tunnel {
    /// A file has written a datagram: what comes back goes to its queue. One queue needs no table, and a detached one gets
    /// nothing back.
    pub(super) fn learn_flow(&mut self, writer: FileId, written: &Datagram) {
        if self.queues.len() > 1
            && let Some(queue) = self.queues.iter().position(|file| *file == writer)
        {
            self.flows.update(flow_of(written, self.mode), queue);
        }
    }

    /// The file whose queue a datagram joins; `None` if no queue is attached.
    pub(super) fn select_queue(&self, datagram: &Datagram) -> Option<FileId> {
        match self.queues[..] {
            [] => None,
            [only] => Some(only),
            ref queues => {
                let flow = flow_of(datagram, self.mode);
                queues.get(self.flows.select(flow, queues.len())).copied()
            }
        }
    }
}

/// `__skb_get_hash_symmetric`: the same for both directions.
fn flow_of(datagram: &Datagram, mode: Mode) -> u32 {
    let [.., a, b, c, d] = datagram::flow_hash(&datagram.payload, mode).to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// `MAX_TAP_FLOWS`.
const MAX_FLOWS: usize = 4096;
/// Bytes that a flow takes in the table.
const FLOW_MEMORY: usize = 48;

/// Flows, and the queue that wrote the last datagram of each.
///
/// DIFFERS: memtun remembers a flow until 4,096 others have come. The kernel forgets a flow after three seconds without a
/// datagram. A slow test would then find its datagrams on another queue than a fast test.
#[derive(Debug)]
pub(super) struct FlowTable {
    queues: BTreeMap<u32, usize>,
    /// The flows, oldest first.
    order: VecDeque<u32>,
    user: Arc<User>,
    /// For the most flows that there have been.
    charge: Option<Charge>,
}

impl FlowTable {
    /// A table in the memory of a user. Without memory for one more flow, the oldest is forgotten for it.
    pub(super) fn new(user: &Arc<User>) -> Self {
        let (queues, order) = Default::default();
        Self { queues, order, user: Arc::clone(user), charge: None }
    }

    /// `tun_flow_update`: the queue has written a datagram of the flow.
    pub(super) fn update(&mut self, flow: u32, queue: usize) {
        if let Some(known) = self.queues.get_mut(&flow) {
            *known = queue;
            return;
        }
        if !self.has_room() {
            let Some(oldest) = self.order.pop_front() else { return };
            self.queues.remove(&oldest);
        }
        self.queues.insert(flow, queue);
        self.order.push_back(flow);
    }

    /// What it takes.
    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        self.charge.as_ref().map_or(0, Charge::amount)
    }

    /// Whether there is memory for one more.
    fn has_room(&mut self) -> bool {
        let wanted = (self.order.len() + 1) * FLOW_MEMORY;
        match &mut self.charge {
            _ if self.order.len() >= MAX_FLOWS => false,
            Some(charge) => {
                wanted <= charge.amount() || charge.grow(wanted - charge.amount()).is_ok()
            }
            none => {
                *none = self.user.charge(Resource::Memory, wanted).ok();
                none.is_some()
            }
        }
    }

    /// `tun_flow_delete_by_queue`.
    pub(super) fn forget_queue(&mut self, queue: usize) {
        self.queues.retain(|_, other| *other != queue);
        self.order.retain(|flow| self.queues.contains_key(flow));
    }

    /// The queue for a datagram of the flow, of so many: the one that wrote it last, else one by its hash. A queue that is no
    /// more is taken for the first, as `netdev_cap_txqueue` does.
    pub(super) fn select(&self, flow: u32, count: usize) -> usize {
        let by_hash = || usize::try_from((u64::from(flow) * count as u64) >> 32).unwrap_or(0);
        let queue = self.queues.get(&flow).copied().unwrap_or_else(by_hash);
        if queue < count { queue } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bound, Core, Limits};

    fn table() -> FlowTable {
        FlowTable::new(&Core::new(Limits::default(), 1).users.get(1))
    }

    #[test]
    fn flows_are_in_the_memory_of_a_user() {
        let memory = Bound::unshared(FLOW_MEMORY);
        let mut core = Core::new(Limits { memory, ..Limits::default() }, 1);
        let mut flows = FlowTable::new(&core.users.get(1));
        for flow in 0..3 {
            flows.update(flow, 1);
        }
        assert_eq!((flows.select(1, 2), flows.select(2, 2)), (0, 1), "the oldest made room");
        assert_eq!(core.budget().used(Resource::Memory), FLOW_MEMORY);
        drop(flows);
        assert_eq!(core.budget().used(Resource::Memory), 0);
    }

    #[test]
    fn a_flow_goes_where_it_was_written_last_else_by_its_hash() {
        let mut flows = table();
        assert_eq!(
            [0, 0x3fff_ffff, 0x4000_0000, u32::MAX].map(|flow| flows.select(flow, 4)),
            [0, 0, 1, 3]
        );
        flows.update(0, 2);
        assert_eq!(flows.select(0, 4), 2);
        flows.update(0, 3);
        assert_eq!(flows.select(0, 4), 3);
        assert_eq!(flows.select(0, 3), 0, "there is no fourth");
        flows.forget_queue(3);
        assert_eq!(flows.select(0, 4), 0, "by its hash");
        assert!(flows.order.is_empty());
    }

    #[test]
    fn the_oldest_flow_is_forgotten_for_the_next() {
        let mut flows = table();
        for flow in 0..=4096 {
            flows.update(flow, 1);
        }
        assert_eq!((flows.select(0, 2), flows.select(1, 2), flows.select(4096, 2)), (0, 1, 1));
        assert_eq!((flows.queues.len(), flows.order.len()), (MAX_FLOWS, MAX_FLOWS));
    }
}
