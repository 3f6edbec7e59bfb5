//! `trunkline simulate`: runs only the simulated platform, to test a configuration or another client against it.

use std::{io::Write, path::Path};

use anyhow::Context;

use super::{CliError, SimulateArgs, run::Signals};
use crate::simulator::{self, FaultScript};

/// Runs the platform until a signal, then writes its counters.
pub async fn run(args: &SimulateArgs, out: &mut impl Write) -> Result<(), CliError> {
    let script = args.script.as_deref().map(script).transpose()?.unwrap_or_default();
    let mut signals = Signals::listen()?;
    let settings = simulator::Settings {
        listen: args.listen,
        seed: args.seed,
        rate: args.rate,
        token_ttl: args.token_ttl.0,
        script,
        ..simulator::Settings::default()
    };
    let (id, secret) = (settings.client_id.clone(), settings.client_secret.clone());
    let platform = simulator::start(settings).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    writeln!(out, "The simulated platform listens at {}", platform.url())?;
    writeln!(out, "Client id {id:?}, client secret {secret:?}; token URL {}/oauth/token", platform.url())?;
    out.flush()?;
    signals.next().await;
    let counters = platform.counters();
    platform.stop().await;
    writeln!(out, "Events sent: {}, tokens granted: {}", counters.events_said, counters.grants_total())?;
    Ok(())
}

/// Reads a fault script.
///
/// # Errors
///
/// The file cannot be read, or the script is invalid.
pub(super) fn script(file: &Path) -> anyhow::Result<FaultScript> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    FaultScript::parse(&text).with_context(|| format!("{}", file.display()))
}
