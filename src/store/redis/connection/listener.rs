//! Hearing what is published. A connection that died in silence sounds like one on which nobody says anything, so it is
//! asked now and then.

use std::{fmt, time::Duration};

use futures_util::StreamExt;
use redis::{RedisError, aio::PubSub};

use super::{Limits, dial};
use crate::store::redis::address::Address;

/// So many times as long as an answer may take nothing is heard before the connection is asked.
const SILENCE: u32 = 4;

/// A connection that only listens.
pub struct Listener {
    heard: PubSub,
    /// One of those that it listens to.
    channel: String,
    answer_max: Duration,
}

pub(super) async fn open(address: &Address, limits: Limits, channels: &[&str]) -> Result<Listener, RedisError> {
    let mut heard = dial::client(address, limits).await?.get_async_pubsub().await?;
    heard.subscribe(channels).await?;
    let channel = channels.first().map(|&channel| channel.to_owned()).unwrap_or_default();
    Ok(Listener { heard, channel, answer_max: limits.answer })
}

impl Listener {
    /// The next message: its channel and its bytes. None when the connection is lost.
    pub async fn next(&mut self) -> Option<(String, Vec<u8>)> {
        loop {
            let mut messages = self.heard.on_message();
            if let Ok(message) = tokio::time::timeout(SILENCE * self.answer_max, messages.next()).await {
                let message = message?;
                return Some((message.get_channel_name().to_owned(), message.get_payload_bytes().to_vec()));
            }
            drop(messages);
            self.prove().await?;
        }
    }

    /// Subscribing again changes nothing, and is answered over the very connection.
    async fn prove(&mut self) -> Option<()> {
        tokio::time::timeout(self.answer_max, self.heard.subscribe(&self.channel)).await.ok()?.ok()
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").finish_non_exhaustive()
    }
}
