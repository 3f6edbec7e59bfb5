//! The connection beneath a socket: TCP, TLS where the address wants it, and a follower of what is read.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{MaybeTlsStream, tungstenite::http::Uri};

use super::follower::Follower;

/// An open connection.
#[derive(Debug)]
pub(super) struct Wire {
    stream: MaybeTlsStream<TcpStream>,
    pub(super) follower: Follower,
}

impl Wire {
    /// Connects to the host of a `ws://` or `wss://` address.
    pub(super) async fn open(address: &Uri, tls: &Arc<rustls::ClientConfig>) -> io::Result<Self> {
        let encrypted = address.scheme_str() == Some("wss");
        let host = address.host().unwrap_or_default().trim_matches(['[', ']']);
        let port = address.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        let stream = if encrypted {
            let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
            MaybeTlsStream::Rustls(TlsConnector::from(Arc::clone(tls)).connect(name, stream).await?)
        } else {
            MaybeTlsStream::Plain(stream)
        };
        Ok(Self { stream, follower: Follower::new() })
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.follower.follow(&mut buffer.filled_mut()[before..]);
        read
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
