//! A replica's way to Redis is cut: nothing that it may not append gets into the log, now or late.

use std::time::{Duration, Instant};

use redis::cmd;
use trunkline::clock;

use super::{goes_on, holds_stream, rate, rounds, site, tell};
use crate::{
    harness::{Held, Redis, Road},
    process::{
        child::{PATIENCE, eventually},
        log::{assert_whole, pages},
        relay::Relay,
        site::{STREAM, Site},
    },
};

/// What a replica may trust itself for after its last proof: 60 % of a lease of 2 s; and what a busy machine needs.
const TRUST: Duration = Duration::from_millis(1_200);
const SLACK: Duration = Duration::from_millis(800);
/// An append that can be held up comes within it.
const HELD_WITHIN: Duration = Duration::from_millis(300);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// So long nobody takes a stream, when everybody reaches Redis again; and so many times it is waited for.
const CALM: Duration = Duration::from_secs(8);
const CALM_TRIES: usize = 3;

/// Two relays, of which the first keeps the stream and reaches Redis over a road.
struct Pair {
    server: Redis,
    site: Site,
    road: Road,
    far: Relay,
    near: Relay,
}

impl Pair {
    async fn start() -> Self {
        let server = Redis::durable();
        let site = site(&server, &[]).await;
        let road = Road::to(server.port()).await;
        let url = format!("redis://127.0.0.1:{}/0", road.port());
        let far = Relay::start_with(&site, &[("TRUNKLINE__STORE__URL", &url)]).await;
        far.goes_live().await;
        let near = Relay::live(&site).await;
        Self { server, site, road, far, near }
    }

    /// The near one hands the stream over to the far one, and is started again.
    async fn give_back(&mut self) {
        self.near.child.signal("TERM");
        assert_eq!(self.near.child.ends(PATIENCE).await, 0, "{}", self.near.child.told());
        self.near = Relay::live(&self.site).await;
        eventually("the far one has it", PATIENCE, async || holds_stream(&self.far).await.then_some(())).await;
    }

    /// An append of the far one is on the road, and does not arrive.
    async fn holds_an_append_up(&self) {
        eventually("an append is on the road", PATIENCE, async || {
            let before = self.road.held_appends();
            self.road.hold(Held::Everything);
            // There are events every 10 ms. One append may have arrived already, and wait for its answer: then no other
            // follows.
            let end = clock::now() + HELD_WITHIN;
            while clock::now() < end {
                if self.road.held_appends() > before {
                    return Some(());
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
            self.road.hold(Held::Nothing);
            goes_on(&self.site, &self.far, clock::now()).await;
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
        eventually("the near one has it", PATIENCE, async || holds_stream(&self.near).await.then_some(())).await;
        goes_on(&self.site, &self.near, since).await
    }

    /// The far one knows that the stream is not its own, and shows what the other appends.
    async fn stands_by(&self) {
        let apart = async || (!holds_stream(&self.far).await).then_some(());
        eventually("it knows that the stream is another's", PATIENCE, apart).await;
        self.far.goes_live().await;
        goes_on(&self.site, &self.far, clock::now()).await;
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
        eventually("it stops appending", PATIENCE, async || (self.stepped_down() > before).then_some(())).await;
        since.elapsed()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_is_cut_off_stops_in_time_and_stands_by_afterwards() {
    let mut pair = Pair::start().await;
    let talk = pair.site.talk(rate());
    let (mut stopped, mut took) = (Vec::new(), Vec::new());
    for round in 0..rounds(2) {
        goes_on(&pair.site, &pair.far, clock::now()).await;
        let (before, since) = (pair.stepped_down(), clock::now());
        pair.road.hold(if round % 2 == 0 { Held::Everything } else { Held::Answers });
        let (stop, over) = tokio::join!(pair.steps_down(before, since), pair.takes_over(since));
        stopped.push(stop);
        took.push(over);
        pair.road.hold(Held::Nothing);
        pair.stands_by().await;
        pair.give_back().await;
    }
    pair.ends_whole(talk.hush().await).await;
    // The quickest one: the other may have waited for a busy machine.
    let quickest = stopped.iter().min().copied().unwrap();
    assert!(quickest < TRUST + SLACK, "it went on for {quickest:?}");
    tell("a holder that is cut off has stopped appending", stopped);
    tell("and the other goes on", took);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_arrives_after_another_took_over_is_refused() {
    let mut pair = Pair::start().await;
    let talk = pair.site.talk(rate());
    for _ in 0..rounds(2) {
        goes_on(&pair.site, &pair.far, clock::now()).await;
        pair.holds_an_append_up().await;
        pair.far.child.signal("STOP");
        pair.takes_over(clock::now()).await;
        // The far one is stopped, so only the append that was held up can be answered with the new holder's fence.
        pair.road.watch_answers(&pair.fence().await);
        pair.road.hold(Held::Nothing);
        let refused = async || (pair.road.watched_answers() > 0).then_some(());
        eventually("the append arrives late, and is answered with another's fence", PATIENCE, refused).await;
        goes_on(&pair.site, &pair.near, clock::now()).await;
        pair.far.child.signal("CONT");
        pair.stands_by().await;
        pair.give_back().await;
    }
    pair.ends_whole(talk.hush().await).await;
}

/// There comes a time in which the stream stays where it is.
async fn becomes_calm(relays: &[Relay; 2]) -> bool {
    for _ in 0..CALM_TRIES {
        let before = owned(&relays[0]) + owned(&relays[1]);
        tokio::time::sleep(CALM).await;
        if owned(&relays[0]) + owned(&relays[1]) == before {
            return true;
        }
    }
    false
}

/// How often this relay was given a stream, or took it.
fn owned(relay: &Relay) -> usize {
    relay.child.stderr().matches("the stream is this replica's").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_died_without_a_word_are_replaced_and_nobody_fights() {
    let server = Redis::durable();
    let site = site(&server, &["standby = true"]).await;
    let road = Road::to(server.port()).await;
    let url = format!("redis://127.0.0.1:{}/0", road.port());
    let variables = [("TRUNKLINE__STORE__URL", url.as_str())];
    let relays = [Relay::start_with(&site, &variables).await, Relay::start_with(&site, &variables).await];
    relays[1].goes_live().await;
    let talk = site.talk(rate());
    goes_on(&site, &relays[1], clock::now()).await;
    road.lose_connections();
    let since = clock::now();
    for relay in &relays {
        tell("after every connection died in silence it goes on", vec![goes_on(&site, relay, since).await]);
    }
    let calm = becomes_calm(&relays).await;
    assert!(calm, "the stream goes from one to the other\n{}\n{}", relays[0].child.told(), relays[1].child.told());
    let last_said = talk.hush().await;
    for relay in &relays {
        relay.holds(last_said).await;
        assert_whole(&pages(&relay.consumers).await, last_said);
    }
}
