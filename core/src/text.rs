//! Names and addresses as the text that people write, for `serde`.

use alloc::string::String;
use core::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::{Address, MacAddress, parse_name};
use crate::abi::tun::Name;

macro_rules! as_text {
    ($($type:ty: $parse:expr;)*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $parse(&String::deserialize(deserializer)?).map_err(Error::custom)
            }
        }
    )*};
}

as_text! {
    Address: Address::from_str;
    MacAddress: MacAddress::from_str;
    Name: parse_name;
}
