//! Decides who a request is: verifies its credential, counts failures, and keeps unauthenticated connections few.

use std::{net::IpAddr, sync::Arc, time::Duration};

use aws_lc_rs::digest;
use axum::http::{HeaderMap, header::USER_AGENT, request::Parts};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{
    BindTarget, TokenError, Verifier,
    credential::{ClientCredential, ClientCredentialError},
    sessions::{ConsumerSession, ConsumerSessions, SessionRefusal, SessionRequest},
};
use crate::{
    clock,
    model::{ConsumerGrant, Revocation, RevocationTarget, Secret, StreamName, Timestamp},
    protocol::access::{
        AuthenticationFailure, ClientOrigin, CloseReason, FailureCounter, LimitExceeded, TokenBindings, TokenDigest,
    },
    random,
    store::{AppendError, Store},
    tasks::Tasks,
    telemetry::{chain, metrics},
};

/// How often the revocations of other replicas are read. A revocation takes effect everywhere within a second.
const REVOCATIONS_INTERVAL: Duration = Duration::from_millis(400);
/// The longest life of a ticket, and the default.
pub(in crate::downstream::server) const TICKET_TTL_MAX: Duration = Duration::from_secs(60);
/// How long a revocation is kept: longer than tokens live.
const REVOCATION_TTL: Duration = Duration::from_secs(400 * 24 * 3_600);
/// How long a client has to authenticate with its first message.
pub(in crate::downstream::server) const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// A longer `User-Agent` is truncated.
const USER_AGENT_LEN_MAX: usize = 256;
/// Random bits of a ticket, in numbers of 64 bits.
const TICKET_NUMBERS: usize = 4;

/// The access of consumers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AccessControl {
    shared: Arc<SharedAccess>,
}

#[derive(Debug)]
struct SharedAccess {
    verifier: Verifier,
    store: Store,
    sessions: ConsumerSessions,
    rules: CredentialRules,
    bindings: Mutex<TokenBindings>,
    failures: Mutex<FailureCounter>,
    /// Permits of connections that have not authenticated yet.
    unauthenticated: Arc<Semaphore>,
    /// Whether the revocations were read since the start.
    ready: watch::Receiver<bool>,
}

/// Which credentials are accepted.
#[derive(Debug, Clone)]
struct CredentialRules {
    cookie: Option<String>,
    first_message: bool,
    bind: Vec<BindTarget>,
}

/// The client of a request.
#[derive(Debug, Clone)]
pub(in crate::downstream::server) struct Client {
    pub(in crate::downstream::server) address: IpAddr,
    /// Of a listener that binds tokens to clients.
    origin: Option<ClientOrigin>,
}

/// Who a request is.
#[derive(Debug)]
pub(in crate::downstream::server) enum Admission {
    Granted(ConsumerGrant),
    /// A WebSocket that authenticates with its first message. The permit is held until then.
    FirstMessage(OwnedSemaphorePermit),
}

/// Why a request has no access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::downstream::server) enum AccessError {
    #[error("credentials are required: a Bearer token, or a ticket from POST /v1/tickets")]
    Missing,
    #[error(transparent)]
    Credential(#[from] ClientCredentialError),
    #[error("the token is not accepted")]
    Token(#[source] TokenError),
    #[error("the token has a filter, which this version cannot apply")]
    Filter,
    #[error("the ticket is unknown, expired or already used")]
    Ticket,
    #[error("the credential is bound to the client that used it first")]
    Bound,
    #[error("the token is revoked; request a new one from its issuer")]
    Revoked,
    #[error("the token does not permit this stream")]
    Forbidden,
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
    #[error("too many connections have not authenticated yet; retry later")]
    Busy,
    #[error("access cannot be checked now; retry later")]
    Unavailable,
}

impl AccessError {
    /// The failed authentication; none for an error that is none.
    fn failure(self) -> Option<AuthenticationFailure> {
        match self {
            Self::Missing => Some(AuthenticationFailure::Missing),
            Self::Credential(_) => Some(AuthenticationFailure::Malformed),
            Self::Token(error) if error.is_temporary() => None,
            Self::Token(error) if error.reason() == CloseReason::TokenExpired => {
                Some(AuthenticationFailure::TokenExpired)
            }
            Self::Token(_) | Self::Filter | Self::Bound => Some(AuthenticationFailure::TokenInvalid),
            Self::Ticket => Some(AuthenticationFailure::Ticket),
            Self::Revoked => Some(AuthenticationFailure::Revoked),
            Self::Forbidden | Self::Limit(_) | Self::Busy | Self::Unavailable => None,
        }
    }

    /// The reason of the close frame where a WebSocket is open already.
    pub(in crate::downstream::server) fn close_reason(self) -> CloseReason {
        match self {
            Self::Token(error) => error.reason(),
            Self::Revoked => CloseReason::Revoked,
            Self::Limit(_) => CloseReason::Limit,
            Self::Missing
            | Self::Credential(_)
            | Self::Filter
            | Self::Ticket
            | Self::Bound
            | Self::Forbidden
            | Self::Busy
            | Self::Unavailable => CloseReason::TokenInvalid,
        }
    }
}

impl From<SessionRefusal> for AccessError {
    fn from(refusal: SessionRefusal) -> Self {
        match refusal {
            SessionRefusal::Limit(limit) => Self::Limit(limit),
            SessionRefusal::Revoked => Self::Revoked,
        }
    }
}

impl AccessControl {
    /// Starts to follow the revocations of the store. `connections_max`: of the listener; a tenth of them may be
    /// unauthenticated.
    pub fn start(
        settings: &super::Settings,
        verifier: Verifier,
        store: Store,
        connections_max: usize,
        tasks: &mut Tasks,
    ) -> Self {
        let idle_max = Some(settings.idle_max).filter(|max| !max.is_zero());
        let sessions = ConsumerSessions::new(settings.limits.into(), idle_max);
        let (ready_sender, ready) = watch::channel(false);
        tasks.start("revocations", follow_revocations(store.clone(), sessions.clone(), ready_sender, tasks.stop()));
        let shared = SharedAccess {
            verifier,
            store,
            sessions,
            rules: CredentialRules {
                cookie: settings.cookie.clone(),
                first_message: settings.first_message,
                bind: settings.bind.clone(),
            },
            bindings: Mutex::default(),
            failures: Mutex::default(),
            unauthenticated: Arc::new(Semaphore::new((connections_max / 10).max(1))),
            ready,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Waits until the revocations are read for the first time. Until then no request has access.
    #[cfg(test)]
    pub async fn wait_until_ready(&self) {
        let mut ready = self.shared.ready.clone();
        // An error means that the process stops.
        drop(ready.wait_for(|ready| *ready).await);
    }

    /// Updates the metrics that change with time alone. Call it before they are read.
    pub fn update_metrics(&self) {
        metrics::flagged_addresses(self.shared.failures.lock().flagged(clock::now()));
    }

    /// The open sessions.
    pub fn sessions(&self) -> &ConsumerSessions {
        &self.shared.sessions
    }

    /// Revokes a session, or every token of a subject that was issued up to now: here at once, at other replicas within a
    /// second.
    ///
    /// # Errors
    /// The store cannot be written. The revocation has effect on this replica until it restarts.
    pub async fn revoke(&self, target: RevocationTarget) -> Result<(), AppendError> {
        let at = clock::wall();
        self.shared.sessions.revoke([(target.clone(), at)]);
        self.shared.store.revoke(&Revocation { target, at, ttl: REVOCATION_TTL }).await
    }

    /// The client of a request.
    pub(in crate::downstream::server) fn client(&self, address: IpAddr, headers: &HeaderMap) -> Client {
        let bind = &self.shared.rules.bind;
        let binds = |target| bind.contains(&target);
        let agent = || {
            Some(headers.get(USER_AGENT)?.as_bytes().escape_ascii().take(USER_AGENT_LEN_MAX).map(char::from).collect())
        };
        let origin = (!bind.is_empty()).then(|| ClientOrigin {
            address: binds(BindTarget::Address).then_some(address),
            user_agent: if binds(BindTarget::UserAgent) { agent() } else { None },
        });
        Client { address, origin }
    }

    /// Who a request is.
    pub(in crate::downstream::server) async fn authenticate(
        &self,
        request: &Parts,
        is_upgrade: bool,
        client: &Client,
    ) -> Result<Admission, AccessError> {
        let rules = &self.shared.rules;
        let credential = ClientCredential::of(&request.headers, &request.uri, rules.cookie.as_deref(), is_upgrade);
        let granted = match credential {
            Err(error) => Err(error.into()),
            Ok(ClientCredential::Bearer(token) | ClientCredential::Cookie(token)) => self.verify(&token, client).await,
            Ok(ClientCredential::Ticket(ticket)) => self.take_ticket(&ticket, client).await,
            Ok(ClientCredential::None) if is_upgrade && rules.first_message => {
                let permit = Arc::clone(&self.shared.unauthenticated).try_acquire_owned();
                return permit.map(Admission::FirstMessage).map_err(|_| AccessError::Busy);
            }
            Ok(ClientCredential::None) => Err(AccessError::Missing),
        };
        granted.map(Admission::Granted).inspect_err(|error| self.record_failure(*error, client.address))
    }

    /// The grant of the token in a session message.
    pub(in crate::downstream::server) async fn authenticate_message(
        &self,
        token: &Secret,
        client: &Client,
    ) -> Result<ConsumerGrant, AccessError> {
        self.verify(token, client).await.inspect_err(|error| self.record_failure(*error, client.address))
    }

    /// Opens the session of a connection.
    pub(in crate::downstream::server) fn open(&self, request: SessionRequest) -> Result<ConsumerSession, AccessError> {
        Ok(self.shared.sessions.open(request)?)
    }

    /// Issues a ticket for the streams of a grant.
    pub(in crate::downstream::server) async fn issue_ticket(
        &self,
        grant: &ConsumerGrant,
        client: &Client,
        ttl: Duration,
    ) -> Result<Secret, AccessError> {
        let numbers: String = (0..TICKET_NUMBERS).map(|_| format!("{:016x}", random::u64())).collect();
        let ticket = Secret::new(numbers);
        let value = serde_json::to_string(&TicketGrant::new(grant, client)).expect("texts and numbers can be written");
        let stored = self.shared.store.put_ticket(&ticket, value, ttl).await;
        stored.map(|()| ticket).map_err(|error| {
            tracing::warn!(error = chain(&error), "cannot store a ticket");
            AccessError::Unavailable
        })
    }

    async fn verify(&self, token: &Secret, client: &Client) -> Result<ConsumerGrant, AccessError> {
        let grant = self.shared.verifier.verify_or_wait(token.expose()).await.map_err(AccessError::Token)?;
        if let Some(origin) = &client.origin {
            let digest = digest::digest(&digest::SHA256, token.expose().as_bytes());
            let digest: TokenDigest = digest.as_ref().try_into().expect("SHA-256 has 32 bytes");
            let now = clock::now();
            let expires_at = now + grant.expires_at.since(clock::wall());
            if !self.shared.bindings.lock().bind(digest, origin, expires_at, now) {
                return Err(AccessError::Bound);
            }
        }
        self.check(grant)
    }

    async fn take_ticket(&self, ticket: &Secret, client: &Client) -> Result<ConsumerGrant, AccessError> {
        let value = self.shared.store.take_ticket(ticket).await.map_err(|error| {
            tracing::warn!(error = chain(&error), "cannot read a ticket");
            AccessError::Unavailable
        })?;
        let ticket = value.and_then(|value| serde_json::from_str::<TicketGrant>(&value).ok());
        let ticket = ticket.ok_or(AccessError::Ticket)?;
        if ticket.origin != client.origin {
            return Err(AccessError::Bound);
        }
        self.check(ticket.grant().ok_or(AccessError::Ticket)?)
    }

    fn check(&self, grant: ConsumerGrant) -> Result<ConsumerGrant, AccessError> {
        if !*self.shared.ready.borrow() {
            return Err(AccessError::Unavailable);
        }
        if grant.filter.is_some() {
            return Err(AccessError::Filter);
        }
        if self.shared.sessions.is_revoked(&grant) { Err(AccessError::Revoked) } else { Ok(grant) }
    }

    fn record_failure(&self, error: AccessError, client: IpAddr) {
        let Some(failure) = error.failure() else { return };
        metrics::authentication_failed(failure);
        let window = self.shared.failures.lock().record(client, clock::now());
        if window.newly_flagged {
            let failures = window.count;
            tracing::warn!(%client, failures, "many failed authentications from one address within a minute");
        }
    }
}

/// Reads the revocations until the stop signal.
async fn follow_revocations(
    store: Store,
    sessions: ConsumerSessions,
    ready: watch::Sender<bool>,
    stop: CancellationToken,
) -> crate::tasks::TaskResult {
    let mut ticks = interval(REVOCATIONS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            _ = ticks.tick() => (),
        }
        match store.revoked().await {
            Ok(targets) => {
                sessions.revoke(targets);
                ready.send_replace(true);
                failing = false;
            }
            Err(error) => {
                if !failing {
                    tracing::warn!(error = chain(&error), "cannot read revocations; the ones read before still apply");
                }
                failing = true;
            }
        }
    }
}

/// A grant in a ticket.
#[derive(Debug, Serialize, Deserialize)]
struct TicketGrant {
    sub: String,
    streams: Vec<String>,
    exp: i64,
    iat: Option<i64>,
    origin: Option<ClientOrigin>,
}

impl TicketGrant {
    fn new(grant: &ConsumerGrant, client: &Client) -> Self {
        Self {
            sub: grant.subject.to_string(),
            streams: grant.streams.iter().map(|pattern| pattern.as_str().to_owned()).collect(),
            exp: grant.expires_at.0,
            iat: grant.issued_at.map(|at| at.0),
            origin: client.origin.clone(),
        }
    }

    fn grant(&self) -> Option<ConsumerGrant> {
        Some(ConsumerGrant {
            subject: self.sub.parse().ok()?,
            streams: self.streams.iter().map(|pattern| pattern.parse()).collect::<Result<_, _>>().ok()?,
            expires_at: Timestamp(self.exp),
            issued_at: self.iat.map(Timestamp),
            filter: None,
        })
    }
}

/// Whether a grant permits all of these streams.
pub(in crate::downstream::server) fn permits<'a>(
    grant: &ConsumerGrant,
    streams: impl IntoIterator<Item = &'a StreamName>,
) -> bool {
    streams.into_iter().all(|stream| grant.may_read(stream))
}
