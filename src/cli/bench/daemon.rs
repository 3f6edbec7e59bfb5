//! The measured daemon: this program, started with a configuration for one phase.
//!
//! It is killed at the end without a drain, because its folder is deleted.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde::Deserialize;

use super::{
    machine::{self, Cores},
    server::BenchRedis,
    source::BenchSource,
};
use crate::clock;

/// Timeout for the start: every stream is connected, and the consumer listener replies.
const START_MAX: Duration = Duration::from_secs(20);
/// Timeout of a request to the daemon.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// The polling interval of waits.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// A running daemon of `streams` streams, named `s0` and so on.
#[derive(Debug)]
pub(super) struct BenchDaemon {
    child: Child,
    consumers: SocketAddr,
    folder: PathBuf,
}

/// The store of its logs.
#[derive(Debug, Clone, Copy)]
pub(super) enum BenchStore<'a> {
    Embedded,
    Redis(&'a BenchRedis),
}

#[derive(Deserialize)]
struct DaemonListing {
    streams: Vec<DaemonStream>,
}

#[derive(Deserialize)]
struct DaemonStream {
    last: Option<String>,
}

impl BenchDaemon {
    /// Starts the daemon in an empty folder, on a separate core if there are two, and waits until it is connected.
    pub(super) fn start(
        folder: &Path,
        source: &BenchSource,
        streams: usize,
        kept: BenchStore<'_>,
        cores: Option<Cores>,
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let (consumers, admin) = (free_address()?, free_address()?);
        let file = folder.join("bench.toml");
        fs::write(&file, configuration(folder, source.address(), streams, kept, [consumers, admin])?)?;
        let mut command = Command::new(machine::this_program()?);
        command.args(["run", "--config"]).arg(&file);
        // Variables for another daemon must not affect this one.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TRUNKLINE__")) {
            command.env_remove(name);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(folder.join("log"))?);
        // A child inherits the core of its parent.
        let pinned = cores.is_some_and(|cores| machine::pin(cores.daemon));
        let child = command.spawn();
        if let Some(cores) = cores.filter(|_| pinned) {
            machine::pin(cores.load);
        }
        let child = child.context("cannot start this program again")?;
        let mut daemon = Self { child, consumers, folder: folder.to_owned() };
        daemon.wait_until_connected(source, streams)?;
        Ok(daemon)
    }

    fn wait_until_connected(&mut self, source: &BenchSource, streams: usize) -> anyhow::Result<()> {
        let end = clock::now() + START_MAX;
        while clock::now() < end {
            if let Some(status) = self.child.try_wait()? {
                let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
                bail!("the daemon ended with {status}: {}", log.trim());
            }
            // It replies 503 before its store is open.
            if source.connected() >= streams && self.entries().is_ok() {
                return Ok(());
            }
            thread::sleep(POLL_INTERVAL);
        }
        bail!("the daemon was not connected within {} s", START_MAX.as_secs())
    }

    /// The address of the listener for consumers.
    pub(super) fn consumers(&self) -> SocketAddr {
        self.consumers
    }

    /// The CPU time so far, if the system provides it.
    pub(super) fn cpu(&self) -> Option<Duration> {
        machine::cpu_time(self.child.id())
    }

    /// Resident memory in bytes, if the system provides it.
    pub(super) fn resident(&self) -> Option<u64> {
        machine::resident(self.child.id())
    }

    /// The number of durable entries in all logs.
    pub(super) fn entries(&self) -> anyhow::Result<u64> {
        let mut socket = TcpStream::connect(self.consumers).context("the daemon does not listen")?;
        socket.set_read_timeout(Some(ANSWER_MAX))?;
        let host = self.consumers;
        write!(socket, "GET /v1/streams HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).context("the daemon does not reply")?;
        let (_, body) = answer.split_once("\r\n\r\n").context("the daemon's response has no body")?;
        let listing: DaemonListing = serde_json::from_str(body).context("the daemon's response is invalid")?;
        let offset = |listed: &DaemonStream| listed.last.as_ref()?.rsplit_once('-')?.1.parse::<u64>().ok();
        Ok(listing.streams.iter().filter_map(offset).sum())
    }

    /// Waits until `wanted` entries are durable or the time is over; returns the number of durable entries.
    pub(super) fn wait_for_entries(&self, wanted: u64, end: Instant) -> anyhow::Result<u64> {
        loop {
            let entries = self.entries()?;
            if entries >= wanted || clock::now() >= end {
                return Ok(entries);
            }
            thread::sleep(POLL_INTERVAL);
        }
    }
}

impl Drop for BenchDaemon {
    fn drop(&mut self) {
        // The process may have exited already.
        drop(self.child.kill());
        drop(self.child.wait());
        drop(fs::remove_dir_all(&self.folder));
    }
}

impl BenchStore<'_> {
    /// The keys of the `[store]` table.
    fn keys(self) -> String {
        match self {
            Self::Embedded => String::new(),
            Self::Redis(server) => {
                let [url, prefix] = [server.url(), server.prefix()].map(toml::Value::from);
                format!("kind = \"redis\"\nurl = {url}\nprefix = {prefix}")
            }
        }
    }
}

/// A free port; it may be taken before it is used.
pub(super) fn free_address() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port is free")?;
    Ok(listener.local_addr()?)
}

fn configuration(
    folder: &Path,
    source: SocketAddr,
    streams: usize,
    kept: BenchStore<'_>,
    [consumers, admin]: [SocketAddr; 2],
) -> anyhow::Result<String> {
    let token = folder.join("token");
    fs::write(&token, "bench")?;
    let [data, token] = [folder.join("data"), token].map(|path| toml::Value::from(path.display().to_string()));
    let mut text = format!(
        r#"
[http]
connections_per_address = 1000000
listen = "{consumers}"
[admin]
listen = "{admin}"
[store]
path = {data}
{}
[accounts.bench]
platform = "generic"
grant = "static"
token = {{ file = {token} }}
"#,
        kept.keys()
    );
    for stream in 0..streams {
        text.push_str(&format!(
            "[streams.s{stream}]\naccount = \"bench\"\nconnector = \"genesys-sequenced\"\nurl = \"ws://{source}/\"\n"
        ));
    }
    Ok(text)
}
