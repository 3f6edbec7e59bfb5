//! From start to drain: when a replica hands over its streams, gives up the rest, and leaves.

use super::boot_time::BootTime;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Lifecycle {
    Active,
    Draining {
        until: BootTime,
    },
    /// The deadline for handovers has passed.
    Abandoning,
    Left,
}

impl Lifecycle {
    pub(super) fn is_active(self) -> bool {
        self == Self::Active
    }

    pub(super) fn has_left(self) -> bool {
        self == Self::Left
    }

    pub(super) fn deadline(self) -> Option<BootTime> {
        match self {
            Self::Draining { until } => Some(until),
            Self::Active | Self::Abandoning | Self::Left => None,
        }
    }

    /// Whether the records are released instead of handed over. `has_successor`: another member accepts streams.
    pub(super) fn must_abandon(self, has_successor: bool) -> bool {
        match self {
            Self::Active | Self::Left => false,
            Self::Draining { .. } => !has_successor,
            Self::Abandoning => true,
        }
    }

    /// Whether nothing is left to do. `is_busy`: this replica owns streams or changes records. `is_preparing`: it is
    /// about to be a successor.
    pub(super) fn is_done(self, is_busy: bool, is_preparing: bool) -> bool {
        match self {
            Self::Draining { .. } => !is_busy && !is_preparing,
            Self::Abandoning => !is_busy,
            Self::Active | Self::Left => false,
        }
    }
}
