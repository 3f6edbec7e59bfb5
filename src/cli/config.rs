//! `trunkline config`: prints the schema, or the effective configuration without its secrets.

use std::{io::Write, path::PathBuf};

use clap::{Args, Subcommand};

use crate::config::{self, Environment};

use super::CliError;

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the JSON Schema of a configuration file
    Schema,
    /// Print every effective key with its value and the source of the value
    Show(ShowArgs),
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Configuration file; repeatable, later files override earlier ones key by key
    #[arg(long, value_name = "FILE", required = true)]
    pub config: Vec<PathBuf>,
}

/// Writes the schema or the effective configuration.
pub fn run(command: &ConfigCommand, environment: &Environment, out: &mut impl Write) -> Result<(), CliError> {
    match command {
        ConfigCommand::Schema => writeln!(out, "{:#}", config::schema())?,
        ConfigCommand::Show(args) => out.write_all(config::effective(&args.config, environment)?.as_bytes())?,
    }
    Ok(())
}
