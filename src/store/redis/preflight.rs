//! The preflight check: whether a server can hold logs, and warnings for the operator, once at the start.

use redis::{Value, cmd, pipe};

use crate::{store::Retry, telemetry::Cause};

use super::{
    Durability, Settings,
    address::Topology,
    connection::{CommandError, LuaScript, RedisConnection},
    keys::key,
};

/// Older servers reject the scripts.
const VERSION_MIN: u32 = 7;

/// The server cannot hold logs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnsupportedServer {
    #[error("the store cannot be reached")]
    Unreachable(#[source] CommandError),
    #[error("the server is Redis {found}; {VERSION_MIN} or later is needed, or Valkey")]
    TooOld { found: String },
    #[error("the server's user may not run what is needed (see the ACL in config/trunkline.toml)")]
    Forbidden(#[source] Cause),
}

impl UnsupportedServer {
    /// How soon the preflight is retried.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Unreachable(error) if error.is_refused_login() => Retry::Slowly,
            Self::Unreachable(_) => Retry::Soon,
            Self::TooOld { .. } | Self::Forbidden(_) => Retry::Slowly,
        }
    }
}

/// Checks the version and tries each command. Returns warnings.
pub(super) async fn run(connection: &RedisConnection, settings: &Settings) -> Result<Vec<String>, UnsupportedServer> {
    let Settings { prefix, durability, .. } = settings;
    let probe = key(prefix, "probe", "probe");
    let about = server_info(connection, &probe).await?;
    check_version(&about)?;
    permissions(connection, &probe, &format!("{prefix}:probe")).await?;
    match durability {
        Durability::Written => (),
        Durability::Replicated => {
            // For zero replicas, so it returns immediately.
            connection.run_all(&probe, pipe().cmd("WAIT").arg(0).arg(1)).await?;
        }
    }
    let save = save(connection, &probe).await;
    Ok([eviction_warning(&about), persistence_warning(&about, save.as_deref())].into_iter().flatten().collect())
}

async fn server_info(connection: &RedisConnection, probe: &str) -> Result<String, UnsupportedServer> {
    let answers = connection.run_all(probe, pipe().cmd("INFO")).await?;
    Ok(answers.into_iter().next().and_then(text).unwrap_or_default())
}

/// The server's snapshot schedule; none where the user may not read it.
async fn save(connection: &RedisConnection, probe: &str) -> Option<String> {
    let answers = connection.run_all(probe, pipe().cmd("CONFIG").arg("GET").arg("save")).await.ok()?;
    let pairs: Vec<(String, String)> = redis::from_redis_value(answers.into_iter().next()?).ok()?;
    pairs.into_iter().find(|(name, _)| name == "save").map(|(_, when)| when)
}

async fn permissions(connection: &RedisConnection, probe: &str, channel: &str) -> Result<(), UnsupportedServer> {
    check_pubsub(connection, channel).await?;
    let channel = channel.as_bytes();
    let script = LuaScript::new(include_str!("scripts/probe.lua"));
    let refused: Vec<String> = connection.run(&script.in_full(&[probe], &[channel])).await?;
    if !refused.is_empty() {
        return Err(UnsupportedServer::Forbidden(Cause::new(refused.join("; "))));
    }
    // The server has the script now, so this call tries EVALSHA.
    let _: Vec<String> = connection.run(&script.by_name(&[probe], &[channel])).await?;
    let _: Value = connection.run(cmd("XRANGE").arg(probe).arg("-").arg("+")).await?;
    let _: Value = connection.run(cmd("XREAD").arg("STREAMS").arg(probe).arg("0")).await?;
    transaction(connection, probe).await?;
    // Without CLIENT REPLY the server replies to every append.
    tolerate(connection.run::<Value>(cmd("CLIENT").arg("REPLY").arg("ON")).await)?;
    tolerate(connection.run::<Value>(cmd("XINFO").arg("STREAM").arg(probe)).await)
}

/// Tries pub/sub, which replicas and token refreshers use.
async fn check_pubsub(connection: &RedisConnection, channel: &str) -> Result<(), UnsupportedServer> {
    connection.listen(&[channel]).await.map(drop).map_err(UnsupportedServer::from)
}

/// Accepts an error of the command itself, such as an unknown command or a missing key.
fn tolerate(answer: Result<Value, CommandError>) -> Result<(), UnsupportedServer> {
    match answer {
        Err(CommandError::Refused { code, .. }) if code == "ERR" => Ok(()),
        answer => answer.map(drop).map_err(UnsupportedServer::from),
    }
}

/// Tries a transaction over a dedicated connection, as a failure may leave it inside one.
async fn transaction(connection: &RedisConnection, probe: &str) -> Result<(), CommandError> {
    match connection.address().topology {
        Topology::Single | Topology::Sentinel { .. } => {
            let commands = pipe().cmd("WATCH").arg(probe).cmd("MULTI").cmd("EXEC").clone();
            connection.dedicated().run_all(probe, &commands).await.map(drop)
        }
        // In a cluster appends are scripts.
        Topology::Cluster => Ok(()),
    }
}

impl From<CommandError> for UnsupportedServer {
    fn from(error: CommandError) -> Self {
        // Where EXEC is forbidden, the server answers EXECABORT and names NOPERM in the text.
        match &error {
            CommandError::Refused { code, text } if code == "NOPERM" || text.contains("NOPERM") => {
                Self::Forbidden(Cause::new(error))
            }
            CommandError::Refused { .. }
            | CommandError::NotSent(_)
            | CommandError::LoginRefused(_)
            | CommandError::NoAnswer(_) => Self::Unreachable(error),
        }
    }
}

fn check_version(about: &str) -> Result<(), UnsupportedServer> {
    let found = field(about, "redis_version").unwrap_or_default();
    let major = found.split('.').next().and_then(|digits| digits.parse::<u32>().ok());
    match major {
        Some(major) if major < VERSION_MIN => Err(UnsupportedServer::TooOld { found: found.to_owned() }),
        // A server without a version is tried.
        Some(_) | None => Ok(()),
    }
}

fn eviction_warning(about: &str) -> Option<String> {
    let found = field(about, "maxmemory_policy").filter(|policy| *policy != "noeviction")?;
    Some(format!("maxmemory-policy is {found}: the server may remove entries; set it to noeviction"))
}

fn persistence_warning(about: &str, save: Option<&str>) -> Option<String> {
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
        assert_eq!(
            check_version("# Server\r\nredis_version:6.2.14\r\n"),
            Err(UnsupportedServer::TooOld { found: "6.2.14".to_owned() })
        );
        for about in ["redis_version:7.0.15\r\n", "redis_version:10.1\r\n", ""] {
            assert_eq!(check_version(about), Ok(()), "{about}");
        }
    }

    #[test]
    fn settings_that_may_lose_entries_cause_a_warning() {
        assert!(eviction_warning("maxmemory_policy:allkeys-lru\r\n").is_some_and(|text| text.contains("allkeys-lru")));
        assert_eq!(eviction_warning("maxmemory_policy:noeviction\r\n"), None);
        assert_eq!(persistence_warning("aof_enabled:1\r\n", Some("")), None);
        assert!(persistence_warning("aof_enabled:0\r\n", Some("")).is_some_and(|text| text.contains("all logs")));
        assert!(persistence_warning("aof_enabled:0\r\n", Some("3600 1")).is_some_and(|text| text.contains("snapshot")));
        assert!(persistence_warning("aof_enabled:0\r\n", None).is_some());
    }
}
