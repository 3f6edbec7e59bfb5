//! Hearing what is published.

use std::fmt;

use futures_util::StreamExt;
use redis::{RedisError, aio::PubSub};

use super::{Limits, dial};
use crate::store::redis::address::Address;

/// A connection that only listens.
pub struct Listener {
    heard: PubSub,
}

pub(super) async fn open(address: &Address, limits: Limits, channels: &[&str]) -> Result<Listener, RedisError> {
    let mut heard = dial::client(address, limits).await?.get_async_pubsub().await?;
    heard.subscribe(channels).await?;
    Ok(Listener { heard })
}

impl Listener {
    /// The next message: its channel and its bytes. None when the connection is lost.
    pub async fn next(&mut self) -> Option<(String, Vec<u8>)> {
        let message = self.heard.on_message().next().await?;
        Some((message.get_channel_name().to_owned(), message.get_payload_bytes().to_vec()))
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").finish_non_exhaustive()
    }
}
