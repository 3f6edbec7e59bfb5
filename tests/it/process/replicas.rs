//! Several relays on one Redis: each stream has exactly one owner, also after failures of owners.
//!
//! `TRUNKLINE_ROUNDS` is the number of rounds, `TRUNKLINE_RATE` the events per second. The tests print their measurements.

mod clocks;
mod cluster;
mod consumers;
mod degraded;
mod deleted_keys;
mod disagreeing;
mod encrypted_tokens;
mod failover;
mod feeds;
mod foreign_data;
mod later_versions;
mod partition;
mod readers;
mod redis_outage;
mod replies;
mod unnumbered;
mod wiped_log;

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinSet;
use trunkline::{clock, simulator::SocketDialect};

use super::{
    child::{WAIT_MAX, eventually},
    kill::{ReceivedEntries, RelayUrl, follow_lines},
    log::{LogEntry, assert_complete, pages},
    relay::RelayProcess,
    site::{STREAM, Site},
};
use crate::harness::{RedisServer, env_setting};

const EVENTS_A_SECOND: u64 = 500;

/// The default `lease`.
const LEASE: Duration = Duration::from_secs(2);
/// The longest rest of a lease after the death of its owner. It is renewed five times per lease, so at least four fifths
/// are left.
const RENEWAL: f64 = 0.2;
/// Heartbeat timeout after which a standby takes over.
const SILENCE: Duration = Duration::from_millis(400);
/// Additional time for a claim, a new session and a consumer's page.
const CLAIM: Duration = Duration::from_millis(1_200);

/// Number of rounds.
pub(super) fn rounds(default: usize) -> usize {
    env_setting("TRUNKLINE_ROUNDS").unwrap_or(default)
}

/// Events per second.
pub(super) fn rate() -> u64 {
    env_setting("TRUNKLINE_RATE").unwrap_or(EVENTS_A_SECOND)
}

async fn site(server: &RedisServer, keys: &[&str]) -> Site {
    let site = Site::start_with(trunkline::simulator::Settings::default(), keys).await;
    site.use_redis(&server.url());
    site
}

/// Whether a relay owns the stream.
async fn holds_stream(relay: &RelayProcess) -> bool {
    let page = relay.text(&relay.admin, "/metrics").await;
    let line = format!("trunkline_stream_lease_owner{{stream=\"{STREAM}\"}} 1");
    page.lines().any(|found| found == line)
}

/// The index of the relay that owns the stream.
async fn holder(relays: &[RelayProcess]) -> usize {
    eventually("one relay owns the stream", WAIT_MAX, async || {
        for (index, relay) in relays.iter().enumerate() {
            if holds_stream(relay).await {
                return Some(index);
            }
        }
        None
    })
    .await
}

/// Waits until exactly one relay owns the stream.
async fn one_owns(relays: &[RelayProcess]) {
    let one = async || {
        let mut owners = 0;
        for relay in relays {
            owners += usize::from(holds_stream(relay).await);
        }
        (owners == 1).then_some(())
    };
    eventually("one relay owns the stream", WAIT_MAX, one).await;
}

/// Two relays on one Redis server.
struct ReplicaPair {
    server: RedisServer,
    site: Site,
    relays: [RelayProcess; 2],
}

impl ReplicaPair {
    async fn start(server: RedisServer, site: Site) -> Self {
        let relays = [RelayProcess::live(&site).await, RelayProcess::live(&site).await];
        Self { server, site, relays }
    }

    /// Waits until both relays serve a new event.
    async fn wait_for_progress(&self) {
        for relay in &self.relays {
            wait_for_progress(&self.site, relay, clock::now()).await;
        }
    }
}

/// Waits until this relay serves a new event. Returns the time since `since`.
async fn wait_for_progress(site: &Site, relay: &RelayProcess, since: Instant) -> Duration {
    let sent = site.platform.ledger().last_sequence();
    eventually("the log grows", WAIT_MAX, async || (relay.newest().await?.number? > sent).then_some(())).await;
    clock::now().saturating_duration_since(since)
}

#[expect(clippy::print_stdout, reason = "a full run prints its measurements")]
fn print_times(what: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize].as_millis();
    println!("{what}: median {} ms, p99 {} ms, {} times", at(0.5), at(0.99), took.len());
}

/// Measures how late this process wakes up, as an estimate of the load of the machine.
struct DelayMeter {
    total: Arc<AtomicU64>,
    _ticks: JoinSet<()>,
}

impl DelayMeter {
    fn watch() -> Self {
        const TICK: Duration = Duration::from_millis(10);
        let (total, mut ticks) = (Arc::new(AtomicU64::new(0)), JoinSet::new());
        let sum = Arc::clone(&total);
        ticks.spawn(async move {
            loop {
                let since = clock::now();
                tokio::time::sleep(TICK).await;
                let late = since.elapsed().saturating_sub(2 * TICK);
                sum.fetch_add(u64::try_from(late.as_millis()).unwrap(), Ordering::Relaxed);
            }
        });
        Self { total, _ticks: ticks }
    }

    fn total(&self) -> Duration {
        Duration::from_millis(self.total.load(Ordering::Relaxed))
    }
}

/// Time until the next entry was served, and the delay of this process in that time.
#[derive(Debug, Clone, Copy)]
struct TakeoverTimes {
    shown: Duration,
    late: Duration,
}

impl TakeoverTimes {
    /// Whether the time is within the bound. Three processes wait for one another, so the delay counts three times.
    fn is_within(&self, promised: Duration) -> bool {
        self.shown < promised + 3 * self.late
    }
}

/// Kills the owner repeatedly. Returns the times without an append.
async fn kill_holders(lease: Duration, keys: &[&str], count: usize) -> Vec<TakeoverTimes> {
    let server = RedisServer::durable();
    let site = site(&server, keys).await;
    let text = fs::read_to_string(&site.config).unwrap();
    let with_lease = format!("[store]\nlease = \"{}ms\"\n", lease.as_millis());
    fs::write(&site.config, text.replace("[store]\n", &with_lease)).unwrap();
    let lateness = DelayMeter::watch();
    let mut relays = vec![RelayProcess::live(&site).await, RelayProcess::live(&site).await];
    let (relay_url, mut readers, lines) =
        (Arc::new(RelayUrl::default()), JoinSet::new(), Arc::new(ReceivedEntries::default()));
    readers.spawn(follow_lines(Arc::clone(&relay_url), Arc::clone(&lines)));
    relay_url.put(Some(relays[1].consumers.clone()));
    let traffic = site.start_traffic(rate());
    let mut took = Vec::new();
    for _ in 0..count {
        let index = holder(&relays).await;
        let other = 1 - index;
        tokio::time::sleep(Duration::from_millis(fastrand::u64(700..1_200))).await;
        relay_url.put(Some(relays[other].consumers.clone()));
        relays[index].child.kill();
        let late = lateness.total();
        let shown = wait_for_progress(&site, &relays[other], clock::now()).await;
        took.push(TakeoverTimes { shown, late: lateness.total() - late });
        relays[index] = RelayProcess::live(&site).await;
    }
    let last_sent = traffic.stop().await;
    relays[0].wait_for_number(last_sent).await;
    relays[1].wait_for_number(last_sent).await;
    let log = pages(&relays[0].consumers).await;
    assert_complete(&log, last_sent);
    assert!(pages(&relays[1].consumers).await == log, "both relays have the same log");
    eventually("the consumer has all", WAIT_MAX, async || (lines.len() >= log.len()).then_some(())).await;
    assert!(lines.all() == log, "the consumer got each entry once and in order from both relays");
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_holder_is_replaced_and_nothing_is_lost_or_duplicated() {
    for lease in [LEASE, 2 * LEASE] {
        let took = kill_holders(lease, &[], rounds(3)).await;
        print_times(
            &format!("takeover without a standby, lease {lease:?}"),
            took.iter().map(|took| took.shown).collect(),
        );
        let promised = lease.mul_f64(1.0 + RENEWAL) + CLAIM;
        assert!(took.iter().all(|took| took.is_within(promised)), "{took:?} where {promised:?} is promised");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_takes_over_before_the_lease_of_a_killed_holder_expires() {
    // Long enough that a takeover ends before it, even on a busy machine.
    let lease = 4 * LEASE;
    let took = kill_holders(lease, &["standby = true"], rounds(6)).await;
    print_times("takeover by a standby", took.iter().map(|took| took.shown).collect());
    // A standby that is not ready at that moment waits for the end of the lease, like one without a session.
    let latest = lease.mul_f64(1.0 + RENEWAL) + CLAIM;
    assert!(took.iter().all(|took| took.is_within(latest)), "{took:?} where {latest:?} is promised");
    let left_min = lease.mul_f64(1.0 - RENEWAL);
    let before_its_end = took.iter().filter(|took| took.is_within(left_min)).count();
    assert!(2 * before_its_end > took.len(), "{took:?} where {left_min:?} of the lease were left");
    // The quickest one, because the others may have been suspected during a renewal.
    let promised = SILENCE + CLAIM;
    assert!(took.iter().any(|took| took.is_within(promised)), "{took:?} where {promised:?} is promised");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_were_all_killed_resume_at_the_position_with_one_holder() {
    let server = RedisServer::durable();
    let site = site(&server, &[]).await;
    let mut relays = [RelayProcess::live(&site).await, RelayProcess::live(&site).await];
    let traffic = site.start_traffic(rate());
    for _ in 0..rounds(1) {
        wait_for_progress(&site, &relays[0], clock::now()).await;
        for relay in &mut relays {
            relay.child.kill();
        }
        tokio::time::sleep(LEASE).await;
        relays = [RelayProcess::start(&site).await, RelayProcess::start(&site).await];
        for relay in &relays {
            relay.wait_until_live().await;
        }
    }
    let last_sent = traffic.stop().await;
    for relay in &relays {
        relay.wait_for_number(last_sent).await;
        assert_complete(&pages(&relay.consumers).await, last_sent);
    }
    one_owns(&relays).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_was_suspended_appends_nothing_more_and_becomes_a_standby() {
    let server = RedisServer::durable();
    let site = site(&server, &[]).await;
    let relays = [RelayProcess::live(&site).await, RelayProcess::live(&site).await];
    let traffic = site.start_traffic(rate());
    for _ in 0..rounds(2) {
        let index = holder(&relays).await;
        wait_for_progress(&site, &relays[index], clock::now()).await;
        relays[index].child.signal("STOP");
        wait_for_progress(&site, &relays[1 - index], clock::now()).await;
        wait_for_progress(&site, &relays[1 - index], clock::now()).await;
        relays[index].child.signal("CONT");
        let apart = async || (!holds_stream(&relays[index]).await).then_some(());
        eventually("it reports that the other replica owns the stream", WAIT_MAX, apart).await;
        relays[index].wait_until_live().await;
    }
    let last_sent = traffic.stop().await;
    for relay in &relays {
        relay.wait_for_number(last_sent).await;
        assert_complete(&pages(&relay.consumers).await, last_sent);
    }
    let refused = refused(&relays[0]).await + refused(&relays[1]).await;
    println!("{} suspensions: {refused} appends in flight were rejected", rounds(2));
}

/// Number of appends of this relay that the store rejected.
pub(super) async fn refused(relay: &RelayProcess) -> u64 {
    let page = relay.text(&relay.admin, "/metrics").await;
    let line = page.lines().find_map(|line| line.strip_prefix("trunkline_store_errors_total{reason=\"fenced\"} "));
    line.unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_restarted_one_by_one_hand_their_streams_over() {
    let server = RedisServer::durable();
    let site = site(&server, &[]).await;
    let mut relays =
        vec![RelayProcess::live(&site).await, RelayProcess::live(&site).await, RelayProcess::live(&site).await];
    let traffic = site.start_traffic(rate());
    let mut took = Vec::new();
    for _ in 0..rounds(1) {
        for index in [0, 1, 2] {
            let since = clock::now();
            let held = holds_stream(&relays[index]).await;
            relays[index].child.signal("TERM");
            assert_eq!(
                relays[index].child.wait_for_exit(WAIT_MAX).await,
                0,
                "{}",
                relays[index].child.printed_output()
            );
            if held {
                took.push(clock::now().saturating_duration_since(since));
            }
            relays[index] = RelayProcess::live(&site).await;
        }
    }
    let last_sent = traffic.stop().await;
    for relay in &relays {
        relay.wait_for_number(last_sent).await;
        assert_complete(&pages(&relay.consumers).await, last_sent);
    }
    assert!(!took.is_empty(), "an owner was restarted");
    assert_eq!(
        site.platform.counters().sockets(SocketDialect::Sequenced).deserted,
        0,
        "the stream was live at every moment"
    );
    print_times("an owner ends after a stop request", took);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_are_spread_over_all_replicas() {
    let server = RedisServer::durable();
    let site = site(&server, &[]).await;
    let text = fs::read_to_string(&site.config).unwrap();
    let (base, stream) = text.split_once("[streams.").unwrap();
    let more = (0..6).map(|number| format!("[streams.s{number}]{}", stream.split_once(']').unwrap().1));
    fs::write(&site.config, format!("{base}{}", more.collect::<String>())).unwrap();
    let first = RelayProcess::live(&site).await;
    assert_eq!(owned(&first).await, 6);
    let second = RelayProcess::live(&site).await;
    eventually("each relay owns its share", WAIT_MAX, async || {
        let shares = (owned(&first).await, owned(&second).await);
        (shares == (3, 3)).then_some(())
    })
    .await;
    first.wait_until_live().await;
}

/// Number of streams that a relay owns.
async fn owned(relay: &RelayProcess) -> usize {
    let page = relay.text(&relay.admin, "/metrics").await;
    page.lines().filter(|line| line.starts_with("trunkline_stream_lease_owner{") && line.ends_with(" 1")).count()
}
