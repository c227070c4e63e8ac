//! How the harness names a tunnel.

use alloc::{format, string::String, vec::Vec};
use core::{fmt, str::FromStr};

use super::{Scope, TunnelId};
use crate::abi::tun::Name;

/// How the harness names a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub enum Address {
    /// By its number.
    Id(TunnelId),
    /// By its name, in the only scope that has it.
    Name(Name),
    /// By its name and scope.
    Scoped(Name, Scope),
}

impl From<TunnelId> for Address {
    fn from(id: TunnelId) -> Self {
        Self::Id(id)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "#{}", id.0),
            Self::Name(name) => write!(f, "{name}"),
            Self::Scoped(name, scope) => write!(f, "{name}@{}", scope.0),
        }
    }
}

impl FromStr for Address {
    type Err = String;

    /// `NAME`, `NAME@SCOPE` or `#ID`. In a name, `\xNN` stands for a byte, as in what `list` shows.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(id) = text.strip_prefix('#') {
            let id =
                id.parse().map_err(|_| format!("{text:?} is not a tunnel id; write it as #1"))?;
            return Ok(Self::Id(TunnelId(id)));
        }
        let (name, scope) = match text.rsplit_once('@') {
            Some((name, scope)) if scope.parse::<u64>().is_ok() => (name, scope.parse().ok()),
            _ => (text, None),
        };
        let name = parse_name(name)?;
        Ok(scope.map_or(Self::Name(name), |scope| Self::Scoped(name, Scope(scope))))
    }
}

/// A name as it is shown: `\xNN` stands for a byte.
///
/// # Errors
///
/// A line for people.
pub fn parse_name(text: &str) -> Result<Name, String> {
    let bytes = unescape(text);
    if bytes.is_empty() || bytes.len() > 15 || bytes.contains(&0) {
        return Err(format!("{text:?} is not a tunnel name; a name has 1 to 15 bytes"));
    }
    Ok(Name::new(&bytes))
}

/// Undoes what [`Name`]'s `Display` does to bytes that are not printable ASCII.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, tail) = match (first, tail) {
            (b'\\', [b'x', high, low, tail @ ..]) => match hex_byte(*high, *low) {
                Some(byte) => (byte, tail),
                None => (first, &rest[1..]),
            },
            (b'\\', [b't', tail @ ..]) => (b'\t', tail),
            (b'\\', [b'n', tail @ ..]) => (b'\n', tail),
            (b'\\', [b'r', tail @ ..]) => (b'\r', tail),
            (b'\\', [quoted @ (b'\\' | b'\'' | b'"'), tail @ ..]) => (*quoted, tail),
            _ => (first, tail),
        };
        bytes.push(byte);
        rest = tail;
    }
    bytes
}

fn hex_byte(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(high)? << 4 | digit(low)?)
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn addresses_survive_being_shown() {
        for text in ["tun0", "#7", "tun0@4026531840", "a@b", "a\\xffb", "q\\'q", "back\\\\x41"] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string().parse::<Address>().unwrap(), address, "{text}");
        }
        assert_eq!("tun0@5".parse(), Ok(Address::Scoped(Name::new(b"tun0"), Scope(5))));
        for text in ["", "#", "#x", "#-1", "0123456789abcdef", "@5", "a\\x00"] {
            assert!(text.parse::<Address>().is_err(), "{text:?}");
        }
    }
}
