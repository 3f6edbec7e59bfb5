//! The commands of an operator for a stream.

use tokio::sync::oneshot;

use crate::protocol::stream::Input;

/// A command for a stream task, with the channel for its result.
#[derive(Debug)]
pub(super) struct PendingOperatorCommand {
    pub(super) command: OperatorCommand,
    pub(super) answer: oneshot::Sender<Result<(), &'static str>>,
}

/// An operator's command for a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperatorCommand {
    Rotate,
    Pause,
    Resume,
}

impl OperatorCommand {
    /// The last part of the command's path, which is also its name in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rotate => "rotate",
            Self::Pause => "pause",
            Self::Resume => "resume",
        }
    }
}

impl From<OperatorCommand> for Input {
    fn from(command: OperatorCommand) -> Self {
        match command {
            OperatorCommand::Rotate => Self::Rotate,
            OperatorCommand::Pause => Self::Pause,
            OperatorCommand::Resume => Self::Resume,
        }
    }
}
