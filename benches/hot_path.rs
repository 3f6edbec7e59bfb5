//! The hot path of an event, step by step: decode a frame, order its events, decide on the append, write the envelopes,
//! and render the batch for subscribers.
//!
//! Measures only the pure rules, without sockets and disks. Run with `cargo bench --bench hot_path`.

#![expect(clippy::unwrap_used, reason = "a failed step fails the bench")]
#![expect(clippy::disallowed_methods, reason = "the machine needs a start time")]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use bytestring::ByteString;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use trunkline::{
    connector::{Connector, Frame, Item, genesys_notifications, genesys_sequenced},
    downstream::server::render,
    model::{BatchBuilder, Epoch, Event, Mark, Offset, Source, Timestamp},
    protocol::{
        Moment, backoff,
        session::{SessionId, Timeouts},
        stream::{self, Input, LogHead, Output, OverflowPolicy, Rotation, Stream},
    },
};

const EVENT_LEN: usize = 1_024;
const FRAME_LENS: [usize; 3] = [1, 10, 50];
/// Events of the batch that is wrapped and rendered.
const BATCH_LEN: usize = 50;
const RECEIVED: Timestamp = Timestamp(1_777_901_509_570);

/// One event of a sequenced stream with about a dozen small objects, like the observations of a queue.
fn event(sequence: u64) -> String {
    let metric = r#"{"metric":"oWaiting","qualifier":"voice","stats":{"count":17,"max":31.5}}"#;
    let metrics = [metric; 9].join(",");
    let head = format!(
        r#"{{"sequenceId":{sequence},"type":"v2.analytics.queues.observations","eventTime":"2026-05-04T13:31:49.570Z","queueId":"3fa85f64-5717-4562-b3fc-2c963f66afa6","metrics":[{metrics}],"note":""#
    );
    format!(r#"{head}{}"}}"#, "n".repeat(EVENT_LEN - head.len() - 2))
}

fn sequenced_frame(first: u64, events: usize) -> Frame {
    let events: Vec<String> = (first..first + events as u64).map(event).collect();
    Frame::Text(ByteString::from(format!("[{}]", events.join(","))))
}

fn sequenced() -> Connector {
    Connector::Sequenced(genesys_sequenced::Settings {
        url: "ws://127.0.0.1/".to_owned(),
        placement: genesys_sequenced::Placement::Header,
        snapshot_url: None,
    })
}

fn notifications() -> Connector {
    Connector::Notifications(genesys_notifications::Settings {
        topics: vec!["v2.analytics.queues.*.observations".to_owned()],
        channel_life: Duration::from_secs(86_400),
        discovery: Duration::from_secs(60),
    })
}

fn notification() -> Frame {
    let body = event(1);
    Frame::Text(ByteString::from(format!(
        r#"{{"topicName":"v2.analytics.queues.3fa85f64-5717-4562-b3fc-2c963f66afa6.observations","version":"2","eventBody":{body},"metadata":{{"CorrelationId":"0f8fad5b-d9cb-469f-a165-70867728950e"}}}}"#
    )))
}

fn decoded(connector: &Connector, frame: Frame) -> Vec<Item> {
    let mut items = Vec::new();
    connector.decode(frame, RECEIVED, &mut items);
    items
}

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode 1 KiB events");
    for len in FRAME_LENS {
        let (connector, frame) = (sequenced(), sequenced_frame(1, len));
        group.throughput(Throughput::Elements(len as u64));
        group.bench_function(BenchmarkId::new("sequenced", len), |bencher| {
            bencher.iter(|| black_box(decoded(&connector, frame.clone())));
        });
    }
    let (connector, frame) = (notifications(), notification());
    group.throughput(Throughput::Elements(1));
    group.bench_function("notification", |bencher| bencher.iter(|| black_box(decoded(&connector, frame.clone()))));
    group.finish();
}

fn events() -> Vec<Event> {
    let items = decoded(&sequenced(), sequenced_frame(1, BATCH_LEN));
    let events = items.into_iter().filter_map(|item| match item {
        Item::Event(event) => Some(event),
        Item::Undecoded(_)
        | Item::Position(_)
        | Item::Notice(_)
        | Item::Heartbeat
        | Item::ProbeAck
        | Item::Accepted => None,
    });
    events.collect()
}

fn wrap(criterion: &mut Criterion) {
    let events = events();
    let source = Source::new(&"acme".parse().unwrap(), &"queues".parse().unwrap());
    let wrapped = || {
        let mut builder = BatchBuilder::new(&source, Epoch(0x4f2a), Offset(1_000_000));
        builder.reserve(&events);
        events.iter().for_each(|event| builder.push(event));
        builder.finish().unwrap()
    };
    let batch = wrapped();
    let mut group = criterion.benchmark_group("a batch of 50 events of 1 KiB");
    group.throughput(Throughput::Elements(BATCH_LEN as u64));
    group.bench_function("wrap", |bencher| bencher.iter(|| black_box(wrapped())));
    group.bench_function("render as WebSocket frames", |bencher| bencher.iter(|| black_box(render::frames(&batch))));
    group.bench_function("render as server-sent events", |bencher| bencher.iter(|| black_box(render::sse(&batch))));
    group.finish();
}

/// The live machine of one sequenced stream, and its next expected number.
struct StreamBench {
    stream: Stream,
    session: SessionId,
    next: u64,
    now: Moment,
}

impl StreamBench {
    fn live() -> Self {
        let now = Moment { at: Instant::now(), wall: RECEIVED, random: 0.5 };
        let mut stream = Stream::new(settings(), LogHead::default(), now);
        stream.handle(Input::Token(1), now);
        let dialled = std::iter::from_fn(|| stream.poll_output()).find_map(|output| match output {
            Output::Dial { session, .. } => Some(session),
            Output::Call { .. }
            | Output::Send { .. }
            | Output::Probe { .. }
            | Output::Close { .. }
            | Output::DropSocket(_)
            | Output::Append { .. }
            | Output::TokenRejected(_)
            | Output::Report(_)
            | Output::Flushed
            | Output::TokenProven(_)
            | Output::Drained => None,
        });
        let session = dialled.unwrap();
        stream.handle(Input::Opened(session), now);
        Self { stream, session, next: 1, now }
    }

    fn frame(&mut self, len: usize) -> Frame {
        let frame = sequenced_frame(self.next, len);
        self.next += len as u64;
        frame
    }

    /// Handles a frame and its append. Returns the number of appended events.
    fn take(&mut self, frame: Frame) -> usize {
        self.stream.handle(Input::Frame { session: self.session, frame }, self.now);
        let mut appended = 0;
        while let Some(output) = self.stream.poll_output() {
            if let Output::Append { events, .. } = output {
                appended = black_box(events).len();
                let last = Mark { epoch: Epoch(1), offset: Offset(self.next) };
                self.stream.handle(Input::Appended(last), self.now);
            }
        }
        appended
    }
}

fn settings() -> stream::Settings {
    let second = Duration::from_secs(1);
    let connector = sequenced();
    stream::Settings {
        feed: connector.feed(""),
        connector,
        rotation: Rotation::Overlap,
        rotation_jitter: Duration::ZERO,
        retention: 60 * second,
        buffer: 5_000,
        buffer_bytes: 64 << 20,
        append_max: 2_048,
        overflow: OverflowPolicy::Backpressure,
        timeouts: Timeouts { connect: 10 * second, silence: 35 * second, frame: 30 * second, close: 2 * second },
        backoff: backoff::Settings {
            first: second,
            cap: 30 * second,
            jitter: 0.2,
            breaker_after: 5,
            stable_after: 10 * second,
        },
    }
}

/// Decoding, ordering and buffering together: the cost of a frame in the stream's task before the log.
fn machine(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame in, append out");
    for len in FRAME_LENS {
        let mut machine = StreamBench::live();
        group.throughput(Throughput::Elements(len as u64));
        group.bench_function(BenchmarkId::from_parameter(len), |bencher| {
            bencher.iter_custom(|rounds| {
                let mut spent = Duration::ZERO;
                for _ in 0..rounds {
                    let frame = machine.frame(len);
                    let start = Instant::now();
                    let appended = machine.take(frame);
                    spent += start.elapsed();
                    assert_eq!(appended, len);
                }
                spent
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decode, wrap, machine);
criterion_main!(benches);
