//! Names of streams and accounts: short, lower-case, safe in a URL, a metric label and a key.

use std::{fmt, str::FromStr};

use bytestring::ByteString;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const NAME_LEN_MAX: usize = 64;

/// The text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not a valid name: use 1 to 64 of a-z, 0-9, '.', '_' and '-', starting with a letter or digit")]
pub struct NameError {
    found: String,
}

fn parse(text: &str) -> Result<ByteString, NameError> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let first_ok = text.bytes().next().is_some_and(plain);
    let rest_ok = text.bytes().all(|byte| plain(byte) || matches!(byte, b'.' | b'_' | b'-'));
    if first_ok && rest_ok && text.len() <= NAME_LEN_MAX {
        Ok(ByteString::from(text))
    } else {
        Err(NameError { found: text.chars().take(NAME_LEN_MAX + 1).collect() })
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(ByteString);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                parse(text).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

name!(
    /// A durable reader that acknowledges entries.
    ConsumerName
);
name!(
    /// A configured upstream feed.
    StreamName
);
name!(
    /// Credentials at a platform, with one token.
    AccountName
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_short_lower_case_and_safe_in_a_url() {
        for good in ["a", "queues", "4", "acme.eu-west_1", &"x".repeat(64)] {
            assert!(good.parse::<StreamName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", ".a", "Queues", "a b", "a/b", "ä", &"x".repeat(65)] {
            assert!(bad.parse::<StreamName>().is_err(), "{bad}");
        }
    }
}
