//! What is on its way into the log: the platform's event, or an entry that the relay itself makes.

use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use serde::{Deserialize, Serialize};

use super::{Sequence, Timestamp};

/// One event before it has an offset. Texts are slices of the frame they came in: nothing is copied yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// CloudEvents `type`.
    pub kind: ByteString,
    /// The platform's full topic, where there is one.
    pub subject: Option<ByteString>,
    /// The platform's event time (RFC 3339); else the time of receipt is told.
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
    /// Valid JSON, byte for byte the platform's.
    Json(ByteString),
    /// Anything else, told as `data_base64`.
    Binary(Bytes),
}

impl Body {
    /// Size in bytes before wrapping.
    pub fn len(&self) -> usize {
        match self {
            Self::Json(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Why something is missing from the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GapReason {
    /// The position was known to be older than the platform keeps events.
    Retention,
    /// The platform skipped although the position was not too old.
    Jump,
    /// The platform's numbering started over.
    Reset,
    /// A platform without resume was not heard for a while.
    NoReplay,
    /// We dropped events at the limit of the buffer.
    Shed,
    /// A frame beyond `frame_max`.
    Oversize,
    /// The store lost or had to put aside what it held.
    Store,
}

impl GapReason {
    /// Every reason, for metrics that exist from the start.
    pub const ALL: [Self; 7] =
        [Self::Retention, Self::Jump, Self::Reset, Self::NoReplay, Self::Shed, Self::Oversize, Self::Store];

    /// The word of the contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retention => "retention",
            Self::Jump => "jump",
            Self::Reset => "reset",
            Self::NoReplay => "no-replay",
            Self::Shed => "shed",
            Self::Oversize => "oversize",
            Self::Store => "store",
        }
    }
}

/// A hole that is known: the `data` of `trunkline.gap.v1`. Unknown bounds are `null`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gap {
    pub reason: GapReason,
    /// The last number held, as the platform wrote it.
    pub after: Option<String>,
    /// The first number seen again.
    pub before: Option<String>,
    /// How many events are missing, where the numbering tells.
    pub lost: Option<u64>,
    /// For how long nothing could be heard, in milliseconds.
    pub silence_ms: Option<u64>,
}

impl Gap {
    /// A gap of which only the reason is known.
    pub fn unknown(reason: GapReason) -> Self {
        Self { reason, after: None, before: None, lost: None, silence_ms: None }
    }

    /// A gap between two numbers of the platform.
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

    /// The same gap with the time for which nothing was heard.
    pub fn with_silence(mut self, silence: Duration) -> Self {
        self.silence_ms = Some(u64::try_from(silence.as_millis()).unwrap_or(u64::MAX));
        self
    }

    /// The entry that marks it.
    pub fn event(&self, received: Timestamp) -> Event {
        Event::internal("trunkline.gap.v1", self, received)
    }
}

/// What an event takes in a queue beside its texts and its body.
const EVENT_OVERHEAD: usize = 256;

/// Undecodable frames are kept up to this size.
const UNDECODED_LEN_MAX: usize = 64 * 1024;

impl Event {
    /// An entry that the relay itself makes.
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

    /// About how much memory it takes until it is wrapped.
    pub fn weight(&self) -> usize {
        let len = |text: &Option<ByteString>| text.as_ref().map_or(0, |text| text.len());
        let texts = self.kind.len() + len(&self.subject) + len(&self.correlation) + len(&self.partition_key);
        self.body.len() + texts + EVENT_OVERHEAD
    }

    /// A frame that nobody could read, kept so that it is not lost either.
    pub fn undecoded(mut frame: Bytes, received: Timestamp) -> Self {
        if frame.len() > UNDECODED_LEN_MAX {
            // A copy: a slice would keep the whole frame in memory for as long as it waits.
            frame = Bytes::copy_from_slice(&frame[..UNDECODED_LEN_MAX]);
        }
        let mut event = Self::internal("trunkline.undecoded.v1", &(), received);
        event.body = Body::Binary(frame);
        event
    }
}
