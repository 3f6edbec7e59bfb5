//! The relay with its log in Redis: a kill of either at any moment loses and duplicates nothing.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use tokio::task::JoinSet;

use super::{
    child::{Child, WAIT_MAX, eventually},
    kill::{ReceivedEntries, RelayUrl, follow_lines, follow_text},
    log::{assert_complete, pages},
    relay::RelayProcess,
    site::Site,
};
use crate::harness::{RedisServer, free_port};

const EVENTS_A_SECOND: u64 = 300;

/// A site whose store is `server`.
async fn site(server: &RedisServer) -> Site {
    let site = Site::start().await;
    site.use_redis(&server.url());
    site
}

/// Waits until this relay serves a new event.
async fn wait_for_progress(site: &Site, relay: &RelayProcess) {
    let sent = site.platform.ledger().last_sequence();
    eventually("the log grows", WAIT_MAX, async || (relay.newest().await?.number? > sent).then_some(())).await;
}

/// Waits until `/readyz` answers with this status.
async fn shows(relay: &RelayProcess, expected: u16) {
    let fact = async || relay.ready().await.filter(|(status, _)| *status == expected).map(drop);
    eventually(&format!("/readyz has {expected}"), WAIT_MAX, fact).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_relay_resumes_at_its_position_and_its_consumers_miss_nothing() {
    let server = RedisServer::durable();
    let site = site(&server).await;
    let (relay_url, mut readers) = (Arc::new(RelayUrl::default()), JoinSet::new());
    let (lines, events) = (Arc::new(ReceivedEntries::default()), Arc::new(ReceivedEntries::default()));
    readers.spawn(follow_lines(Arc::clone(&relay_url), Arc::clone(&lines)));
    readers.spawn(follow_events(Arc::clone(&relay_url), Arc::clone(&events)));
    let traffic = site.start_traffic(EVENTS_A_SECOND);
    for round in 0..6 {
        let mut relay = RelayProcess::live(&site).await;
        relay_url.put(Some(relay.consumers.clone()));
        wait_for_progress(&site, &relay).await;
        // Kill at different moments of the work.
        tokio::time::sleep(Duration::from_millis(50 * round)).await;
        relay.child.kill();
        relay_url.put(None);
    }
    let relay = RelayProcess::live(&site).await;
    relay_url.put(Some(relay.consumers.clone()));
    let last_sent = traffic.stop().await;
    relay.wait_for_number(last_sent).await;
    let log = pages(&relay.consumers).await;
    assert_complete(&log, last_sent);
    for (transport, seen) in [("NDJSON", lines), ("SSE", events)] {
        eventually(transport, WAIT_MAX, async || (seen.len() >= log.len()).then_some(())).await;
        assert!(seen.all() == log, "{transport} got each entry once, in order and unchanged");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_redis_is_retried_and_nothing_is_lost() {
    let mut server = RedisServer::durable();
    let site = site(&server).await;
    let traffic = site.start_traffic(EVENTS_A_SECOND);
    let relay = RelayProcess::live(&site).await;
    for _ in 0..3 {
        wait_for_progress(&site, &relay).await;
        server.kill();
        shows(&relay, 503).await;
        server.restart();
        shows(&relay, 200).await;
    }
    server.pause();
    shows(&relay, 503).await;
    server.resume();
    wait_for_progress(&site, &relay).await;
    let last_sent = traffic.stop().await;
    relay.wait_for_number(last_sent).await;
    assert_complete(&pages(&relay.consumers).await, last_sent);
}

#[tokio::test]
async fn a_server_that_may_lose_entries_is_reported() {
    let server = RedisServer::start(&["--maxmemory", "1gb", "--maxmemory-policy", "allkeys-lru"]);
    let site = site(&server).await;
    let relay = RelayProcess::live(&site).await;
    let (_, shown) = relay.ready().await.unwrap();
    for word in ["allkeys-lru", "appendonly"] {
        assert!(shown["warnings"].to_string().contains(word), "{shown}");
        assert!(relay.child.stderr().contains(word), "{}", relay.child.stderr());
    }
    let mut check = Child::start(site.folder.path(), &["check", "--connect", "--config", site.config()]);
    assert_eq!(check.wait_for_exit(WAIT_MAX).await, 0, "{}", check.printed_output());
    let out = check.stdout();
    let warnings: Vec<&str> = out.lines().filter(|line| line.starts_with("warning: store: ")).collect();
    assert_eq!(warnings.len(), 2, "{out}");
    assert!(warnings.concat().contains("allkeys-lru") && warnings.concat().contains("appendonly"), "{out}");
}

#[tokio::test]
async fn a_relay_with_other_shared_settings_is_refused_with_the_differences() {
    let server = RedisServer::durable();
    let site = site(&server).await;
    let first = RelayProcess::live(&site).await;
    let same = RelayProcess::start(&site).await;
    for relay in [&first, &same] {
        let (_, shown) = relay.ready().await.unwrap();
        assert!(!shown["warnings"].to_string().contains("other settings"), "{shown}");
    }
    let text = fs::read_to_string(&site.config).unwrap();
    let other = "[store]\ndurability = \"replicated\"\nretention = { events = 5000 }\n";
    fs::write(&site.config, text.replace("[store]\n", other)).unwrap();
    let odd = RelayProcess::start(&site).await;
    let (_, shown) = odd.ready().await.unwrap();
    for words in ["durability is written there and replicated here", "retention.events is 1000000 there and 5000 here"]
    {
        assert!(shown["warnings"].to_string().contains(words), "{shown}");
        assert!(odd.child.stderr().contains(words), "{}", odd.child.stderr());
    }
}

#[tokio::test]
async fn a_check_tries_the_store_and_reports_why_it_is_unusable() {
    let server = RedisServer::volatile();
    let site = site(&server).await;
    let mut good = Child::start(site.folder.path(), &["check", "--connect", "--config", site.config()]);
    assert_eq!(good.wait_for_exit(WAIT_MAX).await, 0, "{}", good.printed_output());
    let address = format!("redis://127.0.0.1:{}/0 is usable", server.port());
    assert!(good.stdout().contains(&address), "{}", good.printed_output());

    let text = fs::read_to_string(&site.config).unwrap();
    let (free, secret) = (free_port(), "hunter2");
    fs::write(&site.config, text.replace(&server.url(), &format!("redis://:{secret}@127.0.0.1:{free}"))).unwrap();
    let mut bad = Child::start(site.folder.path(), &["check", "--connect", "--config", site.config()]);
    assert_eq!(bad.wait_for_exit(WAIT_MAX).await, 3, "{}", bad.printed_output());
    assert!(bad.printed_output().contains("cannot be reached"), "{}", bad.printed_output());
    assert!(!bad.printed_output().contains(secret), "{}", bad.printed_output());
    let mut show = Child::start(site.folder.path(), &["config", "show", "--config", site.config()]);
    assert_eq!(show.wait_for_exit(WAIT_MAX).await, 0, "{}", show.printed_output());
    assert!(
        show.stdout().contains("redis://***@127.0.0.1") && !show.stdout().contains(secret),
        "{}",
        show.printed_output()
    );
}

#[tokio::test]
async fn the_store_connection_can_use_tls_and_an_unknown_certificate_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = certificates(folder.path());
    let file = |name: &str| certificates.join(name).display().to_string();
    let port = free_port().to_string();
    let server = RedisServer::start(&[
        "--tls-port",
        &port,
        "--tls-cert-file",
        &file("server.pem"),
        "--tls-key-file",
        &file("server.key"),
        "--tls-ca-cert-file",
        &file("ca.pem"),
        "--tls-auth-clients",
        "no",
        "--requirepass",
        "sword fish",
    ]);
    let site = site(&server).await;
    let text = fs::read_to_string(&site.config).unwrap();
    let url = format!("rediss://default:sword%20fish@localhost:{port}/3");
    fs::write(&site.config, text.replace(&server.url(), &url)).unwrap();
    let check = ["check", "--connect", "--config", site.config()];
    let mut trusting = Child::start_with(site.folder.path(), &check, &[("SSL_CERT_FILE", &file("ca.pem"))]);
    assert_eq!(trusting.wait_for_exit(WAIT_MAX).await, 0, "{}", trusting.printed_output());
    let address = format!("rediss://localhost:{port}/3 is usable");
    assert!(trusting.stdout().contains(&address), "{}", trusting.printed_output());
    let mut untrusting = Child::start(site.folder.path(), &check);
    assert_ne!(untrusting.wait_for_exit(WAIT_MAX).await, 0, "{}", untrusting.printed_output());
    assert!(untrusting.printed_output().contains("cannot be reached"), "{}", untrusting.printed_output());
}

/// Creates an authority and a certificate for `localhost`.
fn certificates(folder: &Path) -> PathBuf {
    let steps = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout ca.key -out ca.pem \
                 -days 2 -subj /CN=authority && \
                 openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout server.key \
                 -out server.csr -subj /CN=localhost && \
                 echo subjectAltName=DNS:localhost > names && \
                 openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.pem -days 2 \
                 -extfile names";
    let made = Command::new("sh").args(["-c", steps]).current_dir(folder).output().unwrap();
    assert!(made.status.success(), "sudo apt-get install -y openssl: {}", String::from_utf8_lossy(&made.stderr));
    folder.to_owned()
}

pub(super) async fn follow_events(relay_url: Arc<RelayUrl>, seen: Arc<ReceivedEntries>) {
    follow_text(relay_url, seen, "text/event-stream", "\n\n", |line| line.strip_prefix("data:").map(str::trim_start))
        .await;
}
