//! Two relays on an unnumbered stream: each event is in the log once, or a gap covers it.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use serde::Deserialize;
use trunkline::{
    clock,
    simulator::{EmissionLedger, Settings, SocketDialect},
};

use super::{holder, holds_stream, print_times, rate, rounds};
use crate::{
    harness::RedisServer,
    process::{
        child::{WAIT_MAX, eventually},
        log::{LogEntry, pages},
        relay::RelayProcess,
        site::{STREAM, Site},
    },
};

const TOPICS: &str = r#"["v2.analytics.queues.*.observations", "v2.users.*.presence", "v2.users.*.routingStatus", "v2.users.*.activity"]"#;

/// A site with a stream of notifications; `keys` are additional lines of its table.
pub(super) async fn site(server: &RedisServer, keys: &[&str]) -> Site {
    let site = Site::start_with(Settings::default(), &[]).await;
    let stream = format!(
        "[streams.{STREAM}]\naccount = \"demo\"\nconnector = \"genesys-notifications\"\ntopics = {TOPICS}\n{}\n",
        keys.join("\n")
    );
    fs::write(&site.config, format!("{}{stream}", site.base(&site.store()))).unwrap();
    site.use_redis(&server.url());
    site
}

/// The subscribed events of the platform, in order.
pub(super) struct EventAudit {
    ledger: EmissionLedger,
    mark: u64,
    sent: Vec<String>,
}

/// The result of a comparison of a log with the sent events.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct AuditFindings {
    pub(super) events: usize,
    pub(super) gaps: BTreeMap<String, usize>,
    pub(super) duplicates: usize,
    /// Missing events with a gap between their neighbours.
    pub(super) marked: usize,
    pub(super) unmarked: usize,
}

#[derive(Deserialize)]
struct GapAttributes {
    correlationid: Option<String>,
    data: Option<GapDetails>,
}

#[derive(Deserialize)]
struct GapDetails {
    reason: Option<String>,
}

impl EventAudit {
    pub(super) fn open(site: &Site) -> Self {
        let ledger = site.platform.ledger();
        Self { mark: ledger.mark(), ledger, sent: Vec::new() }
    }

    /// Records the events since the last call, because the platform keeps only recent ones.
    pub(super) fn receive(&mut self) {
        let sent = self.ledger.emitted_since(self.mark);
        self.mark = sent.last().map_or(self.mark, |last| last.number + 1);
        self.sent.extend(sent.into_iter().filter(|sent| sent.subscribed).map(|sent| sent.correlation));
    }

    /// The last sent event.
    fn last(&self) -> Option<&str> {
        self.sent.last().map(String::as_str)
    }

    /// Compares a log with the sent events.
    pub(super) fn audit(&self, log: &[LogEntry]) -> AuditFindings {
        let mut findings = AuditFindings::default();
        // For each event, the number of gaps before it.
        let mut places: BTreeMap<String, usize> = BTreeMap::new();
        let mut gaps = 0;
        for (index, entry) in log.iter().enumerate() {
            assert_eq!(entry.offset, index as u64 + 1, "offsets are dense: {}", entry.json);
            let seen: GapAttributes = serde_json::from_str(&entry.json).unwrap();
            if entry.kind == "trunkline.gap.v1" {
                gaps += 1;
                *findings.gaps.entry(seen.data.and_then(|details| details.reason).unwrap()).or_default() += 1;
            } else if let Some(correlation) = seen.correlationid {
                findings.events += 1;
                findings.duplicates += usize::from(places.insert(correlation, gaps).is_some());
            }
        }
        let (mut missing, mut behind) = (0, 0);
        for sent in &self.sent {
            match places.get(sent) {
                None => missing += 1,
                Some(&place) => {
                    *(if place > behind { &mut findings.marked } else { &mut findings.unmarked }) += missing;
                    (missing, behind) = (0, behind.max(place));
                }
            }
        }
        findings.unmarked += missing;
        findings
    }
}

/// Waits until this relay serves the last event, and returns its log.
pub(super) async fn has_all(relay: &RelayProcess, audit: &mut EventAudit) -> Vec<LogEntry> {
    audit.receive();
    let last = audit.last().unwrap().to_owned();
    eventually("the last event is there", WAIT_MAX, async || relay.newest().await?.json.contains(&last).then_some(()))
        .await;
    pages(&relay.consumers).await
}

/// How an owner ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HolderExit {
    Killed,
    HandedOver,
}

struct ScenarioResult {
    findings: AuditFindings,
    took: Vec<Duration>,
}

/// Ends the owner repeatedly during traffic.
#[expect(clippy::print_stdout, reason = "a full run prints its measurements")]
async fn run_round(keys: &[&str], end: HolderExit, times: usize) -> ScenarioResult {
    let server = RedisServer::durable();
    let site = site(&server, keys).await;
    let mut relays = vec![RelayProcess::live(&site).await, RelayProcess::live(&site).await];
    let sockets = || site.platform.counters().sockets(SocketDialect::Notifications);
    let (mut audit, traffic, mut took) = (EventAudit::open(&site), site.start_traffic(rate()), Vec::new());
    for _ in 0..times {
        let index = holder(&relays).await;
        if !keys.is_empty() {
            let ready = async || (sockets().open == 2).then_some(());
            eventually("the standby has a session", WAIT_MAX, ready).await;
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(700..1_200))).await;
        let since = clock::now();
        match end {
            HolderExit::Killed => relays[index].child.kill(),
            HolderExit::HandedOver => {
                relays[index].child.signal("TERM");
                assert_eq!(
                    relays[index].child.wait_for_exit(WAIT_MAX).await,
                    0,
                    "{}",
                    relays[index].child.printed_output()
                );
            }
        }
        took.push(is_followed(&relays[1 - index], since).await);
        if end == HolderExit::HandedOver || !keys.is_empty() {
            let details =
                || format!("{}\n{}", relays[index].child.printed_output(), relays[1 - index].child.printed_output());
            assert_eq!(sockets().deserted, 0, "a session is subscribed at every moment\n{}", details());
        }
        relays[index] = RelayProcess::live(&site).await;
        audit.receive();
    }
    traffic.stop().await;
    let log = has_all(&relays[0], &mut audit).await;
    assert!(has_all(&relays[1], &mut audit).await == log, "both replicas have the same log");
    let findings = audit.audit(&log);
    println!("{end:?} {keys:?}: {findings:?}");
    ScenarioResult { findings, took }
}

async fn is_followed(relay: &RelayProcess, since: Instant) -> Duration {
    eventually("the other relay owns the stream", WAIT_MAX, async || holds_stream(relay).await.then_some(())).await;
    relay.wait_until_live().await;
    since.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_no_replica_received_when_a_holder_was_killed_are_marked() {
    let times = rounds(2);
    let ScenarioResult { findings, took } = run_round(&[], HolderExit::Killed, times).await;
    assert_eq!((findings.duplicates, findings.unmarked), (0, 0), "{findings:?}");
    assert_eq!(findings.gaps.values().sum::<usize>(), times, "a kill, a gap: {findings:?}");
    print_times("notifications: takeover without a standby", took);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_appends_the_events_that_a_killed_holder_did_not() {
    let ScenarioResult { findings, took } = run_round(&["standby = true"], HolderExit::Killed, rounds(2)).await;
    assert_eq!((findings.duplicates, findings.unmarked, findings.marked), (0, 0, 0), "{findings:?}");
    assert!(findings.gaps.is_empty(), "{findings:?}");
    print_times("notifications: takeover by a standby", took);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planned_handover_leaves_no_gap_and_no_duplicate() {
    let ScenarioResult { findings, took } = run_round(&[], HolderExit::HandedOver, rounds(2)).await;
    assert_eq!((findings.duplicates, findings.unmarked, findings.marked), (0, 0, 0), "{findings:?}");
    assert!(findings.gaps.is_empty(), "{findings:?}");
    print_times("notifications: hand-over", took);
}
