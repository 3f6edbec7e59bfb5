//! The open connections of one stream, read round-robin.

use std::{
    future::poll_fn,
    task::{Context, Poll},
};

use super::transport::{SocketEvent, UpstreamConnection};
use crate::{connector::Failure, protocol::session::SessionId};

/// The open sockets of a stream: one, or a few during a rotation.
pub(super) struct SessionSockets {
    open: Vec<SessionSocket>,
    /// Index of the socket that is read next. It follows the last one read, so that a socket with a backlog does not
    /// block the others.
    next_index: usize,
}

struct SessionSocket {
    id: SessionId,
    socket: UpstreamConnection,
    /// Why the socket ended.
    ended: Option<Failure>,
}

impl SessionSockets {
    pub(super) fn new() -> Self {
        Self { open: Vec::new(), next_index: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn add(&mut self, id: SessionId, socket: UpstreamConnection) {
        self.open.push(SessionSocket { id, socket, ended: None });
    }

    pub(super) fn get(&mut self, id: SessionId) -> Option<&mut UpstreamConnection> {
        self.open.iter_mut().find(|open| open.id == id).map(|open| &mut open.socket)
    }

    pub(super) fn mark_ended(&mut self, id: SessionId, failure: &Failure) {
        if let Some(open) = self.open.iter_mut().find(|open| open.id == id) {
            open.ended = Some(failure.clone());
        }
    }

    /// Removes a socket. Returns it with its failure if it has ended; one that has not is dropped.
    pub(super) fn remove(&mut self, id: SessionId) -> Option<(UpstreamConnection, Failure)> {
        let index = self.open.iter().position(|open| open.id == id)?;
        let SessionSocket { socket, ended, .. } = self.open.swap_remove(index);
        Some((socket, ended?))
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<(SessionId, Result<SocketEvent, Failure>)> {
        let count = self.open.len();
        for place in (0..count).map(|step| (self.next_index + step) % count) {
            let open = &mut self.open[place];
            if open.ended.is_none()
                && let Poll::Ready(frame) = open.socket.poll_frame(cx)
            {
                self.next_index = place + 1;
                return Poll::Ready((open.id, frame));
            }
        }
        Poll::Pending
    }

    /// The next frame of any socket.
    pub(super) async fn next(&mut self) -> (SessionId, Result<SocketEvent, Failure>) {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The next available frame.
    pub(super) fn next_now(&mut self) -> Option<(SessionId, Result<SocketEvent, Failure>)> {
        // `next` registers its own waker.
        match self.poll_next(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(next) => Some(next),
            Poll::Pending => None,
        }
    }
}
