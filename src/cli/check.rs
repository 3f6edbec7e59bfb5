//! `trunkline check`: reports all errors of a configuration, or its delivery guarantees.
//!
//! It changes nothing, and opens connections only with `--connect`.

mod connect;

use std::{
    io::{self, Write},
    path::PathBuf,
};

use clap::Args;

use crate::{
    config::{self, Config, Environment},
    store::redis::Durability,
    telemetry::logs,
};

use super::CliError;

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Configuration file; repeatable, later files override earlier ones key by key
    #[arg(long, value_name = "FILE", required = true)]
    pub config: Vec<PathBuf>,
    /// Also open the store, authenticate every account, and open and close every stream
    #[arg(long)]
    pub connect: bool,
}

/// Columns of a terminal line.
const WIDTH: usize = 80;

/// Writes the report of a valid configuration, and with `--connect` tests it against the platform.
pub async fn run(args: &CheckArgs, environment: &Environment, out: &mut impl Write) -> Result<(), CliError> {
    let config = config::load(&args.config, environment)?;
    let host_warnings = config::check_host(&config)?;
    if let Some(error) = super::log_filter(environment).and_then(logs::filter_error) {
        writeln!(out, "warning: {error}")?;
    }
    for warning in config.warnings.iter().chain(&host_warnings) {
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
    writeln!(out, "The configuration is valid: {}, {}.", counted(config.streams.len(), "stream"), {
        counted(config.accounts.len(), "account")
    })?;
    writeln!(out, "Listeners: consumers {}, admin {}.", config.http.listen.address(), config.admin.listen.address())?;
    let retention = &config.store.retention;
    let (age, bytes) = (crate::model::Span(retention.age), crate::model::Size(retention.bytes));
    let storage = durability_text(&config.store);
    writeln!(out, "{}", wrapped(&format!("Every entry is stored {storage} before a consumer sees it."), ""))?;
    let limits = format!("{} entries, {age} or {bytes}, whichever is reached first", retention.events);
    writeln!(out, "{}", wrapped(&format!("Retention per stream: {limits}."), ""))?;
    let delivery = "A consumer receives every entry at least once and in order; a repeated entry has the same id.";
    writeln!(out, "{}", wrapped(delivery, ""))?;
    writeln!(out, "\nstore  ({})", store_kind_text(&config.store))?;
    write_guarantee(out, "may be lost", &config.store.possible_loss())?;
    for (name, stream) in &config.streams {
        let guarantee = stream.guarantee();
        writeln!(out, "\nstream {name}  ({}, account {})", stream.connector.name(), stream.account)?;
        write_guarantee(out, "may be lost", &guarantee.lost)?;
        write_guarantee(out, "may be duplicated", &guarantee.duplicated)?;
        write_guarantee(out, "may be reordered", &guarantee.reordered)?;
    }
    Ok(())
}

/// Writes one guarantee as two columns: the label, and the text below each other.
fn write_guarantee(out: &mut impl Write, label: &str, text: &str) -> io::Result<()> {
    writeln!(out, "{}", wrapped(&format!("  {label:<19}{text}"), &" ".repeat(21)))
}

/// The text in lines of at most [`WIDTH`] columns, if its words fit. Every line after the first starts with `indent`.
fn wrapped(text: &str, indent: &str) -> String {
    let (mut lines, mut column) = (String::new(), 0);
    for word in text.split_inclusive(' ') {
        if column > indent.len() && column + word.trim_end().chars().count() > WIDTH {
            lines.truncate(lines.trim_end().len());
            lines.push('\n');
            lines.push_str(indent);
            column = indent.len();
        }
        lines.push_str(word);
        column += word.chars().count();
    }
    lines
}

/// Where an entry is stored before consumers see it.
fn durability_text(store: &config::StoreConfig) -> String {
    match &store.kind {
        config::StoreBackend::Embedded => format!("on disk in {}", store.path.display()),
        config::StoreBackend::Redis(redis) => match redis.durability {
            Durability::Written => format!("in {}", redis.address),
            Durability::Replicated => format!("in {} and on one of its replicas", redis.address),
        },
    }
}

/// The kind of store and its durability, which decide what it may lose.
fn store_kind_text(store: &config::StoreConfig) -> &'static str {
    match &store.kind {
        config::StoreBackend::Embedded => "embedded",
        config::StoreBackend::Redis(redis) => match redis.durability {
            Durability::Written => "redis, durability written",
            Durability::Replicated => "redis, durability replicated",
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

    async fn check(file: &str) -> (Result<(), CliError>, String) {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(file);
        let environment = [("GENESYS_CLIENT_ID", "id"), ("GENESYS_CLIENT_SECRET", "hunter2")].into_iter().collect();
        let mut out = Vec::new();
        let outcome = run(&CheckArgs { config: vec![path], connect: false }, &environment, &mut out).await;
        (outcome, String::from_utf8(out).unwrap())
    }

    #[tokio::test]
    async fn a_valid_configuration_is_reported_with_its_guarantees() {
        let (outcome, report) = check("config/genesys-cloud.toml").await;
        assert!(outcome.is_ok());
        assert!(report.starts_with("The configuration is valid: 2 streams, 1 account.\n"), "{report}");
        assert_eq!(report.matches("may be lost").count(), 3, "one for the store and one per stream: {report}");
        assert!(report.lines().all(|line| line.chars().count() <= WIDTH), "{report}");
        assert!(!report.contains("hunter2"));
    }

    #[tokio::test]
    async fn possible_losses_of_a_durability_are_reported() {
        let good = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/genesys-cloud.toml")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for (store, head, words) in [
            ("", "store  (embedded)", "nothing that consumers saw, unless the disk fails"),
            ("durability = \"written\"", "store  (redis, durability written)", "consumers may have seen them"),
            ("durability = \"replicated\"", "store  (redis, durability replicated)", "while no Redis replica answers"),
        ] {
            let redis = "[store]\nkind = \"redis\"\nurl = \"rediss://:hunter2@redis.test\"\n";
            let store = if store.is_empty() { String::new() } else { format!("{redis}{store}\n") };
            let path = folder.path().join("trunkline.toml");
            std::fs::write(&path, format!("{good}\n{store}")).unwrap();
            let environment = [("GENESYS_CLIENT_ID", "id"), ("GENESYS_CLIENT_SECRET", "secret")].into_iter().collect();
            let mut out = Vec::new();
            run(&CheckArgs { config: vec![path], connect: false }, &environment, &mut out).await.unwrap();
            let report = String::from_utf8(out).unwrap();
            let (_, after) = report.split_once(head).unwrap_or_else(|| panic!("{report}"));
            let block = after.split_once("\n\n").unwrap().0;
            assert!(block.split_whitespace().collect::<Vec<_>>().join(" ").contains(words), "{report}");
            assert!(!report.contains("hunter2"), "{report}");
        }
    }

    #[tokio::test]
    async fn an_invalid_log_filter_is_a_warning() {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("config/genesys-cloud.toml");
        let variables = [("GENESYS_CLIENT_ID", "id"), ("GENESYS_CLIENT_SECRET", "x"), ("TRUNKLINE_LOG", "verbose")];
        let args = CheckArgs { config: vec![path], connect: false };
        let mut out = Vec::new();
        run(&args, &variables.into_iter().collect(), &mut out).await.unwrap();
        let out = String::from_utf8(out).unwrap();
        assert!(out.contains("warning: log filter \"verbose\" ignored: unknown level \"verbose\""), "{out}");
        assert!(out.contains("; using info\n"), "{out}");
    }

    #[tokio::test]
    async fn an_invalid_configuration_is_bad_usage_and_prints_nothing_on_stdout() {
        let (outcome, report) = check("tests/golden/config/several-errors-at-once.toml").await;
        let failure = outcome.unwrap_err();
        assert_eq!((failure.exit(), report.as_str()), (Exit::BadUsage, ""));
        let mut stderr = Vec::new();
        failure.report(&mut stderr).unwrap();
        assert!(String::from_utf8(stderr).unwrap().lines().count() > 10);
    }
}
