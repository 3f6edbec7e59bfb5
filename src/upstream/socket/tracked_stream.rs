//! The connection beneath a socket, with a follower of what is read. It ends in front of a control frame that the follower
//! refuses.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frame_tracker::FrameTracker;
use crate::network::NetworkStream;

/// A connection whose upgrade is done.
#[derive(Debug)]
pub(super) struct TrackedStream {
    stream: NetworkStream,
    pub(super) tracker: FrameTracker,
}

impl TrackedStream {
    /// `read` is what came behind the answer to the upgrade. What may not be handed on is cut off.
    pub(super) fn new(stream: NetworkStream, read: &mut Vec<u8>) -> Self {
        let mut follower = FrameTracker::new();
        let allowed = follower.scan(read);
        read.truncate(allowed);
        Self { stream, tracker: follower }
    }

    fn refused(&self) -> io::Result<()> {
        self.tracker.refused().map_or(Ok(()), |fault| Err(io::Error::new(io::ErrorKind::InvalidData, fault)))
    }
}

impl AsyncRead for TrackedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.refused()?;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let read = buffer.filled().len() - before;
        let good = self.tracker.scan(&mut buffer.filled_mut()[before..]);
        buffer.set_filled(before + good);
        // No byte at all would be taken for the end of the connection.
        Poll::Ready(if good == 0 && read > 0 { self.refused() } else { Ok(()) })
    }
}

impl AsyncWrite for TrackedStream {
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
