//! `trunkline bench`: what the daemon does on this machine, measured from outside over real sockets.
//!
//! The daemon runs as a process of its own, on a core of its own where there are two; this process is its platform and
//! its consumers. Figures are medians of rounds. It refuses to measure inside the daemon: what is not seen from outside
//! is not told.

mod clients;
mod daemon;
mod machine;
mod phases;
mod pipeline;
mod raw_redis;
mod report;
mod server;
mod source;

use std::{fs, io::Write, panic::resume_unwind, path::PathBuf, thread, time::Duration};

use anyhow::Context;
use clap::{Args, ValueEnum};

use self::{
    phases::BenchSetup,
    report::{BenchReport, Conditions},
    server::RedisChoice,
};
use super::CliError;
use crate::app::temporary_folder;

/// How long one thing is measured, and how often.
const SPAN: Duration = Duration::from_secs(5);
const ROUNDS: usize = 3;
const SPAN_QUICK: Duration = Duration::from_secs(2);
const ROUNDS_QUICK: usize = 1;

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// One short round
    #[arg(long)]
    pub quick: bool,
    /// Measure these alone [default: all that can be]
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    pub only: Vec<BenchPhase>,
    /// Keep the stores below this directory while they are measured; the disk decides most figures
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Measure with this Redis, which keeps nothing of it; by default with a redis-server of its own, if one is installed
    #[arg(long, value_name = "URL")]
    pub redis: Option<String>,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchPhase {
    /// From a source that never waits into the durable log
    Ingest,
    /// The store alone
    Append,
    /// To 1,000 subscribers, by WebSocket and by SSE
    Fanout,
    /// From the source over the disk to one subscriber, beside a minimal pipeline
    Latency,
    /// One subscriber that reads everything from the beginning
    Cold,
    /// Many slow streams against one that is as fast as all of them
    Streams,
    /// Memory, with and without subscribers
    Idle,
    /// Into Redis and through it to another replica, beside a minimal loop and a minimal pipeline
    Redis,
}

impl BenchPhase {
    const ALL: [Self; 8] =
        [Self::Ingest, Self::Append, Self::Fanout, Self::Latency, Self::Cold, Self::Streams, Self::Idle, Self::Redis];
}

impl std::fmt::Display for BenchPhase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = self.to_possible_value().expect("no phase is hidden");
        f.write_str(value.get_name())
    }
}

/// Measures, a line of progress at a time, and prints what came of it.
pub fn run(args: &BenchArgs, out: &mut impl Write, progress: &mut (impl Write + Send)) -> Result<(), CliError> {
    let folder = match &args.data {
        Some(folder) => folder.join(format!("bench-{}", std::process::id())),
        None => temporary_folder("bench")?.keep(),
    };
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // On a thread that can be pinned, and that belongs to no runtime.
    let measured = thread::scope(|scope| scope.spawn(|| measure(args, folder.clone(), progress)).join());
    fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    let report = measured.unwrap_or_else(|panic| resume_unwind(panic))?;
    if args.json {
        report.write_json(out)?;
    } else {
        report.write_table(out)?;
    }
    Ok(())
}

fn measure(args: &BenchArgs, folder: PathBuf, progress: &mut impl Write) -> anyhow::Result<BenchReport> {
    let (span, rounds) = if args.quick { (SPAN_QUICK, ROUNDS_QUICK) } else { (SPAN, ROUNDS) };
    let cores = machine::cores().filter(|cores| machine::pin(cores.load));
    let redis = RedisChoice::find(args.redis.as_deref())?;
    let phases = phases(args, redis.is_some());
    let conditions = Conditions {
        version: env!("CARGO_PKG_VERSION"),
        pinned: cores.is_some(),
        load_before: machine::load(),
        in_memory: machine::is_in_memory(&folder),
        redis: redis.as_ref().filter(|_| phases.contains(&BenchPhase::Redis)).map(RedisChoice::describe),
        rounds,
    };
    let setting = BenchSetup { cores, folder, span, sockets_max: machine::sockets_max(), redis };
    let mut measured = Vec::new();
    for round in 1..=rounds {
        for phase in &phases {
            writeln!(progress, "round {round} of {rounds}: {phase} …")?;
            measured.extend(phases::measure(*phase, &setting).with_context(|| format!("could not measure {phase}"))?);
        }
    }
    Ok(BenchReport::new(conditions, &measured))
}

/// What is asked for; of what was not named, what can be measured here.
fn phases(args: &BenchArgs, redis: bool) -> Vec<BenchPhase> {
    match &args.only[..] {
        [] => BenchPhase::ALL.into_iter().filter(|phase| redis || *phase != BenchPhase::Redis).collect(),
        only => only.to_vec(),
    }
}
