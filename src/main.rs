//! Arguments, configuration, telemetry, run, exit status.

use std::path::PathBuf;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> anyhow::Result<()> {
    let file = std::env::args().nth(1).unwrap();
    let config = trunkline::config::load(&[PathBuf::from(file)], &trunkline::config::Environment::of_process())
        .map_err(|findings| anyhow::anyhow!("{findings}"))?;
    tracing_subscriber::fmt().init();
    tokio::runtime::Runtime::new()?.block_on(async {
        let app = trunkline::app::App::start(config).await?;
        app.run(async {
            tokio::signal::ctrl_c().await.unwrap();
        })
        .await
    })
}
