//! Which queue of a multi-queue tunnel a datagram joins, after `tun_automq_select_queue` in `drivers/net/tun.c`.

use alloc::collections::{BTreeMap, VecDeque};

use super::{Datagram, FileId, Mode, Tunnel, datagram};

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

/// Flows, and the queue that wrote the last datagram of each.
///
/// DIFFERS: a flow is remembered until 4,096 others have come. The kernel forgets one that rests for three seconds, so that
/// a slow test would find its datagrams on another queue than a fast one.
#[derive(Debug, Default)]
pub(super) struct FlowTable {
    queues: BTreeMap<u32, usize>,
    /// The flows, oldest first.
    order: VecDeque<u32>,
}

impl FlowTable {
    /// `tun_flow_update`: the queue has written a datagram of the flow.
    pub(super) fn update(&mut self, flow: u32, queue: usize) {
        if self.queues.insert(flow, queue).is_some() {
            return;
        }
        self.order.push_back(flow);
        if self.order.len() > MAX_FLOWS
            && let Some(oldest) = self.order.pop_front()
        {
            self.queues.remove(&oldest);
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

    #[test]
    fn a_flow_goes_where_it_was_written_last_else_by_its_hash() {
        let mut flows = FlowTable::default();
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
        let mut flows = FlowTable::default();
        for flow in 0..=4096 {
            flows.update(flow, 1);
        }
        assert_eq!((flows.select(0, 2), flows.select(1, 2), flows.select(4096, 2)), (0, 1, 1));
        assert_eq!((flows.queues.len(), flows.order.len()), (MAX_FLOWS, MAX_FLOWS));
    }
}
