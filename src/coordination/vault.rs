//! The token that the replicas of an account share, its lock, word of a new one, and the refresh token behind it. All
//! keys lie in one slot.
//!
//! It knows no secrets: what is stored is sealed by whoever stores it. A token's remaining life is its key's, so that no
//! replica's clock matters.

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
};

/// A longer pause was not written by a replica: the longest that it writes is [`RETRY_AFTER_MAX`] and its jitter.
const PAUSE_MAX: Duration = Duration::from_secs(2 * RETRY_AFTER_MAX.as_secs());

/// A lock that lives longer was not taken by a replica. One without an end would be waited for by all, for ever.
const LOCK_MAX: Duration = Duration::from_secs(60);

/// So much of a damaged value is shown.
const SHOWN_LEN_MAX: usize = 40;

/// One account's place. Every caller has its own `owner`, and another one for every lock.
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
    /// The beginning of the keys of refresh tokens.
    refresh: String,
    channel: String,
}

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenVaultState {
    /// The newest generation that was ever stored.
    pub last: u64,
    pub token: Option<Token>,
    /// The token endpoint wants to be left alone for so long.
    pub pause: Option<Duration>,
}

/// A token that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub generation: u64,
    /// From the sending of its request to its end.
    pub lifetime: Duration,
    pub remaining: Duration,
    /// As it was given.
    pub secret: Vec<u8>,
}

/// A refresh token that the platform gave in place of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefreshToken {
    /// How many rotations the configured one is ago.
    pub number: u64,
    /// As it was given.
    pub secret: Vec<u8>,
}

/// What became of a token that was to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenPublishOutcome {
    Stored,
    /// This generation or a newer one was stored before.
    Superseded,
    /// Another has the lock.
    LockLost,
}

/// The values of the keys as Redis has them, absent ones as none. The spans are what the server says they have left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VaultValues {
    pub last: Option<Vec<u8>>,
    pub generation: Option<Vec<u8>>,
    pub lifetime: Option<Vec<u8>>,
    pub secret: Option<Vec<u8>>,
    pub remaining: i64,
    pub pause: i64,
}

/// A key whose value no replica can have written.
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

    /// What is there. A damaged key is reset with an error, and read as if it were absent.
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
                tracing::error!(key, left_ms, expected_max = ?PAUSE_MAX, "a key of the token vault is damaged; it is reset");
                self.connection.run::<i64>(cmd("DEL").arg(key)).await.map(drop)
            }
        }
    }

    /// Deletes a key in which something stands that no replica writes.
    async fn reset(&self, key: &str, field: &str, found: Option<&[u8]>, expected: &str) -> Result<(), CommandError> {
        let found = found.unwrap_or_default();
        let shown = escaped(found);
        tracing::error!(key, field, found = shown, expected, "a key of the token vault is damaged; it is reset");
        self.connection.call::<u8>(&self.reset, &[key], &[field.as_bytes(), found]).await.map(drop)
    }

    /// Whether `owner` has the lock now: only if nobody had it.
    pub async fn lock(&self, owner: &str, lifetime: Duration) -> Result<bool, CommandError> {
        let mut command = cmd("SET");
        command.arg(&self.lock).arg(owner).arg("NX").arg("PX").arg(millis(lifetime));
        let taken: Option<String> = self.connection.run(&command).await?;
        if taken.is_none() {
            self.check_lock().await?;
        }
        Ok(taken.is_some())
    }

    /// A lock that no replica can have taken is broken: else all would wait for it, for ever.
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

    /// Whether `owner` still has the lock, which then lives on for `life`.
    pub async fn renew(&self, owner: &str, lifetime: Duration) -> Result<bool, CommandError> {
        let life = millis(lifetime).to_string();
        self.connection.call(&self.renew, &[&self.lock], &[owner.as_bytes(), life.as_bytes()]).await
    }

    /// Gives back what `owner` has. With `pause`, whoever looks is told to leave the token endpoint alone.
    pub async fn release(&self, owner: &str, pause: Option<Duration>) -> Result<(), CommandError> {
        let pause = pause.map_or(0, millis).to_string();
        let arguments = [owner.as_bytes(), pause.as_bytes()];
        self.connection.call::<u8>(&self.release, &[&self.lock, &self.pause], &arguments).await.map(drop)
    }

    /// Stores the token and tells everybody, unless it is old or another has the lock; gives back what `owner` has.
    pub async fn publish(&self, owner: &str, token: &Token) -> Result<TokenPublishOutcome, CommandError> {
        let numbers =
            [token.generation, millis(token.lifetime), millis(token.remaining)].map(|number| number.to_string());
        let [generation, lifetime, left] = numbers.each_ref().map(String::as_bytes);
        let keys = [&*self.token, &*self.generation, &*self.lock];
        let arguments = [owner.as_bytes(), generation, lifetime, left, &token.secret, self.channel.as_bytes()];
        let word: String = self.connection.call(&self.publish, &keys, &arguments).await?;
        match &*word {
            "done" => Ok(TokenPublishOutcome::Stored),
            "newer" => Ok(TokenPublishOutcome::Superseded),
            "lost" => Ok(TokenPublishOutcome::LockLost),
            _ => Err(CommandError::NoAnswer(format!("the script says {word:?}"))),
        }
    }

    /// The newest refresh token in place of the configured one that has this name.
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

    /// Stores it, unless this number or a higher one was. It has no end: nobody knows when the platform forgets it.
    pub async fn store_refresh_token(&self, configured: &str, token: &RefreshToken) -> Result<(), CommandError> {
        let (key, number) = (self.refresh_key(configured), token.number.to_string());
        let arguments = [number.as_bytes(), &token.secret];
        self.connection.call::<u8>(&self.store_refresh, &[&key], &arguments).await.map(drop)
    }

    fn refresh_key(&self, configured: &str) -> String {
        format!("{}{configured}", self.refresh)
    }

    /// Hears generations that are stored.
    pub async fn listen(&self) -> Result<TokenUpdates, CommandError> {
        Ok(TokenUpdates(self.connection.listen(&[&self.channel]).await?))
    }
}

/// Word of new tokens.
#[derive(Debug)]
pub struct TokenUpdates(PubSubListener);

impl TokenUpdates {
    /// The next generation that was stored (0, if that cannot be read). None when the connection is lost.
    pub async fn next(&mut self) -> Option<u64> {
        let (_, bytes) = self.0.next().await?;
        Some(number(&bytes).unwrap_or_default())
    }
}

impl VaultValues {
    /// What they say, and which of them no replica can have written; those are left out.
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

    /// The token, if it has not ended.
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

/// The number of a refresh token's rotation is none that a replica writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DamagedNumber;

impl RefreshToken {
    /// What its fields say.
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

/// Whether a lock with this left (negative: it has no end, or is gone) will end by itself.
fn lock_is_sound(left: i64) -> bool {
    const GONE: i64 = -2;
    left == GONE || span(left).map_or(left == 0, |left| left <= LOCK_MAX)
}

fn span(millis: i64) -> Option<Duration> {
    u64::try_from(millis).ok().filter(|millis| *millis > 0).map(Duration::from_millis)
}

/// The beginning of a value, as an operator may read it.
fn escaped(value: &[u8]) -> String {
    value.iter().take(SHOWN_LEN_MAX).flat_map(|byte| std::ascii::escape_default(*byte)).map(char::from).collect()
}

/// The server counts in whole milliseconds, and nothing may live for none of them.
fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX).max(1)
}
