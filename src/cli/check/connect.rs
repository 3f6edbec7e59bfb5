//! `trunkline check --connect`: tries a configuration on the real platform, with the very parts that `run` uses.
//!
//! Every account gets a token, every stream opens a session and closes it. What is heard meanwhile goes into a log in a
//! temporary folder and away with it: the real store is only opened and closed.

use std::{
    collections::BTreeMap,
    io::Write,
    time::{Duration, Instant},
};

use crate::{
    app::{SnapshotTry, Trial, try_store},
    auth::AccountStatus,
    cli::Failure,
    clock,
    config::Config,
    model::{AccountName, StreamName},
    upstream::StreamStatus,
};

/// An account or stream that is not there by then is told as failed.
const PATIENCE: Duration = Duration::from_secs(20);
/// One that fails again and again is given this long: enough for a second attempt and a third.
const FAILING_PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Tries it and writes a line for each part. Refused when any part failed.
pub(super) async fn run(config: Config, out: &mut impl Write) -> Result<(), Failure> {
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
        return Err(Failure::Refused(format!("{failed} of the parts cannot be used, for the reasons above")));
    }
    Ok(())
}

/// Opens and closes the store, with the same warnings as `run`.
async fn store(config: &Config, out: &mut impl Write) -> std::io::Result<usize> {
    match try_store(config).await {
        Ok(tried) => {
            for warning in &tried.warnings {
                writeln!(out, "warning: store: {warning}")?;
            }
            line(out, "store", Verdict::Good(tried.found))
        }
        Err(error) => line(out, "store", Verdict::Failed(format!("{error:#}"))),
    }
}

type Found = (BTreeMap<AccountName, AccountStatus>, BTreeMap<StreamName, StreamStatus>);

async fn wait(trial: &Trial, began: Instant) -> Found {
    loop {
        let accounts = trial.accounts().into_iter().map(|account| (account.account.clone(), account)).collect();
        let streams = trial.streams().into_iter().map(|stream| (stream.stream.clone(), stream)).collect();
        if clock::now() >= began + patience(&accounts, &streams) {
            return (accounts, streams);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What is known of a part while it is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// It works, or an operator must act.
    Decided,
    /// It failed, and is tried again.
    Failing,
    Silent,
}

/// How long the slowest part may still take.
fn patience(accounts: &BTreeMap<AccountName, AccountStatus>, streams: &BTreeMap<StreamName, StreamStatus>) -> Duration {
    let of_accounts = accounts.values().map(progress_of_account);
    let of_streams = streams.values().map(|stream| progress_of_stream(stream, accounts.get(&stream.account)));
    let slowest = of_accounts.chain(of_streams).map(|progress| match progress {
        Progress::Decided => Duration::ZERO,
        Progress::Failing => FAILING_PATIENCE,
        Progress::Silent => PATIENCE,
    });
    slowest.max().unwrap_or_default()
}

fn progress_of_account(account: &AccountStatus) -> Progress {
    match (account.state, &account.last_error) {
        ("valid" | "degraded" | "rejected", _) => Progress::Decided,
        (_, Some(_)) => Progress::Failing,
        (_, None) => Progress::Silent,
    }
}

/// A stream whose account has no token waits for that, and stands as it does.
fn progress_of_stream(stream: &StreamStatus, account: Option<&AccountStatus>) -> Progress {
    match (stream.state, &stream.last_error, account) {
        ("live" | "degraded" | "failed", _, _) => Progress::Decided,
        (_, Some(_), _) => Progress::Failing,
        (_, None, Some(account)) if !has_token(account) => progress_of_account(account),
        (_, None, _) => Progress::Silent,
    }
}

/// One that is degraded has one, too.
fn has_token(account: &AccountStatus) -> bool {
    matches!(account.state, "valid" | "degraded")
}

/// What came of a part.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Good(String),
    Failed(String),
    /// Not tried, because another part failed.
    Skipped(String),
}

fn verdict_of_account(account: &AccountStatus) -> Verdict {
    if has_token(account) {
        let life = account.remaining_seconds.map(|seconds| format!(", {seconds:.0} s left"));
        return Verdict::Good(format!("has a token{}", life.unwrap_or_default()));
    }
    Verdict::Failed(account.last_error.clone().unwrap_or_else(|| "no token in the time given".to_owned()))
}

fn verdict_of_stream(stream: &StreamStatus, account: Option<&AccountStatus>) -> Verdict {
    if !matches!(stream.state, "live" | "degraded") {
        let why = || stream.last_error.clone().unwrap_or_else(|| "not live in the time given".to_owned());
        return if account.is_some_and(has_token) { Verdict::Failed(why()) } else { no_token(&stream.account) };
    }
    match stream.refused_topics.as_slice() {
        [] => Verdict::Good("opened and closed".to_owned()),
        refused => Verdict::Failed(format!("opened, but topics are not heard: {}", refused.join("; "))),
    }
}

fn verdict_of_snapshot(account: &AccountName, tried: SnapshotTry) -> Verdict {
    match tried {
        SnapshotTry::NoToken => no_token(account),
        SnapshotTry::Answered(good) => Verdict::Good(good),
        SnapshotTry::Failed(why) => Verdict::Failed(why),
    }
}

fn no_token(account: &AccountName) -> Verdict {
    Verdict::Skipped(format!("account {account} has no token"))
}

/// Returns how many parts failed with this one.
fn line(out: &mut impl Write, part: &str, verdict: Verdict) -> std::io::Result<usize> {
    match verdict {
        Verdict::Good(good) => writeln!(out, "ok      {part}: {good}").map(|()| 0),
        Verdict::Failed(bad) => writeln!(out, "failed  {part}: {bad}").map(|()| 1),
        Verdict::Skipped(why) => writeln!(out, "skipped {part}: {why}").map(|()| 0),
    }
}
