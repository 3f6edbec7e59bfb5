//! The lifetime of a consumer's session: the warning before its token expires, renewal, idle time, and its end.

use std::time::{Duration, Instant};

use crate::model::labels::labels;

/// The warning is sent this long before the token expires.
const WARNING_LEAD: Duration = Duration::from_secs(300);
/// A token that lives shorter than [`WARNING_LEAD`] has its warning when this part of its life is left.
const WARNING_PART: u32 = 10;

labels! {
    /// Why the daemon ends a consumer's session: the reason in a close frame with code 1008.
    pub enum CloseReason {
        /// The token expired and was not renewed.
        TokenExpired = "token_expired",
        /// The token of an authentication or renewal is invalid, or does not cover the streams of the session.
        TokenInvalid = "token_invalid",
        /// An operator ended the session, or refused its subject.
        Revoked = "revoked",
        /// No token arrived in time after an upgrade without credentials.
        AuthTimeout = "auth_timeout",
        /// A renewal had a token of another subject.
        SubjectChanged = "subject_changed",
        /// A limit of the subject is reached.
        Limit = "limit",
        /// A newer connection reads for the same durable consumer.
        Superseded = "superseded",
        /// No activity for `idle_max`.
        Idle = "idle",
    }
}

/// A due action of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessMessage {
    /// The token expires in this time. Sent once for each token.
    Expiring(Duration),
    Close(CloseReason),
}

/// A verified token of a renewal, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewal<'a> {
    pub subject: &'a str,
    /// The remaining time of the new token.
    pub remaining: Duration,
    /// Whether it covers every stream that the session reads.
    pub covers_streams: bool,
}

/// The lifetime of one session.
#[derive(Debug, Clone)]
pub struct AccessLifetime {
    subject: String,
    expires_at: Instant,
    /// None after the warning.
    warn_at: Option<Instant>,
    idle: Option<IdleLimit>,
}

#[derive(Debug, Clone, Copy)]
struct IdleLimit {
    max: Duration,
    last_activity: Instant,
}

impl AccessLifetime {
    /// A session that starts with a verified token. `idle_max`: none for a session that may be idle.
    pub fn new(subject: String, remaining: Duration, idle_max: Option<Duration>, now: Instant) -> Self {
        let idle = idle_max.map(|max| IdleLimit { max, last_activity: now });
        let mut lifetime = Self { subject, expires_at: now, warn_at: None, idle };
        lifetime.extend(remaining, now);
        lifetime
    }

    /// The subject of the session's tokens.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The remaining time of the token.
    pub fn remaining(&self, now: Instant) -> Duration {
        self.expires_at.saturating_duration_since(now)
    }

    /// The client sent a message, or received an event. Pings and keep-alives are no activity.
    pub fn record_activity(&mut self, now: Instant) {
        if let Some(idle) = &mut self.idle {
            idle.last_activity = now;
        }
    }

    /// The client renews its token.
    ///
    /// # Errors
    /// The session must end for this reason.
    pub fn renew(&mut self, renewal: Renewal<'_>, now: Instant) -> Result<(), CloseReason> {
        if renewal.subject != self.subject {
            return Err(CloseReason::SubjectChanged);
        }
        if !renewal.covers_streams {
            return Err(CloseReason::TokenInvalid);
        }
        self.record_activity(now);
        self.extend(renewal.remaining, now);
        Ok(())
    }

    fn extend(&mut self, remaining: Duration, now: Instant) {
        let lead = if remaining > WARNING_LEAD { WARNING_LEAD } else { remaining / WARNING_PART };
        self.expires_at = now + remaining;
        self.warn_at = Some(now + (remaining - lead));
    }

    /// When [`AccessLifetime::poll`] has something to return.
    pub fn poll_timeout(&self) -> Instant {
        let idle_at = self.idle.map(IdleLimit::ends_at);
        [self.warn_at, idle_at].into_iter().flatten().fold(self.expires_at, Instant::min)
    }

    /// The action that is due now.
    pub fn poll(&mut self, now: Instant) -> Option<AccessMessage> {
        if self.expires_at <= now {
            return Some(AccessMessage::Close(CloseReason::TokenExpired));
        }
        if self.idle.is_some_and(|idle| idle.ends_at() <= now) {
            return Some(AccessMessage::Close(CloseReason::Idle));
        }
        self.warn_at.take_if(|at| *at <= now).map(|_| AccessMessage::Expiring(self.remaining(now)))
    }
}

impl IdleLimit {
    fn ends_at(self) -> Instant {
        self.last_activity + self.max
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some moment to start from")]
mod tests {
    use super::*;

    const fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    /// Runs a session until it ends, and returns what was due, with the time since its start.
    fn messages(lifetime: &mut AccessLifetime, start: Instant) -> Vec<(u64, AccessMessage)> {
        let mut found = Vec::new();
        while found.len() < 10 {
            let now = lifetime.poll_timeout();
            let message = lifetime.poll(now).expect("it is due");
            found.push((now.duration_since(start).as_secs(), message));
            if matches!(message, AccessMessage::Close(_)) {
                break;
            }
        }
        found
    }

    #[test]
    fn a_session_is_warned_once_and_ends_with_its_token() {
        let expired = AccessMessage::Close(CloseReason::TokenExpired);
        for (remaining, warned_at, lead) in [(3600, 3300, 300), (301, 1, 300), (300, 270, 30), (10, 9, 1)] {
            let start = Instant::now();
            let mut lifetime = AccessLifetime::new("a".to_owned(), seconds(remaining), None, start);
            let expected = [(warned_at, AccessMessage::Expiring(seconds(lead))), (remaining, expired)];
            assert_eq!(messages(&mut lifetime, start), expected, "{remaining}");
        }
    }

    #[test]
    fn an_expired_token_ends_the_session_without_a_warning() {
        let start = Instant::now();
        let mut lifetime = AccessLifetime::new("a".to_owned(), Duration::ZERO, None, start);
        assert_eq!(lifetime.poll(start), Some(AccessMessage::Close(CloseReason::TokenExpired)));
    }

    #[test]
    fn a_renewal_extends_the_session_and_warns_again() {
        let start = Instant::now();
        let mut lifetime = AccessLifetime::new("a".to_owned(), seconds(600), None, start);
        assert_eq!(lifetime.poll(start + seconds(300)), Some(AccessMessage::Expiring(seconds(300))));
        let renewal = Renewal { subject: "a", remaining: seconds(600), covers_streams: true };
        assert_eq!(lifetime.renew(renewal, start + seconds(400)), Ok(()));
        assert_eq!(lifetime.poll(start + seconds(699)), None);
        assert_eq!(messages(&mut lifetime, start)[0].0, 700);
    }

    #[test]
    fn a_renewal_with_other_rights_ends_the_session() {
        let start = Instant::now();
        let mut lifetime = AccessLifetime::new("a".to_owned(), seconds(600), None, start);
        let renewal = |subject, covers_streams| Renewal { subject, remaining: seconds(9), covers_streams };
        assert_eq!(lifetime.renew(renewal("b", true), start), Err(CloseReason::SubjectChanged));
        assert_eq!(lifetime.renew(renewal("a", false), start), Err(CloseReason::TokenInvalid));
        assert_eq!(lifetime.remaining(start), seconds(600), "the former token stays");
    }

    #[test]
    fn activity_extends_an_idle_session() {
        let start = Instant::now();
        let mut lifetime = AccessLifetime::new("a".to_owned(), seconds(3600), Some(seconds(60)), start);
        lifetime.record_activity(start + seconds(50));
        assert_eq!(lifetime.poll(start + seconds(109)), None);
        assert_eq!(messages(&mut lifetime, start), [(110, AccessMessage::Close(CloseReason::Idle))]);
    }

    #[test]
    fn every_reason_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> = CloseReason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(names.len(), CloseReason::ALL.len());
    }
}
