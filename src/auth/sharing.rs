//! What this replica shares with the others: the vault in Redis, with everything sealed, and the word of a new token.
//!
//! It decides nothing. Whatever the vault does not answer in time is answered for it: it is away.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    seal::{Place, Seal, SealError, What},
    vault::Kept,
};
use crate::{
    model::{AccountName, Secret},
    protocol::{
        backoff::Curve,
        refresh::{Found, Lock, Published, Seen},
    },
    random,
    store::redis::{
        connection::{CommandError, Connection},
        vault::{Content, RefreshToken, Stored, Token, Vault},
    },
    tasks::Outcome,
    telemetry::chain,
};

/// A vault that has not answered by then is away: a token must not end while somebody waits for it.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// Delays between tries to listen.
const LISTEN: Curve = Curve { first: Duration::from_millis(100), cap: Duration::from_secs(2), jitter: 0.5 };

/// With whom tokens are shared.
#[derive(Debug, Clone)]
pub struct Sharing {
    pub connection: Connection,
    /// The beginning of all keys.
    pub prefix: String,
    pub seal: Arc<Seal>,
}

/// One account's end of the vault.
#[derive(Debug)]
pub(super) struct Shared {
    vault: Arc<Vault>,
    seal: Arc<Seal>,
    prefix: String,
    account: AccountName,
    /// Of the newest lock that was tried.
    owner: String,
    /// What the newest look found.
    found: Option<Secret>,
    news: watch::Receiver<News>,
    /// Words may have been missed before that many beginnings were heard of.
    beginnings: u64,
    away: bool,
    /// Which refresh token the vault is known to have.
    has: Option<(String, u64)>,
}

/// What was heard. A value, not a queue: an older word is worth nothing.
#[derive(Debug, Clone, Copy, Default)]
struct News {
    newest: u64,
    /// How often listening began.
    beginnings: u64,
}

impl Shared {
    /// The end, and what must run for it to hear anything.
    pub(super) fn new(
        sharing: Sharing,
        account: &AccountName,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = Outcome> + Send + 'static) {
        let Sharing { connection, prefix, seal } = sharing;
        let vault = Arc::new(Vault::new(connection, &prefix, account));
        let (sender, news) = watch::channel(News::default());
        let listening = listen(Arc::clone(&vault), sender, stop);
        let shared = Self {
            vault,
            seal,
            prefix,
            account: account.clone(),
            owner: new_owner(),
            found: None,
            news,
            beginnings: 0,
            away: false,
            has: None,
        };
        (shared, listening)
    }

    /// What is there; none while the vault is away.
    pub(super) async fn look(&mut self) -> Option<Seen> {
        let Content { last, token, pause } =
            self.ask(Arc::clone(&self.vault), async |vault| vault.look().await).await?;
        let opened = token.and_then(|token| {
            let secret = self.open(&token)?;
            Some((Found { generation: token.generation, lifetime: token.lifetime, left: token.left }, secret))
        });
        let (token, found) = opened.unzip();
        self.found = found;
        Some(Seen { last, token, pause })
    }

    /// The secret that the newest look found.
    pub(super) fn take_found(&mut self) -> Option<Secret> {
        self.found.take()
    }

    pub(super) async fn lock(&mut self, life: Duration) -> Lock {
        self.owner = new_owner();
        let owner = self.owner.clone();
        match self.ask(Arc::clone(&self.vault), async |vault| vault.lock(&owner, life).await).await {
            Some(true) => Lock::Got,
            Some(false) => Lock::Held,
            None => Lock::Away,
        }
    }

    pub(super) async fn renew(&mut self, life: Duration) {
        let owner = self.owner.clone();
        let kept = self.ask(Arc::clone(&self.vault), async |vault| vault.renew(&owner, life).await).await;
        if kept == Some(false) {
            tracing::info!("another replica may ask for a token too: the lock was lost while the request is under way");
        }
    }

    pub(super) async fn release(&mut self, pause: Option<Duration>) {
        let owner = self.owner.clone();
        self.ask(Arc::clone(&self.vault), async |vault| vault.release(&owner, pause).await).await;
    }

    pub(super) async fn publish(&mut self, secret: &Secret, found: Found) -> Published {
        let Found { generation, lifetime, left } = found;
        let secret = match self.seal.seal(secret, self.place(What::AccessToken, generation)) {
            Ok(secret) => secret,
            Err(error) => {
                tracing::error!(error = chain(&error), generation, "a token stays on this replica");
                return Published::Away;
            }
        };
        let (owner, token) = (self.owner.clone(), Token { generation, lifetime, left, secret });
        match self.ask(Arc::clone(&self.vault), async |vault| vault.publish(&owner, &token).await).await {
            Some(Stored::Done) => Published::Done,
            Some(Stored::Newer) => Published::Newer,
            Some(Stored::Lost) => Published::Lost,
            None => Published::Away,
        }
    }

    /// The newest refresh token that any replica was given in place of the one with this name.
    pub(super) async fn refresh_token(&mut self, ancestor: &str) -> Option<Kept> {
        let name = ancestor.to_owned();
        let found = self.ask(Arc::clone(&self.vault), async |vault| vault.refresh_token(&name).await).await??;
        let RefreshToken { number, secret } = found;
        let opened = self.seal.open(&secret, self.place(What::RefreshToken, number));
        let opened = opened.inspect_err(|error| {
            tracing::error!(error = chain(error), number, "the refresh token in the vault cannot be used");
        });
        self.has = Some((ancestor.to_owned(), number));
        Some(Kept { ancestor: ancestor.to_owned(), number, refresh_token: opened.ok()? })
    }

    /// Lets the others have a refresh token, unless the vault has it already, or a newer one. When the vault is away, it
    /// is to be tried again.
    pub(super) async fn share_refresh_token(&mut self, kept: &Kept) {
        let Kept { ancestor, number, refresh_token } = kept;
        if self.has.as_ref().is_some_and(|(name, has)| name == ancestor && has >= number) {
            return;
        }
        let secret = match self.seal.seal(refresh_token, self.place(What::RefreshToken, *number)) {
            Ok(secret) => secret,
            Err(error) => {
                tracing::error!(error = chain(&error), number, "a refresh token stays on this replica");
                return;
            }
        };
        let token = RefreshToken { number: *number, secret };
        let (vault, name) = (Arc::clone(&self.vault), ancestor.clone());
        if self.ask(vault, async |vault| vault.keep_refresh_token(&name, &token).await).await.is_some() {
            self.has = Some((ancestor.clone(), *number));
        }
    }

    /// The next hint: a generation, or none when some may have been missed. Waits for ever when there can be no more.
    pub(super) async fn hint(&mut self) -> Option<u64> {
        if self.news.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        let news = *self.news.borrow_and_update();
        let begun = self.beginnings < news.beginnings;
        self.beginnings = news.beginnings;
        (!begun).then_some(news.newest)
    }

    fn open(&self, token: &Token) -> Option<Secret> {
        let opened = self.seal.open(&token.secret, self.place(What::AccessToken, token.generation));
        let opened = opened.and_then(|secret| if is_usable(&secret) { Ok(secret) } else { Err(SealError::Forged) });
        opened
            .inspect_err(|error| {
                let generation = token.generation;
                tracing::error!(error = chain(error), generation, "the token in the vault cannot be used");
            })
            .ok()
    }

    fn place(&self, what: What, generation: u64) -> Place<'_> {
        Place { what, prefix: &self.prefix, account: self.account.as_str(), generation }
    }

    /// The vault's answer, in time.
    async fn ask<T>(
        &mut self,
        vault: Arc<Vault>,
        question: impl AsyncFnOnce(&Vault) -> Result<T, CommandError>,
    ) -> Option<T> {
        let why = match tokio::time::timeout(ANSWER_MAX, question(&vault)).await {
            Ok(Ok(answer)) => {
                self.away = false;
                return Some(answer);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {ANSWER_MAX:?}"),
        };
        if !self.away {
            tracing::warn!(why, "the store of shared tokens cannot be used: this replica refreshes tokens on its own");
        }
        self.away = true;
        None
    }
}

/// Whether a header may carry it, as of a token that the endpoint grants.
fn is_usable(secret: &Secret) -> bool {
    let text = secret.expose().as_bytes();
    !text.is_empty() && text.iter().all(u8::is_ascii_graphic)
}

/// Another one for every lock, so that an old one is never taken for a new one.
fn new_owner() -> String {
    format!("{:032x}", random::u128())
}

/// Listens until `stop`, and begins anew whenever the connection is lost.
async fn listen(vault: Arc<Vault>, news: watch::Sender<News>, stop: CancellationToken) -> Outcome {
    let mut failures = 0;
    loop {
        let hearing = async {
            if let Ok(mut words) = vault.listen().await {
                failures = 0;
                news.send_modify(|news| news.beginnings += 1);
                while let Some(generation) = words.next().await {
                    news.send_modify(|news| news.newest = generation);
                }
            }
            tokio::time::sleep(LISTEN.delay(failures, fastrand::f64())).await;
            failures = failures.saturating_add(1);
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = hearing => (),
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
            new_owner()
        };
        assert_ne!(drawn(), drawn());
    }
}
