//! Drain: the relay closes all connections, loses nothing, and exits in time.

use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use reqwest::Response;
use serde_json::json;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{Message, protocol::CloseFrame},
};
use trunkline::{
    clock,
    simulator::{FaultTarget, PlatformFault, Settings},
};

use super::{
    child::{WAIT_MAX, eventually},
    log::{assert_complete, pages},
    relay::{RelayProcess, client},
    site::{STREAM, Site},
};

/// How long a drain waits for a platform that does not answer the close. It makes a drain long enough to observe.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest time of the other steps of a drain.
const BOUND: Duration = Duration::from_secs(10);
/// Number of attempts of a timing check.
const TRIES_MAX: usize = 5;

type ConsumerSocket = WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>;

#[tokio::test]
async fn a_drain_closes_every_connection_and_exits_with_zero() {
    let site = Site::start().await;
    let mut relay = RelayProcess::live(&site).await;
    site.platform.emit(3);
    let mut socket = socket(&relay).await;
    let (lines, sse) = (body(&relay, "application/x-ndjson").await, body(&relay, "text/event-stream").await);
    relay.wait_for_number(3).await;
    suspend_platform(&site);

    let began = clock::now();
    relay.child.signal("TERM");
    let (status, shown) = not_ready(&relay).await;
    assert_eq!((status, &shown["checks"]["draining"]), (503, &true.into()), "{shown}");
    assert_eq!(relay.text(&relay.admin, "/healthz").await, "ok\n", "the process is healthy");
    let (texts, close) = receive_until_close(&mut socket).await;
    assert_eq!(texts, 3, "pending events are sent before the close");
    assert_eq!((u16::from(close.code), close.reason.as_str()), (1001, "draining"));
    assert_eq!(lines.text().await.expect("the body ends in order").lines().count(), 3);
    assert_eq!(sse.text().await.expect("the body ends in order").matches("\ndata: ").count(), 3);
    assert_eq!(relay.child.wait_for_exit(BOUND).await, 0, "{}", relay.child.printed_output());
    took(began, BOUND);
}

#[tokio::test]
async fn an_idle_relay_stops_within_a_second() {
    let site = Site::start().await;
    for signal in ["TERM", "INT"] {
        let end = async || {
            let mut relay = RelayProcess::live(&site).await;
            let began = clock::now();
            relay.child.signal(signal);
            assert_eq!(relay.child.wait_for_exit(BOUND).await, 0, "{}", relay.child.printed_output());
            began.elapsed()
        };
        one_takes_less_than(Duration::from_secs(1), end).await;
    }
}

#[tokio::test]
async fn a_second_signal_exits_at_once_with_an_early_stop_message() {
    let end = async || {
        let site = Site::start().await;
        let mut relay = RelayProcess::live(&site).await;
        suspend_platform(&site);
        relay.child.signal("TERM");
        relay.child.wait_for_output("draining; a second signal stops immediately").await;
        let began = clock::now();
        relay.child.signal("TERM");
        assert_eq!(relay.child.wait_for_exit(BOUND).await, 1);
        let log = relay.child.stderr();
        assert!(log.contains("error: stopped by a second signal before the drain was complete"), "{log}");
        began.elapsed()
    };
    one_takes_less_than(CLOSE_TIMEOUT / 2, end).await;
}

#[tokio::test]
async fn a_drain_in_the_middle_of_a_rotation_loses_nothing() {
    let site = Site::start_with(Default::default(), &["rotation_jitter = \"0s\""]).await;
    let traffic = site.start_traffic(1_000);
    for round in 0..8 {
        let mut relay = RelayProcess::live(&site).await;
        relay.operator_request(&format!("streams/{STREAM}/rotate")).await;
        // Covers all phases of a rotation, which takes some milliseconds on loopback.
        tokio::time::sleep(Duration::from_millis(round)).await;
        relay.child.signal("TERM");
        assert_eq!(relay.child.wait_for_exit(BOUND).await, 0, "{}", relay.child.printed_output());
    }
    let relay = RelayProcess::live(&site).await;
    let last_sent = traffic.stop().await;
    relay.wait_for_number(last_sent).await;
    assert_complete(&pages(&relay.consumers).await, last_sent);
}

/// Checks that at least one of several attempts is below the bound, because load may delay the others.
async fn one_takes_less_than(bound: Duration, mut run: impl AsyncFnMut() -> Duration) {
    let mut took = Vec::new();
    while took.len() < TRIES_MAX {
        took.push(run().await);
        if took.last().is_some_and(|last| *last < bound) {
            return;
        }
    }
    panic!("{took:?}, none of them below {bound:?}");
}

/// The platform neither reads nor answers on its open sockets.
fn suspend_platform(site: &Site) {
    site.platform.inject(PlatformFault::Stall { on: FaultTarget::All, duration: WAIT_MAX });
}

async fn socket(relay: &RelayProcess) -> ConsumerSocket {
    let url = format!("{}/v1/streams/{STREAM}/events?from=first", relay.consumers.replacen("http", "ws", 1));
    tokio_tungstenite::connect_async(url).await.unwrap().0
}

async fn body(relay: &RelayProcess, accept: &str) -> Response {
    let url = format!("{}/v1/streams/{STREAM}/events?from=first", relay.consumers);
    client().get(url).header("accept", accept).send().await.unwrap()
}

async fn not_ready(relay: &RelayProcess) -> (u16, serde_json::Value) {
    eventually("the relay is not ready", BOUND, async || relay.ready().await.filter(|(status, _)| *status != 200)).await
}

/// The number of texts before the close frame, and the close frame.
async fn receive_until_close(socket: &mut ConsumerSocket) -> (usize, CloseFrame) {
    let mut texts = 0;
    loop {
        let message = tokio::time::timeout(BOUND, socket.next()).await.expect("a close").expect("a close");
        match message.unwrap() {
            Message::Text(_) => texts += 1,
            Message::Close(close) => {
                drop(socket.flush().await);
                return (texts, close.expect("a code"));
            }
            Message::Ping(_) | Message::Pong(_) => (),
            Message::Binary(_) | Message::Frame(_) => panic!("only text frames are expected"),
        }
    }
}

fn took(began: Instant, at_most: Duration) {
    assert!(began.elapsed() < at_most, "it took {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_was_suspended_reads_pending_frames_before_its_silence_timeout() {
    let site = Site::start_with(Settings::default(), &["silence_max = \"2s\""]).await;
    let relay = RelayProcess::live(&site).await;
    site.platform.emit(3);
    relay.wait_for_number(3).await;
    for number in [94, 185] {
        relay.child.signal("STOP");
        site.platform.emit(91);
        tokio::time::sleep(Duration::from_secs(4)).await;
        relay.child.signal("CONT");
        relay.wait_for_number(number).await;
        let stream = relay.stream().await;
        assert_eq!(
            (&stream["reconnects"], &stream["gaps"]),
            (&json!(0), &json!(0)),
            "{}",
            relay.child.printed_output()
        );
    }
}
