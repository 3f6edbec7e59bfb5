//! The relay with its log in Redis: both may be killed at any moment, and nothing is lost or doubled.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use tokio::task::JoinSet;

use super::{
    child::{Child, PATIENCE, eventually},
    kill::{Board, Seen, follow_lines, follow_text},
    log::{assert_whole, pages},
    relay::Relay,
    site::Site,
};
use crate::harness::{Redis, free_port};

const EVENTS_A_SECOND: u64 = 300;

/// A platform, and a relay's configuration with a store in `server`.
async fn site(server: &Redis) -> Site {
    let site = Site::start().await;
    site.use_redis(&server.url());
    site
}

/// Waits until this relay shows what is said from here on.
async fn goes_on(site: &Site, relay: &Relay) {
    let said = site.platform.ledger().last_sequence();
    eventually("the log goes on", PATIENCE, async || (relay.newest().await?.number? > said).then_some(())).await;
}

/// Waits until `/readyz` has this status.
async fn shows(relay: &Relay, expected: u16) {
    let fact = async || relay.ready().await.filter(|(status, _)| *status == expected).map(drop);
    eventually(&format!("/readyz has {expected}"), PATIENCE, fact).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_killed_goes_on_where_it_was_and_its_consumers_do_not_notice() {
    let server = Redis::durable();
    let site = site(&server).await;
    let (board, mut readers) = (Arc::new(Board::default()), JoinSet::new());
    let (lines, events) = (Arc::new(Seen::default()), Arc::new(Seen::default()));
    readers.spawn(follow_lines(Arc::clone(&board), Arc::clone(&lines)));
    readers.spawn(follow_events(Arc::clone(&board), Arc::clone(&events)));
    let talk = site.talk(EVENTS_A_SECOND);
    for round in 0..6 {
        let mut relay = Relay::live(&site).await;
        board.put(Some(relay.consumers.clone()));
        goes_on(&site, &relay).await;
        // Not always in the same moment of the work.
        tokio::time::sleep(Duration::from_millis(50 * round)).await;
        relay.child.kill();
        board.put(None);
    }
    let relay = Relay::live(&site).await;
    board.put(Some(relay.consumers.clone()));
    let last_said = talk.hush().await;
    relay.holds(last_said).await;
    let log = pages(&relay.consumers).await;
    assert_whole(&log, last_said);
    for (who, seen) in [("NDJSON", lines), ("SSE", events)] {
        eventually(who, PATIENCE, async || (seen.len() >= log.len()).then_some(())).await;
        assert!(seen.all() == log, "{who} saw each entry once, in order, byte for byte as it stayed in the log");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_killed_is_waited_for_and_nothing_is_lost() {
    let mut server = Redis::durable();
    let site = site(&server).await;
    let talk = site.talk(EVENTS_A_SECOND);
    let relay = Relay::live(&site).await;
    for _ in 0..3 {
        goes_on(&site, &relay).await;
        server.kill();
        shows(&relay, 503).await;
        server.restart();
        shows(&relay, 200).await;
    }
    server.pause();
    shows(&relay, 503).await;
    server.resume();
    goes_on(&site, &relay).await;
    let last_said = talk.hush().await;
    relay.holds(last_said).await;
    assert_whole(&pages(&relay.consumers).await, last_said);
}

#[tokio::test]
async fn a_server_that_may_lose_entries_is_told_about() {
    let server = Redis::start(&["--maxmemory", "1gb", "--maxmemory-policy", "allkeys-lru"]);
    let site = site(&server).await;
    let relay = Relay::live(&site).await;
    let (_, shown) = relay.ready().await.unwrap();
    for word in ["allkeys-lru", "appendonly"] {
        assert!(shown["warnings"].to_string().contains(word), "{shown}");
        assert!(relay.child.stderr().contains(word), "{}", relay.child.stderr());
    }
    let mut check = Child::start(site.folder.path(), &["check", "--connect", "--config", site.config()]);
    assert_eq!(check.ends(PATIENCE).await, 0, "{}", check.told());
    let out = check.stdout();
    let warnings: Vec<&str> = out.lines().filter(|line| line.starts_with("warning: store: ")).collect();
    assert_eq!(warnings.len(), 2, "{out}");
    assert!(warnings.concat().contains("allkeys-lru") && warnings.concat().contains("appendonly"), "{out}");
}

#[tokio::test]
async fn a_relay_that_is_set_otherwise_than_one_that_lives_is_told_what_differs() {
    let server = Redis::durable();
    let site = site(&server).await;
    let first = Relay::live(&site).await;
    let same = Relay::start(&site).await;
    for relay in [&first, &same] {
        let (_, shown) = relay.ready().await.unwrap();
        assert!(!shown["warnings"].to_string().contains("other settings"), "{shown}");
    }
    let text = fs::read_to_string(&site.config).unwrap();
    let other = "[store]\ndurability = \"replicated\"\nretention = { events = 5000 }\n";
    fs::write(&site.config, text.replace("[store]\n", other)).unwrap();
    let odd = Relay::start(&site).await;
    let (_, shown) = odd.ready().await.unwrap();
    for words in ["durability is written there and replicated here", "retention.events is 1000000 there and 5000 here"]
    {
        assert!(shown["warnings"].to_string().contains(words), "{shown}");
        assert!(odd.child.stderr().contains(words), "{}", odd.child.stderr());
    }
}

#[tokio::test]
async fn a_check_tries_the_store_and_says_why_it_cannot_be_used() {
    let server = Redis::volatile();
    let site = site(&server).await;
    let mut good = Child::start(site.folder.path(), &["check", "--connect", "--config", site.config()]);
    assert_eq!(good.ends(PATIENCE).await, 0, "{}", good.told());
    let address = format!("redis://127.0.0.1:{}/0 can be used", server.port());
    assert!(good.stdout().contains(&address), "{}", good.told());

    let text = fs::read_to_string(&site.config).unwrap();
    let (free, secret) = (free_port(), "hunter2");
    fs::write(&site.config, text.replace(&server.url(), &format!("redis://:{secret}@127.0.0.1:{free}"))).unwrap();
    let mut bad = Child::start(site.folder.path(), &["check", "--connect", "--config", site.config()]);
    assert_eq!(bad.ends(PATIENCE).await, 3, "{}", bad.told());
    assert!(bad.told().contains("cannot be reached"), "{}", bad.told());
    assert!(!bad.told().contains(secret), "{}", bad.told());
    let mut show = Child::start(site.folder.path(), &["config", "show", "--config", site.config()]);
    assert_eq!(show.ends(PATIENCE).await, 0, "{}", show.told());
    assert!(show.stdout().contains("redis://***@127.0.0.1") && !show.stdout().contains(secret), "{}", show.told());
}

#[tokio::test]
async fn the_way_to_the_store_may_be_encrypted_and_a_stranger_is_not_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = certificates(folder.path());
    let file = |name: &str| certificates.join(name).display().to_string();
    let port = free_port().to_string();
    let server = Redis::start(&[
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
    assert_eq!(trusting.ends(PATIENCE).await, 0, "{}", trusting.told());
    let address = format!("rediss://localhost:{port}/3 can be used");
    assert!(trusting.stdout().contains(&address), "{}", trusting.told());
    let mut doubting = Child::start(site.folder.path(), &check);
    assert_ne!(doubting.ends(PATIENCE).await, 0, "{}", doubting.told());
    assert!(doubting.told().contains("cannot be reached"), "{}", doubting.told());
}

/// An authority of its own, and a certificate for `localhost`.
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

pub(super) async fn follow_events(board: Arc<Board>, seen: Arc<Seen>) {
    follow_text(board, seen, "text/event-stream", "\n\n", |line| line.strip_prefix("data:").map(str::trim_start)).await;
}
