//! The minimal disk pipeline, to hold the daemon's latency against: receive, write, sync, send, and nothing else.
//!
//! It does not know what it carries: a client's request goes to the source as it is, and what the source says comes
//! back once it is on the disk. What it cannot do is why there is a daemon.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    thread,
};

use super::machine::{self, Cores};

/// Bytes received, written and sent at once.
const READ_LEN: usize = 64 * 1024;

/// Starts a pipeline for one client on the daemon's core; it ends with its sockets. Returns where the client connects.
pub(super) fn start(file: &Path, source: SocketAddr, cores: Option<Cores>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let file = File::create(file)?;
    thread::spawn(move || {
        if let Some(cores) = cores {
            machine::pin(cores.daemon);
        }
        // Whoever was served is gone, and with it the need to go on.
        carry(&listener, source, file).unwrap_or_default();
    });
    Ok(address)
}

fn carry(listener: &TcpListener, source: SocketAddr, mut file: File) -> io::Result<()> {
    let (mut client, _) = listener.accept()?;
    let mut source = TcpStream::connect(source)?;
    client.set_nodelay(true)?;
    source.set_nodelay(true)?;
    let mut buffer = vec![0; READ_LEN];
    let request = client.read(&mut buffer)?;
    source.write_all(&buffer[..request])?;
    loop {
        let heard = source.read(&mut buffer)?;
        if heard == 0 {
            return Ok(());
        }
        file.write_all(&buffer[..heard])?;
        file.sync_data()?;
        client.write_all(&buffer[..heard])?;
    }
}
