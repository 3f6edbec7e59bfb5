//! The registry of replicas in Redis: memberships, lease records, and messages between replicas.

use std::time::Duration;

use futures_util::future::try_join_all;
use redis::{Value, cmd};

use super::{
    lease_record::{HeadRecord, LeaseRecords},
    membership::{HealthReport, MemberList, encode_health, member_keys},
    peer_message::{OutgoingMessage, PeerSubscription, direct_channel, encode_message, heartbeat_channel},
    shared_settings::SharedSettings,
};
use crate::{
    model::{Fence, ReplicaId, StreamName},
    protocol::lease::LeaseRecord,
    store::redis::{
        connection::{CommandError, LuaScript, RedisConnection},
        keys::LogKeys,
        lease_row::{CHANGE_SCRIPT, change_arguments},
        unreadable::{is_later_format, later_format, wrong_type},
    },
};

/// A new owner numbers its appends from the start.
const TURN_RESET: [&[u8]; 2] = [b"turn", b"0"];

/// One replica's access to the registry.
#[derive(Debug)]
pub struct Registry {
    connection: RedisConnection,
    prefix: String,
    me: ReplicaId,
    settings: SharedSettings,
    renew: LuaScript,
    leave: LuaScript,
    change: LuaScript,
}

impl Registry {
    /// The registry for the replica `me`, which publishes `settings` with its membership. Use a connection without
    /// appends, so that no append delays a renewal.
    pub fn new(connection: RedisConnection, prefix: &str, me: ReplicaId, settings: SharedSettings) -> Self {
        Self {
            connection,
            prefix: prefix.to_owned(),
            me,
            settings,
            renew: LuaScript::new(include_str!("scripts/replica_renew.lua")),
            leave: LuaScript::new(include_str!("scripts/replica_leave.lua")),
            change: LuaScript::new(CHANGE_SCRIPT),
        }
    }

    /// Renews this replica's membership for `lifetime`, with the most streams that it takes and their health. Returns all
    /// live replicas, this one included, and the memberships that cannot be read.
    pub async fn renew(
        &self,
        limit: usize,
        health: &HealthReport,
        lifetime: Duration,
    ) -> Result<MemberList, CommandError> {
        let ((known, mine), (_, members)) = (self.keys(), member_keys(&self.prefix));
        let (me, membership) = (self.me.to_string(), format!("{limit} {} {}", encode_health(health), self.settings));
        let lifetime = lifetime.as_millis().to_string();
        let arguments = [me.as_bytes(), membership.as_bytes(), lifetime.as_bytes(), members.as_bytes()];
        let answer: Vec<(String, String)> = match self.connection.call(&self.renew, &[&known, &mine], &arguments).await
        {
            Err(CommandError::Refused { code, .. }) if code == "WRONGTYPE" => {
                return Err(CommandError::Refused { code, text: self.describe_wrong_type(&known).await });
            }
            answer => answer?,
        };
        Ok(MemberList::read(&answer, &member_keys(&self.prefix).1))
    }

    /// The message for a set of replicas that has the wrong type.
    async fn describe_wrong_type(&self, known: &str) -> String {
        let found: Result<String, _> = self.connection.run(cmd("TYPE").arg(known)).await;
        let found = found.unwrap_or_else(|_| "value of another type".to_owned());
        format!(
            "{known} holds a {found}, expected a set of replicas: nothing is appended to any stream; move or remove that \
             key (DEL {known}), then the replicas register again"
        )
    }

    /// Ends this replica's membership.
    pub async fn leave(&self) -> Result<(), CommandError> {
        let (known, mine) = self.keys();
        let me = self.me.to_string();
        self.connection.call::<u64>(&self.leave, &[&known, &mine], &[me.as_bytes()]).await.map(drop)
    }

    /// The lease records of these streams.
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
            Ok(Some((Some(format), ..))) if is_later_format(&format) => {
                Ok(HeadRecord::Unreadable(later_format(&head, &format)))
            }
            Ok(row) => Ok(HeadRecord::read(&head, row.map(|(_, number, nonce, holder)| (number, nonce, holder)))),
            Err(CommandError::Refused { code, .. }) if code == "WRONGTYPE" => {
                Ok(HeadRecord::Unreadable(wrong_type(&head)))
            }
            Err(error) => Err(error),
        }
    }

    /// Replaces a record whose fence is the one expected (none: the stream never had an owner). Returns whether the record
    /// is the new one.
    pub async fn change(
        &self,
        stream: &StreamName,
        expected: Option<Fence>,
        record: LeaseRecord,
    ) -> Result<bool, CommandError> {
        let head = LogKeys::of(&self.prefix, stream).head;
        let texts = change_arguments(expected, &record);
        let arguments: Vec<&[u8]> = texts.iter().map(String::as_bytes).chain(TURN_RESET).collect();
        self.connection.call(&self.change, &[&head], &arguments).await
    }

    /// Publishes a message.
    pub async fn publish(&self, message: &OutgoingMessage) -> Result<(), CommandError> {
        let (channel, text) = match message {
            OutgoingMessage::Heartbeat => (heartbeat_channel(&self.prefix), self.me.to_string()),
            OutgoingMessage::Direct { to, note } => {
                (direct_channel(&self.prefix, *to), format!("{} {}", self.me, encode_message(note)))
            }
        };
        self.connection.run::<u64>(cmd("PUBLISH").arg(channel).arg(text)).await.map(drop)
    }

    /// Subscribes to messages to all replicas and to this one.
    pub async fn listen(&self) -> Result<PeerSubscription, CommandError> {
        let (heartbeats, direct) = (heartbeat_channel(&self.prefix), direct_channel(&self.prefix, self.me));
        let listener = self.connection.listen(&[&heartbeats, &direct]).await?;
        Ok(PeerSubscription::new(listener, self.me, heartbeats))
    }

    /// The key of the set of replicas, and the key of this replica's membership.
    fn keys(&self) -> (String, String) {
        let (known, members) = member_keys(&self.prefix);
        (known, format!("{members}{}", self.me))
    }
}
