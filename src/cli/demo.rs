//! `trunkline demo`: runs a simulated platform and the daemon in one process, on real loopback sockets.
//!
//! The daemon is the same as with `run`, with a configuration as a user would write it. At the end the demo compares
//! the logs with the simulator's ledger.

mod audit;
mod outcome;

use std::{
    collections::BTreeMap,
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;

use self::{
    audit::Audit,
    outcome::{Counters, Outcomes},
};
use super::{
    CliError, DemoArgs,
    run::{Signals, drain_on_signals},
    simulate,
};
use crate::{
    app::{App, temporary_folder},
    clock,
    config::{self, Config, Environment},
    event_log::{LogReader, Read},
    model::{Offset, Span, StreamName},
    protocol::stream::StreamState,
    simulator::{self, EmissionLedger, FaultScript, Simulator},
    telemetry::logs,
};

/// Heartbeat interval of the platform; must be shorter than [`SILENCE_MAX`].
const HEARTBEAT: Duration = Duration::from_secs(2);
const SILENCE_MAX: &str = "5s";
/// How long the platform can replay events: longer than any fault of the script.
const RETENTION: Duration = Duration::from_secs(60);
/// After this time in seconds an event that is not in the log counts as missing.
const SETTLED_AFTER: u64 = 45;
/// How long the demo waits at its end for the last events: longer than any fault of the script.
const ARRIVAL_MAX: Duration = Duration::from_secs(30);
/// The default fault script.
const SCRIPT: &str = include_str!("demo/script.toml");
/// The demo's stream without sequence numbers.
const UNNUMBERED: &str = "queues";
const READ_BYTES: usize = 1 << 20;
/// The interval at which the counters are read.
const TICK: Duration = Duration::from_millis(100);
const TICKS_A_SECOND: u64 = 10;

/// Runs until a signal or the end of `--duration`, then reports whether all events arrived.
pub async fn run(args: &DemoArgs, environment: &Environment, out: &mut impl Write) -> Result<(), CliError> {
    let _log = logs::start(environment.get("TRUNKLINE_LOG").or(Some("warn")));
    let mut signals = Signals::listen()?;
    let platform = start_platform(args).await?;
    let temporary = temporary_folder("demo")?;
    let folder = args.data.clone().unwrap_or_else(|| temporary.path().join("store"));
    let config = configuration(args, &platform, &folder, temporary.path())?;
    let app = tokio::select! {
        app = App::start(config) => app?,
        () = signals.next() => return Ok(()),
    };
    let mut audits = DemoAudits::open(&app, platform.ledger());
    print_banner(&app, &platform, args, out)?;
    let seconds = watch(&app, &platform, &mut audits, args, &mut signals, out).await?;
    writeln!(out, "\nDraining …")?;
    out.flush()?;
    let end = audits.wait_for_arrival(seconds, &mut signals).await?;
    finish(app, platform, audits, end, signals, out).await?;
    temporary.close().context("cannot remove the demo's folder")?;
    Ok(())
}

async fn start_platform(args: &DemoArgs) -> anyhow::Result<Simulator> {
    let script = match &args.script {
        Some(file) => simulate::script(file)?,
        None => FaultScript::parse(SCRIPT).context("the script of the demo")?,
    };
    let settings = simulator::Settings {
        seed: args.seed,
        rate: args.rate,
        token_ttl: args.token_ttl.0,
        heartbeat: HEARTBEAT,
        retention: RETENTION,
        script,
        ..simulator::Settings::default()
    };
    simulator::start(settings).await.context("cannot start the simulated platform")
}

/// The configuration that a user would write for this platform. The store's directory contains only the store.
fn configuration(args: &DemoArgs, platform: &Simulator, folder: &Path, secrets: &Path) -> Result<Config, CliError> {
    let address = platform.address();
    let DemoArgs { http, admin, .. } = args;
    let retention = RETENTION.as_secs();
    let path = quoted(folder);
    let id = quoted(&secret_file(secrets, "client-id", "demo")?);
    let secret = quoted(&secret_file(secrets, "client-secret", "demo-secret")?);
    let text = format!(
        r#"
[http]
listen = "{http}"
[admin]
listen = "{admin}"
[store]
path = {path}
[accounts.demo]
platform = "genesys-cloud"
token_url = "http://{address}/oauth/token"
api_url = "http://{address}"
grant = "client_credentials"
client_id = {{ file = {id} }}
client_secret = {{ file = {secret} }}
refresh_interval_min = "1s"
[streams.conversations]
account = "demo"
connector = "genesys-sequenced"
url = "ws://{address}/api/v2/analytics/conversations/summary/stream"
snapshot_url = "http://{address}/api/v2/analytics/conversations/summary"
silence_max = "{SILENCE_MAX}"
retention = "{retention}s"
[streams.queues]
account = "demo"
connector = "genesys-notifications"
topics = ["v2.analytics.queues.*.observations", "v2.users.*.presence", "v2.users.*.routingStatus"]
silence_max = "{SILENCE_MAX}"
"#
    );
    Ok(config::from_text("demo.toml", &text, &Environment::from_iter::<[(&str, &str); 0]>([]))?)
}

fn quoted(path: &Path) -> toml::Value {
    toml::Value::from(path.display().to_string())
}

fn secret_file(folder: &Path, name: &str, secret: &str) -> anyhow::Result<PathBuf> {
    let file = folder.join(name);
    std::fs::write(&file, secret).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

fn print_banner(app: &App, platform: &Simulator, args: &DemoArgs, out: &mut impl Write) -> std::io::Result<()> {
    let (consumers, admin) = (app.consumers_at(), app.admin_at());
    let (rate, ttl) = (args.rate, args.token_ttl);
    writeln!(out, "The simulated platform sends {rate} events/s at {}.", platform.url())?;
    writeln!(out, "Tokens expire after {ttl}; a fault script drops, stalls and closes its sockets.\n")?;
    writeln!(out, "Status and metrics   http://{admin}/admin/v1/status   http://{admin}/metrics\n")?;
    writeln!(out, "Try in another terminal:")?;
    writeln!(out, "  trunkline tail conversations --url http://{consumers}")?;
    writeln!(out, "  trunkline status --watch --url http://{admin}")?;
    writeln!(out, "  curl -N -H 'Accept: text/event-stream' http://{consumers}/v1/streams/queues/events\n")?;
    writeln!(out, "{}\n", ending(args.duration))?;
    out.flush()
}

/// The line that explains how to stop the demo.
fn ending(duration: Option<Span>) -> String {
    let timed = duration.map(|duration| format!(" It also stops after {duration}.")).unwrap_or_default();
    format!("Ctrl-C stops the demo and prints a report on every event.{timed}")
}

/// Writes the progress (on a terminal one line that is overwritten, else every ten seconds) and one line per fault.
/// Returns the seconds until the end.
async fn watch(
    app: &App,
    platform: &Simulator,
    audits: &mut DemoAudits,
    args: &DemoArgs,
    signals: &mut Signals,
    out: &mut impl Write,
) -> Result<u64, CliError> {
    let begin = clock::now();
    let end = args.duration.map(|duration| begin + duration.0);
    let start = if std::io::stdout().is_terminal() { "\r\x1b[2K" } else { "" };
    let (mut ticks, mut mark, mut outcomes) = (0, 0, Outcomes::default());
    loop {
        let interrupted = tokio::select! {
            () = signals.next() => true,
            () = tokio::time::sleep(TICK) => false,
        };
        ticks += 1;
        let (injected, next) = platform.injected_since(mark);
        mark = next;
        let line = outcomes.step(begin.elapsed(), injected, &counters(app, platform));
        let over = interrupted || end.is_some_and(|end| clock::now() >= end);
        let last = if over { outcomes.end() } else { None };
        for line in line.into_iter().chain(last) {
            writeln!(out, "{start}{line}")?;
        }
        if over {
            return Ok(ticks / TICKS_A_SECOND);
        }
        if ticks % TICKS_A_SECOND == 0 {
            audits.update(ticks / TICKS_A_SECOND).await?;
            show_progress(app, ticks / TICKS_A_SECOND, start, out)?;
        }
    }
}

fn show_progress(app: &App, seconds: u64, start: &str, out: &mut impl Write) -> std::io::Result<()> {
    if !start.is_empty() {
        write!(out, "{start}{}", progress(app, seconds))?;
    } else if seconds.is_multiple_of(10) {
        writeln!(out, "{}", progress(app, seconds))?;
    }
    out.flush()
}

fn counters(app: &App, platform: &Simulator) -> Counters {
    let statuses = app.streams().statuses();
    Counters {
        reconnects: statuses.iter().map(|status| status.reconnects).sum(),
        rotations: statuses.iter().map(|status| status.rotations).sum(),
        gaps: statuses.iter().map(|status| (status.stream.to_string(), status.gaps)).collect(),
        silence: statuses.iter().filter_map(|status| status.silent_seconds).fold(0.0, f64::max),
        settled: platform.pending_faults() == 0 && statuses.iter().all(|status| status.state == StreamState::Live),
    }
}

fn progress(app: &App, seconds: u64) -> String {
    let mut line = format!("{seconds:>4} s");
    for status in app.streams().statuses() {
        let (stream, state, last) = (&status.stream, status.state.as_str(), status.last.offset);
        let (rotations, reconnects, gaps) = (status.rotations, status.reconnects, status.gaps);
        line.push_str(&format!(
            "  |  {stream} {state}: entries {last}, rotations {rotations}, reconnects {reconnects}, gaps {gaps}"
        ));
    }
    line
}

async fn finish(
    app: App,
    platform: Simulator,
    mut audits: DemoAudits,
    end: DrainPoint,
    signals: Signals,
    out: &mut impl Write,
) -> Result<(), CliError> {
    let statuses = app.streams().statuses();
    drain_on_signals(app, signals).await?;
    audits.close(end).await?;
    let grants = platform.counters().grants_total();
    platform.stop().await;
    for status in statuses {
        let (stream, rotations, reconnects) = (&status.stream, status.rotations, status.reconnects);
        writeln!(out, "{stream}: rotations {rotations}, reconnects {reconnects}")?;
        if let Some((audit, _)) = audits.streams.get(stream) {
            writeln!(out, "  {audit}")?;
        }
    }
    let last = audits.streams.values().find_map(|(audit, _)| audit.last()).unwrap_or(0);
    writeln!(out, "{}", drain_summary(end.number, last))?;
    writeln!(out, "Tokens granted: {grants}.")?;
    if audits.streams.values().all(|(audit, _)| audit.is_consistent() && audit.events > 0) {
        return Ok(());
    }
    Err(anyhow::anyhow!("the logs violate the delivery guarantees").into())
}

/// The platform keeps sending while the daemon drains, so the log may end after the last number sent before the drain.
fn drain_summary(due: u64, last: u64) -> String {
    format!("Last sequence number: {due} sent before the drain, {last} in the log after it.")
}

/// The last events before the drain; all events up to here must be in the logs.
#[derive(Debug, Clone, Copy)]
struct DrainPoint {
    second: u64,
    number: u64,
}

/// Compares the logs with the simulator's ledger.
struct DemoAudits {
    streams: BTreeMap<StreamName, (Audit, LogReader)>,
    ledger: EmissionLedger,
    mark: u64,
}

impl DemoAudits {
    fn open(app: &App, ledger: EmissionLedger) -> Self {
        let logs = app.logs().iter();
        let streams = logs.map(|(name, log)| (name.clone(), (Audit::default(), log.reader(Offset::START)))).collect();
        Self { streams, mark: ledger.mark(), ledger }
    }

    /// Reads new ledger records and log entries, and settles old events.
    async fn update(&mut self, second: u64) -> anyhow::Result<()> {
        self.collect_emitted(second);
        self.read(second.saturating_sub(SETTLED_AFTER)).await
    }

    /// Reads new records of the ledger.
    fn collect_emitted(&mut self, second: u64) {
        let emitted = self.ledger.emitted_since(self.mark);
        self.mark = emitted.last().map_or(self.mark, |last| last.number + 1);
        let Some((audit, _)) =
            self.streams.iter_mut().find_map(|(name, audit)| (name.as_str() == UNNUMBERED).then_some(audit))
        else {
            return;
        };
        let subscribed = emitted.into_iter().filter(|notification| notification.subscribed);
        subscribed.for_each(|notification| audit.record_emitted(second, notification.correlation));
    }

    /// Reads new log entries, and settles events sent before second `settled`.
    async fn read(&mut self, settled: u64) -> anyhow::Result<()> {
        for (audit, reader) in self.streams.values_mut() {
            while let Some(Read::Entries(views)) = reader.try_next(READ_BYTES).await? {
                for entry in views.iter().flat_map(|view| view.entries()) {
                    audit.entry(entry.json)?;
                }
            }
            audit.settle(settled);
        }
        Ok(())
    }

    /// Waits until all events sent so far have arrived, [`ARRIVAL_MAX`] has passed, or a signal arrives.
    async fn wait_for_arrival(&mut self, second: u64, signals: &mut Signals) -> anyhow::Result<DrainPoint> {
        self.collect_emitted(second);
        let end = DrainPoint { second: second + 1, number: self.ledger.last_sequence() };
        let until = clock::now() + ARRIVAL_MAX;
        loop {
            self.read(0).await?;
            let arrived = self.streams.values().all(|(audit, _)| audit.reaches(end.number, end.second));
            if arrived || clock::now() >= until {
                return Ok(end);
            }
            tokio::select! {
                () = signals.next() => return Ok(end),
                () = tokio::time::sleep(TICK) => (),
            }
        }
    }

    /// Settles all events after the drain: an event that is not in a log now is missing.
    async fn close(&mut self, end: DrainPoint) -> anyhow::Result<()> {
        self.collect_emitted(end.second);
        self.read(end.second).await?;
        self.streams.values_mut().for_each(|(audit, _)| audit.end(end.number));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_banner_explains_how_the_demo_ends() {
        assert!(ending(None).starts_with("Ctrl-C stops the demo"), "{}", ending(None));
        let timed = ending(Some(Span(Duration::from_secs(5))));
        assert!(timed.contains("Ctrl-C") && timed.ends_with("stops after 5s."), "{timed}");
    }

    #[test]
    fn the_summary_shows_a_log_that_ends_before_the_last_sent_number() {
        assert_eq!(drain_summary(8, 9), "Last sequence number: 8 sent before the drain, 9 in the log after it.");
    }

    #[test]
    fn the_demo_script_is_valid_and_ends_before_it_repeats() {
        let script = FaultScript::parse(SCRIPT).unwrap();
        let round = Duration::from_secs(300);
        assert!(script.faults.iter().all(|planned| planned.every == Some(round) && planned.at < round));
        assert!(script.faults.is_sorted_by_key(|planned| planned.at));
    }
}
