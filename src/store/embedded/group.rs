//! Commands of the writer, and the groups of them that share one transaction.

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

/// Commands that may wait. At the bound the sender waits (backpressure).
pub(super) const QUEUE_LEN: usize = 1024;

/// Commands of one transaction.
const GROUP_LEN_MAX: usize = 512;

/// Bytes of one transaction, beyond which it takes no further command.
const GROUP_BYTES_MAX: usize = 4 * 1024 * 1024;

pub(super) type Reply<T> = oneshot::Sender<Result<T, AppendError>>;

/// A command of the writer.
#[derive(Debug)]
pub(super) enum Command {
    Claim(StreamName, Option<Fence>, Reply<LogState>),
    Append(Append, Reply<()>),
    Change(RecordChange, Reply<bool>),
    Close(oneshot::Sender<()>),
}

/// Commands that share a transaction.
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

    /// Sends each caller its outcome.
    pub(super) fn reply(
        self,
        claimed: Vec<Result<LogState, AppendError>>,
        appended: Vec<Result<(), AppendError>>,
        changed: Vec<Result<bool, AppendError>>,
    ) {
        for ((_, _, reply), outcome) in self.claims.into_iter().zip(claimed) {
            // An error means that the caller has stopped waiting, here and below.
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

    /// Sends each caller the fault: nothing was applied.
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

/// The outcome of waiting for commands.
pub(super) enum GatherOutcome {
    Group(CommandGroup),
    Idle,
    /// All handles are dropped.
    Disconnected,
}

/// Waits up to `wait_max` for a command, then takes all waiting commands within the bounds.
pub(super) async fn gather(commands: &mut mpsc::Receiver<Command>, wait_max: Duration) -> GatherOutcome {
    let first = match timeout(wait_max, commands.recv()).await {
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
