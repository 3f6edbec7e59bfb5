//! Tickets of the embedded store: in memory, because one process issues and takes them, and they live for a minute.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::EmbeddedStore;
use crate::{
    clock,
    store::{AppendError, tickets::TicketKey},
    telemetry::Cause,
};

/// The most tickets at the same time. Beyond it no ticket is issued until one expires or is taken.
const TICKETS_MAX: usize = 10_000;

/// The tickets that were not taken yet.
#[derive(Debug, Default)]
pub(super) struct Tickets {
    values: HashMap<TicketKey, Ticket>,
}

#[derive(Debug)]
struct Ticket {
    value: String,
    expires_at: Instant,
}

impl Tickets {
    fn put(&mut self, key: TicketKey, ticket: Ticket, now: Instant) -> bool {
        if self.values.len() >= TICKETS_MAX {
            self.values.retain(|_, ticket| now < ticket.expires_at);
        }
        let has_room = self.values.len() < TICKETS_MAX;
        if has_room {
            self.values.insert(key, ticket);
        }
        has_room
    }

    fn take(&mut self, key: &TicketKey, now: Instant) -> Option<String> {
        self.values.remove(key).filter(|ticket| now < ticket.expires_at).map(|ticket| ticket.value)
    }
}

impl EmbeddedStore {
    pub(in crate::store) fn put_ticket(&self, key: TicketKey, value: String, ttl: Duration) -> Result<(), AppendError> {
        let now = clock::now();
        let ticket = Ticket { value, expires_at: now + ttl };
        if self.shared.tickets.lock().put(key, ticket, now) {
            Ok(())
        } else {
            Err(AppendError::Unavailable(Cause::new(format!("{TICKETS_MAX} tickets were issued and not used"))))
        }
    }

    pub(in crate::store) fn take_ticket(&self, key: &TicketKey) -> Option<String> {
        self.shared.tickets.lock().take(key, clock::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_tickets_is_bounded_and_expired_ones_make_room() {
        let (mut tickets, now) = (Tickets::default(), clock::now());
        let (later, ttl) = (now + Duration::from_secs(61), Duration::from_secs(60));
        let mut put = |number: usize, at: Instant| {
            let ticket = Ticket { value: String::new(), expires_at: at + ttl };
            tickets.put(TicketKey(number.to_string()), ticket, at)
        };
        assert!((0..TICKETS_MAX).all(|number| put(number, now)));
        assert!(!put(TICKETS_MAX, now));
        assert!(put(TICKETS_MAX, later));
        assert_eq!(tickets.values.len(), 1);
    }
}
