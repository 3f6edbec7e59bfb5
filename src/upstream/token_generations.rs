//! The tokens of a stream: its sessions may still use the one before the newest.

use std::collections::BTreeMap;

use crate::{auth::Token, model::Secret};

/// Tokens kept.
const TOKENS_MAX: usize = 3;

/// The newest tokens by generation.
#[derive(Debug, Default)]
pub(super) struct TokenGenerations(BTreeMap<u64, Secret>);

impl TokenGenerations {
    /// Adds a token. The oldest one is dropped if there are too many.
    pub(super) fn add(&mut self, Token { generation, secret }: Token) {
        self.0.insert(generation, secret);
        while self.0.len() > TOKENS_MAX {
            self.0.pop_first();
        }
    }

    /// The token of a generation; the newest if that one is no longer kept.
    pub(super) fn get(&self, generation: u64) -> Option<Secret> {
        self.0.get(&generation).or_else(|| self.0.values().next_back()).cloned()
    }
}
