//! Where log lines go: text on a terminal, JSON anywhere else, always on standard error.
//!
//! Logging never waits: a thread of its own writes, and lines that it has no room for are dropped and counted. Text
//! from outside is escaped in every field. TRACE lines of libraries are refused whatever the filter says: they hold
//! what goes over the wire.

mod escape;
mod filter;
mod line_writer;
mod output;

use std::{
    io::IsTerminal,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use tracing::{Level, Metadata};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    field::MakeExt, filter::filter_fn, fmt, fmt::format::debug_fn, layer::SubscriberExt, util::SubscriberInitExt,
};

pub use self::escape::is_unsafe;
use self::{line_writer::LineWriter, output::InfallibleWriter};

/// Lines that may wait for a slow reader of standard error. Further ones are dropped and counted.
const LINES_MAX: usize = 4_096;

static QUEUE_DROPS: OnceLock<ErrorCounter> = OnceLock::new();
static WRITE_FAILURES: AtomicU64 = AtomicU64::new(0);

/// Keeps the log's thread running; when it is dropped, waiting lines are written, for about a second at most.
#[derive(Debug)]
#[must_use = "lines that wait are lost with it"]
pub struct LogGuard(#[expect(dead_code, reason = "held for its end")] WorkerGuard);

/// Starts logging for the whole process. `filter` in the syntax of `RUST_LOG`; what cannot be used of it is reported in
/// the log. Starting twice changes nothing.
pub fn start(filter: Option<&str>) -> LogGuard {
    let (filter, filter_error) = filter::read(filter);
    let (writer, guard) = writer();
    let registry = tracing_subscriber::registry().with(filter).with(filter_fn(is_loggable));
    let started = if std::io::stderr().is_terminal() {
        let text = fmt::layer().fmt_fields(debug_fn(escape::field).delimited(" ")).with_target(false);
        registry.with(text.with_writer(LineWriter::text(writer))).try_init()
    } else {
        let json = fmt::layer().json().flatten_event(true).with_current_span(true).with_span_list(false);
        registry.with(json.with_writer(LineWriter::json(writer))).try_init()
    };
    if started.is_ok() {
        std::panic::set_hook(Box::new(log_panic));
    }
    if let Some(error) = filter_error {
        tracing::error!("{error}");
    }
    LogGuard(guard)
}

/// Lines that were dropped because nobody read standard error, or because it refused them.
pub fn dropped_lines() -> u64 {
    let unread = QUEUE_DROPS.get().map_or(0, |dropped| dropped.dropped_lines() as u64);
    unread + WRITE_FAILURES.load(Ordering::Relaxed)
}

/// What is wrong with a log filter; none where it can be used.
pub fn filter_error(filter: &str) -> Option<String> {
    filter::read(Some(filter)).1
}

fn writer() -> (NonBlocking, WorkerGuard) {
    let builder = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LINES_MAX).thread_name("log");
    let (writer, guard) = builder.finish(InfallibleWriter::new(std::io::stderr(), &WRITE_FAILURES));
    QUEUE_DROPS.get_or_init(|| writer.error_counter());
    (writer, guard)
}

/// A panic is a line like any other: the standard hook would wait for a reader of standard error.
fn log_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let text = panic.payload_as_str().unwrap_or("panic without a text");
    let location = panic.location().map(ToString::to_string);
    tracing::error!(location, "panic: {text}");
}

/// At TRACE the WebSocket library writes whole upgrade requests, tokens included, and every frame.
fn is_loggable(line: &Metadata<'_>) -> bool {
    let ours = line.target().split("::").next() == Some(env!("CARGO_CRATE_NAME"));
    ours || *line.level() < Level::TRACE
}
