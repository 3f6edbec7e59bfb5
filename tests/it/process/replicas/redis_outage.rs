//! Redis is away for a while: relays keep their sockets, hold what they hear, and go on as soon as it is back.
//!
//! `TRUNKLINE_AWAY` says for how many seconds.

use std::{collections::BTreeMap, fs, time::Duration};

use serde_json::Value;
use trunkline::{clock, simulator::SocketDialect};

use super::{
    holds_stream, site,
    unnumbered::{self, EventAudit, has_all},
    wait_for_progress,
};
use crate::{
    harness::{RedisServer, env_setting},
    process::{
        child::{WAIT_MAX, eventually},
        log::{assert_whole, pages},
        relay::RelayProcess,
        site::Site,
    },
};

/// Slow enough for the buffer of a stream to hold a minute of it.
const EVENTS_A_SECOND: u64 = 100;

/// Clock ticks of a second, as the kernel tells processes.
const TICKS: f64 = 100.0;

/// Part of one processor that a relay may use meanwhile beyond what the same events cost it before.
const MORE_LOAD_MAX: f64 = 0.05;

/// For so long it is watched before.
const WATCHED_BEFORE: Duration = Duration::from_secs(2);

fn span() -> Duration {
    Duration::from_secs(env_setting("TRUNKLINE_AWAY").unwrap_or(6))
}

/// How Redis goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RedisOutage {
    /// It says nothing.
    Unresponsive,
    /// Nobody is there, and then it is another process with the same files.
    Down,
}

impl RedisOutage {
    fn start(self, server: &mut RedisServer) {
        match self {
            Self::Unresponsive => server.pause(),
            Self::Down => server.kill(),
        }
    }

    fn finish(self, server: &mut RedisServer) {
        match self {
            Self::Unresponsive => server.resume(),
            Self::Down => server.restart(),
        }
    }
}

/// What a relay did while nobody asked it anything.
struct IdleLoad {
    /// Part of one processor.
    load: f64,
    /// The most lines that were logged of one thing.
    most_frequent: (String, usize),
}

/// The time on a processor that a process has had.
fn cpu_secs(relay: &RelayProcess) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", relay.child.id())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // The 14th and the 15th field of all; the name was the second.
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / TICKS
}

/// Watches a relay for so long.
async fn watch(relay: &RelayProcess, span: Duration) -> IdleLoad {
    let (worked_before, said_before) = (cpu_secs(relay), relay.child.stderr().len());
    tokio::time::sleep(span).await;
    let load = (cpu_secs(relay) - worked_before) / span.as_secs_f64();
    let mut lines: BTreeMap<String, usize> = BTreeMap::new();
    for line in relay.child.stderr()[said_before..].lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_default();
        *lines.entry(line["message"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
    }
    IdleLoad { load, most_frequent: lines.into_iter().max_by_key(|(_, count)| *count).unwrap_or_default() }
}

/// So many of them, one after the other.
async fn live(site: &Site, count: usize) -> Vec<RelayProcess> {
    let mut relays = Vec::new();
    for _ in 0..count {
        relays.push(RelayProcess::live(site).await);
    }
    relays
}

/// How many of them keep the stream.
async fn holders(relays: &[RelayProcess]) -> usize {
    let mut held = 0;
    for relay in relays {
        held += usize::from(holds_stream(relay).await);
    }
    held
}

/// Relays on a numbered stream while Redis is away: nothing is lost, nothing doubled, no socket is changed.
#[expect(clippy::print_stdout, reason = "the figures are what a full run is for")]
async fn redis_goes_away(absence: RedisOutage, count: usize) {
    let mut server = RedisServer::durable();
    let site = site(&server, &[]).await;
    let relays = live(&site, count).await;
    let talk = site.start_traffic(EVENTS_A_SECOND);
    wait_for_progress(&site, &relays[0], clock::now()).await;
    let sockets = || site.platform.counters().sockets(SocketDialect::Sequenced);
    let opened = sockets().total;
    let usual = watch(&relays[0], WATCHED_BEFORE).await.load;
    absence.start(&mut server);
    let quiet = watch(&relays[0], span()).await;
    assert_eq!((sockets().open, sockets().total), (1, opened), "the socket stays, and nobody else opens one");
    absence.finish(&mut server);
    let back = wait_for_progress(&site, &relays[0], clock::now()).await;
    let IdleLoad { load, most_frequent: (line, lines) } = quiet;
    println!(
        "{absence:?}, {count} relays: {:.1} % of a processor after {:.1} %, {lines} x {line:?} in {:?}, back after {back:?}",
        load * 100.0,
        usual * 100.0,
        span()
    );
    assert!(load < usual + MORE_LOAD_MAX, "{load} after {usual}");
    assert!(lines as u64 <= span().as_secs() + 2, "{lines} x {line:?}");
    assert_eq!(holders(&relays).await, 1, "one keeps it");
    wait_for_progress(&site, &relays[count - 1], clock::now()).await;
    let last_said = talk.stop().await;
    for relay in &relays {
        relay.holds(last_said).await;
        assert_whole(&pages(&relay.consumers).await, last_said);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_buffers_events_while_redis_is_unresponsive() {
    redis_goes_away(RedisOutage::Unresponsive, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_buffers_events_while_redis_is_down() {
    redis_goes_away(RedisOutage::Down, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_relays_keep_one_holder_when_redis_returns() {
    redis_goes_away(RedisOutage::Unresponsive, 2).await;
    redis_goes_away(RedisOutage::Down, 2).await;
}

/// How often the log tells a hole, by its reason.
async fn gaps_beyond_the_buffer(count: usize) -> BTreeMap<String, usize> {
    let mut server = RedisServer::durable();
    let site = unnumbered::site(&server, &["buffer = 50", "overflow = \"drop-oldest\""]).await;
    let relays = live(&site, count).await;
    let (mut books, talk) = (EventAudit::open(&site), site.start_traffic(4 * EVENTS_A_SECOND));
    tokio::time::sleep(Duration::from_millis(500)).await;
    for absence in [RedisOutage::Unresponsive, RedisOutage::Down] {
        absence.start(&mut server);
        tokio::time::sleep(span()).await;
        books.receive();
        absence.finish(&mut server);
        tokio::time::sleep(Duration::from_secs(2)).await;
        for relay in &relays {
            relay.goes_live().await;
        }
    }
    talk.stop().await;
    let log = has_all(&relays[0], &mut books).await;
    let findings = books.audit(&log);
    assert_eq!((findings.duplicates, findings.unmarked), (0, 0), "{findings:?}");
    assert!(findings.marked > 0, "{findings:?}");
    eventually("one keeps it", WAIT_MAX, async || (holders(&relays).await == 1).then_some(())).await;
    findings.gaps
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_dropped_beyond_the_buffer_are_marked() {
    let told = gaps_beyond_the_buffer(1).await;
    assert!(told.get("shed").is_some_and(|shed| *shed >= 2), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_buffer_the_holder_stays_and_marks_dropped_events() {
    let told = gaps_beyond_the_buffer(2).await;
    // Another replica, which has heard nothing, would say `no-replay`.
    assert!(told.get("shed").is_some_and(|shed| *shed >= 2) && told.len() == 1, "{told:?}");
}
