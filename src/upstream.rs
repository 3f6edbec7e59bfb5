//! One task per stream. It executes the outputs of the stream machine with sockets and REST calls.

mod appender;
mod claim_failures;
mod driver;
mod in_flight;
mod log_access;
mod operator_command;
mod published_health;
mod reporter;
mod rest_client;
mod session_sockets;
mod stream_stats;
mod stream_task;
mod token_generations;
pub mod transport;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument;

pub use self::operator_command::OperatorCommand;
use self::{
    operator_command::PendingOperatorCommand,
    reporter::StreamReporter,
    rest_client::RestClient,
    stream_task::StreamTask,
    transport::{Dialler, websocket::SocketDialler},
};
use crate::{
    auth::Tokens,
    clock,
    connector::{Method, RestRequest},
    coordination::{HolderView, LeaseHandle},
    event_log::{EventLog, EventLogs, LogWriter},
    model::{AccountName, Mark, ReplicaId, Secret, StreamName},
    network::NetworkPolicy,
    protocol::{self, stream::StreamState},
    store::AppendError,
    tasks::Tasks,
    telemetry::chain,
};

/// The status of a stream in `status` and in the admin API.
#[derive(Debug, Clone, Serialize)]
pub struct StreamStatus {
    pub stream: StreamName,
    pub account: AccountName,
    pub connector: &'static str,
    /// For a stream of another replica: `live` or `degraded` there.
    pub state: StreamState,
    /// The replica that owns the stream; none while no owner is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// Newest entry of the log.
    pub last: Mark,
    /// The position from which the platform would resume. It includes received events that are not durable yet.
    pub position: Option<String>,
    pub events: u64,
    pub gaps: u64,
    pub duplicates: u64,
    pub rotations: u64,
    pub reconnects: u64,
    pub buffered: usize,
    /// Seconds since the last frame from the platform.
    pub silent_seconds: Option<f64>,
    /// Whether a snapshot after a gap is not fetched yet.
    pub snapshot_pending: bool,
    /// Configured topics that are not received, each with its reason (at most 20).
    pub refused_topics: Vec<String>,
    /// Configured topics by state.
    pub topics: TopicCounts,
    /// The newest error that still holds.
    pub last_error: Option<String>,
    /// When the error was detected (RFC 3339).
    pub last_error_at: Option<String>,
    /// The proxy of its connections, without login; none for direct connections.
    pub proxy: Option<String>,
}

/// Configured topics of a stream by state: subscribed, refused by the platform, unserved.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct TopicCounts {
    pub subscribed: usize,
    pub refused: usize,
    pub unserved: usize,
}

/// Why the stream did not accept a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OperatorCommandError {
    #[error("unknown stream")]
    UnknownStream,
    /// Only the owner of a stream accepts commands. `holder` is the owner, if it is known.
    #[error("another replica owns the stream")]
    NotHolder { holder: Option<ReplicaId> },
    /// The command has no effect in the current state of the stream, for this reason.
    #[error("the command has no effect now: {0}")]
    NoEffect(&'static str),
    /// The task of the stream did not take the command in time. The command is withdrawn.
    #[error("the stream is busy")]
    Busy,
}

/// The configuration of one stream.
#[derive(Debug, Clone)]
pub struct Settings {
    pub stream: StreamName,
    pub account: AccountName,
    /// Base of the account's REST API.
    pub api_url: String,
    /// Network settings of the account's connections.
    pub network: NetworkPolicy,
    /// Maximum frame size in bytes.
    pub frame_max: usize,
    pub rules: protocol::stream::Settings,
}

/// The share of the session's connect timeout that a dial may use. The dial times out first, so its error names the slow
/// step.
const DIAL_SHARE: f64 = 0.95;

impl Settings {
    fn clients(&self) -> reqwest::Result<(RestClient, Dialler)> {
        let client = rest_client::client(&self.network)?;
        let connector = &self.rules.connector;
        let polled = connector.socket_url().map(RestRequest::get);
        let configured: Vec<RestRequest> = connector.snapshot(None).into_iter().chain(polled).collect();
        let key = format!("accounts.{}.api_url", self.account);
        let rest = RestClient::new(client, self.network.clone(), &self.api_url, key, &configured);
        let within = self.rules.timeouts.connect.mul_f64(DIAL_SHARE);
        let key = connector.socket_url().map(|_| format!("streams.{}.url", self.stream));
        let sockets = SocketDialler::new(self.network.clone(), self.frame_max, within, key);
        let dialler = Dialler {
            connector: connector.clone(),
            transport: connector.capabilities().transport,
            sockets,
            rest: rest.clone(),
            frame_max: self.frame_max,
        };
        Ok((rest, dialler))
    }

    /// The snapshot request, if the configuration has a snapshot URL.
    pub fn configured_snapshot(&self) -> Option<RestRequest> {
        let calls = self.rules.connector.snapshot(None).into_iter();
        calls.into_iter().find(|call| call.method == Method::Get && !call.target.starts_with('/'))
    }

    /// Sends one request outside of the stream task, for a preflight check. Both results describe the outcome.
    pub async fn try_call(&self, request: RestRequest, token: Secret) -> Result<String, String> {
        let (rest, _) = self.clients().map_err(|error| chain(&error))?;
        let answer = rest.call(request, token).await?;
        let outcome = format!("answered with {}", answer.status);
        if (200..300).contains(&answer.status) { Ok(outcome) } else { Err(outcome) }
    }

    /// The proxy for the configured socket URL, else the proxy for the API URL.
    fn proxy(&self) -> Option<String> {
        self.network.proxy_name(self.rules.connector.socket_url().unwrap_or(&self.api_url))
    }
}

/// Capacity of the command queue of a stream. Further commands are rejected as busy.
const COMMANDS_MAX: usize = 8;
/// A command that the stream task does not take in this time is withdrawn.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(2);

/// The handle to all streams. Cheap to clone.
#[derive(Debug, Clone)]
pub struct StreamRegistry {
    streams: Arc<BTreeMap<StreamName, StreamEntry>>,
}

#[derive(Debug)]
struct StreamEntry {
    account: AccountName,
    connector: &'static str,
    log: EventLog,
    reporter: Arc<StreamReporter>,
    /// The owner of the stream; none in a single process.
    view: Option<HolderView>,
    commands: mpsc::Sender<PendingOperatorCommand>,
    /// The proxy of its socket.
    proxy: Option<String>,
}

impl StreamRegistry {
    /// Starts a task for each stream. `tokens` has a handle for each account. A stream without an entry in `leases` belongs
    /// to this process alone, and its log is claimed here.
    pub async fn start(
        settings: Vec<Settings>,
        logs: &EventLogs,
        tokens: &BTreeMap<AccountName, Tokens>,
        mut leases: BTreeMap<StreamName, LeaseHandle>,
        tasks: &mut Tasks,
    ) -> anyhow::Result<Self> {
        let mut streams = BTreeMap::new();
        for settings in settings {
            let log = logs.get(&settings.stream).context("every stream has a log")?.clone();
            let tokens = tokens.get(&settings.account).context("every stream has an account")?.clone();
            let stream = settings.stream.clone();
            let (rest, dialler) = settings.clients().context("cannot build the client for REST calls")?;
            let proxy = settings.proxy();
            let (lease, writer) = match leases.remove(&stream) {
                Some(lease) => (lease, None),
                None => {
                    (LeaseHandle::single_process(), claim(&log).await.with_context(|| format!("the log of {stream}"))?)
                }
            };
            let reporter = Arc::new(StreamReporter::new(&stream, &settings.rules));
            let (command_sender, commands) = mpsc::channel(COMMANDS_MAX);
            let entry = StreamEntry {
                account: settings.account,
                connector: settings.rules.connector.name(),
                log: log.clone(),
                reporter: Arc::clone(&reporter),
                view: lease.view(),
                commands: command_sender,
                proxy,
            };
            let rules = settings.rules;
            let task = StreamTask { rules, lease, log, writer, tokens, commands, reporter, dialler, rest };
            // An error span is enabled at every log level, so that each line has the stream.
            let span = tracing::error_span!("stream", %stream);
            tasks.start("stream", task.run(tasks.stop()).instrument(span));
            streams.insert(stream, entry);
        }
        Ok(Self { streams: Arc::new(streams) })
    }

    /// The status of every stream, sorted by name.
    pub fn statuses(&self) -> Vec<StreamStatus> {
        self.streams.iter().map(|(name, entry)| entry.status(name)).collect()
    }

    /// Whether this or another replica receives events of this stream now.
    pub fn is_live(&self, stream: &StreamName) -> bool {
        self.streams.get(stream).is_some_and(|entry| {
            matches!(entry.state(), StreamState::Live | StreamState::Degraded | StreamState::Recovering)
        })
    }

    /// Sends a command to the stream task and waits up to 2 s for the result. Commands are idempotent.
    ///
    /// # Errors
    /// The stream is unknown, not owned by this replica, or busy, or the command has no effect in its state.
    pub async fn command(&self, stream: &StreamName, command: OperatorCommand) -> Result<(), OperatorCommandError> {
        let entry = self.streams.get(stream).ok_or(OperatorCommandError::UnknownStream)?;
        if let Some(view) = entry.remote_view() {
            return Err(OperatorCommandError::NotHolder { holder: view.holder() });
        }
        let (answer, answered) = oneshot::channel();
        entry.commands.try_send(PendingOperatorCommand { command, answer }).map_err(|_| OperatorCommandError::Busy)?;
        match tokio::time::timeout(COMMAND_TIMEOUT, answered).await {
            Ok(Ok(answer)) => answer.map_err(OperatorCommandError::NoEffect),
            // The task dropped the command: another replica has taken the lease.
            Ok(Err(_)) => Err(OperatorCommandError::NotHolder { holder: None }),
            Err(_) => Err(OperatorCommandError::Busy),
        }
    }
}

/// Claims the log of a single process. None if the store is unavailable: the stream task retries.
async fn claim(log: &EventLog) -> Result<Option<LogWriter>, AppendError> {
    match log.claim(None).await {
        Ok(writer) => Ok(Some(writer)),
        Err(AppendError::Unavailable(cause)) => {
            tracing::warn!(stream = %log.name(), error = chain(&cause), "cannot claim the log yet, will retry");
            Ok(None)
        }
        Err(
            error @ (AppendError::Fenced
            | AppendError::Diverged(_)
            | AppendError::UnusableLog(_)
            | AppendError::Broken(_)),
        ) => Err(error),
    }
}

impl StreamEntry {
    /// The owner, unless it is this process.
    fn remote_view(&self) -> Option<&HolderView> {
        self.view.as_ref().filter(|view| !view.is_local())
    }

    /// Why the stream of another replica is unusable, here or there.
    fn unusable_reason(&self, view: &HolderView) -> Option<String> {
        view.unreadable().or_else(|| view.failure()).or_else(|| self.log.unreadable())
    }

    /// The state of the stream at its owner.
    fn state(&self) -> StreamState {
        let here = self.reporter.stats().state;
        match self.remote_view() {
            Some(view) if self.unusable_reason(view).is_some() => StreamState::Failed,
            Some(view) if view.is_live() && view.is_degraded() => StreamState::Degraded,
            Some(view) if view.is_live() => StreamState::Live,
            Some(_) if matches!(here, StreamState::Live | StreamState::Degraded) => StreamState::Starting,
            Some(_) | None => here,
        }
    }

    fn status(&self, name: &StreamName) -> StreamStatus {
        let stats = self.reporter.stats();
        let end = self.log.end();
        let now = clock::now();
        let [subscribed, refused, unserved] = stats.topic_counts();
        let unusable = self.remote_view().and_then(|view| self.unusable_reason(view)).map(|why| (clock::wall(), why));
        let (at, last_error) = unusable.or_else(|| stats.last_error()).unzip();
        StreamStatus {
            stream: name.clone(),
            account: self.account.clone(),
            connector: self.connector,
            state: self.state(),
            holder: self.view.as_ref().and_then(HolderView::holder).map(|holder| holder.to_string()),
            last: Mark { epoch: end.lineage.current(), offset: end.last },
            position: stats.position.as_ref().map(ToString::to_string),
            events: stats.events,
            gaps: stats.gaps,
            duplicates: stats.duplicates,
            rotations: stats.rotations,
            reconnects: stats.reconnects,
            buffered: stats.buffered,
            silent_seconds: stats.last_received_at.map(|at| now.saturating_duration_since(at).as_secs_f64()),
            snapshot_pending: stats.snapshot_pending,
            refused_topics: stats.refused_topic_texts(),
            topics: TopicCounts { subscribed, refused, unserved },
            last_error,
            last_error_at: at.map(|at| at.to_string()),
            proxy: self.proxy.clone(),
        }
    }
}
