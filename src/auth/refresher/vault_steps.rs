//! The steps of the refresher that use the vault: the shared token, its lock, and the shared refresh token.

use std::{future, time::Duration};

use super::{Refresher, handle::seconds_until};
use crate::{
    auth::sharing::SharedTokens,
    clock,
    model::Secret,
    protocol::refresh::{Input, Output, Refresh, VaultToken, lifetime::Claims},
};

impl Refresher {
    /// Loads a newer refresh token that another replica has received.
    pub(super) async fn load_shared_refresh_token(&mut self) {
        let Some(shared) = &mut self.shared else { return };
        let Some(id) = self.token_source.refresh_token_id().await else { return };
        if let Some(rotated) = shared.refresh_token(&id).await {
            self.token_source.store_shared_token(rotated).await;
        }
    }

    /// Shares a rotated refresh token before the access token is used: the next request of any replica needs it.
    pub(super) async fn share_refresh_token(&mut self) {
        let Some(shared) = &mut self.shared else { return };
        if let Some(rotated) = self.token_source.rotated().await {
            shared.share_refresh_token(&rotated).await;
        }
    }

    pub(super) async fn read_vault(&mut self) {
        let seen = self.shared().read().await;
        if seen.is_some() {
            // A refresh token received while the vault was unavailable.
            self.share_refresh_token().await;
        }
        self.machine.handle(Input::VaultRead { seen, unit: fastrand::f64() }, clock::now());
    }

    pub(super) async fn lock(&mut self, ttl: Duration) {
        let lock = self.shared().lock(ttl).await;
        self.machine.handle(Input::Locked { lock, unit: fastrand::f64() }, clock::now());
    }

    /// Publishes the granted token, else the current one.
    pub(super) async fn publish_token(&mut self, found: VaultToken) {
        let granted = self.granted.as_ref().map(|granted| granted.secret.clone());
        let secret = granted.or_else(|| self.tokens.borrow().as_ref().map(|token| token.secret.clone()));
        let secret = secret.expect("a token is there before it is published");
        let published = self.shared().publish(&secret, found).await;
        self.machine.handle(Input::Published(published), clock::now());
    }

    pub(super) fn shared(&mut self) -> &mut SharedTokens {
        self.shared.as_mut().expect("only a token that is shared has a vault")
    }

    pub(super) fn adopt_found(&mut self, generation: u64) -> Secret {
        self.metrics.adopted();
        let secret = self.shared().take_found().expect("a token is found before it is adopted");
        if let Some(lifetime) = self.machine.lifetime() {
            self.metrics.set_lifetime(lifetime, Claims::of(secret.expose()).lifetime());
        }
        tracing::info!(
            generation,
            remaining_secs = self.machine.expires_at().map(seconds_until),
            next_secs = self.machine.next_at().map(seconds_until),
            "adopted the token of another replica"
        );
        secret
    }
}

/// The next hint from the vault. Never completes without sharing.
pub(super) async fn next_hint(shared: &mut Option<SharedTokens>) -> Option<u64> {
    match shared {
        Some(shared) => shared.hint().await,
        None => future::pending().await,
    }
}

/// Renews the lock during a request. The machine has no other output then.
pub(super) async fn renew_lock(machine: &mut Refresh, mut shared: Option<&mut SharedTokens>) {
    machine.handle_timeout(clock::now());
    while let Some(output) = machine.poll_output() {
        match (output, shared.as_deref_mut()) {
            (Output::Renew { ttl }, Some(shared)) => shared.renew(ttl).await,
            (output, _) => panic!("{output:?} while a request is under way"),
        }
    }
}
