//! The Redis for the measurement: a temporary `redis-server`, or the one of `--redis`, whose test data is deleted.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, bail};

use super::{daemon::free_address, machine};
use crate::{
    clock,
    store::redis::{address::Address, keys::key},
};

/// The program for a temporary server.
const PROGRAM: &str = "redis-server";
/// Timeout for the start of the server.
const START_MAX: Duration = Duration::from_secs(10);
/// Timeout for a connection to the server.
const CONNECT_MAX: Duration = Duration::from_secs(3);
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// The name of the measured stream.
const STREAM: &str = "s0";

/// The choice of a Redis.
#[derive(Debug, Clone)]
pub(super) enum RedisChoice {
    /// The installed `redis-server`, with its version.
    Local { version: String },
    /// The server at this URL.
    External { url: String, shown: String },
}

impl RedisChoice {
    /// The server of `--redis`, else the installed program; `None` if there is neither.
    pub(super) fn find(url: Option<&str>) -> anyhow::Result<Option<Self>> {
        let Some(url) = url else { return Ok(installed_version().map(|version| Self::Local { version })) };
        let address: Address = url.parse().context("--redis: invalid URL")?;
        Ok(Some(Self::External { url: url.to_owned(), shown: address.to_string() }))
    }

    /// The description for the report.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Local { version } => format!("temporary Redis {version}, appendfsync everysec"),
            Self::External { shown, .. } => format!("Redis at {shown}"),
        }
    }
}

/// The version of the installed program.
fn installed_version() -> Option<String> {
    let output = Command::new(PROGRAM).arg("--version").output().ok()?;
    let output = String::from_utf8(output.stdout).ok()?;
    Some(output.split_whitespace().find_map(|word| word.strip_prefix("v="))?.to_owned())
}

/// A running server, and an unused key prefix in it.
#[derive(Debug)]
pub(super) struct BenchRedis {
    url: String,
    prefix: String,
    process: Option<RedisProcess>,
}

#[derive(Debug)]
struct RedisProcess {
    child: Child,
    folder: PathBuf,
}

impl BenchRedis {
    /// Starts a server in an empty folder, or uses the server of `--redis`.
    pub(super) fn start(choice: &RedisChoice, folder: &Path) -> anyhow::Result<Self> {
        let prefix = format!("bench-{}", std::process::id());
        match choice {
            RedisChoice::External { url, .. } => Ok(Self { url: url.clone(), prefix, process: None }),
            RedisChoice::Local { .. } => {
                fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
                let address = free_address()?;
                let child = spawn_redis(folder, address.port()).context("cannot start redis-server")?;
                let own = Some(RedisProcess { child, folder: folder.to_owned() });
                let mut server = Self { url: format!("redis://{address}/0"), prefix, process: own };
                server.wait_until_ready()?;
                Ok(server)
            }
        }
    }

    fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let end = clock::now() + START_MAX;
        while clock::now() < end {
            if let Some(own) = &mut self.process
                && let Some(status) = own.child.try_wait()?
            {
                bail!("redis-server exited with {status}");
            }
            if self.connect().is_ok() {
                return Ok(());
            }
            thread::sleep(POLL_INTERVAL);
        }
        bail!("redis-server did not reply within {} s", START_MAX.as_secs())
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// The key prefix of the measured daemon.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Opens a connection for one thread.
    pub(super) fn connect(&self) -> anyhow::Result<redis::Connection> {
        let client = redis::Client::open(self.url.as_str()).context("--redis: only a single server is supported")?;
        client.get_connection_with_timeout(CONNECT_MAX).context("cannot connect to Redis")
    }

    /// The CPU time so far, if the system provides it and the server is local.
    pub(super) fn cpu(&self) -> Option<Duration> {
        self.process.as_ref().and_then(|own| machine::cpu_time(own.child.id()))
    }

    /// The daemon's newest entry.
    pub(super) fn newest_entry(&self) -> anyhow::Result<Vec<u8>> {
        type RangeReply = Vec<(String, (String, Vec<u8>))>;
        let log = self.key(STREAM, "log");
        let found: RangeReply =
            redis::cmd("XREVRANGE").arg(log).arg("+").arg("-").arg("COUNT").arg(1).query(&mut self.connect()?)?;
        let (_, (_, entry)) = found.into_iter().next().context("the daemon wrote nothing")?;
        Ok(entry)
    }

    /// A key of the bench or of a stream of the daemon.
    pub(super) fn key(&self, about: &str, what: &str) -> String {
        key(&self.prefix, about, what)
    }

    /// Deletes all written keys, except for those that expire after seconds.
    fn delete_keys(&self) -> anyhow::Result<()> {
        let abouts = [STREAM, "bare", "pipeline"];
        let streams = abouts.iter().flat_map(|about| [self.key(about, "log"), self.key(about, "head")]);
        let keys: Vec<String> = streams.chain([self.key("replicas", "known")]).collect();
        redis::cmd("UNLINK").arg(keys).query::<u64>(&mut self.connect()?)?;
        Ok(())
    }
}

impl Drop for BenchRedis {
    fn drop(&mut self) {
        match &mut self.process {
            // The process may have exited already.
            Some(RedisProcess { child, folder }) => {
                drop(child.kill());
                drop(child.wait());
                drop(fs::remove_dir_all(folder));
            }
            // If the server does not reply, the phase fails as well.
            None => drop(self.delete_keys()),
        }
    }
}

/// The recommended settings, without rewrites of the append-only file during the measurement.
fn spawn_redis(folder: &Path, port: u16) -> io::Result<Child> {
    let port = port.to_string();
    let mut command = Command::new(PROGRAM);
    command.args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--dir"]).arg(folder);
    command.args(["--appendonly", "yes", "--appendfsync", "everysec", "--auto-aof-rewrite-percentage", "0"]);
    command.args(["--stream-node-max-bytes", "16kb"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_given_server_is_described_without_its_password() {
        let which = RedisChoice::find(Some("redis://relay:hunter2@redis.test:6380/1")).unwrap().unwrap();
        assert!(
            which.describe().contains("redis.test:6380") && !which.describe().contains("hunter2"),
            "{}",
            which.describe()
        );
        assert!(RedisChoice::find(Some("http://redis.test")).is_err());
    }
}
