//! `trunkline config`: the schema, and the effective configuration without its secrets.

use std::{io::Write, path::PathBuf};

use clap::{Args, Subcommand};

use crate::config::{self, Environment};

use super::CliError;

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the JSON Schema of a configuration file
    Schema,
    /// Print every key that has an effect, its value, and where the value comes from
    Show(ShowArgs),
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Configuration file; of several, later ones win key by key
    #[arg(long, value_name = "FILE", required = true)]
    pub config: Vec<PathBuf>,
}

/// Writes what was asked for.
pub fn run(command: &ConfigCommand, environment: &Environment, out: &mut impl Write) -> Result<(), CliError> {
    match command {
        ConfigCommand::Schema => writeln!(out, "{:#}", config::schema())?,
        ConfigCommand::Show(args) => out.write_all(config::effective(&args.config, environment)?.as_bytes())?,
    }
    Ok(())
}
