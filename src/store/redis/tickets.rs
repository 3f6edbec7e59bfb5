//! Tickets in Redis: a key for each, which expires.

use std::time::Duration;

use redis::cmd;

use super::{RedisStore, connection::LuaScript, keys::key, log::append_error};
use crate::store::{AppendError, ReadError, tickets::TicketKey};

/// The script that takes a ticket.
#[derive(Debug)]
pub(super) struct TicketScript(LuaScript);

impl Default for TicketScript {
    fn default() -> Self {
        Self(LuaScript::new(include_str!("scripts/ticket_take.lua")))
    }
}

impl RedisStore {
    pub(in crate::store) async fn put_ticket(
        &self,
        ticket: TicketKey,
        value: String,
        ttl: Duration,
    ) -> Result<(), AppendError> {
        let mut set = cmd("SET");
        set.arg(self.ticket_key(&ticket)).arg(value).arg("PX").arg(ttl.as_millis().max(1).to_string());
        self.connection().run::<()>(&set).await.map_err(append_error)
    }

    pub(in crate::store) async fn take_ticket(&self, ticket: &TicketKey) -> Result<Option<String>, ReadError> {
        let script = &self.shared.ticket_script.0;
        let taken = self.connection().call(script, &[&self.ticket_key(ticket)], &[]).await;
        taken.map_err(ReadError::new)
    }

    fn ticket_key(&self, TicketKey(digest): &TicketKey) -> String {
        key(&self.shared.settings.prefix, &format!("ticket:{digest}"), "grant")
    }
}
