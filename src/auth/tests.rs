//! Tokens over real sockets: the handle on one side, a scripted token endpoint on the other.

mod endpoint;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use parking_lot::Mutex;
use tempfile::TempDir;

use self::endpoint::{Endpoint, Reply};
use super::{
    AccountStatus, ClientAuth, Grant, OAuthClient, Settings, Token, Tokens,
    token_source::{GrantError, GrantedToken, TokenSource},
};
use crate::{
    model::{Secret, SecretRef, StreamName},
    network::{self, NetworkPolicy, Resolver, TrustedRoots},
    protocol::refresh::GrantFailure,
    tasks::Tasks,
    telemetry::chain,
};

/// Timeout of every wait.
const TIMEOUT: Duration = Duration::from_secs(20);

const CANARIES: [&str; 4] = ["canary-s%cret", "canary-access-token", "canary-refresh-1", "canary-refresh-2"];

#[tokio::test]
async fn the_client_authenticates_in_the_header_or_in_the_body() {
    let mut endpoint = Endpoint::start(vec![Reply::granted("t", 1800)]).await;
    let world = AccountFixture::new();
    let settings = world.settings(&endpoint, world.client_credentials(ClientAuth::Basic));
    let token = fetch(&Settings { scope: "read write".to_owned(), ..settings }).await.unwrap();
    assert_eq!(token.secret.expose(), "t");
    let request = endpoint.request().await;
    assert_eq!(request.body, "grant_type=client_credentials&scope=read+write");
    // "app 1" and "canary-s%cret", form-encoded, joined, base64
    assert_eq!(request.header("authorization"), Some("Basic YXBwKzE6Y2FuYXJ5LXMlMjVjcmV0"));
    assert_eq!(request.header("content-type"), Some("application/x-www-form-urlencoded"));

    fetch(&world.settings(&endpoint, world.client_credentials(ClientAuth::Body))).await.unwrap();
    let request = endpoint.request().await;
    assert_eq!(request.body, "grant_type=client_credentials&client_id=app+1&client_secret=canary-s%25cret");
    assert_eq!(request.header("authorization"), None);
}

#[tokio::test]
async fn each_bad_response_is_classified_and_its_body_is_not_shown() {
    use GrantFailure::{Rejected, Unreachable};
    let other = Endpoint::start(vec![Reply::granted("t", 1800)]).await;
    let far = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\nRetry-After: Sun, 06 Nov 1994 08:51:37 GMT";
    let body = r#"{"error":"invalid_grant","error_description":"canary-access-token"}"#;
    let long = format!(r#"{{"access_token":"canary-access-token","more":"{}"}}"#, "x".repeat(65_536));
    let pause = |secs| GrantFailure::Throttled(Some(Duration::from_secs(secs)));
    let table = [
        (Reply::response(500, "", body), Rejected, "rejects the credentials (500 invalid_grant)"),
        (Reply::response(500, "", "{}"), Unreachable, "the token endpoint answered 500"),
        (Reply::response(503, "", ""), Unreachable, "the token endpoint answered 503"),
        (Reply::response(503, "Retry-After: soon", ""), Unreachable, "the token endpoint answered 503"),
        (Reply::response(503, "Retry-After: 7", ""), pause(7), "limits the request rate (503, Retry-After 7 s)"),
        (Reply::response(503, far, "<html>"), pause(120), "limits the request rate (503, Retry-After 120 s)"),
        (
            Reply::response(503, "Retry-After: 7", r#"{"error":"temporarily_unavailable"}"#),
            pause(7),
            "limits the request rate (503, Retry-After 7 s)",
        ),
        (Reply::response(503, "Retry-After: 7", r#"{"error":"invalid_client"}"#), Rejected, "(503 invalid_client)"),
        (Reply::response(200, "", r#"{"error":"invalid_client"}"#), Rejected, "credentials (200 invalid_client)"),
        (Reply::response(200, "", r#"{"error":"canary-refresh-1"}"#), Rejected, "(200 without a known code)"),
        (Reply::response(200, "", r#"{"error":"server_error"}"#), Unreachable, "answered 200"),
        (
            Reply::response(200, "", r#"{"error":"invalid_grant","access_token":"canary-access-token"}"#),
            Rejected,
            "credentials (200 invalid_grant)",
        ),
        (Reply::response(302, &format!("Location: {}", other.url), ""), Unreachable, "answered 302"),
        (
            Reply::response(200, "Content-Type: text/html", "<html>canary-access-token"),
            Unreachable,
            "(200, content type text/html) cannot be used",
        ),
        (Reply::response(200, "", &long), Unreachable, "longer than 65536 bytes"),
        (Reply::response(200, "", r#"{"access_token":"canary-access-token""#), Unreachable, "not a JSON object"),
        (Reply::response(204, "", ""), Unreachable, "(204, content type application/json) cannot be used"),
        (Reply::truncated(), Unreachable, "cannot reach the token endpoint"),
        (Reply::HangUp, Unreachable, "cannot reach the token endpoint"),
        (Reply::Hang, Unreachable, "cannot reach the token endpoint"),
        (Reply::response(400, "", body), Rejected, "rejects the credentials (400 invalid_grant)"),
        (Reply::response(401, "", r#"{"error":"canary-access-token"}"#), Rejected, "(401 without a known code)"),
        (
            Reply::response(404, "Content-Type: text/html", "<html>"),
            Unreachable,
            "/oauth/token (accounts.acme.token_url): answered 404 without an OAuth error code",
        ),
        (Reply::response(404, "", r#"{"error":"Not Found"}"#), Unreachable, "answered 404 without an OAuth"),
        (Reply::response(400, "", "{}"), Unreachable, "answered 400 without an OAuth error code"),
        (Reply::response(403, "", ""), Unreachable, "answered 403 without an OAuth error code"),
        (Reply::response(401, "", ""), Rejected, "rejects the credentials (401 without a known code)"),
        (Reply::response(404, "", body), Rejected, "rejects the credentials (404 invalid_grant)"),
        (Reply::response(400, "", r#"{"error":"temporarily_unavailable"}"#), Unreachable, "answered 400"),
        (Reply::response(429, "Retry-After: 42", "{}"), pause(42), "limits the request rate"),
        (Reply::response(429, far, ""), pause(120), "limits the request rate"),
        (Reply::response(429, "Retry-After: Sun, 06 Nov 1994 08:51:37 GMT", ""), pause(1), "limits the request rate"),
        (Reply::response(429, "Retry-After: 99999999", ""), pause(3_600), "limits the request rate"),
        (Reply::response(429, "Retry-After: soon", ""), GrantFailure::Throttled(None), "limits the request rate"),
    ];
    let world = AccountFixture::new();
    for (reply, verdict, text) in table {
        let name = format!("{reply:?}");
        let endpoint = Endpoint::start(vec![reply]).await;
        let settings = world.settings(&endpoint, world.client_credentials(ClientAuth::Basic));
        let error = fetch(&settings).await.unwrap_err();
        assert_eq!(error.failure(), verdict, "{name}");
        let request = format!("POST {} (accounts.acme.token_url): ", endpoint.url);
        assert!(chain(&error).starts_with(&request) && chain(&error).contains(text), "{name}: {}", chain(&error));
        assert_no_canary(&format!("{error:?} {}", chain(&error)));
    }
    assert_eq!(other.count(), 0, "a redirect was followed");
}

#[tokio::test]
async fn a_valid_token_is_read_despite_extra_members() {
    let body = r#"{"access_token":"t","token_type":"Bearer","expires_in":1800}"#;
    let odd =
        r#"{"access_token":"t","expires_in":"1800","refresh_token":null,"scope":["a"],"token_type":7,"error":""}"#;
    let table = [
        (Reply::response(201, "", body), 1_800),
        (Reply::response(200, "Content-Type: text/plain", body), 1_800),
        (Reply::response(200, "Content-Type: text/html; charset=utf-8", odd), 1_800),
        (Reply::response(200, "Content-Type: ", body), 1_800),
        (Reply::compressed(body), 1_800),
        (Reply::response(200, "", r#"{"access_token":"t","expires_in":0}"#), 600),
    ];
    let world = AccountFixture::new();
    for (reply, life) in table {
        let name = format!("{reply:?}");
        let endpoint = Endpoint::start(vec![reply]).await;
        let granted = fetch(&world.settings(&endpoint, world.client_credentials(ClientAuth::Basic))).await;
        let granted = granted.unwrap_or_else(|error| panic!("{name}: {}", chain(&error)));
        assert_eq!(granted.secret.expose(), "t", "{name}");
        assert_eq!(granted.lifetime.unwrap().scheduled, Duration::from_secs(life), "{name}");
    }
}

#[tokio::test]
async fn a_compressed_answer_is_read_within_its_bound() {
    let world = AccountFixture::new();
    let long = format!(r#"{{"access_token":"t","more":"{}"}}"#, "x".repeat(1 << 20));
    let endpoint = Endpoint::start(vec![Reply::compressed(&long)]).await;
    let error = fetch(&world.settings(&endpoint, world.client_credentials(ClientAuth::Basic))).await.unwrap_err();
    assert!(chain(&error).contains("longer than 65536 bytes"), "{}", chain(&error));
}

#[tokio::test]
async fn a_refused_connection_is_unreachable() {
    let world = AccountFixture::new();
    let endpoint = Endpoint::start(vec![]).await;
    let settings = world.settings(&endpoint, world.client_credentials(ClientAuth::Basic));
    endpoint.stop().await;
    assert_eq!(fetch(&settings).await.unwrap_err().failure(), GrantFailure::Unreachable);
}

#[tokio::test]
async fn the_lifetime_comes_from_the_claims_without_expires_in() {
    let jwt = format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(r#"{"iat":5000,"exp":5900}"#));
    let body = format!(r#"{{"access_token":"{jwt}"}}"#);
    let endpoint = Endpoint::start(vec![Reply::response(200, "", &body)]).await;
    let world = AccountFixture::new();
    let relay = world.start(&endpoint, world.client_credentials(ClientAuth::Basic));
    relay.token(1).await;
    let status = relay.status(|status| status.state == "valid").await;
    let (remaining, next) = (status.remaining_seconds.unwrap(), status.next_refresh_seconds.unwrap());
    assert!((880.0..=900.0).contains(&remaining), "{remaining}");
    assert!((655.0..=677.0).contains(&next), "a quarter of the life ahead of the end: {next}");
}

#[tokio::test]
async fn a_token_of_two_seconds_is_renewed_repeatedly() {
    let endpoint = Endpoint::start(vec![Reply::granted("t", 2)]).await;
    let world = AccountFixture::new();
    let relay = world.start(&endpoint, world.client_credentials(ClientAuth::Basic));
    relay.token(3).await;
    assert!((3..=4).contains(&endpoint.count()), "{}", endpoint.count());
}

#[tokio::test]
async fn fifty_streams_that_refuse_one_token_cause_one_grant() {
    let endpoint = Endpoint::start(vec![Reply::granted("t", 1800)]).await;
    let world = AccountFixture::new();
    let relay = world.start(&endpoint, world.client_credentials(ClientAuth::Basic));
    relay.token(1).await;
    relay.tokens.record_live(&stream(), 1);
    let mut streams = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let tokens = relay.tokens.clone();
        streams.spawn(async move {
            tokens.refuse(&stream(), 1);
            let mut watch = tokens.watch();
            watch.wait_for(|token| token.as_ref().is_some_and(|token| token.generation == 2)).await.unwrap();
            tokens.refuse(&stream(), 1);
        });
    }
    streams.join_all().await;
    relay.tokens.refresh();
    let status = relay.status(|status| status.next_refresh_seconds.is_some_and(|secs| secs < 61.0)).await;
    assert_eq!((status.generation, endpoint.count()), (2, 2), "and the operator waits out the interval");
}

#[tokio::test]
async fn a_repeated_refused_token_is_requested_again_within_the_interval() {
    let replies = vec![Reply::granted("a", 1800), Reply::granted("a", 1800), Reply::granted("b", 1800)];
    let endpoint = Endpoint::start(replies).await;
    let world = AccountFixture::new();
    let relay = world.start(&endpoint, world.client_credentials(ClientAuth::Basic));
    relay.token(1).await;
    relay.tokens.record_live(&stream(), 1);
    relay.tokens.refuse(&stream(), 1);
    relay.token(2).await;
    relay.tokens.refuse(&stream(), 2);
    let waits = |status: &AccountStatus| status.waiting_seconds.is_some_and(|seconds| seconds <= 5.0);
    relay.status(waits).await;
    relay.token(3).await;
    assert_eq!(endpoint.count(), 3);
}

#[tokio::test]
async fn the_running_token_stays_while_the_endpoint_fails() {
    let late = Reply::gate();
    let replies = vec![Reply::granted("a", 1800), Reply::response(500, "", ""), late.1, Reply::granted("b", 1800)];
    let endpoint = Endpoint::start(replies).await;
    let world = AccountFixture::new();
    let relay = world.start(&endpoint, world.client_credentials(ClientAuth::Basic));
    relay.token(1).await;
    relay.refuse(1);
    let status = relay.status(|status| status.last_error.is_some()).await;
    assert_eq!((status.state, status.generation), ("renewing", 1));
    assert!(status.last_error.unwrap().ends_with(": the token endpoint answered 500"));
    assert_eq!(relay.token(1).await.secret.expose(), "a");
    late.0.notify_one();
    assert_eq!(relay.token(2).await.secret.expose(), "b");
    let status = relay.status(|status| status.state == "valid").await;
    assert_eq!((status.refreshes, status.last_error), (2, None));
}

#[tokio::test]
async fn corrected_credentials_are_used_without_a_restart() {
    let rejected = Reply::response(401, "", r#"{"error":"invalid_client"}"#);
    let mut endpoint = Endpoint::start(vec![rejected, Reply::granted("t", 1800)]).await;
    let world = AccountFixture::new();
    let settings = Settings {
        refresh_interval_min: Duration::from_millis(100),
        ..world.settings(&endpoint, world.client_credentials(ClientAuth::Body))
    };
    let relay = RefresherFixture::start(settings);
    let status = relay.status(|status| status.state == "rejected").await;
    let error = "the token endpoint rejects the credentials (401 invalid_client)";
    assert!(status.last_error.unwrap().ends_with(error));
    world.write("secret", "corrected");
    relay.token(1).await;
    assert!(endpoint.request().await.body.ends_with("client_secret=canary-s%25cret"));
    assert!(endpoint.request().await.body.ends_with("client_secret=corrected"));
}

#[tokio::test]
async fn a_rotated_refresh_token_is_used_after_a_restart_until_another_one_is_configured() {
    let rotated = r#"{"access_token":"t","expires_in":1800,"refresh_token":"canary-refresh-2"}"#;
    let mut endpoint = Endpoint::start(vec![Reply::response(200, "", rotated), Reply::granted("t", 1800)]).await;
    let world = AccountFixture::new();
    let [_, _, first, second] = CANARIES;
    for (configured, sent) in [(first, first), (first, second), ("another", "another")] {
        world.write("refresh", configured);
        let relay = world.start(&endpoint, world.refresh_token());
        relay.token(1).await;
        relay.tasks.drain(TIMEOUT).await.unwrap();
        assert_eq!(endpoint.request().await.body, format!("grant_type=refresh_token&refresh_token={sent}"));
    }
}

#[tokio::test]
async fn shutdown_waits_for_a_refresh_token_request() {
    let rotated = Reply::response(200, "", r#"{"access_token":"t","refresh_token":"canary-refresh-2"}"#);
    let (gate, closed) = Reply::gate();
    let mut endpoint = Endpoint::start(vec![closed, rotated]).await;
    let world = AccountFixture::new();
    let relay = world.start(&endpoint, world.refresh_token());
    endpoint.request().await;
    let drained = relay.tasks.drain(TIMEOUT);
    let (drained, ()) = tokio::join!(drained, async { gate.notify_one() });
    drained.unwrap();
    let kept = fs::read_to_string(world.folder.path().join("vault/acme.refresh")).unwrap();
    assert!(kept.contains("canary-refresh-2"));
}

#[tokio::test]
async fn a_hung_endpoint_does_not_delay_shutdown() {
    let mut endpoint = Endpoint::start(vec![Reply::Hang]).await;
    let world = AccountFixture::new();
    let relay = world.start(&endpoint, world.client_credentials(ClientAuth::Basic));
    endpoint.request().await;
    assert_eq!(relay.tokens.status().state, "waiting");
    tokio::time::timeout(Duration::from_secs(5), relay.tasks.drain(TIMEOUT)).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_static_token_is_read_again_when_its_file_changes() {
    let world = AccountFixture::new();
    let endpoint = Endpoint::start(vec![]).await;
    let path = world.write("static", "first\n");
    let relay = world.start(&endpoint, Grant::Static { token: SecretRef::File(path) });
    assert_eq!(relay.token(1).await.secret.expose(), "first");
    let status = relay.status(|status| status.state == "valid").await;
    assert_eq!((status.remaining_seconds, status.next_refresh_seconds), (None, None));

    relay.refuse(1);
    let status = relay.status(|status| status.state == "rejected").await;
    let error = "the platform rejects the static token; replace it";
    assert_eq!((status.generation, status.last_error.as_deref()), (1, Some(error)));

    world.write("static", "second");
    assert_eq!(relay.token(2).await.secret.expose(), "second");
    assert_eq!(relay.status(|status| status.state == "valid").await.last_error, None);
    assert_eq!(endpoint.count(), 0);
}

#[tokio::test]
async fn no_secret_gets_into_logs_status_or_debug() {
    let logs = CapturedLogs::of_this_process();
    let granted = r#"{"access_token":"canary-access-token","expires_in":1800,"refresh_token":"canary-refresh-2"}"#;
    let failed = r#"{"error":"canary-refresh-2","access_token":"canary-access-token"}"#;
    let endpoint = Endpoint::start(vec![Reply::response(200, "", granted), Reply::response(401, "", failed)]).await;
    let world = AccountFixture::new();
    fs::write(world.folder.path().join("vault"), "a file where a directory should be").unwrap();
    let relay = world.start(&endpoint, world.refresh_token());
    relay.token(1).await;
    relay.refuse(1);
    let status = relay.status(|status| status.state == "rejected").await;

    let logs = logs.text();
    for expected in ["token adopted", "it is lost when this process ends", "credentials rejected", "hyper_util"] {
        assert!(logs.contains(expected), "{expected} is missing, so the logs prove nothing");
    }
    let status = serde_json::to_string(&status).unwrap();
    assert_no_canary(&format!("{logs} {status} {:?} {:?}", relay.tokens, relay.tokens.watch()));
}

/// The account of one relay, with its tasks.
struct RefresherFixture {
    tokens: Tokens,
    tasks: Tasks,
}

impl RefresherFixture {
    fn start(settings: Settings) -> Self {
        let mut tasks = Tasks::new("auth");
        Self { tokens: Tokens::start(settings, &network(), &mut tasks).unwrap(), tasks }
    }

    /// Records a live session with the token, then its rejection.
    fn refuse(&self, generation: u64) {
        self.tokens.record_live(&stream(), generation);
        self.tokens.refuse(&stream(), generation);
    }

    /// Waits for the token of this generation.
    async fn token(&self, generation: u64) -> Token {
        let mut watch = self.tokens.watch();
        let reached = watch.wait_for(|token| token.as_ref().is_some_and(|token| token.generation >= generation));
        let token = tokio::time::timeout(TIMEOUT, reached).await.unwrap().unwrap().clone().unwrap();
        assert_eq!(token.generation, generation);
        token
    }

    async fn status(&self, fits: impl Fn(&AccountStatus) -> bool) -> AccountStatus {
        let mut reports = self.tokens.handle.reports.clone();
        let fitting = async {
            while !fits(&self.tokens.status()) {
                reports.changed().await.unwrap();
            }
            self.tokens.status()
        };
        tokio::time::timeout(TIMEOUT, fitting).await.expect("the status never came")
    }
}

fn stream() -> StreamName {
    "queues".parse().unwrap()
}

/// A directory with the secrets of an account.
struct AccountFixture {
    folder: TempDir,
}

impl AccountFixture {
    fn new() -> Self {
        let world = Self { folder: tempfile::tempdir().unwrap() };
        world.write("id", "app 1");
        world.write("secret", CANARIES[0]);
        world.write("refresh", CANARIES[2]);
        world
    }

    /// Replaces the file atomically.
    fn write(&self, name: &str, text: &str) -> PathBuf {
        let (written, path) = (self.folder.path().join("written"), self.folder.path().join(name));
        fs::write(&written, text).unwrap();
        fs::rename(&written, &path).unwrap();
        path
    }

    fn client_credentials(&self, placement: ClientAuth) -> Grant {
        Grant::ClientCredentials(self.client(placement))
    }

    fn refresh_token(&self) -> Grant {
        let refresh_token = reference(self.folder.path(), "refresh");
        Grant::RefreshToken { client: self.client(ClientAuth::Basic), refresh_token }
    }

    fn client(&self, placement: ClientAuth) -> OAuthClient {
        let folder = self.folder.path();
        OAuthClient { id: reference(folder, "id"), secret: reference(folder, "secret"), placement }
    }

    fn settings(&self, endpoint: &Endpoint, grant: Grant) -> Settings {
        Settings {
            account: "acme".parse().unwrap(),
            grant,
            token_url: endpoint.url.clone(),
            scope: String::new(),
            refresh_buffer: Duration::from_secs(300),
            refresh_interval_min: Duration::from_secs(60),
            refresh_jitter: Duration::from_secs(2),
            lifetime_default: Duration::from_secs(600),
            refresh_token_dir: self.folder.path().join("vault"),
        }
    }

    fn start(&self, endpoint: &Endpoint, grant: Grant) -> RefresherFixture {
        RefresherFixture::start(self.settings(endpoint, grant))
    }
}

/// Captured log lines.
#[derive(Clone, Default)]
struct CapturedLogs(Arc<Mutex<Vec<u8>>>);

impl CapturedLogs {
    /// Captures the log of the whole process: a thread-local subscriber would miss lines of other threads.
    fn of_this_process() -> Self {
        let logs = Self::default();
        let writer = logs.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::set_global_default(subscriber).expect("no other test listens to the process's log");
        logs
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().clone()).unwrap()
    }
}

impl io::Write for CapturedLogs {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends one request with a short timeout.
async fn fetch(settings: &Settings) -> Result<GrantedToken, GrantError> {
    TokenSource::new(settings, &network(), Duration::from_millis(500)).unwrap().fetch(None::<Secret>).await
}

fn network() -> NetworkPolicy {
    NetworkPolicy::new(
        network::Settings::default(),
        TrustedRoots::of(rustls::RootCertStore::empty()).unwrap(),
        Resolver::default(),
    )
}

fn reference(folder: &Path, name: &str) -> SecretRef {
    SecretRef::File(folder.join(name))
}

/// Plain, form-encoded, base64 and hex.
fn assert_no_canary(text: &str) {
    for canary in CANARIES {
        let hex: String = canary.bytes().map(|byte| format!("{byte:02x}")).collect();
        let coded = STANDARD_NO_PAD.encode(canary);
        for form in [canary.to_owned(), canary.replace('%', "%25"), hex, coded[..coded.len() - 2].to_owned()] {
            assert!(!text.contains(&form), "{form} is in: {text}");
        }
    }
    assert!(!text.contains("YXBwKzE6Y2FuYXJ5"), "the client's Basic header is in: {text}");
}
