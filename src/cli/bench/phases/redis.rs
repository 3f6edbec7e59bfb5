//! The phase with logs in Redis: throughput, and latency to another replica.

use std::time::Duration;

use anyhow::ensure;

use super::{
    super::raw_redis::{self, AppendMeasurement},
    APPEND_LEN, BenchSetup, BenchSource, Figure, FigureTarget, FrameSizes, Pace, WARM_UP, cpu_figure, delays, figure,
    observe, pipeline, sources,
};

/// Limit of entries, because Redis keeps all of them in memory: about half a gigabyte.
const SPAN_MAX: Duration = Duration::from_secs(3);

pub(super) fn redis(setup: &BenchSetup) -> anyhow::Result<Vec<Figure>> {
    let mut figures = ingest(setup)?;
    figures.extend(latency(setup)?);
    Ok(figures)
}

fn ingest(setup: &BenchSetup) -> anyhow::Result<Vec<Figure>> {
    let span = setup.span.min(SPAN_MAX);
    let (ours, daemon_cpu, entry) = {
        let server = setup.server()?;
        let source = BenchSource::start(FrameSizes::Mixed, Pace::Unlimited)?;
        let daemon = setup.replica("daemon", &source, &server)?;
        source.gate().raise(u64::MAX);
        let pass = observe(&daemon, Some(&server), span)?;
        (
            AppendMeasurement { events: pass.events, elapsed: pass.elapsed, cpu: pass.server_cpu },
            pass.cpu,
            server.newest_entry()?,
        )
    };
    let raw = raw_redis::append(&setup.server()?, &entry, APPEND_LEN, (WARM_UP, span), setup.cores)?;
    let rate = |done: AppendMeasurement| done.events as f64 / done.elapsed.as_secs_f64();
    let each = |done: AppendMeasurement| done.cpu.map(|cpu| cpu.as_secs_f64() / done.events.max(1) as f64);
    let mut figures =
        vec![figure("redis, source to acknowledged append", rate(ours), "events/s", FigureTarget::AtLeast(85_000.0))];
    figures.extend(cpu_figure("redis, daemon CPU", daemon_cpu, ours.events, FigureTarget::AtMost(4.0)));
    figures.extend(cpu_figure("redis, server CPU", ours.cpu, ours.events, FigureTarget::None));
    figures.push(figure("bare MULTI with the same bytes", rate(raw), "events/s", FigureTarget::None));
    figures.extend(cpu_figure("bare MULTI, server CPU", raw.cpu, raw.events, FigureTarget::None));
    figures.push(figure("redis, events ratio to the bare MULTI", rate(ours) / rate(raw), "times", FigureTarget::None));
    let ratio = each(ours).zip(each(raw)).map(|(ours, bare)| ours / bare);
    figures.extend(
        ratio.map(|ratio| {
            figure("redis, server CPU ratio to the bare MULTI", ratio, "times", FigureTarget::AtMost(1.4))
        }),
    );
    Ok(figures)
}

/// Measures from the source through the owner to a subscriber of another replica.
fn latency(setup: &BenchSetup) -> anyhow::Result<Vec<Figure>> {
    let server = setup.server()?;
    let [through, past] = sources()?;
    let pipeline = pipeline::start_over_redis(&server, past.address(), setup.cores)?;
    let _owner = setup.replica("daemon", &through, &server)?;
    let other = setup.replica("other", &through, &server)?;
    let [ours, bare] = delays([(&through, other.consumers()), (&past, pipeline)], setup.span)?;
    ensure!(through.connected() == 1, "the stream moved to another replica during the measurement");
    Ok(vec![
        figure("redis, to another replica, p50", ours.p50, "ms", FigureTarget::AtMost(0.6)),
        figure("redis, to another replica, p99", ours.p99, "ms", FigureTarget::None),
        figure("minimal Redis pipeline, p50", bare.p50, "ms", FigureTarget::None),
        figure("minimal Redis pipeline, p99", bare.p99, "ms", FigureTarget::None),
        figure("redis, p99 ratio to the pipeline", ours.p99 / bare.p99, "times", FigureTarget::AtMost(1.5)),
    ])
}
