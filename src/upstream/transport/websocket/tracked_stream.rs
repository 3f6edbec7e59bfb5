//! The connection below a WebSocket, with a tracker of the frames read. It fails before an invalid control frame.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frame_tracker::FrameTracker;
use crate::network::NetworkStream;

/// An upgraded connection.
#[derive(Debug)]
pub(super) struct TrackedStream {
    stream: NetworkStream,
    pub(super) tracker: FrameTracker,
}

impl TrackedStream {
    /// `read` has the bytes after the upgrade response. It is truncated before an invalid control frame.
    pub(super) fn new(stream: NetworkStream, read: &mut Vec<u8>) -> Self {
        let mut tracker = FrameTracker::new();
        let allowed = tracker.scan(read);
        read.truncate(allowed);
        Self { stream, tracker }
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
        // A read of 0 bytes would mean end of file.
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
