//! A numbered stream over its life: from its first connection over restarts to its silence.

use std::time::Duration;

use trunkline::simulator::{Dialect, Fault, Settings, Target};

use crate::harness::{Plan, Platform, Relay, Wire, eventually, throughout};

#[tokio::test(flavor = "multi_thread")]
async fn what_the_platform_says_arrives_once_and_in_order() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    let mut consumer = relay.consumer().await;
    platform.say(100);
    consumer.expect(1..=100).await;
    platform.say(1);
    consumer.expect(101..=101).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_relay_goes_on_where_it_stopped() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    platform.say(5);
    relay.consumer().await.expect(1..=5).await;
    let plan = relay.stop().await;
    platform.say(4);
    let relay = Relay::of(plan).await;
    relay.consumer().await.expect(1..=9).await;
    platform.say(1);
    relay.tells("1 2 3 4 5 6 7 8 9 10").await;
}
