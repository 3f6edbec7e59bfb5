//! `trunkline status`: shows streams and tokens of a running daemon, as a table or as JSON.
//!
//! It only reads. The table omits unknown fields of a newer daemon; `--json` omits nothing.

use std::{future::Future, io, io::Write, pin::pin, time::Duration};

use clap::Args;
use reqwest::Url;
use serde::Deserialize;

use crate::model::{Secret, Span};

use super::{
    CliError,
    daemon::{self, DaemonClient, DaemonRequestError},
    tail::printable,
};

/// Timeout of a request.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// The interval of `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// Clears a terminal and starts at its top.
const CLEAR: &str = "\x1b[2J\x1b[H";

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// URL of the daemon's admin listener
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9090", value_parser = daemon::url)]
    pub url: Url,
    /// Token for the daemon
    #[arg(long, env = "TRUNKLINE_TOKEN", hide_env_values = true, value_parser = daemon::token)]
    pub token: Option<Secret>,
    /// Print the daemon's JSON response instead of a table
    #[arg(long)]
    pub json: bool,
    /// Refresh every two seconds
    #[arg(long)]
    pub watch: bool,
}

/// Writes the status once, or with `--watch` until `stop`. If `screen` is true, the output is a terminal and is cleared
/// before each update.
pub async fn run(
    args: &StatusArgs,
    screen: bool,
    out: &mut impl Write,
    stop: impl Future<Output = ()>,
) -> Result<(), CliError> {
    let daemon = DaemonClient::new(&args.url, args.token.as_ref())?;
    if !args.watch {
        return write(&answer(&daemon).await?, args, out);
    }
    let watch = pin!(watch(&daemon, args, WATCH_INTERVAL, screen, out));
    tokio::select! {
        biased;
        () = stop => Ok(()),
        ended = watch => ended,
    }
}

/// Writes the status at each interval. Temporary failures are only shown, except for a failure of the first request.
async fn watch(
    daemon: &DaemonClient,
    args: &StatusArgs,
    every: Duration,
    screen: bool,
    out: &mut impl Write,
) -> Result<(), CliError> {
    let mut text = answer(daemon).await?;
    loop {
        if screen && !args.json {
            out.write_all(CLEAR.as_bytes())?;
        }
        write(&text, args, out)?;
        out.flush()?;
        tokio::time::sleep(every).await;
        match answer(daemon).await {
            Ok(newer) => text = newer,
            Err(error) if error.is_transient() && !args.json => writeln!(out, "\n{error}; the table is outdated")?,
            Err(error) if error.is_transient() => (),
            Err(error) => return Err(error.into()),
        }
    }
}

async fn answer(daemon: &DaemonClient) -> Result<String, DaemonRequestError> {
    let response = async {
        let answer = daemon.get("/admin/v1/status", &[], "application/json").await?;
        answer.text().await.map_err(|error| daemon.unreachable_error(error))
    };
    tokio::time::timeout(ANSWER_MAX, response).await.unwrap_or_else(|_| Err(daemon.timeout_error(ANSWER_MAX)))
}

fn write(text: &str, args: &StatusArgs, out: &mut impl Write) -> Result<(), CliError> {
    if args.json {
        writeln!(out, "{}", text.trim_end())?;
        return Ok(());
    }
    let report: StatusReport = serde_json::from_str(text)
        .map_err(|error| anyhow::Error::new(error).context("the response is not the status of a daemon"))?;
    Ok(report.write(out)?)
}

/// The response of `GET /admin/v1/status`.
#[derive(Debug, Deserialize)]
struct StatusReport {
    version: String,
    uptime_seconds: f64,
    #[serde(default = "yes")]
    ready: bool,
    /// Reasons why it is not ready.
    #[serde(default)]
    not_ready: Vec<String>,
    /// The replica that sent the response, if several share a store.
    replica: Option<String>,
    /// All live replicas.
    #[serde(default)]
    members: Vec<String>,
    streams: Vec<StreamRow>,
    accounts: Vec<AccountRow>,
}

#[derive(Debug, Deserialize)]
struct StreamRow {
    stream: String,
    state: String,
    holder: Option<String>,
    last: String,
    position: Option<String>,
    events: u64,
    rotations: u64,
    reconnects: u64,
    gaps: u64,
    silent_seconds: Option<f64>,
    #[serde(default)]
    snapshot_pending: bool,
    #[serde(default)]
    refused_topics: Vec<String>,
    last_error: Option<String>,
}

#[derive(Debug, Deserialize)]
struct AccountRow {
    account: String,
    state: String,
    generation: u64,
    remaining_seconds: Option<f64>,
    next_refresh_seconds: Option<f64>,
    refreshes: u64,
    waiting_for: Option<String>,
    waiting_seconds: Option<f64>,
    last_error: Option<String>,
    last_error_at: Option<String>,
    proxy: Option<String>,
}

/// The default of `ready`, for an older daemon without this field.
fn yes() -> bool {
    true
}

impl StatusReport {
    /// Writes the reasons why the daemon is not ready.
    fn write_readiness(&self, out: &mut impl Write) -> io::Result<()> {
        if !self.ready && self.not_ready.is_empty() {
            writeln!(out, "NOT READY: see /readyz for the reason")?;
        }
        self.not_ready.iter().try_for_each(|why| writeln!(out, "NOT READY: {}", printable(why)))
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "trunkline {}, up {}", printable(&self.version), seconds(self.uptime_seconds))?;
        if let Some(replica) = &self.replica {
            writeln!(out, "replica {}, {}", printable(replica), printable(&self.peers(replica)))?;
        }
        self.write_readiness(out)?;
        writeln!(out)?;
        self.write_streams(out)?;
        writeln!(out)?;
        let head = ["ACCOUNT", "STATE", "TOKEN", "EXPIRES IN", "NEXT REFRESH IN", "REFRESHES"];
        table(head, self.accounts.iter().map(AccountRow::row), out)?;
        let notes =
            self.streams.iter().flat_map(StreamRow::notes).chain(self.accounts.iter().flat_map(AccountRow::notes));
        for (index, note) in notes.enumerate() {
            let blank = if index == 0 { "\n" } else { "" };
            writeln!(out, "{blank}{}", printable(&note))?;
        }
        Ok(())
    }

    fn write_streams(&self, out: &mut impl Write) -> io::Result<()> {
        let rows = self.streams.iter().map(StreamRow::row);
        let Some(replica) = &self.replica else { return table(HEAD, rows, out) };
        let [stream, state, rest @ ..] = HEAD;
        let holders = self.streams.iter().map(|stream| stream.holder_seen_from(replica));
        let rows =
            rows.zip(holders).map(|([stream, state, rest @ ..], holder)| with_holder(stream, state, holder, rest));
        table(with_holder(stream, state, "OWNER", rest), rows, out)
    }

    /// The other live replicas.
    fn peers(&self, replica: &str) -> String {
        let others: Vec<&str> = self.members.iter().map(String::as_str).filter(|member| *member != replica).collect();
        if others.is_empty() { "no other replicas".to_owned() } else { format!("others: {}", others.join(", ")) }
    }
}

/// The columns of the stream table.
const HEAD: [&str; 9] = ["STREAM", "STATE", "LAST", "POSITION", "EVENTS", "ROTATIONS", "RECONNECTS", "GAPS", "SILENT"];

/// Inserts the column with the holder after the state.
fn with_holder<T>(
    stream: T,
    state: T,
    holder: T,
    [last, position, events, rotations, reconnects, gaps, silent]: [T; 7],
) -> [T; 10] {
    [stream, state, holder, last, position, events, rotations, reconnects, gaps, silent]
}

impl StreamRow {
    fn row(&self) -> [String; 9] {
        [
            self.stream.clone(),
            self.state.clone(),
            self.last.clone(),
            self.position.clone().unwrap_or_else(none),
            self.events.to_string(),
            self.rotations.to_string(),
            self.reconnects.to_string(),
            self.gaps.to_string(),
            self.silent_seconds.map_or_else(none, seconds),
        ]
    }

    fn holder_seen_from(&self, replica: &str) -> String {
        match self.holder.as_deref() {
            Some(holder) if holder == replica => "here".to_owned(),
            Some(holder) => holder.to_owned(),
            None => none(),
        }
    }

    fn notes(&self) -> Vec<String> {
        let pending = self.snapshot_pending.then(|| format!("{}: snapshot pending", self.stream));
        let refused = self.refused_topics.iter().map(|topic| format!("{}: topic rejected: {topic}", self.stream));
        let error = self.last_error.iter().map(|error| format!("{}: {error}", self.stream));
        pending.into_iter().chain(refused).chain(error).collect()
    }
}

impl AccountRow {
    fn row(&self) -> [String; 6] {
        [
            self.account.clone(),
            self.state.clone(),
            format!("#{}", self.generation),
            self.remaining_seconds.map_or_else(none, seconds),
            self.next_refresh_seconds.map_or_else(none, seconds),
            self.refreshes.to_string(),
        ]
    }

    fn notes(&self) -> Vec<String> {
        let proxy = self.proxy.iter().map(|proxy| format!("{}: proxy {proxy}", self.account));
        let until = self.waiting_seconds.map(|count| format!(", at most {}", seconds(count))).unwrap_or_default();
        let waiting =
            self.waiting_for.iter().map(|what| format!("{}: next token refresh waits for {what}{until}", self.account));
        let at = self.last_error_at.as_ref().map(|at| format!(" ({at})")).unwrap_or_default();
        let error = self.last_error.iter().map(|error| format!("{}: {error}{at}", self.account));
        proxy.chain(waiting).chain(error).collect()
    }
}

fn none() -> String {
    "-".to_owned()
}

/// A duration: below 10 s with a tenth, longer ones in whole seconds, minutes or hours.
fn seconds(count: f64) -> String {
    match Duration::try_from_secs_f64(count.max(0.0)) {
        Ok(short) if short < Duration::from_secs(10) => format!("{count:.1}s", count = short.as_secs_f64()),
        Ok(long) if long < Duration::from_secs(600) => Span(Duration::from_secs(long.as_secs())).to_string(),
        Ok(long) if long < Duration::from_secs(36_000) => format!("{}m", long.as_secs() / 60),
        Ok(long) => format!("{}h", long.as_secs() / 3600),
        Err(_) => none(),
    }
}

/// Writes rows in columns as wide as their widest cell, separated by two spaces.
fn table<const N: usize>(
    head: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
    out: &mut impl Write,
) -> io::Result<()> {
    let rows: Vec<[String; N]> =
        std::iter::once(head.map(str::to_owned)).chain(rows).map(|row| row.map(|cell| printable(&cell))).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    for row in &rows {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
