//! The task of one stream, from start to end of the process. It follows the log while another replica owns the stream,
//! and starts a driver when this replica becomes standby or owner.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    driver::{StreamDriver, StreamRunEnd, now},
    in_flight::InFlight,
    log_access::{self, CLAIM_RETRY_DELAY, LogAccess},
    operator_command::PendingOperatorCommand,
    published_health::PublishedHealth,
    reporter::StreamReporter,
    rest_client::RestClient,
    session_sockets::SessionSockets,
    token_generations::TokenGenerations,
    transport::Dialler,
};
use crate::{
    auth::Tokens,
    coordination::{LeaseHandle, Ownership, OwnershipPhase, ReplicaRole},
    event_log::{EventLog, LogWriter},
    model::Fence,
    protocol::stream::{Input, Settings, Stream},
    store::AppendError,
    telemetry::chain,
};

/// The task of one stream.
pub(super) struct StreamTask {
    pub(super) rules: Settings,
    pub(super) lease: LeaseHandle,
    pub(super) log: EventLog,
    /// The writer of a log that was claimed at start.
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
            let ended = match self.lease.role() {
                ReplicaRole::Idle => {
                    self.follow_log(&stop).await;
                    StreamRunEnd::Released
                }
                ReplicaRole::Standby => self.run_standby(&stop).await?,
                ReplicaRole::Owner(Ownership { phase: OwnershipPhase::Closing, .. }) => {
                    self.lease.report_closed().await;
                    self.wait_for_change(&stop).await;
                    StreamRunEnd::Released
                }
                ReplicaRole::Owner(ownership) => self.run_owner(ownership, &stop).await?,
            };
            if ended == StreamRunEnd::Stopped {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Follows the log of another replica, so that readers here see its entries.
    async fn follow_log(&mut self, stop: &CancellationToken) {
        self.reporter.reset();
        self.lease.report_failed(None).await;
        let mut following = log_access::follow_log(&self.log);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.lease.changed() => return,
                // The dropped channel reports to the requester that this replica is not the owner.
                Some(command) = self.commands.recv() => drop(command),
                () = &mut following => (),
            }
        }
    }

    /// Waits for the stop signal or a change of role.
    async fn wait_for_change(&mut self, stop: &CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => (),
            () = self.lease.changed() => (),
        }
    }

    /// Runs a session as standby.
    async fn run_standby(&mut self, stop: &CancellationToken) -> anyhow::Result<StreamRunEnd> {
        self.reporter.clear_log_error();
        self.lease.report_failed(None).await;
        let mut machine = Stream::standby(self.rules.clone(), now());
        if !machine.compares_with_log()
            && let Some(position) = log_access::read_log_position(&self.log, self.rules.feed).await
        {
            machine.handle(Input::Follow(position), now());
        }
        let reads_position = !machine.compares_with_log();
        let log_access = LogAccess::standby(&self.log);
        let mut driver = self.driver(machine, log_access);
        if reads_position {
            driver.schedule_position_read();
        }
        driver.run(stop.clone()).await
    }

    /// Runs as owner without a standby session before it.
    async fn run_owner(&mut self, ownership: Ownership, stop: &CancellationToken) -> anyhow::Result<StreamRunEnd> {
        let Some(claimed) = self.claim(ownership.fence, stop).await else { return Ok(StreamRunEnd::Released) };
        let writer = match (claimed, ownership.fence) {
            (Ok(writer), _) => writer,
            (Err(AppendError::Fenced), Some(fence)) => {
                self.lease.report_fenced(fence).await;
                self.wait_for_change(stop).await;
                return Ok(StreamRunEnd::Released);
            }
            (Err(error), _) => return Err(error.into()),
        };
        let machine = Stream::new(self.rules.clone(), log_access::stream_opening(&writer), now());
        let log_access = LogAccess::owner(&self.log, writer, ownership, self.lease.append_permit());
        let mut driver = self.driver(machine, log_access);
        driver.apply_role();
        driver.run(stop.clone()).await
    }

    /// Claims the log. Retries while the log is unusable until an operator repairs it. None if the stop signal or a change
    /// of role comes first.
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
            self.lease.report_failed(self.reporter.log_error()).await;
            let log = self.log.clone();
            let claiming = async move {
                tokio::time::sleep(wait.unwrap_or_default()).await;
                log_access::claim(&log, fence).await
            };
            let claimed = tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                () = self.lease.changed() => return None,
                claimed = claiming => claimed,
            };
            let Err(AppendError::UnusableLog(cause)) = claimed else {
                self.reporter.log_claimed();
                self.lease.report_failed(self.reporter.log_error()).await;
                return Some(claimed);
            };
            self.reporter.log_unusable(&chain(&cause));
            wait = Some(CLAIM_RETRY_DELAY);
        }
    }

    fn driver(&mut self, machine: Stream, log_access: LogAccess) -> StreamDriver<'_> {
        StreamDriver {
            machine,
            log_access,
            lease: &mut self.lease,
            commands: &mut self.commands,
            log: self.log.clone(),
            tokens: self.tokens.clone(),
            reporter: Arc::clone(&self.reporter),
            dialler: self.dialler.clone(),
            rest: self.rest.clone(),
            sockets: SessionSockets::new(),
            work: InFlight::default(),
            secrets: TokenGenerations::default(),
            oldest_received_at: None,
            health: PublishedHealth::new(self.reporter.log_error()),
            append_started: false,
        }
    }
}
