//! `trunkline consumer`: lists, shows, moves and deletes the durable consumers of a running daemon.

use std::{collections::BTreeMap, io::Write, time::Duration};

use clap::{Args, Subcommand};
use reqwest::{Method, Url};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    CliError,
    daemon::{self, DaemonClient},
    tail::printable,
};
use crate::model::{ConsumerName, Secret, StreamName};

/// Timeout for a whole response.
const ANSWER_MAX: Duration = Duration::from_secs(15);

#[derive(Debug, Subcommand)]
pub enum ConsumerCommand {
    /// List the consumers, with their cursor and lag in each stream
    List(ConsumerTarget),
    /// Show one consumer as JSON
    Show {
        /// Name of the consumer
        consumer: ConsumerName,
        #[command(flatten)]
        target: ConsumerTarget,
    },
    /// Move the cursor of a consumer in a stream; a connected reader is closed, and continues there
    Seek {
        /// Name of the consumer
        consumer: ConsumerName,
        /// Name of the stream
        stream: StreamName,
        /// A cursor, `first`, `last`, a time (RFC 3339) or a duration such as `10m`
        to: String,
        #[command(flatten)]
        target: ConsumerTarget,
    },
    /// Delete a consumer with its cursors; a connected reader is closed
    Delete {
        /// Name of the consumer
        consumer: ConsumerName,
        #[command(flatten)]
        target: ConsumerTarget,
    },
}

/// The daemon.
#[derive(Debug, Args)]
pub struct ConsumerTarget {
    /// URL of the daemon's listener for consumers
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080", value_parser = daemon::url)]
    pub url: Url,
    /// Token for the daemon
    #[arg(long, env = "TRUNKLINE_TOKEN", hide_env_values = true, value_parser = daemon::token)]
    pub token: Option<Secret>,
}

/// `GET /v1/consumers`.
#[derive(Deserialize)]
struct ConsumerListing {
    consumers: Vec<ListedConsumer>,
}

#[derive(Deserialize)]
struct ListedConsumer {
    name: String,
    used: String,
    expired: bool,
    streams: BTreeMap<String, ListedProgress>,
}

#[derive(Deserialize)]
struct ListedProgress {
    cursor: String,
    lag: u64,
}

/// Runs the command.
///
/// # Errors
///
/// The output is closed, or the daemon rejects the request or is unreachable.
pub async fn run(command: &ConsumerCommand, out: &mut impl Write) -> Result<(), CliError> {
    match command {
        ConsumerCommand::List(target) => {
            let answer = target.request(Method::GET, "/v1/consumers", None).await?;
            let listing: ConsumerListing = serde_json::from_value(answer).map_err(anyhow::Error::from)?;
            for consumer in &listing.consumers {
                consumer.write(out)?;
            }
        }
        ConsumerCommand::Show { consumer, target } => {
            let answer = target.request(Method::GET, &format!("/v1/consumers/{consumer}"), None).await?;
            writeln!(out, "{}", printable(&answer.to_string()))?;
        }
        ConsumerCommand::Seek { consumer, stream, to, target } => {
            let (path, body) = (format!("/v1/consumers/{consumer}/seek"), json!({ "stream": stream, "to": to }));
            let answer = target.request(Method::POST, &path, Some(&body)).await?;
            let cursor = answer["cursor"].as_str().unwrap_or_default();
            writeln!(out, "{consumer} is at {} in {stream}", printable(cursor))?;
        }
        ConsumerCommand::Delete { consumer, target } => {
            target.request(Method::DELETE, &format!("/v1/consumers/{consumer}"), None).await?;
            writeln!(out, "{consumer} is deleted")?;
        }
    }
    Ok(())
}

impl ConsumerTarget {
    async fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, CliError> {
        let daemon = DaemonClient::new(&self.url, self.token.as_ref())?;
        let exchange = daemon.exchange(method, path, body);
        let answer = tokio::time::timeout(ANSWER_MAX, exchange).await;
        Ok(answer.map_err(|_| daemon.timeout_error(ANSWER_MAX))??)
    }
}

impl ListedConsumer {
    /// Writes a line for each stream.
    fn write(&self, out: &mut impl Write) -> Result<(), CliError> {
        let Self { name, used, expired, streams } = self;
        let (name, used) = (printable(name), printable(used));
        let note = if *expired { ", expired" } else { "" };
        if streams.is_empty() {
            writeln!(out, "{name}  no cursor  used {used}{note}")?;
        }
        for (stream, ListedProgress { cursor, lag }) in streams {
            let (stream, cursor) = (printable(stream), printable(cursor));
            writeln!(out, "{name}  {stream} at {cursor}, lag {lag}  used {used}{note}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{
        Cli, CliCommand, Exit,
        tests_server::{StubResponse, serve},
    };

    async fn output(line: &str, url: &str) -> Result<String, CliError> {
        let words = line.split(' ').chain(["--url", url, "--token", "t0ken"]);
        let Ok(Cli { command: CliCommand::Consumer(command) }) =
            Cli::try_parse_from(["trunkline", "consumer"].into_iter().chain(words))
        else {
            panic!("{line} is rejected")
        };
        let mut out = Vec::new();
        run(&command, &mut out).await?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[tokio::test]
    async fn each_command_sends_its_request_and_shows_the_answer() {
        let used = "2026-05-04T13:31:49.570Z";
        let queues = json!({ "queues": { "cursor": "4f2a-17", "lag": 3 } });
        let consumer = |name: &str, streams: &Value, expired: bool| json!({ "name": name, "used": used, "expired": expired, "streams": streams });
        let listed = json!({ "consumers": [consumer("billing", &queues, false), consumer("old", &json!({}), true)] });
        let shown = consumer("billing", &queues, false);
        let server = serve(move |request| match request.target.as_str() {
            "/v1/consumers" => StubResponse::json(listed.to_string()),
            "/v1/consumers/billing/seek" => StubResponse::json(r#"{"stream":"queues","cursor":"4f2a-9"}"#),
            "/v1/consumers/billing" => StubResponse::json(shown.to_string()),
            "/v1/consumers/gone" => StubResponse::status(204, ""),
            _ => StubResponse::status(404, r#"{"detail":"unknown consumer other"}"#),
        })
        .await;
        let url = &server.url;
        assert_eq!(
            output("list", url).await.unwrap(),
            format!("billing  queues at 4f2a-17, lag 3  used {used}\nold  no cursor  used {used}, expired\n")
        );
        assert!(output("show billing", url).await.unwrap().contains(r#""lag":3"#));
        assert_eq!(output("seek billing queues 10m", url).await.unwrap(), "billing is at 4f2a-9 in queues\n");
        assert_eq!(output("delete gone", url).await.unwrap(), "gone is deleted\n");
        assert_eq!(output("delete other", url).await.unwrap_err().exit(), Exit::Refused);
        assert!(server.requests().iter().all(|sent| sent.authorization.as_deref() == Some("Bearer t0ken")));
    }
}
