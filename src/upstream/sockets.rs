//! The open sockets of one stream, read in turns: one, or a few while a session is replaced.

use std::{
    future::poll_fn,
    task::{Context, Poll},
};

use super::socket::{Brought, Socket};
use crate::{connector::Failure, protocol::session::SessionId};

/// The open sockets of a stream: one, or a few while a session is replaced.
pub(super) struct Sockets {
    open: Vec<Open>,
    /// Where the next read begins: behind the socket that was read last, so that a socket with a backlog does not keep
    /// its successor's answer unread.
    turn: usize,
}

struct Open {
    id: SessionId,
    socket: Socket,
    /// It has nothing more to say.
    ended: Option<Failure>,
}

impl Sockets {
    pub(super) fn new() -> Self {
        Self { open: Vec::new(), turn: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn add(&mut self, id: SessionId, socket: Socket) {
        self.open.push(Open { id, socket, ended: None });
    }

    pub(super) fn get(&mut self, id: SessionId) -> Option<&mut Socket> {
        self.open.iter_mut().find(|open| open.id == id).map(|open| &mut open.socket)
    }

    pub(super) fn ended(&mut self, id: SessionId, failure: &Failure) {
        if let Some(open) = self.open.iter_mut().find(|open| open.id == id) {
            open.ended = Some(failure.clone());
        }
    }

    /// Takes a socket out, with what it ended by; one that never ended is simply dropped by its owner.
    pub(super) fn remove(&mut self, id: SessionId) -> Option<(Socket, Failure)> {
        let index = self.open.iter().position(|open| open.id == id)?;
        let Open { socket, ended, .. } = self.open.swap_remove(index);
        Some((socket, ended?))
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<(SessionId, Result<Brought, Failure>)> {
        let count = self.open.len();
        for place in (0..count).map(|step| (self.turn + step) % count) {
            let open = &mut self.open[place];
            if open.ended.is_none()
                && let Poll::Ready(frame) = open.socket.poll_frame(cx)
            {
                self.turn = place + 1;
                return Poll::Ready((open.id, frame));
            }
        }
        Poll::Pending
    }

    /// The next frame of any socket.
    pub(super) async fn next(&mut self) -> (SessionId, Result<Brought, Failure>) {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The next frame, if one is there.
    pub(super) fn next_now(&mut self) -> Option<(SessionId, Result<Brought, Failure>)> {
        // Whoever waits next registers its own waker.
        match self.poll_next(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(next) => Some(next),
            Poll::Pending => None,
        }
    }
}
