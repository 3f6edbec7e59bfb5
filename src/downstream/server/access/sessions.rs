//! The open sessions of consumers: who is connected, what each subject uses, and the end of a session by an operator.

use std::{
    collections::BTreeMap,
    fmt,
    future::poll_fn,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::{Sleep, sleep_until};

use super::control::permits;
use crate::{
    clock,
    model::{ConsumerGrant, RevocationTarget, StreamName, Subject, Timestamp},
    protocol::access::{
        AccessLifetime, AccessMessage, ByteBudget, CloseReason, LimitExceeded, Renewal, Revocations, SubjectLimits,
        SubjectUsage,
    },
    random,
};

/// The open sessions. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ConsumerSessions {
    shared: Arc<SharedSessions>,
}

#[derive(Debug)]
struct SharedSessions {
    limits: SubjectLimits,
    idle_max: Option<Duration>,
    table: Mutex<SessionTable>,
}

#[derive(Debug, Default)]
struct SessionTable {
    open: BTreeMap<ConsumerSessionId, Arc<SessionEntry>>,
    usage: SubjectUsage,
    budgets: BTreeMap<Subject, ByteBudget>,
    revocations: Revocations,
}

/// The id of a session: random, so that it names no other session after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::downstream::server) struct ConsumerSessionId(u64);

impl fmt::Display for ConsumerSessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What is known of a session when it opens.
#[derive(Debug)]
pub(in crate::downstream::server) struct SessionRequest {
    pub(in crate::downstream::server) grant: ConsumerGrant,
    pub(in crate::downstream::server) streams: Vec<StreamName>,
    pub(in crate::downstream::server) address: IpAddr,
    pub(in crate::downstream::server) transport: &'static str,
}

#[derive(Debug)]
struct SessionEntry {
    subject: Subject,
    streams: Vec<StreamName>,
    address: IpAddr,
    transport: &'static str,
    opened_at: Timestamp,
    /// Of the newest token.
    issued_at: Mutex<Option<Timestamp>>,
    expires_at: Mutex<Timestamp>,
    closing: OnceLock<CloseReason>,
    waker: AtomicWaker,
}

impl SessionEntry {
    fn close(&self, reason: CloseReason) {
        // The first reason counts.
        if self.closing.set(reason).is_ok() {
            self.waker.wake();
        }
    }

    fn is_revoked(&self, id: ConsumerSessionId, revocations: &Revocations) -> bool {
        revocations.is_revoked(&id.to_string(), self.subject.as_str(), *self.issued_at.lock())
    }
}

/// A session, as operators see it.
#[derive(Debug, Serialize)]
pub struct SessionStatus {
    pub session: String,
    pub subject: String,
    pub streams: Vec<StreamName>,
    pub transport: &'static str,
    pub address: String,
    pub opened: String,
    pub expires: String,
}

/// Why a session does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::downstream::server) enum SessionRefusal {
    Limit(LimitExceeded),
    Revoked,
}

impl ConsumerSessions {
    /// No open sessions.
    pub fn new(limits: SubjectLimits, idle_max: Option<Duration>) -> Self {
        Self { shared: Arc::new(SharedSessions { limits, idle_max, table: Mutex::default() }) }
    }

    /// Opens a session. It ends when the value is dropped.
    pub(in crate::downstream::server) fn open(
        &self,
        request: SessionRequest,
    ) -> Result<ConsumerSession, SessionRefusal> {
        let SessionRequest { grant, streams, address, transport } = request;
        let (now, wall) = (clock::now(), clock::wall());
        let mut table = self.shared.table.lock();
        if table.revocations.is_subject_revoked(grant.subject.as_str(), grant.issued_at) {
            return Err(SessionRefusal::Revoked);
        }
        let count = u32::try_from(streams.len()).unwrap_or(u32::MAX);
        table.usage.acquire(grant.subject.as_str(), count, &self.shared.limits).map_err(SessionRefusal::Limit)?;
        let id = ConsumerSessionId(random::u64());
        let entry = Arc::new(SessionEntry {
            subject: grant.subject.clone(),
            streams,
            address,
            transport,
            opened_at: wall,
            issued_at: Mutex::new(grant.issued_at),
            expires_at: Mutex::new(grant.expires_at),
            closing: OnceLock::new(),
            waker: AtomicWaker::new(),
        });
        table.open.insert(id, Arc::clone(&entry));
        drop(table);
        let remaining = grant.expires_at.since(wall);
        let lifetime = AccessLifetime::new(grant.subject.to_string(), remaining, self.shared.idle_max, now);
        let due = tokio::time::Instant::from_std(lifetime.poll_timeout());
        let observes = self.shared.idle_max.is_some() || self.shared.limits.bytes_per_second.is_some();
        Ok(ConsumerSession { id, entry, lifetime, timer: Box::pin(sleep_until(due)), observes, sessions: self.clone() })
    }

    /// Whether the tokens of the subject are revoked.
    pub(super) fn is_revoked(&self, grant: &ConsumerGrant) -> bool {
        let table = self.shared.table.lock();
        table.revocations.is_subject_revoked(grant.subject.as_str(), grant.issued_at)
    }

    /// Adds revocations, and ends the sessions of this replica that they cover.
    pub(super) fn revoke(&self, targets: impl IntoIterator<Item = (RevocationTarget, Timestamp)>) {
        let mut table = self.shared.table.lock();
        let mut changed = false;
        for (target, at) in targets {
            changed |= table.revocations.add(target, at);
        }
        if !changed {
            return;
        }
        for (id, entry) in &table.open {
            if entry.is_revoked(*id, &table.revocations) {
                entry.close(CloseReason::Revoked);
            }
        }
    }

    /// The open sessions.
    pub fn status(&self) -> Vec<SessionStatus> {
        let table = self.shared.table.lock();
        let status = |(id, entry): (&ConsumerSessionId, &Arc<SessionEntry>)| SessionStatus {
            session: id.to_string(),
            subject: entry.subject.to_string(),
            streams: entry.streams.clone(),
            transport: entry.transport,
            address: entry.address.to_string(),
            opened: entry.opened_at.to_string(),
            expires: entry.expires_at.lock().to_string(),
        };
        table.open.iter().map(status).collect()
    }

    fn end(&self, id: ConsumerSessionId, entry: &SessionEntry) {
        let mut table = self.shared.table.lock();
        table.open.remove(&id);
        table.usage.release(entry.subject.as_str(), u32::try_from(entry.streams.len()).unwrap_or(u32::MAX));
        if !table.usage.has_connection(entry.subject.as_str()) {
            table.budgets.remove(&entry.subject);
        }
    }

    fn spend(&self, subject: &Subject, bytes: u64, now: Instant) -> Result<(), LimitExceeded> {
        let Some(per_second) = self.shared.limits.bytes_per_second else { return Ok(()) };
        let mut table = self.shared.table.lock();
        let budget = table.budgets.entry(subject.clone()).or_insert_with(|| ByteBudget::new(per_second, now));
        budget.spend(bytes, now)
    }
}

/// The session of one connection.
#[derive(Debug)]
pub(in crate::downstream::server) struct ConsumerSession {
    id: ConsumerSessionId,
    entry: Arc<SessionEntry>,
    lifetime: AccessLifetime,
    timer: Pin<Box<Sleep>>,
    /// Whether activity matters: there is an idle limit or a limit of bytes.
    observes: bool,
    sessions: ConsumerSessions,
}

impl Drop for ConsumerSession {
    fn drop(&mut self) {
        self.sessions.end(self.id, &self.entry);
    }
}

impl ConsumerSession {
    pub(in crate::downstream::server) fn id(&self) -> ConsumerSessionId {
        self.id
    }

    /// The remaining time of its token.
    pub(in crate::downstream::server) fn remaining(&self) -> Duration {
        self.lifetime.remaining(clock::now())
    }

    /// The client sent a message, or received `bytes` of events.
    pub(in crate::downstream::server) fn record_activity(&mut self, bytes: u64) -> Result<(), CloseReason> {
        if !self.observes {
            return Ok(());
        }
        let now = clock::now();
        self.lifetime.record_activity(now);
        self.sessions.spend(&self.entry.subject, bytes, now).map_err(|_| CloseReason::Limit)
    }

    /// Renews the session with a verified token.
    pub(in crate::downstream::server) fn renew(&mut self, grant: &ConsumerGrant) -> Result<(), CloseReason> {
        let renewal = Renewal {
            subject: grant.subject.as_str(),
            remaining: grant.expires_at.since(clock::wall()),
            covers_streams: permits(grant, &self.entry.streams),
        };
        self.lifetime.renew(renewal, clock::now())?;
        self.reset_timer();
        *self.entry.issued_at.lock() = grant.issued_at;
        *self.entry.expires_at.lock() = grant.expires_at;
        let revoked = self.entry.is_revoked(self.id, &self.sessions.shared.table.lock().revocations);
        if revoked { Err(CloseReason::Revoked) } else { Ok(()) }
    }

    /// What is due in the session. It allocates nothing, because it is polled with each delivery.
    pub(in crate::downstream::server) fn poll_due(&mut self, context: &mut Context<'_>) -> Poll<AccessMessage> {
        self.entry.waker.register(context.waker());
        if let Some(reason) = self.entry.closing.get() {
            return Poll::Ready(AccessMessage::Close(*reason));
        }
        loop {
            ready!(self.timer.as_mut().poll(context));
            if let Some(message) = self.lifetime.poll(clock::now()) {
                return Poll::Ready(message);
            }
            self.reset_timer();
        }
    }

    fn reset_timer(&mut self) {
        let due = self.lifetime.poll_timeout();
        self.timer.as_mut().reset(tokio::time::Instant::from_std(due));
    }
}

/// Waits for what is due in a session; without a session it never ends. Cancel-safe.
pub(in crate::downstream::server) async fn due(session: &mut Option<Box<ConsumerSession>>) -> AccessMessage {
    poll_fn(|context| match session {
        Some(session) => session.poll_due(context),
        None => Poll::Pending,
    })
    .await
}
