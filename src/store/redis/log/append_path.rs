//! The path of changes to a log's server.

use redis::FromRedisValue;

use super::{
    append::{AppendReply, AppendTarget, Identity},
    script::ScriptAppender,
    transaction::TransactionAppender,
};
use crate::store::{
    Append,
    redis::{
        Durability, Settings,
        address::Topology,
        connection::{CommandError, LuaScript, RedisConnection},
        keys::LogKeys,
    },
};

/// Transactions where one connection leads to the server, otherwise scripts.
#[derive(Debug)]
pub(super) enum AppendPath {
    Transaction(TransactionAppender),
    Script(ScriptAppender),
}

impl AppendPath {
    /// The connection for a log. WATCH belongs to one connection, and waiting for a replica must not delay other
    /// commands: in both cases the connection is dedicated.
    pub(super) fn connection(shared: &RedisConnection, settings: &Settings) -> RedisConnection {
        match (&settings.address.topology, settings.durability) {
            (Topology::Cluster, Durability::Written) => shared.clone(),
            (Topology::Single | Topology::Sentinel { .. }, _) | (Topology::Cluster, Durability::Replicated) => {
                shared.dedicated()
            }
        }
    }

    /// The append path over a connection from `AppendPath::connection`.
    pub(super) fn new(connection: RedisConnection, keys: &LogKeys, settings: &Settings) -> Self {
        // Well below the response timeout, because the reply comes after the wait.
        let timeout = settings.timeouts.response / 2;
        let replicated_max = (settings.durability == Durability::Replicated).then_some(timeout);
        match settings.address.topology {
            Topology::Single | Topology::Sentinel { .. } => {
                Self::Transaction(TransactionAppender::new(connection, keys.clone(), replicated_max))
            }
            Topology::Cluster => Self::Script(ScriptAppender::new(connection, keys.clone(), replicated_max)),
        }
    }

    /// Sends one append, without a retry.
    pub(super) async fn append(
        &self,
        append: &Append,
        place: &AppendTarget,
        identity: &Identity,
    ) -> Result<AppendReply, CommandError> {
        match self {
            Self::Transaction(way) => way.append(append, place, identity).await,
            Self::Script(way) => way.append(append, place, identity).await,
        }
    }

    /// Runs another script on the log and its head.
    pub(super) async fn call<T: FromRedisValue>(
        &self,
        script: &LuaScript,
        arguments: &[&[u8]],
    ) -> Result<T, CommandError> {
        match self {
            Self::Transaction(way) => way.call(script, arguments).await,
            Self::Script(way) => way.call(script, arguments).await,
        }
    }

    pub(super) fn close(&self) {
        match self {
            Self::Transaction(way) => way.close(),
            Self::Script(way) => way.close(),
        }
    }
}
