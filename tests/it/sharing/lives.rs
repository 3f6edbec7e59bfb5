//! Many lives of a token that many replicas share: the platform's grants are counted.
//!
//! `TRUNKLINE_ROUNDS` says how many lives; with it there are fifty replicas and lives of ten seconds.

use std::time::{Duration, Instant};

use redis::cmd;
use trunkline::{
    clock,
    simulator::{Fault, TokenFailure},
    store::redis::connection::Connection,
};

use super::{
    platform,
    replicas::{Alone, Replicas},
};
use crate::harness::{Platform, Redis, knob};

/// How often it is looked whether everybody has a token.
const LOOK: Duration = Duration::from_millis(20);

/// Who looks so much later than it wanted to was not running, and neither was anybody else.
const ASLEEP: Duration = Duration::from_millis(500);

/// A lack is one when it is seen for so long: a look may be the last thing before a sleep.
const LACK_MAX: Duration = Duration::from_millis(250);

/// How much of it is played.
struct Scale {
    lives: u64,
    life: u64,
    replicas: usize,
}

impl Scale {
    /// So many lives of so many seconds, where nobody says otherwise.
    fn of(lives: u64, life: u64) -> Self {
        match knob("TRUNKLINE_ROUNDS") {
            Some(lives) => Self { lives, life: 10, replicas: 50 },
            None => Self { lives, life, replicas: super::MANY },
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_replicas_make_one_request_a_life() {
    let Scale { lives, life, replicas } = Scale::of(3, 4);
    let (platform, redis) = (platform(life).await, Redis::volatile());
    let replicas = Replicas::start(replicas, &platform, &redis);
    replicas.reach(1).await;
    let mut watch = Watch::begin(&redis);
    while replicas.newest() < lives {
        watch.look(&replicas).await;
        tokio::time::sleep(LOOK).await;
    }
    replicas.reach(lives).await;
    replicas.agree();
    let granted = platform.tally().grants_total();
    println!("{lives} lives: {granted} grants");
    assert_eq!(granted, replicas.newest());
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_words_cost_no_request() {
    let Scale { lives, life, replicas } = Scale::of(3, 4);
    let (platform, redis) = (platform(life).await, Redis::volatile());
    let replicas = Replicas::start(replicas, &platform, &redis);
    replicas.reach(1).await;
    let connection = redis.connection();
    while replicas.newest() < lives {
        replicas.all_have_a_token();
        let killed = connection.run::<i64>(cmd("CLIENT").arg("KILL").arg("TYPE").arg("pubsub")).await;
        assert!(killed.is_ok(), "{killed:?}");
        tokio::time::sleep(LOOK).await;
    }
    replicas.reach(lives).await;
    let granted = platform.tally().grants_total();
    println!("{lives} lives, nobody hears a word: {granted} grants");
    assert_eq!(granted, replicas.newest());
}

/// What befalls the replica that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It dies after the token was granted, and before anybody else knows it.
    Dies,
    /// It sleeps until its lock has ended and another has asked.
    Sleeps,
}

#[tokio::test(flavor = "multi_thread")]
async fn who_dies_or_sleeps_with_the_lock_costs_one_request() {
    // Long lives: what a fault leaves of one must be enough for a busy machine, or the machine is a fault of its own.
    let Scale { lives, life, replicas } = Scale::of(3, 12);
    let (platform, redis) = (platform(life).await, Redis::volatile());
    // Who asks first is known: it renews at three quarters of a life, the others at seven eighths.
    let mut first = Alone::with("300s", &platform, &redis);
    let others = Replicas::with(&format!("{}ms", life * 1_000 / 8), replicas, &platform, &redis);
    others.reach(1).await;
    let mut faults = 0;
    while others.newest() < lives {
        let fate = if faults % 2 == 0 { Fate::Dies } else { Fate::Sleeps };
        first = befall(first, fate, &platform, &redis, &others).await;
        faults += 1;
    }
    let granted = platform.tally().grants_total();
    println!("{} lives, {faults} faults: {granted} grants", others.newest());
    assert!(granted <= others.newest() + faults, "{granted} grants");
    assert!(granted > others.newest(), "no fault hit what it was meant to hit");
}

/// Plays one fate, and returns who is to be the next.
async fn befall(first: Alone, fate: Fate, platform: &Platform, redis: &Redis, others: &Replicas) -> Alone {
    let slow = TokenFailure::Slow { lasting: Duration::from_millis(300) };
    platform.inject(Fault::Token { failure: slow, times: 1 });
    let (tally, newest) = (platform.tally(), others.newest());
    let asked = async || platform.tally().token_failures > tally.token_failures;
    until("the request under the lock has arrived", redis, others, asked).await;
    let thaw = first.freeze().await;
    until("it was granted", redis, others, async || platform.tally().grants_total() > tally.grants_total()).await;
    if fate == Fate::Dies {
        drop(thaw);
        until("it is dead", redis, others, async || first.is_dead()).await;
    } else {
        until("another has asked", redis, others, async || others.newest() > newest).await;
        thaw.send(()).unwrap();
    }
    until("everybody has the next one", redis, others, async || others.oldest() > newest).await;
    if fate == Fate::Dies { Alone::with("300s", platform, redis) } else { first }
}

/// Sees to it that everybody has a token at every moment. When the whole test or its server was asleep, by no fault of
/// ours, nobody could be sure to have one.
struct Watch {
    server: Connection,
    looked_at: Instant,
    asleep_until: Instant,
    /// Since when somebody has had none.
    lacking: Option<Instant>,
}

impl Watch {
    fn begin(redis: &Redis) -> Self {
        let now = clock::now();
        Self { server: redis.connection(), looked_at: now, asleep_until: now, lacking: None }
    }

    #[expect(clippy::print_stdout, reason = "whoever reads the figures should know")]
    async fn look(&mut self, all: &Replicas) {
        // No answer in time is a long time, too.
        self.server.run::<String>(&cmd("PING")).await.unwrap_or_default();
        let now = clock::now();
        if now - self.looked_at > ASLEEP {
            println!("everything was asleep for {:?}", now - self.looked_at);
            self.asleep_until = now + 6 * ASLEEP;
        }
        self.looked_at = now;
        if all.have_a_token() || now < self.asleep_until {
            self.lacking = None;
        } else if now - *self.lacking.get_or_insert(now) > LACK_MAX {
            all.all_have_a_token();
        }
    }
}

/// Waits for a fact; meanwhile all of them have a token, whatever happens to the one.
async fn until(what: &str, redis: &Redis, all: &Replicas, mut fact: impl AsyncFnMut() -> bool) {
    let (end, mut watch) = (clock::now() + Duration::from_secs(30), Watch::begin(redis));
    while !fact().await {
        watch.look(all).await;
        assert!(clock::now() < end, "it never came true that {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
