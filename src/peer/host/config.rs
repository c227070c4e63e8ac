//! What a host is to be: its addresses, and the ports that lead out.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use super::services::{DISCARD, ECHO};
use crate::core::MacAddress;

/// Addresses that one host can have; with a link-local one that is as many as the stack holds.
const MAX_ADDRESSES: usize = 7;
/// Ports of one host that can lead out.
const MAX_FORWARDS: usize = 16;

/// What a host is to be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Config {
    /// Its addresses, 1 to 7.
    pub addresses: Vec<Cidr>,
    /// Its ports that lead to addresses of this machine, up to 16.
    pub forwards: Vec<Forward>,
}

/// Why there can be no such host.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConfigError {
    /// Too few or too many addresses.
    #[error("a host has 1 to {MAX_ADDRESSES} addresses, not {0}")]
    Addresses(usize),
    /// One address twice, perhaps with two prefixes.
    #[error("address {0} is given twice")]
    SameAddress(IpAddr),
    /// Too many forwards.
    #[error("a host forwards at most {MAX_FORWARDS} ports, not {0}")]
    Forwards(usize),
    /// Two services at one port.
    #[error("port {0} of the host has a service already; forward another one")]
    PortTaken(u16),
}

impl Config {
    /// Whether there can be such a host.
    ///
    /// # Errors
    ///
    /// As [`ConfigError`] says.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if !(1..=MAX_ADDRESSES).contains(&self.addresses.len()) {
            return Err(ConfigError::Addresses(self.addresses.len()));
        }
        if self.forwards.len() > MAX_FORWARDS {
            return Err(ConfigError::Forwards(self.forwards.len()));
        }
        let mut addresses = self.addresses.iter().map(|cidr| cidr.address);
        while let Some(address) = addresses.next() {
            if addresses.clone().any(|other| other == address) {
                return Err(ConfigError::SameAddress(address));
            }
        }
        let mut taken = vec![ECHO, DISCARD];
        for Forward { port, .. } in &self.forwards {
            if taken.contains(port) {
                return Err(ConfigError::PortTaken(*port));
            }
            taken.push(*port);
        }
        Ok(())
    }

    pub(super) fn has_ipv6(&self) -> bool {
        self.addresses.iter().any(|cidr| cidr.address.is_ipv6())
    }

    /// The same in words.
    pub(super) fn details(&self, hwaddr: Option<MacAddress>) -> Vec<String> {
        let addresses = self.addresses.iter().map(ToString::to_string);
        let forwards = self.forwards.iter().map(ToString::to_string);
        addresses.chain(hwaddr.map(|address| address.to_string())).chain(forwards).collect()
    }
}

/// An address and the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cidr {
    /// Unicast.
    pub address: IpAddr,
    /// In bits.
    pub prefix: u8,
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text
            .split_once('/')
            .and_then(|(address, prefix)| Some((address.parse().ok()?, prefix.parse().ok()?)));
        let Some((address, prefix)) = parsed else {
            return Err(format!(
                "{text:?} is not an address with a prefix; write it as 10.0.0.1/24 or fd00::1/64"
            ));
        };
        let (longest, is_broadcast) = match address {
            IpAddr::V4(address) => (32, address.is_broadcast()),
            IpAddr::V6(_) => (128, false),
        };
        if prefix > longest {
            return Err(format!("{text:?} has a prefix of more than {longest} bits"));
        }
        if address.is_unspecified() || address.is_multicast() || is_broadcast {
            return Err(format!("{text:?} is not the address of one host; give a unicast address"));
        }
        Ok(Self { address, prefix })
    }
}

/// A port of the host that leads to an address of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forward {
    /// TCP port, not 0.
    pub port: u16,
    /// Where connections to it go.
    pub to: SocketAddr,
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.port, self.to)
    }
}

impl FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split_once(':')
            .and_then(|(port, to)| Some(Self { port: port.parse().ok()?, to: to.parse().ok()? }))
            .filter(|forward| forward.port != 0 && forward.to.port() != 0)
            .ok_or_else(|| {
                format!(
                    "{text:?} is not a port and a target; write it as 8080:127.0.0.1:80 or 8080:[::1]:80"
                )
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_shown() {
        for text in ["10.0.0.1/24", "fd00::1/64", "fe80::1/10", "192.0.2.1/32"] {
            assert_eq!(text.parse::<Cidr>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "10.0.0.1",
            "10.0.0.1/33",
            "10.0.0/8",
            "::/0",
            "0.0.0.0/0",
            "224.0.0.1/4",
            "ff02::1/8",
            "255.255.255.255/0",
            "fd00::1/129",
            "fd00::1/-1",
        ] {
            assert!(text.parse::<Cidr>().is_err(), "{text:?}");
        }
        for text in ["8080:127.0.0.1:80", "1:[::1]:65535"] {
            assert_eq!(text.parse::<Forward>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "80",
            "80:80",
            "0:127.0.0.1:80",
            "80:127.0.0.1:0",
            "80:localhost:80",
            "x:1.1.1.1:1",
        ] {
            assert!(text.parse::<Forward>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_host_has_limits() {
        let address = |host: u8| Cidr { address: [10, 0, 0, host].into(), prefix: 24 };
        let forward = |port: u16| Forward { port, to: "127.0.0.1:80".parse().unwrap() };
        let host = |addresses, ports: &[u16]| {
            let forwards = ports.iter().copied().map(forward).collect();
            Config { addresses: (0..addresses).map(address).collect(), forwards }.check()
        };
        assert_eq!(host(1, &[1, 2]), Ok(()));
        assert_eq!((host(0, &[]), host(7, &[])), (Err(ConfigError::Addresses(0)), Ok(())));
        assert_eq!(host(8, &[]), Err(ConfigError::Addresses(8)));
        let many: Vec<u16> = (100..117).collect();
        assert_eq!((host(1, &many), host(1, &many[1..])), (Err(ConfigError::Forwards(17)), Ok(())));
        for ports in [&[7][..], &[9], &[80, 80]] {
            assert!(matches!(host(1, ports), Err(ConfigError::PortTaken(_))), "{ports:?}");
        }
        let other_prefix = Cidr { prefix: 8, ..address(1) };
        let addresses = vec![address(1), address(2), other_prefix];
        let twice = Config { addresses, forwards: Vec::new() }.check();
        assert_eq!(twice, Err(ConfigError::SameAddress(address(1).address)));
    }
}
