//! `trunkline bench`: measures the daemon on this machine from outside, over real sockets.
//!
//! The daemon is a separate process, pinned to a separate core if there are two; this process is its platform and its
//! consumers. Figures are medians of rounds.

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

/// Duration and number of measurements of each phase.
const SPAN: Duration = Duration::from_secs(5);
const ROUNDS: usize = 3;
const SPAN_QUICK: Duration = Duration::from_secs(2);
const ROUNDS_QUICK: usize = 1;

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Run one short round
    #[arg(long)]
    pub quick: bool,
    /// Run only these phases [default: all available]
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    pub only: Vec<BenchPhase>,
    /// Directory for the temporary stores; its disk determines most figures
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Use this Redis, and delete the test data afterwards; by default start a redis-server, if one is installed
    #[arg(long, value_name = "URL")]
    pub redis: Option<String>,
}

/// The phases of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchPhase {
    /// From a source at full speed to the durable log
    Ingest,
    /// Only the store
    Append,
    /// To 1,000 subscribers, by WebSocket and by SSE
    Fanout,
    /// From the source through the disk to one subscriber, compared with a minimal pipeline
    Latency,
    /// One subscriber that reads the whole log from the first entry
    Cold,
    /// Many slow streams, compared with one stream at the same total rate
    Streams,
    /// Memory, with and without subscribers
    Idle,
    /// To Redis, and through Redis to another replica, compared with a minimal loop and a minimal pipeline
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

/// Runs the phases, writes one line of progress for each, and prints the report.
pub fn run(args: &BenchArgs, out: &mut impl Write, progress: &mut (impl Write + Send)) -> Result<(), CliError> {
    let folder = match &args.data {
        Some(folder) => folder.join(format!("bench-{}", std::process::id())),
        None => temporary_folder("bench")?.keep(),
    };
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    // On a separate thread: it is pinned and must not belong to the async runtime.
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

/// The phases of `--only`, else all that are available.
fn phases(args: &BenchArgs, redis: bool) -> Vec<BenchPhase> {
    match &args.only[..] {
        [] => BenchPhase::ALL.into_iter().filter(|phase| redis || *phase != BenchPhase::Redis).collect(),
        only => only.to_vec(),
    }
}
