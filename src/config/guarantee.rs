//! What a stream can lose, double or reorder as it is configured, and why: told before it happens.
//!
//! It says nothing better than the platform and the settings allow.

use crate::model::{Size, Span};

use super::{
    ConnectorConfig, DurabilityConfig, OverflowConfig, RedisConfig, RotationConfig, StoreBackend, StoreConfig,
    StreamConfig,
};

/// The honest report of one stream. Each text is one sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guarantee {
    /// What never reaches the log; whatever it is, a gap entry stands in its place.
    pub lost: String,
    /// What may be in the log twice.
    pub duplicated: String,
    /// What may be in the log in another order than it happened.
    pub reordered: String,
}

impl StoreConfig {
    /// What a store may take back although consumers have seen it, and what becomes of it then.
    pub fn possible_loss(&self) -> String {
        match &self.kind {
            StoreBackend::Embedded => "nothing that was shown, as long as the disk keeps what it has acknowledged; \
                                    a damaged database is put aside, and a gap says so (store)"
                .to_owned(),
            StoreBackend::Redis(redis) => redis.possible_loss(),
        }
    }
}

impl RedisConfig {
    fn possible_loss(&self) -> String {
        let lost = match self.durability {
            DurabilityConfig::Written => {
                "in a failover what the new primary had not got, although consumers may have seen it; \
                 when the machine of Redis dies, what was not on its disk (appendfsync)"
            }
            DurabilityConfig::Replicated => {
                "nothing that was shown, in a failover to the one replica of Redis that there is; \
                 with several, what the new primary had not got; while none answers, nothing is shown and events wait"
            }
        };
        format!(
            "{lost}; after that a new epoch begins, and the platform repeats what is missing, or a gap stands for it"
        )
    }
}

impl StreamConfig {
    /// What the settings and the platform allow to be promised.
    pub fn guarantee(&self) -> Guarantee {
        match &self.connector {
            ConnectorConfig::GenesysNotifications { .. } => self.unnumbered(),
            ConnectorConfig::GenesysSequenced { snapshot_url, .. } => self.numbered(snapshot_url.is_some()),
        }
    }

    fn unnumbered(&self) -> Guarantee {
        let rotation = match self.rotation {
            RotationConfig::Overlap => "a planned change of socket loses nothing",
            RotationConfig::BreakFirst => "so also at every planned change of socket",
        };
        let overflow = match self.overflow {
            OverflowConfig::Backpressure => format!(
                "while {} events or {} wait the socket is not read, and the platform may close it (no-replay)",
                self.buffer,
                self.bytes()
            ),
            OverflowConfig::DropOldest => self.dropped(),
        };
        let doubled = match self.rotation {
            RotationConfig::Overlap => {
                "what the platform repeats on one socket, since it numbers nothing; \
                 equal events on the two sockets of a rotation are one"
            }
            RotationConfig::BreakFirst => "what the platform repeats, since it numbers nothing",
        };
        let reordered = match self.rotation {
            RotationConfig::Overlap => "nothing on one socket; events of different topics while two sockets are up",
            RotationConfig::BreakFirst => "nothing: one socket, in the order of arrival",
        };
        Guarantee {
            lost: format!(
                "whatever happens while no socket is up, since the platform cannot replay (no-replay); \
                 {rotation}; {overflow}"
            ),
            duplicated: doubled.to_owned(),
            reordered: reordered.to_owned(),
        }
    }

    fn numbered(&self, snapshot: bool) -> Guarantee {
        let after = if snapshot { "then a snapshot follows" } else { "and without snapshot_url nothing fills it" };
        let overflow = match self.overflow {
            OverflowConfig::Backpressure => {
                format!(
                    "while {} events or {} wait the socket is not read, and resumed afterwards",
                    self.buffer,
                    self.bytes()
                )
            }
            OverflowConfig::DropOldest => self.dropped(),
        };
        Guarantee {
            lost: format!(
                "nothing as long as an interruption is shorter than the {} for which the platform can replay; \
                 beyond that what it has forgotten (retention), {after}; {overflow}",
                Span(self.retention)
            ),
            duplicated: "nothing: the platform's numbers tell a repeated event".to_owned(),
            reordered: "nothing: events stand in the order of their numbers".to_owned(),
        }
    }

    fn dropped(&self) -> String {
        format!("beyond {} waiting events, or {} of them, the oldest (shed)", self.buffer, self.bytes())
    }

    fn bytes(&self) -> Size {
        Size(self.buffer_bytes as u64)
    }
}
