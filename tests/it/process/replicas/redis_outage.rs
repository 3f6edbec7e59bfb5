//! Redis outages: relays keep their sockets, buffer events, and resume when Redis is back.
//!
//! `TRUNKLINE_AWAY` is the duration in seconds.

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
        log::{assert_complete, pages},
        relay::RelayProcess,
        site::Site,
    },
};

/// Slow enough that a stream's buffer holds a minute of events.
const EVENTS_A_SECOND: u64 = 100;

/// Clock ticks per second in `/proc`.
const TICKS: f64 = 100.0;

/// Permitted additional CPU use during the outage, as a fraction of one processor.
const MORE_LOAD_MAX: f64 = 0.05;

/// Duration of the measurement before the outage.
const WATCHED_BEFORE: Duration = Duration::from_secs(2);

fn span() -> Duration {
    Duration::from_secs(env_setting("TRUNKLINE_AWAY").unwrap_or(6))
}

/// Kind of outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RedisOutage {
    /// Redis does not reply.
    Unresponsive,
    /// Redis is down, and another process with the same files replaces it.
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

/// The load of a relay without requests.
struct IdleLoad {
    /// Fraction of one processor.
    load: f64,
    /// The most frequent log line and its count.
    most_frequent: (String, usize),
}

/// CPU time of a process.
fn cpu_secs(relay: &RelayProcess) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", relay.child.id())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // Fields 14 and 15. The text starts behind the name, which is field 2.
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / TICKS
}

/// Measures a relay during `span`.
async fn watch(relay: &RelayProcess, span: Duration) -> IdleLoad {
    let (worked_before, logged_before) = (cpu_secs(relay), relay.child.stderr().len());
    tokio::time::sleep(span).await;
    let load = (cpu_secs(relay) - worked_before) / span.as_secs_f64();
    let mut lines: BTreeMap<String, usize> = BTreeMap::new();
    for line in relay.child.stderr()[logged_before..].lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_default();
        *lines.entry(line["message"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
    }
    IdleLoad { load, most_frequent: lines.into_iter().max_by_key(|(_, count)| *count).unwrap_or_default() }
}

/// Starts `count` relays, one after the other.
async fn live(site: &Site, count: usize) -> Vec<RelayProcess> {
    let mut relays = Vec::new();
    for _ in 0..count {
        relays.push(RelayProcess::live(site).await);
    }
    relays
}

/// Number of relays that own the stream.
async fn holders(relays: &[RelayProcess]) -> usize {
    let mut held = 0;
    for relay in relays {
        held += usize::from(holds_stream(relay).await);
    }
    held
}

/// Runs relays on a numbered stream during an outage: nothing is lost or duplicated, and no socket is replaced.
#[expect(clippy::print_stdout, reason = "a full run prints its measurements")]
async fn redis_goes_away(absence: RedisOutage, count: usize) {
    let mut server = RedisServer::durable();
    let site = site(&server, &[]).await;
    let relays = live(&site, count).await;
    let traffic = site.start_traffic(EVENTS_A_SECOND);
    wait_for_progress(&site, &relays[0], clock::now()).await;
    let sockets = || site.platform.counters().sockets(SocketDialect::Sequenced);
    let opened = sockets().total;
    let usual = watch(&relays[0], WATCHED_BEFORE).await.load;
    absence.start(&mut server);
    let quiet = watch(&relays[0], span()).await;
    assert_eq!((sockets().open, sockets().total), (1, opened), "the socket stays, and no other is opened");
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
    assert_eq!(holders(&relays).await, 1, "one relay owns the stream");
    wait_for_progress(&site, &relays[count - 1], clock::now()).await;
    let last_sent = traffic.stop().await;
    for relay in &relays {
        relay.wait_for_number(last_sent).await;
        assert_complete(&pages(&relay.consumers).await, last_sent);
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

/// Number of gaps in the log by reason.
async fn gaps_beyond_the_buffer(count: usize) -> BTreeMap<String, usize> {
    let mut server = RedisServer::durable();
    let site = unnumbered::site(&server, &["buffer = 50", "overflow = \"drop-oldest\""]).await;
    let relays = live(&site, count).await;
    let (mut books, traffic) = (EventAudit::open(&site), site.start_traffic(4 * EVENTS_A_SECOND));
    tokio::time::sleep(Duration::from_millis(500)).await;
    for absence in [RedisOutage::Unresponsive, RedisOutage::Down] {
        absence.start(&mut server);
        tokio::time::sleep(span()).await;
        books.receive();
        absence.finish(&mut server);
        tokio::time::sleep(Duration::from_secs(2)).await;
        for relay in &relays {
            relay.wait_until_live().await;
        }
    }
    traffic.stop().await;
    let log = has_all(&relays[0], &mut books).await;
    let findings = books.audit(&log);
    assert_eq!((findings.duplicates, findings.unmarked), (0, 0), "{findings:?}");
    assert!(findings.marked > 0, "{findings:?}");
    eventually("one relay owns the stream", WAIT_MAX, async || (holders(&relays).await == 1).then_some(())).await;
    findings.gaps
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_dropped_beyond_the_buffer_are_marked() {
    let gaps = gaps_beyond_the_buffer(1).await;
    assert!(gaps.get("shed").is_some_and(|shed| *shed >= 2), "{gaps:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_buffer_the_holder_stays_and_marks_dropped_events() {
    let gaps = gaps_beyond_the_buffer(2).await;
    // A gap of another replica, which has received nothing, would have the reason `no-replay`.
    assert!(gaps.get("shed").is_some_and(|shed| *shed >= 2) && gaps.len() == 1, "{gaps:?}");
}
