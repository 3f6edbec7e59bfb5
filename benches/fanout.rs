//! Fan-out: the cost of rendering a batch and of its delivery to many subscribers over real sockets.
//!
//! The delivery figures are CPU time of the server's single thread, so "elements per second" is the capacity of one core,
//! independent of other load. The clients run in another process. `--idle=5000` measures the memory of an idle WebSocket
//! instead, with 5000 of them.

use std::{
    collections::BTreeMap,
    hint::black_box,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use bytestring::ByteString;
use criterion::{BenchmarkId, Criterion, Throughput};
use tokio::io::AsyncReadExt;
use trunkline::{
    downstream::{
        consumers::Consumers,
        server::{ConsumerServer, Settings, render},
    },
    event_log::{EventLogs, Settings as LogSettings},
    model::{Batch, BatchBuilder, Body, Checkpoint, Epoch, Event, Offset, Source, StreamName, Timestamp},
    store::{
        Retention, Store,
        embedded::{EmbeddedStore, Settings as StoreSettings},
    },
    tasks::Tasks,
};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const SUBSCRIBERS: usize = 1_000;
/// Events of one append.
const EVENTS: usize = 32;
const BODY_LEN: usize = 1_024;
const STREAM: &str = "queues";
/// Occurs once in each body and nowhere else, so that clients can count events without parsing.
const MARKER: u8 = 0x7f;

fn main() {
    if std::env::args().nth(1).is_some_and(|role| role == "clients") {
        return clients();
    }
    if let Some(count) = std::env::args().find_map(|arg| arg.strip_prefix("--idle=")?.parse().ok()) {
        return idle(count);
    }
    let mut criterion = Criterion::default().configure_from_args().sample_size(20);
    rendering(&mut criterion);
    delivering(&mut criterion);
    criterion.final_summary();
}

fn event() -> Event {
    let mut event = Event::internal("v2.analytics.queues.observations", &(), Timestamp(1_777_901_509_570));
    let filler = "x".repeat(BODY_LEN - 3);
    event.body = Body::Json(ByteString::from(format!("\"{}{filler}\"", char::from(MARKER))));
    event
}

fn batch() -> Batch {
    let source = source();
    let mut builder = BatchBuilder::new(&source, Epoch(0x4f2a), Offset::START);
    (0..EVENTS).for_each(|_| builder.push(&event()));
    builder.finish().expect("the batch has events")
}

fn source() -> Source {
    Source::new(&"acme".parse().expect("a name"), &STREAM.parse().expect("a name"))
}

fn rendering(criterion: &mut Criterion) {
    let batch = batch();
    let mut group = criterion.benchmark_group("wrap a batch");
    group.throughput(Throughput::Elements(EVENTS as u64));
    group.bench_function("websocket frames", |bencher| bencher.iter(|| black_box(render::frames(&batch))));
    group.bench_function("server-sent events", |bencher| bencher.iter(|| black_box(render::sse(&batch))));
    group.finish();
}

fn delivering(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("deliver on one core");
    group.throughput(Throughput::Elements((SUBSCRIBERS * EVENTS) as u64));
    for transport in ["websocket", "sse"] {
        let relay = FanoutRelay::start();
        let mut clients = ClientProcess::connect(relay.address, transport, SUBSCRIBERS);
        group.bench_function(BenchmarkId::new(transport, SUBSCRIBERS), |bencher| {
            bencher.iter_custom(|rounds| {
                let before = relay.cpu();
                for _ in 0..rounds {
                    relay.append();
                    clients.wait_for((SUBSCRIBERS * EVENTS) as u64);
                }
                relay.cpu() - before
            });
        });
    }
    group.finish();
}

fn idle(count: usize) {
    let relay = FanoutRelay::start();
    let warm = ClientProcess::connect(relay.address, "websocket", 100);
    let before = resident();
    let clients = ClientProcess::connect(relay.address, "websocket", count);
    let per_client = (resident() - before) as f64 / count as f64 / 1024.0;
    let mut out = std::io::stdout().lock();
    writeln!(out, "idle websocket: {per_client:.2} KiB each of {count}").expect("stdout is open");
    drop((warm, clients));
}

/// The allocator returns unused memory within a second.
const SETTLING: Duration = Duration::from_secs(3);

/// Resident memory of this process in bytes.
fn resident() -> u64 {
    thread::sleep(SETTLING);
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has /proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the line exists");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// A server with a log, on its own thread.
struct FanoutRelay {
    address: SocketAddr,
    thread: u32,
    work: mpsc::SyncSender<mpsc::SyncSender<()>>,
    _directory: tempfile::TempDir,
}

impl FanoutRelay {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary folder");
        let path = directory.path().join("data");
        let (work, work_queue) = mpsc::sync_channel::<mpsc::SyncSender<()>>(1);
        let (ready, started) = mpsc::sync_channel(1);
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(serve(path, work_queue, ready));
        });
        let (address, thread) = started.recv().expect("it starts");
        Self { address, thread, work, _directory: directory }
    }

    /// Appends one batch durably.
    fn append(&self) {
        let (done, wait) = mpsc::sync_channel(1);
        self.work.send(done).expect("the server runs");
        wait.recv().expect("the server runs");
    }

    /// CPU time that the server's thread has used.
    fn cpu(&self) -> Duration {
        let path = format!("/proc/self/task/{}/schedstat", self.thread);
        let text = std::fs::read_to_string(path).expect("the server runs");
        let nanos = text.split(' ').next().and_then(|nanos| nanos.parse().ok()).expect("a number");
        Duration::from_nanos(nanos)
    }
}

async fn serve(
    path: std::path::PathBuf,
    work_queue: mpsc::Receiver<mpsc::SyncSender<()>>,
    ready: mpsc::SyncSender<(SocketAddr, u32)>,
) {
    let retention = Retention { events: 20_000, age: Duration::from_secs(3_600), bytes: 1 << 30 };
    let store = EmbeddedStore::open(&StoreSettings { path, retention }).expect("a store");
    let stream: StreamName = STREAM.parse().expect("a name");
    let settings = LogSettings { tail_bytes: 16 << 20 };
    let store = Store::Embedded(store);
    let logs = EventLogs::open(store.clone(), &[(stream.clone(), source())], &settings).await.expect("a log");
    let writer = logs.get(&stream).expect("it was opened").claim(None).await.expect("there is no other writer");
    let server = ConsumerServer::bind(Settings::new(([127, 0, 0, 1], 0).into())).expect("a free port");
    let address = server.address();
    let mut tasks = Tasks::new("bench");
    let durable = Consumers::start(store, logs.clone(), BTreeMap::new(), &mut tasks);
    server.start(&mut tasks, logs, durable, |_| true);
    let link = std::fs::read_link("/proc/thread-self").expect("Linux has /proc");
    let thread = link.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok()).expect("a number");
    ready.send((address, thread)).expect("the bench waits");
    let (bridge, mut requests) = tokio::sync::mpsc::channel(1);
    thread::spawn(move || {
        while let Ok(done) = work_queue.recv() {
            if bridge.blocking_send(done).is_err() {
                return;
            }
        }
    });
    let events: Vec<Event> = (0..EVENTS).map(|_| event()).collect();
    let checkpoint = Checkpoint { position: None, last_received_at: Timestamp(0), feed: None };
    while let Some(done) = requests.recv().await {
        writer.append(&events, checkpoint.clone()).await.expect("a healthy store");
        done.send(()).expect("the bench waits");
    }
}

/// Subscribers in another process, which prints the number of received events line by line.
struct ClientProcess {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
    seen: u64,
    wanted: u64,
}

impl ClientProcess {
    fn connect(address: SocketAddr, transport: &str, count: usize) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut command = Command::new(program);
        command.args(["clients", transport, &address.to_string(), &count.to_string()]).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut line = String::new();
        lines.read_line(&mut line).expect("the clients are ready");
        assert_eq!(line.trim(), "ready");
        Self { child, lines, seen: 0, wanted: 0 }
    }

    /// Waits until `more` events have arrived in total.
    fn wait_for(&mut self, more: u64) {
        self.wanted += more;
        while self.seen < self.wanted {
            let mut line = String::new();
            self.lines.read_line(&mut line).expect("the clients run");
            self.seen = line.trim().parse().expect("a number");
        }
    }
}

impl Drop for ClientProcess {
    fn drop(&mut self) {
        self.child.kill().expect("the child runs");
        self.child.wait().expect("it ends");
    }
}

/// The client process: connects, then counts events.
fn clients() {
    let args: Vec<String> = std::env::args().skip(2).collect();
    let [transport, address, count, ..] = args.as_slice() else { panic!("transport, address, count") };
    let count: usize = count.parse().expect("a number");
    let sockets: Vec<TcpStream> = (0..count).map(|_| subscribe(transport, address)).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (report, mut reports) = tokio::sync::mpsc::channel(1_024);
        let local = tokio::task::LocalSet::new();
        for socket in sockets {
            socket.set_nonblocking(true).expect("a socket");
            let socket = tokio::net::TcpStream::from_std(socket).expect("a socket");
            local.spawn_local(count_events(socket, report.clone()));
        }
        writeln!(std::io::stdout(), "ready").expect("stdout is open");
        let print_totals = async {
            let (mut total, mut reported, mut batch) = (0_u64, 0, Vec::new());
            while reports.recv_many(&mut batch, 1_024).await > 0 {
                total += batch.drain(..).sum::<u64>();
                if total - reported >= (count * EVENTS) as u64 / 4 || reports.is_empty() {
                    writeln!(std::io::stdout(), "{total}").expect("stdout is open");
                    reported = total;
                }
            }
        };
        local.run_until(print_totals).await;
    });
}

fn subscribe(transport: &str, address: &str) -> TcpStream {
    let headers = match transport {
        "websocket" => {
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        }
        _ => "Accept: text/event-stream\r\n",
    };
    let mut socket = TcpStream::connect(address).expect("the server listens");
    write!(socket, "GET /v1/streams/{STREAM}/events HTTP/1.1\r\nHost: {address}\r\n{headers}\r\n")
        .expect("the request is sent");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte).expect("an answer");
        head.push(byte[0]);
    }
    socket
}

async fn count_events(mut socket: tokio::net::TcpStream, report: tokio::sync::mpsc::Sender<u64>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read) = socket.read(&mut buffer).await {
        let events = memchr::memchr_iter(MARKER, &buffer[..read]).count();
        if read == 0 || report.send(events as u64).await.is_err() {
            return;
        }
    }
}
