//! Two relays on a stream without numbers: what the platform said is in the log once, or a gap stands in its place.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use serde::Deserialize;
use trunkline::{
    clock,
    simulator::{Dialect, Ledger, Settings},
};

use super::{holder, holds_stream, rate, rounds, tell};
use crate::{
    harness::Redis,
    process::{
        child::{PATIENCE, eventually},
        log::{Entry, pages},
        relay::Relay,
        site::{STREAM, Site},
    },
};

const TOPICS: &str = r#"["v2.analytics.queues.*.observations", "v2.users.*.presence", "v2.users.*.routingStatus", "v2.users.*.activity"]"#;

/// A site whose stream is one of notifications; `keys` stand in its table.
pub(super) async fn site(server: &Redis, keys: &[&str]) -> Site {
    let site = Site::start_with(Settings::default(), &[]).await;
    let stream = format!(
        "[streams.{STREAM}]\naccount = \"demo\"\nconnector = \"genesys-notifications\"\ntopics = {TOPICS}\n{}\n",
        keys.join("\n")
    );
    fs::write(&site.config, format!("{}{stream}", site.base(&site.store()))).unwrap();
    site.use_redis(&server.url());
    site
}

/// What the platform said to whoever had subscribed, in its order.
pub(super) struct Books {
    ledger: Ledger,
    mark: u64,
    said: Vec<String>,
}

/// What a log shows of what was said.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Findings {
    pub(super) events: usize,
    pub(super) gaps: BTreeMap<String, usize>,
    pub(super) doubled: usize,
    /// Missing, with a gap between their neighbours; and without one.
    pub(super) marked: usize,
    pub(super) unmarked: usize,
}

#[derive(Deserialize)]
struct Seen {
    correlationid: Option<String>,
    data: Option<Told>,
}

#[derive(Deserialize)]
struct Told {
    reason: Option<String>,
}

impl Books {
    pub(super) fn open(site: &Site) -> Self {
        let ledger = site.platform.ledger();
        Self { mark: ledger.mark(), ledger, said: Vec::new() }
    }

    /// Takes in what was said since; the platform forgets what is long ago.
    pub(super) fn hear(&mut self) {
        let said = self.ledger.said_since(self.mark);
        self.mark = said.last().map_or(self.mark, |last| last.number + 1);
        self.said.extend(said.into_iter().filter(|said| said.subscribed).map(|said| said.correlation));
    }

    /// The last one that was said.
    fn last(&self) -> Option<&str> {
        self.said.last().map(String::as_str)
    }

    /// Holds a log against what was said.
    pub(super) fn audit(&self, log: &[Entry]) -> Findings {
        let mut findings = Findings::default();
        // Where each stands: behind how many gaps.
        let mut places: BTreeMap<String, usize> = BTreeMap::new();
        let mut gaps = 0;
        for (index, entry) in log.iter().enumerate() {
            assert_eq!(entry.offset, index as u64 + 1, "offsets are dense: {}", entry.json);
            let seen: Seen = serde_json::from_str(&entry.json).unwrap();
            if entry.kind == "trunkline.gap.v1" {
                gaps += 1;
                *findings.gaps.entry(seen.data.and_then(|told| told.reason).unwrap()).or_default() += 1;
            } else if let Some(correlation) = seen.correlationid {
                findings.events += 1;
                findings.doubled += usize::from(places.insert(correlation, gaps).is_some());
            }
        }
        let (mut missing, mut behind) = (0, 0);
        for said in &self.said {
            match places.get(said) {
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

/// Waits until this relay shows the last thing that was said.
pub(super) async fn has_all(relay: &Relay, books: &mut Books) -> Vec<Entry> {
    books.hear();
    let last = books.last().unwrap().to_owned();
    eventually("the last one said is there", PATIENCE, async || {
        relay.newest().await?.json.contains(&last).then_some(())
    })
    .await;
    pages(&relay.consumers).await
}

/// How a holder ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Killed,
    Told,
}

struct Played {
    findings: Findings,
    took: Vec<Duration>,
}

/// Lets the holder end again and again while the platform talks.
#[expect(clippy::print_stdout, reason = "the figures are what a full run is for")]
async fn play(keys: &[&str], end: End, times: usize) -> Played {
    let server = Redis::durable();
    let site = site(&server, keys).await;
    let mut relays = vec![Relay::live(&site).await, Relay::live(&site).await];
    let sockets = || site.platform.tally().sockets(Dialect::Notifications);
    let (mut books, talk, mut took) = (Books::open(&site), site.talk(rate()), Vec::new());
    for _ in 0..times {
        let index = holder(&relays).await;
        if !keys.is_empty() {
            let ready = async || (sockets().open == 2).then_some(());
            eventually("the standby has a session", PATIENCE, ready).await;
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(700..1_200))).await;
        let since = clock::now();
        match end {
            End::Killed => relays[index].child.kill(),
            End::Told => {
                relays[index].child.signal("TERM");
                assert_eq!(relays[index].child.ends(PATIENCE).await, 0, "{}", relays[index].child.told());
            }
        }
        took.push(is_followed(&relays[1 - index], since).await);
        if end == End::Told || !keys.is_empty() {
            let told = || format!("{}\n{}", relays[index].child.told(), relays[1 - index].child.told());
            assert_eq!(sockets().deserted, 0, "somebody listens at every instant\n{}", told());
        }
        relays[index] = Relay::live(&site).await;
        books.hear();
    }
    talk.hush().await;
    let log = has_all(&relays[0], &mut books).await;
    assert!(has_all(&relays[1], &mut books).await == log, "both show the same log");
    let findings = books.audit(&log);
    println!("{end:?} {keys:?}: {findings:?}");
    Played { findings, took }
}

async fn is_followed(relay: &Relay, since: Instant) -> Duration {
    eventually("the other keeps it", PATIENCE, async || holds_stream(relay).await.then_some(())).await;
    relay.goes_live().await;
    since.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_heard_when_a_holder_was_killed_is_marked() {
    let times = rounds(2);
    let Played { findings, took } = play(&[], End::Killed, times).await;
    assert_eq!((findings.doubled, findings.unmarked), (0, 0), "{findings:?}");
    assert_eq!(findings.gaps.values().sum::<usize>(), times, "a kill, a gap: {findings:?}");
    tell("notifications: take-over without a standby", took);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_hears_what_a_killed_holder_does_not_say_any_more() {
    let Played { findings, took } = play(&["standby = true"], End::Killed, rounds(2)).await;
    assert_eq!((findings.doubled, findings.unmarked, findings.marked), (0, 0, 0), "{findings:?}");
    assert!(findings.gaps.is_empty(), "{findings:?}");
    tell("notifications: take-over by a standby", took);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planned_hand_over_leaves_no_gap_and_no_double() {
    let Played { findings, took } = play(&[], End::Told, rounds(2)).await;
    assert_eq!((findings.doubled, findings.unmarked, findings.marked), (0, 0, 0), "{findings:?}");
    assert!(findings.gaps.is_empty(), "{findings:?}");
    tell("notifications: hand-over", took);
}
