//! What is asked of the writer, and how what waits is put together for one step.

use std::time::Duration;

use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{fault::SqliteFault, records::RecordChange};
use crate::{
    model::{Fence, StreamName},
    store::{Append, AppendError, LogState},
    telemetry::metrics,
};

/// Commands that may wait. Whoever finds the queue full waits for a place: back-pressure.
pub(super) const QUEUE_LEN: usize = 1024;

/// One step takes no further command once it has this many, or bytes beyond the second bound.
const GROUP_LEN_MAX: usize = 512;
const GROUP_BYTES_MAX: usize = 4 * 1024 * 1024;

pub(super) type Reply<T> = oneshot::Sender<Result<T, AppendError>>;

/// What is asked of the writer.
#[derive(Debug)]
pub(super) enum Command {
    Claim(StreamName, Option<Fence>, Reply<LogState>),
    Append(Append, Reply<()>),
    Change(RecordChange, Reply<bool>),
    Close(oneshot::Sender<()>),
}

/// Commands that share a step.
#[derive(Debug, Default)]
pub(super) struct CommandGroup {
    pub(super) claims: Vec<(StreamName, Option<Fence>, Reply<LogState>)>,
    pub(super) appends: Vec<(Append, Reply<()>)>,
    pub(super) changes: Vec<(RecordChange, Reply<bool>)>,
    pub(super) batches: usize,
    bytes: usize,
    pub(super) close: Option<oneshot::Sender<()>>,
}

impl CommandGroup {
    pub(super) fn add(&mut self, command: Command) {
        match command {
            Command::Claim(stream, under, reply) => self.claims.push((stream, under, reply)),
            Command::Append(append, reply) => {
                self.batches += append.batches.len();
                self.bytes += append.batches.iter().map(|batch| batch.bytes().len()).sum::<usize>();
                self.appends.push((append, reply));
            }
            Command::Change(change, reply) => {
                self.bytes += change.bytes();
                self.changes.push((change, reply));
            }
            Command::Close(reply) => self.close = Some(reply),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.claims.len() + self.appends.len() + self.changes.len()
    }

    fn is_full(&self) -> bool {
        self.len() >= GROUP_LEN_MAX || self.bytes >= GROUP_BYTES_MAX || self.close.is_some()
    }

    /// Tells everybody what became of it.
    pub(super) fn reply(
        self,
        claimed: Vec<Result<LogState, AppendError>>,
        appended: Vec<Result<(), AppendError>>,
        changed: Vec<Result<bool, AppendError>>,
    ) {
        for ((_, _, reply), outcome) in self.claims.into_iter().zip(claimed) {
            // Whoever asked may have stopped waiting: the same below.
            drop(reply.send(outcome));
        }
        for ((_, reply), outcome) in self.appends.into_iter().zip(appended) {
            match outcome {
                Err(AppendError::Fenced) => metrics::store_failed("fenced"),
                Err(AppendError::Unavailable(_)) => metrics::store_failed("full"),
                Err(AppendError::Diverged(_) | AppendError::UnusableLog(_) | AppendError::Broken(_)) | Ok(()) => (),
            }
            drop(reply.send(outcome));
        }
        for ((_, reply), changed) in self.changes.into_iter().zip(changed) {
            drop(reply.send(changed));
        }
    }

    /// Tells everybody that nothing was done.
    pub(super) fn refuse(self, fault: &SqliteFault) {
        for (_, _, reply) in self.claims {
            drop(reply.send(Err(fault.clone().into())));
        }
        for (_, reply) in self.appends {
            drop(reply.send(Err(fault.clone().into())));
        }
        for (_, reply) in self.changes {
            drop(reply.send(Err(fault.clone().into())));
        }
    }
}

/// What waiting for commands came to.
pub(super) enum GatherOutcome {
    Group(CommandGroup),
    Idle,
    /// Every handle is gone.
    Disconnected,
}

/// Waits up to `patience` for a command, then takes all that wait with it, within the bounds.
pub(super) async fn gather(commands: &mut mpsc::Receiver<Command>, patience: Duration) -> GatherOutcome {
    let first = match timeout(patience, commands.recv()).await {
        Ok(Some(command)) => command,
        Ok(None) => return GatherOutcome::Disconnected,
        Err(_quiet) => return GatherOutcome::Idle,
    };
    let mut group = CommandGroup::default();
    group.add(first);
    while !group.is_full()
        && let Ok(command) = commands.try_recv()
    {
        group.add(command);
    }
    GatherOutcome::Group(group)
}
