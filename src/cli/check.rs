//! `trunkline check`: every mistake of a configuration, or a report of what it promises.
//!
//! It leaves nothing changed, and opens connections only when asked to (`--connect`).

mod connect;

use std::{
    io::{self, Write},
    path::PathBuf,
};

use clap::Args;

use crate::{
    config::{self, Config, Environment},
    telemetry::logs,
};

use super::Failure;

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Configuration file; of several, later ones win key by key
    #[arg(long, value_name = "FILE", required = true)]
    pub config: Vec<PathBuf>,
    /// Also authenticate every account, and open and close every stream
    #[arg(long)]
    pub connect: bool,
}

/// Writes the report of a good configuration, and tries it on the real platform where that is wanted.
pub async fn run(args: &CheckArgs, environment: &Environment, out: &mut impl Write) -> Result<(), Failure> {
    let config = config::load(&args.config, environment)?;
    let of_machine = config::fits(&config)?;
    if let Some(complaint) = super::log_filter(environment).and_then(logs::complaint) {
        writeln!(out, "warning: {complaint}")?;
    }
    for warning in config.warnings.iter().chain(&of_machine) {
        writeln!(out, "warning: {warning}")?;
    }
    report(&config, out)?;
    if args.connect {
        writeln!(out)?;
        connect::run(config, out).await?;
    }
    Ok(())
}

fn report(config: &Config, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "The configuration is good: {}, {}.", counted(config.streams.len(), "stream"), {
        counted(config.accounts.len(), "account")
    })?;
    writeln!(out, "Consumers connect to {}, operators to {}.", config.http.listen, config.admin.listen)?;
    let retention = &config.store.retention;
    writeln!(
        out,
        "Every entry is {} before a consumer sees it; a log keeps {} entries, {} or {}.",
        safe(&config.store),
        retention.events,
        crate::model::Span(retention.age),
        crate::model::Size(retention.bytes),
    )?;
    writeln!(out, "A consumer sees every entry at least once and in order; a repeated one has the same id.")?;
    writeln!(out, "\nthe store  ({})", kind(&config.store))?;
    writeln!(out, "  can be lost       {}", config.store.can_lose())?;
    for (name, stream) in &config.streams {
        let guarantee = stream.guarantee();
        writeln!(out, "\n{name}  ({} of {})", stream.connector.name(), stream.account)?;
        writeln!(out, "  can be lost       {}", guarantee.lost)?;
        writeln!(out, "  can be doubled    {}", guarantee.doubled)?;
        writeln!(out, "  can be reordered  {}", guarantee.reordered)?;
    }
    Ok(())
}

/// Where an entry is safe.
fn safe(store: &config::StoreConfig) -> String {
    match &store.kind {
        config::StoreKind::Embedded => format!("on the disk, in {},", store.path.display()),
        config::StoreKind::Redis(redis) => match redis.durability {
            config::Durability::Written => format!("in {}", redis.address),
            config::Durability::Replicated => format!("in {} and on a replica of it", redis.address),
        },
    }
}

/// What decides how much a store can lose.
fn kind(store: &config::StoreConfig) -> &'static str {
    match &store.kind {
        config::StoreKind::Embedded => "embedded",
        config::StoreKind::Redis(redis) => match redis.durability {
            config::Durability::Written => "redis, durability written",
            config::Durability::Replicated => "redis, durability replicated",
        },
    }
}

fn counted(count: usize, word: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {word}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Exit;

    async fn check(file: &str) -> (Result<(), Failure>, String) {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(file);
        let environment = [("GENESYS_CLIENT_ID", "id"), ("GENESYS_CLIENT_SECRET", "hunter2")].into_iter().collect();
        let mut out = Vec::new();
        let outcome = run(&CheckArgs { config: vec![path], connect: false }, &environment, &mut out).await;
        (outcome, String::from_utf8(out).unwrap())
    }

    #[tokio::test]
    async fn a_good_configuration_is_reported_with_what_it_promises() {
        let (outcome, report) = check("config/genesys-cloud.toml").await;
        assert!(outcome.is_ok());
        assert!(report.starts_with("The configuration is good: 2 streams, 1 account.\n"), "{report}");
        assert_eq!(report.matches("can be lost").count(), 3, "of the store and of each stream: {report}");
        assert!(!report.contains("hunter2"));
    }

    #[tokio::test]
    async fn what_a_durability_can_lose_is_said() {
        let good = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/genesys-cloud.toml")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for (store, head, words) in [
            ("", "the store  (embedded)", "nothing that was shown, as long as the disk"),
            ("durability = \"written\"", "the store  (redis, durability written)", "consumers may have seen it"),
            ("durability = \"replicated\"", "the store  (redis, durability replicated)", "while none answers"),
        ] {
            let redis = "[store]\nkind = \"redis\"\nurl = \"rediss://:hunter2@redis.test\"\n";
            let store = if store.is_empty() { String::new() } else { format!("{redis}{store}\n") };
            let path = folder.path().join("trunkline.toml");
            std::fs::write(&path, format!("{good}\n{store}")).unwrap();
            let environment = [("GENESYS_CLIENT_ID", "id"), ("GENESYS_CLIENT_SECRET", "secret")].into_iter().collect();
            let mut out = Vec::new();
            run(&CheckArgs { config: vec![path], connect: false }, &environment, &mut out).await.unwrap();
            let report = String::from_utf8(out).unwrap();
            let (_, said) = report.split_once(head).unwrap_or_else(|| panic!("{report}"));
            assert!(said.lines().nth(1).unwrap().contains(words), "{report}");
            assert!(!report.contains("hunter2"), "{report}");
        }
    }

    #[tokio::test]
    async fn a_log_filter_that_cannot_be_used_is_a_warning_since_the_daemon_runs_without_it() {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("config/genesys-cloud.toml");
        let variables = [("GENESYS_CLIENT_ID", "id"), ("GENESYS_CLIENT_SECRET", "x"), ("TRUNKLINE_LOG", "verbose")];
        let args = CheckArgs { config: vec![path], connect: false };
        let mut out = Vec::new();
        run(&args, &variables.into_iter().collect(), &mut out).await.unwrap();
        let out = String::from_utf8(out).unwrap();
        assert!(out.contains("warning: the log filter \"verbose\" is not used: unknown level \"verbose\""), "{out}");
        assert!(out.contains("; info is used\n"), "{out}");
    }

    #[tokio::test]
    async fn a_wrong_one_is_bad_usage_and_says_nothing_on_the_output() {
        let (outcome, report) = check("tests/golden/config/several-mistakes-at-once.toml").await;
        let failure = outcome.unwrap_err();
        assert_eq!((failure.exit(), report.as_str()), (Exit::Misused, ""));
        let mut told = Vec::new();
        failure.report(&mut told).unwrap();
        assert!(String::from_utf8(told).unwrap().lines().count() > 10);
    }
}
