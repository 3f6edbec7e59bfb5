//! Where log lines go: for people on a terminal, as JSON anywhere else, always on standard error.
//!
//! It refuses the TRACE lines of libraries whatever the filter says: they hold what goes over the wire.

use std::io::IsTerminal;

use tracing::{Level, Metadata};
use tracing_subscriber::{EnvFilter, filter::filter_fn, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// What is told unless `TRUNKLINE_LOG` (or `RUST_LOG`) says otherwise.
pub const FILTER_DEFAULT: &str = "info";

/// Starts logging for the whole process. `filter` in the syntax of `RUST_LOG`; a filter that cannot be read is told and
/// the default is used. Starting twice changes nothing.
pub fn start(filter: Option<&str>) {
    let wanted = EnvFilter::try_new(filter.unwrap_or(FILTER_DEFAULT));
    let (filter, refused) = match wanted {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new(FILTER_DEFAULT), Some(error)),
    };
    let registry = tracing_subscriber::registry().with(filter).with(filter_fn(is_discreet));
    let started = if std::io::stderr().is_terminal() {
        registry.with(fmt::layer().with_writer(std::io::stderr).with_target(false)).try_init()
    } else {
        let json = fmt::layer().json().flatten_event(true).with_current_span(true).with_span_list(false);
        registry.with(json.with_writer(std::io::stderr)).try_init()
    };
    if let Some(error) = refused {
        tracing::warn!(%error, "the log filter cannot be read; {FILTER_DEFAULT} is used");
    }
    if started.is_err() {
        tracing::debug!("logging had been started before");
    }
}

/// At TRACE the WebSocket library writes whole upgrade requests, tokens included, and every frame.
fn is_discreet(line: &Metadata<'_>) -> bool {
    let ours = line.target().split("::").next() == Some(env!("CARGO_CRATE_NAME"));
    ours || *line.level() < Level::TRACE
}
