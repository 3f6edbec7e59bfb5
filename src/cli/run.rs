//! `trunkline run`: runs the daemon until a signal.

use std::{
    future::Future,
    pin::{Pin, pin},
};

use anyhow::Context;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use super::{CliError, RunArgs};
use crate::{
    app::App,
    config::{self, Environment},
    telemetry::logs,
};

/// Runs the daemon with a checked configuration. The first signal drains it, a second one stops it immediately.
pub async fn run(args: &RunArgs, environment: &Environment) -> Result<(), CliError> {
    let config = config::load(&args.config, environment)?;
    let _log = logs::start(super::log_filter(environment));
    for warning in config.ineffective.iter().chain(&config.warnings) {
        tracing::warn!(%warning, "configuration");
    }
    let mut stop = Signals::listen()?;
    let app = tokio::select! {
        app = App::start(config) => app?,
        () = stop.next() => {
            tracing::info!("stopped before the store was open");
            return Ok(());
        }
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        consumers = %app.consumers_at(),
        admin = %app.admin_at(),
        "trunkline started"
    );
    run_until(app, stop).await
}

/// Runs the app until the first signal, then drains it; a second signal stops the drain.
async fn run_until(app: App, mut signals: Signals) -> Result<(), CliError> {
    let (stop, stopped) = oneshot::channel::<()>();
    let mut drained = pin!(app.run(async {
        // A dropped sender also means stop.
        drop(stopped.await);
    }));
    tokio::select! {
        ended = &mut drained => return Ok(ended?),
        () = signals.next() => drop(stop),
    }
    tracing::info!("draining; a second signal stops immediately");
    cut_short(drained, signals).await
}

/// Drains the app; a signal stops the drain.
pub(super) async fn drain_on_signals(app: App, signals: Signals) -> Result<(), CliError> {
    cut_short(pin!(app.run(async {})), signals).await
}

async fn cut_short(
    drained: Pin<&mut impl Future<Output = anyhow::Result<()>>>,
    mut signals: Signals,
) -> Result<(), CliError> {
    tokio::select! {
        ended = drained => Ok(ended?),
        () = signals.next() => Err(anyhow::anyhow!("stopped by a second signal before the drain was complete").into()),
    }
}

/// SIGTERM and SIGINT.
pub(super) struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    pub(super) fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot install the signal handlers");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Waits for the next signal.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => (),
            _ = self.interrupt.recv() => (),
        }
    }
}
