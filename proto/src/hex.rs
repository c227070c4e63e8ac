//! Bytes as hex digits, for `#[serde(with = "hex")]`.

use std::{borrow::Cow, fmt};

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serializer, de::Error};

/// Lower-case digits, two a byte.
///
/// # Errors
///
/// The serializer's.
pub fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&encode(bytes))
}

/// Digits of either case.
///
/// # Errors
///
/// What is wrong with the digits.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    let text = Cow::<'de, str>::deserialize(deserializer)?;
    decode(&text).map(Bytes::from).map_err(|error| {
        D::Error::custom(format_args!("bad hex: {error}; give two hex digits for each byte"))
    })
}

/// Lower-case digits, two a byte.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |half: u8| char::from(DIGITS[usize::from(half)]);
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        text.extend([digit(byte >> 4), digit(byte & 15)]);
    }
    text
}

/// Digits of either case, two a byte.
///
/// # Errors
///
/// What is wrong with the digits.
pub fn decode(text: &str) -> Result<Vec<u8>, HexError> {
    let value = |(index, digit): (usize, &u8)| {
        let c = char::from(*digit);
        match c.to_digit(16).map(u8::try_from) {
            Some(Ok(value)) => Ok(value),
            None | Some(Err(_)) => Err(HexError::NoDigit { c, index }),
        }
    };
    if !text.len().is_multiple_of(2) {
        return Err(HexError::OddLength);
    }
    let mut digits = text.as_bytes().iter().enumerate().map(value);
    let mut bytes = Vec::with_capacity(text.len() / 2);
    while let (Some(high), Some(low)) = (digits.next(), digits.next()) {
        bytes.push(high? << 4 | low?);
    }
    Ok(bytes)
}

/// What is wrong with digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HexError {
    /// The last byte has one digit.
    OddLength,
    /// Something else is among the digits.
    NoDigit {
        /// The first byte of it, as Latin-1.
        c: char,
        /// Where, in bytes.
        index: usize,
    },
}

impl fmt::Display for HexError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OddLength => f.write_str("Odd number of digits"),
            Self::NoDigit { c, index } => write!(f, "Invalid character {c:?} at position {index}"),
        }
    }
}

impl std::error::Error for HexError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_of_the_bytes() {
        let bytes: Vec<u8> = (0..=255).collect();
        let text = encode(&bytes);
        assert_eq!(&text[..8], "00010203");
        assert_eq!(decode(&text), Ok(bytes.clone()));
        assert_eq!(decode(&text.to_uppercase()), Ok(bytes));
        assert_eq!(decode(""), Ok(Vec::new()));
    }

    #[test]
    fn what_is_wrong_with_digits_is_said() {
        let said = |text| decode(text).unwrap_err().to_string();
        assert_eq!(said("4"), "Odd number of digits");
        assert_eq!(said("45x0"), "Invalid character 'x' at position 2");
        assert_eq!(said("+1"), "Invalid character '+' at position 0");
        assert_eq!(said("45ü"), "Invalid character 'Ã' at position 2");
    }
}
