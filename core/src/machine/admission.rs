//! Who may make a tunnel, and attach to one that is there.
//!
//! The kernel asks for CAP_NET_ADMIN in the user namespace of the network namespace to make an interface, and for that or for the
//! right owner and group to attach to one. The front end tells of each caller what it has of this ([`Credentials`]); what follows
//! from it is decided here. Where a kernel's device stands beside the tunnel, the kernel is asked too, with the caller's rights.

use alloc::{borrow::ToOwned, string::String, vec, vec::Vec};
use core::str::FromStr;

use super::{Core, Credentials, FileId, Interface, Scope, Tunnel};
use crate::abi::tun::Name;

/// Who may make a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub enum Admission {
    /// Those that the kernel lets: it takes CAP_NET_ADMIN.
    NetAdmin,
    /// Others too, if its name is one of these.
    Names(Vec<NamePattern>),
}

impl Default for Admission {
    fn default() -> Self {
        Self::Names(vec![NamePattern::any()])
    }
}

impl Admission {
    fn has(&self, name: &Name) -> bool {
        match self {
            Self::NetAdmin => false,
            Self::Names(patterns) => patterns.iter().any(|pattern| pattern.fits(name.as_bytes())),
        }
    }
}

/// A name, in which `*` stands for any bytes, also for none.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub struct NamePattern(Vec<u8>);

impl NamePattern {
    /// Any name.
    #[must_use]
    pub fn any() -> Self {
        Self(b"*".to_vec())
    }

    fn fits(&self, name: &[u8]) -> bool {
        let mut parts = self.0.split(|byte| *byte == b'*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = name.strip_prefix(first) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        for part in parts.filter(|part| !part.is_empty()) {
            let Some(at) = rest.windows(part.len()).position(|bytes| bytes == part) else {
                return false;
            };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last)
    }
}

impl FromStr for NamePattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("a name is missing; write names as in 'tun*,tap*'".to_owned());
        }
        Ok(Self(text.as_bytes().to_vec()))
    }
}

impl Core {
    /// The namespace for which TUNSETIFF on a file wants to be told what its caller may do; `None`: everybody may do all.
    #[must_use]
    pub fn asks_who_attaches(&self, file: FileId) -> Option<Scope> {
        let is_open = self.admission == Admission::default() && !self.netdevs.is_in_use();
        let file = self.files.get(&file)?;
        (!is_open).then_some(file.opener.scope)
    }

    /// Whether a tunnel of this name may be made.
    pub(super) fn may_make(&self, caller: Option<&Credentials>, name: &Name) -> bool {
        is_admin(caller) || self.admission.has(name)
    }

    /// Whether a tunnel may be made of this name or template, before its number is known.
    pub(super) fn may_make_any_of(&self, caller: Option<&Credentials>, template: &Name) -> bool {
        if is_admin(caller) {
            return true;
        }
        let raw = template.as_bytes();
        let Some(at) = raw.windows(2).position(|pair| pair == b"%d") else {
            return self.may_make(caller, template);
        };
        self.may_make(caller, &Name::numbered(&raw[..at], 0, &raw[at + 2..]))
    }

    /// Whether a caller may have IFF_NAPI_FRAGS: the kernel asks for CAP_NET_ADMIN in the initial user namespace.
    pub(super) fn may_have_fragments(&self, caller: Option<&Credentials>) -> bool {
        let is_open = self.admission != Admission::NetAdmin && !self.netdevs.is_in_use();
        caller.is_none_or(|caller| is_open || caller.is_initial_admin)
    }

    /// Whether a caller may attach to a tunnel, after `tun_not_capable`. A tunnel in memory that anybody could have made is anybody's;
    /// a kernel's device is its owner's and group's.
    pub(super) fn may_attach(&self, tunnel: &Tunnel, caller: Option<&Credentials>) -> bool {
        let Some(caller) = caller else { return true };
        let is_open = tunnel.interface == Interface::None && self.admission != Admission::NetAdmin;
        let is_theirs = tunnel.owner.is_none_or(|owner| owner == caller.uid)
            && tunnel.group.is_none_or(|group| caller.groups.contains(&group));
        caller.net_admin || is_open || is_theirs
    }
}

/// Whether a caller has CAP_NET_ADMIN in the network namespace.
pub(super) fn is_admin(caller: Option<&Credentials>) -> bool {
    caller.is_none_or(|caller| caller.net_admin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn star_stands_for_any_bytes() {
        for (pattern, fitting, others) in [
            ("*", &["", "tun0", "*"][..], &[][..]),
            ("tun0", &["tun0"], &["tun", "tun00", "xtun0"]),
            ("tun*", &["tun", "tun0", "tunnel"], &["tap0", "atun0", "tu"]),
            ("*-vpn", &["-vpn", "a-vpn", "-vpn-vpn"], &["vpn", "a-vpnx"]),
            ("a*b*c", &["abc", "aXbYc", "abbc", "abcbc"], &["ac", "acb", "abcd"]),
            ("ab*ba", &["abba", "abXba"], &["aba"]),
        ] {
            let pattern: NamePattern = pattern.parse().unwrap();
            for name in fitting {
                assert!(pattern.fits(name.as_bytes()), "{pattern:?} {name}");
            }
            for name in others {
                assert!(!pattern.fits(name.as_bytes()), "{pattern:?} {name}");
            }
        }
        assert!("".parse::<NamePattern>().is_err());
    }
}
