//! Parses the arguments, runs the command and returns its exit status.

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use trunkline::{
    cli::{self, Cli, CliCommand, CliError, Exit},
    config::Environment,
};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Timeout for the error message, because standard error may be a pipe that is not read.
const LAST_WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// Timeout for blocking threads at the end of the process.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return exit_with(&CliError::Output(error)),
    };
    trunkline::app::install_crypto();
    let outcome = runtime.block_on(run(command));
    // A thread that is blocked by a disk must not prevent the exit.
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    match outcome {
        Ok(()) => Exit::Done.into(),
        Err(failure) => exit_with(&failure),
    }
}

async fn run(command: CliCommand) -> Result<(), CliError> {
    let environment = Environment::of_process();
    let out = &mut std::io::stdout().lock();
    match command {
        CliCommand::Run(args) => cli::run::run(&args, &environment).await,
        CliCommand::Demo(args) => cli::demo::run(&args, &environment, out).await,
        CliCommand::Simulate(args) => cli::simulate::run(&args, out).await,
        CliCommand::Check(args) => cli::check::run(&args, &environment, out).await,
        CliCommand::Config(command) => cli::config::run(&command, &environment, out),
        CliCommand::Tail(args) => {
            let style = cli::tail::Style::of(&std::io::stdout(), &environment);
            cli::tail::run(&args, style, out, &mut std::io::stderr(), cli::interrupted()).await
        }
        CliCommand::Status(args) => {
            let terminal = std::io::stdout().is_terminal();
            cli::status::run(&args, terminal, out, cli::interrupted()).await
        }
        CliCommand::Consumer(command) => cli::consumer::run(&command, out).await,
        CliCommand::Bench(args) => cli::bench::run(&args, out, &mut std::io::stderr()),
        CliCommand::Token(command) => cli::token::run(&command, &environment, out).await,
        CliCommand::Completions(args) => Ok(cli::completions::run(&args, out)?),
    }
}

/// Writes the error to standard error, within [`LAST_WRITE_TIMEOUT`].
fn exit_with(failure: &CliError) -> ExitCode {
    let mut text = Vec::new();
    if failure.report(&mut text).is_err() {
        return Exit::Failed.into();
    }
    let (done, written) = std::sync::mpsc::sync_channel(1);
    let write = move || done.send(std::io::stderr().write_all(&text));
    let writer = std::thread::Builder::new().name("exit message".to_owned()).spawn(write);
    let outcome = writer.ok().and_then(|_| written.recv_timeout(LAST_WRITE_TIMEOUT).ok());
    if outcome.is_some_and(|written| written.is_ok()) { failure.exit().into() } else { Exit::Failed.into() }
}
