//! With the logs in Redis: what goes in, and how soon another replica has it.

use std::time::Duration;

use anyhow::ensure;

use super::{
    super::bare::{self, Done},
    APPEND_LEN, Figure, Frames, Pace, Setting, Source, Target, WARM_UP, cpu_figure, delays, figure, observe, pipeline,
    sources,
};

/// Everything that is written stays in memory while it is measured: this bounds it to about half a gigabyte.
const SPAN_MAX: Duration = Duration::from_secs(3);

pub(super) fn redis(setting: &Setting) -> anyhow::Result<Vec<Figure>> {
    let mut figures = ingest(setting)?;
    figures.extend(latency(setting)?);
    Ok(figures)
}

fn ingest(setting: &Setting) -> anyhow::Result<Vec<Figure>> {
    let span = setting.span.min(SPAN_MAX);
    let (ours, daemon_cpu, entry) = {
        let server = setting.server()?;
        let source = Source::start(Frames::Mixed, Pace::AsTaken)?;
        let daemon = setting.replica("daemon", &source, &server)?;
        source.gate().raise(u64::MAX);
        let pass = observe(&daemon, Some(&server), span)?;
        (Done { events: pass.events, took: pass.took, cpu: pass.server_cpu }, pass.cpu, server.newest_entry()?)
    };
    let bare = bare::append(&setting.server()?, &entry, APPEND_LEN, (WARM_UP, span), setting.cores)?;
    let rate = |done: Done| done.events as f64 / done.took.as_secs_f64();
    let each = |done: Done| done.cpu.map(|cpu| cpu.as_secs_f64() / done.events.max(1) as f64);
    let mut figures =
        vec![figure("redis, source to acknowledged append", rate(ours), "events/s", Target::AtLeast(85_000.0))];
    figures.extend(cpu_figure("redis, daemon's CPU", daemon_cpu, ours.events, Target::AtMost(4.0)));
    figures.extend(cpu_figure("redis, the server's CPU", ours.cpu, ours.events, Target::None));
    figures.push(figure("the same bytes by a bare MULTI", rate(bare), "events/s", Target::None));
    figures.extend(cpu_figure("a bare MULTI, the server's CPU", bare.cpu, bare.events, Target::None));
    figures.push(figure("redis, events against the bare MULTI's", rate(ours) / rate(bare), "times", Target::None));
    let ratio = each(ours).zip(each(bare)).map(|(ours, bare)| ours / bare);
    figures.extend(
        ratio.map(|ratio| figure("the server's CPU, against a bare MULTI's", ratio, "times", Target::AtMost(1.4))),
    );
    Ok(figures)
}

/// From the source over the replica that holds the stream to a subscriber of the other one.
fn latency(setting: &Setting) -> anyhow::Result<Vec<Figure>> {
    let server = setting.server()?;
    let [through, past] = sources()?;
    let pipeline = pipeline::start_over_redis(&server, past.address(), setting.cores)?;
    let _holder = setting.replica("daemon", &through, &server)?;
    let other = setting.replica("other", &through, &server)?;
    let [ours, bare] = delays([(&through, other.consumers()), (&past, pipeline)], setting.span)?;
    ensure!(through.connected() == 1, "the stream changed hands while it was measured");
    Ok(vec![
        figure("redis, to another replica, p50", ours.p50, "ms", Target::AtMost(0.6)),
        figure("redis, to another replica, p99", ours.p99, "ms", Target::None),
        figure("the same of a minimal Redis pipeline, p50", bare.p50, "ms", Target::None),
        figure("the same of a minimal Redis pipeline, p99", bare.p99, "ms", Target::None),
        figure("redis, p99 against the pipeline's", ours.p99 / bare.p99, "times", Target::AtMost(1.5)),
    ])
}
