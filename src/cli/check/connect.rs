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
    app::{Trial, try_store},
    auth::AccountStatus,
    cli::Failure,
    clock,
    config::Config,
    upstream::StreamStatus,
};

/// An account or stream that is not there by then is told as failed.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Tries it and writes a line for each part. Refused when any part failed.
pub(super) async fn run(config: Config, out: &mut impl Write) -> Result<(), Failure> {
    let mut failed = 0;
    let store = try_store(&config).await;
    failed += line(out, "store", store.map_err(|error| format!("{error:#}")))?;
    let trial = Trial::start(config).await?;
    let until = clock::now() + PATIENCE;
    let (accounts, streams) = wait(&trial, until).await;
    for (name, account) in accounts {
        failed += line(out, &format!("account {name}"), verdict_of_account(&account))?;
    }
    for (name, stream) in streams {
        failed += line(out, &format!("stream {name}"), verdict_of_stream(&stream))?;
    }
    trial.end().await?;
    if failed > 0 {
        return Err(Failure::Refused(format!("{failed} of the parts could not be reached")));
    }
    Ok(())
}

async fn wait(trial: &Trial, until: Instant) -> (BTreeMap<String, AccountStatus>, BTreeMap<String, StreamStatus>) {
    loop {
        let accounts = trial.accounts();
        let streams = trial.streams();
        let decided = accounts.iter().all(|account| account.state == "valid" || account.state == "rejected")
            && streams.iter().all(|stream| stream.state == "live" || stream.state == "failed");
        if decided || clock::now() >= until {
            let accounts = accounts.into_iter().map(|account| (account.account.to_string(), account)).collect();
            let streams = streams.into_iter().map(|stream| (stream.stream.to_string(), stream)).collect();
            return (accounts, streams);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn verdict_of_account(account: &AccountStatus) -> Result<String, String> {
    if account.state == "valid" {
        let life = account.remaining_seconds.map(|seconds| format!(", {seconds:.0} s left"));
        return Ok(format!("has a token{}", life.unwrap_or_default()));
    }
    Err(account.last_error.clone().unwrap_or_else(|| format!("no token within {PATIENCE:?}")))
}

fn verdict_of_stream(stream: &StreamStatus) -> Result<String, String> {
    if stream.state != "live" {
        return Err(stream.last_error.clone().unwrap_or_else(|| format!("not live within {PATIENCE:?}")));
    }
    match stream.refused_topics.as_slice() {
        [] => Ok("opened and closed".to_owned()),
        refused => Err(format!("opened, but topics are refused: {}", refused.join("; "))),
    }
}

fn line(out: &mut impl Write, part: &str, verdict: Result<String, String>) -> std::io::Result<usize> {
    match verdict {
        Ok(good) => writeln!(out, "ok      {part}: {good}").map(|()| 0),
        Err(bad) => writeln!(out, "failed  {part}: {bad}").map(|()| 1),
    }
}
