//! `trunkline demo`: a simulated platform and the daemon in one process, on real loopback sockets.
//!
//! The daemon is the very one that `run` starts, from a configuration as a user would write it. At the end the logs are
//! held against the simulator's books.

mod audit;

use std::{
    collections::BTreeMap,
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;

use self::audit::Audit;
use super::{
    DemoArgs, Failure,
    run::{Signals, drain_on_signals},
    simulate,
};
use crate::{
    app::{App, temporary_folder},
    clock,
    config::{self, Config, Environment},
    event_log::{Read, Reader},
    model::{Offset, StreamName},
    simulator::{self, Ledger, Script, Simulator},
    telemetry::logs,
};

/// The platform speaks at least this often, so that silence is noticed within [`SILENCE_MAX`].
const HEARTBEAT: Duration = Duration::from_secs(2);
const SILENCE_MAX: &str = "5s";
/// What the simulated platform can replay: longer than any of the script's faults lasts.
const RETENTION: Duration = Duration::from_secs(30);
/// What was said so long ago is in the log, or is missing.
const SETTLED_AFTER: u64 = 15;
/// What was said so shortly before the end may not have arrived.
const LAST_MOMENTS: u64 = 2;
/// The demo's stream that is not numbered.
const UNNUMBERED: &str = "queues";
const READ_BYTES: usize = 1 << 20;
const TICK: Duration = Duration::from_secs(1);

/// Runs until a signal or the wished end; then says whether everything arrived.
pub async fn run(args: &DemoArgs, environment: &Environment, out: &mut impl Write) -> Result<(), Failure> {
    let _log = logs::start(environment.get("TRUNKLINE_LOG").or(Some("warn")));
    let mut signals = Signals::listen()?;
    let platform = start_platform(args).await?;
    let temporary = temporary_folder("demo")?;
    let folder = args.data.as_deref().unwrap_or(temporary.path());
    let config = configuration(args, &platform, folder)?;
    let app = tokio::select! {
        app = App::start(config) => app?,
        () = signals.next() => return Ok(()),
    };
    let mut books = Books::open(&app, platform.ledger());
    introduce(&app, &platform, args, out)?;
    let seconds = watch(&app, &mut books, args, &mut signals, out).await?;
    writeln!(out, "\nDraining …")?;
    finish(app, platform, books, seconds, signals, out).await?;
    temporary.close().context("cannot remove the demo's folder")?;
    Ok(())
}

async fn start_platform(args: &DemoArgs) -> anyhow::Result<Simulator> {
    let script = match &args.script {
        Some(file) => simulate::script(file)?,
        None => Script::minute_mix(),
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

/// The configuration that a user would write for this platform.
fn configuration(args: &DemoArgs, platform: &Simulator, folder: &Path) -> Result<Config, Failure> {
    let address = platform.address();
    let DemoArgs { http, admin, .. } = args;
    let retention = RETENTION.as_secs();
    let path = quoted(folder);
    let id = quoted(&secret_file(folder, "client-id", "demo")?);
    let secret = quoted(&secret_file(folder, "client-secret", "demo-secret")?);
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
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let file = folder.join(name);
    std::fs::write(&file, secret).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

fn introduce(app: &App, platform: &Simulator, args: &DemoArgs, out: &mut impl Write) -> std::io::Result<()> {
    let (consumers, admin) = (app.consumers_at(), app.admin_at());
    let (rate, ttl) = (args.rate, args.token_ttl);
    writeln!(out, "A made-up contact centre says {rate} events a second at {}.", platform.url())?;
    writeln!(out, "Its tokens live {ttl}; its sockets drop, stall and are closed by its script.\n")?;
    writeln!(out, "Status and metrics   http://{admin}/admin/v1/status   http://{admin}/metrics\n")?;
    writeln!(out, "Try in another terminal:")?;
    writeln!(out, "  trunkline tail conversations --url http://{consumers}")?;
    writeln!(out, "  trunkline status --watch --url http://{admin}")?;
    writeln!(out, "  curl -N -H 'Accept: text/event-stream' http://{consumers}/v1/streams/queues/events\n")?;
    out.flush()
}

/// A line a second (on a terminal: one line that changes), until it is time to end.
async fn watch(
    app: &App,
    books: &mut Books,
    args: &DemoArgs,
    signals: &mut Signals,
    out: &mut impl Write,
) -> Result<u64, Failure> {
    let end = args.duration.map(|duration| clock::now() + duration.0);
    let terminal = std::io::stdout().is_terminal();
    let mut seconds = 0;
    loop {
        tokio::select! {
            () = signals.next() => return Ok(seconds),
            () = tokio::time::sleep(TICK) => (),
        }
        seconds += 1;
        books.keep(seconds).await?;
        if terminal || seconds % 10 == 0 {
            let start = if terminal { "\r\x1b[2K" } else { "" };
            let stop = if terminal { "" } else { "\n" };
            write!(out, "{start}{}{stop}", progress(app, seconds))?;
            out.flush()?;
        }
        if end.is_some_and(|end| clock::now() >= end) {
            return Ok(seconds);
        }
    }
}

fn progress(app: &App, seconds: u64) -> String {
    let mut line = format!("{seconds:>4} s");
    for status in app.streams().statuses() {
        let (stream, state, last) = (&status.stream, status.state, status.last.offset);
        let (rotations, lost, gaps) = (status.rotations, status.reconnects, status.gaps);
        line.push_str(&format!(
            "  |  {stream} {state}: {last} entries, {rotations} rotations, {lost} lost, {gaps} gaps"
        ));
    }
    line
}

async fn finish(
    app: App,
    platform: Simulator,
    mut books: Books,
    seconds: u64,
    signals: Signals,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let statuses = app.streams().statuses();
    let last_said = platform.ledger().last_sequence();
    books.hear(seconds);
    drain_on_signals(app, signals).await?;
    books.close(seconds).await?;
    let grants = platform.tally().grants_total();
    platform.stop().await;
    for status in statuses {
        let (stream, rotations, lost) = (&status.stream, status.rotations, status.reconnects);
        writeln!(out, "{stream}: {rotations} rotations, {lost} sessions lost to trouble")?;
        if let Some((audit, _)) = books.streams.get(stream) {
            writeln!(out, "  {audit}")?;
        }
    }
    let heard = books.streams.values().find_map(|(audit, _)| audit.last());
    writeln!(out, "The platform had said number {last_said}; the log ends with {}.", heard.unwrap_or(0))?;
    writeln!(out, "Tokens granted: {grants}.")?;
    if books.streams.values().all(|(audit, _)| audit.is_sound() && audit.events > 0) {
        return Ok(());
    }
    Err(anyhow::anyhow!("the logs are not what the guarantees say").into())
}

/// The logs, held against what was said.
struct Books {
    streams: BTreeMap<StreamName, (Audit, Reader)>,
    ledger: Ledger,
    mark: u64,
}

impl Books {
    fn open(app: &App, ledger: Ledger) -> Self {
        let logs = app.logs().iter();
        let streams = logs.map(|(name, log)| (name.clone(), (Audit::default(), log.reader(Offset::START)))).collect();
        Self { streams, mark: ledger.mark(), ledger }
    }

    /// Takes in what came since, and closes the books on what was said long ago.
    async fn keep(&mut self, second: u64) -> anyhow::Result<()> {
        self.hear(second);
        self.read(second.saturating_sub(SETTLED_AFTER)).await
    }

    /// Takes in what the platform said.
    fn hear(&mut self, second: u64) {
        let said = self.ledger.said_since(self.mark);
        self.mark = said.last().map_or(self.mark, |last| last.number + 1);
        let Some((audit, _)) =
            self.streams.iter_mut().find_map(|(name, books)| (name.as_str() == UNNUMBERED).then_some(books))
        else {
            return;
        };
        let subscribed = said.into_iter().filter(|notification| notification.subscribed);
        subscribed.for_each(|notification| audit.said(second, notification.correlation));
    }

    /// Takes in what the logs hold, and settles what was said before a second.
    async fn read(&mut self, settled: u64) -> anyhow::Result<()> {
        for (audit, reader) in self.streams.values_mut() {
            while let Some(Read::Entries(views)) = reader.next_now(READ_BYTES).await? {
                for entry in views.iter().flat_map(|view| view.entries()) {
                    audit.entry(entry.json)?;
                }
            }
            audit.settle(settled);
        }
        Ok(())
    }

    /// Everything is durable: what is not there now is missing, but for what was said in the last moments.
    async fn close(&mut self, second: u64) -> anyhow::Result<()> {
        self.read(second.saturating_sub(LAST_MOMENTS)).await
    }
}
