//! The data path of a stream, which depends on who owns the log.

use super::{intake::IntakeOutcome, link::PathInput, owner::Owner, standby::Standby};
use crate::{
    connector::Item,
    model::{GapReason, Position},
    protocol::{Moment, session::SessionId},
};

/// The role of this replica in a stream.
#[derive(Debug)]
pub(super) enum Role {
    /// They go into the log.
    Owner(Box<Owner>),
    /// Another replica owns the log. The newest events stay in a buffer.
    Standby(Box<Standby>),
    /// Another replica owns the log. All events are dropped.
    Released,
}

impl Role {
    pub(super) fn as_owner(&self) -> Option<&Owner> {
        match self {
            Self::Owner(owner) => Some(owner),
            Self::Standby(_) | Self::Released => None,
        }
    }

    pub(super) fn as_owner_mut(&mut self) -> Option<&mut Owner> {
        match self {
            Self::Owner(owner) => Some(owner),
            Self::Standby(_) | Self::Released => None,
        }
    }

    pub(super) fn as_standby(&self) -> Option<&Standby> {
        match self {
            Self::Standby(standby) => Some(standby),
            Self::Owner(_) | Self::Released => None,
        }
    }

    pub(super) fn as_standby_mut(&mut self) -> Option<&mut Standby> {
        match self {
            Self::Standby(standby) => Some(standby),
            Self::Owner(_) | Self::Released => None,
        }
    }

    /// Makes a standby the owner. Returns what the standby had; none if it was not a standby.
    pub(super) fn become_owner(&mut self, owner: Owner) -> Option<Standby> {
        match std::mem::replace(self, Self::Owner(Box::new(owner))) {
            Self::Standby(standby) => Some(*standby),
            role @ (Self::Owner(_) | Self::Released) => {
                *self = role;
                None
            }
        }
    }

    /// The position of the last event.
    pub(super) fn position(&self) -> Option<Position> {
        match self {
            Self::Owner(owner) => owner.intake.position(),
            Self::Standby(standby) => standby.position().map(Position::Numbered),
            Self::Released => None,
        }
    }

    /// The position for the next session; none if there is none or it was abandoned.
    pub(super) fn resume(&self) -> Option<Position> {
        match self {
            Self::Owner(owner) => owner.intake.resume(),
            Self::Standby(standby) => standby.resume().map(Position::Numbered),
            Self::Released => None,
        }
    }

    /// A session is dialled with this position.
    pub(super) fn record_resume(&mut self, session: SessionId, position: Option<&Position>) {
        let after = position.and_then(Position::order);
        match self {
            Self::Owner(owner) => owner.intake.record_resume(session, after),
            Self::Standby(standby) => standby.buffer.record_resume(session, after),
            Self::Released => (),
        }
    }

    pub(super) fn abandon_position(&mut self, reason: GapReason) {
        match self {
            Self::Owner(owner) => owner.intake.abandon_position(reason),
            Self::Standby(standby) => standby.abandon_position(),
            Self::Released => (),
        }
    }

    pub(super) fn on_path_input(&mut self, input: PathInput, now: Moment) -> IntakeOutcome {
        match self {
            Self::Owner(owner) => return owner.on_path_input(input, now),
            Self::Standby(standby) => standby.on_path_input(&input),
            Self::Released => (),
        }
        IntakeOutcome::default()
    }

    pub(super) fn accept_items(&mut self, items: Vec<Item>, session: SessionId, now: Moment) -> IntakeOutcome {
        match self {
            Self::Owner(owner) => return owner.intake.accept_items(items, session, now),
            Self::Standby(standby) => standby.accept_items(items, session, now),
            Self::Released => (),
        }
        IntakeOutcome::default()
    }
}
