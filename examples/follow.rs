//! A consumer that can be stopped at any time: it follows one stream over NDJSON and stores its cursor.
//!
//! `cargo run --example follow -- http://127.0.0.1:8080 conversations cursor.txt`
//!
//! Each line of the stream is a CloudEvent, and its `id` is the cursor of the entry. The cursor is stored after an event
//! was handled. A crash between the two handles one event again: delivery is at least once.

use std::{fs, io, io::Write, ops::ControlFlow, path::Path, time::Duration};

use anyhow::Context;
use futures_util::StreamExt;
use reqwest::{Client, Url};
use serde_json::Value;

/// The delay before the next connection.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Follows a stream over one connection until `handle` breaks or the connection ends. Without a stored cursor it starts
/// at the first entry that is held.
pub(crate) async fn follow(
    http: &Client,
    base: &str,
    stream: &str,
    cursor: &Path,
    mut handle: impl FnMut(&Value) -> ControlFlow<()>,
) -> anyhow::Result<ControlFlow<()>> {
    let mut url = Url::parse(base)?.join(&format!("/v1/streams/{stream}/events"))?;
    match fs::read_to_string(cursor) {
        Ok(cursor) => url.query_pairs_mut().append_pair("after", cursor.trim()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => url.query_pairs_mut().append_pair("from", "first"),
        Err(error) => return Err(error).context("cannot read the cursor"),
    };
    let response = http.get(url).header("accept", "application/x-ndjson").send().await?.error_for_status()?;
    let (mut chunks, mut text) = (response.bytes_stream(), Vec::new());
    while let Some(chunk) = chunks.next().await {
        text.extend_from_slice(&chunk?);
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            // An empty line keeps the connection alive.
            if line.trim_ascii().is_empty() {
                continue;
            }
            let event: Value = serde_json::from_slice(&line)?;
            let flow = handle(&event);
            store(cursor, event["id"].as_str().context("an event has an id")?)?;
            if flow.is_break() {
                return Ok(flow);
            }
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Replaces the file in one step, so that a crash leaves the old cursor or the new one.
fn store(path: &Path, cursor: &str) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, cursor).context("cannot write the cursor")?;
    fs::rename(&new, path).context("cannot replace the cursor")
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [base, stream, cursor] = &arguments[..] else { anyhow::bail!("usage: follow URL STREAM CURSOR_FILE") };
    // reqwest is built without a default for TLS.
    _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let http = Client::new();
    let print = |event: &Value| match writeln!(io::stdout(), "{event}") {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    };
    loop {
        match follow(&http, base, stream, Path::new(cursor), print).await {
            Ok(ControlFlow::Break(())) => return Ok(()),
            Ok(ControlFlow::Continue(())) => (),
            Err(error) => _ = writeln!(io::stderr(), "disconnected: {error:#}"),
        }
        tokio::time::sleep(RETRY_DELAY).await;
    }
}
