//! Requests to the routes of a daemon without a platform.

use std::collections::BTreeMap;

use axum::{
    body::{Body, to_bytes},
    http::header::{ACCEPT_ENCODING, ALLOW, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, ORIGIN},
};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde_json::Value;

use super::*;
use crate::{
    admin::{ConnectionBudget, Readiness},
    auth::{self, Grant},
    connector::{Connector, genesys_sequenced},
    event_log::{self, EventLogs},
    model::{SecretRef, Source},
    network::{self, NetworkPolicy, Resolver, TrustedRoots},
    protocol::{
        backoff,
        session::Timeouts,
        stream::{self, OverflowPolicy, Rotation},
    },
    store::{
        Retention, Store,
        embedded::{self, EmbeddedStore},
    },
    tasks::Tasks,
    upstream::{self, StreamRegistry},
};

/// Timeout of every wait.
const TIMEOUT: Duration = Duration::from_secs(20);
const QUEUES: &str = "/admin/v1/streams/queues";

/// The routes with an account and two streams without a platform.
struct Daemon {
    site: TowerToHyperService<Router>,
    tasks: Tasks,
    logs: EventLogs,
    _directory: tempfile::TempDir,
}

impl Daemon {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let token = directory.path().join("token");
        std::fs::write(&token, "a-token").unwrap();
        let retention = Retention { events: u64::MAX, age: Duration::from_secs(1 << 30), bytes: u64::MAX };
        let path = directory.path().join("data");
        let store = Store::Embedded(EmbeddedStore::open(&embedded::Settings { path, retention }).unwrap());
        let names: [StreamName; 2] = ["agents", "queues"].map(|name| name.parse().unwrap());
        let sources = names.clone().map(|name| (name.clone(), Source::new(&acme(), &name)));
        let logs =
            EventLogs::open(store.clone(), &sources, &event_log::Settings { tail_bytes: 1 << 20 }).await.unwrap();
        let mut tasks = Tasks::new("admin's tests");
        let tokens = tokens(SecretRef::File(token), directory.path(), &mut tasks);
        let accounts = vec![tokens.clone()];
        let tokens = BTreeMap::from([(acme(), tokens)]);
        let streams =
            StreamRegistry::start(names.map(unreachable_stream).into(), &logs, &tokens, BTreeMap::new(), &mut tasks)
                .await
                .unwrap();
        let readiness = Readiness::default();
        let connections = ConnectionBudget { consumers: 10, operators: 8 };
        let parts = AdminContext {
            store,
            streams,
            accounts,
            replica: None,
            readiness,
            logs: logs.clone(),
            access: None,
            connections,
        };
        let origins = Origins {
            allowed: Vec::new(),
            hosts: Vec::new(),
            hosts_key: "admin.allowed_hosts",
            origins_key: None,
            loopback: true,
        };
        let site = TowerToHyperService::new(router(AdminState {
            parts,
            origins,
            token: None,
            started: clock::now(),
            pages: Arc::new(Semaphore::new(PAGES_MAX)),
        }));
        Self { site, tasks, logs, _directory: directory }
    }

    async fn ask(&self, method: &str, path: &str, headers: &[(HeaderName, &str)]) -> Response {
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| name == HOST) {
            request = request.header(HOST, "127.0.0.1:9090");
        }
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        self.site.call(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    /// The status, and the type of the problem if the response is one.
    async fn meaning(&self, method: &str, path: &str, headers: &[(HeaderName, &str)]) -> (u16, Option<String>) {
        let answer = self.ask(method, path, headers).await;
        let status = answer.status().as_u16();
        if answer.headers()[CONTENT_TYPE] != "application/problem+json" {
            return (status, None);
        }
        let problem = body(answer).await;
        let kind = problem["type"].as_str().unwrap().strip_prefix("urn:trunkline:problem:").unwrap().to_owned();
        (status, Some(kind))
    }

    async fn states(&self) -> [String; 2] {
        let shown = body(self.ask("GET", "/readyz", &[]).await).await;
        ["agents", "queues"].map(|stream| shown["streams"][stream].as_str().unwrap().to_owned())
    }

    async fn eventually(&self, what: &str, fact: impl AsyncFn() -> bool) {
        let met = async {
            while !fact().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(TIMEOUT, met).await.expect(what);
    }

    async fn end(self) {
        self.logs.close();
        self.tasks.drain(TIMEOUT).await.unwrap();
    }
}

async fn body(answer: Response) -> Value {
    serde_json::from_slice(&to_bytes(answer.into_body(), usize::MAX).await.unwrap()).unwrap()
}

fn acme() -> AccountName {
    "acme".parse().unwrap()
}

fn tokens(token: SecretRef, vault: &std::path::Path, tasks: &mut Tasks) -> Tokens {
    let settings = auth::Settings {
        account: acme(),
        grant: Grant::Static { token },
        token_url: String::new(),
        scope: String::new(),
        refresh_buffer: Duration::from_secs(300),
        refresh_interval_min: Duration::ZERO,
        refresh_jitter: Duration::ZERO,
        lifetime_default: Duration::from_secs(3_600),
        refresh_token_dir: vault.to_owned(),
    };
    Tokens::start(settings, &network(), tasks).unwrap()
}

fn network() -> NetworkPolicy {
    let trust = TrustedRoots::of(rustls::RootCertStore::empty()).unwrap();
    NetworkPolicy::new(network::Settings::default(), trust, Resolver::default())
}

/// A stream whose platform is unreachable.
fn unreachable_stream(stream: StreamName) -> upstream::Settings {
    let minute = Duration::from_secs(60);
    let url = "ws://127.0.0.1:1/".to_owned();
    let placement = genesys_sequenced::Placement::Header;
    let connector = Connector::Sequenced(genesys_sequenced::Settings { url, placement, snapshot_url: None });
    upstream::Settings {
        stream,
        account: acme(),
        api_url: String::new(),
        network: network(),
        frame_max: 1 << 20,
        rules: stream::Settings {
            feed: connector.feed(""),
            connector,
            rotation: Rotation::Overlap,
            rotation_jitter: Duration::ZERO,
            retention: minute,
            buffer: 16,
            buffer_bytes: 1 << 20,
            append_max: 16,
            overflow: OverflowPolicy::Backpressure,
            timeouts: Timeouts { connect: minute, silence: minute, frame: minute, close: minute },
            backoff: backoff::Settings {
                first: minute,
                cap: minute,
                jitter: 0.0,
                breaker_after: 5,
                stable_after: minute,
            },
        },
    }
}

#[tokio::test]
async fn each_path_has_its_method_and_its_meaning() {
    let daemon = Daemon::start().await;
    for (method, path, status, kind) in [
        ("GET", "/healthz", 200, None),
        ("GET", "/readyz", 200, None),
        ("GET", "/readyz?streams=all", 503, None),
        ("GET", "/readyz?stream=all", 400, Some("unknown-parameter")),
        ("GET", "/metrics", 200, None),
        ("GET", "/admin/v1/status", 200, None),
        ("POST", "/admin/v1/streams/queues/rotate", 202, None),
        ("POST", "/admin/v1/streams/queues/pause", 202, None),
        ("POST", "/admin/v1/streams/queues/resume", 202, None),
        ("POST", "/admin/v1/accounts/acme/refresh", 202, None),
        ("GET", "/admin/v1/streams/queues/rotate", 405, Some("method-not-allowed")),
        ("POST", "/healthz", 405, Some("method-not-allowed")),
        ("POST", "/admin/v1/streams/QUEUES/rotate", 404, Some("unknown-stream")),
        ("POST", "/admin/v1/streams/unknown/rotate", 404, Some("unknown-stream")),
        ("POST", "/admin/v1/streams/%ff/rotate", 404, Some("unknown-stream")),
        ("POST", "/admin/v1/accounts/ACME/refresh", 404, Some("unknown-account")),
        ("POST", "/admin/v1/accounts/unknown/refresh", 404, Some("unknown-account")),
        ("POST", "/admin/v1/streams/queues/explode", 404, Some("not-found")),
        ("GET", "/", 404, Some("not-found")),
    ] {
        let meaning = daemon.meaning(method, path, &[]).await;
        assert_eq!((meaning.0, meaning.1.as_deref()), (status, kind), "{method} {path}");
    }
    for (method, path, allowed) in [
        ("GET", "/admin/v1/streams/queues/rotate", "POST"),
        ("DELETE", "/admin/v1/status", "GET, HEAD"),
        ("HEAD", "/admin/v1/streams/queues/rotate", "POST"),
    ] {
        let wrong = daemon.ask(method, path, &[]).await;
        assert_eq!((wrong.status().as_u16(), &wrong.headers()[ALLOW]), (405, &allowed.parse().unwrap()), "{path}");
    }
    daemon.end().await;
}

#[tokio::test]
async fn head_is_answered_as_get_is_without_a_body() {
    let daemon = Daemon::start().await;
    for path in ["/healthz", "/readyz", "/readyz?streams=all", "/metrics", "/admin/v1/status", "/nothing"] {
        let (get, head) = (daemon.ask("GET", path, &[]).await, daemon.ask("HEAD", path, &[]).await);
        assert_eq!(head.status(), get.status(), "{path}");
        assert_eq!(head.headers().get(CONTENT_TYPE), get.headers().get(CONTENT_TYPE), "{path}");
        assert!(to_bytes(head.into_body(), usize::MAX).await.unwrap().is_empty(), "{path}");
    }
    daemon.end().await;
}

#[tokio::test]
async fn the_metrics_page_is_compressed_on_request() {
    let daemon = Daemon::start().await;
    let plain = daemon.ask("GET", "/metrics", &[]).await;
    assert!(!plain.headers().contains_key(CONTENT_ENCODING));
    let len = to_bytes(plain.into_body(), usize::MAX).await.unwrap().len();
    let zipped = daemon.ask("GET", "/metrics", &[(ACCEPT_ENCODING, "deflate, gzip;q=0.8")]).await;
    assert_eq!(zipped.headers()[CONTENT_ENCODING], "gzip");
    let stated: usize = zipped.headers()[CONTENT_LENGTH].to_str().unwrap().parse().unwrap();
    let zipped = to_bytes(zipped.into_body(), usize::MAX).await.unwrap();
    assert!(zipped.len() == stated && stated < len / 4, "{stated} of {len}");
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&*zipped), &mut text).unwrap();
    assert!(text.contains("trunkline_stream_state{"), "{text}");
    daemon.end().await;
}

#[tokio::test]
async fn stalled_scrapers_do_not_delay_probes() {
    let daemon = Daemon::start().await;
    let mut held = Vec::new();
    for _ in 0..PAGES_MAX {
        held.push(daemon.ask("GET", "/metrics", &[]).await);
    }
    let waiting = daemon.meaning("GET", "/metrics", &[]);
    let probed = daemon.meaning("GET", "/healthz", &[]);
    let (waited, probed) = tokio::join!(waiting, probed);
    assert_eq!((waited, probed), ((503, Some("busy".to_owned())), (200, None)));
    held.clear();
    assert_eq!(daemon.meaning("GET", "/metrics", &[]).await, (200, None));
    daemon.end().await;
}

#[tokio::test]
async fn a_command_reaches_only_its_stream_or_account() {
    let daemon = Daemon::start().await;
    assert_eq!(daemon.ask("POST", &format!("{QUEUES}/pause"), &[]).await.status(), 202);
    daemon.eventually("the stream pauses", async || daemon.states().await[1] == "paused").await;
    assert_ne!(daemon.states().await[0], "paused");
    assert_eq!(daemon.ask("POST", &format!("{QUEUES}/resume"), &[]).await.status(), 202);
    daemon.eventually("the stream resumes", async || daemon.states().await[1] != "paused").await;
    assert_eq!(daemon.ask("POST", "/admin/v1/accounts/acme/refresh", &[]).await.status(), 202);
    let renewed = async || {
        let status = body(daemon.ask("GET", "/admin/v1/status", &[]).await).await;
        status["accounts"][0]["refreshes"].as_u64() > Some(1)
    };
    daemon.eventually("the token is renewed", renewed).await;
    daemon.end().await;
}

#[tokio::test]
async fn a_cross_origin_command_is_refused() {
    let daemon = Daemon::start().await;
    let refused = (403, Some("cross-origin".to_owned()));
    let pause = format!("{QUEUES}/pause");
    for origin in ["https://evil.test", "http://127.0.0.1:8080", "http://localhost:9090", "null"] {
        assert_eq!(daemon.meaning("POST", &pause, &[(ORIGIN, origin)]).await, refused, "{origin}");
    }
    assert_eq!(daemon.meaning("POST", &pause, &[(ORIGIN, "http://127.0.0.1:9090")]).await, (202, None));
    let foreign = [(ORIGIN, "https://evil.test")];
    for path in ["/admin/v1/status", "/admin/v1/streams/queues/pause", "/nothing"] {
        assert_eq!(daemon.meaning("GET", path, &foreign).await, refused, "{path}");
    }
    daemon.end().await;
}

#[tokio::test]
async fn only_probes_are_served_under_any_host() {
    let daemon = Daemon::start().await;
    let rebound = [(HOST, "evil.test")];
    for (path, status) in [("/healthz", 200), ("/readyz", 200), ("/metrics", 200), ("/admin/v1/status", 403)] {
        assert_eq!(daemon.ask("GET", path, &rebound).await.status(), status, "{path}");
    }
    daemon.end().await;
}
