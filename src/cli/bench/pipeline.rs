//! The baselines for latency, minimal pipelines: receive, write, sync, send. One uses the disk, the other Redis.
//!
//! They forward bytes without parsing: a client's request goes to the source unchanged, and the source's bytes go to
//! the client after they are stored.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    thread,
};

use redis::cmd;

use super::{
    machine::{self, Cores},
    server::BenchRedis,
};

/// The size of the buffer in bytes.
const READ_LEN: usize = 64 * 1024;

/// Starts a pipeline for one client on the daemon's core; it ends with its sockets. Returns the address for the client.
pub(super) fn start(file: &Path, source: SocketAddr, cores: Option<Cores>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let file = File::create(file)?;
    thread::spawn(move || {
        if let Some(cores) = cores {
            machine::pin(cores.daemon);
        }
        // The client has disconnected, so the pipeline ends.
        run_pipeline(&listener, source, file).unwrap_or_default();
    });
    Ok(address)
}

fn run_pipeline(listener: &TcpListener, source: SocketAddr, mut file: File) -> io::Result<()> {
    let (mut client, mut source, mut buffer) = accept_and_connect(listener, source)?;
    loop {
        let received = source.read(&mut buffer)?;
        if received == 0 {
            return Ok(());
        }
        file.write_all(&buffer[..received])?;
        file.sync_data()?;
        client.write_all(&buffer[..received])?;
    }
}

/// Accepts the client and forwards its request to the source.
fn accept_and_connect(listener: &TcpListener, source: SocketAddr) -> io::Result<(TcpStream, TcpStream, Vec<u8>)> {
    let (mut client, _) = listener.accept()?;
    let mut source = TcpStream::connect(source)?;
    client.set_nodelay(true)?;
    source.set_nodelay(true)?;
    let mut buffer = vec![0; READ_LEN];
    let request = client.read(&mut buffer)?;
    source.write_all(&buffer[..request])?;
    Ok((client, source, buffer))
}

/// Starts a pipeline over Redis: one thread appends the source's bytes, another one reads them and sends them to the
/// client. Returns the address for the client.
pub(super) fn start_over_redis(
    server: &BenchRedis,
    source: SocketAddr,
    cores: Option<Cores>,
) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let (key, writer, reader) = (server.key("pipeline", "log"), server.connect()?, server.connect()?);
    thread::spawn(move || {
        if let Some(cores) = cores {
            machine::pin(cores.daemon);
        }
        let Ok((client, source, buffer)) = accept_and_connect(&listener, source) else { return };
        let Ok(other) = source.try_clone() else { return };
        let follower = (key.clone(), reader);
        thread::spawn(move || {
            // The client has disconnected, so both threads end.
            follow(follower, client).unwrap_or_default();
            other.shutdown(Shutdown::Both).unwrap_or_default();
        });
        write(&key, writer, source, buffer).unwrap_or_default();
    });
    Ok(address)
}

fn write(key: &str, mut redis: redis::Connection, mut source: TcpStream, mut buffer: Vec<u8>) -> anyhow::Result<()> {
    loop {
        let received = source.read(&mut buffer)?;
        if received == 0 {
            return Ok(());
        }
        cmd("XADD").arg(key).arg("*").arg("bytes").arg(&buffer[..received]).exec(&mut redis)?;
    }
}

fn follow((key, mut redis): (String, redis::Connection), mut client: TcpStream) -> anyhow::Result<()> {
    type ReadReply = Vec<(String, (String, Vec<u8>))>;
    let mut after = "0".to_owned();
    loop {
        let mut read = cmd("XREAD");
        read.arg("BLOCK").arg(0).arg("STREAMS").arg(&key).arg(&after);
        let found: Vec<(String, ReadReply)> = read.query(&mut redis)?;
        for (id, (_, bytes)) in found.into_iter().flat_map(|(_, entries)| entries) {
            client.write_all(&bytes)?;
            after = id;
        }
    }
}
