//! `trunkline token`: issues tokens for consumers with the key of the configuration.
//!
//! It prints the token alone, so that a script can use the output.

use std::{io::Write, path::PathBuf, time::Duration};

use clap::{Args, Subcommand};

use super::CliError;
use crate::{
    clock,
    config::{self, Environment},
    downstream::server::access::{GrantRequest, TokenSigner},
    model::{Span, StreamPattern, Subject},
};

/// Tokens live between these times. The longest is a year, because a token is only revoked with its subject.
const TTL_MIN: Duration = Duration::from_secs(1);
const TTL_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Print a token for a consumer, signed with the configured key
    Mint(MintArgs),
}

#[derive(Debug, Args)]
pub struct MintArgs {
    /// Configuration file with `[http.auth]`; repeatable, later files override earlier ones key by key
    #[arg(long, value_name = "FILE", required = true)]
    pub config: Vec<PathBuf>,
    /// The consumer that the token is for
    #[arg(long, value_name = "NAME")]
    pub subject: Subject,
    /// A stream that the token permits to read, or a pattern such as `acme.*`; repeatable
    #[arg(long = "stream", value_name = "NAME", required = true, num_args = 1..)]
    pub streams: Vec<StreamPattern>,
    /// Lifetime of the token
    #[arg(long, value_name = "DURATION", value_parser = ttl)]
    pub ttl: Span,
    /// An expression that limits the events of the consumer
    #[arg(long, value_name = "EXPR")]
    pub filter: Option<String>,
}

fn ttl(text: &str) -> Result<Span, String> {
    let span: Span = text.parse().map_err(|error: crate::model::SettingError| error.to_string())?;
    let permitted = (TTL_MIN..=TTL_MAX).contains(&span.0);
    permitted.then_some(span).ok_or_else(|| format!("expected a duration from {} to {}", Span(TTL_MIN), Span(TTL_MAX)))
}

/// Writes a new token.
pub async fn run(command: &TokenCommand, environment: &Environment, out: &mut impl Write) -> Result<(), CliError> {
    let TokenCommand::Mint(args) = command;
    let settings = config::consumer_auth(&args.config, environment)?;
    let request = GrantRequest {
        subject: args.subject.clone(),
        streams: args.streams.clone(),
        ttl: args.ttl.0,
        filter: args.filter.clone(),
    };
    let token = TokenSigner::read(&settings).await?.sign(&request, clock::wall())?;
    Ok(writeln!(out, "{token}")?)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::{
        cli::Exit,
        downstream::server::access::Verifier,
        network::{self, NetworkPolicy, Resolver, TrustedRoots},
        tasks::Tasks,
    };

    async fn mint(folder: &Path, section: &str, filter: Option<&str>) -> Result<String, CliError> {
        let config = folder.join("a.toml");
        fs::write(&config, section.replace("FOLDER", folder.to_str().unwrap())).unwrap();
        let args = MintArgs {
            config: vec![config],
            subject: "wall".parse().unwrap(),
            streams: vec!["acme.*".parse().unwrap()],
            ttl: Span(Duration::from_secs(60)),
            filter: filter.map(str::to_owned),
        };
        let mut out = Vec::new();
        run(&TokenCommand::Mint(args), &Environment::default(), &mut out).await?;
        Ok(String::from_utf8(out).unwrap())
    }

    const HMAC: &str = "[http.auth]\njwt = { hmac = { file = \"FOLDER/secret\" } }\naudience = \"t\"\n";

    #[tokio::test]
    async fn the_output_is_a_token_that_the_daemon_accepts() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("secret"), "s".repeat(32)).unwrap();
        let line = mint(folder.path(), HMAC, Some("a")).await.unwrap();
        let token = line.strip_suffix('\n').unwrap();
        let settings = config::consumer_auth(&[folder.path().join("a.toml")], &Environment::default()).unwrap();
        let trust = TrustedRoots::of(rustls::RootCertStore::empty()).unwrap();
        let network = NetworkPolicy::new(network::Settings::default(), trust, Resolver::default());
        let verifier = Verifier::start(&settings, &network, &mut Tasks::new("access")).await.unwrap();
        let grant = verifier.verify(token, clock::wall()).unwrap();
        assert!(grant.may_read(&"acme.queues".parse().unwrap()) && !grant.may_read(&"queues".parse().unwrap()));
        assert_eq!(grant.filter.as_deref(), Some("a"));
    }

    #[tokio::test]
    async fn what_cannot_be_signed_is_bad_usage() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("secret"), "s".repeat(32)).unwrap();
        for (section, filter, expected) in [
            ("[http]\n", None, "http.auth: is required"),
            ("[http.auth]\njwt = { jwks_url = \"https://a.test/keys\" }", None, "belong to the issuer"),
            ("[http.auth]\njwt = { hmac = { file = \"FOLDER/none\" } }", None, "none cannot be read"),
            (HMAC, Some(" "), "the claim filter is invalid"),
        ] {
            let error = mint(folder.path(), section, filter).await.unwrap_err();
            let mut text = Vec::new();
            error.report(&mut text).unwrap();
            let text = String::from_utf8(text).unwrap();
            assert!(error.exit() == Exit::BadUsage && text.contains(expected), "{text}");
        }
    }

    #[test]
    fn the_lifetime_of_a_token_has_bounds() {
        for (text, permitted) in [("10m", true), ("366d", true), ("0s", false), ("367d", false), ("60", false)] {
            assert_eq!(ttl(text).is_ok(), permitted, "{text}");
        }
    }
}
