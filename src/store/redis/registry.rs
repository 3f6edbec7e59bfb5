//! Which replicas live, which of them has which stream, and what they say to one another.
//!
//! A stream's record stands in the head of its log, so that the fence that changes hands is the one that appends are
//! compared with. Words go over pub/sub: one that is lost costs time, never an event.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::try_join_all;
use redis::{Value, cmd};

use super::{
    connection::{CommandError, LuaScript, PubSubListener, RedisConnection},
    head,
    keys::{LogKeys, key},
    shared_settings::SharedSettings,
};
use crate::{
    model::{Fence, ReplicaId, StreamName},
    protocol::lease::{LeaseRecord, Member, PeerMessage},
};

/// What one replica sees of all.
#[derive(Debug)]
pub struct Registry {
    connection: RedisConnection,
    prefix: String,
    me: ReplicaId,
    terms: SharedSettings,
    renew: LuaScript,
    leave: LuaScript,
    change: LuaScript,
}

/// A replica that lives, and what it says of its streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    pub member: Member,
    /// Streams that it keeps and that are not live there: as many as it could say.
    pub unhealthy_streams: Vec<StreamName>,
    /// Streams that are live there and do not hear all that is configured: as many as it could say.
    pub degraded: Vec<StreamName>,
    /// Streams that it owns and whose logs cannot be used, and why: as many as it could report.
    pub failed: BTreeMap<StreamName, String>,
}

/// What a replica reports of its streams.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HealthReport {
    /// Not live.
    pub unhealthy_streams: Vec<StreamName>,
    /// Live, without all that is configured.
    pub degraded: Vec<StreamName>,
    /// Their logs cannot be used.
    pub failed: BTreeMap<StreamName, String>,
}

/// The replicas that live, as one renewal found them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemberList {
    pub members: Vec<MemberStatus>,
    /// Memberships that this version cannot read, each with its key and what it says. Their replicas are not counted.
    pub unreadable: Vec<String>,
}

/// Who has which stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaseRecords {
    pub records: BTreeMap<StreamName, LeaseRecord>,
    /// Streams whose record cannot be read, and why.
    pub unreadable: BTreeMap<StreamName, String>,
}

/// What a head holds of its stream's owner.
#[derive(Debug, PartialEq, Eq)]
enum HeadRecord {
    Record(LeaseRecord),
    /// Nobody ever had the stream.
    Absent,
    Unreadable(String),
}

/// Of a head, where it states one: a version that writes what this one would misread states another.
const FORMAT: &str = "1";

/// What is shown of a value that cannot be read.
const SHOWN_LEN_MAX: usize = 120;

/// Stands before the name of a degraded stream. No name begins so: a replica that does not know of it passes over it.
const DEGRADED_MARK: char = '~';

/// Stands before the name of a stream whose log cannot be used; the reason follows. A replica that does not know of it
/// passes over it, too: the stream is also named as one that is not live.
const FAILED_MARK: char = '!';

/// Of a reason so many characters are reported.
const REASON_LEN_MAX: usize = 400;

/// So many ailing streams are named.
const UNHEALTHY_MAX: usize = 64;

/// Something that a replica says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutgoingMessage {
    /// To all: it lives.
    Heartbeat,
    /// To one.
    Direct { to: ReplicaId, note: PeerMessage },
}

/// What was heard, and from whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IncomingMessage {
    Heartbeat { from: ReplicaId },
    Direct { from: ReplicaId, note: PeerMessage },
}

/// A record as it stands in a head: number, nonce, holder.
pub(super) type LeaseRow = (Option<String>, Option<String>, Option<String>);

impl Registry {
    /// What `me` sees over this connection, and what it goes by. It should be one that no append holds up.
    pub fn new(connection: RedisConnection, prefix: &str, me: ReplicaId, terms: SharedSettings) -> Self {
        Self {
            connection,
            prefix: prefix.to_owned(),
            me,
            terms,
            renew: LuaScript::new(include_str!("scripts/replica_renew.lua")),
            leave: LuaScript::new(include_str!("scripts/replica_leave.lua")),
            change: LuaScript::new(include_str!("scripts/change.lua")),
        }
    }

    /// Lives on for `life`, and says how many streams it takes at most and what ails its streams. Returns
    /// all that live, itself among them, and the memberships that cannot be read.
    pub async fn renew(
        &self,
        limit: usize,
        health: &HealthReport,
        lifetime: Duration,
    ) -> Result<MemberList, CommandError> {
        let ((known, mine), (_, members)) = (self.membership(), memberships(&self.prefix));
        let (me, says) = (self.me.to_string(), format!("{limit} {} {}", encode_health(health), self.terms));
        let life = lifetime.as_millis().to_string();
        let arguments = [me.as_bytes(), says.as_bytes(), life.as_bytes(), members.as_bytes()];
        let answer: Vec<(String, String)> = match self.connection.call(&self.renew, &[&known, &mine], &arguments).await
        {
            Err(CommandError::Refused { code, .. }) if code == "WRONGTYPE" => {
                return Err(CommandError::Refused { code, text: self.describe_wrong_type(&known).await });
            }
            answer => answer?,
        };
        Ok(MemberList::read(&answer, &memberships(&self.prefix).1))
    }

    /// What is wrong with the key that should hold the replicas that are known.
    async fn describe_wrong_type(&self, known: &str) -> String {
        let found: Result<String, _> = self.connection.run(cmd("TYPE").arg(known)).await;
        let found = found.unwrap_or_else(|_| "value of another type".to_owned());
        format!(
            "{known} holds a {found}, expected a set of replicas: nothing is appended to any stream; move or remove that \
             key (DEL {known}), and the replicas enter themselves again"
        )
    }

    /// It lives no longer.
    pub async fn leave(&self) -> Result<(), CommandError> {
        let (known, mine) = self.membership();
        let me = self.me.to_string();
        self.connection.call::<u64>(&self.leave, &[&known, &mine], &[me.as_bytes()]).await.map(drop)
    }

    /// The records that there are of these streams.
    pub async fn records(&self, streams: &[StreamName]) -> Result<LeaseRecords, CommandError> {
        let found = try_join_all(streams.iter().map(|stream| self.record(stream))).await?;
        let mut records = LeaseRecords::default();
        for (stream, found) in streams.iter().cloned().zip(found) {
            match found {
                HeadRecord::Record(record) => drop(records.records.insert(stream, record)),
                HeadRecord::Absent => (),
                HeadRecord::Unreadable(why) => drop(records.unreadable.insert(stream, why)),
            }
        }
        Ok(records)
    }

    async fn record(&self, stream: &StreamName) -> Result<HeadRecord, CommandError> {
        let head = LogKeys::of(&self.prefix, stream).head;
        let row: Result<Value, CommandError> =
            self.connection.run(cmd("HMGET").arg(&head).arg(&["format", "number", "nonce", "holder"])).await;
        match row.map(|row| redis::from_redis_value::<(Option<String>, _, _, _)>(row).ok()) {
            Ok(Some((Some(format), ..))) if format != FORMAT => {
                Ok(HeadRecord::Unreadable(later_format(&head, &format)))
            }
            Ok(row) => Ok(HeadRecord::read(&head, row.map(|(_, number, nonce, holder)| (number, nonce, holder)))),
            Err(CommandError::Refused { code, .. }) if code == "WRONGTYPE" => {
                Ok(HeadRecord::Unreadable(wrong_type(&head)))
            }
            Err(error) => Err(error),
        }
    }

    /// Sets a record if its fence is the one expected (none: if nobody ever had the stream). Whether that was done.
    pub async fn change(
        &self,
        stream: &StreamName,
        expected: Option<Fence>,
        record: LeaseRecord,
    ) -> Result<bool, CommandError> {
        let head = LogKeys::of(&self.prefix, stream).head;
        let (number, nonce) = expected.map(fence_texts).unwrap_or_default();
        let (number_next, nonce_next) = fence_texts(record.fence);
        let holder = record.holder.map(|holder| holder.to_string()).unwrap_or_default();
        let arguments = [&number, &nonce, &number_next, &nonce_next, &holder].map(String::as_bytes);
        self.connection.call(&self.change, &[&head], &arguments).await
    }

    /// Says something.
    pub async fn publish(&self, message: &OutgoingMessage) -> Result<(), CommandError> {
        let (channel, text) = match message {
            OutgoingMessage::Heartbeat => (self.heartbeat_channel(), self.me.to_string()),
            OutgoingMessage::Direct { to, note } => {
                (self.direct_channel(*to), format!("{} {}", self.me, encode_message(note)))
            }
        };
        self.connection.run::<u64>(cmd("PUBLISH").arg(channel).arg(text)).await.map(drop)
    }

    /// Hears what others say to all, and to this one.
    pub async fn listen(&self) -> Result<PeerSubscription, CommandError> {
        let (beats, notes) = (self.heartbeat_channel(), self.direct_channel(self.me));
        let listener = self.connection.listen(&[&beats, &notes]).await?;
        Ok(PeerSubscription { listener, me: self.me, heartbeat_channel: beats })
    }

    fn membership(&self) -> (String, String) {
        let (known, lives) = memberships(&self.prefix);
        (known, format!("{lives}{}", self.me))
    }

    fn heartbeat_channel(&self) -> String {
        format!("{}:replicas:beats", self.prefix)
    }

    fn direct_channel(&self, to: ReplicaId) -> String {
        format!("{}:replicas:notes:{to}", self.prefix)
    }
}

/// Where the replicas are that were seen, and what the keys of their memberships begin with.
pub(super) fn memberships(prefix: &str) -> (String, String) {
    (key(prefix, "replicas", "known"), key(prefix, "replicas", "lives:"))
}

impl MemberList {
    fn read(answer: &[(String, String)], key: &str) -> Self {
        let mut members = Self::default();
        for (replica, says) in answer {
            match parse_member(replica, says) {
                Some(life) => members.members.push(life),
                None => members.unreadable.push(unreadable_member(key, replica, says)),
            }
        }
        members
    }
}

impl HeadRecord {
    fn read(head: &str, row: Option<LeaseRow>) -> Self {
        match row {
            Some((None, None, _)) => Self::Absent,
            Some(row) => record(&row).map_or_else(|| Self::Unreadable(unreadable_record(head, &row)), Self::Record),
            None => Self::Unreadable(format!("{head}: number, nonce or holder is no text; {REPAIR_HINT}")),
        }
    }
}

/// What an operator can do about a key that cannot be read. The product never removes what it did not write.
pub(super) const REPAIR_HINT: &str =
    "mend or remove that key (whoever wrote it may need it); the stream goes on by itself then";

/// What is wrong with a head that is no hash.
pub(super) fn wrong_type(key: &str) -> String {
    format!(
        "{key} is of another type than the stream's data (expected a hash for a head, a stream for a log); {REPAIR_HINT}"
    )
}

/// What is wrong with a head that states another format.
pub(super) fn later_format(head: &str, format: &str) -> String {
    format!(
        "{head} has the format {}, and this version reads {FORMAT}: the stream is left to replicas of a later version",
        quoted(format)
    )
}

fn unreadable_record(head: &str, row: &LeaseRow) -> String {
    let (number, nonce, holder) = row;
    let shown = |text: &Option<String>| text.as_deref().map_or_else(|| "nothing".to_owned(), quoted);
    format!(
        "{head}: expected a number, a nonce and a holder in hexadecimal, found number {}, nonce {}, holder {}; {REPAIR_HINT}",
        shown(number),
        shown(nonce),
        shown(holder)
    )
}

fn unreadable_member(key: &str, replica: &str, says: &str) -> String {
    format!(
        "{key}{} says {}; expected what a replica of this version says: its limit and its streams that are not live",
        quoted(replica),
        quoted(says)
    )
}

/// The beginning of a value, escaped.
pub(super) fn quoted(text: &str) -> String {
    let short: String = text.chars().take(SHOWN_LEN_MAX).collect();
    format!("{short:?}")
}

/// What replicas say.
#[derive(Debug)]
pub struct PeerSubscription {
    listener: PubSubListener,
    me: ReplicaId,
    heartbeat_channel: String,
}

impl PeerSubscription {
    /// What was said next by another replica. None when the connection is lost.
    pub async fn next(&mut self) -> Option<IncomingMessage> {
        loop {
            let (channel, bytes) = self.listener.next().await?;
            let text = String::from_utf8_lossy(&bytes);
            match parse_message(channel == self.heartbeat_channel, &text) {
                Some(IncomingMessage::Heartbeat { from } | IncomingMessage::Direct { from, .. }) if from == self.me => {
                }
                Some(heard) => return Some(heard),
                None => tracing::debug!(channel, "a word that nobody understands"),
            }
        }
    }
}

pub(super) fn parse_message(is_beat: bool, text: &str) -> Option<IncomingMessage> {
    if is_beat {
        return Some(IncomingMessage::Heartbeat { from: replica(text)? });
    }
    let (from, note) = text.split_once(' ')?;
    Some(IncomingMessage::Direct { from: replica(from)?, note: decode_message(note)? })
}

fn encode_message(note: &PeerMessage) -> String {
    match note {
        PeerMessage::RequestHandover { stream } => format!("ask {stream}"),
        PeerMessage::Ready { stream } => format!("ready {stream}"),
        PeerMessage::HandedOver { stream, fence } => format!("given {stream} {fence}"),
    }
}

fn decode_message(text: &str) -> Option<PeerMessage> {
    let words: Vec<&str> = text.split(' ').collect();
    match words[..] {
        ["ask", stream] => Some(PeerMessage::RequestHandover { stream: stream.parse().ok()? }),
        ["ready", stream] => Some(PeerMessage::Ready { stream: stream.parse().ok()? }),
        ["given", stream, fence] => {
            let (number, nonce) = fence.split_once('-')?;
            Some(PeerMessage::HandedOver { stream: stream.parse().ok()?, fence: read_fence(number, nonce)? })
        }
        _ => None,
    }
}

pub(super) fn parse_member(id: &str, says: &str) -> Option<MemberStatus> {
    let mut words = says.split(' ');
    let (limit, ailing) = (words.next()?, words.next()?);
    let member = Member { replica: replica(id)?, limit: limit.parse().ok()? };
    let degraded = ailing.split(',').filter_map(|name| name.strip_prefix(DEGRADED_MARK)?.parse().ok()).collect();
    let failed = ailing.split(',').filter_map(|entry| parse_failed(entry.strip_prefix(FAILED_MARK)?)).collect();
    let ailing = ailing.split(',').filter_map(|name| name.parse().ok()).collect();
    Some(MemberStatus { member, unhealthy_streams: ailing, degraded, failed })
}

fn encode_health(HealthReport { unhealthy_streams: ailing, degraded, failed }: &HealthReport) -> String {
    let ailing = ailing.iter().take(UNHEALTHY_MAX).map(ToString::to_string);
    let degraded = degraded.iter().take(UNHEALTHY_MAX).map(|stream| format!("{DEGRADED_MARK}{stream}"));
    let failed =
        failed.iter().take(UNHEALTHY_MAX).map(|(stream, why)| format!("{FAILED_MARK}{stream}={}", escaped(why)));
    ailing.chain(degraded).chain(failed).collect::<Vec<_>>().join(",")
}

fn parse_failed(entry: &str) -> Option<(StreamName, String)> {
    let (stream, why) = entry.split_once('=')?;
    Some((stream.parse().ok()?, unescaped(why)))
}

/// A text as a word without blanks and commas.
fn escaped(text: &str) -> String {
    let mut word = String::new();
    for character in text.chars().take(REASON_LEN_MAX) {
        match character {
            ' ' | ',' | '%' | '\0'..='\x1f' | '\x7f' => word.push_str(&format!("%{:02x}", u32::from(character))),
            other => word.push(other),
        }
    }
    word
}

fn unescaped(word: &str) -> String {
    let mut parts = word.split('%');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        text.extend(code.map(char::from));
        text.push_str(part.get(2..).unwrap_or_default());
    }
    text
}

pub(super) fn record((number, nonce, holder): &LeaseRow) -> Option<LeaseRecord> {
    let holder = match holder.as_deref() {
        None | Some("") => None,
        Some(text) => Some(replica(text)?),
    };
    let (number, nonce) = (number.as_deref()?, nonce.as_deref()?);
    let fence = read_fence(number, nonce).filter(|fence| is_canonical(*fence, number, nonce))?;
    Some(LeaseRecord { holder, fence })
}

fn replica(text: &str) -> Option<ReplicaId> {
    u64::from_str_radix(text, 16).ok().map(ReplicaId)
}

fn read_fence(number: &str, nonce: &str) -> Option<Fence> {
    Some(Fence { number: head::parse_count(number)?, nonce: u128::from_str_radix(nonce, 16).ok()? })
}

/// In the form that scripts and appends compare: another one would be refused again and again.
fn is_canonical(fence: Fence, number: &str, nonce: &str) -> bool {
    let (expected_number, expected_nonce) = fence_texts(fence);
    number == expected_number && nonce == expected_nonce
}

fn fence_texts(fence: Fence) -> (String, String) {
    (fence.number.to_string(), format!("{:032x}", fence.nonce))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: &str = "000000000000000000000000000000ff";

    #[test]
    fn a_message_round_trips() {
        let fence = Fence { number: 7, nonce: 0xabc };
        let stream: StreamName = "queues".parse().unwrap();
        for note in [
            PeerMessage::RequestHandover { stream: stream.clone() },
            PeerMessage::Ready { stream: stream.clone() },
            PeerMessage::HandedOver { stream, fence },
        ] {
            let text = format!("{} {}", ReplicaId(0x2a), encode_message(&note));
            assert_eq!(parse_message(false, &text), Some(IncomingMessage::Direct { from: ReplicaId(0x2a), note }));
        }
        assert_eq!(parse_message(true, "000000000000002a"), Some(IncomingMessage::Heartbeat { from: ReplicaId(0x2a) }));
    }

    #[test]
    fn an_invalid_message_is_ignored() {
        for text in ["", "2a", "2a ask", "x ask queues", "2a given queues 7", "2a given queues 7-x", "2a ask a b"] {
            assert_eq!(parse_message(false, text), None, "{text}");
        }
        assert_eq!(parse_message(true, "x"), None);
    }

    #[test]
    fn a_membership_names_its_unhealthy_streams() {
        let member = Member { replica: ReplicaId(42), limit: 9 };
        let ailing = vec!["queues".parse().unwrap(), "agents".parse().unwrap()];
        let degraded = vec!["calls".parse().unwrap()];
        let failed = BTreeMap::new();
        let life = MemberStatus { member, unhealthy_streams: ailing, degraded, failed: failed.clone() };
        assert_eq!(parse_member("2a", "9 queues,agents,~calls written,1,2,3"), Some(life));
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
        let ails =
            HealthReport { unhealthy_streams: vec![queues.clone()], failed: failed.clone(), ..HealthReport::default() };
        let says = format!("9 {} written,1,2,3", encode_health(&ails));
        assert_eq!(says.split(' ').count(), 3, "it is one word: {says}");
        let life = parse_member("2a", &says).unwrap();
        assert_eq!((life.failed, life.unhealthy_streams), (failed, vec![queues]));
        for odd in ["9 !", "9 !queues", "9 !=x", "9 !a b=x"] {
            assert!(parse_member("2a", odd).is_some_and(|life| life.failed.is_empty()), "{odd}");
        }
        assert_eq!(unescaped("a%2cb%zz%2"), "a,b");
    }

    #[test]
    fn a_membership_that_cannot_be_read_is_named_and_the_others_count() {
        let answer = |pairs: &[(&str, &str)]| {
            let owned = pairs.iter().map(|(id, says)| ((*id).to_owned(), (*says).to_owned()));
            MemberList::read(&owned.collect::<Vec<_>>(), "lives:")
        };
        let later = "{\"v\":2,\"limit\":9}";
        for says in [later, "", " ", "nine queues", "99999999999999999999999 queues", "\u{1b}[31m", "v2 9 queues"] {
            let MemberList { members: lives, unreadable } =
                answer(&[("1b", says), ("2a", "9 queues,agents written,1,2,3 more")]);
            assert_eq!(lives.len(), 1, "{says:?}");
            assert_eq!(lives[0].member, Member { replica: ReplicaId(0x2a), limit: 9 });
            assert_eq!(unreadable.len(), 1, "{says:?}");
            assert!(unreadable[0].starts_with("lives:") && !unreadable[0].contains('\u{1b}'), "{unreadable:?}");
        }
        assert_eq!(answer(&[("nobody", "9 queues")]).unreadable.len(), 1, "no id of a replica");
    }

    #[test]
    fn an_unreadable_record_is_reported_with_its_key() {
        let text = |text: &str| Some(text.to_owned());
        for row in [
            (text("x"), text("ff"), None),
            (text("18446744073709551616"), text("ff"), None),
            (text("18446744073709551615"), text("ff"), text("2a")),
            (text("9007199254740993"), text("ff"), text("2a")),
            (None, text("ff"), None),
            (text("4"), None, text("2a")),
            (text("4"), text(NONCE), text("nobody")),
            (text("04"), text(NONCE), text("2a")),
            (text("4"), text("ff"), text("2a")),
            (text("4"), text(&NONCE.to_uppercase()), text("2a")),
        ] {
            let HeadRecord::Unreadable(why) = HeadRecord::read("head", Some(row.clone())) else { panic!("{row:?}") };
            assert!(why.starts_with("head: ") && why.contains("found number"), "{why}");
        }
        assert_eq!(HeadRecord::read("head", Some((None, None, text("2a")))), HeadRecord::Absent);
    }

    #[test]
    fn a_record_may_have_no_holder() {
        let row = |holder: Option<&str>| (Some("4".to_owned()), Some(NONCE.to_owned()), holder.map(str::to_owned));
        let fence = Fence { number: 4, nonce: 255 };
        assert_eq!(record(&row(None)), Some(LeaseRecord { holder: None, fence }));
        assert_eq!(record(&row(Some(""))), Some(LeaseRecord { holder: None, fence }));
        assert_eq!(record(&row(Some("2a"))), Some(LeaseRecord { holder: Some(ReplicaId(42)), fence }));
        assert_eq!(record(&row(Some("nobody"))), None);
    }
}
