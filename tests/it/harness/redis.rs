//! A real `redis-server` of its own: on a free port, in a temporary folder, gone with the value.

use std::{
    net::{Ipv4Addr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use trunkline::{
    clock,
    store::redis::connection::{Connection, Limits},
};

/// A server is up well within it.
const START_MAX: Duration = Duration::from_secs(8);
/// Ports are tried again when another process was quicker.
const PORTS_MAX: usize = 5;

/// A running server.
pub(crate) struct Redis {
    folder: TempDir,
    port: u16,
    options: Vec<String>,
    child: Child,
}

impl Redis {
    /// Each write is on disk before it is answered.
    pub(crate) fn durable() -> Self {
        Self::start(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    /// Keeps everything in memory.
    pub(crate) fn volatile() -> Self {
        Self::start(&["--appendonly", "no"])
    }

    /// With options as on its command line.
    pub(crate) fn start(options: &[&str]) -> Self {
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        for _ in 0..PORTS_MAX {
            let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
            let mut child = run(&folder, port, &options);
            if answers(&mut child, port) {
                return Self { folder, port, options, child };
            }
        }
        panic!("redis-server does not start");
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// A connection that gives up soon.
    pub(crate) fn connection(&self) -> Connection {
        Connection::new(self.url().parse().unwrap(), limits())
    }

    /// Everything that it wrote to its folder.
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

    /// As when the machine loses its power, except that what was given to the disk is there.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again, on the same port and with its files.
    pub(crate) fn restart(&mut self) {
        self.child = run(&self.folder, self.port, &self.options);
        assert!(answers(&mut self.child, self.port), "redis-server does not start again");
    }

    /// It answers nothing any more, and loses nothing.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // It may be dead already; a stopped one dies, too.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// For tests that take servers away.
pub(crate) fn limits() -> Limits {
    Limits { connect: Duration::from_millis(800), answer: Duration::from_millis(800) }
}

/// A port that nobody listens on right now.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn run(folder: &TempDir, port: u16, options: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    command
        .args([
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--daemonize",
            "no",
            "--repl-diskless-sync-delay",
            "0",
        ])
        .args(["--dir", folder.path().to_str().unwrap()])
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().unwrap_or_else(|error| {
        panic!("cannot run redis-server ({error}); install it: sudo apt-get install -y redis-server")
    })
}

/// Waits until the server takes connections; not so when it ends before.
fn answers(child: &mut Child, port: u16) -> bool {
    let end = clock::now() + START_MAX;
    while clock::now() < end {
        if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return true;
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}
