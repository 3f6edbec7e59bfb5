//! One append at a time to one log, and none after one that nobody saw the end of.

use std::sync::{Mutex, PoisonError};

use crate::store::AppendError;

/// Whose turn it is to append.
#[derive(Debug, Default)]
pub(super) struct Turn(Mutex<State>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Free,
    Taken,
    /// Somebody went away half-way: it is unknown where the log ends.
    Abandoned,
}

impl Turn {
    /// Begins an append; the last one is over.
    pub(super) fn begin(&self) -> Result<Taken<'_>, AppendError> {
        let found = self.swap(State::Taken);
        assert_ne!(found, State::Taken, "appends to one log come one at a time");
        let taken = Taken { turn: self, after: State::Abandoned };
        match found {
            State::Abandoned => Err(AppendError::Broken("an append was abandoned half-way".to_owned())),
            State::Free | State::Taken => Ok(taken),
        }
    }

    fn swap(&self, state: State) -> State {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), state)
    }
}

/// A turn that was begun. Dropped without [`Taken::end`] it is abandoned.
#[derive(Debug)]
pub(super) struct Taken<'a> {
    turn: &'a Turn,
    after: State,
}

impl Taken<'_> {
    /// The append is over, and it is known what became of it.
    pub(super) fn end(mut self) {
        self.after = State::Free;
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.turn.swap(self.after);
    }
}
