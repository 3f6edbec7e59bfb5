//! The notices of the platform that leave a session live.

use crate::connector::{Item, Notice};

/// Which of these notices a frame has.
#[derive(Debug, Clone, Copy)]
pub(in crate::protocol::stream) struct Notices {
    pub(super) closing: bool,
    pub(super) token_revoked: bool,
}

impl Notices {
    pub(in crate::protocol::stream) fn of(items: &[Item]) -> Self {
        Self {
            closing: items.contains(&Item::Notice(Notice::Closing)),
            token_revoked: items.contains(&Item::Notice(Notice::TokenRevoked)),
        }
    }
}
