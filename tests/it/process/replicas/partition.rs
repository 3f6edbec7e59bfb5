//! A replica is partitioned from Redis: no append of a former owner gets into the log, not even late.

use std::time::{Duration, Instant};

use redis::cmd;
use trunkline::clock;

use super::{holds_stream, print_times, rate, rounds, site, wait_for_progress};
use crate::{
    harness::{HoldMode, RedisLink, RedisServer},
    process::{
        child::{WAIT_MAX, eventually},
        log::{assert_complete, pages},
        relay::RelayProcess,
        site::{STREAM, Site},
    },
};

/// How long an owner may append after its last confirmed renewal: 60 % of a lease of 2 s.
const TRUST: Duration = Duration::from_millis(1_200);
const SLACK: Duration = Duration::from_millis(800);
/// Time within which an append can be held.
const HELD_WITHIN: Duration = Duration::from_millis(300);
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Required time without a change of owner after Redis is reachable again.
const STABLE_FOR: Duration = Duration::from_secs(8);
const STABLE_TRIES: usize = 3;

/// Two relays. `far` owns the stream and reaches Redis through `link`.
struct PartitionedPair {
    server: RedisServer,
    site: Site,
    link: RedisLink,
    far: RelayProcess,
    near: RelayProcess,
}

impl PartitionedPair {
    async fn start() -> Self {
        let server = RedisServer::durable();
        let site = site(&server, &[]).await;
        let road = RedisLink::to(server.port()).await;
        let url = format!("redis://127.0.0.1:{}/0", road.port());
        let far = RelayProcess::start_with(&site, &[("TRUNKLINE__STORE__URL", &url)]).await;
        far.wait_until_live().await;
        let near = RelayProcess::live(&site).await;
        Self { server, site, link: road, far, near }
    }

    /// Hands the stream over to the far relay, and restarts the near one.
    async fn return_stream(&mut self) {
        self.near.child.signal("TERM");
        assert_eq!(self.near.child.wait_for_exit(WAIT_MAX).await, 0, "{}", self.near.child.printed_output());
        self.near = RelayProcess::live(&self.site).await;
        eventually("the far relay owns the stream", WAIT_MAX, async || holds_stream(&self.far).await.then_some(()))
            .await;
    }

    /// Holds an append of the far relay on the link.
    async fn hold_append(&self) {
        eventually("an append is held", WAIT_MAX, async || {
            let before = self.link.held_appends();
            self.link.hold(HoldMode::Everything);
            // Events arrive every 10 ms. If an earlier append waits for its reply, no other follows.
            let end = clock::now() + HELD_WITHIN;
            while clock::now() < end {
                if self.link.held_appends() > before {
                    return Some(());
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            self.link.hold(HoldMode::Nothing);
            wait_for_progress(&self.site, &self.far, clock::now()).await;
            None
        })
        .await;
    }

    /// The nonce of the current fence.
    async fn fence(&self) -> String {
        let head = format!("{{trunkline:{STREAM}}}:head");
        self.server.connection().run(cmd("HGET").arg(head).arg("nonce")).await.unwrap()
    }

    /// Waits until the near relay owns the stream and serves a new event.
    async fn takes_over(&self, since: Instant) -> Duration {
        eventually("the near relay owns the stream", WAIT_MAX, async || holds_stream(&self.near).await.then_some(()))
            .await;
        wait_for_progress(&self.site, &self.near, since).await
    }

    /// Waits until the far relay is a standby and serves the other's entries.
    async fn stands_by(&self) {
        let apart = async || (!holds_stream(&self.far).await).then_some(());
        eventually("it reports that the other replica owns the stream", WAIT_MAX, apart).await;
        self.far.wait_until_live().await;
        wait_for_progress(&self.site, &self.far, clock::now()).await;
    }

    async fn assert_complete_logs(&self, last_sent: u64) {
        for relay in [&self.far, &self.near] {
            relay.wait_for_number(last_sent).await;
            assert_complete(&pages(&relay.consumers).await, last_sent);
        }
    }

    /// Number of times that the far relay stopped appends without a reply of Redis.
    fn stepped_down(&self) -> usize {
        self.far.child.stderr().matches("lease expired locally; appends paused").count()
    }

    async fn steps_down(&self, before: usize, since: Instant) -> Duration {
        eventually("it pauses appends", WAIT_MAX, async || (self.stepped_down() > before).then_some(())).await;
        since.elapsed()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partitioned_holder_stops_in_time_and_becomes_a_standby() {
    let mut pair = PartitionedPair::start().await;
    let traffic = pair.site.start_traffic(rate());
    let (mut stopped, mut took) = (Vec::new(), Vec::new());
    for round in 0..rounds(2) {
        wait_for_progress(&pair.site, &pair.far, clock::now()).await;
        let (before, since) = (pair.stepped_down(), clock::now());
        pair.link.hold(if round % 2 == 0 { HoldMode::Everything } else { HoldMode::Replies });
        let (stop, over) = tokio::join!(pair.steps_down(before, since), pair.takes_over(since));
        stopped.push(stop);
        took.push(over);
        pair.link.hold(HoldMode::Nothing);
        pair.stands_by().await;
        pair.return_stream().await;
    }
    pair.assert_complete_logs(traffic.stop().await).await;
    // The quickest one, because others may have been delayed by load.
    let quickest = stopped.iter().min().copied().unwrap();
    assert!(quickest < TRUST + SLACK, "appends continued for {quickest:?}");
    print_times("a partitioned owner pauses appends", stopped);
    print_times("and the other takes over", took);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_arrives_after_a_takeover_is_rejected() {
    let mut pair = PartitionedPair::start().await;
    let traffic = pair.site.start_traffic(rate());
    for _ in 0..rounds(2) {
        wait_for_progress(&pair.site, &pair.far, clock::now()).await;
        pair.hold_append().await;
        pair.far.child.signal("STOP");
        pair.takes_over(clock::now()).await;
        // The far relay is suspended, so only the held append can get a reply with the new owner's fence.
        pair.link.watch_replies(&pair.fence().await);
        pair.link.hold(HoldMode::Nothing);
        let refused = async || (pair.link.watched_replies() > 0).then_some(());
        eventually("the late append is rejected with the new fence", WAIT_MAX, refused).await;
        wait_for_progress(&pair.site, &pair.near, clock::now()).await;
        pair.far.child.signal("CONT");
        pair.stands_by().await;
        pair.return_stream().await;
    }
    pair.assert_complete_logs(traffic.stop().await).await;
}

/// Waits for a period without a change of owner. False if there is none.
async fn wait_until_stable(relays: &[RelayProcess; 2]) -> bool {
    for _ in 0..STABLE_TRIES {
        let before = owned(&relays[0]) + owned(&relays[1]);
        tokio::time::sleep(STABLE_FOR).await;
        if owned(&relays[0]) + owned(&relays[1]) == before {
            return true;
        }
    }
    false
}

/// Number of times that this relay became the owner.
fn owned(relay: &RelayProcess) -> usize {
    relay.child.stderr().matches("took over the stream").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silently_dead_connections_are_replaced_without_a_change_of_holder() {
    let server = RedisServer::durable();
    let site = site(&server, &["standby = true"]).await;
    let road = RedisLink::to(server.port()).await;
    let url = format!("redis://127.0.0.1:{}/0", road.port());
    let variables = [("TRUNKLINE__STORE__URL", url.as_str())];
    let relays = [RelayProcess::start_with(&site, &variables).await, RelayProcess::start_with(&site, &variables).await];
    relays[1].wait_until_live().await;
    let traffic = site.start_traffic(rate());
    wait_for_progress(&site, &relays[1], clock::now()).await;
    road.lose_connections();
    let since = clock::now();
    for relay in &relays {
        print_times("recovery after silently dead connections", vec![wait_for_progress(&site, relay, since).await]);
    }
    let calm = wait_until_stable(&relays).await;
    assert!(
        calm,
        "the owner keeps changing\n{}\n{}",
        relays[0].child.printed_output(),
        relays[1].child.printed_output()
    );
    let last_sent = traffic.stop().await;
    for relay in &relays {
        relay.wait_for_number(last_sent).await;
        assert_complete(&pages(&relay.consumers).await, last_sent);
    }
}
