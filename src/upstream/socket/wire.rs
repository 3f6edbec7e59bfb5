//! The connection beneath a socket, with a follower of what is read.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::follower::Follower;
use crate::network::Connection;

/// A connection whose upgrade is done.
#[derive(Debug)]
pub(super) struct Wire {
    stream: Connection,
    pub(super) follower: Follower,
}

impl Wire {
    /// `read` is what came behind the answer to the upgrade.
    pub(super) fn new(stream: Connection, read: &mut [u8]) -> Self {
        let mut follower = Follower::new();
        follower.follow(read);
        Self { stream, follower }
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
