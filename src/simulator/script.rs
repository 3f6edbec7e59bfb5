//! What can go wrong, and when: faults as values, and scripts of them in TOML. It refuses what it does not
//! know, by name, and it does nothing itself.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Most events one fault may repeat, skip or hold back, and most pieces of one frame.
const COUNT_MAX: u64 = 100_000;
/// Largest oversize frame.
const BYTES_MAX: usize = 128 * 1024 * 1024;
/// Shortest time between two turns of a repeated fault.
const EVERY_MIN: Duration = Duration::from_millis(10);

/// Whose sockets a fault is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    #[default]
    All,
    Sequenced,
    Notifications,
}

/// One thing that goes wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "fault", rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// The TCP connection is reset.
    Drop {
        #[serde(default)]
        on: Target,
    },
    /// The socket stays open; nothing is read, sent or answered on it for this long.
    Stall {
        #[serde(default)]
        on: Target,
        #[serde(rename = "for", with = "span")]
        lasting: Duration,
    },
    /// The server closes with this code.
    Close {
        #[serde(default)]
        on: Target,
        code: u16,
        #[serde(default)]
        reason: String,
    },
    /// `v2.system.socket_closing`, and the close after the lead time.
    SocketClosing {
        #[serde(with = "span")]
        lead: Duration,
    },
    /// Every token ends now; notification sockets are told.
    TokenRevoked {},
    /// Every channel loses its subscriptions and is told so.
    NoLongerSubscribed {},
    /// The next handshakes are answered with this status.
    Refuse {
        #[serde(default)]
        on: Target,
        status: u16,
        #[serde(default = "once")]
        times: u32,
        /// Written into the header as it is.
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
        /// Only calls whose path begins so.
        #[serde(default)]
        path: Option<String>,
    },
    /// The last `n` sequenced events are said again.
    Duplicate { n: u64 },
    /// `n` sequence numbers are skipped.
    Jump { n: u64 },
    /// The numbering starts again at 1.
    Reset {},
    /// The next `n` sequenced events are said in reverse order.
    Reorder { n: u64 },
    /// A frame that nobody can read.
    Undecodable {
        #[serde(default)]
        on: Target,
        #[serde(default)]
        what: Undecodable,
    },
    /// An event of at least this size: numbered on the sequenced stream.
    Oversize {
        #[serde(default)]
        on: Target,
        bytes: usize,
    },
    /// From now on each frame waits so long before it is sent.
    Delay {
        #[serde(rename = "for", with = "span")]
        lasting: Duration,
    },
    /// The next frame of each socket is sent one byte at a time.
    SlowLoris {
        #[serde(default)]
        on: Target,
        /// Time between two bytes.
        #[serde(with = "span")]
        every: Duration,
    },
    /// The next frame of each socket is sent in `n` fragments.
    Fragments {
        #[serde(default)]
        on: Target,
        n: usize,
    },
}

/// How a token request fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TokenFailure {
    /// 429; `retry_after` is written as it is: seconds, a date, or nonsense.
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
    /// The right answer, so much later.
    Slow {
        #[serde(rename = "for", with = "span")]
        lasting: Duration,
    },
    /// No answer, ever.
    Silent,
    /// 200 with a page for people.
    Html,
    /// 200 with a right answer that is padded beyond 64 KiB.
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
pub enum Undecodable {
    Binary,
    #[default]
    InvalidJson,
    /// JSON, but no event.
    WrongShape,
    /// JSON nested deeper than any reader goes.
    Deep,
    /// A text frame that is not UTF-8.
    InvalidUtf8,
}

/// A fault that asks for the impossible.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    #[error("status {0} is no refusal; use 400 to 599")]
    Status(u16),
    #[error("close code {0} cannot be sent; use 1000 to 4999")]
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
}

impl Fault {
    /// Whether it can be done at all.
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
            | Self::SlowLoris { .. } => Ok(()),
            Self::Close { code, .. } if !(1000..5000).contains(code) => {
                Err(FaultError::CloseCode(*code))
            }
            Self::Close { .. } => Ok(()),
            Self::Refuse {
                status,
                times,
                retry_after,
                ..
            }
            | Self::Rest {
                status,
                times,
                retry_after,
                ..
            } => {
                refusal(*status)?;
                at_least_once(*times)?;
                header(retry_after.as_deref(), FaultError::RetryAfter)
            }
            Self::Token { failure, times } => {
                at_least_once(*times)?;
                failure.check()
            }
            Self::Duplicate { n } | Self::Jump { n } | Self::Reorder { n } => count(*n),
            Self::Fragments { n, .. } => count(*n as u64),
            Self::Oversize { bytes, .. } if *bytes > BYTES_MAX => Err(FaultError::Bytes(*bytes)),
            Self::Oversize { .. } => Ok(()),
        }
    }

    /// The word that scripts use for it.
    fn word(table: &toml::Table) -> String {
        table
            .get("fault")
            .and_then(toml::Value::as_str)
            .unwrap_or("without a fault")
            .to_owned()
    }
}

impl TokenFailure {
    fn check(&self) -> Result<(), FaultError> {
        match self {
            Self::TooManyRequests { retry_after } => {
                header(retry_after.as_deref(), FaultError::RetryAfter)
            }
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
    if (400..600).contains(&status) {
        Ok(())
    } else {
        Err(FaultError::Status(status))
    }
}

fn at_least_once(times: u32) -> Result<(), FaultError> {
    if times == 0 {
        Err(FaultError::Times)
    } else {
        Ok(())
    }
}

fn count(n: u64) -> Result<(), FaultError> {
    if (1..=COUNT_MAX).contains(&n) {
        Ok(())
    } else {
        Err(FaultError::Count(n))
    }
}

fn header(value: Option<&str>, wrong: fn(String) -> FaultError) -> Result<(), FaultError> {
    match value {
        Some(text) if !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) => {
            Err(wrong(text.to_owned()))
        }
        Some(_) | None => Ok(()),
    }
}

/// A fault with its times, counted from the start of the simulator.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    pub at: Duration,
    pub every: Option<Duration>,
    pub fault: Fault,
}

impl Planned {
    /// The first turn later than `done`, or the very first.
    fn next(&self, done: Option<Duration>) -> Option<Duration> {
        match (done, self.every) {
            (None, _) => Some(self.at),
            (Some(done), _) if done < self.at => Some(self.at),
            (Some(_), None) => None,
            (Some(done), Some(every)) => {
                let turns = (done - self.at).as_nanos() / every.max(EVERY_MIN).as_nanos() + 1;
                Some(self.at + every.max(EVERY_MIN) * u32::try_from(turns).ok()?)
            }
        }
    }
}

/// Faults by the clock.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Script {
    /// Takes the place of the seed in the settings, so that one file holds the story and its faults.
    pub seed: Option<u64>,
    pub faults: Vec<Planned>,
}

#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    #[error("the script is not as it should be")]
    Shape(#[source] toml::de::Error),
    #[error("fault {number} ({word}) is not as it should be")]
    Fault {
        number: usize,
        word: String,
        source: toml::de::Error,
    },
    #[error("fault {number} ({word}) cannot be done")]
    Impossible {
        number: usize,
        word: String,
        source: FaultError,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    seed: Option<u64>,
    #[serde(default)]
    fault: Vec<toml::Table>,
}

#[derive(Deserialize)]
struct Times {
    #[serde(with = "span")]
    at: Duration,
    #[serde(default, with = "maybe_span")]
    every: Option<Duration>,
}

impl Script {
    /// Reads a script.
    ///
    /// # Errors
    /// The first thing in it that is unknown, missing or impossible, with the number of its fault.
    pub fn parse(text: &str) -> Result<Self, ScriptError> {
        let text: Text = toml::from_str(text).map_err(ScriptError::Shape)?;
        let faults = text
            .fault
            .into_iter()
            .enumerate()
            .map(|(index, table)| planned(index + 1, table));
        Ok(Self {
            seed: text.seed,
            faults: faults.collect::<Result<_, _>>()?,
        })
    }

    /// A bad minute, for ever: two network drops, one silent stall, one 1008, one pre-close notice.
    pub fn minute_mix() -> Self {
        let minute = |at: u64, fault| Planned {
            at: Duration::from_secs(at),
            every: Some(Duration::from_secs(60)),
            fault,
        };
        let on = Target::All;
        let faults = vec![
            minute(8, Fault::Drop { on }),
            minute(
                20,
                Fault::SocketClosing {
                    lead: Duration::from_secs(5),
                },
            ),
            minute(30, Fault::Drop { on }),
            minute(
                38,
                Fault::Close {
                    on,
                    code: 1008,
                    reason: "Authentication expired".to_owned(),
                },
            ),
            minute(
                46,
                Fault::Stall {
                    on,
                    lasting: Duration::from_secs(10),
                },
            ),
        ];
        Self { seed: None, faults }
    }

    /// What is due next after `done` (all of it before, and at, that time has had its turn), and when.
    pub(super) fn next(&self, done: Option<Duration>) -> Option<(Duration, Vec<Fault>)> {
        let at = self
            .faults
            .iter()
            .filter_map(|planned| planned.next(done))
            .min()?;
        let due = self
            .faults
            .iter()
            .filter(|planned| planned.next(done) == Some(at));
        Some((at, due.map(|planned| planned.fault.clone()).collect()))
    }
}

fn planned(number: usize, mut table: toml::Table) -> Result<Planned, ScriptError> {
    let word = Fault::word(&table);
    let wrong = |source| ScriptError::Fault {
        number,
        word: word.clone(),
        source,
    };
    let mut times = toml::Table::new();
    for key in ["at", "every"] {
        times.extend(table.remove(key).map(|value| (key.to_owned(), value)));
    }
    let Times { at, every } = times.try_into().map_err(wrong)?;
    let fault: Fault = table.try_into().map_err(wrong)?;
    fault.check().map_err(|source| ScriptError::Impossible {
        number,
        word: word.clone(),
        source,
    })?;
    Ok(Planned { at, every, fault })
}

/// Durations with a unit, as people write them.
mod span {
    use std::time::Duration;

    use serde::de::{Error, Unexpected};
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(span: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_duration(*span))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(from)?;
        let wrong = |_| {
            Error::invalid_value(
                Unexpected::Str(&text),
                &"a duration with a unit, such as \"30s\"",
            )
        };
        humantime::parse_duration(&text).map_err(wrong)
    }
}

mod maybe_span {
    use std::time::Duration;

    use serde::Deserializer;

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        super::span::deserialize(from).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_script_is_read_with_its_times() {
        let script = Script::parse(
            r#"
            seed = 7
            [[fault]]
            at = "30s"
            every = "1m"
            fault = "drop"
            on = "sequenced"
            [[fault]]
            at = "5s"
            fault = "token"
            failure = { too_many_requests = { retry_after = "7" } }
            times = 2
            [[fault]]
            at = "6s"
            fault = "token"
            failure = "html"
            "#,
        )
        .unwrap();
        assert_eq!(script.seed, Some(7));
        assert_eq!(
            script.faults[0].fault,
            Fault::Drop {
                on: Target::Sequenced
            }
        );
        let failure = TokenFailure::TooManyRequests {
            retry_after: Some("7".to_owned()),
        };
        assert_eq!(script.faults[1].fault, Fault::Token { failure, times: 2 });
        assert_eq!(
            script.faults[2].fault,
            Fault::Token {
                failure: TokenFailure::Html,
                times: 1
            }
        );
    }

    #[test]
    fn what_is_wrong_with_a_script_is_said_by_name() {
        let table = [
            ("sead = 1", "sead"),
            ("[[fault]]\nat='1s'\nfault='dorp'", "dorp"),
            ("[[fault]]\nat='1s'\nfault='drop'\nhwo='all'", "hwo"),
            ("[[fault]]\nat='1s'\nfault='reset'\nhwo='all'", "hwo"),
            ("[[fault]]\nfault='drop'", "at"),
            ("[[fault]]\nat='45'\nfault='drop'", "a duration with a unit"),
            ("[[fault]]\nat='1s'\nfault='stall'", "for"),
            ("[[fault]]\nat='1s'\nfault='close'\ncode=7", "close code 7"),
            (
                "[[fault]]\nat='1s'\nfault='refuse'\nstatus=200",
                "status 200",
            ),
            ("[[fault]]\nat='1s'\nfault='jump'\nn=0", "n must be"),
            ("[[fault]]\nat='1s'\nfault='token'\nfailure='nap'", "nap"),
        ];
        for (text, word) in table {
            let error = anyhow::Error::from(Script::parse(text).unwrap_err());
            assert!(format!("{error:#}").contains(word), "{text}: {error:#}");
        }
    }

    #[test]
    fn a_fault_goes_through_json_and_back() {
        let faults = [
            Fault::Stall {
                on: Target::All,
                lasting: 5 * SECOND,
            },
            Fault::TokenRevoked {},
            Fault::Token {
                failure: TokenFailure::Slow { lasting: SECOND },
                times: 3,
            },
            Fault::Undecodable {
                on: Target::Notifications,
                what: Undecodable::Deep,
            },
        ];
        for fault in faults {
            let text = serde_json::to_string(&fault).unwrap();
            assert_eq!(
                serde_json::from_str::<Fault>(&text).unwrap(),
                fault,
                "{text}"
            );
        }
    }

    #[test]
    fn each_fault_has_its_turns_in_order() {
        let fault = Fault::Reset {};
        let planned = |at, every: Option<u32>| Planned {
            at: at * SECOND,
            every: every.map(|every| every * SECOND),
            fault: fault.clone(),
        };
        let script = Script {
            seed: None,
            faults: vec![planned(2, Some(3)), planned(0, None), planned(5, None)],
        };
        let mut turns = Vec::new();
        let mut done = None;
        while turns.len() < 5 {
            let (at, due) = script.next(done).unwrap();
            turns.push((at.as_secs(), due.len()));
            done = Some(at);
        }
        assert_eq!(turns, [(0, 1), (2, 1), (5, 2), (8, 1), (11, 1)]);
    }

    #[test]
    fn a_bad_minute_has_two_drops_a_stall_a_1008_and_a_notice() {
        let script = Script::minute_mix();
        assert_eq!(script.faults.len(), 5);
        assert!(
            script
                .faults
                .iter()
                .all(|planned| planned.every == Some(60 * SECOND) && planned.at < 60 * SECOND)
        );
        assert!(
            script
                .faults
                .iter()
                .all(|planned| planned.fault.check().is_ok())
        );
    }
}
