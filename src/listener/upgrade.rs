//! The handler of a connection after its 101. It is an extension of the response, and the listener runs it.
//!
//! It starts after the 101 was sent.

use std::{fmt, sync::Arc};

use axum::response::Response;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::AcceptedSocket;

/// Runs an upgraded connection. The bytes are those that the client sent after its request.
pub(super) type UpgradeHandler = Box<dyn FnOnce(AcceptedSocket, Bytes) -> BoxFuture<'static, ()> + Send>;

/// An extension of a 101 with the upgrade handler, which can be taken once.
#[derive(Clone)]
pub struct UpgradeExtension(Arc<Mutex<Option<UpgradeHandler>>>);

impl UpgradeExtension {
    /// An extension with this handler, which gets the socket and the bytes after the request.
    pub fn new<F>(handler: impl FnOnce(AcceptedSocket, Bytes) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let boxed: UpgradeHandler = Box::new(move |socket, early_bytes| Box::pin(handler(socket, early_bytes)));
        Self(Arc::new(Mutex::new(Some(boxed))))
    }

    /// Takes the handler out of a response.
    pub(super) fn take(answer: &mut Response) -> Option<UpgradeHandler> {
        let Self(agreed) = answer.extensions_mut().remove()?;
        agreed.lock().take()
    }
}

impl fmt::Debug for UpgradeExtension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upgrade")
    }
}
