//! The words: what every other module speaks in. Plain values, no IO, no clock, no rules of a conversation.

mod batch;
mod cursor;
mod delivery;
mod envelope;
mod event;
mod feed;
mod name;
mod revocation;
mod secret;
mod setting;
mod spelling;
mod status;
mod time;

pub use batch::{Batch, BatchView, Entry, Piece, Pieces, Rendering, StoredEntry};
pub use cursor::{Cursor, CursorError, CursorValidity, Epoch, Lineage, Mark, Offset};
pub use delivery::{OverflowPolicy, Rotation};
pub use envelope::{BatchBuilder, EnvelopeHeader, Source};
pub use event::{Body, Event, Gap, GapReason};
pub use feed::{FeedId, stable_hash};
pub use name::{AccountName, ConsumerName, NameError, StreamName};
pub use revocation::{Revocation, RevocationTarget};
pub use secret::Secret;
pub use setting::{SecretRef, SettingError, Size, Span};
pub use spelling::nearest;
pub use status::{Exchange, StatusMeaning};
pub use time::Timestamp;

use std::fmt;

use serde::{Deserialize, Serialize};

/// The platform's own number of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The number that must follow in a dense numbering.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How far a stream has been taken in, in the platform's terms: the last event done, never the next one wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position(pub Sequence);

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is stored beside the entries it covers, in the same step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// Where to resume; none on platforms that number nothing, and before the first event.
    pub position: Option<Position>,
    /// When the platform was last heard with nothing outstanding. Wall clock, because it must survive a restart, and
    /// that of whoever has it in hand: a store that others share translates it. It only ever says that a position is
    /// *certainly* too old, so a wrong clock costs a snapshot, never an event.
    pub last_received_at: Timestamp,
    /// Whose numbers the position is in; none where an earlier version stored it.
    pub feed: Option<FeedId>,
}

/// The right to append to one stream: the number orders holders, the nonce decides (compared by equality).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fence {
    /// Grows with each holder.
    pub number: u64,
    /// Random, so that a number handed out twice after a store lost writes still tells two holders apart.
    pub nonce: u128,
}

impl Fence {
    /// Before the first holder; nobody ever appends with it.
    pub const NONE: Self = Self { number: 0, nonce: 0 };

    /// The fence of whoever comes after the holder of this one.
    pub fn next(self, nonce: u128) -> Self {
        Self { number: self.number.saturating_add(1), nonce }
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:032x}", self.number, self.nonce)
    }
}

/// One running process, told from its own earlier lives: drawn at random when it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId(pub u64);

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
