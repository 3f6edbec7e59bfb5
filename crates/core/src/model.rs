//! The shared vocabulary: plain values without IO, clock or protocol rules.

mod batch;
mod cursor;
mod delivery;
mod envelope;
mod event;
mod feed;
mod grant;
pub(crate) mod labels;
mod name;
mod position;
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
pub use grant::{
    ClaimError, ClaimRules, ConsumerGrant, StreamPattern, StreamPatternError, Subject, SubjectError, TOKEN_LEEWAY,
};
pub use name::{AccountName, ConsumerName, NameError, StreamName};
pub use position::{Position, PositionText};
pub use revocation::{Revocation, RevocationTarget};
pub use secret::Secret;
pub use setting::{SecretRef, SettingError, Size, Span};
pub use spelling::nearest;
pub use status::{Exchange, StatusMeaning};
pub use time::Timestamp;

use std::fmt;

use serde::{Deserialize, Serialize};

/// The platform's number of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The next number of a dense numbering.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The resume state of a stream. It is stored in one step with the entries that it covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The position to resume after; none before the first event, and on platforms that cannot resume.
    pub position: Option<Position>,
    /// When the last frame arrived with all its events stored. Wall clock of this host, because it must survive a
    /// restart; a shared store converts it. It only shows that a position is certainly too old, so a wrong clock costs
    /// a snapshot, never an event.
    pub last_received_at: Timestamp,
    /// The feed of the position; none if an earlier version stored it.
    pub feed: Option<FeedId>,
}

/// The right to append to one stream. The number orders the owners; the store compares number and nonce for equality.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fence {
    /// Grows with each owner.
    pub number: u64,
    /// Random. It distinguishes two owners with the same number, after a store lost writes.
    pub nonce: u128,
}

impl Fence {
    /// Before the first owner. No append has it.
    pub const NONE: Self = Self { number: 0, nonce: 0 };

    /// The fence of the next owner.
    pub fn next(self, nonce: u128) -> Self {
        Self { number: self.number.saturating_add(1), nonce }
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:032x}", self.number, self.nonce)
    }
}

/// One running process. Random at each start, so that a restarted process is a new replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId(pub u64);

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
