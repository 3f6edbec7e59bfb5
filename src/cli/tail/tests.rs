//! Tests over real sockets: the start position, the output, and the resume after a lost connection.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Notify;

use super::*;
use crate::cli::{
    Exit,
    tests_server::{StubResponse, StubServer, serve},
};

const LISTING: &str = r#"{"streams":[{"name":"queues","first":"4f2a-1","last":"4f2a-9","live":true}]}"#;
const TEN: &str = "{\"id\":\"4f2a-10\",\"type\":\"a\",\"data\":{}}\n";
const ELEVEN: &str = "{\"id\":\"4f2a-11\",\"type\":\"b\",\"data\":{}}\n";

/// Timeout of a test, long enough for a loaded machine.
const TEST_MAX: Duration = Duration::from_secs(20);

fn args(server: &StubServer, line: &str) -> TailArgs {
    #[derive(clap::Parser)]
    struct TailTestCli {
        #[command(flatten)]
        args: TailArgs,
    }
    let words = ["tail", "queues", "--url", &server.url].into_iter().chain(line.split_whitespace());
    <TailTestCli as clap::Parser>::try_parse_from(words).unwrap().args
}

/// Follows until the output holds `count` lines.
async fn follow(args: &TailArgs, style: Style, count: usize) -> (Result<(), CliError>, String, String) {
    let (mut out, mut notes) = (CapturedLines::awaiting(count), Vec::new());
    let enough = Arc::clone(&out.enough);
    let ended = tokio::time::timeout(TEST_MAX, run(args, style, &mut out, &mut notes, enough.notified())).await;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (ended.expect("the lines did not come"), text(out.bytes), text(notes))
}

/// An output that notifies when it holds enough lines.
struct CapturedLines {
    bytes: Vec<u8>,
    count: usize,
    enough: Arc<Notify>,
}

impl CapturedLines {
    fn awaiting(count: usize) -> Self {
        Self { bytes: Vec::new(), count, enough: Arc::new(Notify::new()) }
    }
}

impl Write for CapturedLines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.iter().filter(|byte| **byte == b'\n').count() >= self.count {
            self.enough.notify_one();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A closed pipe.
struct ClosedOutput;

impl Write for ClosedOutput {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn without_a_start_it_follows_from_the_end_of_the_log() {
    let server = serve(|asked| match asked.target.as_str() {
        "/v1/streams" => StubResponse::json(LISTING),
        _ => StubResponse::endless(vec![TEN, &ELEVEN[..7], &ELEVEN[7..]]),
    })
    .await;
    let (ended, out, notes) = follow(&args(&server, "--token t0ken --type v2.*"), Style::Lines, 2).await;
    assert!(ended.is_ok());
    assert_eq!(out, format!("{TEN}{ELEVEN}"), "byte for byte as received");
    assert_eq!(notes, "", "a script gets no messages");
    let request = &server.requests()[1];
    assert_eq!(request.target, "/v1/streams/queues/events?after=4f2a-9&type=v2.*");
    assert_eq!(request.accept.as_deref(), Some("application/x-ndjson"));
    assert_eq!(request.authorization.as_deref(), Some("Bearer t0ken"));
}

#[tokio::test]
async fn a_lost_connection_resumes_after_the_last_entry_shown() {
    let requests = AtomicUsize::new(0);
    let server = serve(move |_| match requests.fetch_add(1, Ordering::SeqCst) {
        0 => StubResponse::broken_off(vec![TEN, &ELEVEN[..9]]),
        1 => StubResponse::status(503, "{}"),
        _ => StubResponse::endless(vec![ELEVEN]),
    })
    .await;
    let (ended, out, notes) = follow(&args(&server, "--since 10m"), Style::Lines, 2).await;
    assert!(ended.is_ok());
    assert_eq!(out, format!("{TEN}{ELEVEN}"), "half a line is not shown");
    assert_eq!(notes.matches("connection lost").count(), 2, "{notes}");
    let targets: Vec<_> = server.requests().into_iter().map(|asked| asked.target).collect();
    assert_eq!(targets[0], "/v1/streams/queues/events?since=10m");
    assert_eq!(targets[1..], ["/v1/streams/queues/events?after=4f2a-10", "/v1/streams/queues/events?after=4f2a-10"]);
}

#[tokio::test]
async fn the_gap_of_one_subscriber_is_shown_without_moving_the_cursor() {
    const TRIMMED: &str =
        "{\"id\":\"4f2a-30/trimmed\",\"type\":\"trunkline.gap.v1\",\"data\":{\"reason\":\"trimmed\"}}\n";
    let requests = AtomicUsize::new(0);
    let server = serve(move |_| match requests.fetch_add(1, Ordering::SeqCst) {
        0 => StubResponse::broken_off(vec![TRIMMED]),
        _ => StubResponse::endless(vec![TEN]),
    })
    .await;
    let (_, out, _) = follow(&args(&server, "--after 4f2a-3"), Style::Summary { colour: false }, 2).await;
    assert!(out.contains("GAP trimmed"), "{out}");
    assert!(server.requests()[1].target.ends_with("after=4f2a-3"), "{:?}", server.requests());
}

#[tokio::test]
async fn an_unknown_stream_is_rejected_with_the_known_names() {
    let server = serve(|_| StubResponse::json(LISTING.replace("queues", "agents"))).await;
    let (ended, ..) = follow(&args(&server, ""), Style::Lines, 1).await;
    let failure = ended.unwrap_err();
    assert_eq!(failure.exit(), Exit::Refused);
    assert_eq!(failure.to_string(), "unknown stream queues; known streams: agents");
}

#[tokio::test]
async fn a_closed_output_ends_it_without_an_error() {
    let server = serve(|_| StubResponse::endless(vec![TEN])).await;
    let args = args(&server, "--since 10m");
    let (mut out, mut notes) = (ClosedOutput, Vec::new());
    let ended = run(&args, Style::Lines, &mut out, &mut notes, std::future::pending());
    let failure = tokio::time::timeout(TEST_MAX, ended).await.unwrap().unwrap_err();
    assert_eq!(failure.exit(), Exit::Done);
}
