//! Memberships: which replicas are alive, and the health of their streams.

use std::collections::BTreeMap;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use crate::{
    model::StreamName,
    protocol::lease::Member,
    store::redis::{keys::key, lease_row::parse_replica, unreadable::quoted},
};

/// A live replica and the health of its streams. A membership names at most `UNHEALTHY_MAX` streams of each kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    pub member: Member,
    /// Streams with a session on that replica that are not live.
    pub unhealthy_streams: Vec<StreamName>,
    /// Streams that are live there without all configured topics.
    pub degraded: Vec<StreamName>,
    /// Streams that the replica owns and whose logs cannot be used, with the reason.
    pub failed: BTreeMap<StreamName, String>,
}

/// The health of a replica's streams, as its membership reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HealthReport {
    /// Streams that are not live.
    pub unhealthy_streams: Vec<StreamName>,
    /// Streams that are live without all configured topics.
    pub degraded: Vec<StreamName>,
    /// Streams whose logs cannot be used, with the reason.
    pub failed: BTreeMap<StreamName, String>,
}

/// The live replicas that one renewal found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemberList {
    pub members: Vec<MemberStatus>,
    /// Memberships that this version cannot read, each with its key and value. Their replicas are not counted.
    pub unreadable: Vec<String>,
}

/// Prefix of a degraded stream's name. Stream names never begin with it, so older versions skip the entry.
const DEGRADED_MARK: char = '~';

/// Prefix of a failed stream's name, which the reason follows. Older versions skip the entry and find the stream among
/// the unhealthy ones.
const FAILED_MARK: char = '!';

/// Characters of a reason that a membership carries.
const REASON_LEN_MAX: usize = 400;

/// The characters that separate the parts of a membership, and the escape itself.
const SEPARATORS: &AsciiSet = &CONTROLS.add(b' ').add(b',').add(b'%');

/// Streams of each kind that a membership names.
const UNHEALTHY_MAX: usize = 64;

/// The key of the set of replicas, and the prefix of the memberships' keys.
pub(super) fn member_keys(prefix: &str) -> (String, String) {
    (key(prefix, "replicas", "known"), key(prefix, "replicas", "lives:"))
}

impl MemberList {
    /// Reads pairs of replica and membership from keys that begin with `key`.
    pub(super) fn read(answer: &[(String, String)], key: &str) -> Self {
        let mut list = Self::default();
        for (replica, membership) in answer {
            match parse_member(replica, membership) {
                Some(member) => list.members.push(member),
                None => list.unreadable.push(unreadable_member(key, replica, membership)),
            }
        }
        list
    }
}

fn unreadable_member(key: &str, replica: &str, membership: &str) -> String {
    format!(
        "{key}{} has the value {}; expected the membership of a replica of this version: its limit and its unhealthy streams",
        quoted(replica),
        quoted(membership)
    )
}

/// A member by its id and the value of its membership; none when this version cannot read it.
pub(super) fn parse_member(id: &str, membership: &str) -> Option<MemberStatus> {
    let mut words = membership.split(' ');
    let (limit, streams) = (words.next()?, words.next()?);
    let member = Member { replica: parse_replica(id)?, limit: limit.parse().ok()? };
    let degraded = streams.split(',').filter_map(|name| name.strip_prefix(DEGRADED_MARK)?.parse().ok()).collect();
    let failed = streams.split(',').filter_map(|entry| parse_failed(entry.strip_prefix(FAILED_MARK)?)).collect();
    let unhealthy_streams = streams.split(',').filter_map(|name| name.parse().ok()).collect();
    Some(MemberStatus { member, unhealthy_streams, degraded, failed })
}

/// A health report as one word of a membership.
pub(super) fn encode_health(HealthReport { unhealthy_streams, degraded, failed }: &HealthReport) -> String {
    let unhealthy = unhealthy_streams.iter().take(UNHEALTHY_MAX).map(ToString::to_string);
    let degraded = degraded.iter().take(UNHEALTHY_MAX).map(|stream| format!("{DEGRADED_MARK}{stream}"));
    let failed =
        failed.iter().take(UNHEALTHY_MAX).map(|(stream, why)| format!("{FAILED_MARK}{stream}={}", escaped(why)));
    unhealthy.chain(degraded).chain(failed).collect::<Vec<_>>().join(",")
}

fn parse_failed(entry: &str) -> Option<(StreamName, String)> {
    let (stream, why) = entry.split_once('=')?;
    Some((stream.parse().ok()?, percent_decode_str(why).decode_utf8_lossy().into_owned()))
}

/// The start of the text as one word without commas.
fn escaped(text: &str) -> String {
    let end = text.char_indices().nth(REASON_LEN_MAX).map_or(text.len(), |(at, _)| at);
    utf8_percent_encode(&text[..end], SEPARATORS).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ReplicaId;

    #[test]
    fn a_membership_names_its_unhealthy_streams() {
        let member = Member { replica: ReplicaId(42), limit: 9 };
        let unhealthy_streams = vec!["queues".parse().unwrap(), "agents".parse().unwrap()];
        let degraded = vec!["calls".parse().unwrap()];
        let failed = BTreeMap::new();
        let status = MemberStatus { member, unhealthy_streams, degraded, failed: failed.clone() };
        assert_eq!(parse_member("2a", "9 queues,agents,~calls written,1,2,3"), Some(status));
        assert_eq!(
            parse_member("2a", "9 "),
            Some(MemberStatus { member, unhealthy_streams: Vec::new(), degraded: Vec::new(), failed })
        );
        assert_eq!(parse_member("2a", "nine "), None);
    }

    #[test]
    fn a_stream_that_fails_is_reported_with_its_reason() {
        let (queues, calls): (StreamName, StreamName) = ("queues".parse().unwrap(), "calls".parse().unwrap());
        let why = "{trunkline:queues}:log has \"a, b\": 100%\u{1b}[31m é";
        let failed = BTreeMap::from([(queues.clone(), why.to_owned()), (calls, String::new())]);
        let health =
            HealthReport { unhealthy_streams: vec![queues.clone()], failed: failed.clone(), ..HealthReport::default() };
        let membership = format!("9 {} written,1,2,3", encode_health(&health));
        assert_eq!(membership.split(' ').count(), 3, "it is one word: {membership}");
        let status = parse_member("2a", &membership).unwrap();
        assert_eq!((status.failed, status.unhealthy_streams), (failed, vec![queues]));
        for odd in ["9 !", "9 !queues", "9 !=x", "9 !a b=x"] {
            assert!(parse_member("2a", odd).is_some_and(|status| status.failed.is_empty()), "{odd}");
        }
        let odd = parse_member("2a", "9 !queues=a%2cb%zz%2").unwrap();
        assert_eq!(odd.failed.values().collect::<Vec<_>>(), ["a,b%zz%2"]);
    }

    #[test]
    fn a_membership_that_cannot_be_read_is_named_and_the_others_count() {
        let answer = |pairs: &[(&str, &str)]| {
            let owned = pairs.iter().map(|(id, value)| ((*id).to_owned(), (*value).to_owned()));
            MemberList::read(&owned.collect::<Vec<_>>(), "lives:")
        };
        let later = "{\"v\":2,\"limit\":9}";
        for membership in [later, "", " ", "nine queues", "99999999999999999999999 queues", "\u{1b}[31m", "v2 9 queues"]
        {
            let MemberList { members, unreadable } =
                answer(&[("1b", membership), ("2a", "9 queues,agents written,1,2,3 more")]);
            assert_eq!(members.len(), 1, "{membership:?}");
            assert_eq!(members[0].member, Member { replica: ReplicaId(0x2a), limit: 9 });
            assert_eq!(unreadable.len(), 1, "{membership:?}");
            assert!(unreadable[0].starts_with("lives:") && !unreadable[0].contains('\u{1b}'), "{unreadable:?}");
        }
        assert_eq!(answer(&[("xyz", "9 queues")]).unreadable.len(), 1, "no id of a replica");
    }
}
