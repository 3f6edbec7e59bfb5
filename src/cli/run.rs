//! `trunkline run`: the daemon, until it is asked to end.

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

/// Runs the daemon with a checked configuration. A second signal ends it at once.
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
            tracing::info!("ended before the store was open");
            return Ok(());
        }
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        consumers = %app.consumers_at(),
        admin = %app.admin_at(),
        "trunkline runs"
    );
    run_until(app, stop).await
}

/// Runs the app until the first signal, then drains it; a second signal cuts the drain short.
async fn run_until(app: App, mut signals: Signals) -> Result<(), CliError> {
    let (stop, stopped) = oneshot::channel::<()>();
    let mut drained = pin!(app.run(async {
        // The sender's end is a wish to end too.
        drop(stopped.await);
    }));
    tokio::select! {
        ended = &mut drained => return Ok(ended?),
        () = signals.next() => drop(stop),
    }
    tracing::info!("draining; a second signal ends at once");
    cut_short(drained, signals).await
}

/// Drains the app now; a signal cuts the drain short.
pub(super) async fn drain_on_signals(app: App, signals: Signals) -> Result<(), CliError> {
    cut_short(pin!(app.run(async {})), signals).await
}

async fn cut_short(
    drained: Pin<&mut impl Future<Output = anyhow::Result<()>>>,
    mut signals: Signals,
) -> Result<(), CliError> {
    tokio::select! {
        ended = drained => Ok(ended?),
        () = signals.next() => Err(anyhow::anyhow!("ended before everything was drained").into()),
    }
}

/// SIGTERM and SIGINT.
pub(super) struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    pub(super) fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen to signals");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// The next wish to end.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => (),
            _ = self.interrupt.recv() => (),
        }
    }
}
