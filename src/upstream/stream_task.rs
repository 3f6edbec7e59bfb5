//! The task of one stream for as long as the process lives: reads the log while another replica keeps the stream, and
//! begins the work with the platform when its seat says so.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    PendingOperatorCommand,
    appender::Appender,
    driver::{StreamDriver, StreamRunEnd, now},
    log_access::{self, CLAIM_RETRY_DELAY, LogAccess},
    reporter::StreamReporter,
    rest_client::RestClient,
    session_sockets::SessionSockets,
    socket::Dialler,
};
use crate::{
    auth::Tokens,
    coordination::{LeaseHandle, Ownership, OwnershipPhase, ReplicaRole},
    event_log::{EventLog, LogWriter},
    model::Fence,
    protocol::stream::{Input, Settings, Stream},
    store::AppendError,
};

/// What it needs.
pub(super) struct StreamTask {
    pub(super) rules: Settings,
    pub(super) seat: LeaseHandle,
    pub(super) log: EventLog,
    /// The log was claimed before.
    pub(super) writer: Option<LogWriter>,
    pub(super) tokens: Tokens,
    pub(super) commands: mpsc::Receiver<PendingOperatorCommand>,
    pub(super) reporter: Arc<StreamReporter>,
    pub(super) dialler: Dialler,
    pub(super) rest: RestClient,
}

impl StreamTask {
    /// Runs until the stop signal.
    pub(super) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        while !stop.is_cancelled() {
            let ended = match self.seat.role() {
                ReplicaRole::Idle => {
                    self.follow_log(&stop).await;
                    StreamRunEnd::Released
                }
                ReplicaRole::Standby => self.run_standby(&stop).await?,
                ReplicaRole::Owner(Ownership { phase: OwnershipPhase::Closing, .. }) => {
                    self.seat.report_closed().await;
                    self.wait_for_change(&stop).await;
                    StreamRunEnd::Released
                }
                ReplicaRole::Owner(owning) => self.run_owner(owning, &stop).await?,
            };
            if ended == StreamRunEnd::Stopped {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Another replica keeps the stream: its entries are shown to readers here.
    async fn follow_log(&mut self, stop: &CancellationToken) {
        self.reporter.reset();
        self.seat.report_failed(None).await;
        let mut following = log_access::follow_log(&self.log);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.seat.changed() => return,
                // Whoever asked learns by the missing answer that the stream has just gone elsewhere.
                Some(asked) = self.commands.recv() => drop(asked),
                () = &mut following => (),
            }
        }
    }

    /// Until the seat says something else.
    async fn wait_for_change(&mut self, stop: &CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => (),
            () = self.seat.changed() => (),
        }
    }

    /// A session is held ready.
    async fn run_standby(&mut self, stop: &CancellationToken) -> anyhow::Result<StreamRunEnd> {
        self.reporter.clear_log_error();
        self.seat.report_failed(None).await;
        let mut machine = Stream::standby(self.rules.clone(), now());
        if !machine.compares_with_log()
            && let Some(position) = log_access::read_log_position(&self.log, self.rules.feed).await
        {
            machine.handle(Input::Follow(position), now());
        }
        let reads_position = !machine.compares_with_log();
        let holding = LogAccess::standby(&self.log);
        let shell = self.shell(machine, holding);
        if reads_position {
            shell.schedule_position_read();
        }
        shell.run(stop.clone()).await
    }

    /// The stream is this process's, and nothing was prepared for it.
    async fn run_owner(&mut self, owning: Ownership, stop: &CancellationToken) -> anyhow::Result<StreamRunEnd> {
        let Some(claimed) = self.claim(owning.fence, stop).await else { return Ok(StreamRunEnd::Released) };
        let writer = match (claimed, owning.fence) {
            (Ok(writer), _) => writer,
            (Err(AppendError::Fenced), Some(fence)) => {
                self.seat.report_fenced(fence).await;
                self.wait_for_change(stop).await;
                return Ok(StreamRunEnd::Released);
            }
            (Err(error), _) => return Err(error.into()),
        };
        let machine = Stream::new(self.rules.clone(), log_access::stream_opening(&writer), now());
        let appender = Appender { writer: Arc::new(writer), fence: owning.fence, rights: self.seat.append_permit() };
        let holding = LogAccess::Owner { appender, ownership: Ownership { phase: OwnershipPhase::Active, ..owning } };
        let mut shell = self.shell(machine, holding);
        shell.apply_role();
        shell.run(stop.clone()).await
    }

    /// Claims the log, waiting also for an operator to mend what the store holds of it. None when the stop signal or
    /// another part came first.
    async fn claim(
        &mut self,
        fence: Option<Fence>,
        stop: &CancellationToken,
    ) -> Option<Result<LogWriter, AppendError>> {
        if let Some(writer) = self.writer.take() {
            return Some(Ok(writer));
        }
        let mut wait = self.reporter.claim_delay();
        loop {
            self.seat.report_failed(self.reporter.log_error()).await;
            let log = self.log.clone();
            let claiming = async move {
                tokio::time::sleep(wait.unwrap_or_default()).await;
                log_access::claim(&log, fence).await
            };
            let claimed = tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                () = self.seat.changed() => return None,
                claimed = claiming => claimed,
            };
            let Err(AppendError::UnusableLog(why)) = claimed else {
                self.reporter.log_claimed();
                self.seat.report_failed(self.reporter.log_error()).await;
                return Some(claimed);
            };
            self.reporter.log_unusable(&why);
            wait = Some(CLAIM_RETRY_DELAY);
        }
    }

    fn shell(&mut self, machine: Stream, holding: LogAccess) -> StreamDriver<'_> {
        StreamDriver {
            machine,
            log_access: holding,
            seat: &mut self.seat,
            commands: &mut self.commands,
            log: self.log.clone(),
            tokens: self.tokens.clone(),
            reporter: Arc::clone(&self.reporter),
            dialler: self.dialler.clone(),
            rest: self.rest.clone(),
            sockets: SessionSockets::new(),
            work: FuturesUnordered::new(),
            attempts: BTreeMap::new(),
            secrets: BTreeMap::new(),
            oldest_received_at: None,
            published_failure: self.reporter.log_error(),
            published_live: false,
            published_degraded: true,
            append_started: false,
        }
    }
}
