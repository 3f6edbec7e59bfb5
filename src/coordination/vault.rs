//! The token that the replicas of an account share, its lock, the notification of a new token, and the refresh token. All
//! keys lie in one slot.
//!
//! The values are encrypted by the caller. The remaining lifetime of a token is the TTL of its key, so no replica's clock
//! matters.

use std::time::Duration;

use redis::cmd;

use crate::{
    model::AccountName,
    protocol::{
        refresh::{GENERATION_MAX, lifetime::LIFETIME_MAX},
        retry_after::RETRY_AFTER_MAX,
    },
    store::redis::{
        connection::{CommandError, LuaScript, PubSubListener, RedisConnection},
        keys::key,
    },
    telemetry::Cause,
};

/// The longest valid pause. Replicas write at most [`RETRY_AFTER_MAX`] and its jitter.
const PAUSE_MAX: Duration = Duration::from_secs(2 * RETRY_AFTER_MAX.as_secs());

/// The longest valid lifetime of a lock. A lock without an end would stop all refreshes.
const LOCK_MAX: Duration = Duration::from_secs(60);

/// Bytes of a damaged value that a message shows.
const SHOWN_LEN_MAX: usize = 40;

/// One account's keys. Each caller uses a new `owner` for each lock.
#[derive(Debug)]
pub struct TokenVault {
    connection: RedisConnection,
    read: LuaScript,
    publish: LuaScript,
    release: LuaScript,
    renew: LuaScript,
    store_refresh: LuaScript,
    reset: LuaScript,
    token: String,
    generation: String,
    lock: String,
    pause: String,
    /// The prefix of the keys of refresh tokens.
    refresh: String,
    channel: String,
}

/// The content of the vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenVaultState {
    /// The newest generation that was stored, also of an expired token.
    pub last: u64,
    pub token: Option<Token>,
    /// Time until the next request to the token endpoint is allowed.
    pub pause: Option<Duration>,
}

/// A valid token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub generation: u64,
    /// From the start of its request to its end.
    pub lifetime: Duration,
    pub remaining: Duration,
    /// As the caller encrypted it.
    pub secret: Vec<u8>,
}

/// A rotated refresh token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefreshToken {
    /// The number of rotations since the configured token.
    pub number: u64,
    /// As the caller encrypted it.
    pub secret: Vec<u8>,
}

/// The outcome of publishing a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenPublishOutcome {
    Stored,
    /// This generation or a newer one is stored.
    Superseded,
    /// Another owner has the lock.
    LockLost,
}

/// The values of the keys in Redis; absent ones are none. `remaining` and `pause` are TTLs in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VaultValues {
    pub last: Option<Vec<u8>>,
    pub generation: Option<Vec<u8>>,
    pub lifetime: Option<Vec<u8>>,
    pub secret: Option<Vec<u8>>,
    pub remaining: i64,
    pub pause: i64,
}

/// A key with an invalid value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DamagedKey {
    /// The number of the newest token.
    Generation,
    /// The token's own number.
    TokenGeneration,
    TokenLifetime,
    Pause,
}

type VaultRow = (Option<Vec<u8>>, Option<Vec<u8>>, Option<Vec<u8>>, Option<Vec<u8>>, i64, i64);

impl TokenVault {
    pub fn new(connection: RedisConnection, prefix: &str, account: &AccountName) -> Self {
        let name = |what| key(prefix, &format!("token:{account}"), what);
        Self {
            connection,
            read: LuaScript::new(include_str!("scripts/token_look.lua")),
            publish: LuaScript::new(include_str!("scripts/token_publish.lua")),
            release: LuaScript::new(include_str!("scripts/token_release.lua")),
            renew: LuaScript::new(include_str!("scripts/token_renew.lua")),
            store_refresh: LuaScript::new(include_str!("scripts/token_refresh.lua")),
            reset: LuaScript::new(include_str!("scripts/token_reset.lua")),
            token: name("token"),
            generation: name("generation"),
            lock: name("lock"),
            pause: name("pause"),
            refresh: name("refresh:"),
            channel: format!("{prefix}:token:{account}:news"),
        }
    }

    /// Reads the vault. A damaged key is deleted with an error message and counts as absent.
    pub async fn read(&self) -> Result<TokenVaultState, CommandError> {
        let keys = [&*self.token, &*self.generation, &*self.pause];
        let row: VaultRow = self.connection.call(&self.read, &keys, &[]).await?;
        let (last, generation, lifetime, secret, left, pause) = row;
        let values = VaultValues { last, generation, lifetime, secret, remaining: left, pause };
        let (content, damaged) = values.read();
        for damage in damaged {
            self.reset_damaged(damage, &values).await?;
        }
        Ok(content)
    }

    async fn reset_damaged(&self, damage: DamagedKey, values: &VaultValues) -> Result<(), CommandError> {
        let whole = format!("a number below {GENERATION_MAX}");
        match damage {
            DamagedKey::Generation => self.reset(&self.generation, "", values.last.as_deref(), &whole).await,
            DamagedKey::TokenGeneration => {
                self.reset(&self.token, "generation", values.generation.as_deref(), &whole).await
            }
            DamagedKey::TokenLifetime => {
                let expected = format!("milliseconds from 1 to {}", LIFETIME_MAX.as_millis());
                self.reset(&self.token, "lifetime", values.lifetime.as_deref(), &expected).await
            }
            DamagedKey::Pause => {
                let (key, left_ms) = (&self.pause, values.pause);
                tracing::error!(key, left_ms, expected_max = ?PAUSE_MAX, "damaged key in the token vault deleted");
                self.connection.run::<i64>(cmd("DEL").arg(key)).await.map(drop)
            }
        }
    }

    /// Deletes a key with an invalid value.
    async fn reset(&self, key: &str, field: &str, found: Option<&[u8]>, expected: &str) -> Result<(), CommandError> {
        let found = found.unwrap_or_default();
        let shown = escaped(found);
        tracing::error!(key, field, found = shown, expected, "damaged key in the token vault deleted");
        self.connection.call::<u8>(&self.reset, &[key], &[field.as_bytes(), found]).await.map(drop)
    }

    /// Takes the lock for `owner` if it is free. Returns whether `owner` took it.
    pub async fn lock(&self, owner: &str, lifetime: Duration) -> Result<bool, CommandError> {
        let mut command = cmd("SET");
        command.arg(&self.lock).arg(owner).arg("NX").arg("PX").arg(millis(lifetime));
        let taken: Option<String> = self.connection.run(&command).await?;
        if taken.is_none() {
            self.check_lock().await?;
        }
        Ok(taken.is_some())
    }

    /// Deletes a lock with an invalid lifetime, which would stop all refreshes.
    async fn check_lock(&self) -> Result<(), CommandError> {
        let left: i64 = self.connection.run(cmd("PTTL").arg(&self.lock)).await?;
        if lock_is_sound(left) {
            return Ok(());
        }
        let owner: Option<Vec<u8>> = self.connection.run(cmd("GET").arg(&self.lock)).await?;
        let expected = format!("a lock that ends within {LOCK_MAX:?}");
        match owner {
            Some(owner) => self.reset(&self.lock, "", Some(&owner), &expected).await,
            None => Ok(()),
        }
    }

    /// Renews the lock for `lifetime`. Returns whether `owner` still has it.
    pub async fn renew(&self, owner: &str, lifetime: Duration) -> Result<bool, CommandError> {
        let lifetime = millis(lifetime).to_string();
        self.connection.call(&self.renew, &[&self.lock], &[owner.as_bytes(), lifetime.as_bytes()]).await
    }

    /// Releases the lock of `owner`. With `pause`, no replica sends a token request during that time.
    pub async fn release(&self, owner: &str, pause: Option<Duration>) -> Result<(), CommandError> {
        let pause = pause.map_or(0, millis).to_string();
        let arguments = [owner.as_bytes(), pause.as_bytes()];
        self.connection.call::<u8>(&self.release, &[&self.lock, &self.pause], &arguments).await.map(drop)
    }

    /// Stores the token and notifies the replicas, unless it is outdated or another owner has the lock. Releases the lock
    /// of `owner`.
    pub async fn publish(&self, owner: &str, token: &Token) -> Result<TokenPublishOutcome, CommandError> {
        let numbers =
            [token.generation, millis(token.lifetime), millis(token.remaining)].map(|number| number.to_string());
        let [generation, lifetime, left] = numbers.each_ref().map(String::as_bytes);
        let keys = [&*self.token, &*self.generation, &*self.lock];
        let arguments = [owner.as_bytes(), generation, lifetime, left, &token.secret, self.channel.as_bytes()];
        let answer: String = self.connection.call(&self.publish, &keys, &arguments).await?;
        match &*answer {
            "done" => Ok(TokenPublishOutcome::Stored),
            "newer" => Ok(TokenPublishOutcome::Superseded),
            "lost" => Ok(TokenPublishOutcome::LockLost),
            _ => Err(CommandError::NoAnswer(Cause::new(format!("unexpected answer of a script: {answer:?}")))),
        }
    }

    /// The newest rotation of the configured refresh token with this name; none before the first.
    pub async fn refresh_token(&self, configured: &str) -> Result<Option<RefreshToken>, CommandError> {
        let mut command = cmd("HMGET");
        command.arg(self.refresh_key(configured)).arg(&["number", "secret"]);
        let (number, secret): (Option<Vec<u8>>, Option<Vec<u8>>) = self.connection.run(&command).await?;
        match RefreshToken::read(number.as_deref(), secret) {
            Ok(token) => Ok(token),
            Err(DamagedNumber) => {
                let expected = format!("a number below {GENERATION_MAX}");
                let key = self.refresh_key(configured);
                self.reset(&key, "number", number.as_deref(), &expected).await?;
                Ok(None)
            }
        }
    }

    /// Stores a rotated refresh token, unless this number or a higher one is stored. The key has no TTL, because the
    /// lifetime of a refresh token is unknown.
    pub async fn store_refresh_token(&self, configured: &str, token: &RefreshToken) -> Result<(), CommandError> {
        let (key, number) = (self.refresh_key(configured), token.number.to_string());
        let arguments = [number.as_bytes(), &token.secret];
        self.connection.call::<u8>(&self.store_refresh, &[&key], &arguments).await.map(drop)
    }

    fn refresh_key(&self, configured: &str) -> String {
        format!("{}{configured}", self.refresh)
    }

    /// Subscribes to the generations of new tokens.
    pub async fn listen(&self) -> Result<TokenUpdates, CommandError> {
        Ok(TokenUpdates(self.connection.listen(&[&self.channel]).await?))
    }
}

/// A subscription to new tokens.
#[derive(Debug)]
pub struct TokenUpdates(PubSubListener);

impl TokenUpdates {
    /// The next generation that is stored; 0 when the message cannot be read. None when the connection is lost.
    pub async fn next(&mut self) -> Option<u64> {
        let (_, bytes) = self.0.next().await?;
        Some(number(&bytes).unwrap_or_default())
    }
}

impl VaultValues {
    /// The content of the vault without damaged values, and the damaged keys.
    pub fn read(&self) -> (TokenVaultState, Vec<DamagedKey>) {
        let mut damaged = Vec::new();
        let last = self.last.as_deref().map_or(Some(0), number);
        let pause = span(self.pause);
        if last.is_none() {
            damaged.push(DamagedKey::Generation);
        }
        if pause.is_some_and(|pause| pause > PAUSE_MAX) {
            damaged.push(DamagedKey::Pause);
        }
        let token = self.token().unwrap_or_else(|damage| {
            damaged.push(damage);
            None
        });
        let newest = token.as_ref().map_or(0, |token| token.generation);
        let content = TokenVaultState {
            last: last.unwrap_or_default().max(newest),
            token,
            pause: pause.filter(|pause| *pause <= PAUSE_MAX),
        };
        (content, damaged)
    }

    /// The token, if it is valid.
    fn token(&self) -> Result<Option<Token>, DamagedKey> {
        let Some(generation) = self.generation.as_deref() else { return Ok(None) };
        let generation = number(generation).ok_or(DamagedKey::TokenGeneration)?;
        let lifetime = self.lifetime.as_deref().and_then(number).map(Duration::from_millis);
        let lifetime = lifetime
            .filter(|lifetime| !lifetime.is_zero() && *lifetime <= LIFETIME_MAX)
            .ok_or(DamagedKey::TokenLifetime)?;
        let found = span(self.remaining).zip(self.secret.clone());
        Ok(found.map(|(left, secret)| Token { generation, lifetime, remaining: left.min(lifetime), secret }))
    }
}

/// The rotation number of a refresh token is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DamagedNumber;

impl RefreshToken {
    /// Reads the fields of a refresh token.
    pub fn read(stored: Option<&[u8]>, secret: Option<Vec<u8>>) -> Result<Option<Self>, DamagedNumber> {
        let Some(stored) = stored else { return Ok(None) };
        let number = number(stored).ok_or(DamagedNumber)?;
        Ok(secret.map(|secret| Self { number, secret }))
    }
}

/// A number as replicas write it, below [`GENERATION_MAX`].
pub fn number(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(text).ok().filter(|_| digits)?;
    text.parse().ok().filter(|number| *number < GENERATION_MAX)
}

/// Whether a lock with this TTL in milliseconds ends by itself. Negative: it has no end, or is gone.
fn lock_is_sound(left: i64) -> bool {
    const GONE: i64 = -2;
    left == GONE || span(left).map_or(left == 0, |left| left <= LOCK_MAX)
}

fn span(millis: i64) -> Option<Duration> {
    u64::try_from(millis).ok().filter(|millis| *millis > 0).map(Duration::from_millis)
}

/// The first bytes of a value, escaped.
fn escaped(value: &[u8]) -> String {
    value.iter().take(SHOWN_LEN_MAX).flat_map(|byte| std::ascii::escape_default(*byte)).map(char::from).collect()
}

/// Milliseconds for the server, at least 1.
fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX).max(1)
}
