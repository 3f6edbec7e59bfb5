//! One task per stream: carries out what the stream's machine says, over real sockets and REST calls.

mod appender;
mod claim_failures;
mod driver;
mod log_access;
mod reporter;
mod rest_client;
mod session_sockets;
pub mod socket;
mod stream_task;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument;

use self::{reporter::StreamReporter, rest_client::RestClient, socket::Dialler, stream_task::StreamTask};
use crate::{
    auth::Tokens,
    clock,
    connector::{Method, RestRequest},
    coordination::{HolderView, LeaseHandle},
    event_log::{EventLog, EventLogs, LogWriter},
    model::{AccountName, Mark, ReplicaId, Secret, StreamName},
    network::NetworkPolicy,
    protocol::{
        self,
        stream::{Input, StreamState},
    },
    store::AppendError,
    tasks::Tasks,
    telemetry::chain,
};

/// What `status` and the admin API show of a stream.
#[derive(Debug, Clone, Serialize)]
pub struct StreamStatus {
    pub stream: StreamName,
    pub account: AccountName,
    pub connector: &'static str,
    /// One of `starting`, `connecting`, `live`, `degraded` (live, but not hearing all that is configured), `recovering`,
    /// `backing-off`, `paused`, `failed`. Of a stream that another replica keeps: `live` or `degraded`, as it is there.
    pub state: &'static str,
    /// Which replica keeps it; none while nobody is known to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// Newest entry of its log.
    pub last: Mark,
    /// Where the platform would be asked to go on: what was heard, also while the store has no room for it.
    pub position: Option<String>,
    pub events: u64,
    pub gaps: u64,
    pub duplicates: u64,
    pub rotations: u64,
    pub reconnects: u64,
    pub buffered: usize,
    /// Seconds since the platform was last heard.
    pub silent_seconds: Option<f64>,
    /// A snapshot that could not be fetched yet.
    pub snapshot_pending: bool,
    /// Topics that are configured and not heard, each with its reason (at most 20).
    pub refused_topics: Vec<String>,
    /// How many topics are subscribed, refused by the platform, and unserved.
    pub topics: TopicCounts,
    /// What does not work now.
    pub last_error: Option<String>,
    /// When that was found, RFC 3339.
    pub last_error_at: Option<String>,
    /// The proxy that its connections go through, without login; none where they are direct.
    pub proxy: Option<String>,
}

/// How many topics of a stream are heard, and how many not.
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

/// A wish on its way to its stream, and where the answer goes.
#[derive(Debug)]
struct PendingOperatorCommand {
    command: OperatorCommand,
    answer: oneshot::Sender<Result<(), &'static str>>,
}

/// What an operator may ask of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperatorCommand {
    Rotate,
    Pause,
    Resume,
}

/// One stream, as it is configured.
#[derive(Debug, Clone)]
pub struct Settings {
    pub stream: StreamName,
    pub account: AccountName,
    /// Base of the account's REST API.
    pub api_url: String,
    /// How the account's connections are made.
    pub network: NetworkPolicy,
    /// Bytes of the largest frame that is taken.
    pub frame_max: usize,
    pub rules: protocol::stream::Settings,
}

/// The part of a session's time to connect that an attempt may take: then its error names the step that was late, before
/// the session gives it up.
const DIAL_SHARE: f64 = 0.95;

impl Settings {
    fn clients(&self) -> reqwest::Result<(RestClient, Dialler)> {
        let client = rest_client::client(&self.network)?;
        let configured = self.rules.connector.snapshot(None);
        let key = format!("accounts.{}.api_url", self.account);
        let rest = RestClient::new(client, self.network.clone(), &self.api_url, key, &configured);
        let within = self.rules.timeouts.connect.mul_f64(DIAL_SHARE);
        let key = self.rules.connector.socket_url().map(|_| format!("streams.{}.url", self.stream));
        Ok((rest, Dialler::new(self.network.clone(), self.frame_max, within, key)))
    }

    /// The call for the snapshot whose URL the configuration names.
    pub fn configured_snapshot(&self) -> Option<RestRequest> {
        let calls = self.rules.connector.snapshot(None).into_iter();
        calls.into_iter().find(|call| call.method == Method::Get && !call.target.starts_with('/'))
    }

    /// Makes one call outside of the stream's task, to see whether it succeeds.
    pub async fn try_call(&self, request: RestRequest, token: Secret) -> Result<String, String> {
        let (rest, _) = self.clients().map_err(|error| chain(&error))?;
        let answer = rest.call(request, token).await?;
        let outcome = format!("answered with {}", answer.status);
        if (200..300).contains(&answer.status) { Ok(outcome) } else { Err(outcome) }
    }

    /// The proxy of its socket, where the configuration names one; else that of the API, which does.
    fn proxy(&self) -> Option<String> {
        self.network.proxy_name(self.rules.connector.socket_url().unwrap_or(&self.api_url))
    }
}

/// Wishes that may wait; what is beyond them is refused.
const COMMANDS_MAX: usize = 8;
/// A stream's task takes a wish in this time, or it is withdrawn.
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
    /// Who keeps it, where there are replicas.
    view: Option<HolderView>,
    commands: mpsc::Sender<PendingOperatorCommand>,
    /// Which proxy its socket goes through.
    proxy: Option<String>,
}

impl StreamRegistry {
    /// Starts a task for each stream, and claims the logs that are this process's alone. `tokens` holds a handle for each
    /// account that a stream names, and `seats` says what this process has to do with it: all of it, where there is none.
    pub async fn start(
        settings: Vec<Settings>,
        logs: &EventLogs,
        tokens: &BTreeMap<AccountName, Tokens>,
        mut seats: BTreeMap<StreamName, LeaseHandle>,
        tasks: &mut Tasks,
    ) -> anyhow::Result<Self> {
        let mut streams = BTreeMap::new();
        for settings in settings {
            let log = logs.get(&settings.stream).context("every stream has a log")?.clone();
            let tokens = tokens.get(&settings.account).context("every stream has an account")?.clone();
            let stream = settings.stream.clone();
            let (rest, dialler) = settings.clients().context("cannot build the client for REST calls")?;
            let proxy = settings.proxy();
            let (seat, writer) = match seats.remove(&stream) {
                Some(seat) => (seat, None),
                None => {
                    (LeaseHandle::single_process(), claim(&log).await.with_context(|| format!("the log of {stream}"))?)
                }
            };
            let board = Arc::new(StreamReporter::new(&stream, settings.rules.overflow));
            let (wishes, wished) = mpsc::channel(COMMANDS_MAX);
            let entry = StreamEntry {
                account: settings.account,
                connector: settings.rules.connector.name(),
                log: log.clone(),
                reporter: Arc::clone(&board),
                view: seat.view(),
                commands: wishes,
                proxy,
            };
            let rules = settings.rules;
            let keeper =
                StreamTask { rules, seat, log, writer, tokens, commands: wished, reporter: board, dialler, rest };
            // At each level of the log its lines name the stream.
            let span = tracing::error_span!("stream", %stream);
            tasks.start("stream", keeper.run(tasks.stop()).instrument(span));
            streams.insert(stream, entry);
        }
        Ok(Self { streams: Arc::new(streams) })
    }

    /// Every stream, in the order of names.
    pub fn statuses(&self) -> Vec<StreamStatus> {
        self.streams.iter().map(|(name, entry)| entry.status(name)).collect()
    }

    /// Whether events of this stream come in right now, here or at another replica.
    pub fn is_live(&self, stream: &StreamName) -> bool {
        self.streams.get(stream).is_some_and(|entry| {
            matches!(entry.state(), StreamState::Live | StreamState::Degraded | StreamState::Recovering)
        })
    }

    /// Tells a stream what an operator wants, and waits a moment for its answer; asking twice is harmless. It is refused
    /// where another replica keeps the stream, where nobody does, and where it would have no effect.
    pub async fn command(&self, stream: &StreamName, command: OperatorCommand) -> Result<(), OperatorCommandError> {
        let entry = self.streams.get(stream).ok_or(OperatorCommandError::UnknownStream)?;
        if let Some(view) = entry.remote_view() {
            return Err(OperatorCommandError::NotHolder { holder: view.holder() });
        }
        let (answer, answered) = oneshot::channel();
        entry.commands.try_send(PendingOperatorCommand { command, answer }).map_err(|_| OperatorCommandError::Busy)?;
        match tokio::time::timeout(COMMAND_TIMEOUT, answered).await {
            Ok(Ok(answer)) => answer.map_err(OperatorCommandError::NoEffect),
            // The stream has just gone to another replica.
            Ok(Err(_)) => Err(OperatorCommandError::NotHolder { holder: None }),
            Err(_) => Err(OperatorCommandError::Busy),
        }
    }
}

/// Claims a log that is this process's alone; none when the store takes nothing now: the stream's task tries again.
async fn claim(log: &EventLog) -> Result<Option<LogWriter>, AppendError> {
    match log.claim(None).await {
        Ok(writer) => Ok(Some(writer)),
        Err(AppendError::Unavailable(why)) => {
            tracing::warn!(stream = %log.name(), why, "cannot claim the log yet, will retry");
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
    /// Who keeps it, unless that is this process.
    fn remote_view(&self) -> Option<&HolderView> {
        self.view.as_ref().filter(|view| !view.is_local())
    }

    /// Why nothing comes of a stream that another replica owns: here, or there.
    fn unusable_reason(&self, view: &HolderView) -> Option<String> {
        view.unreadable().or_else(|| view.failure()).or_else(|| self.log.unreadable())
    }

    /// What it is in, wherever it is kept.
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
        let facts = self.reporter.stats();
        let end = self.log.end();
        let now = clock::now();
        let [subscribed, refused, unserved] = facts.topic_counts();
        let unusable = self.remote_view().and_then(|view| self.unusable_reason(view)).map(|why| (clock::wall(), why));
        let (at, last_error) = unusable.or_else(|| facts.last_error()).unzip();
        StreamStatus {
            stream: name.clone(),
            account: self.account.clone(),
            connector: self.connector,
            state: self.state().as_str(),
            holder: self.view.as_ref().and_then(HolderView::holder).map(|holder| holder.to_string()),
            last: Mark { epoch: end.lineage.current(), offset: end.last },
            position: facts.position.map(|position| position.to_string()),
            events: facts.events,
            gaps: facts.gaps,
            duplicates: facts.duplicates,
            rotations: facts.rotations,
            reconnects: facts.reconnects,
            buffered: facts.buffered,
            silent_seconds: facts.last_received_at.map(|at| now.saturating_duration_since(at).as_secs_f64()),
            snapshot_pending: facts.snapshot_pending,
            refused_topics: facts.refused_topic_texts(),
            topics: TopicCounts { subscribed, refused, unserved },
            last_error,
            last_error_at: at.map(|at| at.to_string()),
            proxy: self.proxy.clone(),
        }
    }
}

impl From<OperatorCommand> for Input {
    fn from(command: OperatorCommand) -> Self {
        match command {
            OperatorCommand::Rotate => Self::Rotate,
            OperatorCommand::Pause => Self::Pause,
            OperatorCommand::Resume => Self::Resume,
        }
    }
}
