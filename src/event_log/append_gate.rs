//! One append at a time to one log, and none after one that nobody saw the end of.

use std::sync::{Mutex, PoisonError};

use crate::store::AppendError;

/// Whose turn it is to append.
#[derive(Debug, Default)]
pub(super) struct AppendGate(Mutex<GateState>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum GateState {
    #[default]
    Free,
    Busy,
    /// Somebody went away half-way: it is unknown where the log ends.
    Abandoned,
}

impl AppendGate {
    /// Begins an append; the last one is over.
    pub(super) fn acquire(&self) -> Result<AppendGuard<'_>, AppendError> {
        let found = self.replace_state(GateState::Busy);
        assert_ne!(found, GateState::Busy, "appends to one log come one at a time");
        let taken = AppendGuard { gate: self, state_on_drop: GateState::Abandoned };
        match found {
            GateState::Abandoned => Err(AppendError::Broken("an append was abandoned half-way".to_owned())),
            GateState::Free | GateState::Busy => Ok(taken),
        }
    }

    fn replace_state(&self, state: GateState) -> GateState {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), state)
    }
}

/// A turn that was begun. Dropped without [`Taken::end`] it is abandoned.
#[derive(Debug)]
pub(super) struct AppendGuard<'a> {
    gate: &'a AppendGate,
    state_on_drop: GateState,
}

impl AppendGuard<'_> {
    /// The append is over, and it is known what became of it.
    pub(super) fn complete(mut self) {
        self.state_on_drop = GateState::Free;
    }
}

impl Drop for AppendGuard<'_> {
    fn drop(&mut self) {
        self.gate.replace_state(self.state_on_drop);
    }
}
