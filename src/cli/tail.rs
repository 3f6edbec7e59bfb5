//! `trunkline tail`: follows a stream of a running daemon; after a lost connection it resumes after the last entry
//! shown.
//!
//! To a pipe it writes each event as the daemon sent it, one per line; to a terminal a summary. Gaps are highlighted.

mod summary;

use std::{
    future::Future,
    io::{IsTerminal, Write},
    pin::pin,
    time::Duration,
};

use clap::Args;
use reqwest::{Response, Url};
use serde::Deserialize;

use crate::{
    config::Environment,
    model::{Cursor, Mark, Secret, Span, StreamName, Timestamp},
};

use super::{
    CliError,
    daemon::{self, DaemonClient, DaemonRequestError},
};

pub(super) use summary::printable;

/// The maximum length of a line in bytes: the largest configurable frame, in base64.
const LINE_LEN_MAX: usize = 360 << 20;

/// Delays before attempts to reconnect; the last one repeats.
const RECONNECT_DELAYS: [Duration; 4] =
    [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(5)];

#[derive(Debug, Args)]
pub struct TailArgs {
    /// Name of the stream
    pub stream: StreamName,
    /// Start after this entry; the id of an event is its cursor
    #[arg(long, value_name = "CURSOR", conflicts_with = "since")]
    pub after: Option<Cursor>,
    /// Start with events received this long ago, or at this time (RFC 3339)
    #[arg(long, value_name = "DURATION|TIME", value_parser = moment)]
    pub since: Option<String>,
    /// Only events with a matching type, such as `v2.users.*`
    #[arg(long = "type", value_name = "GLOB")]
    pub kind: Option<String>,
    /// URL of the daemon's listener for consumers
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080", value_parser = daemon::url)]
    pub url: Url,
    /// Token for the daemon
    #[arg(long, env = "TRUNKLINE_TOKEN", hide_env_values = true, value_parser = daemon::token)]
    pub token: Option<Secret>,
}

fn moment(text: &str) -> Result<String, String> {
    let known = text.parse::<Span>().is_ok() || Timestamp::parse(text).is_some();
    known.then(|| text.to_owned()).ok_or_else(|| "expected a duration such as 10m, or a time (RFC 3339)".to_owned())
}

/// How events are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// The JSON as received, one event per line.
    Lines,
    /// A summary, with or without colour.
    Summary { colour: bool },
}

impl Style {
    /// The style for an output: a summary for a terminal, else lines. `NO_COLOR` disables colours.
    pub fn of(out: &impl IsTerminal, environment: &Environment) -> Self {
        let colour = environment.get("NO_COLOR").is_none_or(str::is_empty);
        if out.is_terminal() { Self::Summary { colour } } else { Self::Lines }
    }
}

/// Follows the stream until `stop`. Messages for people go to `notes`.
///
/// # Errors
///
/// The output is closed, or the daemon rejects the request.
pub async fn run(
    args: &TailArgs,
    style: Style,
    out: &mut impl Write,
    notes: &mut impl Write,
    stop: impl Future<Output = ()>,
) -> Result<(), CliError> {
    let daemon = DaemonClient::new(&args.url, args.token.as_ref())?;
    let mut tail = TailClient { args, style, daemon, after: None };
    let follow = pin!(tail.follow(out, notes));
    tokio::select! {
        biased;
        () = stop => Ok(()),
        ended = follow => ended,
    }
}

struct TailClient<'a> {
    args: &'a TailArgs,
    style: Style,
    daemon: DaemonClient,
    /// The last entry shown; before the first one the last entry of the log at the start.
    after: Option<String>,
}

/// `GET /v1/streams`.
#[derive(Deserialize)]
struct TailListing {
    streams: Vec<TailStream>,
}

#[derive(Deserialize)]
struct TailStream {
    name: String,
    last: Option<String>,
}

impl TailClient<'_> {
    async fn follow(&mut self, out: &mut impl Write, notes: &mut impl Write) -> Result<(), CliError> {
        self.find_start().await?;
        let mut answer = self.open().await?;
        if self.style != Style::Lines {
            writeln!(notes, "following {} at {}; Ctrl-C stops", self.args.stream, self.daemon.url())?;
        }
        loop {
            self.show(&mut answer, out).await?;
            answer = self.reopen(notes).await?;
        }
    }

    /// Finds the end of the log, so that no event is missed if the connection is lost before the first one.
    async fn find_start(&mut self) -> Result<(), CliError> {
        if let Some(after) = &self.args.after {
            self.after = Some(after.to_string());
        }
        if self.after.is_some() || self.args.since.is_some() {
            return Ok(());
        }
        let answer = self.daemon.get("/v1/streams", &[], "application/json").await?;
        let listing: TailListing = answer.json().await.map_err(|error| self.daemon.unreachable_error(error))?;
        let Some(listed) = listing.streams.iter().find(|listed| listed.name == self.args.stream.as_str()) else {
            let names: Vec<_> = listing.streams.iter().map(|listed| printable(&listed.name)).collect();
            return Err(CliError::Refused(format!(
                "unknown stream {}; known streams: {}",
                self.args.stream,
                names.join(", ")
            )));
        };
        self.after.clone_from(&listed.last);
        Ok(())
    }

    async fn open(&self) -> Result<Response, DaemonRequestError> {
        let mut query = Vec::new();
        match (&self.after, &self.args.since) {
            (Some(after), _) => query.push(("after", after.as_str())),
            (None, Some(since)) => query.push(("since", since.as_str())),
            (None, None) => (),
        }
        query.extend(self.args.kind.as_deref().map(|kind| ("type", kind)));
        let path = format!("/v1/streams/{}/events", self.args.stream);
        self.daemon.get(&path, &query, "application/x-ndjson").await
    }

    async fn reopen(&self, notes: &mut impl Write) -> Result<Response, CliError> {
        let mut attempts = 0;
        loop {
            let pause = RECONNECT_DELAYS[attempts.min(RECONNECT_DELAYS.len() - 1)];
            attempts += 1;
            writeln!(notes, "connection lost; retrying {} in {}", self.daemon.url(), Span(pause))?;
            tokio::time::sleep(pause).await;
            match self.open().await {
                Ok(answer) => return Ok(answer),
                Err(error) if error.is_transient() => (),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes events until the connection is lost.
    async fn show(&mut self, answer: &mut Response, out: &mut impl Write) -> Result<(), CliError> {
        let mut rest = Vec::new();
        while let Ok(Some(chunk)) = answer.chunk().await {
            let newline = memchr::memrchr(b'\n', &chunk).map(|at| rest.len() + at);
            rest.extend_from_slice(&chunk);
            if rest.len() > LINE_LEN_MAX {
                return Err(anyhow::anyhow!("the daemon sent a line of more than {LINE_LEN_MAX} bytes").into());
            }
            let Some(end) = newline else { continue };
            for line in rest[..end].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                self.show_event(line, out)?;
            }
            rest.drain(..=end);
            out.flush()?;
        }
        Ok(())
    }

    fn show_event(&mut self, line: &[u8], out: &mut impl Write) -> Result<(), CliError> {
        let event = summary::EventSummary::read(line);
        match (self.style, &event) {
            (Style::Summary { colour }, Some(event)) => event.write(colour, out)?,
            (Style::Summary { .. }, None) => writeln!(out, "{}", printable(&String::from_utf8_lossy(line)))?,
            (Style::Lines, _) => {
                out.write_all(line)?;
                out.write_all(b"\n")?;
            }
        }
        // A gap for one subscriber only is not in the log and has no cursor.
        if let Some(mark) = event.and_then(|event| event.id.parse::<Mark>().ok()) {
            self.after = Some(mark.to_string());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
