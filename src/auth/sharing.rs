//! Token sharing between replicas: the encrypted vault in Redis and notifications of new tokens.
//!
//! A command that the vault does not answer in time counts as unavailable.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    refresh_token_store::RotatedToken,
    seal::{Seal, SealContext, SealError, SealedKind},
};
use crate::{
    coordination::vault::{RefreshToken, Token, TokenPublishOutcome, TokenVault, TokenVaultState},
    model::{AccountName, Secret},
    protocol::{
        backoff::BackoffCurve,
        refresh::{LockOutcome, PublishOutcome, VaultContent, VaultToken},
    },
    random,
    store::redis::connection::{CommandError, RedisConnection},
    tasks::TaskResult,
    telemetry::chain,
};

/// Timeout of a vault command. It is short, so that no token expires during the wait.
const VAULT_TIMEOUT: Duration = Duration::from_secs(1);

/// Delays between attempts to subscribe.
const LISTEN_BACKOFF: BackoffCurve =
    BackoffCurve { first: Duration::from_millis(100), cap: Duration::from_secs(2), jitter: 0.5 };

/// How tokens are shared between replicas.
#[derive(Debug, Clone)]
pub struct TokenSharingSettings {
    pub connection: RedisConnection,
    /// The prefix of all keys.
    pub prefix: String,
    pub seal: Arc<Seal>,
}

/// Access to the vault for one account.
#[derive(Debug)]
pub(super) struct SharedTokens {
    vault: Arc<TokenVault>,
    seal: Arc<Seal>,
    prefix: String,
    account: AccountName,
    /// Owner id of the newest lock attempt.
    lock_owner: String,
    /// The token of the newest read.
    found: Option<Secret>,
    hints: watch::Receiver<VaultHints>,
    /// Number of subscriptions already handled. A new subscription may have missed notifications.
    subscriptions_seen: u64,
    unavailable: bool,
    /// The newest refresh token known to be in the vault.
    published_refresh_token: Option<(String, u64)>,
}

/// Notifications from the vault. A value, not a queue: only the newest counts.
#[derive(Debug, Clone, Copy, Default)]
struct VaultHints {
    newest: u64,
    /// Number of subscriptions so far.
    subscriptions: u64,
}

impl SharedTokens {
    /// The access to the vault, and the task that receives its notifications.
    pub(super) fn new(
        sharing: TokenSharingSettings,
        account: &AccountName,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = TaskResult> + Send + 'static) {
        let TokenSharingSettings { connection, prefix, seal } = sharing;
        let vault = Arc::new(TokenVault::new(connection, &prefix, account));
        let (sender, hints) = watch::channel(VaultHints::default());
        let receiving = listen(Arc::clone(&vault), sender, stop);
        let shared = Self {
            vault,
            seal,
            prefix,
            account: account.clone(),
            lock_owner: new_lock_owner(),
            found: None,
            hints,
            subscriptions_seen: 0,
            unavailable: false,
            published_refresh_token: None,
        };
        (shared, receiving)
    }

    /// The content of the vault; none if it is unavailable.
    pub(super) async fn read(&mut self) -> Option<VaultContent> {
        let TokenVaultState { last, token, pause } =
            self.call_vault(Arc::clone(&self.vault), async |vault| vault.read().await).await?;
        let opened = token.and_then(|token| {
            let secret = self.open(&token)?;
            Some((
                VaultToken { generation: token.generation, lifetime: token.lifetime, remaining: token.remaining },
                secret,
            ))
        });
        let (token, found) = opened.unzip();
        self.found = found;
        Some(VaultContent { last, token, pause })
    }

    /// Takes the token of the newest read.
    pub(super) fn take_found(&mut self) -> Option<Secret> {
        self.found.take()
    }

    pub(super) async fn lock(&mut self, ttl: Duration) -> LockOutcome {
        self.lock_owner = new_lock_owner();
        let owner = self.lock_owner.clone();
        match self.call_vault(Arc::clone(&self.vault), async |vault| vault.lock(&owner, ttl).await).await {
            Some(true) => LockOutcome::Acquired,
            Some(false) => LockOutcome::Held,
            None => LockOutcome::Unavailable,
        }
    }

    pub(super) async fn renew(&mut self, ttl: Duration) {
        let owner = self.lock_owner.clone();
        let renewed = self.call_vault(Arc::clone(&self.vault), async |vault| vault.renew(&owner, ttl).await).await;
        if renewed == Some(false) {
            tracing::info!("refresh lock lost during the request; another replica may refresh too");
        }
    }

    pub(super) async fn release(&mut self, pause: Option<Duration>) {
        let owner = self.lock_owner.clone();
        self.call_vault(Arc::clone(&self.vault), async |vault| vault.release(&owner, pause).await).await;
    }

    pub(super) async fn publish(&mut self, secret: &Secret, found: VaultToken) -> PublishOutcome {
        let VaultToken { generation, lifetime, remaining } = found;
        let secret = match self.seal.seal(secret, self.seal_context(SealedKind::AccessToken, generation)) {
            Ok(secret) => secret,
            Err(error) => {
                tracing::error!(error = chain(&error), generation, "cannot encrypt token, not shared");
                return PublishOutcome::Unavailable;
            }
        };
        let (owner, token) = (self.lock_owner.clone(), Token { generation, lifetime, remaining, secret });
        match self.call_vault(Arc::clone(&self.vault), async |vault| vault.publish(&owner, &token).await).await {
            Some(TokenPublishOutcome::Stored) => PublishOutcome::Done,
            Some(TokenPublishOutcome::Superseded) => PublishOutcome::AlreadyNewer,
            Some(TokenPublishOutcome::LockLost) => PublishOutcome::LockLost,
            None => PublishOutcome::Unavailable,
        }
    }

    /// The newest refresh token of any replica that descends from this ancestor.
    pub(super) async fn refresh_token(&mut self, ancestor: &str) -> Option<RotatedToken> {
        let name = ancestor.to_owned();
        let found = self.call_vault(Arc::clone(&self.vault), async |vault| vault.refresh_token(&name).await).await??;
        let RefreshToken { number, secret } = found;
        let opened = self.seal.open(&secret, self.seal_context(SealedKind::RefreshToken, number));
        let opened = opened.inspect_err(|error| {
            tracing::error!(error = chain(error), number, "cannot use the shared refresh token");
        });
        self.published_refresh_token = Some((ancestor.to_owned(), number));
        Some(RotatedToken { ancestor: ancestor.to_owned(), number, refresh_token: opened.ok()? })
    }

    /// Stores a refresh token in the vault, unless the vault has it or a newer one. Retry if the vault is unavailable.
    pub(super) async fn share_refresh_token(&mut self, rotated: &RotatedToken) {
        let RotatedToken { ancestor, number, refresh_token } = rotated;
        if self.published_refresh_token.as_ref().is_some_and(|(name, has)| name == ancestor && has >= number) {
            return;
        }
        let secret = match self.seal.seal(refresh_token, self.seal_context(SealedKind::RefreshToken, *number)) {
            Ok(secret) => secret,
            Err(error) => {
                tracing::error!(error = chain(&error), number, "cannot encrypt refresh token, not shared");
                return;
            }
        };
        let token = RefreshToken { number: *number, secret };
        let (vault, name) = (Arc::clone(&self.vault), ancestor.clone());
        if self.call_vault(vault, async |vault| vault.store_refresh_token(&name, &token).await).await.is_some() {
            self.published_refresh_token = Some((ancestor.clone(), *number));
        }
    }

    /// The next notified generation; none if notifications may have been missed. Never completes after the last one.
    pub(super) async fn hint(&mut self) -> Option<u64> {
        if self.hints.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        let hints = *self.hints.borrow_and_update();
        let resubscribed = self.subscriptions_seen < hints.subscriptions;
        self.subscriptions_seen = hints.subscriptions;
        (!resubscribed).then_some(hints.newest)
    }

    fn open(&self, token: &Token) -> Option<Secret> {
        let opened = self.seal.open(&token.secret, self.seal_context(SealedKind::AccessToken, token.generation));
        let opened = opened.and_then(|secret| if is_usable(&secret) { Ok(secret) } else { Err(SealError::Forged) });
        opened
            .inspect_err(|error| {
                let generation = token.generation;
                tracing::error!(error = chain(error), generation, "cannot use the shared token");
            })
            .ok()
    }

    fn seal_context(&self, kind: SealedKind, generation: u64) -> SealContext<'_> {
        SealContext { kind, prefix: &self.prefix, account: self.account.as_str(), generation }
    }

    /// Runs a vault command with a timeout. None if the vault is unavailable.
    async fn call_vault<T>(
        &mut self,
        vault: Arc<TokenVault>,
        command: impl AsyncFnOnce(&TokenVault) -> Result<T, CommandError>,
    ) -> Option<T> {
        let why = match tokio::time::timeout(VAULT_TIMEOUT, command(&vault)).await {
            Ok(Ok(answer)) => {
                self.unavailable = false;
                return Some(answer);
            }
            Ok(Err(error)) => chain(&error),
            Err(_) => format!("no answer within {VAULT_TIMEOUT:?}"),
        };
        if !self.unavailable {
            tracing::warn!(error = why, "token vault unavailable; this replica refreshes tokens on its own");
        }
        self.unavailable = true;
        None
    }
}

/// Whether a header can carry the token.
fn is_usable(secret: &Secret) -> bool {
    let text = secret.expose().as_bytes();
    !text.is_empty() && text.iter().all(u8::is_ascii_graphic)
}

/// A random owner id for each lock attempt.
fn new_lock_owner() -> String {
    format!("{:032x}", random::u128())
}

/// Receives notifications until `stop`, and subscribes again when the connection is lost.
async fn listen(vault: Arc<TokenVault>, hints: watch::Sender<VaultHints>, stop: CancellationToken) -> TaskResult {
    let mut failures = 0;
    loop {
        let session = async {
            if let Ok(mut messages) = vault.listen().await {
                failures = 0;
                hints.send_modify(|hints| hints.subscriptions += 1);
                while let Some(generation) = messages.next().await {
                    hints.send_modify(|hints| hints.newest = generation);
                }
            }
            tokio::time::sleep(LISTEN_BACKOFF.delay(failures, fastrand::f64())).await;
            failures = failures.saturating_add(1);
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = session => (),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_of_a_lock_does_not_depend_on_the_seed_of_the_jitter() {
        let drawn = || {
            fastrand::seed(7);
            new_lock_owner()
        };
        assert_ne!(drawn(), drawn());
    }
}
