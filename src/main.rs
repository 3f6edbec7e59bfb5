//! Arguments in, exit status out. Everything else is the library's.

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
};

use clap::Parser;
use trunkline::{
    cli::{self, Cli, Command, Exit, Failure},
    config::Environment,
};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return end(&Failure::Output(error)),
    };
    trunkline::app::install_crypto();
    match runtime.block_on(run(command)) {
        Ok(()) => Exit::Done.into(),
        Err(failure) => end(&failure),
    }
}

async fn run(command: Command) -> Result<(), Failure> {
    let environment = Environment::of_process();
    let out = &mut std::io::stdout().lock();
    match command {
        Command::Run(args) => cli::run::run(&args, &environment).await,
        Command::Demo(args) => cli::demo::run(&args, &environment, out).await,
        Command::Simulate(args) => cli::simulate::run(&args, out).await,
        Command::Check(args) => cli::check::run(&args, &environment, out).await,
        Command::Config(command) => cli::config::run(&command, &environment, out),
        Command::Tail(args) => {
            let style = cli::tail::Style::of(&std::io::stdout(), &environment);
            cli::tail::run(&args, style, out, &mut std::io::stderr(), cli::interrupted()).await
        }
        Command::Status(args) => {
            let terminal = std::io::stdout().is_terminal();
            cli::status::run(&args, terminal, out, cli::interrupted()).await
        }
        Command::Bench(args) => cli::bench::run(&args, out, &mut std::io::stderr()),
        Command::Completions(args) => Ok(cli::completions::run(&args, out)?),
    }
}

/// Says why on standard error; there is nobody to tell if that fails.
fn end(failure: &Failure) -> ExitCode {
    let mut text = Vec::new();
    if failure.report(&mut text).and_then(|()| std::io::stderr().write_all(&text)).is_err() {
        return Exit::Failed.into();
    }
    failure.exit().into()
}
