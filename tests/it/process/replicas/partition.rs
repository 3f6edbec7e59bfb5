//! A replica's way to Redis is cut: nothing that it may not append gets into the log, now or late.

use std::time::{Duration, Instant};

use redis::cmd;
use trunkline::clock;

use super::{holds_stream, print_times, rate, rounds, site, wait_for_progress};
use crate::{
    harness::{HoldMode, RedisLink, RedisServer},
    process::{
        child::{WAIT_MAX, eventually},
        log::{assert_whole, pages},
        relay::RelayProcess,
        site::{STREAM, Site},
    },
};

/// What a replica may trust itself for after its last proof: 60 % of a lease of 2 s; and what a busy machine needs.
const TRUST: Duration = Duration::from_millis(1_200);
const SLACK: Duration = Duration::from_millis(800);
/// An append that can be held up comes within it.
const HELD_WITHIN: Duration = Duration::from_millis(300);
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// So long nobody takes a stream, when everybody reaches Redis again; and so many times it is waited for.
const STABLE_FOR: Duration = Duration::from_secs(8);
const STABLE_TRIES: usize = 3;

/// Two relays, of which the first keeps the stream and reaches Redis over a road.
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
        far.goes_live().await;
        let near = RelayProcess::live(&site).await;
        Self { server, site, link: road, far, near }
    }

    /// The near one hands the stream over to the far one, and is started again.
    async fn return_stream(&mut self) {
        self.near.child.signal("TERM");
        assert_eq!(self.near.child.wait_for_exit(WAIT_MAX).await, 0, "{}", self.near.child.printed_output());
        self.near = RelayProcess::live(&self.site).await;
        eventually("the far one has it", WAIT_MAX, async || holds_stream(&self.far).await.then_some(())).await;
    }

    /// An append of the far one is on the road, and does not arrive.
    async fn hold_append(&self) {
        eventually("an append is on the road", WAIT_MAX, async || {
            let before = self.link.held_appends();
            self.link.hold(HoldMode::Everything);
            // There are events every 10 ms. One append may have arrived already, and wait for its answer: then no other
            // follows.
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

    /// The nonce under which entries may be appended.
    async fn fence(&self) -> String {
        let head = format!("{{trunkline:{STREAM}}}:head");
        self.server.connection().run(cmd("HGET").arg(head).arg("nonce")).await.unwrap()
    }

    /// The near one has the stream, and shows what is said from then on.
    async fn takes_over(&self, since: Instant) -> Duration {
        eventually("the near one has it", WAIT_MAX, async || holds_stream(&self.near).await.then_some(())).await;
        wait_for_progress(&self.site, &self.near, since).await
    }

    /// The far one knows that the stream is not its own, and shows what the other appends.
    async fn stands_by(&self) {
        let apart = async || (!holds_stream(&self.far).await).then_some(());
        eventually("it knows that the stream is another's", WAIT_MAX, apart).await;
        self.far.goes_live().await;
        wait_for_progress(&self.site, &self.far, clock::now()).await;
    }

    async fn ends_whole(&self, last_said: u64) {
        for relay in [&self.far, &self.near] {
            relay.holds(last_said).await;
            assert_whole(&pages(&relay.consumers).await, last_said);
        }
    }

    /// How often the far one stopped appending by itself.
    fn stepped_down(&self) -> usize {
        self.far.child.stderr().matches("nothing is appended until the store has answered").count()
    }

    async fn steps_down(&self, before: usize, since: Instant) -> Duration {
        eventually("it stops appending", WAIT_MAX, async || (self.stepped_down() > before).then_some(())).await;
        since.elapsed()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partitioned_holder_stops_in_time_and_becomes_a_standby() {
    let mut pair = PartitionedPair::start().await;
    let talk = pair.site.start_traffic(rate());
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
    pair.ends_whole(talk.stop().await).await;
    // The quickest one: the other may have waited for a busy machine.
    let quickest = stopped.iter().min().copied().unwrap();
    assert!(quickest < TRUST + SLACK, "it went on for {quickest:?}");
    print_times("a holder that is cut off has stopped appending", stopped);
    print_times("and the other goes on", took);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_arrives_after_a_takeover_is_rejected() {
    let mut pair = PartitionedPair::start().await;
    let talk = pair.site.start_traffic(rate());
    for _ in 0..rounds(2) {
        wait_for_progress(&pair.site, &pair.far, clock::now()).await;
        pair.hold_append().await;
        pair.far.child.signal("STOP");
        pair.takes_over(clock::now()).await;
        // The far one is stopped, so only the append that was held up can be answered with the new holder's fence.
        pair.link.watch_replies(&pair.fence().await);
        pair.link.hold(HoldMode::Nothing);
        let refused = async || (pair.link.watched_replies() > 0).then_some(());
        eventually("the append arrives late, and is answered with another's fence", WAIT_MAX, refused).await;
        wait_for_progress(&pair.site, &pair.near, clock::now()).await;
        pair.far.child.signal("CONT");
        pair.stands_by().await;
        pair.return_stream().await;
    }
    pair.ends_whole(talk.stop().await).await;
}

/// There comes a time in which the stream stays where it is.
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

/// How often this relay was given a stream, or took it.
fn owned(relay: &RelayProcess) -> usize {
    relay.child.stderr().matches("the stream is this replica's").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silently_dead_connections_are_replaced_without_a_change_of_holder() {
    let server = RedisServer::durable();
    let site = site(&server, &["standby = true"]).await;
    let road = RedisLink::to(server.port()).await;
    let url = format!("redis://127.0.0.1:{}/0", road.port());
    let variables = [("TRUNKLINE__STORE__URL", url.as_str())];
    let relays = [RelayProcess::start_with(&site, &variables).await, RelayProcess::start_with(&site, &variables).await];
    relays[1].goes_live().await;
    let talk = site.start_traffic(rate());
    wait_for_progress(&site, &relays[1], clock::now()).await;
    road.lose_connections();
    let since = clock::now();
    for relay in &relays {
        print_times(
            "after every connection died in silence it goes on",
            vec![wait_for_progress(&site, relay, since).await],
        );
    }
    let calm = wait_until_stable(&relays).await;
    assert!(
        calm,
        "the stream goes from one to the other\n{}\n{}",
        relays[0].child.printed_output(),
        relays[1].child.printed_output()
    );
    let last_said = talk.stop().await;
    for relay in &relays {
        relay.holds(last_said).await;
        assert_whole(&pages(&relay.consumers).await, last_said);
    }
}
