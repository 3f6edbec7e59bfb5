//! Which sessions and subjects are revoked.

use std::collections::BTreeMap;

use crate::model::{RevocationTarget, Timestamp};

/// The revocations that a replica has read from the store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revocations {
    targets: BTreeMap<RevocationTarget, Timestamp>,
}

impl Revocations {
    /// Adds a revocation. The later of two times for one target counts. Returns whether this changes anything.
    pub fn add(&mut self, target: RevocationTarget, at: Timestamp) -> bool {
        let known = self.targets.insert(target.clone(), at);
        let is_later = known.is_none_or(|known| known < at);
        if let Some(known) = known.filter(|_| !is_later) {
            self.targets.insert(target, known);
        }
        is_later
    }

    /// Whether the session is ended, or the tokens of its subject that were issued at this time are refused. A token
    /// without an issue time counts as issued before every revocation.
    pub fn is_revoked(&self, session: &str, subject: &str, issued_at: Option<Timestamp>) -> bool {
        self.targets.contains_key(&RevocationTarget::Session(session.to_owned()))
            || self.is_subject_revoked(subject, issued_at)
    }

    /// Whether the tokens of a subject that were issued at this time are refused.
    pub fn is_subject_revoked(&self, subject: &str, issued_at: Option<Timestamp>) -> bool {
        let revoked = self.targets.get(&RevocationTarget::Subject(subject.to_owned()));
        revoked.is_some_and(|revoked| issued_at.is_none_or(|issued| issued <= *revoked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_refused_up_to_its_time_and_a_session_for_good() {
        let mut revocations = Revocations::default();
        let subject = || RevocationTarget::Subject("a".to_owned());
        assert!(revocations.add(subject(), Timestamp(20)));
        assert!(!revocations.add(subject(), Timestamp(10)), "an earlier time changes nothing");
        assert!(revocations.add(RevocationTarget::Session("1".to_owned()), Timestamp(5)));
        for (session, subject, issued_at, expected) in [
            ("2", "a", Some(20), true),
            ("2", "a", Some(21), false),
            ("2", "a", None, true),
            ("2", "b", None, false),
            ("1", "b", Some(99), true),
        ] {
            let found = revocations.is_revoked(session, subject, issued_at.map(Timestamp));
            assert_eq!(found, expected, "{session} {subject} {issued_at:?}");
        }
    }
}
