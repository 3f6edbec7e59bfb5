//! Following a log that another process writes to: one connection of its own, and one command on it that waits.
//!
//! It remembers nothing between two answers but its connection, so it may be dropped at any moment.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use redis::{Pipeline, RedisError, Value, pipe};

use super::{
    Durability, Redis,
    connection::{CommandError, Connection},
    head,
    keys::entry_id,
    log::verdict,
    reads::{self, COUNT_FIRST, Stored, Wire, count_within},
    view::{View, wrong_types},
};
use crate::{
    clock,
    model::{Epoch, Offset, StreamName},
    protocol::backoff::Curve,
    store::{AppendError, Extent, News, ReadError},
    telemetry::metrics,
};

/// Where nothing is appended, the server is asked this often: once for entries, once for the epoch.
const IDLE: Duration = Duration::from_secs(1);

/// About the bytes of one answer; what is beyond them comes with the next one.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How often the same failure is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// Delays after failures.
const RETRY: Curve = Curve { first: Duration::from_millis(50), cap: Duration::from_secs(1), jitter: 0.2 };

/// Delays while entries are there that no replica is known to have.
const UNSAFE: Curve = Curve { first: Duration::from_millis(4), cap: Duration::from_millis(500), jitter: 0.0 };

/// One stream's follower.
#[derive(Debug)]
pub struct Follower {
    store: Redis,
    stream: StreamName,
    view: Arc<View>,
    connection: Connection,
    /// How long the server waits for entries before it says that there are none.
    patience: Duration,
    /// Answers in a row that were none, and that held nothing that may be shown.
    failures: u32,
    unsafe_answers: u32,
    /// How many entries the next answer may have, by the size of those of the last one.
    count: usize,
    /// When a failure was logged last, and its text.
    logged: Option<(Instant, String)>,
}

/// Why the log could not be followed.
#[derive(Debug)]
enum Trouble {
    /// The server was not reached, or takes no commands now.
    Away(ReadError),
    /// What it holds cannot be shown.
    Unreadable(ReadError),
}

impl From<ReadError> for Trouble {
    fn from(error: ReadError) -> Self {
        Self::Unreadable(error)
    }
}

/// What the server said.
#[derive(Debug)]
struct Answer {
    entries: Vec<Stored>,
    /// None where the log has no head, or one that no writer has been at.
    epoch: Option<Epoch>,
    /// Up to where replicas have it.
    safe: String,
    first: Option<Offset>,
}

/// What an answer means for somebody who knows the log up to an entry of an epoch.
#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    Nothing,
    /// There is something that may not be shown yet.
    Early,
    /// So many of the entries follow.
    Follow(usize),
    /// The log is not the one that was known, or goes on elsewhere.
    Anew,
}

impl Follower {
    pub(super) fn new(store: Redis, stream: &StreamName) -> Self {
        let shared = &store.shared;
        Self {
            stream: stream.clone(),
            view: shared.view(stream),
            connection: shared.connection.another(),
            patience: IDLE.min(shared.settings.limits.answer / 2),
            failures: 0,
            unsafe_answers: 0,
            count: COUNT_FIRST,
            logged: None,
            store,
        }
    }

    /// Waits for what is news to somebody who knows the log up to `last` of `epoch`. Fails only when the store is closed.
    pub(in crate::store) async fn next(&mut self, epoch: Epoch, last: Offset) -> Result<News, ReadError> {
        loop {
            if self.store.shared.connection.is_closed() {
                return Err(ReadError("the store is closed".to_owned()));
            }
            match self.step(epoch, last).await {
                Ok(Some(news)) => return Ok(news),
                Ok(None) => (),
                Err(trouble) => self.recover(trouble).await,
            }
        }
    }

    async fn step(&mut self, epoch: Epoch, last: Offset) -> Result<Option<News>, Trouble> {
        let Answer { entries, epoch: found, safe, first } = self.ask(last).await?;
        self.failures = 0;
        if !entries.is_empty() {
            let bytes = entries.iter().map(|entry| entry.json.len()).sum();
            self.count = count_within(entries.len(), bytes, ANSWER_BYTES_MAX);
        }
        let meaning = meaning(&entries, found, &safe, self.store.shared.settings.durability, (epoch, last))?;
        if meaning != Meaning::Anew {
            self.view.is_readable();
        }
        if meaning != Meaning::Early {
            self.unsafe_answers = 0;
        }
        if let Some(first) = first
            && meaning != Meaning::Anew
        {
            self.view.trimmed_to(first);
        }
        match meaning {
            Meaning::Nothing => Ok(None),
            Meaning::Early => {
                let delay = UNSAFE.delay(self.unsafe_answers, 0.0);
                self.unsafe_answers = self.unsafe_answers.saturating_add(1);
                tokio::time::sleep(delay).await;
                Ok(None)
            }
            Meaning::Follow(len) => Ok(Some(News::Entries(reads::together(&entries[..len])?))),
            Meaning::Anew => Ok(Some(News::Elsewhere(self.look().await?))),
        }
    }

    /// The entries after `last`, and then what the head says: so it is not older than they are.
    async fn ask(&self, last: Offset) -> Result<Answer, Trouble> {
        let keys = &self.view.keys;
        let answers = match self.connection.run_all(&keys.log, &self.question(last)).await {
            Ok(answers) => answers,
            Err(error) => return Err(self.refused(error).await),
        };
        let [entries, head] = <[Value; 2]>::try_from(answers).map_err(|_| strange())?;
        let logs: Option<BTreeMap<String, Vec<Wire>>> = redis::from_redis_value(entries).map_err(no_answer)?;
        let head: [Option<String>; 3] = redis::from_redis_value(head).map_err(no_answer)?;
        let [epoch, safe, first] = head;
        let unusable = |field, text: &str| ReadError(head::odd_field(&keys.head, field, text));
        let written = |digits: &String| head::epoch(digits).filter(|_| !digits.is_empty());
        let epoch = epoch.map(|digits| written(&digits).ok_or_else(|| unusable("epoch", &digits))).transpose()?;
        // One that makes no sense is written anew by the owner. The newest entry is always kept.
        let first = first.and_then(|digits| head::offset(&digits)).filter(|first| *first <= last.next());
        let counts = self.store.shared.settings.durability == Durability::Replicated;
        if let Some(digits) = safe.as_deref().filter(|digits| counts && head::offset(digits).is_none()) {
            return Err(unusable("safe", digits).into());
        }
        let entries = logs.into_iter().flatten().flat_map(|(_, entries)| entries);
        let entries = entries.map(|entry| reads::entry(&keys.log, entry)).collect::<Result<_, _>>()?;
        Ok(Answer { entries, epoch, safe: safe.unwrap_or_default(), first })
    }

    async fn look(&self) -> Result<Extent, Trouble> {
        let found = self.store.look_leniently(&self.stream).await.map_err(Trouble::Away)?;
        match found {
            (extent, None) => Ok(extent),
            (_, Some(why)) => Err(Trouble::Unreadable(ReadError(why))),
        }
    }

    /// What a command that failed means.
    async fn refused(&self, error: CommandError) -> Trouble {
        match verdict(&error) {
            AppendError::Refused(_) if error.code() == Some("WRONGTYPE") => {
                Trouble::Unreadable(ReadError(wrong_types(&self.store.shared.connection, &self.view.keys).await))
            }
            AppendError::Refused(why) => Trouble::Unreadable(ReadError(why)),
            AppendError::NoRoom(_) | AppendError::Fenced | AppendError::Moved(_) | AppendError::Broken(_) => {
                Trouble::Away(ReadError(error.to_string()))
            }
        }
    }

    fn question(&self, last: Offset) -> Pipeline {
        let (keys, mut question) = (&self.view.keys, pipe());
        let wait = self.patience.as_millis().max(1).to_string();
        question.cmd("XREAD").arg("COUNT").arg(self.count).arg("BLOCK").arg(wait);
        question.arg("STREAMS").arg(&keys.log).arg(entry_id(last));
        question.cmd("HMGET").arg(&keys.head).arg(&["epoch", "safe", "first"]);
        question
    }

    /// Logs another failure at once, the same one each `LOG_INTERVAL`, and waits.
    async fn recover(&mut self, trouble: Trouble) {
        metrics::store_failed("read");
        let error = match trouble {
            Trouble::Away(error) => error,
            Trouble::Unreadable(error) => {
                self.view.is_unreadable(&error.0);
                error
            }
        };
        let due = |(at, text): &(Instant, String)| *text != error.0 || at.elapsed() >= LOG_INTERVAL;
        if self.logged.as_ref().is_none_or(due) {
            self.logged = Some((clock::now(), error.0.clone()));
            tracing::warn!(stream = %self.stream, %error, "the log cannot be followed; it is tried again");
        }
        let delay = RETRY.delay(self.failures, fastrand::f64());
        self.failures = self.failures.saturating_add(1);
        tokio::time::sleep(delay).await;
    }
}

fn meaning(
    entries: &[Stored],
    epoch: Option<Epoch>,
    safe: &str,
    durability: Durability,
    known: (Epoch, Offset),
) -> Result<Meaning, ReadError> {
    let Some(newest) = entries.last() else {
        let same = epoch.is_none_or(|epoch| epoch == known.0);
        return Ok(if same { Meaning::Nothing } else { Meaning::Anew });
    };
    let shown = head::shown(newest.offset, safe, durability).ok_or_else(strange)?;
    let len = entries.partition_point(|entry| entry.offset <= shown);
    Ok(match (epoch, &entries[..len]) {
        // Until somebody has claimed it, nobody knows what becomes of it.
        (None, _) => Meaning::Early,
        (Some(epoch), _) if epoch != known.0 => Meaning::Anew,
        (Some(_), []) => Meaning::Early,
        (Some(_), [first, ..]) if first.offset != known.1.next() => Meaning::Anew,
        (Some(_), some) if some.iter().any(|entry| entry.epoch != known.0) => Meaning::Anew,
        (Some(_), some) => Meaning::Follow(some.len()),
    })
}

fn no_answer(error: impl Into<RedisError>) -> ReadError {
    ReadError(error.into().to_string())
}

fn strange() -> ReadError {
    ReadError("what the log holds makes no sense".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    const EPOCH: Epoch = Epoch(7);

    fn entries(epoch: u32, offsets: std::ops::RangeInclusive<u64>) -> Vec<Stored> {
        let entry = |offset| Stored {
            offset: Offset(offset),
            epoch: Epoch(epoch),
            json: Vec::new(),
            kind: (0, 0),
            received: Timestamp(0),
        };
        offsets.map(entry).collect()
    }

    fn check(entries: &[Stored], epoch: Option<u32>, safe: &str, durability: Durability) -> Meaning {
        meaning(entries, epoch.map(Epoch), safe, durability, (EPOCH, Offset(4))).unwrap()
    }

    #[test]
    fn what_follows_in_the_same_epoch_is_taken_and_anything_else_is_looked_at() {
        let written = Durability::Written;
        for (entries, epoch, expected) in [
            (entries(7, 5..=9), Some(7), Meaning::Follow(5)),
            (Vec::new(), Some(7), Meaning::Nothing),
            (Vec::new(), Some(8), Meaning::Anew),
            (entries(7, 5..=9), Some(8), Meaning::Anew),
            (entries(8, 5..=9), Some(7), Meaning::Anew),
            (entries(7, 6..=9), Some(7), Meaning::Anew),
            (Vec::new(), None, Meaning::Nothing),
            (entries(7, 5..=9), None, Meaning::Early),
        ] {
            assert_eq!(check(&entries, epoch, "", written), expected, "{entries:?} {epoch:?}");
        }
    }

    #[test]
    fn where_replicas_count_no_more_is_taken_than_they_have() {
        for (safe, expected) in
            [("9", Meaning::Follow(5)), ("6", Meaning::Follow(2)), ("4", Meaning::Early), ("", Meaning::Follow(5))]
        {
            assert_eq!(check(&entries(7, 5..=9), Some(7), safe, Durability::Replicated), expected, "{safe}");
            assert_eq!(check(&entries(7, 5..=9), Some(7), safe, Durability::Written), Meaning::Follow(5));
        }
    }
}
