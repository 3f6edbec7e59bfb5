//! One stream's log for its writer.

mod append;
mod append_path;
mod script;
mod transaction;

use std::sync::Arc;

use self::{
    append::{AppendReply, AppendTarget, ENTRY_OVERHEAD, Identity, epoch_text, hex},
    append_path::AppendPath,
};
use super::{
    Durability, Settings,
    connection::{CommandError, LuaScript, RedisConnection},
    head::{self, ClaimedHead},
    keys::LogKeys,
    skew::ClockSkew,
    unreadable::{later_format, quoted},
    view::{LogView, wrong_types},
};
use crate::{
    clock,
    model::{Batch, Epoch, Fence, Offset, StreamName, Timestamp},
    random,
    store::{Append, AppendError, LogState, ObservedLog, Retention},
    telemetry::{Cause, chain},
};
use parking_lot::Mutex;

/// The number of entries that one retention step removes.
const TRIM_SLICE: usize = 256;

/// The maximum number of observed epochs that a claim sends.
const EPOCHS_SEEN_MAX: usize = 32;

/// The scripts of a log.
#[derive(Debug)]
pub(super) struct RedisLog {
    pub(super) bounds: LuaScript,
    open: LuaScript,
    publish: LuaScript,
    trim: LuaScript,
}

impl Default for RedisLog {
    fn default() -> Self {
        Self {
            bounds: LuaScript::new(include_str!("scripts/look.lua")),
            open: LuaScript::new(include_str!("scripts/open.lua")),
            publish: LuaScript::new(include_str!("scripts/safe.lua")),
            trim: LuaScript::new(include_str!("scripts/trim.lua")),
        }
    }
}

/// A log that was claimed for writing.
#[derive(Debug)]
pub(super) struct Log {
    view: Arc<LogView>,
    stream: StreamName,
    epoch: Epoch,
    pub(super) fence: Fence,
    /// The offset of the server's clock, measured at the claim and at each retention run.
    skew: ClockSkew,
    durability: Durability,
    path: AppendPath,
    scripts: Arc<RedisLog>,
    state: Mutex<AppendState>,
}

/// The state of the next append.
#[derive(Debug)]
struct AppendState {
    /// Appends applied under this fence. The server compares it, so no append is applied twice or out of order.
    turn: u64,
    last: Offset,
    /// The offset up to which replicas have the log, where durability requires replicas.
    replicated_up_to: Offset,
    /// The replicated offset that the log's head publishes.
    published_up_to: Offset,
    /// An append with an unknown outcome. Nothing else is appended before its outcome is known.
    unresolved: Option<Identity>,
    /// The error of the last append, which must be retried.
    last_error: Option<CommandError>,
    /// The claim found a loss, and nothing was appended since.
    gap_pending: bool,
}

impl Log {
    /// Claims the log, under a new fence or the given one, for a process that has read entries of it.
    pub(super) async fn claim(
        shared: &RedisConnection,
        scripts: Arc<RedisLog>,
        settings: &Settings,
        stream: &StreamName,
        view: Arc<LogView>,
        (under, seen): (Option<Fence>, &ObservedLog),
    ) -> Result<(Self, LogState), AppendError> {
        let connection = AppendPath::connection(shared, settings);
        let nonce = under.map_or_else(random::u128, |fence| fence.nonce);
        let replicated = matches!(settings.durability, Durability::Replicated);
        let arguments = [
            hex(nonce),
            epoch_text(Epoch(random::nonzero_u32())),
            under.map(|fence| fence.number.to_string()).unwrap_or_default(),
            u8::from(replicated).to_string(),
            epochs_seen(seen),
        ];
        let arguments = arguments.each_ref().map(String::as_bytes);
        let answer = connection.call(&scripts.open, &view.keys.both(), &arguments).await;
        let answer: Vec<String> = match answer {
            Err(CommandError::Refused { code, .. }) if code == "WRONGTYPE" => {
                return Err(AppendError::UnusableLog(Cause::new(wrong_types(shared, &view.keys).await)));
            }
            answer => answer.map_err(append_error)?,
        };
        if let Some(refusal) = claim_error(&answer, &view.keys) {
            return Err(refusal);
        }
        let unusable = |odd| AppendError::UnusableLog(Cause::new(head::describe_malformed(&view.keys.head, &odd)));
        let claimed = head::read_claim(&answer, nonce, settings.durability, clock::wall());
        let ClaimedHead { state, turn, skew } = claimed.map_err(unusable)?;
        view.set_first(state.first);
        view.set_readable();
        let way = AppendPath::new(connection, &view.keys, settings);
        let writing = AppendState {
            turn,
            last: state.last,
            replicated_up_to: state.high_watermark,
            published_up_to: state.high_watermark,
            unresolved: None,
            last_error: None,
            gap_pending: state.damaged,
        };
        let log = Self {
            view,
            stream: stream.clone(),
            epoch: state.lineage.current(),
            fence: state.fence,
            skew,
            durability: settings.durability,
            path: way,
            scripts,
            state: Mutex::new(writing),
        };
        Ok((log, state))
    }

    /// The reason why the last append failed; Ok when it was applied.
    pub(super) fn health(&self) -> Result<(), String> {
        self.state.lock().last_error.as_ref().map_or(Ok(()), |error| Err(chain(error)))
    }

    pub(super) fn close(&self) {
        self.path.close();
    }

    pub(super) async fn append(&self, append: &Append) -> Result<(), AppendError> {
        let identity = Identity::of(append, self.state.lock().last);
        let place = self.prepare(append, &identity)?;
        let answer = self.path.append(append, &place, &identity).await;
        self.complete(answer, identity)
    }

    /// Makes replicated entries visible to followers in other processes. If this fails, the next append does it.
    pub(super) async fn publish_high_watermark(&self) -> Result<(), CommandError> {
        let (replicated_up_to, published_up_to) = {
            let writing = self.state.lock();
            (writing.replicated_up_to, writing.published_up_to)
        };
        if self.durability == Durability::Written || replicated_up_to <= published_up_to {
            return Ok(());
        }
        let arguments = [self.fence.number.to_string(), hex(self.fence.nonce), replicated_up_to.to_string()];
        let arguments = arguments.each_ref().map(String::as_bytes);
        self.path.call::<u8>(&self.scripts.publish, &arguments).await?;
        self.state.lock().published_up_to = replicated_up_to;
        Ok(())
    }

    /// Removes expired entries, and measures the server's clock.
    pub(super) async fn trim(&self, retention: &Retention, now: Timestamp) -> Result<(), CommandError> {
        let arguments = [
            self.fence.number.to_string(),
            hex(self.fence.nonce),
            retention.events.to_string(),
            now.before(retention.age).to_string(),
            retention.bytes.to_string(),
            TRIM_SLICE.to_string(),
            ENTRY_OVERHEAD.to_string(),
        ];
        let arguments = arguments.each_ref().map(String::as_bytes);
        loop {
            let (first, more, server): (String, bool, i64) = self.path.call(&self.scripts.trim, &arguments).await?;
            self.skew.remeasure(Timestamp(server), clock::wall());
            if let Ok(first) = first.parse() {
                self.view.trimmed_to(Offset(first));
            }
            if !more {
                return Ok(());
            }
        }
    }

    /// The target of this append.
    fn prepare(&self, append: &Append, identity: &Identity) -> Result<AppendTarget, AppendError> {
        if append.fence != self.fence {
            return Err(AppendError::Fenced);
        }
        let writing = self.state.lock();
        if let Some(text) = self.discontinuity(writing.last, &append.batches) {
            return Err(AppendError::Broken(Cause::new(text)));
        }
        match &writing.unresolved {
            Some(open) if open != identity => {
                Err(AppendError::Broken(Cause::new("an append with an unknown outcome was not repeated")))
            }
            Some(_) | None => {
                let replicated_up_to = (self.durability == Durability::Replicated).then_some(writing.replicated_up_to);
                let (fence, heard_at) = (self.fence, self.skew.to_server(identity.checkpoint.last_received_at));
                let AppendState { turn, last, gap_pending, .. } = *writing;
                Ok(AppendTarget { fence, epoch: self.epoch, turn, last, replicated_up_to, heard_at, gap_pending })
            }
        }
    }

    fn complete(&self, outcome: Result<AppendReply, CommandError>, identity: Identity) -> Result<(), AppendError> {
        let mut writing = self.state.lock();
        match outcome {
            Ok(AppendReply::Done) => {
                let published_up_to = writing.replicated_up_to;
                let Identity { last, .. } = identity;
                let turn = writing.turn + 1;
                *writing = AppendState {
                    turn,
                    last,
                    replicated_up_to: last,
                    published_up_to,
                    unresolved: None,
                    last_error: None,
                    gap_pending: false,
                };
                Ok(())
            }
            Ok(AppendReply::Fenced) => Err(AppendError::Fenced),
            Ok(AppendReply::Diverged(last)) => {
                Err(AppendError::Diverged(Cause::new(moved(&self.view.keys.head, &last, writing.last))))
            }
            Ok(AppendReply::HeadMissing) => {
                tracing::error!(
                    stream = %self.stream,
                    key = self.view.keys.head,
                    "the head of the log is gone: it was deleted (FLUSHALL, FLUSHDB, DEL), or the server lost it; the \
                     log begins again with what comes, and a gap marks it"
                );
                Err(AppendError::Fenced)
            }
            Ok(AppendReply::EntriesMissing) => {
                let (stream, key) = (&self.stream, &self.view.keys.log);
                tracing::error!(%stream, key, "the store lost all entries of the log; it continues after its last offset with a gap");
                Err(AppendError::Diverged(Cause::new(format!("{key} was deleted, or the server lost it"))))
            }
            Ok(AppendReply::ForeignEntry(id)) => {
                Err(AppendError::UnusableLog(Cause::new(foreign(&self.view.keys.log, &id))))
            }
            Err(error) => {
                if matches!(error, CommandError::NoAnswer(_)) {
                    writing.unresolved = Some(identity);
                }
                let verdict = append_error(error.clone());
                // An error of one stream does not affect the health of the others.
                if !matches!(verdict, AppendError::UnusableLog(_)) {
                    writing.last_error = Some(error);
                }
                Err(verdict)
            }
        }
    }

    /// Why the batches do not follow the end of the log.
    fn discontinuity(&self, mut last: Offset, batches: &[Arc<Batch>]) -> Option<String> {
        for batch in batches {
            if batch.first() != last.next() || batch.epoch() != self.epoch {
                return Some(format!("{}: the next offset is {}, not {}", self.stream, last.next(), batch.first()));
            }
            last = batch.last();
        }
        None
    }
}

/// Why a claim was rejected; none if it succeeded.
fn claim_error(answer: &[String], LogKeys { head, log }: &LogKeys) -> Option<AppendError> {
    let why = match answer.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["fenced"] => return Some(AppendError::Fenced),
        ["format", format] => later_format(head, format),
        ["foreign", id] => foreign(log, id),
        ["ahead", top, last] => ahead(log, top, last),
        ["field", field, value] => head::describe_field(head, field, value),
        _ => return None,
    };
    Some(AppendError::UnusableLog(Cause::new(why)))
}

/// The observed epochs, each with its last entry, the current one at the end.
fn epochs_seen(ObservedLog { lineage, last }: &ObservedLog) -> String {
    let present = (lineage.current() != Epoch::NONE).then_some((lineage.current(), *last));
    let earlier = &lineage.earlier()[lineage.earlier().len().saturating_sub(EPOCHS_SEEN_MAX)..];
    earlier.iter().copied().chain(present).map(|(epoch, end)| format!("{}:{end} ", epoch_text(epoch))).collect()
}

/// The message for a log that another writer or a rollback has changed since the last append.
fn moved(head: &str, last: &str, expected: Offset) -> String {
    match last == expected.to_string() {
        true => format!("{head} has another epoch or turn than this replica left there (last: {expected})"),
        false => format!("{head} has the field last at {}, and this replica left it at {expected}", quoted(last)),
    }
}

/// Later server versions do not reset a stream to an id below an entry that was deleted from it.
const RESET_ADVICE: &str = "then the stream continues automatically. If the server refuses XSETID for its max_deleted_entry_id, \
    rename the log (RENAME) or delete it: the stream continues after its former end, with a gap";

/// The message for a log whose last id is above its last entry: an entry was added and deleted, or the id was set.
/// Redis then rejects the next entry.
fn ahead(log: &str, top: &str, last: &str) -> String {
    format!(
        "{log} was set ahead of its entries: its last-generated-id is {}, and its last entry is {last}, so that Redis \
         refuses the next one. Set it back (XSETID {log} {last}); {RESET_ADVICE}",
        quoted(top)
    )
}

fn foreign(log: &str, id: &str) -> String {
    format!(
        "{log} has the entry {}, which this program did not write: take it out (XDEL {log} ID) and set the end to the \
         last entry that is left (XSETID {log} OFFSET-0); {RESET_ADVICE}",
        quoted(id)
    )
}

/// Converts a failed command into the error of an append.
pub(super) fn append_error(error: CommandError) -> AppendError {
    match &error {
        CommandError::NotSent(_) | CommandError::LoginRefused(_) | CommandError::NoAnswer(_) => {
            AppendError::Unavailable(Cause::new(error))
        }
        CommandError::Refused { code, .. } => match code.as_str() {
            // Full, not writable, not the primary, or not ready: temporary, or an operator resolves it.
            "OOM" | "MISCONF" | "NOREPLICAS" | "READONLY" | "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN"
            | "BUSY" | "EXECABORT" | "MOVED" | "ASK" | "NOAUTH" | "NOPERM" | "UNBLOCKED" => {
                AppendError::Unavailable(Cause::new(error))
            }
            _ => AppendError::UnusableLog(Cause::new(error)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transient_errors_are_retryable_and_others_concern_one_stream() {
        let refused = |code: &str| CommandError::Refused { code: code.to_owned(), text: String::new() };
        for error in [
            refused("OOM"),
            refused("EXECABORT"),
            refused("MISCONF"),
            refused("READONLY"),
            CommandError::NotSent(Cause::new("not dialled")),
        ] {
            assert!(matches!(append_error(error.clone()), AppendError::Unavailable(_)), "{error}");
        }
        assert!(matches!(append_error(refused("WRONGTYPE")), AppendError::UnusableLog(_)), "that stream alone waits");
    }
}
