//! Whether a server can hold logs, and what an operator should know about it. Told once, at the start.

use redis::{Value, cmd, pipe};

use crate::store::Retry;

use super::{
    Durability, Settings,
    address::Kind,
    connection::{CommandError, Connection, Script},
    keys::key,
    terms::{self, Terms},
};

/// Older servers refuse the scripts.
const VERSION_MIN: u32 = 7;

/// The server cannot hold logs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("the store cannot be reached: {0}")]
    Unreachable(CommandError),
    #[error("the server is Redis {found}; {VERSION_MIN} or later is needed, or Valkey")]
    TooOld { found: String },
    #[error("the server's user may not run what is needed ({0}); see the ACL in config/trunkline.toml")]
    Forbidden(String),
}

impl Unfit {
    /// When the examination is tried again.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Unreachable(error) if error.is_refused_login() => Retry::Slowly,
            Self::Unreachable(_) => Retry::Soon,
            Self::TooOld { .. } | Self::Forbidden(_) => Retry::Slowly,
        }
    }
}

/// Asks, and tries each command. Returns warnings.
pub(super) async fn examine(connection: &Connection, settings: &Settings) -> Result<Vec<String>, Unfit> {
    let Settings { prefix, durability, .. } = settings;
    let probe = key(prefix, "probe", "probe");
    let about = about(connection, &probe).await?;
    too_old(&about)?;
    permissions(connection, &probe, &format!("{prefix}:probe")).await?;
    match durability {
        Durability::Written => (),
        Durability::Replicated => {
            // For no replica, and without waiting.
            connection.run_all(&probe, pipe().cmd("WAIT").arg(0).arg(1)).await.map_err(unfit)?;
        }
    }
    let save = save(connection, &probe).await;
    let others = terms::compare(connection, prefix, Terms::of(settings)).await.map_err(unfit)?;
    Ok([policy(&about), persistence(&about, save.as_deref()), others].into_iter().flatten().collect())
}

async fn about(connection: &Connection, probe: &str) -> Result<String, Unfit> {
    let answers = connection.run_all(probe, pipe().cmd("INFO")).await.map_err(unfit)?;
    Ok(answers.into_iter().next().and_then(text).unwrap_or_default())
}

/// When the server saves snapshots; none where it does not tell.
async fn save(connection: &Connection, probe: &str) -> Option<String> {
    let answers = connection.run_all(probe, pipe().cmd("CONFIG").arg("GET").arg("save")).await.ok()?;
    let pairs: Vec<(String, String)> = redis::from_redis_value(answers.into_iter().next()?).ok()?;
    pairs.into_iter().find(|(name, _)| name == "save").map(|(_, when)| when)
}

async fn permissions(connection: &Connection, probe: &str, channel: &str) -> Result<(), Unfit> {
    listening(connection, channel).await?;
    let channel = channel.as_bytes();
    let script = Script::new(include_str!("scripts/probe.lua"));
    let refused: Vec<String> = connection.run(&script.in_full(&[probe], &[channel])).await.map_err(unfit)?;
    if !refused.is_empty() {
        return Err(Unfit::Forbidden(refused.join("; ")));
    }
    // It is known by now: this tries the other way to run a script.
    let _: Vec<String> = connection.run(&script.by_name(&[probe], &[channel])).await.map_err(unfit)?;
    let _: Value = connection.run(cmd("XRANGE").arg(probe).arg("-").arg("+")).await.map_err(unfit)?;
    let _: Value = connection.run(cmd("XREAD").arg("STREAMS").arg(probe).arg("0")).await.map_err(unfit)?;
    transaction(connection, probe).await.map_err(unfit)?;
    // A server that cannot be mute answers what nobody needs to hear.
    may(connection.run::<Value>(cmd("CLIENT").arg("REPLY").arg("ON")).await)?;
    may(connection.run::<Value>(cmd("XINFO").arg("STREAM").arg(probe)).await)
}

/// What replicas and refreshers say to one another is heard over connections of their own.
async fn listening(connection: &Connection, channel: &str) -> Result<(), Unfit> {
    connection.listen(&[channel]).await.map(drop).map_err(unfit)
}

/// That there is nothing to tell of, or no such command, is an answer, too.
fn may(told: Result<Value, CommandError>) -> Result<(), Unfit> {
    match told {
        Err(CommandError::Refused { code, .. }) if code == "ERR" => Ok(()),
        told => told.map(drop).map_err(unfit),
    }
}

/// Tried over a connection of its own, which may be left in the midst of one.
async fn transaction(connection: &Connection, probe: &str) -> Result<(), CommandError> {
    match connection.address().kind {
        Kind::Single | Kind::Sentinel { .. } => {
            let commands = pipe().cmd("WATCH").arg(probe).cmd("MULTI").cmd("EXEC").clone();
            connection.another().run_all(probe, &commands).await.map(drop)
        }
        // There appends are scripts.
        Kind::Cluster => Ok(()),
    }
}

fn unfit(error: CommandError) -> Unfit {
    // A transaction that may not be ended is said to be discarded for want of the permission.
    match &error {
        CommandError::Refused { code, text } if code == "NOPERM" || text.contains("NOPERM") => {
            Unfit::Forbidden(error.to_string())
        }
        CommandError::Refused { .. } | CommandError::NotSent(_) | CommandError::NoAnswer(_) => {
            Unfit::Unreachable(error)
        }
    }
}

fn too_old(about: &str) -> Result<(), Unfit> {
    let found = field(about, "redis_version").unwrap_or_default();
    let major = found.split('.').next().and_then(|digits| digits.parse::<u32>().ok());
    match major {
        Some(major) if major < VERSION_MIN => Err(Unfit::TooOld { found: found.to_owned() }),
        // A server that does not tell is tried.
        Some(_) | None => Ok(()),
    }
}

fn policy(about: &str) -> Option<String> {
    let found = field(about, "maxmemory_policy").filter(|policy| *policy != "noeviction")?;
    Some(format!("maxmemory-policy is {found}: entries may vanish before their time; set it to noeviction"))
}

fn persistence(about: &str, save: Option<&str>) -> Option<String> {
    if field(about, "aof_enabled") != Some("0") {
        return None;
    }
    match save {
        Some("") => Some("neither appendonly nor save is set: when the server restarts, all logs are lost".to_owned()),
        Some(_) => {
            Some("appendonly is off: when the server restarts, what came after its last snapshot is lost".to_owned())
        }
        None => Some("appendonly is off: when the server restarts, entries are lost".to_owned()),
    }
}

fn field<'a>(about: &'a str, name: &str) -> Option<&'a str> {
    about.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn text(value: Value) -> Option<String> {
    redis::from_redis_value(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_server_is_refused_by_its_version() {
        assert_eq!(too_old("# Server\r\nredis_version:6.2.14\r\n"), Err(Unfit::TooOld { found: "6.2.14".to_owned() }));
        for about in ["redis_version:7.0.15\r\n", "redis_version:10.1\r\n", ""] {
            assert_eq!(too_old(about), Ok(()), "{about}");
        }
    }

    #[test]
    fn what_may_lose_entries_is_warned_of() {
        assert!(policy("maxmemory_policy:allkeys-lru\r\n").is_some_and(|text| text.contains("allkeys-lru")));
        assert_eq!(policy("maxmemory_policy:noeviction\r\n"), None);
        assert_eq!(persistence("aof_enabled:1\r\n", Some("")), None);
        assert!(persistence("aof_enabled:0\r\n", Some("")).is_some_and(|text| text.contains("all logs")));
        assert!(persistence("aof_enabled:0\r\n", Some("3600 1")).is_some_and(|text| text.contains("snapshot")));
        assert!(persistence("aof_enabled:0\r\n", None).is_some());
    }
}
