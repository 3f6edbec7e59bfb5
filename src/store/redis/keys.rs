//! The names of keys. All keys of one stream are in one slot of a cluster.

use crate::model::{Offset, StreamName};

/// The keys of one stream's log.
#[derive(Debug, Clone)]
pub(crate) struct LogKeys {
    /// A hash: epochs, fence, last offset, position.
    pub(crate) head: String,
    /// A Redis Stream: the entry with offset 17 has the id `17-0`.
    pub(crate) log: String,
}

impl LogKeys {
    pub(crate) fn of(prefix: &str, stream: &StreamName) -> Self {
        Self { head: key(prefix, stream.as_str(), "head"), log: key(prefix, stream.as_str(), "log") }
    }

    pub(super) fn both(&self) -> [&str; 2] {
        [&self.head, &self.log]
    }
}

/// The id of an entry in the Redis Stream.
pub(super) fn entry_id(offset: Offset) -> String {
    format!("{offset}-0")
}

/// A hash with the cursors of consumers in one stream.
pub(super) fn cursors(prefix: &str, stream: &StreamName) -> String {
    key(prefix, stream.as_str(), "cursors")
}

/// A key such as `{trunkline:queues}:log`. The text in braces decides the slot.
pub fn key(prefix: &str, about: &str, what: &str) -> String {
    format!("{{{prefix}:{about}}}:{what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_a_stream_share_a_slot() {
        let LogKeys { head, log } = LogKeys::of("trunkline", &"queues".parse().unwrap());
        assert_eq!((&*head, &*log), ("{trunkline:queues}:head", "{trunkline:queues}:log"));
    }
}
