//! Events before they are appended: those of the platform, and entries that Trunkline creates.

use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use serde::{Deserialize, Serialize};

use super::{Sequence, Timestamp, labels::labels};

/// One event before it has an offset. Texts are slices of the received frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// CloudEvents `type`.
    pub kind: ByteString,
    /// The platform's full topic, if it has one.
    pub subject: Option<ByteString>,
    /// The platform's event time (RFC 3339). Without it the envelope has the time of receipt.
    pub time: Option<ByteString>,
    pub sequence: Option<Sequence>,
    pub correlation: Option<ByteString>,
    pub partition_key: Option<ByteString>,
    pub body: Body,
    pub received: Timestamp,
}

/// The `data` of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// Valid JSON, byte for byte as received.
    Json(ByteString),
    /// Other bytes, encoded as `data_base64`.
    Binary(Bytes),
}

impl Body {
    /// Size in bytes before encoding.
    pub fn len(&self) -> usize {
        match self {
            Self::Json(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }

    /// Whether the length is 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

labels! {
    /// Why events are missing from the log.
    #[derive(PartialOrd, Ord, Hash, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    pub enum GapReason {
        /// The position was older than the platform's retention.
        Retention = "retention",
        /// The platform skipped events although the position was not too old.
        Jump = "jump",
        /// The platform restarted its numbering.
        Reset = "reset",
        /// A platform without resume was disconnected.
        NoReplay = "no-replay",
        /// Events were dropped at the limit of the buffer.
        Shed = "shed",
        /// A frame beyond `frame_max`.
        Oversize = "oversize",
        /// The store lost entries, or replaced a damaged database.
        Store = "store",
    }
}

/// A known loss: the `data` of `trunkline.gap.v1`. Unknown bounds are `null`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gap {
    pub reason: GapReason,
    /// The last stored number, in the platform's notation.
    pub after: Option<String>,
    /// The first number after the gap.
    pub before: Option<String>,
    /// The number of missing events, if it is known.
    pub lost: Option<u64>,
    /// The time without a connection, in milliseconds.
    pub silence_ms: Option<u64>,
}

impl Gap {
    /// A gap with only a reason.
    pub fn unknown(reason: GapReason) -> Self {
        Self { reason, after: None, before: None, lost: None, silence_ms: None }
    }

    /// A gap between two sequence numbers.
    pub fn between(reason: GapReason, after: Option<Sequence>, before: Option<Sequence>) -> Self {
        let lost = after.zip(before).and_then(|(after, before)| before.0.checked_sub(after.next().0));
        Self {
            reason,
            after: after.map(|sequence| sequence.to_string()),
            before: before.map(|sequence| sequence.to_string()),
            lost,
            silence_ms: None,
        }
    }

    /// Adds the time without a connection.
    pub fn with_silence(mut self, silence: Duration) -> Self {
        self.silence_ms = Some(u64::try_from(silence.as_millis()).unwrap_or(u64::MAX));
        self
    }

    /// The log entry of the gap.
    pub fn event(&self, received: Timestamp) -> Event {
        Event::internal("trunkline.gap.v1", self, received)
    }
}

/// The memory of a queued event without its texts and body, in bytes.
const EVENT_OVERHEAD: usize = 256;

/// A longer undecodable frame is truncated, in bytes.
const UNDECODED_LEN_MAX: usize = 64 * 1024;

impl Event {
    /// An entry that Trunkline creates.
    pub fn internal(kind: &'static str, data: &impl Serialize, received: Timestamp) -> Self {
        let text = serde_json::to_string(data).expect("our own data has string keys and no failing serializer");
        Self {
            kind: ByteString::from_static(kind),
            subject: None,
            time: None,
            sequence: None,
            correlation: None,
            partition_key: None,
            body: Body::Json(ByteString::from(text)),
            received,
        }
    }

    /// The approximate memory until it is encoded, in bytes.
    pub fn weight(&self) -> usize {
        let len = |text: &Option<ByteString>| text.as_ref().map_or(0, |text| text.len());
        let texts = self.kind.len() + len(&self.subject) + len(&self.correlation) + len(&self.partition_key);
        self.body.len() + texts + EVENT_OVERHEAD
    }

    /// An entry with the bytes of an undecodable frame.
    pub fn undecoded(mut frame: Bytes, received: Timestamp) -> Self {
        if frame.len() > UNDECODED_LEN_MAX {
            // A copy, because a slice would keep the whole frame in memory.
            frame = Bytes::copy_from_slice(&frame[..UNDECODED_LEN_MAX]);
        }
        let mut event = Self::internal("trunkline.undecoded.v1", &(), received);
        event.body = Body::Binary(frame);
        event
    }
}
