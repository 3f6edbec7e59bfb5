//! Appends by a transaction of plain commands. The server aborts it if the log or its head changed since they were last
//! read over the same connection. An entry costs the server half as much as with a script.
//!
//! A readback follows each append in the same round trip, and the next append uses it. Large appends use CLIENT REPLY
//! OFF, and the readback shows whether they were applied; an append that was not applied is retried with replies on.
//! Small appends keep replies on from the start: their readback is short, and waiting followers get the entries
//! earlier.

use std::time::Duration;

use parking_lot::Mutex;
use redis::{Cmd, FromRedisValue, Pipeline, Value};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::append::{
    AppendReply, AppendTarget, Identity, envelopes, epoch_text, hex, require_replica, wait_for_replica,
};
use crate::{
    model::Offset,
    store::{
        Append,
        redis::{
            connection::{Answers, CommandError, ConnectionId, LuaScript, RedisConnection},
            keys::{LogKeys, entry_id},
            reads::RawEntry,
        },
    },
    telemetry::Cause,
};

/// The number of conflicting changes during one append after which it is postponed.
const ATTEMPTS_MAX: u32 = 8;

/// Appends to one log over a dedicated connection.
#[derive(Debug)]
pub(super) struct TransactionAppender {
    connection: RedisConnection,
    keys: LogKeys,
    /// How long to wait for a replica to have an append, where durability requires it.
    replicated_max: Option<Duration>,
    /// Serializes appends: a command between a readback and its transaction aborts the transaction.
    turn: Semaphore,
    /// None when the content of the keys is unknown.
    watched: Mutex<Option<WatchedHead>>,
}

/// The content of the keys. If it is outdated, the server aborts the next transaction over this connection.
#[derive(Debug)]
struct WatchedHead {
    connection_id: ConnectionId,
    head: HeadSnapshot,
}

/// The result of a readback.
#[derive(Debug, Default, PartialEq, Eq)]
struct HeadSnapshot {
    /// The fields of the head that [`FIELDS`] lists.
    number: String,
    nonce: String,
    epoch: String,
    turn: String,
    last: String,
    /// The highest id that an entry of the log ever had. Redis accepts only higher ids.
    last_generated_id: Option<String>,
    /// Entries that are missing between the oldest and the newest one.
    missing: i64,
    /// Whether the server supports CLIENT REPLY and its user may call it.
    reply_off_supported: bool,
}

const FIELDS: [&str; 5] = ["number", "nonce", "epoch", "turn", "last"];

/// The number of commands in a full readback.
const FULL_READBACK_LEN: usize = 4;

/// The number of commands in an incremental readback.
const INCREMENTAL_READBACK_LEN: usize = 3;

/// Up to this number of entries, an append with replies costs less than a full readback.
const REPLY_ON_MAX: usize = 8;

/// The commands of a transaction other than the entries, including the wait for a replica.
const TRANSACTION_LEN: usize = 6;

/// The number of arguments of the command that adds an entry.
const ENTRY_ARGUMENTS: usize = 5;

/// The approximate length of the command that adds an entry, without the log's name and the envelope.
const ENTRY_WORDS_LEN: usize = 32;

/// The next action, from the last readback.
#[derive(Debug, PartialEq, Eq)]
enum AppendAction {
    Write,
    /// The append was applied, and its reply was lost. It is written once more, so that the wait for a replica covers
    /// it.
    Repeat,
    Answer(AppendReply),
}

/// The scope of a readback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Readback {
    Full,
    /// The server has confirmed the append: in addition to the head, only entries after it must be checked.
    Incremental {
        newest: Offset,
        missing: i64,
        reply_off_supported: bool,
    },
}

/// Whether the server replies to each command of a transaction. It sends a reply for every few commands that it reads,
/// and each one wakes the client: together they cost both sides a third of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReplyMode {
    /// No replies: the readback shows the outcome.
    Off,
    /// Replies: an error gives its reason.
    On,
}

impl TransactionAppender {
    pub(super) fn new(connection: RedisConnection, keys: LogKeys, replicated_max: Option<Duration>) -> Self {
        Self { connection, keys, replicated_max, turn: Semaphore::new(1), watched: Mutex::default() }
    }

    /// Appends once.
    pub(super) async fn append(
        &self,
        append: &Append,
        place: &AppendTarget,
        identity: &Identity,
    ) -> Result<AppendReply, CommandError> {
        let _turn = self.turn().await;
        for attempt in 0..ATTEMPTS_MAX {
            let Some(now) = self.head_snapshot().await? else { continue };
            let entries = match now.head.next_action(place, identity) {
                AppendAction::Write => Some(append),
                AppendAction::Repeat => None,
                AppendAction::Answer(answer) => return Ok(answer),
            };
            let many = entries.map_or(0, Append::entries) > REPLY_ON_MAX;
            let reply_mode =
                if attempt == 0 && many && now.head.reply_off_supported { ReplyMode::Off } else { ReplyMode::On };
            if self.transact(&now, reply_mode, entries, place, identity).await? {
                return Ok(AppendReply::Done);
            }
        }
        Err(CommandError::NotSent(Cause::new("the head of the log changes too often")))
    }

    /// Runs a script that changes the log; after it the content of the keys is unknown.
    pub(super) async fn call<T: FromRedisValue>(
        &self,
        script: &LuaScript,
        arguments: &[&[u8]],
    ) -> Result<T, CommandError> {
        let _turn = self.turn().await;
        self.replace(None);
        self.connection.call(script, &self.keys.both(), arguments).await
    }

    pub(super) fn close(&self) {
        self.connection.close();
    }

    async fn turn(&self) -> SemaphorePermit<'_> {
        self.turn.acquire().await.expect("the semaphore is never closed")
    }

    /// Replaces the watched state and returns the former one.
    fn replace(&self, now: Option<WatchedHead>) -> Option<WatchedHead> {
        std::mem::replace(&mut *self.watched.lock(), now)
    }

    /// The content of the keys; none when the connection was lost meanwhile.
    async fn head_snapshot(&self) -> Result<Option<WatchedHead>, CommandError> {
        if let Some(watched) = self.replace(None) {
            return Ok(Some(watched));
        }
        let tie = self.connection.pin().await?;
        let mut commands = Pipeline::with_capacity(FULL_READBACK_LEN);
        self.watch(Readback::Full, &mut commands);
        let Some(answers) = self.connection.run_pinned(tie, &commands, 0).await? else { return Ok(None) };
        Ok(Some(WatchedHead { connection_id: tie, head: self.read(Readback::Full, answers, tie)? }))
    }

    /// True when the append was applied. Otherwise the keys were changed, the server rejected the append without a
    /// reply, or the connection that watched the keys was lost.
    async fn transact(
        &self,
        now: &WatchedHead,
        reply_mode: ReplyMode,
        entries: Option<&Append>,
        place: &AppendTarget,
        identity: &Identity,
    ) -> Result<bool, CommandError> {
        let mut commands = self.transaction(reply_mode, entries, place, identity);
        let changes = commands.len();
        let (readback, unanswered) = match reply_mode {
            ReplyMode::Off => (Readback::Full, changes),
            ReplyMode::On => {
                let HeadSnapshot { missing, reply_off_supported, .. } = now.head;
                (Readback::Incremental { newest: identity.last, missing, reply_off_supported }, 0)
            }
        };
        self.watch(readback, &mut commands);
        if let Some(timeout) = self.replicated_max {
            commands.add_command(wait_for_replica(timeout));
        }
        let Some(mut answers) = self.connection.run_pinned(now.connection_id, &commands, unanswered).await? else {
            return Ok(false);
        };
        let mut seen = answers.split_off((changes - unanswered).min(answers.len()));
        let outcome = answers.into_iter().try_fold(None, |_, answer| answer.map(Some))?;
        if outcome == Some(Value::Nil) {
            return Ok(false);
        }
        let replicas = seen.split_off(readback.len().min(seen.len()));
        let found = self.read(readback, seen, now.connection_id)?;
        let is_done = found.next_action(place, identity) == AppendAction::Repeat;
        if is_done && found.missing > now.head.missing {
            return Err(refused_in_part());
        }
        self.replace(Some(WatchedHead { connection_id: now.connection_id, head: found }));
        if let (true, Some(timeout), Some(replicas)) = (is_done, self.replicated_max, replicas.into_iter().next()) {
            require_replica(&replicas?, timeout)?;
        }
        Ok(is_done)
    }

    /// Decodes the answers of a readback. If they are malformed, they belong to other commands.
    fn read(&self, readback: Readback, answers: Answers, tie: ConnectionId) -> Result<HeadSnapshot, CommandError> {
        HeadSnapshot::read(readback, answers).inspect_err(|error| self.connection.discard(tie, error))
    }

    fn transaction(
        &self,
        reply_mode: ReplyMode,
        entries: Option<&Append>,
        place: &AppendTarget,
        identity: &Identity,
    ) -> Pipeline {
        let head = &self.keys.head;
        let count = entries.map_or(0, Append::entries);
        let mut commands = Pipeline::with_capacity(count + TRANSACTION_LEN + FULL_READBACK_LEN);
        match reply_mode {
            ReplyMode::Off => commands.cmd("CLIENT").arg("REPLY").arg("OFF"),
            ReplyMode::On => &mut commands,
        };
        commands.cmd("MULTI");
        if let Some(append) = entries {
            for (offset, envelope) in (place.last.0 + 1..).zip(envelopes(&append.batches)) {
                commands.add_command(self.entry(Offset(offset), envelope));
            }
            commands.cmd("HINCRBY").arg(head).arg("bytes").arg(identity.len);
        }
        commands.cmd("HSET").arg(head).arg("turn").arg(place.turn + 1).arg("last").arg(identity.last.0);
        commands.arg("position").arg(identity.position()).arg("heard_at").arg(place.heard_at.0);
        commands.arg("feed").arg(identity.feed());
        if let Some(safe) = place.replicated_up_to {
            commands.arg("safe").arg(safe.0);
        }
        if place.gap_pending {
            commands.arg("damaged").arg("");
        }
        commands.cmd("EXEC");
        commands
    }

    fn entry(&self, offset: Offset, envelope: &[u8]) -> Cmd {
        let mut command = Cmd::with_capacity(ENTRY_ARGUMENTS, self.keys.log.len() + envelope.len() + ENTRY_WORDS_LEN);
        command.arg("XADD").arg(&self.keys.log).arg(entry_id(offset)).arg("event").arg(envelope);
        command
    }

    /// Watches the keys and reads them. A full readback turns replies on again.
    fn watch(&self, readback: Readback, commands: &mut Pipeline) {
        let LogKeys { head, log } = &self.keys;
        if readback == Readback::Full {
            commands.cmd("CLIENT").arg("REPLY").arg("ON");
        }
        commands.cmd("WATCH").arg(head).arg(log);
        commands.cmd("HMGET").arg(head).arg(&FIELDS);
        match readback {
            Readback::Full => commands.cmd("XINFO").arg("STREAM").arg(log),
            Readback::Incremental { newest, .. } => {
                commands.cmd("XRANGE").arg(log).arg(entry_id(newest.next())).arg("+").arg("COUNT").arg(1)
            }
        };
    }
}

impl Readback {
    fn len(self) -> usize {
        match self {
            Self::Full => FULL_READBACK_LEN,
            Self::Incremental { .. } => INCREMENTAL_READBACK_LEN,
        }
    }
}

impl HeadSnapshot {
    fn read(readback: Readback, mut answers: Answers) -> Result<Self, CommandError> {
        let strange = || malformed("a look at a log");
        let reply_off_supported = match readback {
            Readback::Full if answers.is_empty() => return Err(strange()),
            Readback::Full => answers.remove(0).is_ok(),
            Readback::Incremental { reply_off_supported, .. } => reply_off_supported,
        };
        let [watching, head, log] = <[_; INCREMENTAL_READBACK_LEN]>::try_from(answers).map_err(|_| strange())?;
        watching?;
        let head: [Option<String>; FIELDS.len()] = redis::from_redis_value(head?).map_err(|_| strange())?;
        let [number, nonce, epoch, turn, last] = head.map(Option::unwrap_or_default);
        let (top, missing) = match (readback, log) {
            (Readback::Full, Ok(log)) => {
                (Some(last_generated_id(&log).ok_or_else(strange)?), missing(&log).unwrap_or(0))
            }
            (Readback::Incremental { newest, missing, .. }, Ok(behind)) => {
                let behind: Vec<RawEntry> = redis::from_redis_value(behind).map_err(|_| strange())?;
                (Some(behind.into_iter().next().map_or_else(|| entry_id(newest), |(id, _)| id)), missing)
            }
            // Nothing was appended yet.
            (Readback::Full, Err(CommandError::Refused { code, text }))
                if code == "ERR" && text.contains("no such key") =>
            {
                (None, 0)
            }
            (Readback::Full | Readback::Incremental { .. }, Err(error)) => return Err(error),
        };
        Ok(Self { number, nonce, epoch, turn, last, last_generated_id: top, missing, reply_off_supported })
    }

    fn next_action(&self, place: &AppendTarget, identity: &Identity) -> AppendAction {
        let AppendTarget { fence, epoch, turn, last, .. } = place;
        if self.number.is_empty() && self.nonce.is_empty() {
            return AppendAction::Answer(AppendReply::HeadMissing);
        }
        if self.number != fence.number.to_string() || self.nonce != hex(fence.nonce) {
            return AppendAction::Answer(AppendReply::Fenced);
        }
        let is_at = |turn: u64, last: Offset| self.turn == turn.to_string() && self.last == last.to_string();
        if self.epoch != epoch_text(*epoch) {
            AppendAction::Answer(AppendReply::Diverged(self.last.clone()))
        } else if is_at(turn + 1, identity.last) && self.has_entries(*last, identity.last) {
            AppendAction::Repeat
        } else if !is_at(*turn, *last) {
            AppendAction::Answer(AppendReply::Diverged(self.last.clone()))
        } else {
            match &self.last_generated_id {
                Some(top) if !reaches(*last, top) => AppendAction::Answer(AppendReply::ForeignEntry(top.clone())),
                None if *last > Offset::START && identity.last > *last => {
                    AppendAction::Answer(AppendReply::EntriesMissing)
                }
                Some(_) | None => AppendAction::Write,
            }
        }
    }

    /// Whether the entries of an append after `last` are in the log, and not only counted in the head.
    fn has_entries(&self, last: Offset, newest: Offset) -> bool {
        last == newest || self.last_generated_id.as_deref() == Some(&entry_id(newest))
    }
}

/// The last generated id from the server's description of a log.
fn last_generated_id(log: &Value) -> Option<String> {
    redis::from_redis_value_ref(info_field(log, b"last-generated-id")?).ok()
}

fn info_field<'a>(log: &'a Value, name: &[u8]) -> Option<&'a Value> {
    let Value::Map(facts) = log else { return None };
    facts.iter().find(|(found, _)| matches!(found, Value::BulkString(found) if found == name)).map(|(_, fact)| fact)
}

/// Entries that are missing between the oldest and the newest one; none where the log has no entries.
fn missing(log: &Value) -> Option<i64> {
    let offset = |name: &[u8]| {
        let Value::Array(entry) = info_field(log, name)? else { return None };
        let id: String = redis::from_redis_value_ref(entry.first()?).ok()?;
        id.split('-').next()?.parse::<i64>().ok()
    };
    let len: i64 = redis::from_redis_value_ref(info_field(log, b"length")?).ok()?;
    offset(b"last-entry")?.checked_sub(offset(b"first-entry")?)?.checked_add(1)?.checked_sub(len)
}

/// The error for entries that were rejected while replies were off: other entries of the same append may be in the log.
fn refused_in_part() -> CommandError {
    let text = "the log was set ahead of its entries while they were appended; some of them were refused".to_owned();
    CommandError::Refused { code: "ERR".to_owned(), text }
}

/// Whether a log with this highest id accepts the entries after `last`.
fn reaches(last: Offset, top: &str) -> bool {
    let offset = top.split('-').next().and_then(|digits| digits.parse().ok());
    offset.is_some_and(|offset| Offset(offset) <= last)
}

fn malformed(what: &str) -> CommandError {
    CommandError::NoAnswer(Cause::new(format!("unexpected value of {what}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Checkpoint, Epoch, Fence, Timestamp};

    const PLACE: AppendTarget = AppendTarget {
        fence: Fence { number: 3, nonce: 7 },
        epoch: Epoch(9),
        turn: 4,
        last: Offset(20),
        replicated_up_to: None,
        heard_at: Timestamp(0),
        gap_pending: false,
    };

    const NOTHING: Checkpoint = Checkpoint { position: None, last_received_at: Timestamp(0), feed: None };

    const IDENTITY: Identity = Identity { last: Offset(25), len: 1, checkpoint: NOTHING };

    fn snapshot() -> HeadSnapshot {
        let [number, epoch, turn, last] = ["3", "00000009", "4", "20"].map(str::to_owned);
        HeadSnapshot {
            number,
            nonce: hex(7),
            epoch,
            turn,
            last,
            last_generated_id: Some("20-0".to_owned()),
            missing: 0,
            reply_off_supported: true,
        }
    }

    #[test]
    fn an_append_is_written_where_the_log_ends_and_once() {
        assert_eq!(snapshot().next_action(&PLACE, &IDENTITY), AppendAction::Write);
        let done = HeadSnapshot {
            turn: "5".to_owned(),
            last: "25".to_owned(),
            last_generated_id: Some("25-0".to_owned()),
            ..snapshot()
        };
        assert_eq!(done.next_action(&PLACE, &IDENTITY), AppendAction::Repeat);
        let hollow = HeadSnapshot { turn: "5".to_owned(), last: "25".to_owned(), ..snapshot() };
        assert!(
            matches!(hollow.next_action(&PLACE, &IDENTITY), AppendAction::Answer(AppendReply::Diverged(_))),
            "the head alone has it"
        );
        let position = Identity { last: Offset(20), ..IDENTITY };
        assert_eq!(
            HeadSnapshot { turn: "5".to_owned(), ..snapshot() }.next_action(&PLACE, &position),
            AppendAction::Repeat
        );
    }

    #[test]
    fn a_writer_that_lost_the_log_is_fenced() {
        for lost in
            [HeadSnapshot { number: "4".to_owned(), ..snapshot() }, HeadSnapshot { nonce: hex(8), ..snapshot() }]
        {
            assert_eq!(lost.next_action(&PLACE, &IDENTITY), AppendAction::Answer(AppendReply::Fenced));
        }
        assert_eq!(
            HeadSnapshot::default().next_action(&PLACE, &IDENTITY),
            AppendAction::Answer(AppendReply::HeadMissing),
            "it was deleted"
        );
    }

    #[test]
    fn a_log_that_moved_gets_nothing() {
        let moved = [
            HeadSnapshot { epoch: "0000000a".to_owned(), ..snapshot() },
            HeadSnapshot { turn: "5".to_owned(), ..snapshot() },
            HeadSnapshot { last: "19".to_owned(), ..snapshot() },
        ];
        for found in moved {
            let step = found.next_action(&PLACE, &IDENTITY);
            assert!(matches!(step, AppendAction::Answer(AppendReply::Diverged(_))), "{found:?}: {step:?}");
        }
    }

    #[test]
    fn entries_that_are_missing_in_a_log_are_counted() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let log = |len, first: Value, last: Value| {
            let facts = [("length", Value::Int(len)), ("first-entry", first), ("last-entry", last)];
            Value::Map(facts.into_iter().map(|(name, fact)| (text(name), fact)).collect())
        };
        let entry = |id: &str| Value::Array(vec![text(id), Value::Array(Vec::new())]);
        assert_eq!(missing(&log(5, entry("3-0"), entry("7-0"))), Some(0));
        assert_eq!(missing(&log(2, entry("3-0"), entry("7-0"))), Some(3));
        assert_eq!(missing(&log(0, Value::Nil, Value::Nil)), None);
        assert_eq!(missing(&log(1, entry("x"), entry("9223372036854775807-0"))), None);
        assert_eq!(missing(&Value::Nil), None);
    }

    #[test]
    fn nothing_is_appended_to_a_log_that_another_writer_changed() {
        for id in ["1700000000000-0", "21-0"].map(str::to_owned) {
            let found = HeadSnapshot { last_generated_id: Some(id.clone()), ..snapshot() };
            assert_eq!(found.next_action(&PLACE, &IDENTITY), AppendAction::Answer(AppendReply::ForeignEntry(id)));
        }
        let below = HeadSnapshot { last_generated_id: Some("19-0".to_owned()), ..snapshot() };
        assert_eq!(below.next_action(&PLACE, &IDENTITY), AppendAction::Write);
    }

    #[test]
    fn a_log_whose_entries_were_deleted_takes_none_until_the_next_claim() {
        let emptied = HeadSnapshot { last_generated_id: None, ..snapshot() };
        assert_eq!(emptied.next_action(&PLACE, &IDENTITY), AppendAction::Answer(AppendReply::EntriesMissing));
        let position = Identity { last: PLACE.last, ..IDENTITY };
        assert_eq!(emptied.next_action(&PLACE, &position), AppendAction::Write, "a position needs no entries");
        let first = HeadSnapshot { last: "0".to_owned(), last_generated_id: None, ..snapshot() };
        assert_eq!(
            first.next_action(&AppendTarget { last: Offset(0), ..PLACE }, &IDENTITY),
            AppendAction::Write,
            "nothing was there before"
        );
    }
}
