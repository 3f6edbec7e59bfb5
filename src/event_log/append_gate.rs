//! One append at a time to one log, and none after an append with an unknown outcome.

use parking_lot::Mutex;

use crate::{store::AppendError, telemetry::Cause};

/// Whether an append is in flight.
#[derive(Debug, Default)]
pub(super) struct AppendGate(Mutex<GateState>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum GateState {
    #[default]
    Free,
    Busy,
    /// A caller dropped its append in flight: the end of the log is unknown.
    Abandoned,
}

impl AppendGate {
    /// Begins an append after the last one has ended.
    pub(super) fn acquire(&self) -> Result<AppendGuard<'_>, AppendError> {
        let found = self.replace_state(GateState::Busy);
        assert_ne!(found, GateState::Busy, "appends to one log come one at a time");
        let taken = AppendGuard { gate: self, state_on_drop: GateState::Abandoned };
        match found {
            GateState::Abandoned => {
                Err(AppendError::Broken(Cause::new("an append was cancelled before its outcome was known")))
            }
            GateState::Free | GateState::Busy => Ok(taken),
        }
    }

    fn replace_state(&self, state: GateState) -> GateState {
        std::mem::replace(&mut *self.0.lock(), state)
    }
}

/// An append in flight. Dropped without [`AppendGuard::end`] it counts as abandoned.
#[derive(Debug)]
pub(super) struct AppendGuard<'a> {
    gate: &'a AppendGate,
    state_on_drop: GateState,
}

impl AppendGuard<'_> {
    /// Ends the append; its outcome is known.
    pub(super) fn complete(mut self) {
        self.state_on_drop = GateState::Free;
    }
}

impl Drop for AppendGuard<'_> {
    fn drop(&mut self) {
        self.gate.replace_state(self.state_on_drop);
    }
}
