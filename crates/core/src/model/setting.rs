//! Values of a configuration file: durations and sizes with a unit, references to secrets.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _, ser::Error as _};

/// A duration with its unit, as in `"300s"`, `"100ms"`, `"24h"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// The text is not a duration or size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    #[error("{found:?} has no unit; write {suggestion:?}")]
    NoUnit { found: String, suggestion: String },
    #[error("{found:?} is not {expected}")]
    Unreadable { found: String, expected: &'static str },
}

impl FromStr for Span {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(SettingError::NoUnit { found: text.to_owned(), suggestion: format!("{text}s") });
        }
        humantime::parse_duration(text).map(Self).map_err(|_| SettingError::Unreadable {
            found: text.to_owned(),
            expected: "a duration such as \"300s\", \"100ms\" or \"24h\"",
        })
    }
}

/// In one unit if possible: hours, else seconds, else milliseconds, as in `24h`, `300s`, `100ms`.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, nanos) = (self.0.as_secs(), self.0.subsec_nanos());
        match (seconds, nanos) {
            (1.., 0) if seconds.is_multiple_of(3600) => write!(f, "{}h", seconds / 3600),
            (_, 0) => write!(f, "{seconds}s"),
            (_, nanos) if nanos.is_multiple_of(1_000_000) => write!(f, "{}ms", self.0.as_millis()),
            (_, _) => humantime::format_duration(self.0).fmt(f),
        }
    }
}

/// A number of bytes with its unit, as in `"16MiB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

const SIZE_UNITS: [(&str, u64); 8] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];

impl FromStr for Size {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        let unreadable = || SettingError::Unreadable {
            found: text.to_owned(),
            expected: "a size such as \"64KiB\", \"16MiB\" or \"4GiB\"",
        };
        if text == "0" {
            return Ok(Self(0));
        }
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        if digits > 0 && unit.is_empty() {
            return Err(SettingError::NoUnit { found: text.to_owned(), suggestion: size_meant(text) });
        }
        let number: u64 = number.parse().map_err(|_| unreadable())?;
        let factor = SIZE_UNITS.iter().find(|(name, _)| *name == unit.trim()).ok_or_else(unreadable)?.1;
        number.checked_mul(factor).map(Self).ok_or_else(unreadable)
    }
}

/// The likely meaning of a number without a unit: bytes if it is large, as in `16777216`, else MiB.
fn size_meant(digits: &str) -> String {
    match digits.parse::<u64>() {
        Ok(bytes @ 65_536..) => Size(bytes).to_string(),
        Ok(_) | Err(_) => format!("{digits}MiB"),
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = SIZE_UNITS[..4].iter().rev().find(|(_, factor)| self.0 > 0 && self.0.is_multiple_of(*factor));
        match binary {
            Some((unit, factor)) => write!(f, "{}{unit}", self.0 / factor),
            None => write!(f, "{}B", self.0),
        }
    }
}

macro_rules! as_text {
    ($name:ident, $format:literal) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "format": $format })
            }
        }
    };
}

// Not `duration`: that means ISO 8601 in JSON Schema.
as_text!(Span, "time-span");
as_text!(Size, "size");

/// For `#[serde(with = "Span")]` on a field of type `Duration`; the field also gets the schema of a `Span`.
impl Span {
    /// Writes a duration as a span.
    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        Serialize::serialize(&Self(*duration), serializer)
    }

    /// Reads a span as a duration.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        Deserialize::deserialize(deserializer).map(|Self(duration)| duration)
    }
}

/// For `#[serde(with = "Size")]` on an integer field; the field also gets the schema of a `Size`.
impl Size {
    /// Writes a number of bytes as a size.
    pub fn serialize<N: Copy + TryInto<u64>, S: Serializer>(bytes: &N, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes = (*bytes).try_into().map_err(|_| S::Error::custom("the size is negative or above 2^64"))?;
        Serialize::serialize(&Self(bytes), serializer)
    }

    /// Reads a size as a number of bytes.
    pub fn deserialize<'de, N: TryFrom<u64>, D: Deserializer<'de>>(deserializer: D) -> Result<N, D::Error> {
        let size: Self = Deserialize::deserialize(deserializer)?;
        N::try_from(size.0).map_err(|_| D::Error::custom(format!("{size} is more than this machine can address")))
    }
}

/// A reference to a secret: `{ env = "NAME" }` or `{ file = "PATH" }`. Never the secret itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
pub enum SecretRef {
    /// The environment variable that holds it, read at start.
    Env(String),
    /// The file that holds it, read again when it changes.
    File(PathBuf),
}

impl JsonSchema for SecretRef {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "SecretRef".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "object",
            "format": "secret",
            "properties": {
                "env": { "type": "string", "description": "The environment variable that holds it, read at start." },
                "file": { "type": "string", "description": "The file that holds it, read again when it changes." }
            },
            "minProperties": 1,
            "maxProperties": 1,
            "additionalProperties": false
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_need_a_unit() {
        assert_eq!("300s".parse(), Ok(Span(Duration::from_secs(300))));
        assert_eq!("45".parse::<Span>().unwrap_err().to_string(), r#""45" has no unit; write "45s""#);
        for text in ["24h", "300s", "100ms", "1500ms", "0s"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
        assert_eq!("4GiB".parse(), Ok(Size(4 << 30)));
        assert_eq!("0".parse(), Ok(Size(0)));
        assert_eq!(Size(4 << 30).to_string(), "4GiB");
        assert_eq!("16".parse::<Size>().unwrap_err().to_string(), r#""16" has no unit; write "16MiB""#);
        assert_eq!("16777216".parse::<Size>().unwrap_err().to_string(), r#""16777216" has no unit; write "16MiB""#);
        assert_eq!("100000".parse::<Size>().unwrap_err().to_string(), r#""100000" has no unit; write "100000B""#);
        assert!("4 parsecs".parse::<Size>().is_err());
    }
}
