//! Settings that all replicas on one Redis should share, because the owner of a stream applies them for all readers. Each
//! replica publishes its settings with its membership; a replica that starts compares.

use std::{fmt, time::Duration};

use redis::cmd;

use super::membership::member_keys;
use crate::{
    model::{Size, Span},
    store::{
        Retention,
        redis::{
            Durability, RedisStore, Settings, UnsupportedServer,
            connection::{CommandError, RedisConnection},
        },
    },
};

/// The shared settings of one replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedSettings {
    durability: Durability,
    retention: Retention,
}

impl SharedSettings {
    /// The settings of this process's store.
    pub fn of(Settings { durability, retention, .. }: &Settings) -> Self {
        // In milliseconds, as memberships carry it.
        let age = Duration::from_millis(u64::try_from(retention.age.as_millis()).unwrap_or(u64::MAX));
        Self { durability: *durability, retention: Retention { age, ..*retention } }
    }

    /// Reads settings from a membership; none when another version wrote more or fewer of them.
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

    /// One text per setting that differs on the other replica.
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

/// The settings as memberships carry them.
impl fmt::Display for SharedSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Retention { events, age, bytes } = self.retention;
        write!(f, "{},{events},{},{bytes}", as_str(self.durability), age.as_millis())
    }
}

/// The value in a configuration.
fn as_str(durability: Durability) -> &'static str {
    match durability {
        Durability::Written => "written",
        Durability::Replicated => "replicated",
    }
}

/// A warning for the operator when a live replica on the store's Redis has other settings.
///
/// # Errors
/// The server does not answer, or forbids a command.
pub async fn settings_warning(store: &RedisStore) -> Result<Option<String>, UnsupportedServer> {
    let settings = store.settings();
    Ok(compare(store.connection(), &settings.prefix, SharedSettings::of(settings)).await?)
}

async fn compare(
    connection: &RedisConnection,
    prefix: &str,
    here: SharedSettings,
) -> Result<Option<String>, CommandError> {
    let (known, members) = member_keys(prefix);
    let replicas: Vec<String> = connection.run(cmd("SMEMBERS").arg(known)).await?;
    for replica in replicas {
        let membership: Option<String> = match connection.run(cmd("GET").arg(format!("{members}{replica}"))).await {
            // Not a membership. The renewals report it.
            Err(error) if error.code() == Some("WRONGTYPE") => None,
            answer => answer?,
        };
        let there = membership.and_then(|membership| SharedSettings::parse(membership.split(' ').nth(2)?));
        let differences = there.map(|there| here.differences(&there)).unwrap_or_default();
        if !differences.is_empty() {
            return Ok(Some(format!(
                "the replica {replica} has other settings, and the owner of a stream decides for all: {}",
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
            let settings = SharedSettings { durability, ..HERE };
            assert_eq!(SharedSettings::parse(&settings.to_string()), Some(settings));
        }
        for text in ["", "written", "written,1,2", "written,1,2,3,4", "maybe,1,2,3", "written,x,2,3"] {
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
