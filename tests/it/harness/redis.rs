//! Real `redis-server` processes, each on a free port and in a temporary folder, stopped on drop. Also Sentinel, cluster
//! and Valkey.

use std::{
    fs,
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

use redis::cmd;
use tempfile::TempDir;

use super::{WAIT_MAX, within};
use trunkline::{
    clock,
    store::redis::connection::{RedisConnection, RedisTimeouts},
};

/// Longest time for a start.
const START_MAX: Duration = Duration::from_secs(8);
/// Attempts to start, because another process may take the free port.
const PORTS_MAX: usize = 5;

/// A server's program, and how to install it.
#[derive(Debug, Clone, Copy)]
struct ServerProgram {
    name: &'static str,
    install: &'static str,
}

const REDIS: ServerProgram = ServerProgram { name: "redis-server", install: "sudo apt-get install -y redis-server" };
const VALKEY: ServerProgram = ServerProgram {
    name: "valkey-server",
    install: "sudo apt-get install -y valkey-server (in Debian 12: with -t bookworm-backports)",
};

/// A running server.
pub(crate) struct RedisServer {
    program: ServerProgram,
    folder: TempDir,
    port: u16,
    options: Vec<String>,
    child: Child,
    extra_folder: Option<TempDir>,
}

impl RedisServer {
    /// A server that syncs each write to disk before its reply.
    pub(crate) fn durable() -> Self {
        Self::start(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    /// A server that keeps everything in memory.
    pub(crate) fn volatile() -> Self {
        Self::start(&["--appendonly", "no"])
    }

    /// A Valkey that keeps everything in memory.
    pub(crate) fn valkey() -> Self {
        Self::start_as(VALKEY, &["--appendonly", "no"])
    }

    /// A server that starts with the saved files of another.
    pub(crate) fn copy_of(other: &Self) -> Self {
        let mut copy = Self::volatile();
        copy.kill();
        let saved = |server: &Self| server.folder.path().join("dump.rdb");
        fs::copy(saved(other), saved(&copy)).unwrap();
        copy.restart();
        copy
    }

    /// A server with command-line options.
    pub(crate) fn start(options: &[&str]) -> Self {
        Self::start_as(REDIS, options)
    }

    fn start_as(program: ServerProgram, options: &[&str]) -> Self {
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        for _ in 0..PORTS_MAX {
            let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
            let mut child = run(program, &folder, port, &options);
            if answers(&mut child, port) {
                return Self { program, folder, port, options, child, extra_folder: None };
            }
        }
        panic!("{} does not start", program.name);
    }

    /// A Sentinel that monitors `primary` under the name `main` with a quorum of one.
    pub(crate) fn sentinel(primary: &Self) -> Self {
        Self::sentinel_with(primary, "")
    }

    /// A Sentinel for `primary` with additional lines in its configuration file.
    pub(crate) fn sentinel_with(primary: &Self, lines: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sentinel.conf");
        let text = format!(
            "bind 127.0.0.1\ndir {}\nsentinel monitor main 127.0.0.1 {} 1\n\
             sentinel down-after-milliseconds main 300\nsentinel failover-timeout main 2000\n{lines}",
            folder.path().display(),
            primary.port
        );
        fs::write(&file, text).unwrap();
        let mut sentinel = Self::start(&[file.to_str().unwrap(), "--sentinel"]);
        // The file must exist until the server has read it.
        sentinel.extra_folder = Some(folder);
        sentinel
    }

    /// A cluster of three primaries.
    pub(crate) async fn cluster() -> [Self; 3] {
        Self::cluster_with(&["--appendonly", "no"]).await
    }

    /// A cluster of three primaries with command-line options for each node.
    pub(crate) async fn cluster_with(options: &[&str]) -> [Self; 3] {
        let bus = [free_port(), free_port(), free_port()];
        let nodes = bus.map(|bus| {
            let bus = bus.to_string();
            Self::start(&[&["--cluster-enabled", "yes", "--cluster-port", &bus], options].concat())
        });
        let run_command = async |node: &Self, words: &[&str]| {
            node.connection().run::<()>(cmd("CLUSTER").arg(words)).await.unwrap();
        };
        for (node, [first, last]) in nodes.iter().zip([["0", "5460"], ["5461", "10922"], ["10923", "16383"]]) {
            run_command(node, &["ADDSLOTSRANGE", first, last]).await;
        }
        for (node, bus) in nodes.iter().zip(bus).skip(1) {
            run_command(&nodes[0], &["MEET", "127.0.0.1", &node.port.to_string(), &bus.to_string()]).await;
        }
        for node in &nodes {
            let connection = node.connection();
            // A new cluster needs some seconds, and longer on a busy machine.
            within(4 * WAIT_MAX, "the nodes know each other", async || {
                let about: String = connection.run(cmd("CLUSTER").arg("INFO")).await.unwrap();
                about.contains("cluster_state:ok") && about.contains("cluster_known_nodes:3")
            })
            .await;
        }
        nodes
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// A connection with short timeouts.
    pub(crate) fn connection(&self) -> RedisConnection {
        RedisConnection::new(self.url().parse().unwrap(), limits())
    }

    /// The content of all files in its folder.
    pub(crate) fn files(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut folders = vec![self.folder.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => folders.push(path),
                    false => bytes.extend(std::fs::read(path).unwrap()),
                }
            }
        }
        bytes
    }

    /// Kills the process, as a power failure does; data passed to the operating system stays.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again on the same port with its files.
    pub(crate) fn restart(&mut self) {
        self.child = run(self.program, &self.folder, self.port, &self.options);
        assert!(answers(&mut self.child, self.port), "{} does not start again", self.program.name);
    }

    /// Stops the process with a signal: it does not reply and loses nothing.
    pub(crate) fn pause(&self) {
        self.signal("STOP");
    }

    pub(crate) fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("sh").args(["-c", "kill -\"$0\" \"$1\"", name, &id]).status().unwrap();
        assert!(sent.success(), "kill -{name} {id}");
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // It may have ended already. The signal ends a stopped process, too.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Short timeouts for tests that stop servers.
pub(crate) fn limits() -> RedisTimeouts {
    RedisTimeouts { connect: Duration::from_millis(800), response: Duration::from_millis(800) }
}

/// The ACL rules in the comments of the shipped configuration.
pub(crate) fn documented_rules() -> Vec<String> {
    let shipped = include_str!("../../../config/trunkline.toml");
    let (_, after) = shipped.split_once("ACL SETUSER trunkline ").unwrap();
    let (rules, _) = after.split_once("\n#url").unwrap();
    rules.split_whitespace().map(|word| word.trim_matches('\'').to_owned()).collect()
}

/// A port without a listener at this moment.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn run(program: ServerProgram, folder: &TempDir, port: u16, options: &[String]) -> Child {
    let (port, folder) = (port.to_string(), folder.path().to_str().unwrap());
    let ServerProgram { name, install } = program;
    let mut command = Command::new(name);
    if options.iter().any(|option| option == "--sentinel") {
        // A configuration file must be the first argument.
        command.args(options).args(["--port", &port]);
    } else {
        command.args(["--port", &port, "--bind", "127.0.0.1", "--dir", folder, "--save", ""]);
        command.args(["--repl-diskless-sync-delay", "0"]).args(options);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap_or_else(|error| panic!("cannot run {name} ({error}); install it: {install}"))
}

/// The first bytes of its reply. While it loads its files, this is an error.
fn greets(port: u16) -> io::Result<[u8; 5]> {
    let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.write_all(b"PING\r\n")?;
    let mut greeting = [0; 5];
    socket.read_exact(&mut greeting)?;
    Ok(greeting)
}

/// Waits until the server replies. False if it ends first.
fn answers(child: &mut Child, port: u16) -> bool {
    let end = clock::now() + START_MAX;
    while clock::now() < end {
        if greets(port).is_ok_and(|greeting| greeting == *b"+PONG" || greeting == *b"-NOAU") {
            return true;
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}
