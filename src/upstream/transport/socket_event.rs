//! What a session sees of its connection, whatever the transport.

use crate::connector::Frame;

/// An event of a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum SocketEvent {
    /// The beginning of a frame has arrived. Reported once per frame.
    PartialFrame,
    Frame(Frame),
}
