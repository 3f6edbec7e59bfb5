//! The writer thread: takes all waiting commands, applies them in one durable step, then replies.
//!
//! Between steps it applies the retention in small slices and checkpoints the write-ahead log. It never retries a step
//! when it is unknown what reached the disk.

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
    telemetry::{Cause, chain, metrics},
};

/// The interval of retention and checkpoints while no commands arrive.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(1);

/// Batches that one step removes over all streams, in addition to twice the number that it appends: few enough to add
/// little latency, and enough to keep up with any load.
const TRIM_SLICE: usize = 64;

/// A checkpoint starts after about this many bytes in the write-ahead log. Measured: a higher value does not raise the
/// throughput, and makes callers wait longer for a checkpoint.
const CHECKPOINT_BYTES: u64 = 4 * 1024 * 1024;

/// Above this size a checkpoint waits for the readers that block it.
const WAL_LEN_MAX: u64 = 64 * 1024 * 1024;

/// The state of the thread.
#[derive(Debug)]
pub(super) struct EmbeddedWriter {
    connection: Connection,
    directory: Arc<Directory>,
    shared: Arc<EmbeddedShared>,
    retention: Retention,
    replaced: bool,
    /// The clock for the age of entries and revocations.
    age: AgeClock,
    streams: OpenStreams,
    /// The approximate bytes in the write-ahead log that are not checkpointed.
    uncheckpointed_bytes: u64,
    /// The size of the write-ahead log at the last check, in bytes.
    wal_len: u64,
    /// Why no entries are accepted: the disk was full, and the reserve is not restored yet.
    full: Option<Cause>,
    presence: FilePresence,
    /// Why no writes are accepted: the files are missing, so the next start would not find the data.
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

    /// Starts the thread; it ends after [`Command::Close`] or when every handle is dropped.
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
                        // An error means that the caller has stopped waiting.
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

    /// Applies a group and replies to it; true when retention has more to remove.
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
            // With entries rejected and the reserve released, the rest of the group may fit.
            self.release_reserve(&reason.clone());
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

    /// The current time of the age clock.
    fn age_now(&mut self) -> Timestamp {
        self.age.now(clock::wall(), clock::boot())
    }

    /// Runs the periodic maintenance; true when retention has more to remove.
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

    /// Why writes must stop: the files are not under their names. The check costs two system calls, far less than a
    /// step.
    fn check_files(&mut self) -> Option<Cause> {
        let missing = self.presence.missing();
        if missing != self.missing_files {
            match &missing {
                Some(reason) => {
                    tracing::error!(reason, "store files missing; nothing is stored until they are restored");
                }
                None => tracing::info!("store files restored; entries are stored again"),
            }
            self.missing_files.clone_from(&missing);
            self.publish_unavailable();
        }
        missing.map(Cause::new)
    }

    fn publish_unavailable(&self) {
        self.shared.set_unavailable(self.missing_files.clone().map(Cause::new).or_else(|| self.full.clone()));
    }

    /// Creates the reserve. Entries are accepted only while it exists.
    fn make_reserve(&mut self) {
        let full = self.directory.reserve().make().err().map(Cause::new);
        if full.is_none() && self.full.is_some() {
            tracing::info!("disk space available; entries are stored again");
        }
        self.full = full;
        self.publish_unavailable();
    }

    /// The disk is full: releases the reserve's space for the write-ahead log.
    fn release_reserve(&mut self, cause: &Cause) {
        tracing::error!(error = chain(cause), "disk full or not writable; no entries are stored until it is writable");
        self.full = Some(cause.clone());
        self.publish_unavailable();
        if let Err(error) = self.directory.reserve().release() {
            tracing::warn!(%error, "cannot release the disk reserve");
        }
        self.checkpoint();
    }

    /// Publishes a committed step to readers and handles.
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
            SqliteFault::Unavailable(cause) if self.full.is_none() => self.release_reserve(cause),
            SqliteFault::Unavailable(_) => (),
            SqliteFault::Damaged(_) | SqliteFault::Failed(_) => self.shared.fail(fault),
        }
    }

    fn checkpoint_if_due(&mut self) {
        if self.uncheckpointed_bytes >= CHECKPOINT_BYTES {
            self.checkpoint();
        }
    }

    /// Checkpoints the write-ahead log, so that the next step restarts it.
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

    /// Ends the thread. An orderly end leaves all data in the database, and the marker that records it.
    fn finish(self) {
        self.shared.close_readers();
        let directory = Arc::clone(&self.directory);
        if let Err(cause) = self.shut_down() {
            tracing::warn!(error = chain(&cause), "store not closed in order; the next start checks it");
        }
        directory.release();
    }

    /// Writes the marker after the checkpoint and before the write-ahead log is removed, so that a kill at any moment
    /// is not taken for a loss.
    fn shut_down(mut self) -> Result<(), Cause> {
        if let Some(reason) = self.shared.broken().or_else(|| self.check_files()) {
            return Err(reason);
        }
        if let Err(fault) = identity::reseal(&mut self.connection, &self.directory, StoreOrigin::Original) {
            // The seal of the start is still valid.
            tracing::debug!(error = chain(fault.cause()), "identity of the store not renewed");
        }
        if !database::checkpoint_wal(&self.connection, true).map_err(Cause::new)?.complete {
            return Err(Cause::new("a reader delays the checkpoint"));
        }
        self.directory.write_marker(ShutdownMarker::Clean).map_err(Cause::new)?;
        database::close_checkpointed(self.connection).map_err(Cause::new)
    }
}

struct GroupOutcome {
    claimed: Vec<Result<LogState, AppendError>>,
    appended: Vec<Result<(), AppendError>>,
    changed: Vec<Result<bool, AppendError>>,
    backlog: bool,
    outcome: CommitOutcome,
}

/// Removes a slice of the expired batches; true when there are more.
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
