//! What a connection goes on with after its 101. A handler puts it into its answer; the listener carries it out.
//!
//! It refuses to begin before the 101 is sent: until then nothing but the answer is made.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use axum::response::Response;
use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::Socket;

/// Holds an upgraded connection to its end. The bytes are what the client sent right behind its request.
pub(super) type Conversation = Box<dyn FnOnce(Socket, Bytes) -> BoxFuture<'static, ()> + Send>;

/// An extension of a 101 that says what follows it. It is there once, though an extension can be cloned.
#[derive(Clone)]
pub struct Upgrade(Arc<Mutex<Option<Conversation>>>);

impl Upgrade {
    /// Goes on with `converse`, which gets the socket and what the client sent right behind its request.
    pub fn to<F>(converse: impl FnOnce(Socket, Bytes) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let boxed: Conversation = Box::new(move |socket, heard| Box::pin(converse(socket, heard)));
        Self(Arc::new(Mutex::new(Some(boxed))))
    }

    /// Takes what was agreed on out of an answer.
    pub(super) fn agreed(answer: &mut Response) -> Option<Conversation> {
        let Self(agreed) = answer.extensions_mut().remove()?;
        agreed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for Upgrade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upgrade")
    }
}
