//! Appending by a transaction of plain commands: it is void when anybody touched the log or its head since they were
//! last looked at over the same connection. For the server an entry costs half of what a script makes of it.
//!
//! What follows an append, in the same round trip, is a look: the next one goes by it. Where many entries are appended,
//! the server is mute meanwhile, and the look tells whether it was done; one that was not is tried aloud. A few are
//! appended aloud from the start: then the look is short, and what waits for the entries hears of them first.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use redis::{Cmd, FromRedisValue, Pipeline, Value};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::append::{Answer, Identity, Place, envelopes, epoch_text, hex, must_be_one, wait_for_replica};
use crate::{
    model::Offset,
    store::{
        Append,
        redis::{
            connection::{Answers, CommandError, Connection, Script, Tie},
            keys::{Keys, entry_id},
            reads::Wire,
        },
    },
};

/// So often somebody may touch a log in the midst of one append before the append is put off.
const ATTEMPTS_MAX: u32 = 8;

/// Appends to one log over a connection that nobody else uses.
#[derive(Debug)]
pub(super) struct Transactions {
    connection: Connection,
    keys: Keys,
    /// How long a replica may take to have an append, where one must.
    replicated_max: Option<Duration>,
    /// One is at it, the others wait: what comes between a look and its transaction makes it void.
    turn: Semaphore,
    /// None when it is not known what the keys hold.
    watched: Mutex<Option<Watched>>,
}

/// What the keys hold, or else the next transaction over this connection is void.
#[derive(Debug)]
struct Watched {
    tie: Tie,
    found: Found,
}

/// What a look found.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    /// Fields of the head: those of [`FIELDS`].
    number: String,
    nonce: String,
    epoch: String,
    turn: String,
    last: String,
    /// The highest id that an entry of the log ever had: a lower one cannot be added any more.
    top: Option<String>,
    /// Entries that are missing between the oldest and the newest one.
    missing: i64,
    /// Whether the server can be told not to answer, and its user may tell it.
    can_be_mute: bool,
}

const FIELDS: [&str; 5] = ["number", "nonce", "epoch", "turn", "last"];

/// Commands of a look.
const LOOK_LEN: usize = 4;
const SHORT_LOOK_LEN: usize = 3;

/// So many entries cost less to append aloud than a full look costs.
const LOUD_MAX: usize = 8;

/// Commands of a transaction beside the entries, and that for a replica to wait for.
const TRANSACTION_LEN: usize = 6;

/// Words of the command that adds an entry, and about how long they are without the log's name and the envelope.
const ENTRY_ARGUMENTS: usize = 5;
const ENTRY_WORDS_LEN: usize = 32;

/// What is to be done, going by what was found.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Write,
    /// It was done, and the answer was lost: written once more, so that a replica that has this has that, too.
    Repeat,
    Answer(Answer),
}

/// What is asked when the keys are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Full,
    /// The server has just said that an append was done: what is to be known beside the head is whether the log goes
    /// on behind it.
    Short {
        newest: Offset,
        missing: i64,
        can_be_mute: bool,
    },
}

/// Whether the server answers each command of a transaction. It sends an answer for every few that it reads, and each
/// of those wakes this side up: together they cost both sides a third of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Voice {
    /// What became of it, the look that follows tells.
    Mute,
    /// Why it is refused is heard.
    Loud,
}

impl Transactions {
    pub(super) fn new(connection: Connection, keys: Keys, replicated_max: Option<Duration>) -> Self {
        Self { connection, keys, replicated_max, turn: Semaphore::new(1), watched: Mutex::default() }
    }

    /// Appends once.
    pub(super) async fn append(
        &self,
        append: &Append,
        place: &Place,
        identity: &Identity,
    ) -> Result<Answer, CommandError> {
        let _turn = self.turn().await;
        for attempt in 0..ATTEMPTS_MAX {
            let Some(now) = self.look().await? else { continue };
            let entries = match now.found.step(place, identity) {
                Step::Write => Some(append),
                Step::Repeat => None,
                Step::Answer(answer) => return Ok(answer),
            };
            let many = entries.map_or(0, Append::entries) > LOUD_MAX;
            let voice = if attempt == 0 && many && now.found.can_be_mute { Voice::Mute } else { Voice::Loud };
            if self.transact(&now, voice, entries, place, identity).await? {
                return Ok(Answer::Done);
            }
        }
        Err(CommandError::NotSent("the head of the log is changed all the time".to_owned()))
    }

    /// Runs a script that changes the log; after it nothing is known of what the keys hold.
    pub(super) async fn call<T: FromRedisValue>(
        &self,
        script: &Script,
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
        self.turn.acquire().await.expect("nobody closes it")
    }

    /// What is watched now, and what was watched so far.
    fn replace(&self, now: Option<Watched>) -> Option<Watched> {
        std::mem::replace(&mut *self.watched.lock().unwrap_or_else(PoisonError::into_inner), now)
    }

    /// What the keys hold; none when the connection was lost meanwhile.
    async fn look(&self) -> Result<Option<Watched>, CommandError> {
        if let Some(watched) = self.replace(None) {
            return Ok(Some(watched));
        }
        let tie = self.connection.tie().await?;
        let mut commands = Pipeline::with_capacity(LOOK_LEN);
        self.watch(Look::Full, &mut commands);
        let Some(answers) = self.connection.run_tied(tie, &commands, 0).await? else { return Ok(None) };
        Ok(Some(Watched { tie, found: self.read(Look::Full, answers, tie)? }))
    }

    /// True when it was done. When not, somebody touched the keys, or the server refused it without a word, or the
    /// connection that watched them was lost.
    async fn transact(
        &self,
        now: &Watched,
        voice: Voice,
        entries: Option<&Append>,
        place: &Place,
        identity: &Identity,
    ) -> Result<bool, CommandError> {
        let mut commands = self.transaction(voice, entries, place, identity);
        let changes = commands.len();
        let (look, unanswered) = match voice {
            Voice::Mute => (Look::Full, changes),
            Voice::Loud => {
                let Found { missing, can_be_mute, .. } = now.found;
                (Look::Short { newest: identity.last, missing, can_be_mute }, 0)
            }
        };
        self.watch(look, &mut commands);
        if let Some(patience) = self.replicated_max {
            commands.add_command(wait_for_replica(patience));
        }
        let Some(mut answers) = self.connection.run_tied(now.tie, &commands, unanswered).await? else {
            return Ok(false);
        };
        let mut seen = answers.split_off((changes - unanswered).min(answers.len()));
        let outcome = answers.into_iter().try_fold(None, |_, answer| answer.map(Some))?;
        if outcome == Some(Value::Nil) {
            return Ok(false);
        }
        let replicas = seen.split_off(look.len().min(seen.len()));
        let found = self.read(look, seen, now.tie)?;
        let is_done = found.step(place, identity) == Step::Repeat;
        if is_done && found.missing > now.found.missing {
            return Err(refused_in_part());
        }
        self.replace(Some(Watched { tie: now.tie, found }));
        if let (true, Some(patience), Some(replicas)) = (is_done, self.replicated_max, replicas.into_iter().next()) {
            must_be_one(&replicas?, patience)?;
        }
        Ok(is_done)
    }

    /// What the answers to a look tell. Where they make no sense, they are answers to something else.
    fn read(&self, look: Look, answers: Answers, tie: Tie) -> Result<Found, CommandError> {
        Found::read(look, answers).inspect_err(|error| self.connection.cut(tie, &error.to_string()))
    }

    fn transaction(&self, voice: Voice, entries: Option<&Append>, place: &Place, identity: &Identity) -> Pipeline {
        let head = &self.keys.head;
        let count = entries.map_or(0, Append::entries);
        let mut commands = Pipeline::with_capacity(count + TRANSACTION_LEN + LOOK_LEN);
        match voice {
            Voice::Mute => commands.cmd("CLIENT").arg("REPLY").arg("OFF"),
            Voice::Loud => &mut commands,
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
        if let Some(safe) = place.safe {
            commands.arg("safe").arg(safe.0);
        }
        if place.owes_gap {
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

    /// Begins to watch, and looks. A full look lets the server answer (again).
    fn watch(&self, look: Look, commands: &mut Pipeline) {
        let Keys { head, log } = &self.keys;
        if look == Look::Full {
            commands.cmd("CLIENT").arg("REPLY").arg("ON");
        }
        commands.cmd("WATCH").arg(head).arg(log);
        commands.cmd("HMGET").arg(head).arg(&FIELDS);
        match look {
            Look::Full => commands.cmd("XINFO").arg("STREAM").arg(log),
            Look::Short { newest, .. } => {
                commands.cmd("XRANGE").arg(log).arg(entry_id(newest.next())).arg("+").arg("COUNT").arg(1)
            }
        };
    }
}

impl Look {
    fn len(self) -> usize {
        match self {
            Self::Full => LOOK_LEN,
            Self::Short { .. } => SHORT_LOOK_LEN,
        }
    }
}

impl Found {
    fn read(look: Look, mut answers: Answers) -> Result<Self, CommandError> {
        let strange = || strange("a look at a log");
        let can_be_mute = match look {
            Look::Full if answers.is_empty() => return Err(strange()),
            Look::Full => answers.remove(0).is_ok(),
            Look::Short { can_be_mute, .. } => can_be_mute,
        };
        let [watching, head, log] = <[_; SHORT_LOOK_LEN]>::try_from(answers).map_err(|_| strange())?;
        watching?;
        let head: [Option<String>; FIELDS.len()] = redis::from_redis_value(head?).map_err(|_| strange())?;
        let [number, nonce, epoch, turn, last] = head.map(Option::unwrap_or_default);
        let (top, missing) = match (look, log) {
            (Look::Full, Ok(log)) => (Some(top(&log).ok_or_else(strange)?), missing(&log).unwrap_or(0)),
            (Look::Short { newest, missing, .. }, Ok(behind)) => {
                let behind: Vec<Wire> = redis::from_redis_value(behind).map_err(|_| strange())?;
                (Some(behind.into_iter().next().map_or_else(|| entry_id(newest), |(id, _)| id)), missing)
            }
            // Nothing was appended yet.
            (Look::Full, Err(CommandError::Refused { code, text }))
                if code == "ERR" && text.contains("no such key") =>
            {
                (None, 0)
            }
            (Look::Full | Look::Short { .. }, Err(error)) => return Err(error),
        };
        Ok(Self { number, nonce, epoch, turn, last, top, missing, can_be_mute })
    }

    fn step(&self, place: &Place, identity: &Identity) -> Step {
        let Place { fence, epoch, turn, last, .. } = place;
        if self.number.is_empty() && self.nonce.is_empty() {
            return Step::Answer(Answer::Gone);
        }
        if self.number != fence.number.to_string() || self.nonce != hex(fence.nonce) {
            return Step::Answer(Answer::Fenced);
        }
        let is_at = |turn: u64, last: Offset| self.turn == turn.to_string() && self.last == last.to_string();
        if self.epoch != epoch_text(*epoch) {
            Step::Answer(Answer::Elsewhere(self.last.clone()))
        } else if is_at(turn + 1, identity.last) && self.has_entries(*last, identity.last) {
            Step::Repeat
        } else if !is_at(*turn, *last) {
            Step::Answer(Answer::Elsewhere(self.last.clone()))
        } else {
            match &self.top {
                Some(top) if !reaches(*last, top) => Step::Answer(Answer::Foreign(top.clone())),
                None if *last > Offset::START && identity.last > *last => Step::Answer(Answer::Emptied),
                Some(_) | None => Step::Write,
            }
        }
    }

    /// Whether what an append from `last` on added is in the log, not in the head alone.
    fn has_entries(&self, last: Offset, newest: Offset) -> bool {
        last == newest || self.top.as_deref() == Some(&entry_id(newest))
    }
}

/// What the server tells of a log as its last id.
fn top(log: &Value) -> Option<String> {
    redis::from_redis_value_ref(fact(log, b"last-generated-id")?).ok()
}

fn fact<'a>(log: &'a Value, name: &[u8]) -> Option<&'a Value> {
    let Value::Map(facts) = log else { return None };
    facts.iter().find(|(found, _)| matches!(found, Value::BulkString(found) if found == name)).map(|(_, fact)| fact)
}

/// Entries that are missing between the oldest and the newest one; none where it has no entries.
fn missing(log: &Value) -> Option<i64> {
    let offset = |name: &[u8]| {
        let Value::Array(entry) = fact(log, name)? else { return None };
        let id: String = redis::from_redis_value_ref(entry.first()?).ok()?;
        id.split('-').next()?.parse::<i64>().ok()
    };
    let len: i64 = redis::from_redis_value_ref(fact(log, b"length")?).ok()?;
    offset(b"last-entry")?.checked_sub(offset(b"first-entry")?)?.checked_add(1)?.checked_sub(len)
}

/// While the server was mute it refused entries: others of the same append may be in the log.
fn refused_in_part() -> CommandError {
    let text = "the log was set ahead of its entries while they were appended; some of them were refused".to_owned();
    CommandError::Refused { code: "ERR".to_owned(), text }
}

/// Whether entries behind `last` can be added to a log with this highest id.
fn reaches(last: Offset, top: &str) -> bool {
    let offset = top.split('-').next().and_then(|digits| digits.parse().ok());
    offset.is_some_and(|offset| Offset(offset) <= last)
}

fn strange(what: &str) -> CommandError {
    CommandError::NoAnswer(format!("{what} makes no sense"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Checkpoint, Epoch, Fence, Timestamp};

    const PLACE: Place = Place {
        fence: Fence { number: 3, nonce: 7 },
        epoch: Epoch(9),
        turn: 4,
        last: Offset(20),
        safe: None,
        heard_at: Timestamp(0),
        owes_gap: false,
    };

    const NOTHING: Checkpoint = Checkpoint { position: None, heard_at: Timestamp(0), feed: None };

    const IDENTITY: Identity = Identity { last: Offset(25), len: 1, checkpoint: NOTHING };

    fn found() -> Found {
        let [number, epoch, turn, last] = ["3", "00000009", "4", "20"].map(str::to_owned);
        Found { number, nonce: hex(7), epoch, turn, last, top: Some("20-0".to_owned()), missing: 0, can_be_mute: true }
    }

    #[test]
    fn an_append_is_written_where_the_log_ends_and_once() {
        assert_eq!(found().step(&PLACE, &IDENTITY), Step::Write);
        let done = Found { turn: "5".to_owned(), last: "25".to_owned(), top: Some("25-0".to_owned()), ..found() };
        assert_eq!(done.step(&PLACE, &IDENTITY), Step::Repeat);
        let hollow = Found { turn: "5".to_owned(), last: "25".to_owned(), ..found() };
        assert!(matches!(hollow.step(&PLACE, &IDENTITY), Step::Answer(Answer::Elsewhere(_))), "the head alone has it");
        let position = Identity { last: Offset(20), ..IDENTITY };
        assert_eq!(Found { turn: "5".to_owned(), ..found() }.step(&PLACE, &position), Step::Repeat);
    }

    #[test]
    fn whoever_lost_the_log_is_fenced() {
        for lost in [Found { number: "4".to_owned(), ..found() }, Found { nonce: hex(8), ..found() }] {
            assert_eq!(lost.step(&PLACE, &IDENTITY), Step::Answer(Answer::Fenced));
        }
        assert_eq!(Found::default().step(&PLACE, &IDENTITY), Step::Answer(Answer::Gone), "it was deleted");
    }

    #[test]
    fn a_log_that_moved_gets_nothing() {
        let moved = [
            Found { epoch: "0000000a".to_owned(), ..found() },
            Found { turn: "5".to_owned(), ..found() },
            Found { last: "19".to_owned(), ..found() },
        ];
        for found in moved {
            let step = found.step(&PLACE, &IDENTITY);
            assert!(matches!(step, Step::Answer(Answer::Elsewhere(_))), "{found:?}: {step:?}");
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
    fn a_log_that_somebody_else_wrote_to_gets_nothing() {
        for id in ["1700000000000-0", "21-0"].map(str::to_owned) {
            let found = Found { top: Some(id.clone()), ..found() };
            assert_eq!(found.step(&PLACE, &IDENTITY), Step::Answer(Answer::Foreign(id)));
        }
        let below = Found { top: Some("19-0".to_owned()), ..found() };
        assert_eq!(below.step(&PLACE, &IDENTITY), Step::Write);
    }

    #[test]
    fn a_log_whose_entries_were_deleted_gets_none_before_it_is_claimed_anew() {
        let emptied = Found { top: None, ..found() };
        assert_eq!(emptied.step(&PLACE, &IDENTITY), Step::Answer(Answer::Emptied));
        let position = Identity { last: PLACE.last, ..IDENTITY };
        assert_eq!(emptied.step(&PLACE, &position), Step::Write, "a position needs no entries");
        let first = Found { last: "0".to_owned(), top: None, ..found() };
        assert_eq!(first.step(&Place { last: Offset(0), ..PLACE }, &IDENTITY), Step::Write, "nothing was there before");
    }
}
