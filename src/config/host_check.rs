//! Checks of a valid configuration on this machine: free ports, a writable directory.
//!
//! `check` uses it; `run` does not, because it stays up and reports what it waits for. A port on which Trunkline
//! listens already is only a warning, so that `check` works on the machine of the running daemon.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Config,
    finding::{Finding, Findings, KeyPath},
};

/// How long to wait for a reply from the program that listens already.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// The maximum length of that reply in bytes.
const ANSWER_LEN_MAX: u64 = 4 * 1024;

/// A request and the replies by which a listener of Trunkline is recognised.
struct EndpointSignature {
    path: &'static str,
    answers: &'static [&'static str],
}

const CONSUMERS: EndpointSignature =
    EndpointSignature { path: "/v1/streams", answers: &["\"streams\"", "application/problem+json"] };
const OPERATORS: EndpointSignature = EndpointSignature { path: "/healthz", answers: &["\r\n\r\nok\n"] };

/// Checks the ports and the directory of a configuration on this machine, and returns warnings.
///
/// # Errors
///
/// Everything that prevents a part of the configuration from working on this machine.
pub fn check_host(config: &Config) -> Result<Vec<Finding>, Findings> {
    let (mut warnings, mut findings) = (Vec::new(), config.ineffective.clone());
    let listeners = [("http", &config.http.listen, CONSUMERS), ("admin", &config.admin.listen, OPERATORS)];
    for (section, listen, own) in listeners {
        let address = listen.address();
        let Err(error) = TcpListener::bind(address) else { continue };
        let path = KeyPath::of(&[section, "listen"]);
        if error.kind() == ErrorKind::AddrInUse && is_trunkline(address, &own) {
            warnings.push(Finding::new(None, path, format!("Trunkline already listens on {address}")));
        } else {
            findings.push(Finding::new(None, path, format!("cannot listen on {address}: {error}")));
        }
    }
    if let Err((directory, error)) = writable(&config.store.path) {
        let text = if directory.is_dir() {
            format!("cannot write to {}: {error}; make it writable for the user of the daemon", directory.display())
        } else {
            format!("{} is a file; expected a directory", directory.display())
        };
        findings.push(Finding::new(None, KeyPath::of(&["store", "path"]), text));
    }
    Findings::into_result(findings, warnings)
}

/// Whether the program that listens on the address is Trunkline.
fn is_trunkline(address: SocketAddr, signature: &EndpointSignature) -> bool {
    http_get(address, signature.path).is_ok_and(|answer| signature.answers.iter().any(|sign| answer.contains(sign)))
}

fn http_get(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_MAX)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream.set_write_timeout(Some(ANSWER_MAX))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    let read = stream.take(ANSWER_LEN_MAX).read_to_end(&mut answer);
    if answer.is_empty() { read.map(|_| String::new()) } else { Ok(String::from_utf8_lossy(&answer).into_owned()) }
}

/// Writes and removes an empty file in the directory, or in the nearest one above it that exists.
fn writable(directory: &Path) -> Result<(), (PathBuf, io::Error)> {
    let absolute = std::path::absolute(directory).map_err(|error| (directory.to_owned(), error))?;
    let nearest = absolute.ancestors().find(|path| path.exists()).unwrap_or(&absolute);
    tempfile::tempfile_in(nearest).map(drop).map_err(|error| (nearest.to_owned(), error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, from_text};

    fn config(listen: SocketAddr, store: &Path) -> Config {
        let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/genesys-cloud.toml")).unwrap();
        let environment: Environment =
            [("GENESYS_CLIENT_ID", "id"), ("GENESYS_CLIENT_SECRET", "x")].into_iter().collect();
        let mut config = from_text("t.toml", &text, &environment).unwrap_or_else(|wrong| panic!("{wrong}"));
        config.http.listen = listen.into();
        config.admin.listen = SocketAddr::from(([127, 0, 0, 1], 0)).into();
        config.store.path = store.to_owned();
        config
    }

    #[test]
    fn a_port_in_use_and_an_invalid_directory_are_reported() {
        let folder = tempfile::tempdir().unwrap();
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        assert_eq!(check_host(&config(free, &folder.path().join("not/there/yet"))).unwrap(), []);
        let taken = TcpListener::bind(free).unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let found = check_host(&config(taken.local_addr().unwrap(), &file.join("data"))).unwrap_err().to_string();
        let lines: Vec<_> = found.lines().collect();
        assert_eq!(lines.len(), 2, "{found}");
        assert!(lines[0].starts_with("http.listen: cannot listen on 127.0.0.1:"), "{found}");
        let expected = format!("store.path: {} is a file; expected a directory", file.display());
        assert_eq!(lines[1], expected);
    }

    #[test]
    fn a_running_relay_on_the_port_is_a_warning() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let answer = std::thread::spawn(move || {
            let (mut stream, _) = taken.accept().unwrap();
            let mut request = Vec::new();
            // The whole request: a connection that is closed with unread bytes is reset.
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.extend(byte);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{\"streams\":[]}").unwrap();
            taken
        });
        let folder = tempfile::tempdir().unwrap();
        let warnings = check_host(&config(address, folder.path())).unwrap();
        let warnings: Vec<_> = warnings.iter().map(ToString::to_string).collect();
        assert_eq!(warnings, [format!("http.listen: Trunkline already listens on {address}")]);
        answer.join().unwrap();
    }
}
