//! Tickets: a value under a secret name that one reader takes once, at any replica.
//!
//! The store gets a digest of the ticket, so that a ticket that was read from the store cannot be used.

use std::time::Duration;

use aws_lc_rs::digest;

use super::{AppendError, ReadError, Store};
use crate::model::Secret;

/// The key of a ticket in the store: a digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct TicketKey(pub(super) String);

impl TicketKey {
    fn of(ticket: &Secret) -> Self {
        let digest = digest::digest(&digest::SHA256, ticket.expose().as_bytes());
        Self(digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl Store {
    /// Stores the value of a ticket. It can be taken once within `ttl`.
    ///
    /// # Errors
    /// The store cannot be written, or has too many tickets.
    pub async fn put_ticket(&self, ticket: &Secret, value: String, ttl: Duration) -> Result<(), AppendError> {
        let key = TicketKey::of(ticket);
        match self {
            Self::Embedded(store) => store.put_ticket(key, value, ttl),
            Self::Redis(store) => Box::pin(store.put_ticket(key, value, ttl)).await,
        }
    }

    /// Takes the value of a ticket. None if there is no such ticket, it was taken, or it has expired.
    ///
    /// # Errors
    /// The store cannot be read. The ticket may have been taken.
    pub async fn take_ticket(&self, ticket: &Secret) -> Result<Option<String>, ReadError> {
        let key = TicketKey::of(ticket);
        match self {
            Self::Embedded(store) => Ok(store.take_ticket(&key)),
            Self::Redis(store) => Box::pin(store.take_ticket(&key)).await,
        }
    }
}
