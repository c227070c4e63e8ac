//! What people write as text. The daemon reads it and says what is wrong with it; here it is text alone.

use std::{convert::Infallible, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

macro_rules! texts {
    ($($(#[$attribute:meta])* $name:ident;)*) => {$(
        $(#[$attribute])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }

        impl From<&$name> for $name {
            fn from(text: &$name) -> Self {
                text.clone()
            }
        }

        impl FromStr for $name {
            type Err = Infallible;

            fn from_str(text: &str) -> Result<Self, Infallible> {
                Ok(text.into())
            }
        }
    )*};
}

texts! {
    /// How a tunnel is addressed: `NAME`, `NAME@SCOPE` or `#ID`. In a name, `\xNN` stands for a byte.
    Address;
    /// The name of a tunnel. `\xNN` stands for a byte.
    Name;
    /// An Ethernet address, as `02:00:00:00:00:01`.
    MacAddress;
    /// An IP address and the length of its network's prefix, as `10.0.0.1/24` or `fd00::1/64`.
    Cidr;
    /// A TCP port of a host and where it leads, as `8080:127.0.0.1:80` or `8080:[::1]:80`.
    Forward;
}

impl Address {
    /// The address of the tunnel with this id.
    #[must_use]
    pub fn of_id(id: u32) -> Self {
        Self(format!("#{id}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_goes_over_the_wire_as_it_is() {
        let address: Address = serde_json::from_str(r#""a\\x20b@5""#).unwrap();
        assert_eq!(address, Address::from(r"a\x20b@5"));
        assert_eq!(serde_json::to_string(&address).unwrap(), r#""a\\x20b@5""#);
        assert_eq!(Address::of_id(7).as_str(), "#7");
    }
}
