//! Settings of a stream that decide what it can lose: the order of a rotation, and the policy of a full buffer.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the socket is replaced in a planned rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Rotation {
    /// The new socket is live before the old one is closed.
    #[default]
    Overlap,
    /// The old socket is closed first, for platforms that allow only one.
    BreakFirst,
}

/// The policy of a stream's full buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OverflowPolicy {
    /// The socket is not read until there is room. Nothing is lost if the platform can replay.
    Backpressure,
    /// The oldest events are dropped, and a gap is written.
    DropOldest,
}
