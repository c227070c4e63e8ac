//! What a client keeps from its queue, after `tun_net_xmit` in `drivers/net/tun.c`: frames to addresses that TUNSETTXFILTER
//! does not name, and what the program of TUNATTACHFILTER drops or cuts.

use alloc::{sync::Arc, vec::Vec};

use super::{Charge, Datagram, File, MacAddress, Tunnel, bpf};
use crate::{
    abi::tun::{SockFprog, TunFilter},
    errno::Errno,
};

/// What reaches a file's queue of a datagram; `None`: nothing.
pub(super) fn filtered(mut datagram: Datagram, tunnel: &Tunnel, file: &File) -> Option<Datagram> {
    if !tunnel.tx_filter.accepts(&datagram.payload) {
        return None;
    }
    if let Some(filter) = &file.packet_filter {
        let kept = usize::try_from(filter.program.run(&datagram.payload)).unwrap_or(usize::MAX);
        if kept == 0 {
            return None;
        }
        datagram.payload.truncate(kept);
    }
    Some(datagram)
}

/// What TUNATTACHFILTER left behind.
#[derive(Clone, Debug, Default)]
pub(super) struct PacketFilter {
    /// What the client passed last, good or bad (kernel: `fprog`).
    pub(super) passed: SockFprog,
    /// What further queues get (kernel: `filter_attached`), or what is wrong with it.
    pub(super) program: Option<Result<Arc<Filter>, Errno>>,
}

impl Tunnel {
    /// A queue that is attached gets a filter.
    pub(super) fn has_filter(&self) -> bool {
        matches!(self.packet_filter.program, Some(Ok(_)))
    }
}

/// A program, and the memory that it takes.
#[derive(Debug)]
pub(super) struct Filter {
    pub(super) program: bpf::Program,
    pub(super) _charge: Charge,
}

/// `FLT_EXACT_COUNT`: so many addresses are compared, those behind them are hashed.
const EXACT: usize = 8;

/// What TUNSETTXFILTER set. Without exact addresses it accepts everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TxFilter {
    exact: Vec<MacAddress>,
    /// A bit for each of the 64 values of [`bucket`].
    multicast: u64,
}

impl TxFilter {
    /// A filter from the addresses a client gave. One beyond the exact ones that is no multicast address leaves it off.
    pub(super) fn new(flags: u16, addresses: &[u8]) -> Self {
        let mut filter = Self::default();
        let (addresses, _) = addresses.as_chunks::<6>();
        let mut addresses = addresses.iter().copied().map(MacAddress);
        let exact = addresses.by_ref().take(EXACT).collect();
        for address in addresses {
            if !address.is_group() {
                return Self::default();
            }
            filter.multicast |= 1 << bucket(address);
        }
        if flags & TunFilter::ALL_MULTICAST != 0 {
            filter.multicast = u64::MAX;
        }
        filter.exact = exact;
        filter
    }

    /// How many addresses are compared.
    pub(super) fn exact_count(&self) -> usize {
        self.exact.len()
    }

    /// Whether a frame gets through. One that is too short for an address does not.
    pub(super) fn accepts(&self, frame: &[u8]) -> bool {
        if self.exact.is_empty() {
            return true;
        }
        let Some(destination) = frame.first_chunk::<6>().copied().map(MacAddress) else {
            return false;
        };
        self.exact.contains(&destination)
            || (destination.is_group() && self.multicast & 1 << bucket(destination) != 0)
    }
}

/// `ether_crc(ETH_ALEN, addr) >> 26`: the first six bits of the Ethernet checksum.
fn bucket(address: MacAddress) -> u32 {
    let crc = address.0.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ 0xedb8_8320 }
        })
    });
    crc.reverse_bits() >> 26
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(list: &[[u8; 6]]) -> Vec<u8> {
        list.concat()
    }

    #[test]
    fn multicast_addresses_hash_as_in_the_kernel() {
        // Measured: with the first of these in its filter, a tap of Linux 6.18 lets the others of 256 through too.
        for (prefix, alike) in [
            ([0x33, 0x33, 0, 0, 0], [1, 24, 42, 51]),
            ([0x33, 0x33, 0, 0, 0], [251, 201, 208, 226]),
            ([0x01, 0x00, 0x5e, 0, 0], [1, 24, 42, 51]),
        ] {
            let [a, b, c, d, e] = prefix;
            let own = bucket(MacAddress([a, b, c, d, e, alike[0]]));
            let same: Vec<u8> = (0..=255)
                .filter(|last| bucket(MacAddress([a, b, c, d, e, *last])) == own)
                .collect();
            let mut expected = alike;
            expected.sort_unstable();
            assert_eq!(same, expected);
        }
    }

    #[test]
    fn addresses_behind_the_eighth_are_hashed() {
        let own = |n| [2, 0, 0, 0, 0, n];
        let group = [0x33, 0x33, 0, 0, 0, 1];
        let mut list: Vec<[u8; 6]> = (0..8).map(own).collect();
        list.push(group);
        let filter = TxFilter::new(0, &addresses(&list));
        assert_eq!(filter.exact_count(), 8);
        assert!(filter.accepts(&own(7)) && filter.accepts(&group));
        assert!(!filter.accepts(&own(8)) && !filter.accepts(&[0x33, 0x33, 0, 0, 0, 2]));
        assert!(!filter.accepts(&[2, 0, 0]), "cut short");

        list.push(own(9));
        assert_eq!(TxFilter::new(0, &addresses(&list)), TxFilter::default(), "no multicast: off");
        assert!(TxFilter::default().accepts(&[]));

        let all = TxFilter::new(1, &addresses(&list[..1]));
        assert!(all.accepts(&group) && all.accepts(&[0xff; 6]) && !all.accepts(&own(1)));
    }
}
