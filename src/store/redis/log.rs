//! One stream's log as its writer has it.

use std::{
    borrow::Cow,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{Value, cmd, pipe};

use super::{
    Durability, Settings,
    connection::{CommandError, Connection, Script},
    keys::Keys,
};
use crate::{
    model::{Batch, Checkpoint, Epoch, Fence, Lineage, Offset, Position, Sequence, StreamName, Timestamp},
    store::{Append, AppendError, LogState, Retention},
};

/// Beside its envelope an entry is counted with so much.
const ENTRY_OVERHEAD: usize = 16;

/// Entries that one step of the retention removes.
const TRIM_SLICE: usize = 256;

/// What the server runs.
#[derive(Debug)]
pub(super) struct Scripts {
    open: Script,
    append: Script,
    trim: Script,
}

impl Default for Scripts {
    fn default() -> Self {
        Self {
            open: Script::new(include_str!("scripts/open.lua")),
            append: Script::new(include_str!("scripts/append.lua")),
            trim: Script::new(include_str!("scripts/trim.lua")),
        }
    }
}

/// A log that was opened for writing.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) stream: StreamName,
    pub(super) keys: Keys,
    pub(super) lineage: Lineage,
    fence: Fence,
    durability: Durability,
    /// How long a replica may take to have an entry: well below the time for an answer, which comes after it.
    replicated_max: Duration,
    connection: Connection,
    scripts: Arc<Scripts>,
    first: AtomicU64,
    writing: Mutex<Writing>,
}

/// Where the next append goes.
#[derive(Debug)]
struct Writing {
    /// Appends done under this fence: the server compares it, so that none is done twice or out of turn.
    turn: u64,
    last: Offset,
    /// An append of which it is not known whether it was done. Nothing else is appended before that is known.
    open: Option<Identity>,
    /// Why the last append has to be tried again.
    trouble: Option<String>,
}

/// What tells an append from another one.
#[derive(Debug, Clone, PartialEq)]
struct Identity {
    last: Offset,
    len: usize,
    checkpoint: Checkpoint,
}

impl Log {
    /// Takes the log over.
    pub(super) async fn open(
        connection: Connection,
        scripts: Arc<Scripts>,
        settings: &Settings,
        stream: &StreamName,
    ) -> Result<(Self, LogState), CommandError> {
        let keys = Keys::of(&settings.prefix, stream);
        let nonce = fastrand::u128(..);
        let epoch = Epoch(fastrand::u32(1..));
        let arguments = [hex(nonce), format!("{:08x}", epoch.0)];
        let arguments = arguments.each_ref().map(String::as_bytes);
        let answer: Vec<String> = connection.call(&scripts.open, &keys.both(), &arguments).await?;
        let state = state(&answer, nonce)
            .ok_or_else(|| CommandError::NoAnswer(format!("the head of {stream} is damaged: {answer:?}")))?;
        let log = Self {
            stream: stream.clone(),
            keys,
            lineage: state.lineage.clone(),
            fence: state.fence,
            durability: settings.durability,
            replicated_max: settings.limits.answer / 2,
            connection,
            scripts,
            first: AtomicU64::new(state.first.0),
            writing: Mutex::new(Writing { turn: 0, last: state.last, open: None, trouble: None }),
        };
        Ok((log, state))
    }

    pub(super) fn first(&self) -> Offset {
        Offset(self.first.load(Ordering::Acquire))
    }

    pub(super) fn last(&self) -> Offset {
        self.writing().last
    }

    /// What a reader saw: nothing between `after` and `first` is there any more.
    pub(super) fn seen_first(&self, first: Offset, after: Offset) {
        if first > after.next() {
            self.first.fetch_max(first.0, Ordering::AcqRel);
        }
    }

    /// Whether the last append was done, else why not.
    pub(super) fn health(&self) -> Result<(), String> {
        self.writing().trouble.clone().map_or(Ok(()), Err)
    }

    pub(super) fn close(&self) {
        self.connection.close();
    }

    pub(super) async fn append(&self, append: &Append) -> Result<(), AppendError> {
        let identity = identity(append, self.last());
        let (turn, last) = self.begin(append, &identity)?;
        let arguments = arguments(append, turn, last, &identity);
        let arguments: Vec<&[u8]> = arguments.iter().map(Cow::as_ref).collect();
        let outcome = match self.durability {
            Durability::Written => self.connection.call(&self.scripts.append, &self.keys.both(), &arguments).await,
            Durability::Replicated => self.append_replicated(&arguments).await,
        };
        self.end(outcome, identity)
    }

    /// Removes what outlived the retention.
    pub(super) async fn trim(&self, retention: &Retention, now: Timestamp) -> Result<(), CommandError> {
        let arguments = [
            self.fence.number.to_string(),
            hex(self.fence.nonce),
            retention.events.to_string(),
            now.before(retention.age).0.to_string(),
            retention.bytes.to_string(),
            TRIM_SLICE.to_string(),
            ENTRY_OVERHEAD.to_string(),
        ];
        let arguments = arguments.each_ref().map(String::as_bytes);
        loop {
            let (first, more): (String, bool) =
                self.connection.call(&self.scripts.trim, &self.keys.both(), &arguments).await?;
            if let Ok(first) = first.parse() {
                self.first.fetch_max(first, Ordering::AcqRel);
            }
            if !more {
                return Ok(());
            }
        }
    }

    /// The turn and the last offset before this append.
    fn begin(&self, append: &Append, identity: &Identity) -> Result<(u64, Offset), AppendError> {
        if append.fence != self.fence {
            return Err(AppendError::Fenced);
        }
        let writing = self.writing();
        if let Some(text) = self.disorder(writing.last, &append.batches) {
            return Err(AppendError::Broken(text));
        }
        match &writing.open {
            Some(open) if open != identity => {
                Err(AppendError::Broken("an append of which nobody knows whether it was done was given up".to_owned()))
            }
            Some(_) | None => Ok((writing.turn, writing.last)),
        }
    }

    fn end(&self, outcome: Result<(String, String), CommandError>, identity: Identity) -> Result<(), AppendError> {
        let mut writing = self.writing();
        match outcome {
            Ok((word, last)) => match word.as_str() {
                "done" => {
                    *writing = Writing { turn: writing.turn + 1, last: identity.last, open: None, trouble: None };
                    Ok(())
                }
                "fenced" => Err(AppendError::Fenced),
                _ => Err(AppendError::Broken(format!(
                    "the log of {} ends at {last}, not at {}: it was rolled back, or somebody else wrote to it",
                    self.stream, writing.last
                ))),
            },
            Err(error) => {
                if matches!(error, CommandError::NoAnswer(_)) {
                    writing.open = Some(identity);
                }
                writing.trouble = Some(error.to_string());
                Err(verdict(&error))
            }
        }
    }

    /// Why the batches do not follow what is held.
    fn disorder(&self, mut last: Offset, batches: &[Arc<Batch>]) -> Option<String> {
        for batch in batches {
            if batch.first() != last.next() || batch.epoch() != self.lineage.current() {
                return Some(format!("{} goes on at {}, not at {}", self.stream, last.next(), batch.first()));
            }
            last = batch.last();
        }
        None
    }

    /// The append, and then the wait for a replica, on one connection: what is waited for is what it wrote.
    async fn append_replicated(&self, arguments: &[&[u8]]) -> Result<(String, String), CommandError> {
        let keys = self.keys.both();
        let mut wait = cmd("WAIT");
        wait.arg(1).arg(self.replicated_max.as_millis().to_string());
        let with = |append| pipe().add_command(append).add_command(wait.clone()).clone();
        let by_name = with(self.scripts.append.by_name(&keys, arguments));
        let answers = match self.connection.run_all(keys[0], &by_name).await {
            Err(error) if error.code() == Some("NOSCRIPT") => {
                let in_full = with(self.scripts.append.in_full(&keys, arguments));
                self.connection.run_all(keys[0], &in_full).await?
            }
            answers => answers?,
        };
        let strange = || CommandError::NoAnswer("the answer to an append makes no sense".to_owned());
        let [verdict, Value::Int(replicas)] = &answers[..] else { return Err(strange()) };
        let verdict: (String, String) = redis::from_redis_value_ref(verdict).map_err(|_| strange())?;
        if verdict.0 == "done" && *replicas < 1 {
            return Err(CommandError::NoAnswer(format!("no replica had it within {:?}", self.replicated_max)));
        }
        Ok(verdict)
    }

    fn writing(&self) -> std::sync::MutexGuard<'_, Writing> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the writer is to do after a failure.
pub(super) fn verdict(error: &CommandError) -> AppendError {
    match error {
        CommandError::NotSent(_) | CommandError::NoAnswer(_) => AppendError::NoRoom(error.to_string()),
        CommandError::Refused { code, .. } => match code.as_str() {
            // Full, not writable, not the primary, not yet: it passes, or an operator makes it pass.
            "OOM" | "MISCONF" | "NOREPLICAS" | "READONLY" | "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN"
            | "BUSY" | "MOVED" | "ASK" | "NOAUTH" | "NOPERM" | "UNBLOCKED" => AppendError::NoRoom(error.to_string()),
            _ => AppendError::Broken(error.to_string()),
        },
    }
}

fn identity(append: &Append, last: Offset) -> Identity {
    Identity {
        last: append.batches.last().map_or(last, |batch| batch.last()),
        len: append.batches.iter().map(|batch| batch.bytes().len() + ENTRY_OVERHEAD * batch.len()).sum(),
        checkpoint: append.checkpoint,
    }
}

fn arguments<'a>(append: &'a Append, turn: u64, before: Offset, identity: &Identity) -> Vec<Cow<'a, [u8]>> {
    let Checkpoint { position, heard_at } = identity.checkpoint;
    let head = [
        append.fence.number.to_string(),
        hex(append.fence.nonce),
        turn.to_string(),
        (turn + 1).to_string(),
        before.to_string(),
        identity.last.to_string(),
        position.map(|position| position.0.0.to_string()).unwrap_or_default(),
        heard_at.0.to_string(),
        identity.len.to_string(),
    ];
    let mut arguments: Vec<Cow<'a, [u8]>> = head.into_iter().map(own).collect();
    for batch in &append.batches {
        for entry in (0..batch.len()).map(|index| batch.entry(index)) {
            let (at, len) = entry.kind_span();
            arguments.extend([
                Cow::Borrowed(entry.json),
                own(format!("{at}+{len}")),
                own(entry.received.0.to_string()),
            ]);
        }
    }
    arguments
}

fn own<'a>(text: String) -> Cow<'a, [u8]> {
    Cow::Owned(text.into_bytes())
}

fn hex(nonce: u128) -> String {
    format!("{nonce:032x}")
}

/// What the script that opens says.
fn state(answer: &[String], nonce: u128) -> Option<LogState> {
    let [epoch, earlier, last, number, position, heard_at, first] = answer else { return None };
    let earlier = earlier.split_whitespace().map(ended_epoch).collect::<Option<Vec<_>>>()?;
    let last = Offset(last.parse().ok()?);
    let position = match position.as_str() {
        "" => None,
        digits => Some(Position(Sequence(digits.parse().ok()?))),
    };
    let checkpoint = match heard_at.as_str() {
        "" => None,
        millis => Some(Checkpoint { position, heard_at: Timestamp(millis.parse().ok()?) }),
    };
    let first = match first.as_str() {
        "" => last.next(),
        digits => Offset(digits.parse().ok()?),
    };
    let lineage = Lineage::with_earlier(read_epoch(epoch)?, earlier);
    let fence = Fence { number: number.parse().ok()?, nonce };
    Some(LogState { lineage, first, last, checkpoint, fence, damaged: false })
}

fn ended_epoch(text: &str) -> Option<(Epoch, Offset)> {
    let (epoch, end) = text.split_once(':')?;
    Some((read_epoch(epoch)?, Offset(end.parse().ok()?)))
}

fn read_epoch(text: &str) -> Option<Epoch> {
    u32::from_str_radix(text, 16).ok().map(Epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(fields: [&str; 7]) -> Vec<String> {
        fields.map(str::to_owned).to_vec()
    }

    #[test]
    fn the_head_of_a_log_is_read() {
        let state = state(&answer(["0000002a", "00000007:5 00000008:9 ", "12", "4", "77", "1000", "3"]), 1).unwrap();
        let earlier = vec![(Epoch(7), Offset(5)), (Epoch(8), Offset(9))];
        assert_eq!(state.lineage, Lineage::with_earlier(Epoch(42), earlier));
        assert_eq!((state.first, state.last, state.fence), (Offset(3), Offset(12), Fence { number: 4, nonce: 1 }));
        let checkpoint = Checkpoint { position: Some(Position(Sequence(77))), heard_at: Timestamp(1000) };
        assert_eq!(state.checkpoint, Some(checkpoint));
    }

    #[test]
    fn a_log_without_entries_begins_with_the_next_one() {
        let state = state(&answer(["1", "", "12", "4", "", "", ""]), 1).unwrap();
        assert_eq!((state.first, state.checkpoint), (Offset(13), None));
    }

    #[test]
    fn a_damaged_head_is_none() {
        for fields in
            [["x", "", "0", "1", "", "", ""], ["1", "7", "0", "1", "", "", ""], ["1", "", "", "1", "", "", ""]]
        {
            assert!(state(&answer(fields), 1).is_none(), "{fields:?}");
        }
    }

    #[test]
    fn what_may_pass_is_tried_again_and_what_does_not_ends_the_process() {
        let refused = |code: &str| CommandError::Refused { code: code.to_owned(), text: String::new() };
        for error in [refused("OOM"), refused("MISCONF"), refused("READONLY"), CommandError::NotSent(String::new())] {
            assert!(matches!(verdict(&error), AppendError::NoRoom(_)), "{error}");
        }
        assert!(matches!(verdict(&refused("WRONGTYPE")), AppendError::Broken(_)));
    }
}
