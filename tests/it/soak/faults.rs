//! The faults that the soak injects.

use std::collections::BTreeSet;

use serde_json::{Value, json};

/// Every kind of fault of the simulator, as in a fault script.
pub(super) fn faults() -> Vec<Value> {
    let answer = |to: &str, how: Value| json!({"fault": "answer", "to": to, "how": how});
    let mut faults = vec![
        json!({"fault": "drop"}),
        json!({"fault": "stall", "for": "7s"}),
        json!({"fault": "close", "code": 1008}),
        json!({"fault": "close", "code": 1002}),
        json!({"fault": "close", "code": 1011}),
        json!({"fault": "socket_closing", "lead": "2s"}),
        json!({"fault": "close_quiet", "after": "4s"}),
        json!({"fault": "close_quiet", "after": "0s"}),
        json!({"fault": "token_revoked"}),
        json!({"fault": "no_longer_subscribed"}),
        json!({"fault": "refuse", "status": 503, "times": 2}),
        json!({"fault": "rest", "status": 500, "times": 2}),
        json!({"fault": "reset"}),
        json!({"fault": "reorder", "n": 3}),
        json!({"fault": "oversize", "bytes": 2_000_000}),
        json!({"fault": "pad", "bytes": 2_000_000}),
        json!({"fault": "delay", "for": "5ms"}),
        json!({"fault": "delay", "for": "0s"}),
        json!({"fault": "duplicate", "n": 20}),
        json!({"fault": "jump", "n": 3}),
        json!({"fault": "unsent", "n": 3}),
        json!({"fault": "flood", "n": 500}),
        json!({"fault": "flood", "n": 500, "when": "overlap"}),
        json!({"fault": "binary", "n": 3}),
        json!({"fault": "empty_text"}),
        json!({"fault": "reword", "n": 3, "decimal": true, "time": "2026-02-30T00:00:00Z"}),
        json!({"fault": "fragments", "n": 5}),
        json!({"fault": "slow_loris", "every": "2ms"}),
        json!({"fault": "undecodable", "what": "invalid_json"}),
        json!({"fault": "undecodable", "what": "invalid_utf8"}),
        answer("connection", json!("hang")),
        answer("upgrade", json!("hang")),
        answer("upgrade", json!({"late": {"for": "3s"}})),
        answer("upgrade", json!({"trickle": {"every": "1s"}})),
        answer("upgrade", json!("connection_list")),
        answer("upgrade", json!("interim")),
        answer("upgrade", json!({"closed": {"after": "1s", "code": 1008}})),
        json!({"fault": "token", "failure": "invalid_client"}),
        json!({"fault": "token", "failure": "html"}),
        json!({"fault": "token", "failure": "huge"}),
        json!({"fault": "token", "failure": {"slow": {"for": "3s"}}}),
        json!({"fault": "token", "failure": {"expires_in": {"json": "\"soon\""}}}),
        answer("token", json!("hang")),
        answer("token", json!("reset")),
        answer("token", json!({"status": {"status": 503, "retry_after": "2"}})),
        answer("token", json!({"changed": {"set": "{\"expires_in\":0}"}})),
        answer("token", json!({"changed": {"status": 201, "content_type": "text/plain", "gzip": true}})),
        answer("token", json!({"body": {"text": "{\"error\":\"server_error\"}"}})),
        answer("rest", json!("hang")),
        answer("rest", json!({"status": {"status": 429, "retry_in": 2, "clock": -3600}})),
        answer("rest", json!({"status": {"status": 503}})),
        answer("rest", json!({"changed": {"set": "{\"pageCount\":null}"}})),
    ];
    faults.extend(
        [200, 302, 403, 404, 421, 429, 503].map(|status| answer("upgrade", json!({"status": {"status": status}}))),
    );
    faults.extend([400, 404, 409, 410, 416].map(
        |status| json!({"fault": "answer", "to": "upgrade", "resuming": true, "how": {"status": {"status": status}}}),
    ));
    faults.extend(
        ["0000", "03e7", "03ed", "03ee", "03f7", "1388", "03e9e282"]
            .map(|hex| json!({"fault": "close_raw", "hex": hex})),
    );
    faults
}

#[test]
fn the_soak_injects_every_kind_of_fault() {
    let injected: BTreeSet<String> = faults().iter().map(|fault| fault["fault"].as_str().unwrap().to_owned()).collect();
    let table =
        include_str!("../../../docs/simulator.md").split("\n## ").find(|part| part.starts_with("Scripts")).unwrap();
    let names = table.lines().filter(|line| line.starts_with("| `")).filter_map(|line| line.split('|').nth(1));
    let documented: BTreeSet<String> =
        names.flat_map(|names| names.split('`').skip(1).step_by(2)).map(str::to_owned).collect();
    assert_eq!(injected, documented);
}
