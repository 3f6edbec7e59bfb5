//! The phases, one function each: it starts the processes, measures for a bounded time, and stops them.

mod redis;

use std::{
    net::SocketAddr,
    panic::resume_unwind,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use bytestring::ByteString;

use super::{
    BenchPhase, clients,
    clients::{BenchClients, ClientTransport},
    daemon::{BenchDaemon, BenchStore},
    machine::{self, Cores},
    pipeline,
    report::{Figure, FigureTarget},
    server::{BenchRedis, RedisChoice},
    source::{BenchSource, EVENT_LEN, FrameSizes, Pace},
};
use crate::{
    clock,
    event_log::{self, EventLogs},
    model::{Body, Checkpoint, Event, Source as LogSource, StreamName},
    store::{
        Retention, Store,
        embedded::{self, EmbeddedStore},
    },
};

/// The number of subscribers of the fan-out.
const SUBSCRIBERS: usize = 1_000;
/// The number of idle subscribers.
const IDLE_SUBSCRIBERS: usize = 5_000;
/// How many events the source may be ahead of the mean subscriber.
const WINDOW: u64 = 32;
/// Events per second of the latency measurement.
const LATENCY_RATE: f64 = 1_000.0;
/// Duration of one turn of the latency measurement, and the wait for its last events. The first events of a turn are
/// not counted, because the processes are idle before.
const TURN_SPAN: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(30);
const WAKE_SPAN: Duration = Duration::from_millis(50);
/// The number of events for the cold reader.
const COLD_EVENTS: u64 = 200_000;
/// Number of streams and events per second of each; compared with one stream of the same total rate.
const MANY_STREAMS: usize = 100;
const MANY_RATE: f64 = 20.0;
/// Events per append in the measurement of the store.
const APPEND_LEN: usize = 256;
/// Warm-up time: caches, and the size of the write-ahead log.
const WARM_UP: Duration = Duration::from_millis(500);
/// The allocator returns unused memory within this time.
const SETTLING: Duration = Duration::from_secs(3);
/// Timeout of a phase that waits for events.
const WAIT_MAX: Duration = Duration::from_secs(30);
const MICROS: f64 = 1e6;

/// The shared settings of all phases.
#[derive(Debug)]
pub(super) struct BenchSetup {
    pub(super) cores: Option<Cores>,
    /// A folder that each phase empties.
    pub(super) folder: PathBuf,
    /// The duration of one measurement.
    pub(super) span: Duration,
    pub(super) sockets_max: usize,
    pub(super) redis: Option<RedisChoice>,
}

/// Runs one phase once.
pub(super) fn measure(phase: BenchPhase, setup: &BenchSetup) -> anyhow::Result<Vec<Figure>> {
    match phase {
        BenchPhase::Ingest => ingest(setup),
        BenchPhase::Append => append(setup),
        BenchPhase::Fanout => fanout(setup),
        BenchPhase::Latency => latency(setup),
        BenchPhase::Cold => cold(setup),
        BenchPhase::Streams => streams(setup),
        BenchPhase::Idle => idle(setup),
        BenchPhase::Redis => redis::redis(setup),
    }
}

impl BenchSetup {
    fn daemon(&self, source: &BenchSource, streams: usize) -> anyhow::Result<BenchDaemon> {
        BenchDaemon::start(&self.folder.join("daemon"), source, streams, BenchStore::Embedded, self.cores)
    }

    /// Starts one of several replicas on a Redis.
    fn replica(&self, name: &str, source: &BenchSource, server: &BenchRedis) -> anyhow::Result<BenchDaemon> {
        BenchDaemon::start(&self.folder.join(name), source, 1, BenchStore::Redis(server), self.cores)
    }

    /// Starts or connects to a Redis.
    fn server(&self) -> anyhow::Result<BenchRedis> {
        let which = self.redis.as_ref().context("redis-server is not installed; install it, or set --redis")?;
        BenchRedis::start(which, &self.folder.join("redis"))
    }

    /// The number of subscribers, limited by the open files of this process and of the daemon.
    fn subscribers(&self, wanted: usize) -> usize {
        wanted.min(self.sockets_max.saturating_sub(100))
    }
}

fn figure(name: &'static str, value: f64, unit: &'static str, target: FigureTarget) -> Figure {
    Figure { name, value, unit, target }
}

/// The CPU time per item of `count`, if the system provides it.
fn cpu_figure(name: &'static str, used: Option<Duration>, count: u64, target: FigureTarget) -> Option<Figure> {
    used.map(|used| figure(name, used.as_secs_f64() * MICROS / count.max(1) as f64, "µs CPU each", target))
}

/// Events and CPU time of a daemon in one measurement.
#[derive(Debug, Clone, Copy)]
struct PhaseMeasurement {
    events: u64,
    elapsed: Duration,
    cpu: Option<Duration>,
    /// CPU time of Redis.
    server_cpu: Option<Duration>,
}

/// Measures the ingest of a daemon for `span`, after a warm-up.
fn observe(daemon: &BenchDaemon, server: Option<&BenchRedis>, span: Duration) -> anyhow::Result<PhaseMeasurement> {
    daemon.wait_for_entries(1, clock::now() + WAIT_MAX)?;
    thread::sleep(WARM_UP);
    let sample = || anyhow::Ok((daemon.entries()?, clock::now(), daemon.cpu(), server.and_then(BenchRedis::cpu)));
    let (entries, start, cpu, server_cpu) = sample()?;
    thread::sleep(span);
    let (entries_after, end, cpu_after, server_cpu_after) = sample()?;
    let events = entries_after - entries;
    ensure!(events > 0, "no event was ingested in {} s", span.as_secs_f64());
    let used = |after: Option<Duration>, before| after.zip(before).map(|(after, before): (_, Duration)| after - before);
    let server_cpu = used(server_cpu_after, server_cpu);
    Ok(PhaseMeasurement { events, elapsed: end - start, cpu: used(cpu_after, cpu), server_cpu })
}

fn ingest(setup: &BenchSetup) -> anyhow::Result<Vec<Figure>> {
    let source = BenchSource::start(FrameSizes::Mixed, Pace::Unlimited)?;
    let daemon = setup.daemon(&source, 1)?;
    source.gate().raise(u64::MAX);
    let PhaseMeasurement { events, elapsed: took, cpu, .. } = observe(&daemon, None, setup.span)?;
    let rate = events as f64 / took.as_secs_f64();
    let mut figures = vec![figure("ingest, source to durable log", rate, "events/s", FigureTarget::AtLeast(120_000.0))];
    figures.extend(cpu_figure("ingest, daemon CPU", cpu, events, FigureTarget::AtMost(5.0)));
    Ok(figures)
}

fn append(setup: &BenchSetup) -> anyhow::Result<Vec<Figure>> {
    let alone = thread::scope(|scope| scope.spawn(|| append_alone(setup)).join());
    // A panic of the thread is a bug, so it is passed on.
    let (events, took) = alone.unwrap_or_else(|panic| resume_unwind(panic))?;
    Ok(vec![figure("append, store only", events as f64 / took.as_secs_f64(), "events/s", FigureTarget::None)])
}

/// Runs on a pinned thread, so that the store's thread starts on the daemon's core.
fn append_alone(setup: &BenchSetup) -> anyhow::Result<(u64, Duration)> {
    if let Some(cores) = setup.cores {
        machine::pin(cores.daemon);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let folder = setup.folder.join("store");
    let appended = runtime.block_on(append_for(&folder, setup.span));
    std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    appended
}

async fn append_for(folder: &std::path::Path, span: Duration) -> anyhow::Result<(u64, Duration)> {
    let retention = Retention { events: 1_000_000, age: Duration::from_secs(86_400), bytes: 4 << 30 };
    let store = EmbeddedStore::open(&embedded::Settings { path: folder.to_owned(), retention })?;
    let stream: StreamName = "s0".parse()?;
    let source = LogSource::new(&"bench".parse()?, &stream);
    let settings = event_log::Settings { tail_bytes: 4 << 20 };
    let logs = EventLogs::open(Store::Embedded(store.clone()), &[(stream.clone(), source)], &settings).await?;
    let writer = logs.get(&stream).context("it was opened")?.claim(None).await?;
    let mut event = Event::internal("v2.analytics.queues.observations", &(), clock::wall());
    event.body = Body::Json(ByteString::from(format!("\"{}\"", "x".repeat(EVENT_LEN - 2))));
    let events = vec![event; APPEND_LEN];
    let checkpoint = Checkpoint { position: None, last_received_at: clock::wall(), feed: None };
    let (start, mut appended) = (clock::now(), 0);
    while start.elapsed() < span {
        writer.append(&events, checkpoint.clone()).await?;
        appended += events.len() as u64;
    }
    let took = start.elapsed();
    store.close().await;
    Ok((appended, took))
}

fn fanout(setup: &BenchSetup) -> anyhow::Result<Vec<Figure>> {
    let websocket = fanout_over(setup, ClientTransport::WebSocket)?;
    let sse = fanout_over(setup, ClientTransport::Sse)?;
    let rate = |pass: PhaseMeasurement| pass.events as f64 / pass.elapsed.as_secs_f64();
    let mut figures = vec![figure(
        "fan-out to 1,000 WebSockets",
        rate(websocket),
        "deliveries/s",
        FigureTarget::AtLeast(1_500_000.0),
    )];
    figures.extend(cpu_figure(
        "fan-out to WebSockets, daemon CPU",
        websocket.cpu,
        websocket.events,
        FigureTarget::None,
    ));
    figures.push(figure("fan-out to 1,000 SSE clients", rate(sse), "deliveries/s", FigureTarget::AtLeast(750_000.0)));
    figures.extend(cpu_figure("fan-out to SSE clients, daemon CPU", sse.cpu, sse.events, FigureTarget::None));
    Ok(figures)
}

/// Measures a closed loop: the source is at most [`WINDOW`] events ahead of the mean subscriber.
fn fanout_over(setup: &BenchSetup, transport: ClientTransport) -> anyhow::Result<PhaseMeasurement> {
    let source = BenchSource::start(FrameSizes::One, Pace::Unlimited)?;
    let daemon = setup.daemon(&source, 1)?;
    let count = setup.subscribers(SUBSCRIBERS);
    let clients = BenchClients::subscribe(daemon.consumers(), transport, clients::SubscribeFrom::Last, count)?;
    source.gate().raise(WINDOW);
    let warm = clock::now() + WARM_UP;
    let end = warm + setup.span;
    let mut begin = None;
    let total = clients.count(end, |received| {
        source.gate().raise(received / count as u64 + WINDOW);
        if begin.is_none() && clock::now() >= warm {
            begin = Some((received, clock::now(), daemon.cpu()));
        }
        false
    })?;
    let cpu_after = daemon.cpu();
    let (received, start, cpu) = begin.context("nothing was delivered")?;
    let cpu = cpu_after.zip(cpu).map(|(after, before)| after - before);
    Ok(PhaseMeasurement { events: total - received, elapsed: clock::now() - start, cpu, server_cpu: None })
}

fn latency(setup: &BenchSetup) -> anyhow::Result<Vec<Figure>> {
    let file = setup.folder.join("pipeline");
    let [through, past] = sources()?;
    let pipeline = pipeline::start(&file, past.address(), setup.cores)?;
    let daemon = setup.daemon(&through, 1)?;
    let [ours, bare] = delays([(&through, daemon.consumers()), (&past, pipeline)], setup.span)?;
    std::fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    let ratio = ours.p99 / bare.p99;
    Ok(vec![
        figure("latency at 1,000 events/s, p50", ours.p50, "ms", FigureTarget::AtMost(2.0)),
        figure("latency at 1,000 events/s, p99", ours.p99, "ms", FigureTarget::None),
        figure("minimal disk pipeline, p50", bare.p50, "ms", FigureTarget::None),
        figure("minimal disk pipeline, p99", bare.p99, "ms", FigureTarget::None),
        figure("latency, p99 ratio to the pipeline", ratio, "times", FigureTarget::AtMost(1.5)),
    ])
}

/// Starts two sources: one for the daemon, and one for the minimal pipeline.
fn sources() -> anyhow::Result<[BenchSource; 2]> {
    let start = || BenchSource::start(FrameSizes::One, Pace::Rate(LATENCY_RATE));
    Ok([start()?, start()?])
}

/// Latency from the source's socket to the client's socket in milliseconds.
#[derive(Debug, Clone, Copy)]
struct DelayQuantiles {
    p50: f64,
    p99: f64,
}

/// Measures all paths from a source to a client in short alternating turns, so that other load on the machine affects
/// them equally; `span` for each.
fn delays<const WAYS: usize>(
    ways: [(&BenchSource, SocketAddr); WAYS],
    span: Duration,
) -> anyhow::Result<[DelayQuantiles; WAYS]> {
    let turns = (WARM_UP + span).div_duration_f64(TURN_SPAN).ceil() as usize;
    let end = clock::now() + (TURN_SPAN + PAUSE) * u32::try_from(turns * WAYS)?;
    thread::scope(|scope| {
        let listeners = ways.map(|(source, at)| {
            let client = BenchClients::subscribe(at, ClientTransport::WebSocket, clients::SubscribeFrom::Last, 1);
            scope.spawn(move || listen(source, client?, end))
        });
        for turn in 1..=turns {
            for (source, _) in ways {
                source.gate().raise((turn as f64 * LATENCY_RATE * TURN_SPAN.as_secs_f64()) as u64);
                thread::sleep(TURN_SPAN + PAUSE);
            }
        }
        let measured =
            listeners.into_iter().map(|listener| listener.join().unwrap_or_else(|panic| resume_unwind(panic)));
        let delays: Vec<DelayQuantiles> = measured.collect::<anyhow::Result<_>>()?;
        Ok(delays.try_into().expect("as many as there are ways"))
    })
}

/// One client of a source with one connection: events arrive in order, so the count identifies an event.
fn listen(source: &BenchSource, client: BenchClients, end: Instant) -> anyhow::Result<DelayQuantiles> {
    let mut received_at: Vec<Instant> = Vec::new();
    client.count(end, |received| {
        let now = clock::now();
        received_at.resize(usize::try_from(received).unwrap_or(usize::MAX), now);
        false
    })?;
    let count = |span: Duration| (LATENCY_RATE * span.as_secs_f64()) as usize;
    let counts = |index: &usize| *index >= count(WARM_UP) && index % count(TURN_SPAN) >= count(WAKE_SPAN);
    let sent_at = source.sent_at();
    let pairs = sent_at.iter().zip(&received_at).enumerate().filter(|(index, _)| counts(index));
    let mut millis: Vec<f64> = pairs.map(|(_, (sent, received))| (*received - *sent).as_secs_f64() * 1e3).collect();
    ensure!(!millis.is_empty(), "no event arrived");
    millis.sort_by(f64::total_cmp);
    Ok(DelayQuantiles { p50: millis[millis.len() / 2], p99: millis[millis.len() * 99 / 100] })
}

fn cold(setup: &BenchSetup) -> anyhow::Result<Vec<Figure>> {
    let source = BenchSource::start(FrameSizes::Mixed, Pace::Unlimited)?;
    let daemon = setup.daemon(&source, 1)?;
    source.gate().raise(COLD_EVENTS);
    let entries = daemon.wait_for_entries(COLD_EVENTS, clock::now() + WAIT_MAX)?;
    let start = clock::now();
    let reader =
        BenchClients::subscribe(daemon.consumers(), ClientTransport::WebSocket, clients::SubscribeFrom::First, 1)?;
    let read = reader.count(start + WAIT_MAX, |received| received >= entries)?;
    let rate = read as f64 / start.elapsed().as_secs_f64();
    Ok(vec![figure("one cold reader from the first entry", rate, "events/s", FigureTarget::AtLeast(200_000.0))])
}

fn streams(setup: &BenchSetup) -> anyhow::Result<Vec<Figure>> {
    let cost = |streams: usize| {
        let rate = MANY_RATE * MANY_STREAMS as f64 / streams as f64;
        let source = BenchSource::start(FrameSizes::One, Pace::Rate(rate))?;
        let daemon = setup.daemon(&source, streams)?;
        source.gate().raise(u64::MAX);
        observe(&daemon, None, setup.span)
    };
    let (one, many) = (cost(1)?, cost(MANY_STREAMS)?);
    let each = |pass: PhaseMeasurement| pass.cpu.map(|cpu| cpu.as_secs_f64() / pass.events as f64);
    let ratio = each(many).zip(each(one)).map(|(many, one)| many / one);
    let mut figures = Vec::new();
    figures.extend(cpu_figure("1 stream of 2,000 events/s, daemon CPU", one.cpu, one.events, FigureTarget::None));
    figures.extend(cpu_figure("100 streams of 20 events/s, daemon CPU", many.cpu, many.events, FigureTarget::None));
    figures.extend(
        ratio.map(|ratio| figure("100 streams against 1, CPU per event", ratio, "times", FigureTarget::AtMost(1.5))),
    );
    Ok(figures)
}

fn idle(setup: &BenchSetup) -> anyhow::Result<Vec<Figure>> {
    let source = BenchSource::start(FrameSizes::One, Pace::Unlimited)?;
    let daemon = setup.daemon(&source, 1)?;
    let resident = || {
        thread::sleep(SETTLING);
        daemon.resident().map(|bytes| bytes as f64)
    };
    let bare = resident();
    let count = setup.subscribers(IDLE_SUBSCRIBERS);
    let subscribers =
        BenchClients::subscribe(daemon.consumers(), ClientTransport::WebSocket, clients::SubscribeFrom::Last, count)?;
    let each = resident().zip(bare).map(|(held, bare)| (held - bare) / count as f64);
    drop(subscribers);
    let mut figures = Vec::new();
    figures
        .extend(bare.map(|bytes| figure("idle daemon", bytes / f64::from(1 << 20), "MiB", FigureTarget::AtMost(20.0))));
    figures.extend(each.map(|bytes| figure("idle subscriber", bytes / 1024.0, "KiB", FigureTarget::AtMost(6.0))));
    Ok(figures)
}
