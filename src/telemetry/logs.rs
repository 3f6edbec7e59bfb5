//! Logging to standard error: text on a terminal, JSON elsewhere.
//!
//! Logging never blocks: a thread writes, and lines beyond its queue are dropped and counted. Text from outside is escaped
//! in every field. TRACE lines of libraries are never logged, because they contain network traffic.

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

/// Capacity of the queue of lines. Further lines are dropped and counted.
const LINES_MAX: usize = 4_096;

static QUEUE_DROPS: OnceLock<ErrorCounter> = OnceLock::new();
static WRITE_FAILURES: AtomicU64 = AtomicU64::new(0);

/// Keeps the log thread running. Dropping it writes queued lines, for at most about a second.
#[derive(Debug)]
#[must_use = "queued lines are lost without it"]
pub struct LogGuard(#[expect(dead_code, reason = "held for its end")] WorkerGuard);

/// Starts logging for the process. `filter` has the syntax of `RUST_LOG`; an invalid one is logged and ignored. A second
/// call has no effect.
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

/// Number of lines dropped because standard error was blocked or failed.
pub fn dropped_lines() -> u64 {
    let unread = QUEUE_DROPS.get().map_or(0, |dropped| dropped.dropped_lines() as u64);
    unread + WRITE_FAILURES.load(Ordering::Relaxed)
}

/// Why a log filter is invalid; none if it is valid.
pub fn filter_error(filter: &str) -> Option<String> {
    filter::read(Some(filter)).1
}

fn writer() -> (NonBlocking, WorkerGuard) {
    let builder = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LINES_MAX).thread_name("log");
    let (writer, guard) = builder.finish(InfallibleWriter::new(std::io::stderr(), &WRITE_FAILURES));
    QUEUE_DROPS.get_or_init(|| writer.error_counter());
    (writer, guard)
}

/// Logs a panic. The standard hook would block on standard error.
fn log_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let text = panic.payload_as_str().unwrap_or("panic without a text");
    let location = panic.location().map(ToString::to_string);
    tracing::error!(location, "panic: {text}");
}

/// Excludes TRACE lines of libraries: the WebSocket library logs upgrade requests with tokens, and every frame.
fn is_loggable(line: &Metadata<'_>) -> bool {
    let ours = line.target().split("::").next() == Some(env!("CARGO_CRATE_NAME"));
    ours || *line.level() < Level::TRACE
}
