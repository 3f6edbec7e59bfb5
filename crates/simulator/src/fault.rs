//! Faults as values, for code, JSON and TOML. [`PlatformFault::check`] rejects the impossible ones; nothing here
//! carries a fault out.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Most events that one fault may repeat, skip or hold, and most fragments of one frame.
const COUNT_MAX: u64 = 100_000;
/// Largest oversize frame.
const BYTES_MAX: usize = 128 * 1024 * 1024;
/// Most digits of a raw close: the largest frame whose length fits into two bytes.
const HEX_MAX: usize = 2 * 65_535;
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

/// What a request gets instead of the right answer.
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

/// `times` of a fault that lasts until the simulator ends.
pub const ALWAYS: u32 = u32::MAX;

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

/// Why a fault is impossible.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    #[error("status {0} is no refusal; use 400 to 599")]
    Status(u16),
    #[error("close code {0} cannot be sent; use 1000 to 4999, or close_raw")]
    CloseCode(u16),
    #[error("times must be at least 1")]
    Times,
    #[error("n must be 1 to {COUNT_MAX}, not {0}")]
    Count(u64),
    #[error("bytes must be at most {BYTES_MAX}, not {0}")]
    Bytes(usize),
    #[error("expires_in must be JSON text, not {0:?}")]
    Json(String),
    #[error("retry_after must be visible ASCII, not {0:?}")]
    RetryAfter(String),
    #[error("to must be visible ASCII, not {0:?}")]
    Redirect(String),
    #[error("status {0} is no final answer; use 200 to 599")]
    Answer(u16),
    #[error("hex must be two digits a byte and at most {HEX_MAX} digits, not {0:?}")]
    Hex(String),
    #[error("{0} is an answer that only {1} can get")]
    Kind(&'static str, &'static str),
    #[error("content_type must be visible ASCII, not {0:?}")]
    ContentType(String),
    #[error("set must be JSON text, not {0:?}")]
    Set(String),
}

impl PlatformFault {
    /// Checks that the fault is possible.
    pub fn check(&self) -> Result<(), FaultError> {
        match self {
            Self::Drop { .. }
            | Self::Stall { .. }
            | Self::SocketClosing { .. }
            | Self::TokenRevoked {}
            | Self::NoLongerSubscribed {}
            | Self::Reset {}
            | Self::Undecodable { .. }
            | Self::Delay { .. }
            | Self::CloseQuiet { .. }
            | Self::EmptyText { .. }
            | Self::SlowLoris { .. } => Ok(()),
            Self::Answer { to, times, how, .. } => {
                at_least_once(*times)?;
                how.check(*to)
            }
            Self::CloseRaw { hex, .. } => match bytes(hex) {
                Some(_) => Ok(()),
                None => Err(FaultError::Hex(hex.clone())),
            },
            Self::Close { code, .. } if !(1000..5000).contains(code) => Err(FaultError::CloseCode(*code)),
            Self::Close { .. } => Ok(()),
            Self::Refuse { status, times, retry_after, .. } | Self::Rest { status, times, retry_after, .. } => {
                refusal(*status)?;
                at_least_once(*times)?;
                header(retry_after.as_deref(), FaultError::RetryAfter)
            }
            Self::Token { failure, times } => {
                at_least_once(*times)?;
                failure.check()
            }
            Self::Duplicate { n }
            | Self::Jump { n }
            | Self::Reorder { n }
            | Self::Flood { n, .. }
            | Self::Binary { n, .. }
            | Self::Reword { n, .. }
            | Self::Unsent { n } => count(*n),
            Self::Fragments { n, .. } => count(*n as u64),
            Self::Oversize { bytes, .. } | Self::Pad { bytes, .. } if *bytes > BYTES_MAX => {
                Err(FaultError::Bytes(*bytes))
            }
            Self::Oversize { .. } | Self::Pad { .. } => Ok(()),
        }
    }

    /// The fault on one short line, with the words of a script.
    pub fn label(&self) -> String {
        let value = serde_json::to_value(self).unwrap_or_default();
        let mut words = Vec::new();
        for key in ["fault", "to", "how", "code", "hex", "what", "failure", "for", "n", "when", "resuming"] {
            add_words(&mut words, key, &value[key]);
        }
        let mut label = String::new();
        for word in words.iter().filter(|word| *word != "fault" && *word != "to" && *word != "how") {
            label.push_str(if label.is_empty() { "" } else { " " });
            label.push_str(word);
        }
        label
    }
}

/// A member as words: its name and its value. Members that are not set are left out.
fn add_words(words: &mut Vec<String>, key: &str, value: &serde_json::Value) {
    use serde_json::Value;
    let name = |words: &mut Vec<String>| {
        if words.last().is_none_or(|last| last != key) {
            words.push(key.to_owned());
        }
    };
    match value {
        Value::Null | Value::Bool(false) => (),
        Value::Bool(true) => name(words),
        Value::Number(_) => {
            name(words);
            words.push(value.to_string());
        }
        Value::String(text) if text.is_empty() => (),
        Value::String(text) => {
            name(words);
            words.push(text.replace('"', ""));
        }
        Value::Array(elements) => elements.iter().for_each(|element| add_words(words, key, element)),
        Value::Object(members) => {
            name(words);
            members.iter().for_each(|(key, value)| add_words(words, key, value));
        }
    }
}

impl ResponseFault {
    fn check(&self, to: RequestKind) -> Result<(), FaultError> {
        match self {
            Self::Status { status, retry_after, .. } => {
                refusal_or_success(*status)?;
                header(retry_after.as_deref(), FaultError::RetryAfter)?;
            }
            Self::Body { status, content_type, .. } => {
                refusal_or_success(*status)?;
                header(Some(content_type), FaultError::ContentType)?;
            }
            Self::Changed { status, content_type, set, .. } => {
                status.map_or(Ok(()), refusal_or_success)?;
                header(content_type.as_deref(), FaultError::ContentType)?;
                let set = set.as_deref().filter(|set| serde_json::from_str::<serde_json::Value>(set).is_err());
                set.map_or(Ok(()), |set| Err(FaultError::Set(set.to_owned())))?;
                if to == RequestKind::Upgrade {
                    return Err(FaultError::Kind("changed", "rest and token"));
                }
            }
            Self::ConnectionList if to != RequestKind::Upgrade => {
                return Err(FaultError::Kind("connection_list", "upgrade"));
            }
            Self::Closed { .. } if to != RequestKind::Upgrade => return Err(FaultError::Kind("closed", "upgrade")),
            Self::Closed { code, .. } if !(1000..5000).contains(code) => return Err(FaultError::CloseCode(*code)),
            Self::Hang | Self::Late { .. } | Self::Trickle { .. } | Self::Reset => return Ok(()),
            Self::ConnectionList | Self::Interim | Self::Closed { .. } => (),
        }
        if to == RequestKind::Connection {
            return Err(FaultError::Kind("this", "upgrade, rest and token"));
        }
        Ok(())
    }
}

/// The bytes that hexadecimal digits stand for.
pub(super) fn bytes(hex: &str) -> Option<Vec<u8>> {
    if hex.len() > HEX_MAX || !hex.len().is_multiple_of(2) || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok()).collect()
}

fn ok() -> u16 {
    200
}

fn json() -> String {
    "application/json".to_owned()
}

fn refusal_or_success(status: u16) -> Result<(), FaultError> {
    if (200..600).contains(&status) { Ok(()) } else { Err(FaultError::Answer(status)) }
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

impl TokenFailure {
    fn check(&self) -> Result<(), FaultError> {
        match self {
            Self::TooManyRequests { retry_after } => header(retry_after.as_deref(), FaultError::RetryAfter),
            Self::Status { status } => refusal(*status),
            Self::ExpiresIn { json } => match serde_json::from_str::<serde_json::Value>(json) {
                Ok(_) => Ok(()),
                Err(_) => Err(FaultError::Json(json.clone())),
            },
            Self::Redirect { to } => header(Some(to), FaultError::Redirect),
            Self::InvalidClient
            | Self::InvalidGrant
            | Self::Reset
            | Self::Slow { .. }
            | Self::Silent
            | Self::Html
            | Self::Huge
            | Self::NoExpiresIn => Ok(()),
        }
    }
}

fn once() -> u32 {
    1
}

fn refusal(status: u16) -> Result<(), FaultError> {
    if (400..600).contains(&status) { Ok(()) } else { Err(FaultError::Status(status)) }
}

fn at_least_once(times: u32) -> Result<(), FaultError> {
    if times == 0 { Err(FaultError::Times) } else { Ok(()) }
}

fn count(n: u64) -> Result<(), FaultError> {
    if (1..=COUNT_MAX).contains(&n) { Ok(()) } else { Err(FaultError::Count(n)) }
}

fn header(value: Option<&str>, wrong: fn(String) -> FaultError) -> Result<(), FaultError> {
    match value {
        Some(text) if !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) => Err(wrong(text.to_owned())),
        Some(_) | None => Ok(()),
    }
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

    #[test]
    fn an_answer_that_cannot_be_given_is_refused_with_the_reason() {
        let table = [
            (r#"{"fault":"answer","to":"rest","how":{"status":{"status":101}}}"#, "status 101 is no final answer"),
            (r#"{"fault":"answer","to":"rest","times":0,"how":"hang"}"#, "at least 1"),
            (r#"{"fault":"answer","to":"rest","how":"connection_list"}"#, "only upgrade"),
            (r#"{"fault":"answer","to":"token","how":{"closed":{"after":"1s","code":1008}}}"#, "only upgrade"),
            (r#"{"fault":"answer","to":"upgrade","how":{"changed":{}}}"#, "only rest and token"),
            (r#"{"fault":"answer","to":"connection","how":"interim"}"#, "only upgrade, rest and token"),
            (r#"{"fault":"answer","to":"rest","how":{"changed":{"set":"{"}}}"#, "set must be JSON"),
            (r#"{"fault":"answer","to":"rest","how":{"body":{"content_type":"é","text":""}}}"#, "content_type"),
            (r#"{"fault":"close_raw","hex":"03f"}"#, "two digits a byte"),
            (r#"{"fault":"flood","n":0}"#, "n must be"),
        ];
        for (text, word) in table {
            let error = serde_json::from_str::<PlatformFault>(text).unwrap().check().unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
        let always = r#"{"fault":"answer","to":"token","times":"always","how":"hang"}"#;
        let fault: PlatformFault = serde_json::from_str(always).unwrap();
        assert_eq!((fault.check(), fault.label()), (Ok(()), "answer token hang".to_owned()));
        assert!(serde_json::to_string(&fault).unwrap().contains(r#""times":"always""#));
    }

    #[test]
    fn a_label_names_what_is_set_and_nothing_else() {
        for (text, label) in [
            (r#"{"fault":"drop"}"#, "drop"),
            (r#"{"fault":"close","code":1008}"#, "close code 1008"),
            (r#"{"fault":"flood","n":500,"when":"overlap"}"#, "flood n 500 when overlap"),
            (r#"{"fault":"answer","to":"upgrade","how":{"late":{"for":"2s"}}}"#, "answer upgrade late for 2s"),
            (
                r#"{"fault":"answer","to":"rest","how":{"status":{"status":429,"retry_in":2}}}"#,
                "answer rest status retry_in 2 status 429",
            ),
            (
                r#"{"fault":"answer","to":"token","how":{"changed":{"set":"{\"expires_in\":0}"}}}"#,
                "answer token changed set {expires_in:0}",
            ),
        ] {
            assert_eq!(serde_json::from_str::<PlatformFault>(text).unwrap().label(), label);
        }
    }
}
