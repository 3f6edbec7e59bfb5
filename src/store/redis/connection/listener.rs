//! Receives published messages. A dead connection looks the same as one without messages, so an idle connection is
//! probed periodically.

use std::{fmt, time::Duration};

use futures_util::StreamExt;
use redis::{RedisError, aio::PubSub};

use super::{RedisTimeouts, dial};
use crate::store::redis::address::Address;

/// The idle time before a probe, as a multiple of the response timeout.
const SILENCE_FACTOR: u32 = 4;

/// A connection that only receives messages.
pub struct PubSubListener {
    pubsub: PubSub,
    /// One of its channels, which the probe subscribes to again.
    channel: String,
    response_max: Duration,
}

pub(super) async fn open(
    address: &Address,
    limits: RedisTimeouts,
    channels: &[&str],
) -> Result<PubSubListener, RedisError> {
    let mut pubsub = dial::client(address, limits).await?.get_async_pubsub().await?;
    pubsub.subscribe(channels).await?;
    let channel = channels.first().map(|&channel| channel.to_owned()).unwrap_or_default();
    Ok(PubSubListener { pubsub, channel, response_max: limits.response })
}

impl PubSubListener {
    /// The next message: its channel and its bytes. None when the connection is lost.
    pub async fn next(&mut self) -> Option<(String, Vec<u8>)> {
        loop {
            let mut messages = self.pubsub.on_message();
            if let Ok(message) = tokio::time::timeout(SILENCE_FACTOR * self.response_max, messages.next()).await {
                let message = message?;
                return Some((message.get_channel_name().to_owned(), message.get_payload_bytes().to_vec()));
            }
            drop(messages);
            self.probe().await?;
        }
    }

    /// Subscribing again changes nothing, and the server replies over the same connection.
    async fn probe(&mut self) -> Option<()> {
        tokio::time::timeout(self.response_max, self.pubsub.subscribe(&self.channel)).await.ok()?.ok()
    }
}

impl fmt::Debug for PubSubListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").finish_non_exhaustive()
    }
}
