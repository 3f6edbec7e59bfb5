//! Binds tokens to the client that used them first, in bounded memory.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    time::Instant,
};

use serde::{Deserialize, Serialize};

/// The most bound tokens. Beyond it the token that expires first is forgotten, and may be bound again.
const TOKENS_MAX: usize = 65_536;

/// A digest of a token.
pub type TokenDigest = [u8; 32];

/// The properties of a client that a token is bound to; none for one that is not configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientOrigin {
    pub address: Option<IpAddr>,
    pub user_agent: Option<String>,
}

/// The clients of tokens.
#[derive(Debug, Clone, Default)]
pub struct TokenBindings {
    origins: HashMap<TokenDigest, ClientOrigin>,
    /// The same tokens, the one that expires first in front.
    order: BTreeSet<(Instant, TokenDigest)>,
}

impl TokenBindings {
    /// Binds a token to this client, if it is not bound. Returns whether the client may use it.
    pub fn bind(&mut self, token: TokenDigest, origin: &ClientOrigin, expires_at: Instant, now: Instant) -> bool {
        if let Some(bound) = self.origins.get(&token) {
            return bound == origin;
        }
        self.make_room(now);
        self.origins.insert(token, origin.clone());
        self.order.insert((expires_at, token));
        true
    }

    fn make_room(&mut self, now: Instant) {
        while let Some((expires_at, token)) = self.order.first().copied() {
            if expires_at > now && self.origins.len() < TOKENS_MAX {
                return;
            }
            self.order.pop_first();
            self.origins.remove(&token);
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some moment to start from")]
mod tests {
    use std::time::Duration;

    use super::*;

    fn origin(address: u8) -> ClientOrigin {
        ClientOrigin { address: Some([10, 0, 0, address].into()), user_agent: Some("test/1".to_owned()) }
    }

    fn digest(number: usize) -> TokenDigest {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&number.to_be_bytes());
        digest
    }

    #[test]
    fn a_token_is_good_only_for_its_first_client() {
        let (mut bindings, now) = (TokenBindings::default(), Instant::now());
        let later = now + Duration::from_secs(60);
        assert!(bindings.bind(digest(1), &origin(1), later, now));
        assert!(bindings.bind(digest(1), &origin(1), later, now));
        assert!(!bindings.bind(digest(1), &origin(2), later, now));
        assert!(bindings.bind(digest(2), &origin(2), later, now));
        let other_agent = ClientOrigin { user_agent: None, ..origin(1) };
        assert!(!bindings.bind(digest(1), &other_agent, later, now));
    }

    #[test]
    fn the_number_of_bound_tokens_is_bounded_and_expired_ones_are_forgotten() {
        let (mut bindings, now) = (TokenBindings::default(), Instant::now());
        for number in 0..TOKENS_MAX + 10 {
            bindings.bind(digest(number), &origin(1), now + Duration::from_secs(1), now);
        }
        assert_eq!((bindings.origins.len(), bindings.order.len()), (TOKENS_MAX, TOKENS_MAX));
        let later = now + Duration::from_secs(2);
        bindings.bind(digest(0), &origin(2), later + Duration::from_secs(1), later);
        assert_eq!(bindings.origins.len(), 1);
    }
}
