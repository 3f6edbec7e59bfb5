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

use super::AcceptedSocket;

/// Holds an upgraded connection to its end. The bytes are what the client sent right behind its request.
pub(super) type UpgradeHandler = Box<dyn FnOnce(AcceptedSocket, Bytes) -> BoxFuture<'static, ()> + Send>;

/// An extension of a 101 that says what follows it. It is there once, though an extension can be cloned.
#[derive(Clone)]
pub struct UpgradeExtension(Arc<Mutex<Option<UpgradeHandler>>>);

impl UpgradeExtension {
    /// Goes on with `converse`, which gets the socket and what the client sent right behind its request.
    pub fn new<F>(handler: impl FnOnce(AcceptedSocket, Bytes) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let boxed: UpgradeHandler = Box::new(move |socket, early_bytes| Box::pin(handler(socket, early_bytes)));
        Self(Arc::new(Mutex::new(Some(boxed))))
    }

    /// Takes what was agreed on out of an answer.
    pub(super) fn take(answer: &mut Response) -> Option<UpgradeHandler> {
        let Self(agreed) = answer.extensions_mut().remove()?;
        agreed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for UpgradeExtension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upgrade")
    }
}
