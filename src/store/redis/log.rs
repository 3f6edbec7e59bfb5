//! One stream's log as its writer has it.

mod append;
mod scripted;
mod transaction;
mod way;

use std::sync::{Arc, Mutex, PoisonError};

use self::{
    append::{Answer, ENTRY_OVERHEAD, Identity, Place, epoch_text, hex},
    way::Way,
};
use super::{
    Durability, Settings,
    connection::{CommandError, Connection, Script},
    head::{self, Claimed},
    keys::Keys,
    registry::{later_format, shown},
    skew::Skew,
    view::{View, wrong_types},
};
use crate::{
    clock,
    model::{Batch, Epoch, Fence, Offset, StreamName, Timestamp},
    random,
    store::{Append, AppendError, LogState, Retention, Seen},
};

/// Entries that one step of the retention removes.
const TRIM_SLICE: usize = 256;

/// A claim names so many epochs that were seen.
const EPOCHS_SEEN_MAX: usize = 32;

/// What the server runs.
#[derive(Debug)]
pub(super) struct Scripts {
    pub(super) look: Script,
    open: Script,
    safe: Script,
    trim: Script,
}

impl Default for Scripts {
    fn default() -> Self {
        Self {
            look: Script::new(include_str!("scripts/look.lua")),
            open: Script::new(include_str!("scripts/open.lua")),
            safe: Script::new(include_str!("scripts/safe.lua")),
            trim: Script::new(include_str!("scripts/trim.lua")),
        }
    }
}

/// A log that was claimed for writing.
#[derive(Debug)]
pub(super) struct Log {
    view: Arc<View>,
    stream: StreamName,
    epoch: Epoch,
    pub(super) fence: Fence,
    /// Of the server's clock; measured with the claim and whenever the retention is looked after.
    skew: Skew,
    durability: Durability,
    way: Way,
    scripts: Arc<Scripts>,
    writing: Mutex<Writing>,
}

/// Where the next append goes.
#[derive(Debug)]
struct Writing {
    /// Appends done under this fence: the server compares it, so that none is done twice or out of turn.
    turn: u64,
    last: Offset,
    /// What is known to be replicated, where that counts; and up to where the log says so.
    safe: Offset,
    told: Offset,
    /// An append of which it is not known whether it was done. Nothing else is appended before that is known.
    open: Option<Identity>,
    /// Why the last append has to be tried again.
    trouble: Option<String>,
    /// The claim found a loss, and nothing was appended since.
    owes_gap: bool,
}

impl Log {
    /// Takes the log over, under a new fence or the one given, for a process that has seen entries of it.
    pub(super) async fn claim(
        shared: &Connection,
        scripts: Arc<Scripts>,
        settings: &Settings,
        stream: &StreamName,
        view: Arc<View>,
        (under, seen): (Option<Fence>, &Seen),
    ) -> Result<(Self, LogState), AppendError> {
        let connection = Way::connection(shared, settings);
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
                return Err(AppendError::Refused(wrong_types(shared, &view.keys).await));
            }
            answer => answer.map_err(|error| verdict(&error))?,
        };
        if let Some(refusal) = refusal(&answer, &view.keys) {
            return Err(refusal);
        }
        let unusable = |odd| AppendError::Refused(head::unusable(&view.keys.head, &odd));
        let claimed = head::claimed(&answer, nonce, settings.durability, clock::wall());
        let Claimed { state, turn, skew } = claimed.map_err(unusable)?;
        view.begins_with(state.first);
        view.is_readable();
        let way = Way::new(connection, &view.keys, settings);
        let writing = Writing {
            turn,
            last: state.last,
            safe: state.safe,
            told: state.safe,
            open: None,
            trouble: None,
            owes_gap: state.damaged,
        };
        let log = Self {
            view,
            stream: stream.clone(),
            epoch: state.lineage.current(),
            fence: state.fence,
            skew,
            durability: settings.durability,
            way,
            scripts,
            writing: Mutex::new(writing),
        };
        Ok((log, state))
    }

    /// Whether the last append was done, else why not.
    pub(super) fn health(&self) -> Result<(), String> {
        self.writing().trouble.clone().map_or(Ok(()), Err)
    }

    pub(super) fn close(&self) {
        self.way.close();
    }

    pub(super) async fn append(&self, append: &Append) -> Result<(), AppendError> {
        let identity = Identity::of(append, self.writing().last);
        let place = self.begin(append, &identity)?;
        let answer = self.way.append(append, &place, &identity).await;
        self.end(answer, identity)
    }

    /// Lets those who follow from afar show what a replica has. When it is not done the next append does it.
    pub(super) async fn tell_safe(&self) -> Result<(), CommandError> {
        let (safe, told) = {
            let writing = self.writing();
            (writing.safe, writing.told)
        };
        if self.durability == Durability::Written || safe <= told {
            return Ok(());
        }
        let arguments = [self.fence.number.to_string(), hex(self.fence.nonce), safe.to_string()];
        let arguments = arguments.each_ref().map(String::as_bytes);
        self.way.call::<u8>(&self.scripts.safe, &arguments).await?;
        self.writing().told = safe;
        Ok(())
    }

    /// Removes what outlived the retention, and looks what the server's clock says.
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
            let (first, more, server): (String, bool, i64) = self.way.call(&self.scripts.trim, &arguments).await?;
            self.skew.measure(Timestamp(server), clock::wall());
            if let Ok(first) = first.parse() {
                self.view.trimmed_to(Offset(first));
            }
            if !more {
                return Ok(());
            }
        }
    }

    /// Where this append goes.
    fn begin(&self, append: &Append, identity: &Identity) -> Result<Place, AppendError> {
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
            Some(_) | None => {
                let safe = (self.durability == Durability::Replicated).then_some(writing.safe);
                let (fence, heard_at) = (self.fence, self.skew.to_server(identity.checkpoint.heard_at));
                let Writing { turn, last, owes_gap, .. } = *writing;
                Ok(Place { fence, epoch: self.epoch, turn, last, safe, heard_at, owes_gap })
            }
        }
    }

    fn end(&self, outcome: Result<Answer, CommandError>, identity: Identity) -> Result<(), AppendError> {
        let mut writing = self.writing();
        match outcome {
            Ok(Answer::Done) => {
                let told = writing.safe;
                let Identity { last, .. } = identity;
                let turn = writing.turn + 1;
                *writing = Writing { turn, last, safe: last, told, open: None, trouble: None, owes_gap: false };
                Ok(())
            }
            Ok(Answer::Fenced) => Err(AppendError::Fenced),
            Ok(Answer::Elsewhere(last)) => Err(AppendError::Moved(moved(&self.view.keys.head, &last, writing.last))),
            Ok(Answer::Gone) => {
                tracing::error!(
                    stream = %self.stream,
                    key = self.view.keys.head,
                    "the head of the log is gone: it was deleted (FLUSHALL, FLUSHDB, DEL), or the server lost it; the \
                     log begins again with what comes, and a gap marks it"
                );
                Err(AppendError::Fenced)
            }
            Ok(Answer::Emptied) => {
                let (stream, key) = (&self.stream, &self.view.keys.log);
                tracing::error!(%stream, key, "the entries of the log are gone; it goes on behind its end after a gap");
                Err(AppendError::Moved(format!("{key} was deleted, or the server lost it")))
            }
            Ok(Answer::Foreign(id)) => Err(AppendError::Refused(foreign(&self.view.keys.log, &id))),
            Err(error) => {
                if matches!(error, CommandError::NoAnswer(_)) {
                    writing.open = Some(identity);
                }
                let verdict = verdict(&error);
                // What is wrong with one stream does not keep the process from serving the others.
                if !matches!(verdict, AppendError::Refused(_)) {
                    writing.trouble = Some(error.to_string());
                }
                Err(verdict)
            }
        }
    }

    /// Why the batches do not follow what is held.
    fn disorder(&self, mut last: Offset, batches: &[Arc<Batch>]) -> Option<String> {
        for batch in batches {
            if batch.first() != last.next() || batch.epoch() != self.epoch {
                return Some(format!("{} goes on at {}, not at {}", self.stream, last.next(), batch.first()));
            }
            last = batch.last();
        }
        None
    }

    fn writing(&self) -> std::sync::MutexGuard<'_, Writing> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a claim was refused; none where it was not.
fn refusal(answer: &[String], Keys { head, log }: &Keys) -> Option<AppendError> {
    let why = match answer.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["fenced"] => return Some(AppendError::Fenced),
        ["format", format] => later_format(head, format),
        ["foreign", id] => foreign(log, id),
        ["ahead", top, last] => ahead(log, top, last),
        ["field", field, value] => head::odd_field(head, field, value),
        _ => return None,
    };
    Some(AppendError::Refused(why))
}

/// The epochs that were seen, each with its last entry, the present one at the end.
fn epochs_seen(Seen { lineage, last }: &Seen) -> String {
    let present = (lineage.current() != Epoch::NONE).then_some((lineage.current(), *last));
    let earlier = &lineage.earlier()[lineage.earlier().len().saturating_sub(EPOCHS_SEEN_MAX)..];
    earlier.iter().copied().chain(present).map(|(epoch, end)| format!("{}:{end} ", epoch_text(epoch))).collect()
}

/// Why an append did not find the log where it was left.
fn moved(head: &str, last: &str, expected: Offset) -> String {
    match last == expected.to_string() {
        true => format!("{head} has another epoch or turn than this replica left there (last: {expected})"),
        false => format!("{head} has the field last at {}, and this replica left it at {expected}", shown(last)),
    }
}

/// Later versions of the server set no stream back behind an entry that was deleted from it.
const SET_BACK: &str = "the stream goes on by itself then. If the server refuses XSETID for its max_deleted_entry_id, \
    move the log away (RENAME) or delete it: the stream goes on behind its end, after a gap";

/// An entry that was added and deleted, or an end that was set, keeps Redis from adding entries in order.
fn ahead(log: &str, top: &str, last: &str) -> String {
    format!(
        "{log} was set ahead of its entries: its last-generated-id is {}, and its last entry is {last}, so that Redis \
         refuses the next one. Set it back (XSETID {log} {last}); {SET_BACK}",
        shown(top)
    )
}

fn foreign(log: &str, id: &str) -> String {
    format!(
        "{log} has the entry {}, which this program did not write: take it out (XDEL {log} ID) and set the end to the \
         last entry that is left (XSETID {log} OFFSET-0); {SET_BACK}",
        shown(id)
    )
}

/// What the writer is to do after a failure.
pub(super) fn verdict(error: &CommandError) -> AppendError {
    match error {
        CommandError::NotSent(_) | CommandError::NoAnswer(_) => AppendError::NoRoom(error.to_string()),
        CommandError::Refused { code, .. } => match code.as_str() {
            // Full, not writable, not the primary, not yet: it passes, or an operator makes it pass.
            "OOM" | "MISCONF" | "NOREPLICAS" | "READONLY" | "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN"
            | "BUSY" | "EXECABORT" | "MOVED" | "ASK" | "NOAUTH" | "NOPERM" | "UNBLOCKED" => {
                AppendError::NoRoom(error.to_string())
            }
            _ => AppendError::Refused(error.to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_tried_again_and_what_does_not_concerns_one_stream() {
        let refused = |code: &str| CommandError::Refused { code: code.to_owned(), text: String::new() };
        for error in [
            refused("OOM"),
            refused("EXECABORT"),
            refused("MISCONF"),
            refused("READONLY"),
            CommandError::NotSent(String::new()),
        ] {
            assert!(matches!(verdict(&error), AppendError::NoRoom(_)), "{error}");
        }
        assert!(matches!(verdict(&refused("WRONGTYPE")), AppendError::Refused(_)), "that stream alone waits");
    }
}
