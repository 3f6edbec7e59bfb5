//! Replicas of one account, each with its own connections and tasks.

use std::{sync::Arc, thread::JoinHandle, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use tempfile::TempDir;
use tokio::sync::mpsc;
use trunkline::{
    app::install_crypto,
    auth::{AccountStatus, ClientAuth, Grant, OAuthClient, Settings, TokenSharingSettings, Tokens, seal::Seal},
    model::{Secret, SecretRef, Span, StreamName},
    network::{self, NetworkPolicy, Resolver, TrustedRoots},
    store::redis::{address::Address, connection::RedisConnection},
    tasks::Tasks,
};

use crate::harness::{Platform, RedisServer, redis_limits};

const WAIT_MAX: Duration = Duration::from_secs(20);

pub(super) struct TokenReplica {
    tokens: Tokens,
    tasks: Tasks,
    folder: TempDir,
}

pub(super) struct TokenReplicas(Vec<TokenReplica>);

/// The grant that a replica uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GrantFlow {
    Client,
    RefreshToken,
}

/// The settings of a replica.
#[derive(Clone)]
struct TokenReplicaPlan {
    account: String,
    buffer: Span,
    keys: Vec<Secret>,
    grant: GrantFlow,
    token_url: String,
    redis: Address,
}

impl TokenReplicaPlan {
    fn new(buffer: &str, platform: &Platform, redis: &RedisServer) -> Self {
        let token_url = format!("{}/oauth/token", platform.url());
        Self {
            account: "acme".to_owned(),
            buffer: buffer.parse().unwrap(),
            keys: Vec::new(),
            grant: GrantFlow::Client,
            token_url,
            redis: redis.url().parse().unwrap(),
        }
    }

    fn start(self) -> TokenReplica {
        install_crypto();
        let folder = tempfile::tempdir().unwrap();
        let secret = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            SecretRef::File(path)
        };
        let client = OAuthClient {
            id: secret("id", "demo"),
            secret: secret("secret", "demo-secret"),
            placement: ClientAuth::Basic,
        };
        let grant = match self.grant {
            GrantFlow::Client => Grant::ClientCredentials(client),
            GrantFlow::RefreshToken => Grant::RefreshToken { client, refresh_token: secret("refresh", "demo-refresh") },
        };
        let settings = Settings {
            account: self.account.parse().unwrap(),
            grant,
            token_url: self.token_url,
            scope: String::new(),
            refresh_buffer: self.buffer.0,
            refresh_interval_min: Duration::from_secs(60),
            refresh_jitter: Duration::from_secs(2),
            lifetime_default: Duration::from_secs(600),
            refresh_token_dir: folder.path().join("vault"),
        };
        let connection = RedisConnection::new(self.redis, redis_limits());
        let seal = Arc::new(Seal::new(&self.keys).unwrap());
        let sharing = TokenSharingSettings { connection, prefix: "trunkline".to_owned(), seal };
        let mut tasks = Tasks::new("replica");
        let trust = TrustedRoots::of_machine().unwrap();
        let network = NetworkPolicy::new(network::Settings::default(), trust, Resolver::default());
        let tokens = Tokens::start_shared(settings, &network, sharing, &mut tasks).unwrap();
        TokenReplica { tokens, tasks, folder }
    }
}

/// A replica on its own thread, which can be suspended.
pub(super) struct ThreadedReplica {
    commands: mpsc::Sender<std::sync::mpsc::Receiver<()>>,
    thread: JoinHandle<()>,
}

impl ThreadedReplica {
    pub(super) fn with(buffer: &str, platform: &Platform, redis: &RedisServer) -> Self {
        let plan = TokenReplicaPlan::new(buffer, platform, redis);
        let (orders, mut ordered) = mpsc::channel::<std::sync::mpsc::Receiver<()>>(1);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let _replica = plan.start();
                while let Some(thaw) = ordered.recv().await {
                    if thaw.recv().is_err() {
                        return;
                    }
                }
            });
        });
        Self { commands: orders, thread }
    }

    /// Suspends the replica until a value is sent. A drop of the sender kills it.
    pub(super) async fn freeze(&self) -> std::sync::mpsc::SyncSender<()> {
        let (thaw, frozen) = std::sync::mpsc::sync_channel(1);
        self.commands.send(frozen).await.unwrap();
        thaw
    }

    pub(super) fn has_exited(&self) -> bool {
        self.thread.is_finished()
    }
}

impl TokenReplica {
    pub(super) fn with(buffer: &str, platform: &Platform, redis: &RedisServer) -> Self {
        TokenReplicaPlan::new(buffer, platform, redis).start()
    }

    /// A replica of this account.
    pub(super) fn of(account: &str, platform: &Platform, redis: &RedisServer) -> Self {
        TokenReplicaPlan { account: account.to_owned(), ..TokenReplicaPlan::new("300s", platform, redis) }.start()
    }

    /// A replica with encryption keys made from these bytes.
    pub(super) fn sealed(keys: &[u8], platform: &Platform, redis: &RedisServer) -> Self {
        let keys: Vec<Secret> = keys.iter().map(|byte| Secret::new(BASE64_STANDARD.encode([*byte; 32]))).collect();
        TokenReplicaPlan { keys, ..TokenReplicaPlan::new("300s", platform, redis) }.start()
    }

    /// A replica with the platform's refresh token and an encryption key.
    pub(super) fn refreshing(platform: &Platform, redis: &RedisServer) -> Self {
        let keys = vec![Secret::new(BASE64_STANDARD.encode([1; 32]))];
        TokenReplicaPlan { keys, grant: GrantFlow::RefreshToken, ..TokenReplicaPlan::new("300s", platform, redis) }
            .start()
    }

    /// The refresh token in its file.
    pub(super) fn refresh_token(&self) -> String {
        let text = std::fs::read_to_string(self.folder.path().join("vault/acme.refresh")).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["refresh_token"].as_str().unwrap().to_owned()
    }

    pub(super) fn key(what: &str) -> String {
        format!("{{trunkline:token:acme}}:{what}")
    }

    pub(super) async fn reach(&self, generation: u64) {
        let mut watch = self.tokens.watch();
        let reached = watch.wait_for(|token| token.as_ref().is_some_and(|token| token.generation >= generation));
        tokio::time::timeout(WAIT_MAX, reached).await.expect("a token in time").unwrap();
    }

    pub(super) fn has_a_token(&self) -> bool {
        self.tokens.status().remaining_seconds.is_some_and(|remaining| remaining > 0.0)
    }

    pub(super) fn generation(&self) -> u64 {
        self.tokens.watch().borrow().as_ref().map_or(0, |token| token.generation)
    }

    pub(super) fn secret(&self) -> Secret {
        self.tokens.watch().borrow().as_ref().unwrap().secret.clone()
    }

    /// Reports a live session with the token, then its rejection.
    pub(super) fn refuse(&self, generation: u64) {
        self.tokens.record_live(&stream(), generation);
        self.tokens.refuse(&stream(), generation);
    }

    /// Reports a rejection at the first handshake with the token.
    pub(super) fn refuse_unused(&self, generation: u64) {
        self.tokens.refuse(&stream(), generation);
    }

    pub(super) fn status(&self) -> AccountStatus {
        self.tokens.status()
    }

    /// Ends the replica without a release of its lock.
    pub(super) async fn crash(self) {
        drop(self.tasks);
        tokio::task::yield_now().await;
    }
}

fn stream() -> StreamName {
    "queues".parse().unwrap()
}

impl TokenReplicas {
    pub(super) fn start(count: usize, platform: &Platform, redis: &RedisServer) -> Self {
        Self::with("300s", count, platform, redis)
    }

    pub(super) fn with(buffer: &str, count: usize, platform: &Platform, redis: &RedisServer) -> Self {
        Self((0..count).map(|_| TokenReplica::with(buffer, platform, redis)).collect())
    }

    pub(super) async fn reach(&self, generation: u64) {
        for replica in &self.0 {
            replica.reach(generation).await;
        }
    }

    pub(super) fn newest(&self) -> u64 {
        self.0.iter().map(TokenReplica::generation).max().unwrap()
    }

    pub(super) fn oldest(&self) -> u64 {
        self.0.iter().map(TokenReplica::generation).min().unwrap()
    }

    pub(super) fn have_a_token(&self) -> bool {
        self.0.iter().all(TokenReplica::has_a_token)
    }

    pub(super) fn all_have_a_token(&self) {
        for replica in &self.0 {
            assert!(replica.has_a_token(), "{:?}", replica.tokens.status());
        }
    }

    pub(super) fn have_same_token(&self) -> bool {
        self.0.iter().all(|replica| replica.secret() == self.0[0].secret())
    }

    pub(super) fn agree(&self) {
        assert!(self.have_same_token());
    }

    pub(super) fn refuse(&self, generation: u64) {
        for replica in &self.0 {
            replica.refuse(generation);
        }
    }

    pub(super) fn refuse_unused(&self, generation: u64) {
        for replica in &self.0 {
            replica.refuse_unused(generation);
        }
    }
}
