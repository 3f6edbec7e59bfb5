//! Follows a log that another process writes to: a dedicated connection with one blocking command.
//!
//! Between two answers it keeps no state but its connection, so it may be dropped at any moment.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use redis::{Pipeline, RedisError, Value, pipe};

use super::{
    Durability, RedisStore,
    connection::{CommandError, RedisConnection},
    head,
    keys::entry_id,
    log::append_error,
    reads::{self, COUNT_FIRST, RawEntry, RedisEntry, count_within},
    view::{LogView, wrong_types},
};
use crate::{
    clock,
    model::{Epoch, Offset, StreamName},
    protocol::backoff::BackoffCurve,
    store::{AppendError, LogBounds, LogUpdate, ReadError},
    telemetry::{Cause, chain, metrics},
};

/// How often an idle follower asks the server: for entries, and for the epoch.
const IDLE: Duration = Duration::from_secs(1);

/// The approximate size of one answer; further entries come with the next one.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The interval at which the same failure is logged again.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// Delays after failures.
const RETRY: BackoffCurve = BackoffCurve { first: Duration::from_millis(50), cap: Duration::from_secs(1), jitter: 0.2 };

/// Delays while entries exist that no replica has confirmed.
const UNREPLICATED_BACKOFF: BackoffCurve =
    BackoffCurve { first: Duration::from_millis(4), cap: Duration::from_millis(500), jitter: 0.0 };

/// One stream's follower.
#[derive(Debug)]
pub struct RedisFollower {
    store: RedisStore,
    stream: StreamName,
    view: Arc<LogView>,
    connection: RedisConnection,
    /// How long the server waits for entries before it returns none.
    block_timeout: Duration,
    /// Failed requests in a row.
    failures: u32,
    /// Answers in a row with entries that are not visible yet.
    unreplicated_replies: u32,
    /// The maximum number of entries in the next answer, from the size of the entries in the last one.
    count: usize,
    /// The time and the text of the last logged failure.
    last_logged: Option<(Instant, String)>,
}

/// Why the log could not be followed.
#[derive(Debug)]
enum FollowError {
    /// The server was not reached, or accepts no commands now.
    Unreachable(Cause),
    /// The content of the log cannot be read.
    Unreadable(Cause),
}

impl From<ReadError> for FollowError {
    fn from(error: ReadError) -> Self {
        Self::Unreadable(error.0)
    }
}

/// An answer of the server.
#[derive(Debug)]
struct FollowReply {
    entries: Vec<RedisEntry>,
    /// None where the log has no head, or no writer has claimed it.
    epoch: Option<Epoch>,
    /// The offset up to which replicas have the log.
    replicated_up_to: String,
    first: Option<Offset>,
}

/// The consequence of an answer for a follower that has read up to an entry of an epoch.
#[derive(Debug, PartialEq, Eq)]
enum FollowDecision {
    Nothing,
    /// There are entries that are not visible yet.
    NotYetVisible,
    /// This number of entries follows.
    Entries(usize),
    /// The log is in another epoch, or does not continue at the expected entry.
    Diverged,
}

impl RedisFollower {
    pub(super) fn new(store: RedisStore, stream: &StreamName) -> Self {
        let shared = &store.shared;
        Self {
            stream: stream.clone(),
            view: shared.view(stream),
            connection: shared.connection.dedicated(),
            block_timeout: IDLE.min(shared.settings.timeouts.response / 2),
            failures: 0,
            unreplicated_replies: 0,
            count: COUNT_FIRST,
            last_logged: None,
            store,
        }
    }

    /// Waits for an update after the entry `last` of `epoch`. Fails only when the store is closed.
    pub(in crate::store) async fn next(&mut self, epoch: Epoch, last: Offset) -> Result<LogUpdate, ReadError> {
        loop {
            if self.store.shared.connection.is_closed() {
                return Err(ReadError::new("the store is closed"));
            }
            match self.step(epoch, last).await {
                Ok(Some(news)) => return Ok(news),
                Ok(None) => (),
                Err(trouble) => self.recover(trouble).await,
            }
        }
    }

    async fn step(&mut self, epoch: Epoch, last: Offset) -> Result<Option<LogUpdate>, FollowError> {
        let FollowReply { entries, epoch: found, replicated_up_to: safe, first } = self.poll(last).await?;
        self.failures = 0;
        if !entries.is_empty() {
            let bytes = entries.iter().map(|entry| entry.json.len()).sum();
            self.count = count_within(entries.len(), bytes, ANSWER_BYTES_MAX);
        }
        let meaning = decide(&entries, found, &safe, self.store.shared.settings.durability, (epoch, last))?;
        if meaning != FollowDecision::Diverged {
            self.view.set_readable();
        }
        if meaning != FollowDecision::NotYetVisible {
            self.unreplicated_replies = 0;
        }
        if let Some(first) = first
            && meaning != FollowDecision::Diverged
        {
            self.view.trimmed_to(first);
        }
        match meaning {
            FollowDecision::Nothing => Ok(None),
            FollowDecision::NotYetVisible => {
                let delay = UNREPLICATED_BACKOFF.delay(self.unreplicated_replies, 0.0);
                self.unreplicated_replies = self.unreplicated_replies.saturating_add(1);
                tokio::time::sleep(delay).await;
                Ok(None)
            }
            FollowDecision::Entries(len) => Ok(Some(LogUpdate::Entries(reads::to_batches(&entries[..len])?))),
            FollowDecision::Diverged => Ok(Some(LogUpdate::Diverged(self.bounds().await?))),
        }
    }

    /// Reads the entries after `last` and then the head, so the head is not older than the entries.
    async fn poll(&self, last: Offset) -> Result<FollowReply, FollowError> {
        let keys = &self.view.keys;
        let answers = match self.connection.run_all(&keys.log, &self.request(last)).await {
            Ok(answers) => answers,
            Err(error) => return Err(self.classify(error).await),
        };
        let [entries, head] = <[Value; 2]>::try_from(answers).map_err(|_| malformed())?;
        let logs: Option<BTreeMap<String, Vec<RawEntry>>> =
            redis::from_redis_value(entries).map_err(unreadable_answer)?;
        let head: [Option<String>; 3] = redis::from_redis_value(head).map_err(unreadable_answer)?;
        let [epoch, safe, first] = head;
        let unusable = |field, text: &str| ReadError::new(head::describe_field(&keys.head, field, text));
        let written = |digits: &String| head::parse_epoch(digits).filter(|_| !digits.is_empty());
        let epoch = epoch.map(|digits| written(&digits).ok_or_else(|| unusable("epoch", &digits))).transpose()?;
        // The owner overwrites an invalid value. The newest entry is always kept.
        let first = first.and_then(|digits| head::parse_offset(&digits)).filter(|first| *first <= last.next());
        let counts = self.store.shared.settings.durability == Durability::Replicated;
        if let Some(digits) = safe.as_deref().filter(|digits| counts && head::parse_offset(digits).is_none()) {
            return Err(unusable("safe", digits).into());
        }
        let entries = logs.into_iter().flatten().flat_map(|(_, entries)| entries);
        let entries = entries.map(|entry| reads::entry(&keys.log, entry)).collect::<Result<_, _>>()?;
        Ok(FollowReply { entries, epoch, replicated_up_to: safe.unwrap_or_default(), first })
    }

    async fn bounds(&self) -> Result<LogBounds, FollowError> {
        let found =
            self.store.bounds_at_startup(&self.stream).await.map_err(|error| FollowError::Unreachable(error.0))?;
        match found {
            (extent, None) => Ok(extent),
            (_, Some(why)) => Err(FollowError::Unreadable(Cause::new(why))),
        }
    }

    /// Classifies a failed command.
    async fn classify(&self, error: CommandError) -> FollowError {
        match append_error(error.clone()) {
            AppendError::UnusableLog(_) if error.code() == Some("WRONGTYPE") => {
                FollowError::Unreadable(Cause::new(wrong_types(&self.store.shared.connection, &self.view.keys).await))
            }
            AppendError::UnusableLog(cause) => FollowError::Unreadable(cause),
            AppendError::Unavailable(_) | AppendError::Fenced | AppendError::Diverged(_) | AppendError::Broken(_) => {
                FollowError::Unreachable(Cause::new(error))
            }
        }
    }

    fn request(&self, last: Offset) -> Pipeline {
        let (keys, mut question) = (&self.view.keys, pipe());
        let wait = self.block_timeout.as_millis().max(1).to_string();
        question.cmd("XREAD").arg("COUNT").arg(self.count).arg("BLOCK").arg(wait);
        question.arg("STREAMS").arg(&keys.log).arg(entry_id(last));
        question.cmd("HMGET").arg(&keys.head).arg(&["epoch", "safe", "first"]);
        question
    }

    /// Logs a new failure immediately and the same failure once per `LOG_INTERVAL`, then waits.
    async fn recover(&mut self, trouble: FollowError) {
        metrics::store_failed("read");
        let why = match trouble {
            FollowError::Unreachable(cause) => chain(&cause),
            FollowError::Unreadable(cause) => {
                let why = chain(&cause);
                self.view.set_unreadable(&why);
                why
            }
        };
        let due = |(at, text): &(Instant, String)| *text != why || at.elapsed() >= LOG_INTERVAL;
        if self.last_logged.as_ref().is_none_or(due) {
            tracing::warn!(stream = %self.stream, error = why, "cannot follow the log, will retry");
            self.last_logged = Some((clock::now(), why));
        }
        let delay = RETRY.delay(self.failures, fastrand::f64());
        self.failures = self.failures.saturating_add(1);
        tokio::time::sleep(delay).await;
    }
}

fn decide(
    entries: &[RedisEntry],
    epoch: Option<Epoch>,
    safe: &str,
    durability: Durability,
    known: (Epoch, Offset),
) -> Result<FollowDecision, ReadError> {
    let Some(newest) = entries.last() else {
        let same = epoch.is_none_or(|epoch| epoch == known.0);
        return Ok(if same { FollowDecision::Nothing } else { FollowDecision::Diverged });
    };
    let shown = head::high_watermark(newest.offset, safe, durability).ok_or_else(malformed)?;
    let len = entries.partition_point(|entry| entry.offset <= shown);
    Ok(match (epoch, &entries[..len]) {
        // Until a writer has claimed the log, its epoch is undecided.
        (None, _) => FollowDecision::NotYetVisible,
        (Some(epoch), _) if epoch != known.0 => FollowDecision::Diverged,
        (Some(_), []) => FollowDecision::NotYetVisible,
        (Some(_), [first, ..]) if first.offset != known.1.next() => FollowDecision::Diverged,
        (Some(_), some) if some.iter().any(|entry| entry.epoch != known.0) => FollowDecision::Diverged,
        (Some(_), some) => FollowDecision::Entries(some.len()),
    })
}

fn unreadable_answer(error: impl Into<RedisError>) -> ReadError {
    ReadError::new(error.into())
}

fn malformed() -> ReadError {
    ReadError::new("the log has an entry that this version cannot read")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    const EPOCH: Epoch = Epoch(7);

    fn entries(epoch: u32, offsets: std::ops::RangeInclusive<u64>) -> Vec<RedisEntry> {
        let entry = |offset| RedisEntry {
            offset: Offset(offset),
            epoch: Epoch(epoch),
            json: Vec::new(),
            kind: (0, 0),
            received: Timestamp(0),
        };
        offsets.map(entry).collect()
    }

    fn check(entries: &[RedisEntry], epoch: Option<u32>, safe: &str, durability: Durability) -> FollowDecision {
        decide(entries, epoch.map(Epoch), safe, durability, (EPOCH, Offset(4))).unwrap()
    }

    #[test]
    fn entries_of_the_same_epoch_follow_and_anything_else_diverges() {
        let written = Durability::Written;
        for (entries, epoch, expected) in [
            (entries(7, 5..=9), Some(7), FollowDecision::Entries(5)),
            (Vec::new(), Some(7), FollowDecision::Nothing),
            (Vec::new(), Some(8), FollowDecision::Diverged),
            (entries(7, 5..=9), Some(8), FollowDecision::Diverged),
            (entries(8, 5..=9), Some(7), FollowDecision::Diverged),
            (entries(7, 6..=9), Some(7), FollowDecision::Diverged),
            (Vec::new(), None, FollowDecision::Nothing),
            (entries(7, 5..=9), None, FollowDecision::NotYetVisible),
        ] {
            assert_eq!(check(&entries, epoch, "", written), expected, "{entries:?} {epoch:?}");
        }
    }

    #[test]
    fn with_replicated_durability_only_replicated_entries_follow() {
        for (safe, expected) in [
            ("9", FollowDecision::Entries(5)),
            ("6", FollowDecision::Entries(2)),
            ("4", FollowDecision::NotYetVisible),
            ("", FollowDecision::Entries(5)),
        ] {
            assert_eq!(check(&entries(7, 5..=9), Some(7), safe, Durability::Replicated), expected, "{safe}");
            assert_eq!(check(&entries(7, 5..=9), Some(7), safe, Durability::Written), FollowDecision::Entries(5));
        }
    }
}
