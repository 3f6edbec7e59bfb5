//! The one thread that writes: takes all that waits, does it in one durable step, then answers.
//!
//! Steps in between: retention in small slices, and moving the write-ahead log into the database. It never retries a
//! step of which it is unknown what reached the disk.

use std::{io, sync::Arc, time::Duration};

use rusqlite::Connection;
use tokio::{runtime::Runtime, sync::mpsc};

use super::{
    EmbeddedShared, database,
    directory::{Directory, ShutdownMarker},
    fault::SqliteFault,
    group::{Command, CommandGroup, GatherOutcome, gather},
    identity::{self, StoreOrigin},
    presence::FilePresence,
    step::{CommitOutcome, OpenStreams, WriteStep},
};
use crate::{
    clock,
    model::Timestamp,
    store::{AppendError, LogState, Retention, age::AgeClock},
    telemetry::metrics,
};

/// When nothing comes in, retention and the write-ahead log are looked after this often.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(1);

/// Batches that one step removes, over all streams, beside twice what it appends: too few to be felt by those who
/// wait, and enough to keep up with any load.
const TRIM_SLICE: usize = 64;

/// The write-ahead log is moved into the database when about so much was written to it. Measured: more does not raise
/// the throughput, and makes those who wait for it wait longer.
const CHECKPOINT_BYTES: u64 = 4 * 1024 * 1024;

/// Beyond this a checkpoint waits for the readers that hold it up.
const WAL_LEN_MAX: u64 = 64 * 1024 * 1024;

/// The state of the thread.
#[derive(Debug)]
pub(super) struct EmbeddedWriter {
    connection: Connection,
    directory: Arc<Directory>,
    shared: Arc<EmbeddedShared>,
    retention: Retention,
    replaced: bool,
    /// By which entries and revocations grow old.
    age: AgeClock,
    streams: OpenStreams,
    /// About as many bytes are in the write-ahead log and not in the database.
    uncheckpointed_bytes: u64,
    /// Bytes of the write-ahead log when it was last looked at.
    wal_len: u64,
    /// Why no entries are taken: the disk was full, and the reserve could not be made again yet.
    full: Option<String>,
    presence: FilePresence,
    /// Why nothing is taken: what was written would not be found again.
    missing_files: Option<String>,
}

impl EmbeddedWriter {
    pub(super) fn new(
        connection: Connection,
        presence: FilePresence,
        replaced: bool,
        retention: Retention,
        shared: Arc<EmbeddedShared>,
    ) -> Self {
        let directory = Arc::clone(&shared.directory);
        Self {
            connection,
            directory,
            shared,
            retention,
            replaced,
            age: AgeClock::new(clock::wall(), clock::boot()),
            streams: OpenStreams::new(),
            uncheckpointed_bytes: 0,
            wal_len: 0,
            full: None,
            presence,
            missing_files: None,
        }
    }

    /// Starts the thread; it ends after [`Command::Close`] or when every handle is gone.
    pub(super) fn start(self, commands: mpsc::Receiver<Command>) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let thread = std::thread::Builder::new().name("store-writer".to_owned());
        thread.spawn(move || self.run(&runtime, commands)).map(drop)
    }

    fn run(mut self, runtime: &Runtime, mut commands: mpsc::Receiver<Command>) {
        self.make_reserve();
        let mut backlog = false;
        let mut maintained_at = clock::now();
        loop {
            let timeout = if backlog { Duration::ZERO } else { MAINTENANCE_INTERVAL };
            let mut quiet = false;
            match runtime.block_on(gather(&mut commands, timeout)) {
                GatherOutcome::Group(mut group) => {
                    let close = group.close.take();
                    backlog = self.serve(group);
                    if let Some(done) = close {
                        self.finish();
                        drop(commands);
                        // An error says that whoever asked has stopped waiting.
                        return done.send(()).unwrap_or(());
                    }
                }
                GatherOutcome::Idle => quiet = true,
                GatherOutcome::Disconnected => return self.finish(),
            }
            if quiet || maintained_at.elapsed() >= MAINTENANCE_INTERVAL {
                backlog = self.maintain(quiet);
                maintained_at = clock::now();
            }
        }
    }

    /// Does a group and answers it; true when retention has more to do.
    fn serve(&mut self, group: CommandGroup) -> bool {
        if group.len() == 0 {
            return false;
        }
        if let Some(reason) = self.shared.broken() {
            group.refuse(&SqliteFault::Failed(reason));
            return false;
        }
        if let Some(reason) = self.check_files() {
            metrics::store_failed("io");
            group.refuse(&SqliteFault::Unavailable(reason));
            return false;
        }
        let started = clock::now();
        let mut done = self.execute(&group);
        if let Err(SqliteFault::Unavailable(reason)) = &done
            && self.full.is_none()
        {
            // With entries refused and the reserve given up, the rest of the group may find room.
            self.release_reserve(reason);
            done = self.execute(&group);
        }
        match done {
            Ok(done) => {
                metrics::store_appended(started.elapsed());
                self.apply(done.outcome);
                group.reply(done.claimed, done.appended, done.changed);
                self.checkpoint_if_due();
                done.backlog
            }
            Err(fault) => {
                self.record_fault(&fault);
                group.refuse(&fault);
                false
            }
        }
    }

    fn execute(&mut self, group: &CommandGroup) -> Result<GroupOutcome, SqliteFault> {
        let now = self.age_now();
        let mut step = WriteStep::begin(&mut self.connection, &self.streams)?;
        let mut claimed = Vec::with_capacity(group.claims.len());
        for (stream, under, _) in &group.claims {
            claimed.push(step.claim(stream, *under, self.replaced)?);
        }
        let mut appended = Vec::with_capacity(group.appends.len());
        for (append, _) in &group.appends {
            appended.push(match &self.full {
                Some(reason) if !append.batches.is_empty() => Err(AppendError::Unavailable(reason.clone())),
                Some(_) | None => step.append(append)?,
            });
        }
        let mut changed = Vec::with_capacity(group.changes.len());
        for (change, _) in &group.changes {
            changed.push(step.change(change, now)?);
        }
        let slice = TRIM_SLICE + 2 * group.batches;
        let backlog = trim(&mut step, &self.streams, &self.retention, now, slice)?;
        Ok(GroupOutcome { claimed, appended, changed, backlog, outcome: step.commit()? })
    }

    /// The moment by which the age of what is held is told.
    fn age_now(&mut self) -> Timestamp {
        self.age.now(clock::wall(), clock::boot())
    }

    /// What is due now and then; true when retention has more to do.
    fn maintain(&mut self, quiet: bool) -> bool {
        if self.shared.broken().is_some() || self.check_files().is_some() {
            return false;
        }
        if self.full.is_some() {
            self.make_reserve();
        }
        let backlog = self.trim().unwrap_or_else(|fault| {
            self.record_fault(&fault);
            false
        });
        if quiet && !backlog && self.uncheckpointed_bytes > 0 {
            self.checkpoint();
        }
        backlog
    }

    fn trim(&mut self) -> Result<bool, SqliteFault> {
        let now = self.age_now();
        if self.streams.values().all(|held| held.expired(&self.retention, now).is_none()) {
            return Ok(false);
        }
        let mut step = WriteStep::begin(&mut self.connection, &self.streams)?;
        let backlog = trim(&mut step, &self.streams, &self.retention, now, TRIM_SLICE)?;
        let outcome = step.commit()?;
        self.apply(outcome);
        Ok(backlog)
    }

    /// Why nothing may be written: the files are not under their names. It costs two system calls, far less than a step.
    fn check_files(&mut self) -> Option<String> {
        let lost = self.presence.missing();
        if lost != self.missing_files {
            match &lost {
                Some(reason) => {
                    tracing::error!(reason, "the store's files are gone: nothing is taken until they are back");
                }
                None => tracing::info!("the store's files are back: entries are taken"),
            }
            self.missing_files = lost.clone();
            self.publish_unavailable();
        }
        lost
    }

    fn publish_unavailable(&self) {
        self.shared.set_unavailable(self.missing_files.clone().or_else(|| self.full.clone()));
    }

    /// With the reserve in place entries are taken; without room for it they are not.
    fn make_reserve(&mut self) {
        let full = self.directory.reserve().make().err().map(|error| error.to_string());
        if full.is_none() && self.full.is_some() {
            tracing::info!("the disk has room again: entries are taken");
        }
        self.full = full;
        self.publish_unavailable();
    }

    /// The disk is full: what is in the write-ahead log gets the reserve's room.
    fn release_reserve(&mut self, reason: &str) {
        tracing::error!(reason, "the disk has no room: no entries are taken until it has");
        self.full = Some(reason.to_owned());
        self.publish_unavailable();
        if let Err(error) = self.directory.reserve().release() {
            tracing::warn!(%error, "the reserve could not be given up");
        }
        self.checkpoint();
    }

    /// Makes a committed step true for everybody.
    fn apply(&mut self, outcome: CommitOutcome) {
        self.uncheckpointed_bytes += outcome.written;
        for (stream, held) in outcome.changed {
            self.shared.publish(&stream, &held);
            self.streams.insert(stream, held);
        }
        self.shared.step_done();
    }

    fn record_fault(&mut self, fault: &SqliteFault) {
        metrics::store_failed(fault.reason());
        match fault {
            SqliteFault::Unavailable(reason) if self.full.is_none() => self.release_reserve(reason),
            SqliteFault::Unavailable(_) => (),
            SqliteFault::Damaged(_) | SqliteFault::Failed(_) => self.shared.fail(fault),
        }
    }

    fn checkpoint_if_due(&mut self) {
        if self.uncheckpointed_bytes >= CHECKPOINT_BYTES {
            self.checkpoint();
        }
    }

    /// Moves the write-ahead log into the database, so that the next step begins it anew.
    fn checkpoint(&mut self) {
        let wait = self.wal_len > WAL_LEN_MAX;
        match database::checkpoint_wal(&self.connection, wait) {
            Ok(moved) => {
                self.wal_len = if wait && moved.complete { 0 } else { moved.wal_len };
                self.uncheckpointed_bytes = if moved.complete { 0 } else { self.uncheckpointed_bytes };
            }
            Err(error) => self.record_fault(&error.into()),
        }
    }

    /// The end. An orderly one leaves everything in the database, and the word that says so.
    fn finish(self) {
        self.shared.close_readers();
        let directory = Arc::clone(&self.directory);
        if let Err(reason) = self.shut_down() {
            tracing::warn!(reason, "the store could not be left in order: the next start will check it");
        }
        directory.release();
    }

    /// The word is said when all is in the database and before the write-ahead log goes, so that at no moment a kill
    /// looks like a loss.
    fn shut_down(mut self) -> Result<(), String> {
        if let Some(reason) = self.shared.broken().or_else(|| self.check_files()) {
            return Err(reason);
        }
        if let Err(fault) = identity::reseal(&mut self.connection, &self.directory, StoreOrigin::Original) {
            // That of the start still holds.
            tracing::debug!(reason = fault.text(), "the store was not sealed anew");
        }
        if !database::checkpoint_wal(&self.connection, true).map_err(|error| error.to_string())?.complete {
            return Err("a reader holds it up".to_owned());
        }
        self.directory.write_marker(ShutdownMarker::Clean).map_err(|error| error.to_string())?;
        database::close_checkpointed(self.connection).map_err(|error| error.to_string())
    }
}

struct GroupOutcome {
    claimed: Vec<Result<LogState, AppendError>>,
    appended: Vec<Result<(), AppendError>>,
    changed: Vec<Result<bool, AppendError>>,
    backlog: bool,
    outcome: CommitOutcome,
}

/// Removes a slice of what outlived the retention; true when there is more.
fn trim(
    step: &mut WriteStep<'_>,
    streams: &OpenStreams,
    retention: &Retention,
    now: Timestamp,
    slice: usize,
) -> Result<bool, SqliteFault> {
    let mut left = slice;
    for stream in streams.keys() {
        left -= step.trim(stream, retention, now, left)?;
    }
    Ok(left == 0)
}

#[cfg(test)]
mod tests;
