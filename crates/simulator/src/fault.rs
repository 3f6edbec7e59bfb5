//! Faults as values, for code, JSON and TOML. [`PlatformFault::check`] rejects the impossible ones; nothing here
//! carries a fault out.

mod check;
mod label;

pub use self::check::FaultError;
pub(crate) use self::check::bytes;

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// `times` of a fault that lasts until the simulator ends.
pub const ALWAYS: u32 = u32::MAX;

/// The sockets that a fault affects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultTarget {
    #[default]
    All,
    Sequenced,
    Notifications,
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "fault", rename_all = "snake_case", deny_unknown_fields)]
pub enum PlatformFault {
    /// The TCP connection is reset.
    Drop {
        #[serde(default)]
        on: FaultTarget,
    },
    /// The socket stays open; nothing is read, sent or answered on it for this time.
    Stall {
        #[serde(default)]
        on: FaultTarget,
        #[serde(rename = "for", with = "span")]
        duration: Duration,
    },
    /// The server closes with this code.
    Close {
        #[serde(default)]
        on: FaultTarget,
        code: u16,
        #[serde(default)]
        reason: String,
    },
    /// `v2.system.socket_closing`, and the close after the lead time.
    SocketClosing {
        #[serde(with = "span")]
        lead: Duration,
    },
    /// Every token ends now; notification sockets get a notice.
    TokenRevoked {},
    /// Every channel loses its subscriptions and gets a notice.
    NoLongerSubscribed {},
    /// The next handshakes are answered with this status.
    Refuse {
        #[serde(default)]
        on: FaultTarget,
        status: u16,
        #[serde(default = "once")]
        times: u32,
        /// Written into the header unchanged.
        #[serde(default)]
        retry_after: Option<String>,
    },
    /// The next token requests fail.
    Token {
        failure: TokenFailure,
        #[serde(default = "once")]
        times: u32,
    },
    /// The next REST calls fail.
    Rest {
        status: u16,
        #[serde(default = "once")]
        times: u32,
        #[serde(default)]
        retry_after: Option<String>,
        /// Only calls whose path begins with this.
        #[serde(default)]
        path: Option<String>,
    },
    /// The last `n` sequenced events are sent again.
    Duplicate { n: u64 },
    /// `n` sequence numbers are skipped.
    Jump { n: u64 },
    /// The numbering starts again at 1.
    Reset {},
    /// The next `n` sequenced events are sent in reverse order.
    Reorder { n: u64 },
    /// A frame that cannot be decoded.
    Undecodable {
        #[serde(default)]
        on: FaultTarget,
        #[serde(default)]
        what: UndecodableFrame,
    },
    /// An event of at least this size: numbered on the sequenced stream.
    Oversize {
        #[serde(default)]
        on: FaultTarget,
        bytes: usize,
    },
    /// From now on each frame is delayed by this time.
    Delay {
        #[serde(rename = "for", with = "span")]
        duration: Duration,
    },
    /// The next frame of each socket is sent one byte at a time.
    SlowLoris {
        #[serde(default)]
        on: FaultTarget,
        /// Time between two bytes.
        #[serde(with = "span")]
        every: Duration,
    },
    /// The next frame of each socket is sent in `n` fragments.
    Fragments {
        #[serde(default)]
        on: FaultTarget,
        n: usize,
    },
    /// The next requests of a kind get a wrong answer.
    Answer {
        to: RequestKind,
        /// Only upgrades for these sockets.
        #[serde(default)]
        on: FaultTarget,
        /// Only requests whose path and query contain this.
        #[serde(default)]
        url: Option<String>,
        /// Only upgrades that ask to resume at a position.
        #[serde(default)]
        resuming: bool,
        /// A number, or "always".
        #[serde(default = "once", with = "times")]
        times: u32,
        how: ResponseFault,
    },
    /// The server closes with exactly these bytes in the close frame, also if they are malformed.
    CloseRaw {
        #[serde(default)]
        on: FaultTarget,
        /// Two hexadecimal digits per byte.
        hex: String,
    },
    /// From now on, a client that sends nothing for this time is closed with 1001; "0s" turns it off.
    CloseQuiet {
        #[serde(default)]
        on: FaultTarget,
        #[serde(with = "span")]
        after: Duration,
    },
    /// `n` events at once: now, or when a second socket of the same kind opens.
    Flood {
        n: u64,
        #[serde(default)]
        when: FloodTrigger,
    },
    /// The next `n` text frames of each socket are sent as binary frames.
    Binary {
        #[serde(default)]
        on: FaultTarget,
        n: u64,
    },
    /// An empty text frame.
    EmptyText {
        #[serde(default)]
        on: FaultTarget,
    },
    /// The next frame of each socket is padded with spaces to this size; its replay is not.
    Pad {
        #[serde(default)]
        on: FaultTarget,
        bytes: usize,
    },
    /// The next `n` sequenced events have another form of their number or time.
    Reword {
        n: u64,
        /// `"sequenceId":1.0`
        #[serde(default)]
        decimal: bool,
        /// This text replaces the event time.
        #[serde(default)]
        time: Option<String>,
    },
    /// The next `n` sequenced events are not sent to open sockets; a resume replays them.
    Unsent { n: u64 },
}

/// Which requests get another answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestKind {
    /// A TCP connection of any client, before its first request.
    Connection,
    /// A WebSocket handshake.
    Upgrade,
    Rest,
    Token,
}

/// A wrong response to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ResponseFault {
    /// This status with an error body.
    Status {
        status: u16,
        /// `Retry-After`, unchanged.
        #[serde(default)]
        retry_after: Option<String>,
        /// `Retry-After` as a date, this many seconds after the answer's `Date`.
        #[serde(default)]
        retry_in: Option<u32>,
        /// Error of the answer's `Date`, in seconds.
        #[serde(default)]
        clock: Option<i64>,
    },
    /// This status, content type and text.
    Body {
        #[serde(default = "ok")]
        status: u16,
        #[serde(default = "json")]
        content_type: String,
        text: String,
    },
    /// The right answer with changes.
    Changed {
        #[serde(default)]
        status: Option<u16>,
        #[serde(default)]
        content_type: Option<String>,
        /// Compressed, whether or not the client accepts it.
        #[serde(default)]
        gzip: bool,
        /// JSON that is merged in: objects member by member, an object into each element of an array.
        #[serde(default)]
        set: Option<String>,
        /// JSON pointers to members that are left out.
        #[serde(default)]
        without: Vec<String>,
    },
    /// No answer; the connection stays open.
    Hang,
    /// The right answer after a delay.
    Late {
        #[serde(rename = "for", with = "span")]
        duration: Duration,
    },
    /// The right answer and everything after it on the connection, one byte at a time.
    Trickle {
        #[serde(with = "span")]
        every: Duration,
    },
    /// The connection is reset.
    Reset,
    /// The right answer with `Connection: keep-alive, Upgrade`.
    ConnectionList,
    /// An interim 103 and then the right answer.
    Interim,
    /// The right answer; the socket is closed this time after it opened.
    Closed {
        #[serde(with = "span")]
        after: Duration,
        code: u16,
        #[serde(default)]
        reason: String,
    },
}

/// When the events of a flood are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FloodTrigger {
    #[default]
    Now,
    Overlap,
}

/// How a token request fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TokenFailure {
    /// 429. `retry_after` is written unchanged: seconds, a date, or an invalid value.
    TooManyRequests {
        #[serde(default)]
        retry_after: Option<String>,
    },
    /// An answer with this status and an error body.
    Status {
        status: u16,
    },
    /// 401 `invalid_client`.
    InvalidClient,
    /// 400 `invalid_grant`.
    InvalidGrant,
    /// The connection is reset before an answer.
    Reset,
    /// The right answer after a delay.
    Slow {
        #[serde(rename = "for", with = "span")]
        duration: Duration,
    },
    /// No answer, ever.
    Silent,
    /// 200 with an HTML page.
    Html,
    /// 200 with the right answer, padded to more than 64 KiB.
    Huge,
    NoExpiresIn,
    /// `expires_in` is this JSON text.
    ExpiresIn {
        json: String,
    },
    /// 302 to this address.
    Redirect {
        to: String,
    },
}

/// Why a frame cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UndecodableFrame {
    Binary,
    #[default]
    InvalidJson,
    /// JSON that is not an event.
    WrongShape,
    /// JSON that is nested too deeply for a decoder.
    Deep,
    /// A text frame that is not UTF-8.
    InvalidUtf8,
}

fn ok() -> u16 {
    200
}

fn json() -> String {
    "application/json".to_owned()
}

/// The number of times: a number, or "always".
mod times {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum RepeatCount {
        Number(u32),
        Word(String),
    }

    pub(super) fn serialize<S: Serializer>(times: &u32, to: S) -> Result<S::Ok, S::Error> {
        if *times == super::ALWAYS { to.serialize_str("always") } else { to.serialize_u32(*times) }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
        match RepeatCount::deserialize(from) {
            Ok(RepeatCount::Number(times)) => Ok(times),
            Ok(RepeatCount::Word(word)) if word == "always" => Ok(super::ALWAYS),
            Ok(RepeatCount::Word(_)) | Err(_) => Err(D::Error::custom("times must be a number or \"always\"")),
        }
    }
}

fn once() -> u32 {
    1
}

/// Durations as text with a unit.
pub(super) mod span {
    use std::time::Duration;

    use serde::de::{Error, Unexpected};
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(span: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_duration(*span))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(from)?;
        let wrong = |_| Error::invalid_value(Unexpected::Str(&text), &"a duration with a unit, such as \"30s\"");
        humantime::parse_duration(&text).map_err(wrong)
    }
}

pub(super) mod maybe_span {
    use std::time::Duration;

    use serde::Deserializer;

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        super::span::deserialize(from).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_fault_goes_through_json_and_back() {
        let faults = [
            PlatformFault::Stall { on: FaultTarget::All, duration: 5 * SECOND },
            PlatformFault::TokenRevoked {},
            PlatformFault::Token { failure: TokenFailure::Slow { duration: SECOND }, times: 3 },
            PlatformFault::Undecodable { on: FaultTarget::Notifications, what: UndecodableFrame::Deep },
        ];
        for fault in faults {
            let text = serde_json::to_string(&fault).unwrap();
            assert_eq!(serde_json::from_str::<PlatformFault>(&text).unwrap(), fault, "{text}");
        }
    }
}
