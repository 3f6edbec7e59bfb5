//! The delivery guarantees of a configuration: what the store and each stream may lose, duplicate or reorder, and why.

use crate::model::{Size, Span};

use super::{
    ConnectorConfig, DurabilityConfig, OverflowConfig, RedisConfig, RotationConfig, StoreBackend, StoreConfig,
    StreamConfig,
};

/// The delivery guarantees of one stream, as texts for `trunkline check`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guarantee {
    /// Which events may be missing from the log; a gap entry marks every loss.
    pub lost: String,
    /// Which events may be in the log twice.
    pub duplicated: String,
    /// Which events may be in the log in another order than they happened.
    pub reordered: String,
}

impl StoreConfig {
    /// Which entries a store may lose after consumers have seen them, and what follows.
    pub fn possible_loss(&self) -> String {
        match &self.kind {
            StoreBackend::Embedded => {
                "nothing that consumers saw, unless the disk fails; a damaged database is renamed, \
                                    and the log continues in a new epoch after a gap (reason store)"
                    .to_owned()
            }
            StoreBackend::Redis(redis) => redis.possible_loss(),
        }
    }
}

impl RedisConfig {
    fn possible_loss(&self) -> String {
        let lost = match self.durability {
            DurabilityConfig::Written => {
                "in a failover, entries that the new primary had not received, although consumers may have seen them; \
                 in a crash of the Redis host, entries that were not on its disk yet (appendfsync)"
            }
            DurabilityConfig::Replicated => {
                "with one Redis replica, nothing that consumers saw; with several, in a failover, entries that the new \
                 primary had not received; while no Redis replica answers, events wait and consumers receive nothing"
            }
        };
        format!("{lost}; after a loss a new epoch begins, and the platform replays the lost events or a gap marks them")
    }
}

impl StreamConfig {
    /// The guarantees that the platform and the settings of this stream allow.
    pub fn guarantee(&self) -> Guarantee {
        match &self.connector {
            ConnectorConfig::GenesysNotifications { .. } => self.unnumbered(),
            ConnectorConfig::GenesysSequenced { snapshot_url, .. } => self.numbered(snapshot_url.is_some()),
        }
    }

    fn unnumbered(&self) -> Guarantee {
        let rotation = match self.rotation {
            RotationConfig::Overlap => "a planned rotation loses nothing",
            RotationConfig::BreakFirst => "this includes every planned rotation",
        };
        let overflow = match self.overflow {
            OverflowConfig::Backpressure => format!(
                "when {} events or {} are buffered, the socket is not read, and the platform may close it \
                 (no-replay)",
                self.buffer,
                self.bytes()
            ),
            OverflowConfig::DropOldest => self.dropped(),
        };
        let doubled = match self.rotation {
            RotationConfig::Overlap => {
                "events that the platform sends twice on one socket: they carry no sequence number; \
                 duplicates during a rotation are dropped"
            }
            RotationConfig::BreakFirst => "events that the platform sends twice, because they carry no sequence number",
        };
        let reordered = match self.rotation {
            RotationConfig::Overlap => "during a rotation, events of different topics; otherwise nothing",
            RotationConfig::BreakFirst => "nothing: events keep the order of arrival on one socket",
        };
        Guarantee {
            lost: format!(
                "events during a disconnection, because the platform cannot replay; a gap marks them (no-replay); \
                 {rotation}; {overflow}"
            ),
            duplicated: doubled.to_owned(),
            reordered: reordered.to_owned(),
        }
    }

    fn numbered(&self, snapshot: bool) -> Guarantee {
        let after = if snapshot {
            "and a snapshot follows the gap"
        } else {
            "and no snapshot follows, because snapshot_url is not set"
        };
        let overflow = match self.overflow {
            OverflowConfig::Backpressure => {
                format!(
                    "when {} events or {} are buffered, the socket is not read until there is room",
                    self.buffer,
                    self.bytes()
                )
            }
            OverflowConfig::DropOldest => self.dropped(),
        };
        Guarantee {
            lost: format!(
                "nothing if a disconnection is shorter than the replay window of {}; \
                 after a longer one, events that the platform no longer has; a gap marks them (retention), {after}; \
                 {overflow}",
                Span(self.retention)
            ),
            duplicated: "nothing: repeated events are recognised by their sequence number".to_owned(),
            reordered: "nothing: events are stored in the order of their sequence numbers".to_owned(),
        }
    }

    fn dropped(&self) -> String {
        format!(
            "when more than {} events or {} are buffered, the oldest; a gap marks them (shed)",
            self.buffer,
            self.bytes()
        )
    }

    fn bytes(&self) -> Size {
        Size(self.buffer_bytes as u64)
    }
}
