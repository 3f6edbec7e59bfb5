//! Scripts of faults in TOML: parsing, and the faults that are due at a time. An unknown key is an error that names
//! it.

use std::time::Duration;

use serde::Deserialize;

use super::fault::{FaultError, PlatformFault, maybe_span, span};

/// Shortest time between two repetitions of a fault.
const EVERY_MIN: Duration = Duration::from_millis(10);

/// A fault with its times, counted from the start of the simulator.
#[derive(Clone, Debug, PartialEq)]
pub struct ScheduledFault {
    pub at: Duration,
    pub every: Option<Duration>,
    pub fault: PlatformFault,
}

impl ScheduledFault {
    /// The first time later than `done`, or the first of all.
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

/// Faults and their times.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FaultScript {
    /// Replaces the seed in the settings, so that one file has the scenario and its faults.
    pub seed: Option<u64>,
    /// Replaces the value in the settings.
    pub agents: Option<usize>,
    pub queues: Option<usize>,
    pub faults: Vec<ScheduledFault>,
}

#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    #[error("invalid script")]
    Format(#[source] toml::de::Error),
    #[error("fault {number} ({word}) is invalid")]
    Fault { number: usize, word: String, source: toml::de::Error },
    #[error("fault {number} ({word}) is impossible")]
    Impossible { number: usize, word: String, source: FaultError },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ScriptFile {
    seed: Option<u64>,
    agents: Option<usize>,
    queues: Option<usize>,
    #[serde(default)]
    fault: Vec<toml::Table>,
}

#[derive(Deserialize)]
struct ScheduleKeys {
    #[serde(with = "span")]
    at: Duration,
    #[serde(default, with = "maybe_span")]
    every: Option<Duration>,
}

impl FaultScript {
    /// Reads a script.
    ///
    /// # Errors
    /// The first unknown, missing or impossible part, with the number of its fault.
    pub fn parse(text: &str) -> Result<Self, ScriptError> {
        let text: ScriptFile = toml::from_str(text).map_err(ScriptError::Format)?;
        let faults = text.fault.into_iter().enumerate().map(|(index, table)| parse_fault(index + 1, table));
        let (seed, agents, queues) = (text.seed, text.agents, text.queues);
        Ok(Self { seed, agents, queues, faults: faults.collect::<Result<_, _>>()? })
    }

    /// The next time after `done`, and the faults that are due then. All faults up to `done` have run.
    pub(super) fn next(&self, done: Option<Duration>) -> Option<(Duration, Vec<PlatformFault>)> {
        let at = self.faults.iter().filter_map(|planned| planned.next(done)).min()?;
        let due = self.faults.iter().filter(|planned| planned.next(done) == Some(at));
        Some((at, due.map(|planned| planned.fault.clone()).collect()))
    }
}

fn parse_fault(number: usize, mut table: toml::Table) -> Result<ScheduledFault, ScriptError> {
    let word = table.get("fault").and_then(toml::Value::as_str).unwrap_or("without a fault").to_owned();
    let wrong = |source| ScriptError::Fault { number, word: word.clone(), source };
    let mut times = toml::Table::new();
    for key in ["at", "every"] {
        times.extend(table.remove(key).map(|value| (key.to_owned(), value)));
    }
    let ScheduleKeys { at, every } = times.try_into().map_err(wrong)?;
    let fault: PlatformFault = table.try_into().map_err(wrong)?;
    fault.check().map_err(|source| ScriptError::Impossible { number, word: word.clone(), source })?;
    Ok(ScheduledFault { at, every, fault })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{FaultTarget, TokenFailure};

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_script_is_read_with_its_times() {
        let script = FaultScript::parse(
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
        assert_eq!(script.faults[0].fault, PlatformFault::Drop { on: FaultTarget::Sequenced });
        let failure = TokenFailure::TooManyRequests { retry_after: Some("7".to_owned()) };
        assert_eq!(script.faults[1].fault, PlatformFault::Token { failure, times: 2 });
        assert_eq!(script.faults[2].fault, PlatformFault::Token { failure: TokenFailure::Html, times: 1 });
    }

    #[test]
    fn script_errors_name_the_fault() {
        let table = [
            ("sead = 1", "sead"),
            ("[[fault]]\nat='1s'\nfault='dorp'", "dorp"),
            ("[[fault]]\nat='1s'\nfault='drop'\nhwo='all'", "hwo"),
            ("[[fault]]\nat='1s'\nfault='reset'\nhwo='all'", "hwo"),
            ("[[fault]]\nfault='drop'", "at"),
            ("[[fault]]\nat='45'\nfault='drop'", "a duration with a unit"),
            ("[[fault]]\nat='1s'\nfault='stall'", "for"),
            ("[[fault]]\nat='1s'\nfault='close'\ncode=7", "close code 7"),
            ("[[fault]]\nat='1s'\nfault='refuse'\nstatus=200", "status 200"),
            ("[[fault]]\nat='1s'\nfault='jump'\nn=0", "n must be"),
            ("[[fault]]\nat='1s'\nfault='token'\nfailure='nap'", "nap"),
        ];
        for (text, word) in table {
            let error = anyhow::Error::from(FaultScript::parse(text).unwrap_err());
            assert!(format!("{error:#}").contains(word), "{text}: {error:#}");
        }
    }

    #[test]
    fn each_fault_has_its_turns_in_order() {
        let fault = PlatformFault::Reset {};
        let planned = |at, every: Option<u32>| ScheduledFault {
            at: at * SECOND,
            every: every.map(|every| every * SECOND),
            fault: fault.clone(),
        };
        let script = FaultScript {
            faults: vec![planned(2, Some(3)), planned(0, None), planned(5, None)],
            ..FaultScript::default()
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
}
