//! The Redis that is measured with: one of the bench's own, which is gone with the value, or one that was named, from
//! which everything is removed again.

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

/// What an own one is started from.
const PROGRAM: &str = "redis-server";
/// From start until it greets.
const START_MAX: Duration = Duration::from_secs(10);
/// A server that was named is reached within it.
const CONNECT_MAX: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// The one stream that is measured, as a daemon names it.
const STREAM: &str = "s0";

/// Which Redis it is.
#[derive(Debug, Clone)]
pub(super) enum Which {
    /// A `redis-server` that is installed, of this version.
    Own { version: String },
    /// One server, at this URL.
    Given { url: String, shown: String },
}

impl Which {
    /// The one that was named, else an own one; none where there is neither.
    pub(super) fn find(url: Option<&str>) -> anyhow::Result<Option<Self>> {
        let Some(url) = url else { return Ok(installed().map(|version| Self::Own { version })) };
        let address: Address = url.parse().context("--redis names no server")?;
        Ok(Some(Self::Given { url: url.to_owned(), shown: address.to_string() }))
    }

    /// For people.
    pub(super) fn told(&self) -> String {
        match self {
            Self::Own { version } => format!("Redis {version} started for this, appendfsync everysec"),
            Self::Given { shown, .. } => format!("Redis at {shown}"),
        }
    }
}

/// The version of what is installed.
fn installed() -> Option<String> {
    let told = Command::new(PROGRAM).arg("--version").output().ok()?;
    let told = String::from_utf8(told.stdout).ok()?;
    Some(told.split_whitespace().find_map(|word| word.strip_prefix("v="))?.to_owned())
}

/// A server that greets, and a part of it that is empty.
#[derive(Debug)]
pub(super) struct Server {
    url: String,
    prefix: String,
    own: Option<Own>,
}

#[derive(Debug)]
struct Own {
    child: Child,
    folder: PathBuf,
}

impl Server {
    /// Starts one in an empty folder, or takes the one that was named.
    pub(super) fn start(which: &Which, folder: &Path) -> anyhow::Result<Self> {
        let prefix = format!("bench-{}", std::process::id());
        match which {
            Which::Given { url, .. } => Ok(Self { url: url.clone(), prefix, own: None }),
            Which::Own { .. } => {
                fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
                let address = free_address()?;
                let child = run(folder, address.port()).context("cannot start redis-server")?;
                let own = Some(Own { child, folder: folder.to_owned() });
                let mut server = Self { url: format!("redis://{address}/0"), prefix, own };
                server.wait_until_it_greets()?;
                Ok(server)
            }
        }
    }

    fn wait_until_it_greets(&mut self) -> anyhow::Result<()> {
        let end = clock::now() + START_MAX;
        while clock::now() < end {
            if let Some(own) = &mut self.own
                && let Some(status) = own.child.try_wait()?
            {
                bail!("redis-server ended with {status}");
            }
            if self.connect().is_ok() {
                return Ok(());
            }
            thread::sleep(LOOK_EVERY);
        }
        bail!("redis-server did not answer within {} s", START_MAX.as_secs())
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// What the keys of the daemon that is measured begin with.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A connection for one thread.
    pub(super) fn connect(&self) -> anyhow::Result<redis::Connection> {
        let client = redis::Client::open(self.url.as_str()).context("only a single server can be measured with")?;
        client.get_connection_with_timeout(CONNECT_MAX).context("cannot connect to Redis")
    }

    /// CPU time used so far, where the system tells and the server is ours.
    pub(super) fn cpu(&self) -> Option<Duration> {
        self.own.as_ref().and_then(|own| machine::cpu_time(own.child.id()))
    }

    /// The newest entry that the daemon wrote.
    pub(super) fn newest_entry(&self) -> anyhow::Result<Vec<u8>> {
        type Entries = Vec<(String, (String, Vec<u8>))>;
        let log = self.key(STREAM, "log");
        let found: Entries =
            redis::cmd("XREVRANGE").arg(log).arg("+").arg("-").arg("COUNT").arg(1).query(&mut self.connect()?)?;
        let (_, (_, entry)) = found.into_iter().next().context("the daemon wrote nothing")?;
        Ok(entry)
    }

    /// A key of the bench's own, or of a stream of the daemon.
    pub(super) fn key(&self, about: &str, what: &str) -> String {
        key(&self.prefix, about, what)
    }

    /// Everything that was written; what lives for seconds goes by itself.
    fn forget(&self) -> anyhow::Result<()> {
        let abouts = [STREAM, "bare", "pipeline"];
        let streams = abouts.iter().flat_map(|about| [self.key(about, "log"), self.key(about, "head")]);
        let keys: Vec<String> = streams.chain([self.key("replicas", "known")]).collect();
        redis::cmd("UNLINK").arg(keys).query::<u64>(&mut self.connect()?)?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        match &mut self.own {
            // It may have ended by itself, and the folder may be gone: then there is nothing left to do.
            Some(Own { child, folder }) => {
                drop(child.kill());
                drop(child.wait());
                drop(fs::remove_dir_all(folder));
            }
            // A server that does not answer any more has the phase fail, too.
            None => drop(self.forget()),
        }
    }
}

/// As the documents want it, but that it never rewrites its file while it is measured.
fn run(folder: &Path, port: u16) -> io::Result<Child> {
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
    fn a_server_that_is_named_is_told_without_its_password() {
        let which = Which::find(Some("redis://relay:hunter2@redis.test:6380/1")).unwrap().unwrap();
        assert!(which.told().contains("redis.test:6380") && !which.told().contains("hunter2"), "{}", which.told());
        assert!(Which::find(Some("http://redis.test")).is_err());
    }
}
