//! `trunkline check --connect`: tests a configuration against the platform, with the same parts as `run`.
//!
//! Every account requests a token, every stream opens a session and closes it. Received events go into a log in a
//! temporary folder; the configured store is only opened and closed.

use std::{
    collections::BTreeMap,
    io::Write,
    time::{Duration, Instant},
};

use crate::{
    app::{SnapshotCheck, Trial, check_store},
    auth::AccountStatus,
    cli::CliError,
    clock,
    config::Config,
    model::{AccountName, StreamName},
    protocol::stream::StreamState,
    telemetry::chain,
    upstream::StreamStatus,
};

/// An account or stream without success or error in this time counts as failed.
const SILENT_WAIT_MAX: Duration = Duration::from_secs(20);
/// How long to wait for an account or stream after a failure: enough for three attempts.
const FAILING_WAIT_MAX: Duration = Duration::from_secs(5);
/// How often the states are read.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Tests each part and writes one line for it.
///
/// # Errors
///
/// [`CliError::Refused`] if any part failed.
pub(super) async fn run(config: Config, out: &mut impl Write) -> Result<(), CliError> {
    let mut failed = store(&config, out).await?;
    let trial = Trial::start(config).await?;
    let (accounts, streams) = wait(&trial, clock::now()).await;
    for (name, account) in &accounts {
        failed += line(out, &format!("account {name}"), verdict_of_account(account))?;
    }
    for (name, stream) in &streams {
        failed += line(out, &format!("stream {name}"), verdict_of_stream(stream, accounts.get(&stream.account)))?;
        if let Some(tried) = trial.snapshot(name).await {
            failed += line(out, &format!("snapshot of {name}"), verdict_of_snapshot(&stream.account, tried))?;
        }
    }
    trial.end().await?;
    if failed > 0 {
        return Err(CliError::Refused(format!("{failed} of the checks above failed")));
    }
    Ok(())
}

/// Opens and closes the store, and writes the same warnings as `run`.
async fn store(config: &Config, out: &mut impl Write) -> std::io::Result<usize> {
    match check_store(config).await {
        Ok(tried) => {
            for warning in &tried.warnings {
                writeln!(out, "warning: store: {warning}")?;
            }
            line(out, "store", ConnectVerdict::Good(tried.summary))
        }
        Err(error) => line(out, "store", ConnectVerdict::Failed(chain(error.as_ref()))),
    }
}

type ConnectStatuses = (BTreeMap<AccountName, AccountStatus>, BTreeMap<StreamName, StreamStatus>);

async fn wait(trial: &Trial, started_at: Instant) -> ConnectStatuses {
    loop {
        let accounts = trial.accounts().into_iter().map(|account| (account.account.clone(), account)).collect();
        let streams = trial.streams().into_iter().map(|stream| (stream.stream.clone(), stream)).collect();
        if clock::now() >= started_at + wait_max(&accounts, &streams) {
            return (accounts, streams);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// The progress of an account or stream during the test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConnectProgress {
    /// It works, or failed permanently.
    Decided,
    /// It failed and retries.
    Failing,
    /// No result yet.
    Silent,
}

/// How long to wait for the slowest part.
fn wait_max(accounts: &BTreeMap<AccountName, AccountStatus>, streams: &BTreeMap<StreamName, StreamStatus>) -> Duration {
    let of_accounts = accounts.values().map(progress_of_account);
    let of_streams = streams.values().map(|stream| progress_of_stream(stream, accounts.get(&stream.account)));
    let slowest = of_accounts.chain(of_streams).map(|progress| match progress {
        ConnectProgress::Decided => Duration::ZERO,
        ConnectProgress::Failing => FAILING_WAIT_MAX,
        ConnectProgress::Silent => SILENT_WAIT_MAX,
    });
    slowest.max().unwrap_or_default()
}

fn progress_of_account(account: &AccountStatus) -> ConnectProgress {
    match (account.state, &account.last_error) {
        ("valid" | "degraded" | "rejected", _) => ConnectProgress::Decided,
        (_, Some(_)) => ConnectProgress::Failing,
        (_, None) => ConnectProgress::Silent,
    }
}

/// A stream whose account has no token has the progress of the account.
fn progress_of_stream(stream: &StreamStatus, account: Option<&AccountStatus>) -> ConnectProgress {
    match (stream.state, &stream.last_error, account) {
        (StreamState::Live | StreamState::Degraded | StreamState::Failed, _, _) => ConnectProgress::Decided,
        (_, Some(_), _) => ConnectProgress::Failing,
        (_, None, Some(account)) if !has_token(account) => progress_of_account(account),
        (_, None, _) => ConnectProgress::Silent,
    }
}

/// A degraded account also has a token.
fn has_token(account: &AccountStatus) -> bool {
    matches!(account.state, "valid" | "degraded")
}

/// The result of one check.
#[derive(Debug, PartialEq, Eq)]
enum ConnectVerdict {
    Good(String),
    Failed(String),
    /// Not tested, because another part failed.
    Skipped(String),
}

fn verdict_of_account(account: &AccountStatus) -> ConnectVerdict {
    if has_token(account) {
        let remaining = account.remaining_seconds.map(|seconds| format!(", {seconds:.0} s remaining"));
        return ConnectVerdict::Good(format!("token received{}", remaining.unwrap_or_default()));
    }
    ConnectVerdict::Failed(account.last_error.clone().unwrap_or_else(|| "timeout: no token".to_owned()))
}

fn verdict_of_stream(stream: &StreamStatus, account: Option<&AccountStatus>) -> ConnectVerdict {
    if !matches!(stream.state, StreamState::Live | StreamState::Degraded) {
        let why = || stream.last_error.clone().unwrap_or_else(|| "timeout: not live".to_owned());
        return if account.is_some_and(has_token) { ConnectVerdict::Failed(why()) } else { no_token(&stream.account) };
    }
    match stream.refused_topics.as_slice() {
        [] => ConnectVerdict::Good("opened and closed".to_owned()),
        refused => ConnectVerdict::Failed(format!("opened, but topics are rejected: {}", refused.join("; "))),
    }
}

fn verdict_of_snapshot(account: &AccountName, checked: SnapshotCheck) -> ConnectVerdict {
    match checked {
        SnapshotCheck::NoToken => no_token(account),
        SnapshotCheck::Answered(good) => ConnectVerdict::Good(good),
        SnapshotCheck::Failed(why) => ConnectVerdict::Failed(why),
    }
}

fn no_token(account: &AccountName) -> ConnectVerdict {
    ConnectVerdict::Skipped(format!("account {account} has no token"))
}

/// Writes the line of one check; returns 1 if it failed, else 0.
fn line(out: &mut impl Write, part: &str, verdict: ConnectVerdict) -> std::io::Result<usize> {
    match verdict {
        ConnectVerdict::Good(good) => writeln!(out, "ok      {part}: {good}").map(|()| 0),
        ConnectVerdict::Failed(bad) => writeln!(out, "failed  {part}: {bad}").map(|()| 1),
        ConnectVerdict::Skipped(why) => writeln!(out, "skipped {part}: {why}").map(|()| 0),
    }
}
