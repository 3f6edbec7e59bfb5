//! The delivery guarantees of a configuration: what the store and each stream may lose, duplicate or reorder, and why.

use crate::{
    connector::{DeliveryTerms, Guarantee},
    model::Size,
    store::redis::Durability,
};

use super::{RedisConfig, StoreBackend, StoreConfig, StreamConfig};

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
            Durability::Written => {
                "in a failover, entries that the new primary had not received, although consumers may have seen them; \
                 in a crash of the Redis host, entries that were not on its disk yet (appendfsync)"
            }
            Durability::Replicated => {
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
        self.connector.guarantee(&DeliveryTerms {
            rotation: self.keys.rotation,
            overflow: self.overflow,
            retention: self.keys.retention,
            buffer: self.keys.buffer,
            buffer_bytes: Size(self.keys.buffer_bytes as u64),
        })
    }
}
