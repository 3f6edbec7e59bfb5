//! How what changes a log reaches the server.

use redis::FromRedisValue;

use super::{
    append::{Answer, Identity, Place},
    scripted::Scripted,
    transaction::Transactions,
};
use crate::store::{
    Append,
    redis::{
        Durability, Settings,
        address::Kind,
        connection::{CommandError, Connection, Script},
        keys::Keys,
    },
};

/// By transactions where one connection leads to the server, else by scripts.
#[derive(Debug)]
pub(super) enum Way {
    Transactions(Transactions),
    Scripted(Scripted),
}

impl Way {
    /// The connection that a log needs. What is watched is watched by a connection, and waiting for a replica must not
    /// hold up others: then it is one of its own.
    pub(super) fn connection(shared: &Connection, settings: &Settings) -> Connection {
        match (&settings.address.kind, settings.durability) {
            (Kind::Cluster, Durability::Written) => shared.clone(),
            (Kind::Single | Kind::Sentinel { .. }, _) | (Kind::Cluster, Durability::Replicated) => shared.another(),
        }
    }

    /// Over that connection.
    pub(super) fn new(connection: Connection, keys: &Keys, settings: &Settings) -> Self {
        // Well below the time for an answer, which comes after it.
        let patience = settings.limits.answer / 2;
        let replicated_max = (settings.durability == Durability::Replicated).then_some(patience);
        match settings.address.kind {
            Kind::Single | Kind::Sentinel { .. } => {
                Self::Transactions(Transactions::new(connection, keys.clone(), replicated_max))
            }
            Kind::Cluster => Self::Scripted(Scripted::new(connection, keys.clone(), replicated_max)),
        }
    }

    /// Appends once.
    pub(super) async fn append(
        &self,
        append: &Append,
        place: &Place,
        identity: &Identity,
    ) -> Result<Answer, CommandError> {
        match self {
            Self::Transactions(way) => way.append(append, place, identity).await,
            Self::Scripted(way) => way.append(append, place, identity).await,
        }
    }

    /// Runs another script over the log and its head.
    pub(super) async fn call<T: FromRedisValue>(
        &self,
        script: &Script,
        arguments: &[&[u8]],
    ) -> Result<T, CommandError> {
        match self {
            Self::Transactions(way) => way.call(script, arguments).await,
            Self::Scripted(way) => way.call(script, arguments).await,
        }
    }

    pub(super) fn close(&self) {
        match self {
            Self::Transactions(way) => way.close(),
            Self::Scripted(way) => way.close(),
        }
    }
}
