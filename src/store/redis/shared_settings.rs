//! What replicas on one Redis should have set alike: whoever holds a stream decides it for all that read it. Each says
//! its own with its membership, and one that starts compares.

use std::{fmt, time::Duration};

use redis::cmd;

use super::{
    Durability, Settings,
    connection::{CommandError, RedisConnection},
    registry::memberships,
};
use crate::{
    model::{Size, Span},
    store::Retention,
};

/// What one replica goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedSettings {
    durability: Durability,
    retention: Retention,
}

impl SharedSettings {
    pub(super) fn of(Settings { durability, retention, .. }: &Settings) -> Self {
        // As exact as they are said.
        let age = Duration::from_millis(u64::try_from(retention.age.as_millis()).unwrap_or(u64::MAX));
        Self { durability: *durability, retention: Retention { age, ..*retention } }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let [durability, events, age, bytes] = <[&str; 4]>::try_from(text.split(',').collect::<Vec<_>>()).ok()?;
        let durability =
            [Durability::Written, Durability::Replicated].into_iter().find(|one| as_str(*one) == durability)?;
        let age = Duration::from_millis(age.parse().ok()?);
        Some(Self {
            durability,
            retention: Retention { events: events.parse().ok()?, age, bytes: bytes.parse().ok()? },
        })
    }

    /// What is otherwise there, for people.
    fn differences(&self, there: &Self) -> Vec<String> {
        let (ours, theirs) = (&self.retention, &there.retention);
        let pairs = [
            ("durability", as_str(self.durability).to_owned(), as_str(there.durability).to_owned()),
            ("retention.events", ours.events.to_string(), theirs.events.to_string()),
            ("retention.age", Span(ours.age).to_string(), Span(theirs.age).to_string()),
            ("retention.bytes", Size(ours.bytes).to_string(), Size(theirs.bytes).to_string()),
        ];
        let different = pairs.into_iter().filter(|(_, here, there)| here != there);
        different.map(|(name, here, there)| format!("{name} is {there} there and {here} here")).collect()
    }
}

/// As a membership says it; a replica of another version that knows more or less of it is not compared.
impl fmt::Display for SharedSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Retention { events, age, bytes } = self.retention;
        write!(f, "{},{events},{},{bytes}", as_str(self.durability), age.as_millis())
    }
}

/// As a configuration has it.
fn as_str(durability: Durability) -> &'static str {
    match durability {
        Durability::Written => "written",
        Durability::Replicated => "replicated",
    }
}

/// What an operator should know of the replicas that live.
pub(super) async fn compare(
    connection: &RedisConnection,
    prefix: &str,
    here: SharedSettings,
) -> Result<Option<String>, CommandError> {
    let (known, lives) = memberships(prefix);
    let replicas: Vec<String> = connection.run(cmd("SMEMBERS").arg(known)).await?;
    for replica in replicas {
        let says: Option<String> = match connection.run(cmd("GET").arg(format!("{lives}{replica}"))).await {
            // No membership at all. The renewals report it.
            Err(error) if error.code() == Some("WRONGTYPE") => None,
            says => says?,
        };
        let terms = says.and_then(|says| SharedSettings::parse(says.split(' ').nth(2)?));
        let differences = terms.map(|there| here.differences(&there)).unwrap_or_default();
        if !differences.is_empty() {
            return Ok(Some(format!(
                "the replica {replica} has other settings, and whoever holds a stream decides for all: {}",
                differences.join(", ")
            )));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: SharedSettings = SharedSettings {
        durability: Durability::Written,
        retention: Retention { events: 1_000, age: Duration::from_secs(7_200), bytes: 1 << 20 },
    };

    #[test]
    fn shared_settings_round_trip() {
        for durability in [Durability::Written, Durability::Replicated] {
            let terms = SharedSettings { durability, ..HERE };
            assert_eq!(SharedSettings::parse(&terms.to_string()), Some(terms));
        }
        for text in ["", "written", "written,1,2", "written,1,2,3,4", "perhaps,1,2,3", "written,x,2,3"] {
            assert_eq!(SharedSettings::parse(text), None, "{text}");
        }
    }

    #[test]
    fn each_difference_is_named() {
        assert!(HERE.differences(&HERE).is_empty());
        let there = SharedSettings {
            durability: Durability::Replicated,
            retention: Retention { age: Duration::from_secs(90), ..HERE.retention },
        };
        let expected = ["durability is replicated there and written here", "retention.age is 90s there and 2h here"]
            .map(str::to_owned);
        assert_eq!(HERE.differences(&there), expected);
    }
}
