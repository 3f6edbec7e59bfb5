//! The command line: arguments, exit status and error reports.
//!
//! One file per command. A command writes only to the outputs that it gets as arguments.

pub mod bench;
pub mod check;
pub mod completions;
pub mod config;
pub mod consumer;
mod daemon;
pub mod demo;
pub mod run;
pub mod simulate;
pub mod status;
pub mod tail;
#[cfg(test)]
mod tests_server;
pub mod token;

use std::{
    io::{self, ErrorKind, Write},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};

use crate::{
    config::{Environment, Findings},
    downstream::server::access::SignError,
    model::Span,
    telemetry::texts,
};

/// Keeps one WebSocket per contact-centre stream and serves every consumer from one durable log.
#[derive(Debug, Parser)]
#[command(name = "trunkline", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: CliCommand,
}

#[derive(Debug, Subcommand)]
pub enum CliCommand {
    /// Run the daemon
    Run(RunArgs),
    /// Run a simulated platform and the daemon in one process; Ctrl-C stops it
    Demo(DemoArgs),
    /// Run only the simulated platform
    Simulate(SimulateArgs),
    /// Validate the configuration and report delivery guarantees per stream
    Check(check::CheckArgs),
    /// Print the JSON Schema of the configuration, or the effective configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Follow a stream of a running daemon
    Tail(tail::TailArgs),
    /// Show streams and tokens of a running daemon
    Status(status::StatusArgs),
    /// List, show, move and delete the durable consumers of a running daemon
    #[command(subcommand)]
    Consumer(consumer::ConsumerCommand),
    /// Measure the daemon's performance on this machine
    Bench(bench::BenchArgs),
    /// Issue tokens for consumers
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Print the completion script for a shell
    Completions(completions::CompletionsArgs),
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// Configuration file; repeatable, later files override earlier ones key by key
    #[arg(long, value_name = "FILE", required = true)]
    pub config: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Events per second that the simulated platform sends
    #[arg(long, value_name = "N", default_value = "20", value_parser = rate)]
    pub rate: f64,
    /// Lifetime of a token; short, so that rotations are frequent
    #[arg(long, value_name = "DURATION", default_value = "20s")]
    pub token_ttl: Span,
    /// Address of the listener for consumers
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub http: SocketAddr,
    /// Address of the listener for health, metrics and status
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9090")]
    pub admin: SocketAddr,
    /// Keep the logs in this directory; by default they are deleted at the end
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Stop after this duration; by default the demo runs until Ctrl-C
    #[arg(long, value_name = "DURATION")]
    pub duration: Option<Span>,
    /// Script with the faults of the simulated platform
    #[arg(long, value_name = "FILE")]
    pub script: Option<PathBuf>,
    /// Random seed; the same seed gives the same events and the same faults
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

#[derive(Debug, Args)]
pub struct SimulateArgs {
    /// Address of the simulated platform
    #[arg(long, value_name = "ADDR")]
    pub listen: SocketAddr,
    /// Script with the faults of the simulated platform
    #[arg(long, value_name = "FILE")]
    pub script: Option<PathBuf>,
    /// Events per second
    #[arg(long, value_name = "N", default_value = "20", value_parser = rate)]
    pub rate: f64,
    /// Lifetime of a token
    #[arg(long, value_name = "DURATION", default_value = "600s")]
    pub token_ttl: Span,
    /// Random seed; the same seed gives the same events and the same faults
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

/// The maximum rate of the simulator in events per second.
const RATE_MAX: f64 = 100_000.0;

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| *rate > 0.0 && *rate <= RATE_MAX);
    rate.ok_or_else(|| format!("expected a number above 0, at most {RATE_MAX}"))
}

/// The exit status of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: done.
    Done,
    /// 1: failed at run time.
    Failed,
    /// 2: bad usage or configuration.
    BadUsage,
    /// 3: a remote refused.
    Refused,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::BadUsage => 2,
            Exit::Refused => 3,
        })
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error("the configuration is invalid")]
    Configuration(#[from] Findings),
    #[error("no token was issued")]
    Token(#[from] SignError),
    #[error("{0}")]
    Refused(String),
    #[error("could not write the output")]
    Output(#[from] io::Error),
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

impl CliError {
    /// The exit status. A closed output pipe is not a failure.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Configuration(_) | Self::Token(_) => Exit::BadUsage,
            Self::Refused(_) => Exit::Refused,
            Self::Output(error) if error.kind() == ErrorKind::BrokenPipe => Exit::Done,
            Self::Output(_) | Self::Failed(_) => Exit::Failed,
        }
    }

    /// Writes the error, one cause per line. Writes nothing if the exit status is [`Exit::Done`].
    pub fn report(&self, out: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Configuration(findings) => writeln!(out, "{findings}"),
            Self::Output(_) if self.exit() == Exit::Done => Ok(()),
            Self::Token(_) | Self::Refused(_) | Self::Output(_) | Self::Failed(_) => causes(self, out),
        }
    }
}

/// Writes the error and its chain of causes.
fn causes(error: &(dyn std::error::Error + 'static), out: &mut impl Write) -> io::Result<()> {
    for (index, text) in texts(error).iter().enumerate() {
        let label = if index == 0 { "error" } else { "  because" };
        writeln!(out, "{label}: {text}")?;
    }
    Ok(())
}

/// The log filter of the daemon. An invalid part of it is reported and ignored.
fn log_filter(environment: &Environment) -> Option<&str> {
    environment.get("TRUNKLINE_LOG").or(environment.get("RUST_LOG"))
}

/// Returns when the user presses Ctrl-C.
pub async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_command_line_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_of_the_contract_is_understood() {
        for line in [
            "trunkline run --config a.toml --config b.toml",
            "trunkline demo --rate 2.5 --token-ttl 20s --http 127.0.0.1:0 --admin [::1]:0 --data d --duration 1m",
            "trunkline simulate --listen 127.0.0.1:0 --script faults.toml --seed 7",
            "trunkline check --config a.toml --connect",
            "trunkline config schema",
            "trunkline config show --config a.toml",
            "trunkline tail queues --after 4f2a-17 --type v2.users.* --url http://127.0.0.1:8080",
            "trunkline tail queues --since 10m --token x",
            "trunkline tail queues --since 2026-05-04T13:31:49Z",
            "trunkline status --url http://127.0.0.1:9090 --json --watch",
            "trunkline consumer list --url http://127.0.0.1:8080",
            "trunkline consumer show billing --token x",
            "trunkline consumer seek billing queues 4f2a-17",
            "trunkline consumer delete billing",
            "trunkline bench --quick --json --only ingest,latency --data d",
            "trunkline token mint --config a.toml --subject wall --stream queues acme.* --stream * --ttl 10m --filter x",
            "trunkline completions bash",
        ] {
            assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
        }
    }

    #[test]
    fn bad_usage_is_refused_before_anything_starts() {
        for line in [
            "trunkline run",
            "trunkline check",
            "trunkline demo --rate 0",
            "trunkline demo --rate NaN",
            "trunkline demo --token-ttl 20",
            "trunkline bench --only speed",
            "trunkline token mint --config a.toml --subject wall --ttl 10m",
            "trunkline token mint --config a.toml --subject wall --stream Queues --ttl 10m",
            "trunkline token mint --config a.toml --subject wall --stream queues --ttl 0s",
            "trunkline tail Queues",
            "trunkline consumer show Billing",
            "trunkline consumer seek billing queues",
            "trunkline tail queues --after yesterday",
            "trunkline tail queues --since yesterday",
            "trunkline tail queues --after 4f2a-17 --since 10m",
            "trunkline tail queues --url 127.0.0.1:8080",
            "trunkline status --url ws://127.0.0.1:9090",
        ] {
            assert_eq!(parse(line).map(drop).map_err(|error| error.exit_code()), Err(2), "{line}");
        }
    }

    #[test]
    fn a_token_given_on_the_command_line_is_not_shown() {
        let Ok(cli) = parse("trunkline tail queues --token hunter2") else { panic!("rejected") };
        assert!(!format!("{cli:?}").contains("hunter2"));
    }

    #[test]
    fn a_failure_prints_one_cause_per_line() {
        let inner = anyhow::anyhow!("connection refused").context("could not reach the daemon");
        let (mut text, failure) = (Vec::new(), CliError::from(inner));
        failure.report(&mut text).unwrap();
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "error: could not reach the daemon\n  because: connection refused\n"
        );
        assert_eq!(failure.exit(), Exit::Failed);
    }

    #[test]
    fn a_closed_output_pipe_is_no_failure() {
        let (mut text, failure) = (Vec::new(), CliError::from(io::Error::from(ErrorKind::BrokenPipe)));
        failure.report(&mut text).unwrap();
        assert!(text.is_empty());
        assert_eq!(failure.exit(), Exit::Done);
        assert_eq!(CliError::from(io::Error::from(ErrorKind::StorageFull)).exit(), Exit::Failed);
    }
}
