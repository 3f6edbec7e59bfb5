//! The token that the replicas of an account share, its lock, word of a new one, and the refresh token behind it. All
//! keys lie in one slot.
//!
//! It knows no secrets: what is stored is sealed by whoever stores it. A token's remaining life is its key's, so that no
//! replica's clock matters.

use std::time::Duration;

use redis::cmd;

use super::{
    connection::{CommandError, Connection, Listener, Script},
    keys::key,
};
use crate::model::AccountName;

/// One account's place. Every caller has its own `owner`, and another one for every lock.
#[derive(Debug)]
pub struct Vault {
    connection: Connection,
    look: Script,
    publish: Script,
    release: Script,
    renew: Script,
    keep_refresh: Script,
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
pub struct Content {
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
    pub left: Duration,
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
pub enum Stored {
    Done,
    /// This generation or a newer one was stored before.
    Newer,
    /// Another has the lock.
    Lost,
}

type Row = (u64, Option<u64>, Option<u64>, Option<Vec<u8>>, i64, i64);

impl Vault {
    pub fn new(connection: Connection, prefix: &str, account: &AccountName) -> Self {
        let name = |what| key(prefix, &format!("token:{account}"), what);
        Self {
            connection,
            look: Script::new(include_str!("scripts/token_look.lua")),
            publish: Script::new(include_str!("scripts/token_publish.lua")),
            release: Script::new(include_str!("scripts/token_release.lua")),
            renew: Script::new(include_str!("scripts/token_renew.lua")),
            keep_refresh: Script::new(include_str!("scripts/token_refresh.lua")),
            token: name("token"),
            generation: name("generation"),
            lock: name("lock"),
            pause: name("pause"),
            refresh: name("refresh:"),
            channel: format!("{prefix}:token:{account}:news"),
        }
    }

    pub async fn look(&self) -> Result<Content, CommandError> {
        let keys = [&*self.token, &*self.generation, &*self.pause];
        let row: Row = self.connection.call(&self.look, &keys, &[]).await?;
        Ok(Content::of(row))
    }

    /// Whether `owner` has the lock now: only if nobody had it.
    pub async fn lock(&self, owner: &str, life: Duration) -> Result<bool, CommandError> {
        let mut command = cmd("SET");
        command.arg(&self.lock).arg(owner).arg("NX").arg("PX").arg(millis(life));
        let taken: Option<String> = self.connection.run(&command).await?;
        Ok(taken.is_some())
    }

    /// Whether `owner` still has the lock, which then lives on for `life`.
    pub async fn renew(&self, owner: &str, life: Duration) -> Result<bool, CommandError> {
        let life = millis(life).to_string();
        self.connection.call(&self.renew, &[&self.lock], &[owner.as_bytes(), life.as_bytes()]).await
    }

    /// Gives back what `owner` has. With `pause`, whoever looks is told to leave the token endpoint alone.
    pub async fn release(&self, owner: &str, pause: Option<Duration>) -> Result<(), CommandError> {
        let pause = pause.map_or(0, millis).to_string();
        let arguments = [owner.as_bytes(), pause.as_bytes()];
        self.connection.call::<u8>(&self.release, &[&self.lock, &self.pause], &arguments).await.map(drop)
    }

    /// Stores the token and tells everybody, unless it is old or another has the lock; gives back what `owner` has.
    pub async fn publish(&self, owner: &str, token: &Token) -> Result<Stored, CommandError> {
        let numbers = [token.generation, millis(token.lifetime), millis(token.left)].map(|number| number.to_string());
        let [generation, lifetime, left] = numbers.each_ref().map(String::as_bytes);
        let keys = [&*self.token, &*self.generation, &*self.lock];
        let arguments = [owner.as_bytes(), generation, lifetime, left, &token.secret, self.channel.as_bytes()];
        let word: String = self.connection.call(&self.publish, &keys, &arguments).await?;
        match &*word {
            "done" => Ok(Stored::Done),
            "newer" => Ok(Stored::Newer),
            "lost" => Ok(Stored::Lost),
            _ => Err(CommandError::NoAnswer(format!("the script says {word:?}"))),
        }
    }

    /// The newest refresh token in place of the configured one that has this name.
    pub async fn refresh_token(&self, configured: &str) -> Result<Option<RefreshToken>, CommandError> {
        let mut command = cmd("HMGET");
        command.arg(self.refresh_key(configured)).arg(&["number", "secret"]);
        let (number, secret): (Option<u64>, Option<Vec<u8>>) = self.connection.run(&command).await?;
        Ok(number.zip(secret).map(|(number, secret)| RefreshToken { number, secret }))
    }

    /// Stores it, unless this number or a higher one was. It has no end: nobody knows when the platform forgets it.
    pub async fn keep_refresh_token(&self, configured: &str, token: &RefreshToken) -> Result<(), CommandError> {
        let (key, number) = (self.refresh_key(configured), token.number.to_string());
        let arguments = [number.as_bytes(), &token.secret];
        self.connection.call::<u8>(&self.keep_refresh, &[&key], &arguments).await.map(drop)
    }

    fn refresh_key(&self, configured: &str) -> String {
        format!("{}{configured}", self.refresh)
    }

    /// Hears generations that are stored.
    pub async fn listen(&self) -> Result<News, CommandError> {
        Ok(News(self.connection.listen(&[&self.channel]).await?))
    }
}

/// Word of new tokens.
#[derive(Debug)]
pub struct News(Listener);

impl News {
    /// The next generation that was stored (0, if that cannot be read). None when the connection is lost.
    pub async fn next(&mut self) -> Option<u64> {
        let (_, bytes) = self.0.next().await?;
        Some(std::str::from_utf8(&bytes).ok().and_then(|text| text.parse().ok()).unwrap_or_default())
    }
}

impl Content {
    fn of((last, generation, lifetime, secret, left, pause): Row) -> Self {
        let span = |millis: i64| u64::try_from(millis).ok().filter(|millis| *millis > 0).map(Duration::from_millis);
        let token = || {
            let lifetime = Duration::from_millis(lifetime?);
            Some(Token { generation: generation?, lifetime, left: span(left)?, secret: secret? })
        };
        Self { last, token: token(), pause: span(pause) }
    }
}

/// The server counts in whole milliseconds, and nothing may live for none of them.
fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX).max(1)
}
