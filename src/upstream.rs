//! One task per stream: carries out what the stream's machine says, over real sockets and REST calls.

mod appender;
mod board;
mod holding;
mod keeper;
mod relapse;
mod rest;
mod shell;
pub mod socket;
mod sockets;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument;

use self::{board::Board, keeper::Keeper, rest::Rest, socket::Dialler};
use crate::{
    auth::Tokens,
    clock,
    connector::{Method, Request},
    event_log::{EventLog, EventLogs, Writer},
    model::{AccountName, Mark, ReplicaId, Secret, StreamName},
    network::NetworkPolicy,
    protocol::{
        self,
        stream::{Input, State},
    },
    replica::{Seat, View},
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
    pub snapshot_owed: bool,
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

/// A wish could not be passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WishError {
    #[error("no such stream")]
    UnknownStream,
    /// Only who keeps a stream can change what it does.
    #[error("the stream is kept elsewhere")]
    KeptElsewhere { holder: Option<ReplicaId> },
    /// It would have no effect in the state that the stream is in.
    #[error("the stream cannot do that now: {0}")]
    WithoutEffect(&'static str),
    /// The stream's task did not take it in time, and will not any more.
    #[error("the stream is busy")]
    Busy,
}

/// A wish on its way to its stream, and where the answer goes.
#[derive(Debug)]
struct Asked {
    wish: Wish,
    answer: oneshot::Sender<Result<(), &'static str>>,
}

/// What an operator may ask of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
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
    fn connections(&self) -> reqwest::Result<(Rest, Dialler)> {
        let client = rest::client(&self.network)?;
        let configured = self.rules.connector.snapshot(None);
        let key = format!("accounts.{}.api_url", self.account);
        let rest = Rest::new(client, self.network.clone(), &self.api_url, key, &configured);
        let within = self.rules.patience.connect.mul_f64(DIAL_SHARE);
        let key = self.rules.connector.socket_url().map(|_| format!("streams.{}.url", self.stream));
        Ok((rest, Dialler::new(self.network.clone(), self.frame_max, within, key)))
    }

    /// The call for the snapshot whose URL the configuration names.
    pub fn configured_snapshot(&self) -> Option<Request> {
        let calls = self.rules.connector.snapshot(None).into_iter();
        calls.into_iter().find(|call| call.method == Method::Get && !call.target.starts_with('/'))
    }

    /// Makes one call outside of the stream's task, to see whether it succeeds.
    pub async fn try_call(&self, request: Request, token: Secret) -> Result<String, String> {
        let (rest, _) = self.connections().map_err(|error| chain(&error))?;
        let answer = rest.call(request, token).await?;
        let words = format!("answered with {}", answer.status);
        if (200..300).contains(&answer.status) { Ok(words) } else { Err(words) }
    }

    /// The proxy of its socket, where the configuration names one; else that of the API, which does.
    fn proxy(&self) -> Option<String> {
        self.network.proxy_shown(self.rules.connector.socket_url().unwrap_or(&self.api_url))
    }
}

/// Wishes that may wait; what is beyond them is refused.
const WISHES_MAX: usize = 8;
/// A stream's task takes a wish in this time, or it is withdrawn.
const WISH_MAX: Duration = Duration::from_secs(2);

/// The handle to all streams. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Streams {
    streams: Arc<BTreeMap<StreamName, Entry>>,
}

#[derive(Debug)]
struct Entry {
    account: AccountName,
    connector: &'static str,
    log: EventLog,
    board: Arc<Board>,
    /// Who keeps it, where there are replicas.
    view: Option<View>,
    wishes: mpsc::Sender<Asked>,
    /// Which proxy its socket goes through.
    proxy: Option<String>,
}

impl Streams {
    /// Starts a task for each stream, and claims the logs that are this process's alone. `tokens` holds a handle for each
    /// account that a stream names, and `seats` says what this process has to do with it: all of it, where there is none.
    pub async fn start(
        settings: Vec<Settings>,
        logs: &EventLogs,
        tokens: &BTreeMap<AccountName, Tokens>,
        mut seats: BTreeMap<StreamName, Seat>,
        tasks: &mut Tasks,
    ) -> anyhow::Result<Self> {
        let mut streams = BTreeMap::new();
        for settings in settings {
            let log = logs.get(&settings.stream).context("every stream has a log")?.clone();
            let tokens = tokens.get(&settings.account).context("every stream has an account")?.clone();
            let stream = settings.stream.clone();
            let (rest, dialler) = settings.connections().context("cannot set up the client for REST calls")?;
            let proxy = settings.proxy();
            let (seat, writer) = match seats.remove(&stream) {
                Some(seat) => (seat, None),
                None => (Seat::alone(), claim(&log).await.with_context(|| format!("the log of {stream}"))?),
            };
            let board = Arc::new(Board::new(&stream, settings.rules.overflow));
            let (wishes, wished) = mpsc::channel(WISHES_MAX);
            let entry = Entry {
                account: settings.account,
                connector: settings.rules.connector.name(),
                log: log.clone(),
                board: Arc::clone(&board),
                view: seat.view(),
                wishes,
                proxy,
            };
            let rules = settings.rules;
            let keeper = Keeper { rules, seat, log, writer, tokens, wishes: wished, board, dialler, rest };
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
        self.streams
            .get(stream)
            .is_some_and(|entry| matches!(entry.state(), State::Live | State::Degraded | State::Recovering))
    }

    /// Tells a stream what an operator wants, and waits a moment for its answer; asking twice is harmless. It is refused
    /// where another replica keeps the stream, where nobody does, and where it would have no effect.
    pub async fn wish(&self, stream: &StreamName, wish: Wish) -> Result<(), WishError> {
        let entry = self.streams.get(stream).ok_or(WishError::UnknownStream)?;
        if let Some(view) = entry.elsewhere() {
            return Err(WishError::KeptElsewhere { holder: view.holder() });
        }
        let (answer, answered) = oneshot::channel();
        entry.wishes.try_send(Asked { wish, answer }).map_err(|_| WishError::Busy)?;
        match tokio::time::timeout(WISH_MAX, answered).await {
            Ok(Ok(answer)) => answer.map_err(WishError::WithoutEffect),
            // The stream has just gone to another replica.
            Ok(Err(_)) => Err(WishError::KeptElsewhere { holder: None }),
            Err(_) => Err(WishError::Busy),
        }
    }
}

/// Claims a log that is this process's alone; none when the store takes nothing now: the stream's task tries again.
async fn claim(log: &EventLog) -> Result<Option<Writer>, AppendError> {
    match log.claim(None).await {
        Ok(writer) => Ok(Some(writer)),
        Err(AppendError::NoRoom(why)) => {
            tracing::warn!(stream = %log.name(), why, "the log cannot be claimed yet");
            Ok(None)
        }
        Err(
            error @ (AppendError::Fenced | AppendError::Moved(_) | AppendError::Refused(_) | AppendError::Broken(_)),
        ) => Err(error),
    }
}

impl Entry {
    /// Who keeps it, unless that is this process.
    fn elsewhere(&self) -> Option<&View> {
        self.view.as_ref().filter(|view| !view.is_here())
    }

    /// Why nothing comes of a stream that another replica owns: here, or there.
    fn unusable(&self, view: &View) -> Option<String> {
        view.unreadable().or_else(|| view.failed()).or_else(|| self.log.unreadable())
    }

    /// What it is in, wherever it is kept.
    fn state(&self) -> State {
        let here = self.board.facts().state;
        match self.elsewhere() {
            Some(view) if self.unusable(view).is_some() => State::Failed,
            Some(view) if view.is_live() && view.is_degraded() => State::Degraded,
            Some(view) if view.is_live() => State::Live,
            Some(_) if matches!(here, State::Live | State::Degraded) => State::Starting,
            Some(_) | None => here,
        }
    }

    fn status(&self, name: &StreamName) -> StreamStatus {
        let facts = self.board.facts();
        let end = self.log.end();
        let now = clock::now();
        let [subscribed, refused, unserved] = facts.topic_counts();
        let unusable = self.elsewhere().and_then(|view| self.unusable(view)).map(|why| (clock::wall(), why));
        let (at, last_error) = unusable.or_else(|| facts.last_error()).unzip();
        StreamStatus {
            stream: name.clone(),
            account: self.account.clone(),
            connector: self.connector,
            state: self.state().as_str(),
            holder: self.view.as_ref().and_then(View::holder).map(|holder| holder.to_string()),
            last: Mark { epoch: end.lineage.current(), offset: end.last },
            position: facts.position.map(|position| position.to_string()),
            events: facts.events,
            gaps: facts.gaps,
            duplicates: facts.duplicates,
            rotations: facts.rotations,
            reconnects: facts.reconnects,
            buffered: facts.buffered,
            silent_seconds: facts.heard_at.map(|at| now.saturating_duration_since(at).as_secs_f64()),
            snapshot_owed: facts.snapshot_owed,
            refused_topics: facts.refused_shown(),
            topics: TopicCounts { subscribed, refused, unserved },
            last_error,
            last_error_at: at.map(|at| at.to_string()),
            proxy: self.proxy.clone(),
        }
    }
}

impl From<Wish> for Input {
    fn from(wish: Wish) -> Self {
        match wish {
            Wish::Rotate => Self::Rotate,
            Wish::Pause => Self::Pause,
            Wish::Resume => Self::Resume,
        }
    }
}
