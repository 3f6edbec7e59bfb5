//! The cost of the event log: wrapping, durable appends, and reads from the store and from the tail.
//!
//! Run with `cargo bench --bench log`. The store is in the target directory, so the results depend on that disk.

#![expect(clippy::unwrap_used, reason = "a failed step fails the bench")]

use std::{path::Path, time::Duration};

use bytestring::ByteString;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use trunkline::{
    event_log::{self, EventLog, EventLogs, LogWriter, Read},
    model::{BatchBuilder, Body, Checkpoint, Epoch, Event, Offset, Position, Sequence, Source, StreamName, Timestamp},
    store::{
        Retention, Store,
        embedded::{self, EmbeddedStore},
    },
};

/// Events of one append: the number that arrives during an fsync of 2 ms at 128,000 events per second.
const APPEND_LEN: usize = 256;

/// Size of a body in bytes, so that an envelope has about 1 KiB.
const BODY_LEN: usize = 640;

const EVENTS_KEPT: u64 = 200_000;

const READ_BYTES: usize = 256 * 1024;

fn event() -> Event {
    Event {
        kind: ByteString::from_static("v2.analytics.queues.observations"),
        subject: Some(ByteString::from_static("v2.analytics.queues.3fa85f64-5717-4562-b3fc-2c963f66afa6.observations")),
        time: None,
        sequence: Some(Sequence(4_711)),
        correlation: Some(ByteString::from_static("0f8fad5b-d9cb-469f-a165-70867728950e")),
        partition_key: None,
        body: Body::Json(ByteString::from(format!("\"{}\"", "x".repeat(BODY_LEN)))),
        received: Timestamp(1_777_901_509_570),
    }
}

fn stream() -> (StreamName, Source) {
    let stream: StreamName = "queues".parse().unwrap();
    let source = Source::new(&"acme".parse().unwrap(), &stream);
    (stream, source)
}

async fn open(path: &Path, tail_bytes: usize) -> (EventLog, LogWriter) {
    let retention = Retention { events: EVENTS_KEPT, age: Duration::from_secs(1 << 30), bytes: u64::MAX };
    let store = EmbeddedStore::open(&embedded::Settings { path: path.to_owned(), retention }).unwrap();
    let settings = event_log::Settings { tail_bytes };
    let logs = EventLogs::open(Store::Embedded(store), &[stream()], &settings).await.unwrap();
    let log = logs.iter().next().unwrap().1.clone();
    let writer = log.claim(None).await.unwrap();
    (log, writer)
}

fn directory() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn checkpoint() -> Checkpoint {
    Checkpoint {
        position: Some(Position::Numbered(Sequence(1))),
        last_received_at: Timestamp(1_777_901_509_570),
        feed: None,
    }
}

async fn read_to_the_end(log: &EventLog) -> usize {
    let mut reader = log.reader(Offset::START);
    let mut entries = 0;
    while let Some(Read::Entries(views)) = reader.try_next(READ_BYTES).await.unwrap() {
        entries += views.iter().map(|view| view.batch.len() - view.from).sum::<usize>();
    }
    entries
}

fn wrap(criterion: &mut Criterion) {
    let events = vec![event(); APPEND_LEN];
    let (_, source) = stream();
    let mut group = criterion.benchmark_group("wrap");
    group.throughput(Throughput::Elements(APPEND_LEN as u64));
    group.bench_function("256 events of 1 KiB", |bencher| {
        bencher.iter(|| {
            let mut builder = BatchBuilder::new(&source, Epoch(0x4f2a), Offset(1_000_000));
            builder.reserve(&events);
            events.iter().for_each(|event| builder.push(event));
            builder.finish()
        });
    });
    group.finish();
}

fn append(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let mut group = criterion.benchmark_group("append");
    for (name, len) in [("256 events of 1 KiB", APPEND_LEN), ("1 event of 1 KiB", 1)] {
        let directory = directory();
        let (_, writer) = runtime.block_on(open(directory.path(), 8 << 20));
        let events = vec![event(); len];
        group.throughput(Throughput::Elements(len as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| runtime.block_on(writer.append(&events, checkpoint())).unwrap());
        });
    }
    group.finish();
}

fn read(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let mut group = criterion.benchmark_group("read");
    group.sample_size(10);
    for (name, tail_bytes, len, count) in [
        ("from the store, batches of 256", 0, APPEND_LEN, 400),
        ("from the store, batches of 1", 0, 1, 2_000),
        ("from the tail, batches of 256", usize::MAX, APPEND_LEN, 40),
    ] {
        let directory = directory();
        let (log, writer) = runtime.block_on(open(directory.path(), tail_bytes));
        let events = vec![event(); len];
        runtime.block_on(async {
            for _ in 0..count {
                writer.append(&events, checkpoint()).await.unwrap();
            }
        });
        group.throughput(Throughput::Elements((len * count) as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| assert_eq!(runtime.block_on(read_to_the_end(&log)), len * count));
        });
    }
    group.finish();
}

criterion_group!(benches, wrap, append, read);
criterion_main!(benches);
