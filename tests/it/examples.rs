//! The programs in `examples/`, run against a real daemon.

use std::ops::ControlFlow;

use serde_json::Value;

use crate::harness::{Platform, Relay, http, summarize_entry};

#[path = "../../examples/follow.rs"]
#[expect(dead_code, reason = "its `main` is not called here")]
mod follow;

/// Follows the stream of a relay until `count` events were handled, and returns their numbers.
async fn numbers(relay: &Relay, cursor: &std::path::Path, count: usize) -> Vec<String> {
    let mut numbers = Vec::new();
    let handle = |event: &Value| {
        numbers.push(summarize_entry(event));
        if numbers.len() < count { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let base = format!("http://{}", relay.consumers_at());
    let flow = follow::follow(&http(), &base, relay.name(), cursor, handle).await.unwrap();
    assert!(flow.is_break(), "the connection ended early");
    numbers
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_consumer_resumes_after_the_event_it_handled_last() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    let folder = tempfile::tempdir().unwrap();
    let cursor = folder.path().join("cursor");
    platform.emit(5);
    assert_eq!(numbers(&relay, &cursor, 3).await, ["1", "2", "3"]);
    assert_eq!(numbers(&relay, &cursor, 2).await, ["4", "5"]);
    platform.emit(1);
    assert_eq!(numbers(&relay, &cursor, 1).await, ["6"]);
}
